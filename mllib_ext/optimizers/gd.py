r"""Distributed gradient descent.

Every node computes the gradient of the loss over its own rows; the driver adds the gradients up,
each weighted by its rows, and moves against the sum:

.. math::

    \theta \leftarrow \theta - \eta \frac{1}{|S|} \sum_i |S_i| \, \nabla L_i(\theta)

``objective.value_and_gradient`` is that sum over the nodes (one round); this module is the rest:
where the step :math:`\eta` comes from.

- ``none``: :math:`\eta` is ``step_size``, in every round.
- ``armijo``: halved from ``step_size`` until the loss falls enough (Armijo 1966).
- ``barzilai-borwein``: from the last two gradients (Barzilai & Borwein 1988), kept in check by
  the largest of the last ten losses (Raydan 1997); ``step_size`` is the first step.
- ``nesterov``: ``step_size`` and momentum, restarted when it leads uphill (Nesterov 1983;
  O'Donoghue & Candes 2015, gradient scheme).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from mllib_ext.optimizers.line_search import Differentiable, search
from mllib_ext.optimizers.loop import setting
from mllib_ext.optimizers.smooth import Point, SmoothSettings

LINE_SEARCHES = ("none", "armijo", "barzilai-borwein", "nesterov")
MEMORY = 10  # losses that Barzilai-Borwein looks back on (Raydan 1997)


@dataclass(frozen=True)
class GradientDescentSettings(SmoothSettings):
    """Settings of gradient descent.

    Attributes
    ----------
    step_size : float
        The learning rate, above 0; how it is used depends on ``line_search``.
    line_search : str
        ``none``, ``armijo``, ``barzilai-borwein`` or ``nesterov``.
    """

    step_size: float = setting(1.0, low=0, low_open=True)
    line_search: str = setting("barzilai-borwein", choices=LINE_SEARCHES)


SETTINGS = GradientDescentSettings


@dataclass(frozen=True)
class Descent(Point):
    """A point, the last move, and what the line searches remember."""

    moved: np.ndarray = field(default_factory=lambda: np.empty(0))  # v - previous v
    turned: np.ndarray = field(default_factory=lambda: np.empty(0))  # gradient - previous gradient
    losses: tuple[float, ...] = ()
    base: np.ndarray = field(default_factory=lambda: np.empty(0))  # nesterov: before momentum
    momentum: float = 1.0


def start(objective: Differentiable, v: np.ndarray, settings: GradientDescentSettings) -> Descent:
    """Evaluate the starting point."""
    value, gradient = objective.value_and_gradient(v)
    norm = float(np.linalg.norm(gradient))
    zero = np.zeros_like(v)
    return Descent(value, norm, 0.0, False, v, gradient, zero, zero, (value,), v, 1.0)


def step(objective: Differentiable, state: Descent, settings: GradientDescentSettings) -> Descent:
    """One move against the gradient."""
    match settings.line_search:
        case "none":
            return _move(objective, state, settings.step_size)
        case "nesterov":
            return _accelerated(objective, state, settings.step_size)
        case "armijo":
            # Twice the last step lets it grow again; step_size is its limit, also when it changes.
            trial = min(settings.step_size, 2 * state.step_size or settings.step_size)
            return _searched(objective, state, trial, ceiling=state.loss)
        case _:
            trial = _barzilai_borwein(state) or settings.step_size
            return _searched(objective, state, trial, ceiling=max(state.losses))


def _move(objective: Differentiable, state: Descent, eta: float) -> Descent:
    """theta <- theta - eta * gradient: the whole of plain gradient descent."""
    theta = state.v - eta * state.gradient
    return _arrived(state, eta, theta, *objective.value_and_gradient(theta))


def _searched(objective: Differentiable, state: Descent, trial: float, ceiling: float) -> Descent:
    found = search(
        objective, state.v, state.loss, state.gradient, -state.gradient, trial, ceiling=ceiling
    )
    if found is None:
        return replace(state, stalled=True)
    value, gradient = found.evaluation
    return _arrived(state, found.step, state.v - found.step * state.gradient, value, gradient)


def _barzilai_borwein(state: Descent) -> float:
    """The step that fits the last change of the gradient, s's / s'y; 0 without one."""
    curvature = float(state.moved @ state.turned)
    return float(state.moved @ state.moved) / curvature if curvature > 0 else 0.0


def _accelerated(objective: Differentiable, state: Descent, eta: float) -> Descent:
    """One gradient step from the extrapolated point, which is where losses are measured."""
    base = state.v - eta * state.gradient
    uphill = float(state.gradient @ (base - state.base)) > 0
    old = 1.0 if uphill else state.momentum
    momentum = (1 + np.sqrt(1 + 4 * old * old)) / 2
    theta = base if uphill else base + (old - 1) / momentum * (base - state.base)
    arrived = _arrived(state, eta, theta, *objective.value_and_gradient(theta))
    return replace(arrived, base=base, momentum=1.0 if uphill else float(momentum))


def _arrived(
    state: Descent, eta: float, theta: np.ndarray, value: float, gradient: np.ndarray
) -> Descent:
    return replace(
        state,
        loss=value,
        gradient_norm=float(np.linalg.norm(gradient)),
        step_size=eta,
        v=theta,
        gradient=gradient,
        moved=theta - state.v,
        turned=gradient - state.gradient,
        losses=(*state.losses, value)[-MEMORY:],
        base=theta,
    )
