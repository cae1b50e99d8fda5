"""L-BFGS (Nocedal 1980; Nocedal & Wright 2006, algorithms 7.4 and 7.5).

A round an iteration where the unit step holds; the line search costs two more where it does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mllib_ext.optimizers.line_search import Differentiable, search
from mllib_ext.optimizers.smooth import Point, SmoothSettings

SETTINGS = SmoothSettings
MEMORY = 10  # pairs kept, as in pyspark.ml


@dataclass(frozen=True)
class Curvature(Point):
    """A point, and the last moves (s) and changes of the gradient (y), oldest first."""

    pairs: tuple[tuple[np.ndarray, np.ndarray], ...] = ()


def start(objective: Differentiable, v: np.ndarray, settings: SmoothSettings) -> Curvature:
    """Evaluate the starting point."""
    value, gradient = objective.value_and_gradient(v)
    return Curvature(value, float(np.linalg.norm(gradient)), 0.0, False, v, gradient)


def step(objective: Differentiable, state: Curvature, settings: SmoothSettings) -> Curvature:
    """One quasi-Newton move."""
    if not state.gradient.any():
        return replace(state, stalled=True)
    p = -two_loops(state.gradient, state.pairs)
    # Without curvature the scale of the gradient means nothing: try a step of length 1 first.
    trial = 1.0 if state.pairs else 1.0 / state.gradient_norm
    found = search(objective, state.v, state.loss, state.gradient, p, trial, longer=True)
    if found is None:
        if state.pairs:  # the remembered curvature may mislead: forget it and try once more
            return step(objective, replace(state, pairs=()), settings)
        return replace(state, stalled=True)
    value, gradient = found.evaluation
    s, y = found.step * p, gradient - state.gradient
    # Rounding may spoil y when the step is tiny: such a pair would break positive definiteness.
    fits = s @ y > 1e-12 * np.linalg.norm(s) * np.linalg.norm(y)
    return Curvature(
        loss=value,
        gradient_norm=float(np.linalg.norm(gradient)),
        step_size=found.step,
        v=state.v + s,
        gradient=gradient,
        pairs=(*state.pairs, (s, y))[-MEMORY:] if fits else state.pairs,
    )


def two_loops(gradient: np.ndarray, pairs: tuple[tuple[np.ndarray, np.ndarray], ...]) -> np.ndarray:
    """The inverse Hessian's approximation times the gradient."""
    q = gradient.copy()
    alphas = []
    for s, y in reversed(pairs):
        alphas.append(float(s @ q) / float(s @ y))
        q -= alphas[-1] * y
    if pairs:
        s, y = pairs[-1]
        q *= float(s @ y) / float(y @ y)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - float(y @ q) / float(s @ y)) * s
    return q
