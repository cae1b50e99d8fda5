"""Trust-region Newton with conjugate gradients (Lin & Moré 1999; Lin, Weng & Keerthi 2008).

For parameters too many for a Hessian: an iteration takes a round for each product with the Hessian
and one to evaluate the step. Constants are those that LIBLINEAR documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

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
    """What this optimizer sees of an objective."""

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
            lambda d: objective.hvp(state.v, d), state.gradient, RESIDUAL, radius
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
) -> tuple[np.ndarray, np.ndarray]:
    """Steihaug's (1983) solution ``p`` of ``H p = -gradient`` within a radius, and its residual.

    Parameters
    ----------
    product : callable
        ``H @ d`` for a semidefinite H.
    gradient : ndarray, shape (size,)
    tolerance : float
        Norm of the residual to end at, relative to the gradient's.
    radius : float
    """
    p, r = np.zeros_like(gradient), -gradient
    d, rr = r, float(r @ r)
    end = tolerance * np.sqrt(rr)
    for _ in range(max(len(gradient), 5)):
        if np.sqrt(rr) <= end:
            break
        Hd = product(d)
        dHd = float(d @ Hd)
        alpha = rr / dHd if dHd > 0 else np.inf
        if not np.linalg.norm(p + alpha * d) <= radius:
            if radius == np.inf:  # a direction without curvature has no end
                break
            alpha = to_border(p, d, radius)
            return p + alpha * d, r - alpha * Hd
        p, r = p + alpha * d, r - alpha * Hd
        d, rr = r + (float(r @ r) / rr) * d, float(r @ r)
    return p, r


def to_border(p: np.ndarray, d: np.ndarray, radius: float) -> float:
    """The step along ``d`` from ``p`` to the radius, by the root that does not cancel."""
    pd, dd, pp = float(p @ d), float(d @ d), float(p @ p)
    room = radius * radius - pp
    root = np.sqrt(pd * pd + dd * room)
    return room / (pd + root) if pd >= 0 else (root - pd) / dd
