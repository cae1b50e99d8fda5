r"""Least squares from second moments alone: an objective that needs no more rounds.

.. math::

    F(v) = \tfrac12 \, v \cdot G v - v \cdot c + \tfrac12 m + P(v),
    \qquad G = \frac1W A^T W A, \quad c = \frac1W A^T W y, \quad m = \frac1W y^T W y

for features A and a label y about their means. The same callables as
:class:`mllib_ext.objective.Objective`, on the driver.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mllib_ext.penalties import L2, L1Box


@dataclass(frozen=True)
class SecondMoments:
    """A penalised quadratic.

    Attributes
    ----------
    gram : ndarray, shape (d, d)
    by_label : ndarray, shape (d,)
    label_square : float
    penalty : L2
    nonsmooth : L1Box or None
    precision : float
    """

    gram: np.ndarray
    by_label: np.ndarray
    label_square: float
    penalty: L2
    nonsmooth: L1Box | None = None
    precision: float = 1e-14

    def regularized(self, strength: float) -> SecondMoments:
        """This objective with another strength of its penalties."""
        nonsmooth = self.nonsmooth and replace(self.nonsmooth, strength=strength)
        return replace(self, penalty=replace(self.penalty, strength=strength), nonsmooth=nonsmooth)

    def value_and_gradient(self, v: np.ndarray) -> tuple[float, np.ndarray]:
        """The smooth part ``F(v)`` and its gradient."""
        residual = self.gram @ v - self.by_label
        value = 0.5 * float(v @ (residual - self.by_label) + self.label_square)
        return value + self.penalty.value(v), residual + self.penalty.gradient(v)

    def value_gradient_hessian(self, v: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The same, and the Hessian."""
        return *self.value_and_gradient(v), self.gram + np.diag(self.penalty.curvature())

    value_gradient_curvature = value_gradient_hessian

    def along(
        self, v: np.ndarray, p: np.ndarray, steps: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """``F(v + t p)`` and its slope by t for every t of ``steps`` (s,)."""
        value, gradient, H = self.value_gradient_hessian(v)
        slope, curvature = float(gradient @ p), float(p @ H @ p)
        return value + steps * (slope + 0.5 * steps * curvature), slope + steps * curvature
