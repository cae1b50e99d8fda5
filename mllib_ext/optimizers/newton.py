"""Newton's method with the exact Hessian, damped by a line search.

One round an iteration: value, gradient and Hessian come from the same pass over the rows. The
system is solved on the driver, so that the number of parameters sets the price.

A full step that promised a fall within tolerance is the last one (the Newton decrement as a
stopping rule: Boyd & Vandenberghe 2004, algorithm 9.5): the error after it is of second order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.linalg

from mllib_ext.optimizers.line_search import Differentiable, search
from mllib_ext.optimizers.loop import SMOOTH, Rule, Settings, State
from mllib_ext.optimizers.smooth import Point, SmoothSettings

SETTINGS = SmoothSettings


@dataclass(frozen=True)
class Curved(Point):
    """A point with its Hessian; None where it has not been needed yet.

    ``promised`` is the fall of the objective that the step to this point promised.
    """

    hessian: np.ndarray | None = field(default=None)
    promised: float = math.nan


def decrement_is_small(losses: Sequence[float], state: State, settings: Settings) -> bool:
    """A full step led here that promised a fall of at most ``tol * |loss|``."""
    assert isinstance(state, Curved)
    return state.step_size == 1.0 and state.promised <= settings.tol * abs(state.loss)


STOPPING: dict[str, Rule] = SMOOTH | {"decrement": decrement_is_small}


def start(objective: Differentiable, v: np.ndarray, settings: SmoothSettings) -> Curved:
    """Evaluate the starting point."""
    value, gradient, hessian = objective.value_gradient_hessian(v)
    return Curved(value, float(np.linalg.norm(gradient)), 0.0, False, v, gradient, hessian)


def step(objective: Differentiable, state: Curved, settings: SmoothSettings) -> Curved:
    """One damped Newton move."""
    if state.hessian is None:
        hessian = objective.value_gradient_hessian(state.v)[2]
        state = replace(state, hessian=hessian)
    assert state.hessian is not None
    p = -solve(state.hessian, state.gradient)
    promised = -0.5 * float(state.gradient @ p)
    # After the last step a Hessian would not be used.
    last = promised <= settings.tol * abs(state.loss)
    evaluate = objective.value_and_gradient if last else objective.value_gradient_hessian
    found = search(objective, state.v, state.loss, state.gradient, p, 1.0, evaluate=evaluate)
    if found is None and state.gradient.any():
        # Rounding has spoiled a nearly singular Hessian: steepest descent still knows the way.
        p, trial, promised = -state.gradient, 1.0 / state.gradient_norm, math.nan
        found = search(
            objective, state.v, state.loss, state.gradient, p, trial, evaluate=evaluate, longer=True
        )
    if found is None:
        return replace(state, stalled=True)
    value, gradient, *rest = found.evaluation
    return Curved(
        loss=value,
        gradient_norm=float(np.linalg.norm(gradient)),
        step_size=found.step,
        v=state.v + found.step * p,
        gradient=gradient,
        hessian=rest[0] if rest else None,
        promised=promised,
    )


def solve(hessian: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The solution of least norm of ``hessian @ x = gradient``, for a semidefinite Hessian.

    Cholesky where it is safe. Otherwise (no penalty and dependent columns, or one intercept too
    many) by eigenvalues: directions without curvature, in which the gradient vanishes too, are
    left alone.
    """
    diagonal = hessian.diagonal()
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))  # to unit diagonal: safe at any units
    scaled = hessian / np.outer(scale, scale)
    np.fill_diagonal(scaled, 1.0)
    try:
        factor = scipy.linalg.cholesky(scaled, lower=True)
        # The smallest pivot bounds the condition number from below, cheaply.
        if factor.diagonal().min() ** 2 > 1e-11:
            return scipy.linalg.cho_solve((factor, True), gradient / scale) / scale
    except scipy.linalg.LinAlgError:
        pass
    values, vectors = scipy.linalg.eigh(scaled)
    # Rounding leaves eigenvalues of about n * eps where there should be zeros.
    kept = values > len(values) * np.finfo(float).eps * 8 * values[-1]
    basis = vectors[:, kept]
    solution: np.ndarray = basis @ ((basis.T @ (gradient / scale)) / values[kept]) / scale
    return solution
