r"""Penalties on the coefficients of a linear predictor; intercepts are free.

:class:`L2` is smooth and part of every gradient. :class:`L1Box` has none; minimizers meet it by its
proximal operator. The elastic net is both under one strength, its shares :math:`1 - \alpha` and
:math:`\alpha` in ``scale`` and ``weight``:

.. math::

    \lambda \Big[ \frac{1 - \alpha}{2} \sum_j s_j \beta_j^2
    + \alpha \sum_j t_j |\beta_j| \Big]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

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


@final
@dataclass(frozen=True)
class L1Box:
    r"""Lasso and bounds: :math:`\lambda \sum_j t_j |v_j|` if :math:`l \le v \le u`, else infinity.

    Of flat parameters, intercepts included: what is free of it has a weight of 0 and infinite
    bounds.

    Attributes
    ----------
    strength : float
        :math:`\lambda \ge 0`.
    weight : ndarray, shape (size,)
        :math:`t_j \ge 0`.
    lower, upper : ndarray, shape (size,)
        :math:`l \le u`; infinite where there is no bound, equal where a parameter is fixed.

    Raises
    ------
    ValueError
        A weight is negative, or a lower bound exceeds its upper one.
    """

    strength: float
    weight: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def __post_init__(self) -> None:
        if not (self.weight >= 0).all():
            raise ValueError(f"L1 weights: expected 0 or more, found {self.weight.min():g}")
        empty = np.flatnonzero(~(self.lower <= self.upper))
        if len(empty):
            j = empty[0]
            raise ValueError(
                f"bounds of parameter {j}: expected lower <= upper, "
                f"found {self.lower[j]:g} and {self.upper[j]:g}"
            )

    @classmethod
    def unbounded(cls, strength: float, weight: np.ndarray) -> L1Box:
        """The lasso without bounds."""
        infinite = np.full(len(weight), np.inf)
        return cls(strength, weight, -infinite, infinite)

    @property
    def threshold(self) -> np.ndarray:
        r""":math:`\lambda t`, shape (size,)."""
        threshold: np.ndarray = self.strength * self.weight
        return threshold

    def take(self, indices: np.ndarray) -> L1Box:
        """The part of these parameters."""
        return L1Box(self.strength, self.weight[indices], self.lower[indices], self.upper[indices])

    @property
    def bounded(self) -> bool:
        """Some bound is finite."""
        return bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())

    def project(self, v: np.ndarray) -> np.ndarray:
        """The nearest parameters within the bounds."""
        return np.clip(v, self.lower, self.upper)

    def value(self, v: np.ndarray) -> float:
        """At parameters ``(size,)``."""
        if not ((self.lower <= v) & (v <= self.upper)).all():
            return np.inf
        return float(self.threshold @ np.abs(v))

    def rise(self, v: np.ndarray, u: np.ndarray) -> float:
        """``value(u) - value(v)`` within the bounds, without the cancellation of two sums."""
        return float(self.threshold @ (np.abs(u) - np.abs(v)))

    def prox(self, v: np.ndarray, step: Any = 1.0) -> np.ndarray:
        r""":math:`\arg\min_u h(u) + \sum_j (u_j - v_j)^2 / (2 \eta_j)`, for a step () or (size,).

        The soft threshold, cut off at the bounds: each term is convex in one variable.
        """
        reach = step * self.threshold
        return self.project(v - np.clip(v, -reach, reach))

    def residual(self, v: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The proximal gradient ``v - prox(v - gradient)``: 0 at the optimum, and continuous.

        Of the shape of ``v``. Without a weight or a bound in reach it is the gradient.
        """
        return v - self.prox(v - gradient)

    def subgradient(self, v: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """The element of least norm of ``gradient`` plus the subdifferential at ``v``.

        0 at the optimum alone, and not continuous; OWL-QN's pseudo-gradient (Andrew & Gao 2007).
        """
        # One interval a parameter: the slope to its left and to its right.
        left = gradient + np.where(v > 0, self.threshold, -self.threshold)
        right = gradient + np.where(v < 0, -self.threshold, self.threshold)
        left = np.where(v <= self.lower, -np.inf, left)
        right = np.where(v >= self.upper, np.inf, right)
        return np.maximum(left, 0.0) + np.minimum(right, 0.0)
