"""What the linear models share: their parameters, what they refuse, and how they are fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, Self

import numpy as np
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.sql import DataFrame

from mllib_ext.base import HasCallbacks, HasCheckpoints, HasFeatures
from mllib_ext.blocks import Blocks
from mllib_ext.fitting import FitsOverBlocks
from mllib_ext.losses import Loss
from mllib_ext.objective import (
    CURVATURE_PARAMETERS,
    Coordinates,
    Objective,
    Shifted,
    Sums,
    sampling,
)
from mllib_ext.optimizers import gd, lbfgs, newton, owlqn, proximal, sgd, tron
from mllib_ext.optimizers.loop import Result
from mllib_ext.optimizers.smooth import minimize
from mllib_ext.penalties import L2, L1Box
from mllib_ext.stochastic import Stochastic
from mllib_ext.stochastic_params import SOLVERS as STOCHASTIC
from mllib_ext.stochastic_params import StochasticEstimator, StochasticParams

MINIMIZERS: dict[str, ModuleType] = {
    "gd": gd,
    "l-bfgs": lbfgs,
    "newton": newton,
    "owl-qn": owlqn,
    "tron": tron,
    **dict.fromkeys(STOCHASTIC, sgd),
}
SOLVERS = ("auto", *MINIMIZERS)


class LinearParams(HasFeatures, HasCheckpoints, StochasticParams):
    """The solver, beside the parameters of the pyspark.ml class that a model stands for.

    Defaults that pyspark.ml keeps on its Java side are set here.
    """

    solver: Param[str] = Param(
        Params._dummy(),
        "solver",
        "the solver: auto, or one of those that the estimator's documentation names",
        typeConverter=TypeConverters.toString,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            maxIter=100,
            regParam=0.0,
            tol=1e-6,
            fitIntercept=True,
            standardization=True,
            solver="auto",
            aggregationDepth=2,
            maxBlockSizeInMB=0.0,
        )


class RegressionParams(LinearParams):
    """What linear and logistic regression have besides: an elastic net, and gradient descent."""

    lineSearch: Param[str] = Param(
        Params._dummy(),
        "lineSearch",
        "how solver gd finds its step: none, armijo, barzilai-borwein, nesterov",
        typeConverter=TypeConverters.toString,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(elasticNetParam=0.0, lineSearch="barzilai-borwein")

    def getLineSearch(self) -> str:
        """How solver gd finds its step."""
        return self.getOrDefault(self.lineSearch)


class LinearEstimator(FitsOverBlocks, LinearParams, StochasticEstimator, HasCallbacks):
    """Setters of a linear model's estimator."""

    # Spark's estimators have one of their own, nearer in the method resolution order.
    setFeaturesCol = HasFeatures.setFeaturesCol

    def setMaxIter(self, value: int) -> Self:
        """Set the largest number of iterations."""
        return self._set(maxIter=value)

    def setRegParam(self, value: float) -> Self:
        """Set the strength of the penalty."""
        return self._set(regParam=value)

    def setTol(self, value: float) -> Self:
        """Set the tolerance of the stopping rules."""
        return self._set(tol=value)

    def setFitIntercept(self, value: bool) -> Self:
        """Set whether there is an intercept."""
        return self._set(fitIntercept=value)

    def setStandardization(self, value: bool) -> Self:
        """Set whether the penalty is on the coefficients of standardised features."""
        return self._set(standardization=value)

    def setWeightCol(self, value: str) -> Self:
        """Set the column of row weights."""
        return self._set(weightCol=value)

    def setSolver(self, value: str) -> Self:
        """Set the solver."""
        return self._set(solver=value)

    def setAggregationDepth(self, value: int) -> Self:
        """Set the levels on which partial sums are joined; 2 are partitions and the driver."""
        return self._set(aggregationDepth=value)

    def setMaxBlockSizeInMB(self, value: float) -> Self:
        """Set the size of blocks in MB; 0 means a size that suits the processor's cache."""
        return self._set(maxBlockSizeInMB=value)

    def _refuse_common(self: Any, solvers: Sequence[str]) -> None:
        """ValueError for params out of their range."""
        depth = self.getAggregationDepth()
        if depth < 2:
            raise ValueError(f"param aggregationDepth: expected 2 or more, found {depth!r}")
        if self.getSolver() not in solvers:
            raise ValueError(f"param solver: expected one of {solvers}, found {self.getSolver()!r}")
        for name in ("regParam", "tol", "maxIter", "maxBlockSizeInMB"):
            found = self.getOrDefault(name)
            if not (found >= 0 and np.isfinite(found)):
                raise ValueError(f"param {name}: expected a number of 0 or more, found {found!r}")
        self._refuse_stochastic()


