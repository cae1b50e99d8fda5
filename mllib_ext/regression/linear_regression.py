r"""Linear regression by least squares with an elastic net, or robust with Huber's loss.

.. math::

    \min_{\beta, b} \frac{1}{2W} \sum_i w_i (y_i - x_i \cdot \beta - b)^2
    + \lambda \sum_j \Big[ \frac{1 - \alpha}{2 \sigma_y} s_j^2 \beta_j^2
    + \alpha s_j |\beta_j| \Big]

with :math:`\sigma_y` the standard deviation of the label, and :math:`s_j` that of feature j with
``standardization``, else 1. The label's deviation in the penalty is pyspark.ml's: it standardises
labels as glmnet does, so that a ``regParam`` means the same whatever their unit. Huber's objective
is that of :mod:`mllib_ext.huber`, where :math:`\sigma_y` has no part.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from pyspark import SparkContext, keyword_only
from pyspark.ml.common import _py2java
from pyspark.ml.regression import Regressor, _LinearRegressionParams
from pyspark.ml.util import GeneralMLWriter
from pyspark.ml.wrapper import JavaWrapper

from mllib_ext.base import (
    dense,
    frozen,
)
from mllib_ext.blockfile import Block
from mllib_ext.blocks import Blocks
from mllib_ext.huber import Huber
from mllib_ext.linear import (
    SOLVERS,
    RegressionEstimator,
    RegressionParams,
    about_their_mean,
    auto_solver,
    centred,
    fit_linear,
    minimize_linear,
    penalties,
    precision,
)
from mllib_ext.losses import SquaredError
from mllib_ext.moments import Summary, comoments, merge, moments_with_label
from mllib_ext.optimizers.newton import solve
from mllib_ext.persistence import ArraysOrPmmlWriter, SavesParams
from mllib_ext.regression.linear_predictor import LinearPredictor
from mllib_ext.second_moments import SecondMoments
from mllib_ext.summaries import HasLinearRegressionSummary, inverse_diagonal

# pyspark.ml solves up to here by normal equations, and standardises by population variances then.
NORMAL_FEATURES = 4096
# Up to here (d, d) sums of 8 MB a partition are cheaper than L-BFGS's rounds, and fit a driver.
GRAM_FEATURES = 1024


class LinearRegressionModel(  # type: ignore[misc]
    HasLinearRegressionSummary,
    LinearPredictor,
    RegressionParams,
    _LinearRegressionParams,
):
    """Model fitted by :class:`LinearRegression`.

    Parameters
    ----------
    coefficients : ndarray, shape (d,)
    intercept : float
    scale : float
        What Huber's loss divides residuals by; 1 for squared error.
    """

    _arrays = ("coefficients", "intercept", "scale")

    def __init__(self, coefficients: Any, intercept: Any, scale: Any = 1.0) -> None:
        super().__init__(coefficients, intercept)
        self._scale = frozen(scale)

    @property
    def scale(self) -> float:
        """What Huber's loss divides residuals by; 1 for squared error."""
        return float(self._scale)

    def write(self) -> GeneralMLWriter:
        """A writer; ``model.write().format("pmml").save(path)`` writes PMML."""
        return ArraysOrPmmlWriter(self, self._java_model)

    def _java_model(self) -> Any:
        context: Any = SparkContext._active_spark_context
        return JavaWrapper._new_java_obj(
            "org.apache.spark.ml.regression.LinearRegressionModel",
            self.uid,
            _py2java(context, dense(self._coefficients)),
            self.intercept,
            self.scale,
        )


