"""L-BFGS (Nocedal 1980; Nocedal & Wright 2006, algorithms 7.4 and 7.5), started with curvature.

A round an iteration where the unit step holds; the line search costs two more where it does not.

Each iteration corrects an estimate of the inverse Hessian by the last moves. What is corrected is,
where the parameters are few, the Hessian at the start from a sample of the rows: it comes with the
first gradient, in the same round, and knows the correlations of the features, which plain L-BFGS
spends its iterations on (sampled curvature: Byrd, Chin, Neveitt & Nocedal 2011).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from mllib_ext.optimizers.line_search import Differentiable, search
from mllib_ext.optimizers.smooth import Point, SmoothSettings

SETTINGS = SmoothSettings
MEMORY = 10  # pairs kept, as in pyspark.ml
# Eigenvalues of the sampled Hessian below this share of its largest are rounding, or directions
# that the sample does not know.
RIDGE = 1e-8


@dataclass(frozen=True)
class Curvature(Point):
    """A point, and what is known of the Hessian.

    Attributes
    ----------
    pairs : tuple of (ndarray, ndarray)
        The last moves (s) and changes of the gradient (y), oldest first.
    factor : ndarray or None
        Lower Cholesky factor of the sampled Hessian at the start.
    """

    pairs: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    factor: np.ndarray | None = None


def start(objective: Differentiable, v: np.ndarray, settings: SmoothSettings) -> Curvature:
    """Evaluate the starting point, with its curvature where that is cheap."""
    value, gradient, hessian = objective.value_gradient_curvature(v)
    factor = None
    if hessian is not None and np.isfinite(hessian).all() and hessian.any():
        ridge = RIDGE * hessian.diagonal().max()
        # Rounding in float32 rows, or rows far off centre, can exceed the ridge: go without.
        with contextlib.suppress(scipy.linalg.LinAlgError):
            factor = scipy.linalg.cholesky(hessian + ridge * np.eye(len(v)), lower=True)
    norm = float(np.linalg.norm(gradient))
    return Curvature(value, norm, 0.0, False, v, gradient, (), factor)


def step(objective: Differentiable, state: Curvature, settings: SmoothSettings) -> Curvature:
    """One quasi-Newton move."""
    if not state.gradient.any():
        return replace(state, stalled=True)
    p = -two_loops(state.gradient, state.pairs, state.factor)
    # Without curvature the scale of the gradient means nothing: try a step of length 1 first.
    known = bool(state.pairs) or state.factor is not None
    trial = 1.0 if known else 1.0 / state.gradient_norm
    found = search(objective, state.v, state.loss, state.gradient, p, trial, longer=True)
    if found is None:
        if known:  # what is remembered may mislead: forget it and try once more
            return step(objective, replace(state, pairs=(), factor=None), settings)
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
        factor=state.factor,
    )


def two_loops(
    gradient: np.ndarray,
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...],
    factor: np.ndarray | None = None,
) -> np.ndarray:
    """The inverse Hessian's approximation times the gradient."""
    q = gradient.copy()
    alphas = []
    for s, y in reversed(pairs):
        alphas.append(float(s @ q) / float(s @ y))
        q -= alphas[-1] * y
    q = _first(q, factor)
    if pairs:
        s, y = pairs[-1]
        q *= float(s @ y) / float(y @ _first(y, factor))
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - float(y @ q) / float(s @ y)) * s
    return q


def _first(q: np.ndarray, factor: np.ndarray | None) -> np.ndarray:
    """The inverse Hessian before any correction times a vector; the identity without a sample."""
    if factor is None:
        return q.copy()
    solution: np.ndarray = scipy.linalg.cho_solve((factor, True), q, check_finite=False)
    return solution
