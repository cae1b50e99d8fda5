r"""Proximal quasi-Newton, for an L1 penalty, bounds, or both (Lee, Sun & Saunders 2014).

.. math::

    u = \arg\min_u \; g \cdot (u - v) + \tfrac12 (u - v) \cdot B (u - v) + h(u),
    \qquad v \leftarrow v + t (u - v)

A round an iteration where the unit step holds, two more where it does not. As in
:mod:`~mllib_ext.optimizers.lbfgs`, B is the Hessian of a sample of the rows, corrected by the last
moves where it misleads; with many parameters, the corrections alone. With bounds alone it is the
projected quasi-Newton method of Schmidt, van den Berg, Friedlander & Murphy (2009). Zeros are
exact, and what is held by a bound equals it. A start outside the bounds is moved to the nearest
point within.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mllib_ext.optimizers.composite import Composite, low_enough, nonsmooth
from mllib_ext.optimizers.lbfgs import SERVES, Pairs, factorised, ridged, with_pair
from mllib_ext.optimizers.line_search import ARMIJO, SHRINK, Found
from mllib_ext.optimizers.quadratic import metric, minimize_model
from mllib_ext.optimizers.smooth import Point, SmoothSettings
from mllib_ext.penalties import L1Box

SETTINGS = SmoothSettings
# The model is solved to this share of the proximal gradient: 0.1 costs a round or two more, 1e-6
# saves none.
MODEL = 1e-2
RELAX = 0.25  # of the damping goes on after a unit step; a half and a tenth do as well


@dataclass(frozen=True)
class Modelled(Point):
    """A point, and what is known of the Hessian. ``gradient`` is that of the smooth part.

    Attributes
    ----------
    pairs : tuple of (ndarray, ndarray)
        The last moves (s) and changes of the gradient (y), oldest first.
    hessian : ndarray or None
        Of a sample of the rows; positive definite.
    damping : float
        What it is multiplied with, 1 or more. A step cut short tells of curvature that the sample
        missed; unit steps have to hold again, for they alone end on zeros and bounds.
    """

    pairs: Pairs = ()
    hessian: np.ndarray | None = None
    damping: float = 1.0


def start(objective: Composite, v: np.ndarray, settings: SmoothSettings) -> Modelled:
    """Evaluate the nearest point within the bounds, with its curvature where that is cheap."""
    h = nonsmooth(objective, len(v))
    v = h.project(v)
    value, gradient, hessian = objective.value_gradient_curvature(v)
    norm = float(np.linalg.norm(h.residual(v, gradient)))
    return Modelled(value + h.value(v), norm, 0.0, False, v, gradient, (), definite(hessian))


def definite(hessian: np.ndarray | None) -> np.ndarray | None:
    """A sampled Hessian with a slight ridge; None where rounding leaves it indefinite even so."""
    return None if factorised(hessian) is None else ridged(hessian)


def step(objective: Composite, state: Modelled, settings: SmoothSettings) -> Modelled:
    """Minimise the model and move there, or part of the way."""
    if state.gradient_norm == 0:
        return replace(state, stalled=True)
    h = nonsmooth(objective, len(state.v))
    try:
        # Without curvature the scale of the gradient means nothing: try a step of length 1 first.
        damped = None if state.hessian is None else state.damping * state.hessian
        B = metric(len(state.v), state.gradient_norm, state.pairs, damped)
        u = minimize_model(B, state.gradient, h, state.v, MODEL * state.gradient_norm)
        found = search(objective, h, state, u)
    except np.linalg.LinAlgError:
        found = None
    if found is None:
        if state.pairs or state.hessian is not None:  # what is remembered may mislead
            return step(objective, replace(state, pairs=(), hessian=None, damping=1.0), settings)
        return replace(state, stalled=True)
    value, gradient, hessian = found.evaluation
    v = between(h, state.v, u, found.step)
    norm, hessian = float(np.linalg.norm(h.residual(v, gradient))), definite(hessian)
    pairs = with_pair(state.pairs, v - state.v, gradient - state.gradient)
    # A sample that serves needs no corrections, and those of another point would blur it.
    if hessian is not None and norm <= SERVES * state.gradient_norm:
        pairs = ()
    whole = found.step == 1.0
    return Modelled(
        loss=value + h.value(v),
        gradient_norm=norm,
        step_size=found.step,
        v=v,
        gradient=gradient,
        pairs=pairs,
        hessian=hessian,
        damping=max(1.0, RELAX * state.damping) if whole else state.damping / found.step,
    )


def between(h: L1Box, v: np.ndarray, u: np.ndarray, t: float) -> np.ndarray:
    """``v + t (u - v)``, without the rounding that would leave ``u`` or the bounds."""
    return u if t == 1.0 else h.project(v + t * (u - v))


def search(objective: Composite, h: L1Box, state: Modelled, u: np.ndarray) -> Found | None:
    """The longest of the steps 1, 1/2, 1/4, ... towards ``u`` that lowers the objective enough.

    The first is evaluated whole; one round evaluates the others (the margins are linear in the
    step, and ``h`` is known here).
    """
    v, p = state.v, u - state.v
    slope = float(state.gradient @ p)
    fall = slope + h.rise(v, u)
    if not fall < 0:
        return None
    smooth = state.loss - h.value(v)
    noise = objective.precision * max(abs(state.loss), 1e-300)

    first = objective.value_gradient_curvature(u)
    rise = h.rise(v, u)
    slopes = 0.5 * (slope + float(first[1] @ p)) + rise
    if low_enough(first[0] - smooth + rise, slopes, ARMIJO * fall, noise):
        return Found(1.0, first)
    steps = SHRINK
    while True:
        with np.errstate(over="ignore", invalid="ignore"):
            values, at_steps = objective.along(v, p, steps)
        rises = np.array([h.rise(v, between(h, v, u, t)) for t in steps])
        slopes = 0.5 * steps * (slope + at_steps) + rises
        low = low_enough(values - smooth + rises, slopes, ARMIJO * steps * fall, noise)
        if low.any():
            t = float(steps[np.argmax(low)])  # the longest: steps fall
            return Found(t, objective.value_gradient_curvature(between(h, v, u, t)))
        # A model that leads a thousand times too far is not worth another round; below rounding
        # there is nothing to find.
        modelled = bool(state.pairs) or state.hessian is not None
        if modelled or steps[-1] * abs(fall) <= noise:
            return None
        steps = steps[-1] * SHRINK
