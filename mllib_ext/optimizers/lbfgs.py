"""L-BFGS (Nocedal 1980; Nocedal & Wright 2006, algorithms 7.4 and 7.5) over sampled curvature.

A round an iteration where the unit step holds; the line search costs two more where it does not.

Each iteration corrects an estimate of the inverse Hessian by the last moves. What is corrected is,
where the parameters are few, the Hessian of a sample of the rows, which comes with each gradient
in the same round (sub-sampled Newton: Byrd, Chin, Neveitt & Nocedal 2011; Bollapragada, Byrd &
Nocedal 2019). A good sample makes the method Newton's; where it misleads, as it may for rare
features, the corrections take over. With many parameters it is plain L-BFGS.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from mllib_ext.optimizers.line_search import Differentiable, search
from mllib_ext.optimizers.smooth import Point, SmoothSettings

SETTINGS = SmoothSettings
# A sample serves while each step divides the gradient by two or more.
SERVES = 0.5
MEMORY = 10  # pairs kept, as in pyspark.ml
# Eigenvalues of the sampled Hessian below this share of its largest are rounding, or directions
# that the sample does not know.
RIDGE = 1e-8
# Moves s and changes of the gradient y, oldest first.
Pairs = tuple[tuple[np.ndarray, np.ndarray], ...]


@dataclass(frozen=True)
class Curvature(Point):
    """A point, and what is known of the Hessian.

    Attributes
    ----------
    pairs : tuple of (ndarray, ndarray)
        The last moves (s) and changes of the gradient (y), oldest first.
    factor : ndarray or None
        Lower Cholesky factor of the sampled Hessian here.
    """

    pairs: Pairs = ()
    factor: np.ndarray | None = None


def start(objective: Differentiable, v: np.ndarray, settings: SmoothSettings) -> Curvature:
    """Evaluate the starting point, with its curvature where that is cheap."""
    value, gradient, hessian = objective.value_gradient_curvature(v)
    norm = float(np.linalg.norm(gradient))
    return Curvature(value, norm, 0.0, False, v, gradient, (), factorised(hessian))


def factorised(hessian: np.ndarray | None) -> np.ndarray | None:
    """Its lower Cholesky factor with a slight ridge; None where there is none to be had."""
    hessian = ridged(hessian)
    # Rounding in float32 rows, or rows far off centre, can exceed the ridge: go without.
    with contextlib.suppress(scipy.linalg.LinAlgError):
        return None if hessian is None else scipy.linalg.cholesky(hessian, lower=True)
    return None


def ridged(hessian: np.ndarray | None) -> np.ndarray | None:
    """A sampled Hessian with a slight ridge; None where it says nothing."""
    if hessian is None or not np.isfinite(hessian).all() or not hessian.any():
        return None
    return hessian + RIDGE * hessian.diagonal().max() * np.eye(len(hessian))


def step(objective: Differentiable, state: Curvature, settings: SmoothSettings) -> Curvature:
    """One quasi-Newton move."""
    if not state.gradient.any():
        return replace(state, stalled=True)
    p = -two_loops(state.gradient, state.pairs, state.factor)
    # Without curvature the scale of the gradient means nothing: try a step of length 1 first.
    known = bool(state.pairs) or state.factor is not None
    trial = 1.0 if known else 1.0 / state.gradient_norm
    evaluate = objective.value_gradient_curvature
    found = search(
        objective, state.v, state.loss, state.gradient, p, trial, longer=True, evaluate=evaluate
    )
    if found is None:
        if known:  # what is remembered may mislead: forget it and try once more
            return step(objective, replace(state, pairs=(), factor=None), settings)
        return replace(state, stalled=True)
    value, gradient, hessian = found.evaluation
    norm, factor = float(np.linalg.norm(gradient)), factorised(hessian)
    s = found.step * p
    pairs = with_pair(state.pairs, s, gradient - state.gradient)
    # A sample that serves needs no corrections, and those of another point would blur it.
    if factor is not None and norm <= SERVES * state.gradient_norm:
        pairs = ()
    return Curvature(
        loss=value,
        gradient_norm=norm,
        step_size=found.step,
        v=state.v + s,
        gradient=gradient,
        pairs=pairs,
        factor=factor,
    )


def with_pair(pairs: Pairs, s: np.ndarray, y: np.ndarray) -> Pairs:
    """The last moves and changes of the gradient with one more, if it tells of curvature."""
    # Rounding may spoil y when the step is tiny: such a pair would break positive definiteness.
    fits = s @ y > 1e-12 * np.linalg.norm(s) * np.linalg.norm(y)
    return (*pairs, (s, y))[-MEMORY:] if fits else pairs


def two_loops(
    gradient: np.ndarray,
    pairs: Pairs,
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
        return q
    solution: np.ndarray = scipy.linalg.cho_solve((factor, True), q, check_finite=False)
    return solution
