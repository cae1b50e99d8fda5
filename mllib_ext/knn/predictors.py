r"""Classification and regression by the labels of the nearest rows.

.. math::

    \mathrm{raw}_c(q) = \sum_{i \in \mathrm{knn}(q)} w_i \, \kappa(d_i) \, [y_i = c], \qquad
    \hat y(q) = \frac{\sum_i w_i \, \kappa(d_i) \, y_i}{\sum_i w_i \, \kappa(d_i)}

with :math:`\kappa = 1`, or :math:`\kappa(d) = 1 / d`, where rows at distance 0, if there are any,
outweigh all others (Dudani 1976; scikit-learn's ``weights``). Among rows at the distance of the
k-th the one with the smaller label is the neighbour, then the one with the smaller weight, so that
the answer does not depend on the order of the rows; of classes with the same vote, the lowest wins.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from pyspark import keyword_only
from pyspark.ml.base import Model
from pyspark.ml.classification import ProbabilisticClassificationModel, ProbabilisticClassifier
from pyspark.ml.linalg import Vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasMaxBlockSizeInMB, HasWeightCol
from pyspark.ml.regression import RegressionModel, Regressor
from pyspark.ml.util import MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame, SparkSession

from mllib_ext.base import HasFeatures, Output, as_row, dense, with_predictions
from mllib_ext.blocks import Blocks
from mllib_ext.classes import class_weights, declared_classes
from mllib_ext.columns import BadRow, Features, Matrix, data_type, number
from mllib_ext.distances import Metric
from mllib_ext.fitting import FitsOverBlocks
from mllib_ext.knn.items import refuse_zeros, stacked
from mllib_ext.knn.params import HasNeighbors
from mllib_ext.mapped import Mapped
from mllib_ext.persistence import ParamsReader, ParamsWriter, SavesParams, restored
from mllib_ext.top_k import Search

WEIGHTS = ("uniform", "distance")


class _KNeighborsParams(HasNeighbors, HasFeatures, HasWeightCol, HasMaxBlockSizeInMB):
    """Parameters of the predictors and of their models."""

    weights: Param[str] = Param(
        Params._dummy(),
        "weights",
        "weight of a neighbour's vote: uniform, or distance (its inverse)",
        TypeConverters.toString,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(weights="uniform", maxBlockSizeInMB=0.0)

    def setWeights(self, value: str) -> Self:
        """Set the weight of a neighbour's vote."""
        return self._set(weights=value)

    def getWeights(self) -> str:
        """The weight of a neighbour's vote."""
        return self.getOrDefault(self.weights)

    def _settings(self) -> Settings:
        """What a prediction goes by; ValueError for a parameter out of range."""
        rule, weights = self._rule(), self.getWeights()
        if weights not in WEIGHTS:
            raise ValueError(f"param weights: expected one of {WEIGHTS}, found {weights!r}")
        if weights == "distance" and rule.sign < 0:
            raise ValueError(
                "param weights: expected uniform under the metric inner_product, found 'distance'"
            )
        return Settings(self.getK(), rule, weights == "distance")


# --- votes: NumPy alone ------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What a prediction goes by."""

    k: int
    metric: Metric
    by_distance: bool


