r"""Stochastic gradients over blocks: what partitions do with samples of their rows.

.. math::

    F(v) = \frac1W \sum_i w_i \, \ell_i(v) + \frac12 \sum_j r_j v_j^2, \qquad W = \sum_i w_i

A model is a pure function ``model(block, v) -> (loss, gradient)``: sums over the block's rows at
flat parameters v, and of the shape of v. Linear predictors are one (:class:`Linear`), networks are
others; nothing here knows more of them.

Every estimate divides by the weight that was drawn, so that a partition counts by its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from mllib_ext.blockfile import Block
from mllib_ext.losses import Loss
from mllib_ext.objective import Coordinates, Objective, Shifted, value_and_gradient
from mllib_ext.partials import Walk
from mllib_ext.sampling import Draw, Steps, batches, taken
from mllib_ext.scattered import dense

Model = Callable[[Block, np.ndarray], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Linear:
    """The loss of a linear predictor by flat standardised parameters, as a model.

    Attributes
    ----------
    loss : Loss
    coordinates : Coordinates
        Of rows about ``origin``.
    origin : ndarray, shape (d,), optional
        Where dense rows are seen from.
    """

    loss: Loss
    coordinates: Coordinates
    origin: np.ndarray | None = None

    def __call__(self, block: Block, v: np.ndarray) -> tuple[float, np.ndarray]:
        if self.origin is not None:
            block = replace(block, X=block.X - self.origin)
        here = self.coordinates.to_data(v)
        value, by_coef, by_intercept = value_and_gradient(self.loss, block, *here)
        return value, self.coordinates.pull_back(dense(by_coef), by_intercept)


class Samples(Protocol):
    """What is asked of a data set; :class:`mllib_ext.blocks.Blocks` is one."""

    @property
    def n_rows(self) -> int: ...

    @property
    def weight_sum(self) -> float: ...

    def sum(self, stage: Any, *parameters: Any) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class Stochastic:
    """A penalised mean loss, whole and by samples.

    Attributes
    ----------
    blocks : Samples
    model : callable
        ``model(block, v) -> (loss, gradient)``, sums over the block's rows.
    ridge : ndarray, shape (size,)
        :math:`r_j`, for a strength of 1.
    strength : float
    """

    blocks: Samples
    model: Model
    ridge: np.ndarray
    strength: float = 0.0

    @classmethod
    def of(cls, objective: Objective) -> Stochastic:
        """The objective of a linear predictor."""
        blocks, origin = objective.blocks, None
        if isinstance(objective.blocks, Shifted):
            blocks, origin = objective.blocks.blocks, objective.blocks.origin
        seen, penalty = objective.coordinates, objective.penalty
        ridge = np.zeros_like(seen.zeros())
        each = np.repeat(penalty.scale, seen.n_outputs)
        ridge[: len(each)] = each
        return cls(blocks, Linear(objective.loss, seen, origin), ridge, penalty.strength)

    def regularized(self, strength: float) -> Stochastic:
        """With another strength of the penalty."""
        return replace(self, strength=strength)

    def value(self, v: np.ndarray) -> float:
        """``F(v)`` over all rows: one round."""
        (total,) = self.blocks.sum(partial(value, self.model), v)
        return float(total) / self.blocks.weight_sum + self.penalty(v)

    def penalty(self, v: np.ndarray) -> float:
        """The penalty alone."""
        return 0.5 * self.strength * float(self.ridge @ (v * v))

    def pull(self, v: np.ndarray) -> np.ndarray:
        """The gradient of the penalty."""
        pull: np.ndarray = self.strength * (self.ridge * v)
        return pull

    def gradient(self, v: np.ndarray, draw: Draw) -> np.ndarray | None:
        """That of the mean loss over the rows drawn; None if no weight was. One round."""
        slope, weight = self.blocks.sum(partial(sampled_gradient, self.model), v, draw)
        return slope / weight if weight > 0 else None

    def moves(self, v: np.ndarray, draw: Draw, steps: Steps) -> np.ndarray | None:
        """How far the partitions go by steps of their own, a mean by weight. One round."""
        pull = (self.ridge, self.strength)
        walk = Walk(partial(walked, self.model, steps, pull))
        moved, weight = self.blocks.sum(walk, v, draw)
        return moved / weight if weight > 0 else None


# --- stages --------------------------------------------------------------------------------------


def value(model: Model, block: Block, v: np.ndarray) -> tuple[Any]:
    """The block's summed loss."""
    return (model(block, v)[0],)


def sampled_gradient(
    model: Model, block: Block, v: np.ndarray, draw: Draw
) -> tuple[np.ndarray, float]:
    """Summed gradient (size,) and weight of the rows that a block draws."""
    sample = block if draw.count == 1 else taken(block, draw.rows(block))
    if not sample.n:
        return np.zeros_like(v), 0.0
    return model(sample, v)[1], float(sample.w.sum())


def walked(
    model: Model,
    steps: Steps,
    pull: tuple[np.ndarray, float],
    n_rows: int,
    blocks: Iterable[Block],
    start: np.ndarray,
    draw: Draw,
) -> tuple[np.ndarray, float]:
    """A partition's own stochastic gradient descent: how far it came, times its weight."""
    v, memory, weight = start, steps.rule.start(len(start)), 0.0
    ridge = pull[1] * pull[0]
    for batch, passes in batches(steps.fraction, draw, n_rows, blocks):
        share = float(batch.w.sum())
        if share > 0:
            eta = steps.schedule.rate(passes / steps.fraction, passes)
            slope = model(batch, v)[1] / share
            v, memory = steps.rule.move(v, slope, ridge * v, memory, eta)
            weight += share
    return weight * (v - start), weight
