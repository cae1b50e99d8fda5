"""What the linear models share: their parameters, what they refuse, and how they are fitted."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any, Self

import numpy as np
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasSolver, HasStepSize
from pyspark.sql import DataFrame

from mllib_ext.base import HasCallbacks, HasFeatures
from mllib_ext.blocks import Blocks
from mllib_ext.fitting import FitsOverBlocks
from mllib_ext.losses import Loss
from mllib_ext.objective import (
    CURVATURE_PARAMETERS,
    SAMPLED_ROWS,
    Coordinates,
    Objective,
    Shifted,
    Sums,
)
from mllib_ext.optimizers import gd, lbfgs, newton
from mllib_ext.optimizers.loop import Result
from mllib_ext.optimizers.smooth import minimize
from mllib_ext.penalties import L2

MINIMIZERS: dict[str, ModuleType] = {"gd": gd, "l-bfgs": lbfgs, "newton": newton}


class LinearParams(HasFeatures, HasSolver, HasStepSize):
    """The solvers' parameters, beside those of the pyspark.ml class that a model stands for.

    Defaults that pyspark.ml keeps on its Java side are set here.
    """

    solver: Param[str] = Param(
        Params._dummy(),
        "solver",
        "the solver: auto, newton, l-bfgs, gd (and normal for least squares)",
        typeConverter=TypeConverters.toString,
    )
    stepSize: Param[float] = Param(
        Params._dummy(),
        "stepSize",
        "the step of solver gd (> 0), in standardised coordinates; see lineSearch",
        typeConverter=TypeConverters.toFloat,
    )
    lineSearch: Param[str] = Param(
        Params._dummy(),
        "lineSearch",
        "how solver gd finds its step: none, armijo, barzilai-borwein, nesterov",
        typeConverter=TypeConverters.toString,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            maxIter=100,
            regParam=0.0,
            elasticNetParam=0.0,
            tol=1e-6,
            fitIntercept=True,
            standardization=True,
            solver="auto",
            stepSize=1.0,
            lineSearch="barzilai-borwein",
            aggregationDepth=2,
            maxBlockSizeInMB=0.0,
        )

    def getLineSearch(self) -> str:
        """How solver gd finds its step."""
        return self.getOrDefault(self.lineSearch)


class LinearEstimator(FitsOverBlocks, LinearParams, HasCallbacks):
    """Setters of a linear model's estimator."""

    # Spark's estimators have one of their own, nearer in the method resolution order.
    setFeaturesCol = HasFeatures.setFeaturesCol

    def setMaxIter(self, value: int) -> Self:
        """Set the largest number of iterations."""
        return self._set(maxIter=value)

    def setRegParam(self, value: float) -> Self:
        """Set the strength of the penalty."""
        return self._set(regParam=value)

    def setElasticNetParam(self, value: float) -> Self:
        """Set the L1 share of the penalty."""
        return self._set(elasticNetParam=value)

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

    def setStepSize(self, value: float) -> Self:
        """Set the step of solver gd."""
        return self._set(stepSize=value)

    def setLineSearch(self, value: str) -> Self:
        """Set how solver gd finds its step."""
        return self._set(lineSearch=value)

    def setAggregationDepth(self, value: int) -> Self:
        """Set the depth of tree aggregation: 2 alone, there being no tree."""
        return self._set(aggregationDepth=value)

    def setMaxBlockSizeInMB(self, value: float) -> Self:
        """Set the size of blocks: 0 alone, which means automatic."""
        return self._set(maxBlockSizeInMB=value)

    def _finish(self, model: Any, dataset: DataFrame) -> Any:
        return model._trained_on(dataset)

    def _refuse_unsupported(self, only: dict[str, Any], solvers: tuple[str, ...]) -> None:
        """ValueError for what no solver here honours yet, and for values out of range."""
        for name, value in {
            "elasticNetParam": 0.0, "aggregationDepth": 2, "maxBlockSizeInMB": 0.0, **only,
        }.items():  # fmt: skip
            found = self.getOrDefault(name) if self.isDefined(name) else None
            # pyspark.ml's matrices cannot be compared with None.
            if found is not None if value is None else found != value:
                raise ValueError(
                    f"param {name}: expected {value!r}, found {found!r}: "
                    f"{type(self).__name__} does not support another value yet"
                )
        if self.getSolver() not in solvers:
            raise ValueError(f"param solver: expected one of {solvers}, found {self.getSolver()!r}")
        if self.getLineSearch() not in gd.LINE_SEARCHES:
            raise ValueError(
                f"param lineSearch: expected one of {gd.LINE_SEARCHES}, "
                f"found {self.getLineSearch()!r}"
            )
        for name in ("regParam", "tol", "maxIter", "stepSize"):
            found = self.getOrDefault(name)
            if not (found > 0 if name == "stepSize" else found >= 0) or not np.isfinite(found):
                least = "above 0" if name == "stepSize" else "of 0 or more"
                raise ValueError(f"param {name}: expected a number {least}, found {found!r}")