@dataclass(frozen=True)
class LabelledRows:
    """Training rows, ordered by label and weight.

    Attributes
    ----------
    X : ndarray or csr_array, shape (n, d)
    y, w : ndarray, shape (n,), float64
    """

    X: Matrix
    y: np.ndarray
    w: np.ndarray

    @classmethod
    def of(cls, X: Matrix, y: np.ndarray, w: np.ndarray) -> LabelledRows:
        """Put rows in order; those of weight 0 are as if they were not there."""
        order = np.lexsort((w, y))
        order = order[w[order] > 0]
        rows = cls(X[order], y[order], w[order])
        stored = (rows.X,) if isinstance(X, np.ndarray) else (rows.X.data, rows.X.indices)  # type: ignore[union-attr]
        for array in (*stored, rows.y, rows.w):
            array.flags.writeable = False
        return rows

    def votes(self, Q: Matrix, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """Labels (m, k) of the neighbours of queries Q (m, d), and their weights (m, k)."""
        n = len(self.y)
        search = Search(Q, min(settings.k, n), settings.metric)
        search.add(self.X, np.arange(n))
        found = search.neighbors()
        nearest = found.ids.reshape(Q.shape[0], -1)
        weights = self.w[nearest]
        if settings.by_distance:
            weights = weights * inverse(found.distances.reshape(nearest.shape))
        return self.y[nearest], weights


def inverse(distances: np.ndarray) -> np.ndarray:
    """1 / d (m, k); in rows with a distance of 0, 1 where it is and 0 elsewhere."""
    with np.errstate(divide="ignore", over="ignore"):
        weights = 1 / distances
    infinite = np.isinf(weights)
    same = infinite.any(axis=1)
    weights[same] = infinite[same]
    return weights


def class_votes(labels: np.ndarray, weights: np.ndarray, n_classes: int) -> np.ndarray:
    """Summed weights (m, n_classes) of the neighbours of each class."""
    m = len(labels)
    places = np.arange(m)[:, None] * n_classes + labels.astype(np.intp)
    votes = np.bincount(places.ravel(), weights.ravel(), m * n_classes)
    return votes.reshape(m, n_classes)


# --- what both share ---------------------------------------------------------------------------


class _KNeighborsEstimator(FitsOverBlocks, _KNeighborsParams):
    # Spark's estimators have one of their own, nearer in the method resolution order.
    setFeaturesCol = HasFeatures.setFeaturesCol

    def setWeightCol(self, value: str) -> Self:
        """Set the column of row weights."""
        return self._set(weightCol=value)

    def setMaxBlockSizeInMB(self, value: float) -> Self:
        """Set the size of blocks in MB; 0 means a size that suits the processor's cache."""
        return self._set(maxBlockSizeInMB=value)

    def _refuse(self: Any, dataset: DataFrame) -> None:
        self._settings()
        data_type(dataset.schema, self.getLabelCol(), "label")
        if self.isDefined("weightCol") and self.getWeightCol():
            number(dataset.schema, self.getWeightCol(), "weight")

    def _rows(self, blocks: Blocks) -> LabelledRows:
        found = blocks.collect()
        label = blocks.features.label
        if self.getMetric() == "cosine":
            for block in found:
                _checked(label, block.X, f"partition {block.partition}, ", block.start)
        y, w = (np.concatenate([getattr(block, name) for block in found]) for name in "yw")
        return LabelledRows.of(stacked(block.X for block in found), y, w)

    def _taken_over(self: Any, model: Any) -> Any:
        model._resetUid(self.uid)
        return self._copyValues(model)


def _checked(label: str, X: Matrix, where: str, start: int) -> None:
    try:
        refuse_zeros(label, X)
    except BadRow as bad:
        raise ValueError(f"{bad} ({where}row {start + bad.row})") from None


class _KNeighborsModel(Model, _KNeighborsParams, MLWritable, MLReadable[Any]):
    """Training rows that are searched at every prediction."""

    setFeaturesCol = HasFeatures.setFeaturesCol

    def __init__(self, rows: LabelledRows) -> None:
        super().__init__()
        self._labelled = rows
        self._mapped: Mapped | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}  # a broadcast belongs to its session

    @property
    def numFeatures(self) -> int:
        """Number of features."""
        return int(self._labelled.X.shape[1])

    @property
    def numItems(self) -> int:
        """Number of training rows with a weight above 0."""
        return len(self._labelled.y)

    @property
    def features(self) -> Matrix:
        """The training rows (n, d), by label and weight; read-only."""
        return self._labelled.X

    @property
    def labels(self) -> np.ndarray:
        """Their labels (n,), ascending; read-only."""
        return self._labelled.y

    @property
    def itemWeights(self) -> np.ndarray:
        """Their weights (n,); read-only."""
        return self._labelled.w

    @abstractmethod
    def _answer(self, names: Any) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
        """``answer(labels, weights) -> columns`` by these names, free of the model itself."""

    @abstractmethod
    def _outputs(self) -> dict[str, Output]:
        """The prediction columns."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        settings, outputs = self._settings(), self._outputs()
        if self._mapped is None:
            self._mapped = Mapped(dataset.sparkSession.sparkContext, self._labelled)
        features = Features.of(dataset.schema, self._features())
        predict = partial(_predict, self._mapped, features, settings, self._answer(tuple(outputs)))
        return with_predictions(self, dataset, self.numFeatures, outputs, predict)

    def _predict_row(self, value: Vector) -> dict[str, np.ndarray]:
        row = as_row(value, self.numFeatures)
        names = tuple(self._outputs_of_a_row)
        return self._answer(names)(*self._labelled.votes(row, self._settings()))

    _outputs_of_a_row: tuple[str, ...] = ("prediction",)

    def write(self) -> MLWriter:
        """A writer: ``model.write().overwrite().save(path)``; the rows go along as Parquet."""
        return _Writer(self)

    @classmethod
    def read(cls) -> MLReader[Any]:
        """A reader: ``Model.read().load(path)``."""
        return _Reader(cls)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: uid={self.uid}, numItems={self.numItems}, "
            f"numFeatures={self.numFeatures}"
        )


def _predict(
    mapped: Mapped, features: Features, settings: Settings, answer: Any, X: Matrix
) -> dict[str, np.ndarray]:
    try:
        features.refuse_non_finite(X)
        if settings.metric.name == "cosine":
            refuse_zeros(features.label, X)
    except BadRow as bad:
        raise ValueError(f"{bad} (row {bad.row} of its batch)") from None
    rows: LabelledRows = mapped.open()
    columns: dict[str, np.ndarray] = answer(*rows.votes(X, settings))
    return columns


class _Writer(ParamsWriter):
    """Parameters as JSON under ``metadata``, a row of Parquet for every training row."""

    def saveImpl(self, path: str) -> None:
        model = self.instance
        rows: LabelledRows = model._labelled
        self.save_metadata(path, {"shape": list(rows.X.shape), **model._extra()})
        columns = {"label": pa.array(rows.y), "weight": pa.array(rows.w)}
        if isinstance(rows.X, np.ndarray):
            flat = pa.array(rows.X.ravel())
            columns["values"] = pa.FixedSizeListArray.from_arrays(flat, rows.X.shape[1]).cast(
                pa.list_(flat.type)
            )
        else:
            offsets = rows.X.indptr.astype(np.int32)
            columns["indices"] = pa.ListArray.from_arrays(offsets, rows.X.indices)
            columns["values"] = pa.ListArray.from_arrays(offsets, rows.X.data)
        df = self.sparkSession.createDataFrame(pa.table(columns))
        df.write.parquet(f"{path}/data")


class _Reader(ParamsReader):
    def load(self, path: str) -> Any:
        metadata = self.load_metadata(path)
        rows = _read(self.sparkSession, f"{path}/data", metadata["shape"])
        return restored(self.cls._of(rows, metadata), metadata)


def _read(spark: SparkSession, path: str, shape: list[int]) -> LabelledRows:
    table = spark.read.parquet(path).toArrow().combine_chunks()
    (values,) = table["values"].chunks
    flat = values.flatten().to_numpy()
    X: Matrix
    if "indices" in table.column_names:
        indices = table["indices"].chunk(0).flatten().to_numpy()
        X = sp.csr_array((flat, indices, values.offsets.to_numpy()), shape=shape)
    else:
        X = flat.reshape(shape)
    # Parquet's files come in any order.
    return LabelledRows.of(X, table["label"].to_numpy(), table["weight"].to_numpy())


# --- classification ----------------------------------------------------------------------------


class KNeighborsClassificationModel(_KNeighborsModel, ProbabilisticClassificationModel):  # type: ignore[misc]
    """Model fitted by :class:`KNeighborsClassifier`.

    Parameters
    ----------
    rows : LabelledRows
    n_classes : int
    """

    _outputs_of_a_row = ("raw", "probability", "prediction")

    def __init__(self, rows: LabelledRows, n_classes: int) -> None:
        super().__init__(rows)
        self._n_classes = n_classes

    @classmethod
    def _of(cls, rows: LabelledRows, metadata: dict[str, Any]) -> Self:
        return cls(rows, metadata["numClasses"])

    def _extra(self) -> dict[str, Any]:
        return {"numClasses": self._n_classes}

    @property
    def numClasses(self) -> int:
        """Number of classes."""
        return self._n_classes

    def _outputs(self) -> dict[str, Output]:
        each_class = Output("vector", {"num_attrs": self._n_classes})
        return {
            self.getRawPredictionCol(): each_class,
            self.getProbabilityCol(): each_class,
            self.getPredictionCol(): Output(
                "double", {"num_vals": self._n_classes, "type": "nominal"}
            ),
        }

    def _answer(self, names: Any) -> Any:
        thresholds = np.array(self.getThresholds()) if self.isDefined("thresholds") else None
        return partial(_classify, self._n_classes, thresholds, names)

    def predictRaw(self, value: Vector) -> Vector:
        """The votes of one row, for each class."""
        return dense(self._predict_row(value)["raw"][0])

    def predictProbability(self, value: Vector) -> Vector:
        """Class probabilities of one row."""
        return dense(self._predict_row(value)["probability"][0])

    def predict(self, value: Vector) -> float:
        """The class of one row."""
        return float(self._predict_row(value)["prediction"][0])


def _classify(
    n_classes: int,
    thresholds: np.ndarray | None,
    names: tuple[str, str, str],
    labels: np.ndarray,
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    raw = class_votes(labels, weights, n_classes)
    probability = raw / raw.sum(axis=1, keepdims=True)
    scores = probability
    if thresholds is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = probability / thresholds
        scores[np.isnan(scores)] = -np.inf  # 0 / 0: not a class to choose, as in pyspark.ml
    prediction = scores.argmax(axis=1).astype(np.float64)
    return dict(zip(names, (raw, probability, prediction), strict=True))


class KNeighborsClassifier(_KNeighborsEstimator, ProbabilisticClassifier, SavesParams):  # type: ignore[misc]
    """Classification by the k nearest training rows, a predictor as in ``pyspark.ml``.

    Parameters
    ----------
    featuresCol : str or list of str
        A vector column, an array column, or a list of numeric columns.
    labelCol : str
        Classes 0, 1, ..., as ``StringIndexer`` gives them.
    k : int
        All training rows vote where there are fewer.
    metric : {"euclidean", "sqeuclidean", "cosine", "inner_product", "manhattan"}
    weights : {"uniform", "distance"}
        ``distance``: a vote counts 1 / distance; rows at distance 0 outvote all others.
    weightCol : str, optional
        Multiplies a row's vote; a row still takes one place among the k. Rows of weight 0 are as if
        they were not there.
    predictionCol, probabilityCol, rawPredictionCol : str
        The class with the largest vote (the lowest of several), the votes' shares, the votes.
    thresholds : list of float, optional
        As in pyspark.ml: the class with the largest probability / threshold.

    Raises
    ------
    ValueError
        From ``fit``: a parameter out of range; labels that are not 0, 1, ...; what
        :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Examples
    --------
    >>> from mllib_ext.knn import KNeighborsClassifier
    >>> KNeighborsClassifier(k=3).fit(df).transform(df)  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str | list[str] = "features",
        labelCol: str = "label",
        predictionCol: str = "prediction",
        probabilityCol: str = "probability",
        rawPredictionCol: str = "rawPrediction",
        k: int = 5,
        metric: str = "euclidean",
        weights: str = "uniform",
        weightCol: str | None = None,
        thresholds: list[float] | None = None,
        maxBlockSizeInMB: float = 0.0,
        featuresCols: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def _fit_blocks(self, blocks: Blocks) -> KNeighborsClassificationModel:
        rows = self._rows(blocks)
        labels, index = np.unique(rows.y, return_inverse=True)
        declared = declared_classes(blocks.label_metadata)
        by_label = np.bincount(index, rows.w)
        n_classes = len(class_weights(self.getLabelCol(), labels, by_label, declared))
        if self.isDefined("thresholds") and len(self.getThresholds()) != n_classes:
            raise ValueError(
                f"param thresholds: expected {n_classes} values, one for each class, "
                f"found {len(self.getThresholds())}"
            )
        model: KNeighborsClassificationModel = self._taken_over(
            KNeighborsClassificationModel(rows, n_classes)
        )
        return model


