"""What minimizers of an objective share: settings, state, and running one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from mllib_ext.blas import one_thread
from mllib_ext.optimizers.loop import SMOOTH, Callback, Result, Settings, State, iterate, setting


@dataclass(frozen=True)
class SmoothSettings(Settings):
    """Settings of every minimizer of a smooth objective.

    Attributes
    ----------
    reg_param : float
        Strength of the penalty, 0 or more. A change starts the optimizer afresh where it stands.
    """

    reg_param: float = setting(0.0, low=0)


@dataclass(frozen=True)
class Point(State):
    """Parameters, with the objective's value and gradient there."""

    v: np.ndarray = field(default_factory=lambda: np.empty(0))
    gradient: np.ndarray = field(default_factory=lambda: np.empty(0))


class Minimizer(Protocol):
    """An optimizer's module: its settings, its start and its step."""

    SETTINGS: type[SmoothSettings]

    def start(self, objective: Any, v: np.ndarray, settings: Any) -> Any: ...

    def step(self, objective: Any, state: Any, settings: Any) -> Any: ...


def minimize(
    method: Any,
    objective: Callable[[float], Any],
    v: np.ndarray,
    settings: SmoothSettings,
    callbacks: Sequence[Callback] = (),
    drain: Callable[[], tuple[Any, ...]] = tuple,
) -> Result[Any]:
    """Run one optimizer from ``v`` to a stopping rule.

    Parameters
    ----------
    method : module
        :mod:`~mllib_ext.optimizers.gd`, :mod:`~mllib_ext.optimizers.lbfgs` or
        :mod:`~mllib_ext.optimizers.newton`: ``start(objective, v, settings) -> state`` and
        ``step(objective, state, settings) -> state``. Its ``STOPPING`` has rules of its own, its
        ``again(objective, state, settings)`` goes on under another objective in place of a start,
        its ``finish(state)`` is what a run ends with in place of the last state, its
        ``portable(objective, state)`` is as in :func:`~mllib_ext.optimizers.loop.iterate`.
    objective : callable
        ``objective(reg_param)``: a run may change the strength of the penalty.
    v : ndarray
        Where to start.
    settings : SmoothSettings
        ``method.SETTINGS(...)``.
    callbacks, drain
        As in :func:`~mllib_ext.optimizers.loop.iterate`.
    """

    def step(state: Any, now: SmoothSettings) -> Any:
        return method.step(objective(now.reg_param), state, now)

    def changed(state: Any, old: SmoothSettings, new: SmoothSettings) -> Any:
        if old.reg_param == new.reg_param:
            return state
        again = getattr(method, "again", lambda f, state, now: method.start(f, state.v, now))
        return again(objective(new.reg_param), state, new)

    def portable(state: Any, now: SmoothSettings) -> Any:
        convert = getattr(method, "portable", lambda f, state: state)
        return convert(objective(now.reg_param), state)

    with one_thread():
        state = method.start(objective(settings.reg_param), v, settings)
        rules = getattr(method, "STOPPING", SMOOTH)
        result: Result[Any] = iterate(
            step,
            state,
            settings,
            callbacks,
            stopping=rules,
            changed=changed,
            drain=drain,
            portable=portable,
        )
    finish = getattr(method, "finish", lambda state: state)
    return replace(result, state=finish(result.state))
