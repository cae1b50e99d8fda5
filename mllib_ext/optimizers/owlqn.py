r"""OWL-QN, L-BFGS for an L1 penalty (Andrew & Gao 2007).

Within an orthant the penalty is linear. Each step takes the pseudo-gradient in place of the
gradient, and stays in the orthant of its point: of the direction, what points against the
pseudo-gradient is dropped, and what would change its sign on the way becomes 0. The pairs are those
of the smooth part.

It is pyspark.ml's solver of that name. :mod:`~mllib_ext.optimizers.proximal` needs a fraction of
its rounds, and takes bounds too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mllib_ext.optimizers.composite import Composite, low_enough, nonsmooth
from mllib_ext.optimizers.lbfgs import Pairs, two_loops, with_pair
from mllib_ext.optimizers.line_search import ARMIJO, Found
from mllib_ext.optimizers.smooth import Point, SmoothSettings
from mllib_ext.penalties import L1Box

SETTINGS = SmoothSettings


@dataclass(frozen=True)
class Orthant(Point):
    """A point and the last moves (s) and changes of the gradient (y), oldest first.

    ``gradient`` is that of the smooth part.
    """

    pairs: Pairs = ()


def start(objective: Composite, v: np.ndarray, settings: SmoothSettings) -> Orthant:
    """Evaluate the starting point.

    Raises
    ------
    ValueError
        The objective has bounds.
    """
    h = nonsmooth(objective, len(v))
    if h.bounded:
        raise ValueError("solver owl-qn: expected no bounds, found some; solver auto takes them")
    value, gradient = objective.value_and_gradient(v)
    norm = float(np.linalg.norm(h.residual(v, gradient)))
    return Orthant(value + h.value(v), norm, 0.0, False, v, gradient)


def step(objective: Composite, state: Orthant, settings: SmoothSettings) -> Orthant:
    """One quasi-Newton move within an orthant."""
    h = nonsmooth(objective, len(state.v))
    steepest = h.subgradient(state.v, state.gradient)
    if not steepest.any():
        return replace(state, stalled=True)
    p = -two_loops(steepest, state.pairs)
    p[(p * steepest >= 0) & (h.threshold > 0)] = 0.0
    trial = 1.0 if state.pairs else 1.0 / float(np.linalg.norm(steepest))
    found = search(objective, h, state, steepest, p, trial)
    if found is None:
        if state.pairs:  # what is remembered may mislead: forget it and try once more
            return step(objective, replace(state, pairs=()), settings)
        return replace(state, stalled=True)
    value, gradient = found.evaluation
    v = within_orthant(h, state.v, steepest, state.v + found.step * p)
    return Orthant(
        loss=value + h.value(v),
        gradient_norm=float(np.linalg.norm(h.residual(v, gradient))),
        step_size=found.step,
        v=v,
        gradient=gradient,
        pairs=with_pair(state.pairs, v - state.v, gradient - state.gradient),
    )


def within_orthant(h: L1Box, v: np.ndarray, steepest: np.ndarray, u: np.ndarray) -> np.ndarray:
    """``u`` with 0 where a penalised parameter has left the orthant of ``v``.

    A parameter of 0 belongs to the orthant that it is about to enter, against its pseudo-gradient.
    """
    orthant = np.where(v != 0, np.sign(v), -np.sign(steepest))
    left = (np.sign(u) != orthant) & (h.threshold > 0)
    return np.where(left, 0.0, u)


def search(
    objective: Composite,
    h: L1Box,
    state: Orthant,
    steepest: np.ndarray,
    p: np.ndarray,
    trial: float,
) -> Found | None:
    """The first of the steps ``trial``, half of it, ... that lowers the objective enough.

    A round each: points that are cut off at an orthant's border do not lie on a line.
    """
    smooth = state.loss - h.value(state.v)
    noise = objective.precision * max(abs(state.loss), 1e-300)
    t = trial
    while True:
        u = within_orthant(h, state.v, steepest, state.v + t * p)
        moved = u - state.v
        fall = float(steepest @ moved)
        value, gradient = objective.value_and_gradient(u)
        rise = h.rise(state.v, u)
        slopes = 0.5 * float((state.gradient + gradient) @ moved) + rise
        if low_enough(value - smooth + rise, slopes, ARMIJO * fall, noise):
            return Found(t, (value, gradient))
        if abs(fall) <= noise:
            return None
        t /= 2