def auto_solver(blocks: Blocks, n_parameters: int) -> str:
    """What ``solver="auto"`` means for a loss that is not quadratic.

    Newton where L-BFGS would take all rows for its sample of the Hessian, as it is exact at the
    same price: docs/decisions/0002-solver-auto.md.
    """
    few = n_parameters <= CURVATURE_PARAMETERS and blocks.n_rows < 2 * SAMPLED_ROWS * n_parameters
    return "newton" if few else "l-bfgs"


def _about_their_mean(blocks: Blocks, coordinates: Coordinates) -> tuple[Sums, Coordinates]:
    """Dense rows that lie far from 0 seen from their mean, and the coordinates that go with it."""
    dtype = np.dtype(blocks.features.dtype)
    # A mean of so many deviations costs a quarter of the digits (and more in the Hessian): 54 in
    # float32, 8,192 in float64. To win them back costs a pass over the values in cache.
    far = np.abs(coordinates.mean) > np.finfo(dtype).eps ** -0.25 * coordinates.scale
    if blocks.sparse or not (far & (coordinates.scale > 0)).any():
        return blocks, coordinates
    origin = coordinates.mean.astype(dtype)
    return Shifted(blocks, origin), replace(coordinates, mean=coordinates.mean - origin)


def fit_linear(
    estimator: Any,
    blocks: Blocks,
    loss: Loss,
    mean: np.ndarray,
    scale: np.ndarray,
    start: Any,
    solver: str,
    penalty_factor: float = 1.0,
) -> tuple[np.ndarray, np.ndarray, Result[Any]]:
    """Minimise the penalised loss of a linear predictor.

    Parameters
    ----------
    estimator : LinearEstimator
    blocks : Blocks
    loss : Loss
    mean, scale : ndarray, shape (d,)
        Of the features: the coordinates to search in, and the standardisation of the penalty.
    start : float or ndarray, shape (k,)
        Intercepts to start from, where the coefficients are 0.
    solver : {"newton", "l-bfgs", "gd"}
    penalty_factor : float
        What regParam is multiplied with.

    Returns
    -------
    coef : ndarray, shape (d,) or (d, k)
    intercept : ndarray, shape () or (k,)
    result : Result
    """
    fit_intercept = estimator.getFitIntercept()
    coordinates = Coordinates(
        mean if fit_intercept else np.zeros_like(mean), scale, loss.n_outputs, fit_intercept
    )
    data, seen = _about_their_mean(blocks, coordinates)
    weights = np.ones_like(scale) if estimator.getStandardization() else coordinates.inverse**2
    precision = 1e-6 if blocks.features.dtype == "float32" else 1e-14
    objective = Objective(data, loss, seen, L2(0.0, weights), precision)

    method: Any = MINIMIZERS[solver]
    settings = {
        "max_iter": estimator.getMaxIter(),
        "tol": estimator.getTol(),
        "reg_param": estimator.getRegParam(),
    }
    if solver == "gd":
        settings["step_size"] = estimator.getStepSize()
        settings["line_search"] = estimator.getLineSearch()
    v = coordinates.zeros()
    if fit_intercept:
        v[len(v) - loss.n_outputs :] = start
    result = minimize(
        method,
        lambda reg_param: objective.regularized(penalty_factor * reg_param),
        v,
        method.SETTINGS(**settings),
        estimator.getCallbacks(),
        blocks.drain,
    )
    coef, intercept = coordinates.to_data(result.state.v)
    return coef, np.asarray(intercept, dtype=np.float64), result
