r"""Losses of support vector machines: hinges, and the epsilon-insensitive losses of regression.

With the sign :math:`s = \pm1` of a class, a margin :math:`z` and a residual :math:`r = z - y`:

=============================  ===========================================================
hinge                          :math:`\max(0, 1 - s z)`
squared hinge                  :math:`\max(0, 1 - s z)^2`
epsilon-insensitive            :math:`\max(0, |r| - \epsilon)`
squared epsilon-insensitive    :math:`\max(0, |r| - \epsilon)^2`
Crammer & Singer (2001)        :math:`\max_j (z_j + [j \ne y]) - z_y`
=============================  ===========================================================

The squared ones (without a half, as in LIBLINEAR) have a gradient and a generalised Hessian
(Mangasarian 2002; Keerthi & DeCoste 2005). The others are the largest of a few lines,

.. math::

    \ell(y, z) = \max_j u_j(y, z) = \max_{a \in \Delta} \textstyle\sum_j a_j u_j(y, z)

over the simplex: weights a of a row's lines make a line that lies nowhere above its loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np

from mllib_ext.losses import Loss


def signs(y: np.ndarray, n_outputs: int) -> np.ndarray:
    """1 for a row's own class and -1 else: (n,) for labels 0 and 1, (n, k) for k outputs."""
    if n_outputs == 1:
        return np.where(y > 0, 1.0, -1.0)
    return np.where(y[:, None] == np.arange(n_outputs), 1.0, -1.0)


@final
@dataclass(frozen=True)
class SquaredHinge(Loss):
    """The squared hinge of two classes, or the sum of those of k classes, each against the rest.

    Attributes
    ----------
    n_outputs : int
        1 for labels 0 and 1; k for labels 0 .. k-1.
    """

    n_outputs: int = 1
    apart = True

    def value_and_gradient(self, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = signs(y, self.n_outputs)
        lack = np.maximum(0.0, 1.0 - s * z)
        return row_sums(lack * lack), -2.0 * s * lack

    def curvature(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.where(signs(y, self.n_outputs) * z < 1.0, 2.0, 0.0)


@final
@dataclass(frozen=True)
class SquaredEpsilonInsensitive(Loss):
    """The square of how far a residual exceeds ``epsilon``."""

    epsilon: float = 0.0

    def value_and_gradient(self, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r = z - y
        excess = np.maximum(0.0, np.abs(r) - self.epsilon)
        return excess * excess, 2.0 * np.sign(r) * excess

    def curvature(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.where(np.abs(z - y) > self.epsilon, 2.0, 0.0)


class LargestLine(ABC):
    """The largest of J lines in the margins, or the sum of such losses, one for each margin.

    Values and weights of lines are arrays (J, n), or (J, n, k) for k losses that are apart.

    Attributes
    ----------
    n_outputs : int
        Margins of a row.
    apart : bool
        A row has a loss for each of its margins.
    """

    n_outputs: int = 1
    apart: bool = True

    @abstractmethod
    def lines(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The lines' values at margins (n,) or (n, k)."""

    @abstractmethod
    def slope(self, y: np.ndarray, a: np.ndarray) -> np.ndarray:
        """By the margins, of the shape of ``z``: that of the lines weighted by ``a``."""

    @abstractmethod
    def curvature(self, D: np.ndarray) -> np.ndarray:
        """Of ``diag(D) - D D' / sum(D)`` in the lines, by the margins: (n,), (n, k), (n, k, k)."""

    def value(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """``l(y, z)``, shape (n,)."""
        return row_sums(self.lines(y, z).max(axis=0))

    def largest(self, u: np.ndarray) -> np.ndarray:
        """Weights of 1 on a largest line of each row, else 0, of the shape of ``u``."""
        largest = u.argmax(axis=0)
        return np.stack([largest == j for j in range(len(u))]).astype(np.float64)


@final
@dataclass(frozen=True)
class Subgradient(Loss):
    """A piecewise linear loss whose gradient is that of a largest line: for stochastic descent."""

    loss: LargestLine

    @property
    def n_outputs(self) -> int:  # type: ignore[override]
        return self.loss.n_outputs

    def value_and_gradient(self, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u = self.loss.lines(y, z)
        return row_sums(u.max(axis=0)), self.loss.slope(y, self.loss.largest(u))

    def curvature(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.zeros_like(z)


@final
@dataclass(frozen=True)
class Hinge(LargestLine):
    """The hinge of two classes, or the sum of those of k classes, each against the rest."""

    n_outputs: int = 1

    def lines(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        lack = 1.0 - signs(y, self.n_outputs) * z
        return np.stack([np.zeros_like(lack), lack])

    def slope(self, y: np.ndarray, a: np.ndarray) -> np.ndarray:
        return -signs(y, self.n_outputs) * a[1]

    def curvature(self, D: np.ndarray) -> np.ndarray:
        curvature: np.ndarray = D[0] * D[1] / (D[0] + D[1])
        return curvature


@final
@dataclass(frozen=True)
class EpsilonInsensitive(LargestLine):
    """How far a residual exceeds ``epsilon``."""

    epsilon: float = 0.0

    def lines(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        r = z - y
        return np.stack([np.zeros_like(r), r - self.epsilon, -r - self.epsilon])

    def slope(self, y: np.ndarray, a: np.ndarray) -> np.ndarray:
        slope: np.ndarray = a[1] - a[2]
        return slope

    def curvature(self, D: np.ndarray) -> np.ndarray:
        within, above, below = D
        curvature: np.ndarray = (within * (above + below) + 4.0 * above * below) / D.sum(axis=0)
        return curvature


@final
@dataclass(frozen=True)
class CrammerSinger(LargestLine):
    """By how much the best wrong class, handicapped by 1, beats a row's own class."""

    n_outputs: int
    apart = False

    def lines(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        own = self._own(y)
        u: np.ndarray = z.T + (1.0 - own) - (z.T * own).sum(axis=0)
        return u

    def slope(self, y: np.ndarray, a: np.ndarray) -> np.ndarray:
        slope: np.ndarray = (a - self._own(y) * a.sum(axis=0)).T
        return slope

    def curvature(self, D: np.ndarray) -> np.ndarray:
        share = (D / D.sum(axis=0)).T
        curvature: np.ndarray = D.T[:, :, None] * (np.eye(self.n_outputs) - share[:, None, :])
        return curvature

    def _own(self, y: np.ndarray) -> np.ndarray:
        """1 at a row's class, else 0, (k, n). A row of weight 0 may bear any other label."""
        own = np.minimum(y, self.n_outputs - 1) == np.arange(self.n_outputs)[:, None]
        return own.astype(np.float64)


def row_sums(a: np.ndarray) -> np.ndarray:
    """Sums over the margins of each row, (n,); ``a`` itself where there is one margin."""
    return a if a.ndim == 1 else a.sum(axis=1)
