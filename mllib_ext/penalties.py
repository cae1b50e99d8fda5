r"""Penalties on the coefficients of a linear predictor; intercepts are free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np


@final
@dataclass(frozen=True)
class L2:
    r"""Ridge, :math:`\frac\lambda2 \sum_j s_j \beta_j^2`.

    Attributes
    ----------
    strength : float
        :math:`\lambda \ge 0`.
    scale : ndarray, shape (d,)
        :math:`s_j \ge 0`, for every feature: ones, or what takes the penalty to another scale of
        the feature.
    """

    strength: float
    scale: np.ndarray

    def value(self, coef: np.ndarray) -> float:
        """At coefficients ``(d,)`` or ``(d, k)``."""
        return 0.5 * self.strength * float(np.sum(self._scaled(coef) * coef))

    def gradient(self, coef: np.ndarray) -> np.ndarray:
        """Of the shape of ``coef``."""
        gradient: np.ndarray = self.strength * self._scaled(coef)
        return gradient

    def curvature(self) -> np.ndarray:
        """The diagonal of the Hessian, shape (d,), the same for every class."""
        curvature: np.ndarray = self.strength * self.scale
        return curvature

    def _scaled(self, coef: np.ndarray) -> np.ndarray:
        return (self.scale * coef.T).T
