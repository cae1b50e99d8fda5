"""What linear support vector machines share: their parameters, and how they are fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from pyspark.ml.param import Param, Params, TypeConverters

from mllib_ext.blocks import Blocks
from mllib_ext.hinges import LargestLine, Subgradient
from mllib_ext.interior import Risk
from mllib_ext.linear import (
    STOCHASTIC,
    LinearEstimator,
    LinearParams,
    about_their_mean,
    fit_linear,
    penalties,
    precision,
)
from mllib_ext.losses import Loss
from mllib_ext.objective import CURVATURE_PARAMETERS, Coordinates
from mllib_ext.optimizers import bundle, interior_point
from mllib_ext.optimizers.loop import Result
from mllib_ext.optimizers.smooth import minimize

# Solvers of the losses with a gradient, and of those without one; stochastic ones take both.
SQUARED = ("newton", "l-bfgs", "tron")
PIECEWISE = {"interior-point": interior_point, "bundle": bundle}
SOLVERS = ("auto", *PIECEWISE, *SQUARED, *STOCHASTIC)


class SVMParams(LinearParams):
    """The loss, beside the parameters of every linear model."""

    loss: Param[str] = Param(
        Params._dummy(),
        "loss",
        "the loss: piecewise linear or its square",
        typeConverter=TypeConverters.toString,
    )

    def getLoss(self) -> str:
        """The loss."""
        return self.getOrDefault(self.loss)


@dataclass(frozen=True)
class Piecewise:
    """A piecewise linear loss, and what its solvers have to know to begin.

    Attributes
    ----------
    loss : LargestLine
    intercepts : ndarray, shape (e, k)
    scale : float
        Of the loss at the start.
    """

    loss: LargestLine
    intercepts: np.ndarray
    scale: float = 1.0


class SVMEstimator(LinearEstimator, SVMParams):
    """Setters, checks and fit of a linear support vector machine."""

    _losses: tuple[str, str]  # piecewise linear, and squared

    def setLoss(self, value: str) -> Self:
        """Set the loss."""
        return self._set(loss=value)

    @property
    def _squared(self) -> bool:
        return self.getLoss() == self._losses[1]

    def _refuse_common(self: Any, solvers: Any = SOLVERS) -> None:
        super()._refuse_common(solvers)
        if self.getLoss() not in self._losses:
            raise ValueError(
                f"param loss: expected one of {self._losses}, found {self.getLoss()!r}"
            )
        able = ("auto", *(SQUARED if self._squared else PIECEWISE), *STOCHASTIC)
        if self.getSolver() not in able:
            raise ValueError(
                f"param solver: expected one of {able} with loss {self.getLoss()}, "
                f"found {self.getSolver()!r}"
            )

    def _fit_margins(
        self: Any,
        blocks: Blocks,
        loss: Loss | Piecewise,
        coordinates: Coordinates,
        start: Any,
    ) -> tuple[np.ndarray, np.ndarray, Result[Any]]:
        """Coefficients (d,) or (d, k), intercepts () or (k,), and how they were found."""
        n_parameters = len(coordinates.zeros())
        if isinstance(loss, Piecewise) and self.getSolver() in STOCHASTIC:
            loss = Subgradient(loss.loss)
        if isinstance(loss, Loss):
            return fit_linear(
                self, blocks, loss, coordinates, start, self._smooth_solver(n_parameters)
            )
        solver = self.getSolver()
        if solver == "auto":
            solver = "interior-point" if n_parameters <= CURVATURE_PARAMETERS else "bundle"
        data, seen = about_their_mean(blocks, coordinates)
        risk = Risk(
            data, loss.loss, seen, penalties(self, seen)[0], loss.intercepts, loss.scale,
            precision(blocks),
        )  # fmt: skip
        v = coordinates.zeros()
        if coordinates.fit_intercept:
            v[len(v) - coordinates.n_outputs :] = start
        settings = {"max_iter": self.getMaxIter(), "tol": self.getTol()}
        method = PIECEWISE[solver]
        result = minimize(
            method, risk.regularized, v,
            method.SETTINGS(reg_param=self.getRegParam(), **settings),
            self.getCallbacks(), blocks.drain,
        )  # fmt: skip
        coef, intercept = coordinates.to_data(result.state.v)
        return coef, np.asarray(intercept, dtype=np.float64), result

    def _smooth_solver(self: Any, n_parameters: int) -> str:
        """Newton's method on the rows within their margin, unless parameters are many.

        A sample of these misleads where features are rare: docs/decisions/0002-solver-auto.md.
        """
        if self.getSolver() != "auto":
            return self.getSolver()
        return "tron" if n_parameters > CURVATURE_PARAMETERS else "newton"


def gap_of(result: Result[Any]) -> float:
    """What the last state of a run proves; NaN where its solver proves nothing."""
    return float(getattr(result.state, "gap", np.nan))
