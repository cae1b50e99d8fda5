"""A best point, a lower bound, and the gap between them: how far at most from the minimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np

from mllib_ext.optimizers.cuts import Bound, Cuts, Line
from mllib_ext.optimizers.loop import Rule, Settings, State


@dataclass(frozen=True)
class Certified(State):
    """The best point so far, and what is proved of it.

    Attributes
    ----------
    v : ndarray, shape (size,)
        Parameters of the lowest objective met; ``loss`` is their objective.
    lower : float
        What no objective is below.
    cuts : Cuts
        What proves it.
    bound : Bound or None
        By the cuts of now; those of before may have proved more.
    """

    told: ClassVar[tuple[str, ...]] = ("gap",)

    v: np.ndarray = field(default_factory=lambda: np.empty(0))
    lower: float = -np.inf
    cuts: Cuts = field(default_factory=Cuts)
    bound: Bound | None = None

    @property
    def gap(self) -> float:
        """The objective is at most so much above its minimum."""
        return max(0.0, self.loss - self.lower)

    def met(self, value: float, v: np.ndarray) -> Self:
        """After a point with that objective."""
        return replace(self, loss=float(value), v=v) if value < self.loss else self

    def with_cuts(self, curvature: np.ndarray, cuts: Sequence[Line], memory: int) -> Self:
        """After more cuts, of which so many are remembered."""
        known = self.cuts.joined(cuts, memory)
        bound = known.bound(curvature)
        return replace(self, cuts=known, bound=bound, lower=max(self.lower, bound.value))


def gap_is_small(losses: Sequence[float], state: Any, settings: Settings) -> bool:
    """``gap <= tol * loss``, or a hundredth of the first loss where the loss goes to 0."""
    return bool(state.gap <= settings.tol * max(abs(state.loss), 0.01 * abs(losses[0])))


STOPPING: dict[str, Rule] = {"gap": gap_is_small}