# --- regression --------------------------------------------------------------------------------


class KNeighborsRegressionModel(_KNeighborsModel, RegressionModel):  # type: ignore[misc]
    """Model fitted by :class:`KNeighborsRegressor`.

    Parameters
    ----------
    rows : LabelledRows
    """

    @classmethod
    def _of(cls, rows: LabelledRows, metadata: dict[str, Any]) -> Self:
        return cls(rows)

    def _extra(self) -> dict[str, Any]:
        return {}

    def _outputs(self) -> dict[str, Output]:
        return {self.getPredictionCol(): Output("double", {})}

    def _answer(self, names: Any) -> Any:
        return partial(_average, names)

    def predict(self, value: Vector) -> float:
        """The prediction of one row."""
        return float(self._predict_row(value)["prediction"][0])


def _average(names: tuple[str], labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    (name,) = names
    return {name: (weights * labels).sum(axis=1) / weights.sum(axis=1)}


class KNeighborsRegressor(_KNeighborsEstimator, Regressor, SavesParams):  # type: ignore[misc]
    """Regression by the mean label of the k nearest training rows, as a pyspark.ml predictor.

    Parameters
    ----------
    featuresCol, k, metric, weights, weightCol
        As of :class:`KNeighborsClassifier`.
    labelCol : str
        A number.
    predictionCol : str

    Raises
    ------
    ValueError
        From ``fit``: a parameter out of range; what :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Examples
    --------
    >>> from mllib_ext.knn import KNeighborsRegressor
    >>> KNeighborsRegressor(weights="distance").fit(df).transform(df)  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str | list[str] = "features",
        labelCol: str = "label",
        predictionCol: str = "prediction",
        k: int = 5,
        metric: str = "euclidean",
        weights: str = "uniform",
        weightCol: str | None = None,
        maxBlockSizeInMB: float = 0.0,
        featuresCols: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def _fit_blocks(self, blocks: Blocks) -> KNeighborsRegressionModel:
        model: KNeighborsRegressionModel = self._taken_over(
            KNeighborsRegressionModel(self._rows(blocks))
        )
        return model
