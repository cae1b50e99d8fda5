r"""Curves of predictions of any size: how well scores rank, how far they can be believed.

The scores of a class are cut at their own quantiles (Greenwald and Khanna, 2001, as Spark's
``approxQuantile``) into at most :data:`BINS` bins; one Spark job sums the weights of the class and
of all others in each. The driver gets no more than these sums. With :math:`P_b, N_b` their running
sums from the highest bin down to b,

.. math::

    \mathrm{TPR}_b = \frac{P_b}{P}, \quad \mathrm{FPR}_b = \frac{N_b}{N}, \quad
    \mathrm{precision}_b = \frac{P_b}{P_b + N_b}.

Up to :data:`BINS` rows every score has a bin of its own and the curves are exact. Of more rows a
curve lacks the points within its bins, and the area under the ROC curve is off by at most half the
largest share of the positives, or of the negatives, that one bin has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pyspark.ml.feature import Bucketizer
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType
from scipy.integrate import trapezoid

from mllib_ext.columns import data_type, number, quoted

BINS = 1000  # as many as Spark's BinaryClassificationEvaluator takes
CALIBRATION_BINS = 10
# Curves of more classes cannot be told apart: their confusion matrix says more.
MAX_CLASSES = 10
# Of residuals: as many as a small picture shows.
RESIDUAL_BINS, PREDICTION_BINS = 31, 40
TAIL = 0.001  # of the residuals, on each side, may lie far out and leave the rest no room


@dataclass(frozen=True)
class ScoreBins:
    """What became of the rows of a class and of all others, by their score for the class.

    Attributes
    ----------
    name : str
        The class.
    thresholds : ndarray, shape (b,)
        The least score in each bin, falling.
    positive, negative : ndarray, shape (b,)
        The weight of the rows of the class and of others in each bin.
    believed : ndarray, shape (CALIBRATION_BINS, 3), or None
        Of equal bins of probabilities their weight, that of the rows of the class, and the sum of
        their probabilities by weight. None for scores that are no probabilities.
    """

    name: str
    thresholds: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    believed: np.ndarray | None = None

    @property
    def positives(self) -> float:
        """The share of the class."""
        return float(self.positive.sum() / (self.positive.sum() + self.negative.sum()))

    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """False and true positive rates (b + 1,) from (0, 0) to (1, 1); NaN without either."""
        return _shares(self.negative), _shares(self.positive)

    def precision_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision (b + 1,); at recall 0 the precision is that of the first bin."""
        right, wrong = self.positive.cumsum(), self.negative.cumsum()
        precision = right / (right + wrong)
        return _shares(self.positive), np.concatenate([precision[:1], precision])

    @property
    def area_under_roc(self) -> float:
        """By trapezoids, as Spark's."""
        return _area(*self.roc())

    @property
    def area_under_pr(self) -> float:
        """By trapezoids, as Spark's."""
        return _area(*self.precision_recall())

    def calibration(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean probability and share of the class in each bin that has rows, as scikit-learn's.

        Raises
        ------
        ValueError
            The scores are no probabilities.
        """
        weight, positive, scores = self._believed().T
        return scores / weight, positive / weight

    @property
    def calibration_error(self) -> float:
        """The mean distance between the two (Naeini et al., 2015), each bin by its weight."""
        weight, positive, scores = self._believed().T
        return float(np.abs(scores - positive).sum() / weight.sum())

    def _believed(self) -> np.ndarray:
        if self.believed is None:
            raise ValueError("scores: expected probabilities, found raw predictions")
        return self.believed[self.believed[:, 0] > 0]


def _shares(weights: np.ndarray) -> np.ndarray:
    total = weights.sum()
    if not total:
        return np.full(len(weights) + 1, np.nan)
    return np.concatenate([[0.0], weights.cumsum() / total])


def _area(x: np.ndarray, y: np.ndarray) -> float:
    return float(trapezoid(y, x))


def score_bins(
    predictions: DataFrame,
    *,
    labelCol: str = "label",
    rawPredictionCol: str = "rawPrediction",
    probabilityCol: str = "probability",
    weightCol: str | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[ScoreBins, ...]:
    """The scores of every class by bins, or those of class 1 of two: three Spark jobs.

    Rows of two classes are ranked by raw predictions, as Spark's evaluator does; those of more by
    probabilities, which compare from row to row where raw predictions may not. Where only one of
    the columns is there, it is taken for both.

    Parameters
    ----------
    predictions : DataFrame
        What a classifier's ``transform`` gave.
    labelCol : str
        Class indices 0, 1, ...
    rawPredictionCol, probabilityCol : str
        Vectors with a score for each class; probabilities alone make a calibration.
    weightCol : str, optional
    classes : sequence of str, optional
        What the classes are called.

    Returns
    -------
    tuple of ScoreBins
        Empty without rows, and for more than :data:`MAX_CLASSES` classes.

    Raises
    ------
    ValueError, TypeError
        A column that is not there, or not of these types.
    """
    schema = predictions.schema
    weight = number(schema, weightCol, "weight") if weightCol is not None else F.lit(1.0)
    probable = probabilityCol in schema.names
    vectors = [c for c in (rawPredictionCol, probabilityCol) if c in schema.names]
    scores = [_vector(schema, name) for name in vectors or [rawPredictionCol]]
    rows = predictions.select(
        number(schema, labelCol, "label").alias("label"),
        weight.alias("weight"),
        scores[0].alias("raw"),
        scores[-1].alias("probability"),
    )
    first = rows.select(F.size("probability").alias("k")).first()
    k = first["k"] if first is not None else 0
    if not 2 <= k <= MAX_CLASSES:
        return ()
    chosen = [1] if k == 2 else list(range(k))
    names = list(classes or ())
    names += [str(j) for j in range(len(names), k)]
    source = "raw" if k == 2 else "probability"
    columns = [f"score_{j}" for j in chosen]
    rows = rows.select(
        "label",
        "weight",
        "probability",
        *[F.col(source)[j].alias(f"score_{j}") for j in chosen],
    )
    shares = ((np.arange(BINS) + 0.5) / BINS).tolist()  # of up to BINS rows every one of them
    cuts = [np.unique(c) for c in rows.approxQuantile(columns, shares, 1 / (4 * BINS))]
    cuts = [c[np.isfinite(c)] if np.isfinite(c).any() else np.zeros(1) for c in cuts]
    binned = Bucketizer(
        # Below the second cut is one bin; Spark wants two of them.
        splitsArray=[[-np.inf, *(c[1:] if len(c) > 1 else c).tolist(), np.inf] for c in cuts],
        inputCols=columns,
        outputCols=[f"bin_{j}" for j in chosen],
        handleInvalid="skip",  # NaN
    ).transform(rows)
    sums = _sums(binned, chosen)
    found = []
    for j in chosen:
        own = sums[sums["class"] == j]
        if len(own):
            found.append(_of_sums(names[j], own, probable))
    return tuple(found)


def _vector(schema: StructType, name: str) -> Column:
    kind = data_type(schema, name, "score")
    if not isinstance(kind, VectorUDT):
        raise TypeError(f"score column {name!r}: expected a vector, found {kind.simpleString()}")
    return vector_to_array(quoted(name))


def _sums(binned: DataFrame, chosen: Sequence[int]) -> pd.DataFrame:
    """Sums of every class, bin of scores and bin of probabilities: one job."""
    # As scikit-learn's: a probability on an edge belongs to the bin below it.
    n = CALIBRATION_BINS
    p = F.col("one.p")
    cell = F.greatest(F.least(F.ceil(p * n) - 1, F.lit(n - 1)), F.lit(0))
    is_class = F.when(F.col("label") == F.col("one.class"), F.col("weight")).otherwise(0.0)
    each = F.explode(
        F.array(
            *[
                F.struct(
                    F.lit(j).alias("class"),
                    F.col(f"bin_{j}").alias("bin"),
                    F.col(f"score_{j}").alias("score"),
                    F.col("probability")[j].alias("p"),
                )
                for j in chosen
            ]
        )
    )
    return (
        binned.select("label", "weight", each.alias("one"))
        .groupBy("one.class", "one.bin", cell.alias("cell"))
        .agg(
            F.min("one.score").alias("threshold"),
            F.sum("weight").alias("weight"),
            F.sum(is_class).alias("positive"),
            F.sum(F.col("weight") * p).alias("believed"),
        )
        .toArrow()
        .to_pandas()
    )


def _of_sums(name: str, sums: pd.DataFrame, probable: bool) -> ScoreBins:
    bins = sums.groupby("bin").agg({"threshold": "min", "weight": "sum", "positive": "sum"})
    bins = bins[bins["weight"] > 0].sort_index(ascending=False)
    positive = bins["positive"].to_numpy()
    believed = None
    if probable:
        cells = sums.groupby("cell")[["weight", "positive", "believed"]].sum()
        believed = cells.reindex(range(CALIBRATION_BINS), fill_value=0.0).to_numpy()
    negative = np.maximum(bins["weight"].to_numpy() - positive, 0.0)
    return ScoreBins(name, bins["threshold"].to_numpy(), positive, negative, believed)


# --- residuals -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Residuals:
    """Labels less predictions, counted.

    Attributes
    ----------
    residuals : ndarray, shape (r + 1,)
        The edges of the bins; the outermost bins hold what is beyond them too.
    predictions : ndarray, shape (p + 1,)
        The same of the predictions.
    counts : ndarray, shape (r, p)
        Rows, or weight, in each.
    mean, deviation : float
        Of all residuals.
    weighted : bool
    """

    residuals: np.ndarray
    predictions: np.ndarray
    counts: np.ndarray
    mean: float
    deviation: float
    weighted: bool


def residual_bins(
    predictions: DataFrame,
    *,
    labelCol: str = "label",
    predictionCol: str = "prediction",
    weightCol: str | None = None,
) -> Residuals:
    """Count residuals by their size and by the prediction: two Spark jobs.

    Parameters
    ----------
    predictions : DataFrame
        What a regression's ``transform`` gave.
    labelCol, predictionCol : str
    weightCol : str, optional

    Raises
    ------
    ValueError, TypeError
        A column that is not there or not numeric; no rows that have both.
    """
    schema = predictions.schema
    weight = number(schema, weightCol, "weight") if weightCol is not None else F.lit(1.0)
    rows = predictions.select(
        number(schema, labelCol, "label").alias("label"),
        number(schema, predictionCol, "prediction").alias("prediction"),
        weight.alias("weight"),
    )
    rows = rows.withColumn("residual", F.col("label") - F.col("prediction"))
    rows = rows.filter(F.abs("residual") < float("inf"))  # and no NaN, no null
    ends = rows.approxQuantile(["residual", "prediction"], [TAIL, 1 - TAIL], TAIL / 4)
    if not all(ends):
        raise ValueError("predictions: expected rows with a label and a prediction, found none")
    edges = [
        _edges(low, high, bins)
        for (low, high), bins in zip(ends, (RESIDUAL_BINS, PREDICTION_BINS), strict=True)
    ]
    places = [
        F.greatest(F.least(F.floor((F.col(c) - e[0]) / (e[1] - e[0])), F.lit(len(e) - 2)), F.lit(0))
        for c, e in zip(("residual", "prediction"), edges, strict=True)
    ]
    w, r = F.col("weight"), F.col("residual")
    cells = (
        rows.groupBy(places[0].alias("i"), places[1].alias("j"))
        .agg(
            F.sum("weight").alias("n"), F.sum(w * r).alias("sum"), F.sum(w * r * r).alias("square")
        )
        .toArrow()
        .to_pandas()
    )
    counts = np.zeros((RESIDUAL_BINS, PREDICTION_BINS))
    counts[cells["i"], cells["j"]] = cells["n"]
    total = counts.sum()
    mean = cells["sum"].sum() / total
    variance = max(cells["square"].sum() / total - mean**2, 0.0)
    residuals, fitted = edges
    deviation = float(np.sqrt(variance))
    return Residuals(residuals, fitted, counts, float(mean), deviation, weightCol is not None)


def _edges(low: float, high: float, bins: int) -> np.ndarray:
    """Equal bins between two ends; around one value where these are the same."""
    if not high - low > 1e-12 * max(abs(low), abs(high)):
        room = max(abs(low), 1.0) / 2
        low, high = low - room, high + room
    return np.linspace(low, high, bins + 1)