class RegressionEstimator(LinearEstimator, RegressionParams):
    """Setters and checks of an estimator with an elastic net and gradient descent."""

    def setElasticNetParam(self, value: float) -> Self:
        """Set the L1 share of the penalty."""
        return self._set(elasticNetParam=value)

    def setLineSearch(self, value: str) -> Self:
        """Set how solver gd finds its step."""
        return self._set(lineSearch=value)

    def _refuse_common(self: Any, solvers: Sequence[str]) -> None:
        super()._refuse_common(solvers)
        if self.getLineSearch() not in gd.LINE_SEARCHES:
            raise ValueError(
                f"param lineSearch: expected one of {gd.LINE_SEARCHES}, "
                f"found {self.getLineSearch()!r}"
            )
        alpha = self.getElasticNetParam()
        if not 0 <= alpha <= 1:
            raise ValueError(f"param elasticNetParam: expected a number in [0, 1], found {alpha!r}")
        if alpha > 0:
            self._refuse_smooth_solver("elasticNetParam above 0")

    def _finish(self, model: Any, dataset: DataFrame) -> Any:
        return model._trained_on(dataset)

    def _refuse_smooth_solver(self, reason: str) -> None:
        """ValueError for a solver that needs a gradient everywhere."""
        if self.getSolver() in ("newton", "tron", "gd", *STOCHASTIC):
            raise ValueError(
                f"param solver: expected auto, l-bfgs or owl-qn with {reason}, "
                f"found {self.getSolver()!r}"
            )


# With so many parameters the proximal method's model takes the driver longer than its rounds save.
OWL_QN_PARAMETERS = 1 << 15


def auto_solver(blocks: Blocks, n_parameters: int, l1: bool = False) -> str:
    """What ``solver="auto"`` means for a loss that is not quadratic.

    Newton where L-BFGS would take all rows for its sample of the Hessian, as it is exact at the
    same price: docs/decisions/0002-solver-auto.md. With an L1 penalty the proximal quasi-Newton
    method, and OWL-QN for very many parameters: docs/decisions/0005-proximal-quasi-newton.md.
    """
    if l1:
        return "owl-qn" if n_parameters > OWL_QN_PARAMETERS else "l-bfgs"
    exact = n_parameters <= CURVATURE_PARAMETERS and sampling(blocks, n_parameters) == 1
    return "newton" if exact else "l-bfgs"


def about_their_mean(blocks: Blocks, coordinates: Coordinates) -> tuple[Sums, Coordinates]:
    """Dense rows that lie far from 0 seen from their mean, and the coordinates that go with it."""
    dtype = np.dtype(blocks.features.dtype)
    # A mean of so many deviations costs a quarter of the digits (and more in the Hessian): 54 in
    # float32, 8,192 in float64. To win them back costs a pass over the values in cache.
    far = np.abs(coordinates.mean) > np.finfo(dtype).eps ** -0.25 * coordinates.scale
    if blocks.sparse or not (far & (coordinates.scale > 0)).any():
        return blocks, coordinates
    origin = coordinates.mean.astype(dtype)
    return Shifted(blocks, origin), replace(coordinates, mean=coordinates.mean - origin)


