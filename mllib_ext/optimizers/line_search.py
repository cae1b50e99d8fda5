"""A step length along a descent direction, many trials to a round where they cost little.

The first trial is evaluated whole, since it mostly holds. Where it does not, one round evaluates
the objective at a grid of steps (the margins of a linear predictor are linear in the step, so that
the data are read once), and a second one the gradient at the best of them. Of a network a trial
costs as much as a gradient: there, trials bisect, a round each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

# Nocedal & Wright (2006), section 3.1: Armijo's constant and the curvature condition's.
ARMIJO = 1e-4
CURVATURE = 0.9
# Powers of two about the first trial: down to a thousandth, up to a thousand times as far.
SHRINK = 2.0 ** -np.arange(1, 11)
GROW = 2.0 ** np.arange(10, 0, -1)
# Where each trial is a round: a step a million times shorter than the first is none.
TRIALS = 20


class Differentiable(Protocol):
    """What optimizers see of an objective.

    ``along`` is None where many steps cost as much as so many gradients.
    """

    @property
    def precision(self) -> float: ...

    def value_and_gradient(self, v: np.ndarray) -> tuple[float, np.ndarray]: ...

    def value_gradient_hessian(self, v: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]: ...

    def value_gradient_curvature(
        self, v: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray | None]: ...

    @property
    def along(
        self,
    ) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None: ...


@dataclass(frozen=True)
class Found:
    """A step and what was evaluated there: value, gradient and, where asked for, more."""

    step: float
    evaluation: tuple[Any, ...]


def search(
    objective: Differentiable,
    v: np.ndarray,
    value: float,
    gradient: np.ndarray,
    p: np.ndarray,
    trial: float,
    *,
    evaluate: Callable[[np.ndarray], tuple[Any, ...]] | None = None,
    longer: bool = False,
    ceiling: float | None = None,
) -> Found | None:
    """A step that lowers the objective enough, or None where there is none to be had.

    Parameters
    ----------
    objective : Differentiable
    v, value, gradient
        The point, and the objective and its gradient there.
    p : ndarray
        A descent direction.
    trial : float
        The step tried first.
    evaluate : callable, optional
        What to evaluate at a step; ``objective.value_and_gradient`` unless given.
    longer : bool
        Also refuse a step after which the objective still falls as steeply (Wolfe's second
        condition) and look for a longer one.
    ceiling : float, optional
        The value to lie below by Armijo's rule instead of ``value`` (non-monotone searches).
    """
    evaluate = evaluate or objective.value_and_gradient
    slope = float(gradient @ p)
    if not slope < 0:
        return None
    top = value if ceiling is None else ceiling
    noise = objective.precision * max(abs(value), 1e-300)

    def low_enough(t: Any, f: Any, df: Any) -> Any:
        # Near the optimum values no longer tell: there, slopes do (Hager & Zhang 2005, eq. 4.1).
        armijo = f <= top + ARMIJO * t * slope
        approximate = (f <= top + noise) & (np.abs(df) <= (1 - 2 * ARMIJO) * abs(slope))
        return np.isfinite(f) & (armijo | approximate)

    if objective.along is None:

        def judged(t: float, evaluation: tuple[Any, ...]) -> tuple[bool, bool]:
            f, df = evaluation[0], float(evaluation[1] @ p)
            low = bool(low_enough(t, f, df))
            return not low, longer and low and df < CURVATURE * slope

        return bisect(lambda t: evaluate(v + t * p), judged, trial, noise / abs(slope))

    first = evaluate(v + trial * p)
    f, df = first[0], float(first[1] @ p)
    if low_enough(trial, f, df) and not (longer and df < CURVATURE * slope):
        return Found(trial, first)

    steps = trial * (GROW if low_enough(trial, f, df) else SHRINK)
    while True:
        with np.errstate(over="ignore", invalid="ignore"):
            values, slopes = objective.along(v, p, steps)
        low = np.flatnonzero(low_enough(steps, values, slopes))
        # A first trial far too long needs a second grid; below rounding there is nothing to find.
        if len(low) or steps[0] > trial or steps[-1] * abs(slope) <= noise:
            break
        steps = steps[-1] * SHRINK
    if longer and len(low):
        best = low[np.argmin(values[low])]
    elif len(low):
        best = low[0]  # the longest: steps fall
    else:
        return Found(trial, first) if low_enough(trial, f, df) else None
    if steps[best] > trial and values[best] >= f:
        return Found(trial, first)
    return Found(float(steps[best]), evaluate(v + steps[best] * p))


def bisect(
    evaluate: Callable[[float], tuple[Any, ...]],
    judged: Callable[[float, tuple[Any, ...]], tuple[bool, bool]],
    trial: float,
    shortest: float,
) -> Found | None:
    """A step that is neither too long nor too short (Lewis & Overton 2013, algorithm 2.6).

    Parameters
    ----------
    evaluate : callable
        The objective at a step: one round.
    judged : callable
        ``judged(step, evaluation)``: whether the step is too long, and whether it is too short.
    trial : float
        The step tried first.
    shortest : float
        Up to here a step changes the objective by less than its rounding.

    Returns
    -------
    Found or None
        After :data:`TRIALS` the longest step that was not too long; None if there was none.
    """
    low, high, kept = 0.0, np.inf, None
    for _ in range(TRIALS):
        evaluation = evaluate(trial)
        too_long, too_short = judged(trial, evaluation)
        if too_long:
            high = trial
        else:
            low, kept = trial, Found(trial, evaluation)
            if not too_short:
                return kept
        trial = 2 * low if np.isinf(high) else (low + high) / 2
        if trial <= shortest:
            break
    return kept
