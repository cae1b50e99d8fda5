r"""A quadratic model plus what has no gradient, minimised on the driver.

.. math::

    \min_u \; g \cdot (u - v) + \tfrac12 (u - v) \cdot B (u - v) + h(u)

with :math:`h` of :class:`~mllib_ext.penalties.L1Box`. Only parameters that are off their zeros and
bounds, or that the gradient pushes off, take part; the rest is looked at again at the end of a
sweep. On those, two phases take turns. On the face of :math:`u` (zeros stay zero, bounds are kept,
and so are signs) the model is quadratic: a Newton step, cut off at the face's borders, adds zeros
and bounds and ends exact. A few accelerated proximal gradient steps (Beck & Teboulle 2009; restarts
of O'Donoghue & Candes 2015) release what is worth it. (A single proximal step releases too much,
which takes several times as many factorisations; a primal-dual active set has no descent to rely
on, and cycled.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import scipy.linalg

from mllib_ext.optimizers.lbfgs import Pairs
from mllib_ext.penalties import L1Box

# With 1,000 strongly correlated parameters 20 steps between two Newton steps take the least time;
# 5 and 50 take twice as long.
RELEASES = 20
SWEEPS, TURNS = 10, 50  # a model that is not solved by then serves as it is
ROUNDING = 1e-15  # of a gradient, relative to it
ARMIJO = 1e-4
FRACTIONS = 4.0 ** -np.arange(4)  # of a Newton step: a border that is nearer has to be released


class Metric(Protocol):
    """A positive definite matrix B of shape (size, size)."""

    @property
    def bound(self) -> float:
        """At least the largest eigenvalue."""

    def product(self, p: np.ndarray) -> np.ndarray:
        """``B @ p``."""

    def solve(self, r: np.ndarray) -> np.ndarray:
        """``x`` with ``B @ x = r``."""

    def take(self, indices: np.ndarray) -> Metric:
        """The rows and columns of these parameters."""


@final
@dataclass(frozen=True)
class Dense:
    """A matrix."""

    matrix: np.ndarray

    @property
    def bound(self) -> float:
        """The largest sum of a row."""
        return float(np.abs(self.matrix).sum(axis=0).max())

    def product(self, p: np.ndarray) -> np.ndarray:
        product: np.ndarray = self.matrix @ p
        return product

    def solve(self, r: np.ndarray) -> np.ndarray:
        factor = scipy.linalg.cho_factor(self.matrix, lower=True)
        solution: np.ndarray = scipy.linalg.cho_solve(factor, r)
        return solution

    def take(self, indices: np.ndarray) -> Dense:
        return Dense(self.matrix[np.ix_(indices, indices)])


@final
@dataclass(frozen=True)
class LowRank:
    """``scale * I + W.T @ diag(signs) @ W``, for so many parameters that no matrix fits.

    Attributes
    ----------
    scale : float
    W : ndarray, shape (r, size)
    signs : ndarray, shape (r,)
        1 or -1.
    """

    scale: float
    W: np.ndarray
    signs: np.ndarray

    @property
    def bound(self) -> float:
        """The scale and the largest eigenvalue of what is added."""
        added = self.W[self.signs > 0]
        return self.scale + float(np.linalg.eigvalsh(added @ added.T).max(initial=0.0))

    def product(self, p: np.ndarray) -> np.ndarray:
        product: np.ndarray = self.scale * p + (self.signs * (self.W @ p)) @ self.W
        return product

    def solve(self, r: np.ndarray) -> np.ndarray:
        """By the formula of Sherman, Morrison and Woodbury."""
        inner = self.scale * np.diag(self.signs) + self.W @ self.W.T
        solution: np.ndarray = (r - np.linalg.solve(inner, self.W @ r) @ self.W) / self.scale
        return solution

    def take(self, indices: np.ndarray) -> LowRank:
        return LowRank(self.scale, self.W[:, indices], self.signs)


def metric(size: int, scale: float, pairs: Pairs, hessian: np.ndarray | None) -> Metric:
    """BFGS over a sampled Hessian, or over ``scale * I`` where there is none.

    The last pair sets the scale of the identity. A sampled Hessian has its own: where it misleads,
    in rare features, scaling it by the last pair took three times the rounds. The updates are
    unrolled (Nocedal & Wright 2006, section 7.2): each adds ``y y' / s'y`` and takes away
    ``b b' / s'b``, ``b = B s``.

    Parameters
    ----------
    size : int
    scale : float
        Of the identity, without pairs.
    pairs : tuple of (ndarray, ndarray)
        Moves s and changes of the gradient y, ``s'y > 0``, oldest first.
    hessian : ndarray, shape (size, size), or None
        Positive definite.

    Raises
    ------
    numpy.linalg.LinAlgError
        A pair has no curvature left at the precision of the arithmetic.
    """
    if pairs:
        s, y = pairs[-1]
        scale = float(y @ y) / float(s @ y)
    added: list[np.ndarray] = []
    taken: list[np.ndarray] = []
    for s, y in pairs:
        b = scale * s if hessian is None else hessian @ s
        for up, down in zip(added, taken, strict=True):
            b = b + up * (up @ s) - down * (down @ s)
        if not s @ b > 0:
            raise np.linalg.LinAlgError("rounding has spoiled the metric")
        added.append(y / np.sqrt(s @ y))
        taken.append(b / np.sqrt(s @ b))
    W = np.array(added + taken).reshape(-1, size)
    signs = np.repeat([1.0, -1.0], len(pairs))
    if hessian is None:
        return LowRank(scale, W, signs)
    return Dense(hessian + (signs * W.T) @ W)


def minimize_model(
    B: Metric, gradient: np.ndarray, h: L1Box, v: np.ndarray, tolerance: float
) -> np.ndarray:
    """The minimum ``u`` of the model about ``v``.

    Parameters
    ----------
    B : Metric
    gradient : ndarray, shape (size,)
        Of the smooth part at ``v``.
    h : L1Box
    v : ndarray, shape (size,)
        Within the bounds.
    tolerance : float
        Norm of the model's proximal gradient to end at.

    Raises
    ------
    numpy.linalg.LinAlgError
        Rounding has spoiled the metric.
    """
    u, r = v, gradient  # r is the gradient of the quadratic at u
    tolerance = max(tolerance, ROUNDING * float(np.linalg.norm(gradient)))
    for _ in range(SWEEPS):
        loose = _face(h, u)[-1] | (h.subgradient(u, r) != 0)
        work = np.flatnonzero(loose)
        found = _alternate(B.take(work), r[work], h.take(work), u[work], 0.5 * tolerance)
        moved = u.copy()
        moved[work] = found
        u, r = moved, r + B.product(moved - u)
        if np.linalg.norm(h.residual(u, r)) <= tolerance:
            break
    return u


def _alternate(B: Metric, r: np.ndarray, h: L1Box, u: np.ndarray, tolerance: float) -> np.ndarray:
    bound = B.bound
    for _ in range(TURNS):
        u, r = _newton(B, h, u, r)
        if np.linalg.norm(h.residual(u, r)) <= tolerance:
            break
        u, r = _accelerated(B, bound, h, u, r)
    return u


def _face(h: L1Box, u: np.ndarray) -> tuple[np.ndarray, ...]:
    """Signs that the penalty sees, the borders between which they hold, and what lies between."""
    sign = np.where(h.threshold > 0, np.sign(u), 0.0)
    low = np.where(sign > 0, np.maximum(h.lower, 0.0), h.lower)
    high = np.where(sign < 0, np.minimum(h.upper, 0.0), h.upper)
    free = (low < u) & (u < high) & ((sign != 0) | (h.threshold == 0))
    return sign, low, high, free


def _newton(B: Metric, h: L1Box, u: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newton steps on ever smaller faces, until one ends inside its own or is cut short."""
    while True:
        sign, low, high, free = _face(h, u)
        if not free.any():
            return u, r
        slope = r + h.threshold * sign
        d = np.zeros_like(u)
        d[free] = -B.take(np.flatnonzero(free)).solve(slope[free])
        for t in FRACTIONS:
            w = np.clip(u + t * d, low, high)
            change = B.product(w - u)
            fall = float(slope @ (w - u))
            if fall + 0.5 * float((w - u) @ change) <= ARMIJO * fall:
                break
        else:
            return u, r
        whole = t == 1.0
        inside = bool((w == u + d).all())
        u, r = w, r + change
        if inside or not whole:
            return u, r


def _accelerated(
    B: Metric, bound: float, h: L1Box, u: np.ndarray, r: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Proximal gradient steps with momentum, and without where it leads uphill."""
    ahead, r_ahead, momentum = u, r, 1.0
    for _ in range(RELEASES):
        w = h.prox(ahead - r_ahead / bound, 1.0 / bound)
        r_w = r + B.product(w - u)
        old = 1.0 if (ahead - w) @ (w - u) > 0 else momentum
        momentum = (1 + np.sqrt(1 + 4 * old * old)) / 2
        share = (old - 1) / momentum
        ahead, r_ahead = w + share * (w - u), r_w + share * (r_w - r)
        u, r = w, r_w
    return u, r