def minimize_linear(
    estimator: Any,
    objective: Callable[[float], Any],
    v: np.ndarray,
    solver: str,
    drain: Callable[[], tuple[Any, ...]] = tuple,
    n_outputs: int = 1,
) -> Result[Any]:
    """Minimise an objective by an estimator's params.

    Parameters
    ----------
    estimator : LinearEstimator
    objective : callable
        By the strength of the penalty.
    v : ndarray
        Flat parameters to start from.
    solver : str
        One of :data:`MINIMIZERS`. With an L1 penalty or bounds ``l-bfgs`` is the proximal one.
    drain : callable
        As in :func:`~mllib_ext.optimizers.loop.iterate`.
    n_outputs : int
        Into how many predictors' parameters ``v`` falls.
    """
    method: Any = MINIMIZERS[solver]
    if method is lbfgs and objective(estimator.getRegParam()).nonsmooth is not None:
        method = proximal
    settings = {
        "max_iter": estimator.getMaxIter(),
        "tol": estimator.getTol(),
        "reg_param": estimator.getRegParam(),
    }
    if method is gd:
        settings["step_size"] = estimator.getStepSize()
        settings["line_search"] = estimator.getLineSearch()
    if method is sgd:
        settings |= estimator._stochastic_settings(len(v) // n_outputs)
    return minimize(
        method, objective, v, method.SETTINGS(**settings), estimator.getCallbacks(), drain
    )


def penalties(
    estimator: Any,
    coordinates: Coordinates,
    ridge_factor: float = 1.0,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[L2, L1Box | None]:
    """The elastic net of an estimator's params, and bounds, on standardised parameters.

    Parameters
    ----------
    estimator : LinearEstimator
    coordinates : Coordinates
    ridge_factor : float
        What regParam is multiplied with in the L2 penalty.
    bounds : tuple of ndarray, optional
        Lower and upper ones of the flat parameters.

    Returns
    -------
    smooth : L2
    nonsmooth : L1Box or None
        None without L1 penalty and bounds.
    """
    alpha = estimator.getElasticNetParam() if estimator.hasParam("elasticNetParam") else 0.0
    ones = np.ones_like(coordinates.scale)
    inverse = ones if estimator.getStandardization() else coordinates.inverse
    smooth = L2(0.0, (1.0 - alpha) * ridge_factor * inverse**2)
    if alpha == 0 and bounds is None:
        return smooth, None
    size = len(coordinates.zeros())
    weight = np.zeros(size)
    weight[: inverse.size * coordinates.n_outputs] = np.repeat(
        alpha * inverse, coordinates.n_outputs
    )
    free = np.full(size, np.inf)
    lower, upper = bounds or (-free, free)
    return smooth, L1Box(0.0, weight, lower, upper)


def fit_linear(
    estimator: Any,
    blocks: Blocks,
    loss: Loss,
    coordinates: Coordinates,
    start: Any,
    solver: str,
    ridge_factor: float = 1.0,
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, Result[Any]]:
    """Minimise the penalised loss of a linear predictor.

    Parameters
    ----------
    estimator : LinearEstimator
    blocks : Blocks
    loss : Loss
    coordinates : Coordinates
        To search in, and the standardisation of the penalty.
    start : float or ndarray, shape (k,)
        Intercepts to start from, where the coefficients are 0.
    solver : str
        As in :func:`minimize_linear`.
    ridge_factor, bounds
        As in :func:`penalties`.

    Returns
    -------
    coef : ndarray, shape (d,) or (d, k)
    intercept : ndarray, shape () or (k,)
    result : Result
    """
    data, seen = about_their_mean(blocks, coordinates)
    smooth, nonsmooth = penalties(estimator, coordinates, ridge_factor, bounds)
    objective = Objective(data, loss, seen, smooth, precision(blocks), nonsmooth)
    v = coordinates.zeros()
    if coordinates.fit_intercept:
        v[len(v) - loss.n_outputs :] = start
    by_strength: Callable[[float], Any] = objective.regularized
    if solver in STOCHASTIC:
        by_strength = Stochastic.of(objective).regularized
    result = minimize_linear(estimator, by_strength, v, solver, blocks.drain, loss.n_outputs)
    coef, intercept = coordinates.to_data(result.state.v)
    return coef, np.asarray(intercept, dtype=np.float64), result


def precision(blocks: Blocks) -> float:
    """Relative rounding error of an objective's value."""
    return 1e-6 if blocks.features.dtype == "float32" else 1e-14


def centred(
    estimator: Any, mean: np.ndarray, scale: np.ndarray, k: int = 1, ridge_factor: float = 1.0
) -> Coordinates:
    """Coordinates to search in, about the mean row if there is an intercept to make up for it.

    Standardised, if the penalty is of standardised coefficients. One of coefficients as they are
    bends the objective by ``regParam`` (times ``ridge_factor``, as in :func:`penalties`) beside a
    feature's variance: divided by the root of both, all parameters are alike. (Divided by their
    deviations the words of a text are not, of which most are rare: conjugate gradients took more
    than 10 times as many products, L-BFGS did not arrive.)
    """
    fit_intercept = estimator.getFitIntercept()
    if not estimator.getStandardization():
        bent = np.hypot(scale, np.sqrt(ridge_factor * estimator.getRegParam()))
        scale = np.where(scale > 0, bent, 0.0)  # a constant feature has a coefficient of 0
    return Coordinates(mean if fit_intercept else np.zeros_like(mean), scale, k, fit_intercept)
