r"""Linear regression by least squares with an L2 penalty.

.. math::

    \min_{\beta, b} \frac{1}{2W} \sum_i w_i (y_i - x_i \cdot \beta - b)^2
    + \frac{\lambda}{2 \sigma_y} \sum_j s_j \beta_j^2

with :math:`\sigma_y` the standard deviation of the label, and :math:`s_j` the variance of feature
j with ``standardization``, else 1. The label's deviation in the penalty is pyspark.ml's: it
standardises labels as glmnet does, so that a ``regParam`` means the same whatever their unit.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
from pyspark import keyword_only
from pyspark.ml.linalg import DenseVector, Vector
from pyspark.ml.regression import RegressionModel, Regressor, _LinearRegressionParams
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import DataFrame

from mllib_ext.base import (
    Trained,
    as_row,
    dense,
    frozen,
    with_predictions,
)
from mllib_ext.blockfile import Block
from mllib_ext.blocks import Blocks
from mllib_ext.columns import Matrix
from mllib_ext.linear import LinearEstimator, LinearParams, fit_linear
from mllib_ext.losses import SquaredError
from mllib_ext.moments import Summary, comoments, merge, moments
from mllib_ext.objective import Coordinates
from mllib_ext.optimizers.newton import solve
from mllib_ext.summaries import HasLinearRegressionSummary, inverse_diagonal

# pyspark.ml solves up to here by normal equations, and standardises by population variances then.
NORMAL_FEATURES = 4096
# Up to here (d, d) sums of 8 MB a partition are cheaper than L-BFGS's rounds, and fit a driver.
GRAM_FEATURES = 1024


class LinearRegressionModel(  # type: ignore[misc]
    HasLinearRegressionSummary,
    Trained,
    LinearParams,
    RegressionModel[Vector],
    _LinearRegressionParams,
):
    """Model fitted by :class:`LinearRegression`.

    Parameters
    ----------
    coefficients : ndarray, shape (d,)
    intercept : float
    """

    _arrays = ("coefficients", "intercept")

    def __init__(self, coefficients: Any, intercept: Any) -> None:
        super().__init__()
        self._coefficients, self._intercept = frozen(coefficients), frozen(intercept)

    @property
    def numFeatures(self) -> int:
        """Number of features."""
        return len(self._coefficients)

    @property
    def coefficients(self) -> DenseVector:
        """Coefficients (d,)."""
        return dense(self._coefficients)

    @property
    def intercept(self) -> float:
        """Intercept."""
        return float(self._intercept)

    @property
    def scale(self) -> float:
        """What residuals are divided by: 1 for squared error."""
        return 1.0

    def predict(self, value: Vector) -> float:
        """The prediction for one row."""
        X = as_row(value, self.numFeatures)
        return float(_predict(self._coefficients, self.intercept, "y", X)["y"][0])

    def _transform(self, dataset: DataFrame) -> DataFrame:
        name = self.getPredictionCol()
        predict = partial(_predict, self._coefficients, self.intercept, name)
        outputs = {name: "double"} if name else {}
        return with_predictions(self, dataset, self.numFeatures, outputs, predict)

    def __repr__(self) -> str:
        return f"LinearRegressionModel: uid={self.uid}, numFeatures={self.numFeatures}"


class LinearRegression(
    LinearEstimator,
    Regressor[LinearRegressionModel],
    _LinearRegressionParams,
    DefaultParamsWritable,
    DefaultParamsReadable["LinearRegression"],
):
    """Linear regression with an L2 penalty, the interface of ``pyspark.ml``'s.

    Parameters are those of ``pyspark.ml.regression.LinearRegression`` and:

    Parameters
    ----------
    featuresCol : str or list of str
        A vector column, an array column, or a list of numeric columns.
    solver : {"auto", "normal", "l-bfgs", "newton", "gd"}
        ``normal`` solves the normal equations after one round. ``auto`` takes it up to 1,024
        features, else ``l-bfgs``.
    stepSize : float
        The step of ``gd``; see :mod:`mllib_ext.optimizers.gd`.
    lineSearch : {"barzilai-borwein", "armijo", "nesterov", "none"}
        How ``gd`` finds its step.

    Raises
    ------
    ValueError
        From ``fit``: a parameter that is not supported yet (elastic net, Huber loss) or out of
        range; what :meth:`mllib_ext.blocks.Blocks.of` refuses.

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
        stepSize: float = 1.0,
        lineSearch: str = "barzilai-borwein",
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def setLoss(self, value: str) -> LinearRegression:
        """Set the loss: squaredError."""
        return self._set(loss=value)

    def setEpsilon(self, value: float) -> LinearRegression:
        """Set the shape parameter of the Huber loss, which is not supported yet."""
        return self._set(epsilon=value)

    def _refuse(self, dataset: DataFrame) -> None:
        self._refuse_unsupported(
            {"loss": "squaredError", "epsilon": 1.35}, ("auto", "normal", "l-bfgs", "newton", "gd")
        )

    def _first_round(self) -> Any:
        closed = self.getSolver() in ("auto", "normal")
        return comoments if closed else moments_with_label, merge

    def _fit_blocks(self, blocks: Blocks) -> LinearRegressionModel:
        if self._solver(blocks.n_features) == "normal":
            return self._solve_normal_equations(blocks)
        return self._minimize(blocks)

    def _solver(self, d: int) -> str:
        solver = self.getSolver()
        if solver == "normal" and d > NORMAL_FEATURES:
            raise ValueError(
                f"param solver: expected auto or l-bfgs for {d} features, found 'normal', "
                f"which takes at most {NORMAL_FEATURES}"
            )
        if solver != "auto":
            return solver
        return "normal" if d <= GRAM_FEATURES else "l-bfgs"

    def _solve_normal_equations(self, blocks: Blocks) -> LinearRegressionModel:
        """Least squares from second moments: one round, one system of d equations."""
        d = blocks.n_features
        summary = Summary(*blocks.reduce(comoments, merge))
        deviation = np.sqrt(summary.population_variance())
        mean, label_mean, label_deviation = summary.mean[:d], summary.mean[d], deviation[d]
        constant = self._constant_label(d, label_mean, label_deviation)
        if constant is not None:
            return constant
        products = summary.scatter / summary.weight_sum
        if not self.getFitIntercept():
            products = products + np.outer(summary.mean, summary.mean)
        coordinates = Coordinates(mean, deviation[:d], 1, self.getFitIntercept())
        inverse = coordinates.inverse
        gram = products[:d, :d] * np.outer(inverse, inverse)
        strength = self.getRegParam() / (label_deviation or abs(label_mean))
        weights = np.ones(d) if self.getStandardization() else inverse**2
        gram[np.diag_indices(d)] += strength * weights
        coef = inverse * solve(gram, inverse * products[:d, d])
        intercept = label_mean - mean @ coef if self.getFitIntercept() else 0.0
        model = LinearRegressionModel(coef, intercept)._trained(self, None, "closed_form")
        scaled_mean = inverse * mean if self.getFitIntercept() else None
        model._inverse_diagonal = inverse_diagonal(
            gram, deviation[:d], summary.weight_sum, scaled_mean
        )
        return model

    def _minimize(self, blocks: Blocks) -> LinearRegressionModel:
        summary = Summary(*blocks.reduce(moments_with_label, merge))
        d = blocks.n_features
        population = self.getSolver() == "auto" and d <= NORMAL_FEATURES
        deviation = np.sqrt(summary.population_variance() if population else summary.variance())
        label_mean, label_deviation = summary.mean[d], deviation[d]
        constant = self._constant_label(d, label_mean, label_deviation)
        if constant is not None:
            return constant
        coef, intercept, result = fit_linear(
            self,
            blocks,
            SquaredError(),
            summary.mean[:d],
            deviation[:d],
            label_mean,
            self._solver(d),
            penalty_factor=1.0 / (label_deviation or abs(label_mean)),
        )
        model = LinearRegressionModel(coef, intercept)._trained(self, result)
        model._objective_unit = (label_deviation or abs(label_mean)) ** 2
        return model

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


def moments_with_label(block: Block) -> Any:
    """One block's weights, means and scatter (d + 1,) of the features and the label."""
    weight, squared, n, mean, scatter = moments(block)
    label = moments(Block(block.y[:, None], block.y, block.w, block.id))
    return weight, squared, n, np.append(mean, label[3]), np.append(scatter, label[4])


def _predict(coefficients: np.ndarray, intercept: float, name: str, X: Matrix) -> dict[str, Any]:
    return {name: X @ coefficients + intercept}
