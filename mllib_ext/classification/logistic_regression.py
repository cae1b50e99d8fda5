r"""Logistic regression, binomial and multinomial, with an elastic net or bounds.

.. math::

    \min_{\beta, b} \frac1W \sum_i w_i \, \ell(y_i, x_i \cdot \beta + b)
    + \lambda \sum_j \Big[ \frac{1 - \alpha}2 s_j^2 \|\beta_j\|_2^2
    + \alpha s_j \|\beta_j\|_1 \Big]

with the deviance :math:`\ell` of :mod:`mllib_ext.losses`, and :math:`s_j` the standard deviation
of feature j with ``standardization``, else 1: the objective of ``pyspark.ml.classification``.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from pyspark import keyword_only
from pyspark.ml.classification import (
    ProbabilisticClassificationModel,
    ProbabilisticClassifier,
    _LogisticRegressionParams,
)
from pyspark.ml.linalg import Vector

from mllib_ext.base import dense
from mllib_ext.blocks import Blocks
from mllib_ext.classes import (
    chosen,
    class_moments,
    class_weights,
    declared_classes,
    merge_class_moments,
    refuse_number_of_thresholds,
    refuse_thresholds,
)
from mllib_ext.classification.linear_classifier import LinearClassifier
from mllib_ext.columns import Matrix
from mllib_ext.linear import (
    SOLVERS,
    RegressionEstimator,
    RegressionParams,
    auto_solver,
    centred,
    fit_linear,
)
from mllib_ext.losses import Logistic, Multinomial, sigmoid, softmax
from mllib_ext.moments import Summary
from mllib_ext.objective import Coordinates
from mllib_ext.persistence import SavesParams
from mllib_ext.summaries import HasLogisticRegressionSummary


class LogisticRegressionModel(  # type: ignore[misc]
    HasLogisticRegressionSummary,
    LinearClassifier,
    RegressionParams,
    ProbabilisticClassificationModel,
    _LogisticRegressionParams,
):
    """Model fitted by :class:`LogisticRegression`.

    Parameters
    ----------
    coefficients : ndarray, shape (k, d)
        One row for a binomial model, a row for each class for a multinomial one.
    intercepts : ndarray, shape (k,)
    n_classes : int
    """

    _arrays = ("coefficients", "intercepts", "n_classes")
    _outputs = ("raw", "probability", "prediction")

    @property
    def _is_multinomial(self) -> bool:
        return super()._is_multinomial or self.getFamily() == "multinomial"

    def predictProbability(self, value: Vector) -> Vector:
        """Class probabilities of one row."""
        return dense(self._predict_row(value)["probability"][0])

    def _output_columns(self) -> tuple[str, ...]:
        return self.getRawPredictionCol(), self.getProbabilityCol(), self.getPredictionCol()

    def _predict_function(self, names: tuple[str, ...]) -> Any:
        rule = _threshold_rule(self, self._is_multinomial)
        return partial(
            _predict, self._coefficients, self._intercepts, self._is_multinomial, rule, names
        )


class LogisticRegression(
    RegressionEstimator,
    ProbabilisticClassifier,
    _LogisticRegressionParams,
    SavesParams,
):
    """Logistic regression, the interface of ``pyspark.ml``'s.

    Parameters are those of ``pyspark.ml.classification.LogisticRegression`` and:

    Parameters
    ----------
    featuresCol : str or list of str
        A vector column, an array column, or a list of numeric columns.
    solver : {"auto", "newton", "l-bfgs", "tron", "owl-qn", "gd", "sgd", "adam"}
        ``auto`` takes ``newton`` for few parameters and rows, else ``l-bfgs``, and ``owl-qn`` for
        an L1 penalty on very many parameters (:func:`mllib_ext.linear.auto_solver`). With an L1
        penalty or bounds ``l-bfgs`` is the proximal quasi-Newton method
        (:mod:`mllib_ext.optimizers.proximal`).
    lineSearch : {"barzilai-borwein", "armijo", "nesterov", "none"}
        How ``gd`` finds its step from ``stepSize``; see :mod:`mllib_ext.optimizers.gd`.
    stepSize, momentum, nesterov, miniBatchFraction, schedule, decay, warmUp
        Steps of the solvers ``sgd`` and ``adam``, for which ``maxIter`` counts passes. Unless
        ``stepSize`` is set, ``sgd`` begins with one over the number of parameters of an output,
        ``adam`` with 0.01.
    updates, localSteps, outerMomentum, maxStaleness, seed
        How these steps are shared among the partitions: :mod:`mllib_ext.optimizers.sgd`.
    compression, compressionShare, compressionRank
        How what is sent is made small: :mod:`mllib_ext.compression`.
    validationFraction, patience
        Early stopping of the solvers ``sgd`` and ``adam``: the share of the rows held out, 0 for
        none, and after how many passes without a better loss of theirs to stop. The model is the
        one that had the best.

    Raises
    ------
    ValueError
        From ``fit``: a parameter that is out of range, or bounds together with an L1 penalty;
        labels that are not 0, 1, ..., k-1; what :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Examples
    --------
    >>> from mllib_ext.classification import LogisticRegression
    >>> model = LogisticRegression(regParam=0.01).fit(df)  # doctest: +SKIP
    >>> model.coefficients, model.converged  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str | list[str] = "features",
        labelCol: str = "label",
        predictionCol: str = "prediction",
        maxIter: int = 100,
        regParam: float = 0.0,
        elasticNetParam: float = 0.0,
        tol: float = 1e-6,
        fitIntercept: bool = True,
        threshold: float = 0.5,
        thresholds: list[float] | None = None,
        probabilityCol: str = "probability",
        rawPredictionCol: str = "rawPrediction",
        standardization: bool = True,
        weightCol: str | None = None,
        aggregationDepth: int = 2,
        family: str = "auto",
        lowerBoundsOnCoefficients: Any = None,
        upperBoundsOnCoefficients: Any = None,
        lowerBoundsOnIntercepts: Any = None,
        upperBoundsOnIntercepts: Any = None,
        maxBlockSizeInMB: float = 0.0,
        featuresCols: list[str] | None = None,
        solver: str = "auto",
        lineSearch: str = "barzilai-borwein",
        stepSize: float = 1.0,
        momentum: float = 0.0,
        nesterov: bool = False,
        miniBatchFraction: float = 0.1,
        schedule: str = "cosine",
        decay: float = 1e-4,
        warmUp: float = 0.0,
        updates: str = "synchronous",
        localSteps: int = 0,
        outerMomentum: float = 0.0,
        maxStaleness: int = 1,
        compression: str = "none",
        compressionShare: float = 0.01,
        compressionRank: int = 2,
        validationFraction: float = 0.0,
        patience: int = 5,
        seed: int = 0,
        checkpointInterval: int = 10,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    @keyword_only
    def setParams(self, **params: Any) -> LogisticRegression:
        """Set several parameters at once; ValueError for thresholds that contradict another."""
        super().setParams(**params)
        self._checkThresholdConsistency()
        return self

    def setFamily(self, value: str) -> LogisticRegression:
        """Set the family: auto, binomial or multinomial."""
        return self._set(family=value)

    def setLowerBoundsOnCoefficients(self, value: Any) -> LogisticRegression:
        """Set lower bounds of the coefficients: a matrix (1, d) or (k, d)."""
        return self._set(lowerBoundsOnCoefficients=value)

    def setUpperBoundsOnCoefficients(self, value: Any) -> LogisticRegression:
        """Set upper bounds of the coefficients: a matrix (1, d) or (k, d)."""
        return self._set(upperBoundsOnCoefficients=value)

    def setLowerBoundsOnIntercepts(self, value: Any) -> LogisticRegression:
        """Set lower bounds of the intercepts: a vector (1,) or (k,)."""
        return self._set(lowerBoundsOnIntercepts=value)

    def setUpperBoundsOnIntercepts(self, value: Any) -> LogisticRegression:
        """Set upper bounds of the intercepts: a vector (1,) or (k,)."""
        return self._set(upperBoundsOnIntercepts=value)

    def _refuse_params(self) -> None:
        self._refuse_common(SOLVERS)
        if self._bounded():
            self._refuse_smooth_solver("bounds")
            if self.getElasticNetParam() != 0 or self.getSolver() == "owl-qn":
                raise ValueError(
                    "param elasticNetParam: expected 0 (and a solver other than owl-qn) with "
                    f"bounds, found {self.getElasticNetParam()!r} and {self.getSolver()!r}"
                )
        if self.getFamily() not in ("auto", "binomial", "multinomial"):
            raise ValueError(
                f"param family: expected auto, binomial or multinomial, found {self.getFamily()!r}"
            )
        self._refuse_thresholds()

    def _first_round(self) -> Any:
        return class_moments, merge_class_moments

    def _fit_blocks(self, blocks: Blocks) -> LogisticRegressionModel:
        declared = declared_classes(blocks.label_metadata)
        labels, by_label, *summed = blocks.reduce(class_moments, merge_class_moments)
        counts = class_weights(self.getLabelCol(), labels, by_label, declared)
        summary, k = Summary(*summed), len(counts)
        multinomial = self._multinomial(k)
        # Without an intercept coefficients can still tell one class from others that have no rows.
        if np.count_nonzero(counts) == 1 and (self.getFitIntercept() or (multinomial and k == 1)):
            return self._constant(np.flatnonzero(counts)[0], multinomial, k, blocks.n_features)
        loss = Multinomial(k) if multinomial else Logistic()
        coordinates = centred(self, summary.mean, np.sqrt(summary.variance()), loss.n_outputs)
        bounds = self._bounds(coordinates) if self._bounded() else None
        if bounds is not None and any(self.isSet(name) for name in BOUNDS[2:]):
            # The intercept at the mean row would bring the coefficients into its bounds.
            coordinates = replace(coordinates, mean=np.zeros_like(summary.mean))
        coef, intercept, result = fit_linear(
            self,
            blocks,
            loss,
            coordinates,
            start_intercepts(counts, multinomial),
            self._solver(blocks, loss.n_outputs),
            bounds=bounds,
        )
        coef, intercept = np.atleast_2d(coef.T), np.atleast_1d(intercept)
        if multinomial:
            # Without a penalty only differences between classes matter: centred, as in pyspark.ml.
            penalised = result.history[-1].settings.reg_param > 0  # type: ignore[attr-defined]
            if bounds is None and not penalised:
                coef = coef - coef.mean(axis=0)
            if self.getFitIntercept():
                free = np.full(k, np.inf)
                lower, upper = (side[-k:] for side in bounds or (-free, free))
                intercept = centred_within(intercept, lower, upper)
        return LogisticRegressionModel(coef, intercept, k)._trained(self, result)

    def _refuse_thresholds(self) -> None:
        """ValueError for thresholds out of pyspark.ml's ranges."""
        if not 0 <= self.getOrDefault(self.threshold) <= 1:
            found = self.getOrDefault(self.threshold)
            raise ValueError(f"param threshold: expected a number in [0, 1], found {found!r}")
        if self.isDefined("thresholds"):
            refuse_thresholds(self.getThresholds())

    def _solver(self, blocks: Blocks, k: int) -> str:
        if self.getSolver() != "auto":
            return self.getSolver()
        if self._bounded():
            return "l-bfgs"
        l1 = self.getElasticNetParam() > 0
        return auto_solver(blocks, (blocks.n_features + 1) * k, l1)

    def _bounded(self) -> bool:
        return any(self.isSet(name) for name in BOUNDS)

    def _bounds(self, coordinates: Coordinates) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of the flat parameters; ValueError for another shape."""
        d, k = len(coordinates.scale), coordinates.n_outputs
        sides = []
        for side, infinite in (("lower", -np.inf), ("upper", np.inf)):
            coef = self._bound(f"{side}BoundsOnCoefficients", (k, d), infinite)
            intercept = self._bound(f"{side}BoundsOnIntercepts", (k,), infinite)
            # A feature of scale 0 has a coefficient of 0, wherever its bounds are.
            scaled = np.full((d, k), infinite)
            kept = coordinates.scale > 0
            scaled[kept] = (coef * coordinates.scale).T[kept]
            flat = scaled.ravel()
            sides.append(np.append(flat, intercept) if coordinates.fit_intercept else flat)
        lower, upper = sides
        if (lower > upper).any():
            raise ValueError(
                "params lowerBoundsOn... and upperBoundsOn...: expected lower bounds up to the "
                "upper ones, found some above"
            )
        return lower, upper

    def _bound(self, name: str, shape: tuple[int, ...], infinite: float) -> np.ndarray:
        if not self.isSet(name):
            return np.full(shape, infinite)
        found: np.ndarray = self.getOrDefault(name).toArray()
        if name.endswith("Intercepts") and not self.getFitIntercept():
            raise ValueError(f"param {name}: expected no bounds without an intercept, found some")
        if found.shape != shape:
            raise ValueError(
                f"param {name}: expected the shape {shape} (rows for classes, one for a binomial "
                f"model), found {found.shape}"
            )
        if np.isnan(found).any():
            raise ValueError(f"param {name}: expected numbers or infinities, found NaN")
        return found

    def _multinomial(self, k: int) -> bool:
        if self.getFamily() == "binomial" and k > 2:
            raise ValueError(
                f"param family: expected multinomial or auto for {k} classes, found 'binomial'"
            )
        if self.isDefined("thresholds"):
            refuse_number_of_thresholds(self.getThresholds(), k)
        return k > 2 or self.getFamily() == "multinomial"

    def _constant(self, label: int, multinomial: bool, k: int, d: int) -> LogisticRegressionModel:
        warnings.warn(
            f"label column {self.getLabelCol()!r} holds {label} alone: "
            "the model predicts it always, and its coefficients are 0",
            stacklevel=5,
        )
        rows = k if multinomial else 1
        intercepts = np.zeros(rows)
        if self.getFitIntercept():
            sign = 1.0 if multinomial or label == 1 else -1.0
            intercepts[label if multinomial else 0] = sign * np.inf
        model = LogisticRegressionModel(np.zeros((rows, d)), intercepts, k)
        return model._trained(self, None, "constant_label")


BOUNDS = (
    "lowerBoundsOnCoefficients",
    "upperBoundsOnCoefficients",
    "lowerBoundsOnIntercepts",
    "upperBoundsOnIntercepts",
)


def start_intercepts(counts: np.ndarray, multinomial: bool) -> Any:
    """The best intercepts where all coefficients are 0: log odds, or centred log frequencies."""
    if multinomial:
        # An empty class would start at -inf; half a row's share is far enough down.
        logs = np.log(np.where(counts > 0, counts, 0.5 * counts[counts > 0].min()))
        return logs - logs.mean()
    return np.log(counts[1] / counts[0]) if counts.min() > 0 and len(counts) > 1 else 0.0


def centred_within(intercept: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The intercepts (k,) moved as one, as near to a mean of 0 as their bounds allow."""
    shift = np.clip(-intercept.mean(), (lower - intercept).max(), (upper - intercept).min())
    moved: np.ndarray = np.clip(intercept + shift, lower, upper)
    return moved


def _threshold_rule(model: LogisticRegressionModel, multinomial: bool) -> float | np.ndarray | None:
    """A probability to exceed (binomial), or what to divide probabilities by, or nothing."""
    if not multinomial:
        return model.getThreshold()
    return np.array(model.getThresholds()) if model.isDefined("thresholds") else None


def _predict(
    coefficients: np.ndarray,
    intercepts: np.ndarray,
    multinomial: bool,
    rule: float | np.ndarray | None,
    names: tuple[str, ...],
    X: Matrix,
) -> dict[str, np.ndarray]:
    """Raw predictions (n, k), probabilities (n, k) and classes (n,) of rows X (n, d)."""
    z = X @ coefficients.T + intercepts  # (n, 1) or (n, k)
    if multinomial:
        raw, probability = z, softmax(z)
        assert not isinstance(rule, float)
        prediction = chosen(probability, rule)
    else:
        raw = np.hstack([-z, z])
        probability = sigmoid(raw)
        prediction = (probability[:, 1] > rule).astype(np.float64)
    return dict(zip(names, (raw, probability, prediction), strict=True))
