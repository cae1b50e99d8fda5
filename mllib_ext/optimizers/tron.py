"""Trust-region Newton with conjugate gradients (Lin & Moré 1999; Lin, Weng & Keerthi 2008).

For parameters too many for a Hessian: an iteration takes a round for each product with the Hessian
and one to evaluate the step. Constants are those that LIBLINEAR documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from mllib_ext.optimizers.line_search import Differentiable
from mllib_ext.optimizers.smooth import Point, SmoothSettings

SETTINGS = SmoothSettings
# A step is taken above the first share of the predicted fall; the radius shrinks below the second
# and grows above the third (Lin & Moré 1999, algorithm 5.1).
TAKEN, POOR, GOOD = 1e-4, 0.25, 0.75
SHRINK, SHRINK_LESS, GROW = 0.25, 0.5, 4.0
RESIDUAL = 0.1  # of the Newton equation, relative to the gradient


class Curved(Differentiable, Protocol):
    """What this optimizer sees of an objective.

    Attributes
    ----------
    groups : ndarray of int, shape (size,), or None
        As :func:`conjugate_gradients` takes them.
    """

    @property
    def groups(self) -> np.ndarray | None: ...

    def hvp(self, v: np.ndarray, p: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Trusted(Point):
    """A point, and the radius within which its quadratic model is trusted."""

    radius: float = 0.0


def start(objective: Curved, v: np.ndarray, settings: SmoothSettings) -> Trusted:
    """Evaluate the starting point; the first radius is the gradient's norm."""
    value, gradient = objective.value_and_gradient(v)
    norm = float(np.linalg.norm(gradient))
    return Trusted(value, norm, 0.0, False, v, gradient, norm)


def step(objective: Curved, state: Trusted, settings: SmoothSettings) -> Trusted:
    """Minimise the model within the radius; smaller ones until the objective falls."""
    radius, first = state.radius, not state.step_size
    while True:
        p, r = conjugate_gradients(
            lambda d: objective.hvp(state.v, d), state.gradient, RESIDUAL, radius, objective.groups
        )
        slope, length = float(state.gradient @ p), float(np.linalg.norm(p))
        # r = -gradient - Hp, so that the model falls by -(g'p + p'Hp / 2) = -(g'p - p'r) / 2.
        predicted = -0.5 * (slope - float(p @ r))
        noise = objective.precision * max(abs(state.loss), 1e-300)
        if not predicted > noise:
            return replace(state, stalled=True)
        value, gradient = objective.value_and_gradient(state.v + p)
        fall = state.loss - value
        radius = min(radius, length) if first else radius
        radius, first = next_radius(radius, length, slope, fall, predicted), False
        if fall > TAKEN * predicted:
            norm = float(np.linalg.norm(gradient))
            return Trusted(value, norm, length, False, state.v + p, gradient, radius)
        if fall <= 0 and abs(fall) <= noise:
            return replace(state, stalled=True)


def next_radius(radius: float, length: float, slope: float, fall: float, predicted: float) -> float:
    """The radius after a step of that length, by the parabola through the values at its ends."""
    bend = -fall - slope
    alpha = GROW if bend <= 0 else max(SHRINK, -0.5 * slope / bend)
    if fall < TAKEN * predicted:
        return min(max(alpha, SHRINK) * length, SHRINK_LESS * radius)
    if fall < POOR * predicted:
        return max(SHRINK * radius, min(alpha * length, SHRINK_LESS * radius))
    if fall < GOOD * predicted:
        return max(SHRINK * radius, min(alpha * length, GROW * radius))
    return max(radius, min(alpha * length, GROW * radius))


def conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray],
    gradient: np.ndarray,
    tolerance: float,
    radius: float = np.inf,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Steihaug's (1983) solution ``p`` of ``H p = -gradient`` within a radius, and its residual.

    Parameters that never meet in ``H`` are systems by themselves, each within its share of the
    radius. All go on together: a product serves every one that is not solved yet, and there are as
    many as the slowest needs. As one system they would need about the sum.

    Parameters
    ----------
    product : callable
        ``H @ d`` for a semidefinite H.
    gradient : ndarray, shape (size,)
    tolerance : float
        Norm of the residual to end at, relative to the gradient's.
    radius : float
    groups : ndarray of int, shape (size,), optional
        The system of each parameter; all in one if None.
    """
    n_groups = 1 if groups is None else int(groups.max()) + 1

    def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Scalar products (n_groups,)."""
        return np.array([a @ b]) if groups is None else np.bincount(groups, a * b, n_groups)

    def spread(factors: np.ndarray) -> Any:
        """Numbers of the groups as those of their parameters."""
        return factors[0] if groups is None else factors[groups]

    p, r = np.zeros_like(gradient), -gradient
    rr = dot(r, r)
    if not rr.any():
        return p, r
    end = tolerance * tolerance * rr
    bound = np.where(rr > 0, radius, 0.0) ** 2 * (rr / rr.sum())
    open_ = rr > end
    d = spread(open_) * r
    for _ in range(max(len(gradient), 5)):
        if not open_.any():
            break
        Hd = product(d)
        dHd, pd, dd, pp = dot(d, Hd), dot(p, d), dot(d, d), dot(p, p)
        curved = open_ & (dHd > 0)
        alpha = np.divide(rr, dHd, out=np.zeros_like(rr), where=curved)
        far = open_ & ~(curved & (pp + alpha * (2 * pd + alpha * dd) <= bound))
        if far.any():
            # A direction without curvature has no end if there is no radius.
            border = to_border(pd, dd, pp, bound) if np.isfinite(radius) else np.zeros_like(rr)
            alpha = np.where(far, border, alpha)
        step = spread(alpha)
        p, r = p + step * d, r - step * Hd
        before, rr = rr, dot(r, r)
        open_ = open_ & ~far & (rr > end)
        beta = np.divide(rr, before, out=np.zeros_like(rr), where=open_)
        d = spread(open_) * r + spread(beta) * d
    return p, r


def to_border(pd: np.ndarray, dd: np.ndarray, pp: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Steps along ``d`` from ``p`` to squared lengths ``bound``, by roots that do not cancel."""
    room = bound - pp
    root = np.sqrt(pd * pd + dd * room)
    with np.errstate(divide="ignore", invalid="ignore"):  # systems that are solved stay behind
        return np.where(pd >= 0, room / (pd + root), (root - pd) / dd)