class LinearRegression(
    RegressionEstimator,
    Regressor[LinearRegressionModel],
    _LinearRegressionParams,
    SavesParams,
):
    """Linear regression, the interface of ``pyspark.ml``'s.

    Parameters are those of ``pyspark.ml.regression.LinearRegression`` and:

    Parameters
    ----------
    featuresCol : str or list of str
        A vector column, an array column, or a list of numeric columns.
    solver : {"auto", "normal", "l-bfgs", "owl-qn", "newton", "tron", "gd", "sgd", "adam"}
        ``normal`` needs one round: the rest, an L1 penalty included, is done on second moments.
        ``auto`` takes it up to 1,024 features, else ``l-bfgs``, which is the proximal
        quasi-Newton method where there is an L1 penalty (:mod:`mllib_ext.optimizers.proximal`);
        beyond 32,767 features with an L1 penalty it takes ``owl-qn``.
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
        From ``fit``: a parameter out of range, Huber's loss with an L1 penalty or with another
        solver than ``l-bfgs``; what :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Notes
    -----
    As in pyspark.ml, ``normal`` (and ``auto`` up to 4,096 features) standardises by population
    variances, the other solvers by unbiased ones.

    Examples
    --------
    >>> from mllib_ext.regression import LinearRegression
    >>> model = LinearRegression(regParam=0.1).fit(df)  # doctest: +SKIP
    >>> model.coefficients, model.intercept  # doctest: +SKIP
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
        standardization: bool = True,
        solver: str = "auto",
        weightCol: str | None = None,
        aggregationDepth: int = 2,
        loss: str = "squaredError",
        epsilon: float = 1.35,
        maxBlockSizeInMB: float = 0.0,
        featuresCols: list[str] | None = None,
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

    def setLoss(self, value: str) -> LinearRegression:
        """Set the loss: squaredError or huber."""
        return self._set(loss=value)

    def setEpsilon(self, value: float) -> LinearRegression:
        """Set where Huber's loss turns linear, in scales of the residual; above 1."""
        return self._set(epsilon=value)

    def _refuse_params(self) -> None:
        self._refuse_common(("normal", *SOLVERS))
        loss = self.getLoss()
        if loss not in ("squaredError", "huber"):
            raise ValueError(f"param loss: expected squaredError or huber, found {loss!r}")
        if not 1 < self.getEpsilon() < np.inf:
            raise ValueError(f"param epsilon: expected a number above 1, found {self.getEpsilon()}")
        if loss == "huber":
            if self.getElasticNetParam() != 0:
                raise ValueError(
                    "param elasticNetParam: expected 0 with loss huber, "
                    f"found {self.getElasticNetParam()!r}"
                )
            if self.getSolver() not in ("auto", "l-bfgs"):
                raise ValueError(
                    f"param solver: expected auto or l-bfgs with loss huber, "
                    f"found {self.getSolver()!r}"
                )

    def _first_round(self) -> Any:
        closed = self.getSolver() in ("auto", "normal") and self.getLoss() == "squaredError"
        return comoments_of_few if closed else moments_with_label, merge

    def _fit_blocks(self, blocks: Blocks) -> LinearRegressionModel:
        if self.getLoss() == "huber":
            return self._fit_huber(blocks)
        if self._solver(blocks) == "normal":
            return self._solve_normal_equations(blocks)
        return self._minimize(blocks)

    def _solver(self, blocks: Blocks) -> str:
        d = blocks.n_features
        solver = self.getSolver()
        if solver == "normal" and d > NORMAL_FEATURES:
            raise ValueError(
                f"param solver: expected auto or l-bfgs for {d} features, found 'normal', "
                f"which takes at most {NORMAL_FEATURES}"
            )
        if solver != "auto":
            return solver
        if d <= GRAM_FEATURES:
            return "normal"
        return auto_solver(blocks, d + 1, l1=True) if self.getElasticNetParam() > 0 else "l-bfgs"

    def _solve_normal_equations(self, blocks: Blocks) -> LinearRegressionModel:
        """Least squares from second moments: one round, one system of d equations."""
        d = blocks.n_features
        stage = comoments_of_few if d <= GRAM_FEATURES else comoments
        summary = Summary(*blocks.reduce(stage, merge))
        deviation = np.sqrt(summary.population_variance())
        mean, label_mean, label_deviation = summary.mean[:d], summary.mean[d], deviation[d]
        constant = self._constant_label(d, label_mean, label_deviation)
        if constant is not None:
            return constant
        products = summary.scatter / summary.weight_sum
        if not self.getFitIntercept():
            products = products + np.outer(summary.mean, summary.mean)
        ridge_factor = 1.0 / (label_deviation or abs(label_mean))
        coordinates = centred(self, mean, deviation[:d], ridge_factor=ridge_factor)
        inverse = coordinates.inverse
        gram = products[:d, :d] * np.outer(inverse, inverse)
        products_with_label = inverse * products[:d, d]
        result = None
        if self.getElasticNetParam() > 0 and self.getRegParam() > 0:
            slopes = replace(coordinates, fit_intercept=False)
            objective = SecondMoments(
                gram, products_with_label, products[d, d], *penalties(self, slopes, ridge_factor)
            )
            result = minimize_linear(self, objective.regularized, np.zeros(d), "l-bfgs")
            scaled = result.state.v
        else:
            smooth, _ = penalties(self, coordinates, ridge_factor)
            gram[np.diag_indices(d)] += replace(smooth, strength=self.getRegParam()).curvature()
            scaled = solve(gram, products_with_label)
        coef = inverse * scaled
        intercept = label_mean - mean @ coef if self.getFitIntercept() else 0.0
        model = LinearRegressionModel(coef, intercept)._trained(self, result, "closed_form")
        if result is None:
            scaled_mean = inverse * mean if self.getFitIntercept() else None
            model._inverse_diagonal = inverse_diagonal(
                gram, coordinates.scale, summary.weight_sum, scaled_mean
            )
        model._objective_unit = (label_deviation or abs(label_mean)) ** 2
        return model

    def _minimize(self, blocks: Blocks) -> LinearRegressionModel:
        d, mean, deviation = self._label_and_features(blocks)
        constant = self._constant_label(d, mean[d], deviation[d])
        if constant is not None:
            return constant
        unit = deviation[d] or abs(mean[d])
        coef, intercept, result = fit_linear(
            self,
            blocks,
            SquaredError(),
            centred(self, mean[:d], deviation[:d], ridge_factor=1.0 / unit),
            mean[d],
            self._solver(blocks),
            ridge_factor=1.0 / unit,
        )
        model = LinearRegressionModel(coef, intercept)._trained(self, result)
        model._objective_unit = unit**2
        return model

    def _fit_huber(self, blocks: Blocks) -> LinearRegressionModel:
        d, mean, deviation = self._label_and_features(blocks)
        coordinates = centred(self, mean[:d], deviation[:d])
        data, seen = about_their_mean(blocks, coordinates)
        smooth, _ = penalties(self, coordinates)
        objective = Huber(data, seen, smooth, self.getEpsilon(), precision(blocks))
        start = objective.start(mean[d], deviation[d] or 1.0)
        result = minimize_linear(self, objective.regularized, start, "l-bfgs", blocks.drain)
        coef, intercept = coordinates.to_data(result.state.v[:-1])
        return LinearRegressionModel(coef, intercept, result.state.v[-1])._trained(self, result)

    def _label_and_features(self, blocks: Blocks) -> tuple[int, np.ndarray, np.ndarray]:
        """The number of features; means and standard deviations of the features and the label."""
        summary = Summary(*blocks.reduce(*self._first_round()))
        d = blocks.n_features
        population = (
            self.getSolver() == "auto" and self.getLoss() == "squaredError" and d <= NORMAL_FEATURES
        )
        variance = summary.population_variance() if population else summary.variance()
        return d, summary.mean, np.sqrt(variance)

    def _constant_label(
        self, d: int, mean: float, deviation: float
    ) -> LinearRegressionModel | None:
        """The model of a label that is always the same, as pyspark.ml has it; else None."""
        if deviation > 0:
            return None
        name = f"label column {self.getLabelCol()!r}"
        if self.getFitIntercept() or mean == 0:
            warnings.warn(
                f"{name} is {mean:g} in every row: the model predicts it always, "
                "and its coefficients are 0",
                stacklevel=6,
            )
            return LinearRegressionModel(np.zeros(d), mean)._trained(self, None, "constant_label")
        if self.getRegParam() > 0:
            raise ValueError(
                f"{name}: expected a label that varies, found {mean:g} in every row: without an "
                "intercept, a penalty in units of the label's deviation has no meaning"
            )
        return None


def comoments_of_few(block: Block) -> Any:
    """What ``solver="auto"`` begins with: of many features it wants no products."""
    return comoments(block) if block.X.shape[1] <= GRAM_FEATURES else moments_with_label(block)
