r"""Stochastic gradients over blocks: what partitions do with samples of their rows.

.. math::

    F(v) = \frac1W \sum_i w_i \, \ell_i(v) + \frac12 \sum_j r_j v_j^2, \qquad W = \sum_i w_i

A model is a pure function ``model(block, v, rng) -> (loss, gradient)``: sums over the block's rows
at flat parameters v, and of the shape of v. ``rng`` is for what it draws in training (dropout).
``model.value(block, v)`` is the loss alone, where nothing is drawn. Linear predictors are one
(:class:`Linear`), networks are others; nothing here knows more of them.

Every estimate divides by the weight that was drawn, so that a partition counts by its rows.

Where something is remembered by the partitions (a rule's moments, what a codec left out), they also
remember the parameters, and a round sends only what is new of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np

from mllib_ext.blockfile import Block, Handle
from mllib_ext.compact import dense
from mllib_ext.compression import Link, Memory, Wire
from mllib_ext.flights import Flights
from mllib_ext.losses import Loss
from mllib_ext.objective import Coordinates, Objective, Shifted, margins, value_and_gradient
from mllib_ext.optimizers.updates import own
from mllib_ext.partials import Walk
from mllib_ext.sampling import Draw, Steps, batches, held_out, taken


class Model(Protocol):
    """See above."""

    def __call__(
        self, block: Block, v: np.ndarray, rng: np.random.Generator | None = None
    ) -> tuple[float, np.ndarray]: ...

    def value(self, block: Block, v: np.ndarray) -> float: ...


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

    def __call__(
        self, block: Block, v: np.ndarray, rng: np.random.Generator | None = None
    ) -> tuple[float, np.ndarray]:
        block, here = self._seen(block), self.coordinates.to_data(v)
        value, by_coef, by_intercept = value_and_gradient(self.loss, block, *here)
        return value, self.coordinates.pull_back(dense(by_coef), by_intercept)

    def value(self, block: Block, v: np.ndarray) -> float:
        """The block's summed loss."""
        block, here = self._seen(block), self.coordinates.to_data(v)
        losses, _ = self.loss.value_and_gradient(block.y, margins(block, *here))
        return float(losses @ block.w)

    def _seen(self, block: Block) -> Block:
        return block if self.origin is None else replace(block, X=block.X - self.origin)


@dataclass(frozen=True)
class Stochastic:
    """A penalised mean loss, whole and by samples.

    Attributes
    ----------
    blocks : Blocks
        Or what runs the same rounds.
    model : callable
        ``model(block, v) -> (loss, gradient)``, sums over the block's rows.
    ridge : ndarray, shape (size,)
        :math:`r_j`, for a strength of 1.
    strength : float
    matrices : tuple of (int, int, int)
        Which parameters are matrices: where one begins, its rows and columns.
    """

    blocks: Any
    model: Model
    ridge: np.ndarray
    strength: float = 0.0
    matrices: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def of(cls, objective: Objective) -> Stochastic:
        """The objective of a linear predictor."""
        blocks, origin = objective.blocks, None
        if isinstance(objective.blocks, Shifted):
            blocks, origin = objective.blocks.blocks, objective.blocks.origin
        seen, penalty = objective.coordinates, objective.penalty
        d, k = len(penalty.scale), seen.n_outputs
        ridge = np.zeros_like(seen.zeros())
        ridge[: d * k] = np.repeat(penalty.scale, k)
        model = Linear(objective.loss, seen, origin)
        return cls(blocks, model, ridge, penalty.strength, ((0, d, k),))

    def regularized(self, strength: float) -> Stochastic:
        """With another strength of the penalty."""
        return replace(self, strength=strength)

    def value(self, v: np.ndarray) -> float:
        """``F(v)`` over all rows: one round."""
        (total,) = self.blocks.sum(partial(value, self.model), self.evaluated(v))
        return float(total) / self.blocks.weight_sum + self._penalty(v)

    def value_and_validation(
        self, v: np.ndarray, fraction: float, seed: int
    ) -> tuple[float, float]:
        """``F(v)`` over the rows that train, and the mean loss of those held out. One round.

        Raises
        ------
        ValueError
            None of the one or of the other have a weight.
        """
        stage = partial(value_and_validation, self.model, fraction, seed)
        there = self.evaluated(v, fraction, seed)
        loss, weight, validation, of_held_out = self.blocks.sum(stage, there)
        if not (weight > 0 and of_held_out > 0):
            raise ValueError(
                "param validationFraction: expected rows to train on and others to validate on, "
                f"found a weight of {weight:g} and of {of_held_out:g}"
            )
        return float(loss) / weight + self._penalty(v), float(validation) / of_held_out

    def evaluated(self, v: np.ndarray, fraction: float = 0.0, seed: int = 0) -> np.ndarray:
        """What ``model.value`` takes of ``v``; ``fraction`` of the rows are held out."""
        return v

    def _penalty(self, v: np.ndarray) -> float:
        return 0.5 * self.strength * float(self.ridge @ (v * v))

    def pull(self, v: np.ndarray) -> np.ndarray:
        """The gradient of the penalty."""
        pull: np.ndarray = self.strength * (self.ridge * v)
        return pull

    def gradient(
        self, v: np.ndarray, draw: Draw, wire: Wire | None = None, link: Link | None = None
    ) -> tuple[np.ndarray | None, Link | None]:
        """That of the mean loss over the rows drawn; None if no weight was. One round.

        With a wire at the parameters that the partitions have, which the link then knows.
        """
        if wire is None:
            slope, weight = self.blocks.sum(partial(sampled_gradient, self.model), v, draw.packed)
            return slope / weight if weight > 0 else None, link
        return self._exchanged(v, draw, wire, link, partial(gradient_sent, self.model))

    def moves(
        self,
        v: np.ndarray,
        draw: Draw,
        steps: Steps,
        wire: Wire | None = None,
        link: Link | None = None,
    ) -> tuple[np.ndarray | None, Link | None]:
        """How far the partitions go by steps of their own, a mean by weight. One round."""
        how = self.model, steps, self.strength * self.ridge
        if wire is None:
            walk = Walk(partial(moved, *how))
            total, weight = self.blocks.sum(walk, v, draw.packed)
            return total / weight if weight > 0 else None, link
        return self._exchanged(v, draw, wire, link, partial(moves_sent, *how))

    @contextmanager
    def flights(self) -> Iterator[GradientFlights]:
        """Gradients of groups of partitions, several under way at once; in a ``with``."""
        weights = {handle.partition: handle.weight_sum for handle in self.blocks.handles}
        shares = [sum(weights[p] for p in group) for group in self.blocks.groups]
        with self.blocks.flights() as flights:
            yield GradientFlights(
                flights, partial(sampled_gradient, self.model),
                [share / self.blocks.weight_sum for share in shares],
            )  # fmt: skip

    def recalled(self, link: Link | None) -> Link | None:
        """The link with all states on the driver. One round."""
        if link is None or link.kept is None:
            return link
        return replace(link, kept=self.blocks.recall(link.kept))

    def _exchanged(
        self, v: np.ndarray, draw: Draw, wire: Wire, link: Link | None, stage: Any
    ) -> tuple[np.ndarray | None, Link]:
        """The mean of what partitions send for the parameters that they have after this round."""
        link = link or Link(memory=wire.down.start(len(v)))
        message: Any
        if link.kept is None:
            message, memory, there = v, link.memory, v
        else:
            rng = np.random.default_rng([draw.seed, draw.epoch, draw.index])
            message, memory = wire.down.encode(v - link.there, link.memory, rng)
            there = link.there + wire.down.decode(message, len(v))
        (messages, weight), kept = self.blocks.update(
            partial(answered, stage, wire), both, link.kept, message, draw.packed
        )
        link = Link(kept, there, memory)
        if weight == 0:
            return None, link
        total = np.zeros_like(v)
        for sent in messages:
            total += wire.up.decode(sent, len(v))
        return total / weight, link


@dataclass(frozen=True)
class GradientFlights:
    """Mean gradients over what groups of partitions draw.

    Attributes
    ----------
    flights : Flights
    stage : callable
    shares : list of float
        Of all weight, by group.
    """

    flights: Flights
    stage: Any
    shares: list[float]

    def send(self, group: int, v: np.ndarray, draw: Draw) -> None:
        """Start on the gradient of a group at ``v``."""
        self.flights.send(group, self.stage, v, draw.packed)

    def receive(self) -> tuple[int, np.ndarray | None]:
        """The next group to arrive and its gradient; None if it drew no weight."""
        group, (slope, weight) = self.flights.receive()
        return group, slope / weight if weight > 0 else None


# --- stages --------------------------------------------------------------------------------------


def value(model: Model, block: Block, v: np.ndarray) -> tuple[Any]:
    """The block's summed loss."""
    return (model.value(block, v),)


def value_and_validation(
    model: Model, fraction: float, seed: int, block: Block, v: np.ndarray
) -> tuple[float, float, float, float]:
    """Summed loss and weight of a block's rows that train, and of those held out."""
    out = held_out(block.X, fraction, seed)
    sides = [taken(block, np.flatnonzero(side)) for side in (~out, out)]
    (loss, weight), (validation, of_held_out) = (
        (model.value(side, v) if side.n else 0.0, float(side.w.sum())) for side in sides
    )
    return loss, weight, validation, of_held_out


def sampled_gradient(
    model: Model, block: Block, v: np.ndarray, draw: tuple[Any, ...]
) -> tuple[np.ndarray, float]:
    """Summed gradient (size,) and weight of the rows that a block draws."""
    share = Draw(*draw)
    sample = share.training(block if share.count == 1 else taken(block, share.rows(block)))
    if not sample.n:
        return np.zeros_like(v), 0.0
    return model(sample, v, share.noise(sample))[1], float(sample.w.sum())


def walked(
    model: Model,
    steps: Steps,
    ridge: np.ndarray,
    n_rows: int,
    blocks: Iterable[Block],
    start: np.ndarray,
    memory: Memory,
    draw: Draw,
) -> tuple[np.ndarray, Memory, float]:
    """A partition's own stochastic gradient descent: where it ends, its memory, its weight.

    The weight counts with every pass that the draw goes through.
    """
    weight, rng, v, penalised = 0.0, None, start.copy(), bool(ridge.any())
    memory = own(memory)
    if draw.n_passes > 1:
        blocks = list(blocks)  # mapped files: nothing is read before it is used
    every = (batches(steps.fraction, share, n_rows, blocks) for share in draw.passes)
    for batch, passes in chain.from_iterable(every):
        share = float(batch.w.sum())
        if share > 0:
            rng = rng or draw.noise(batch)
            eta = steps.schedule.rate(passes / steps.fraction, passes)
            slope = model(batch, v, rng)[1]
            slope /= share
            if v.dtype != slope.dtype:  # a model's own precision is that of all its walk
                v, ridge = v.astype(slope.dtype), ridge.astype(slope.dtype)
                memory = own(memory, slope.dtype)
            pull = ridge * v if penalised else ridge
            memory = steps.rule.move(v, slope, pull, memory, eta)
            weight += share
    return v, memory, weight


def moved(
    model: Model,
    steps: Steps,
    ridge: np.ndarray,
    handle: Handle,
    blocks: Iterable[Block],
    start: np.ndarray,
    draw: tuple[Any, ...],
) -> tuple[np.ndarray, float]:
    """How far a partition came, times its weight; and the weight."""
    memory = steps.rule.start(len(start))
    v, _, weight = walked(model, steps, ridge, handle.n_rows, blocks, start, memory, Draw(*draw))
    return weight * (v - start), weight


# --- stages with a state: the parameters there, the memory of the rule, that of the codec up ------


def answered(
    stage: Any,
    wire: Wire,
    handle: Handle,
    blocks: Iterable[Block],
    state: Any,
    message: Any,
    packed: tuple[Any, ...],
) -> tuple[tuple[list[bytes], float], Any]:
    """A partition's message about ``stage`` at the parameters that it has now.

    ``message`` is what is new of them, encoded; all of them where there is no state yet.
    """
    draw = Draw(*packed)
    if state is None:
        v = message
        memory, sender = None, wire.up.start(len(v))
    else:
        there, memory, sender = state
        v = there + wire.down.decode(message, len(there))
    x, weight, memory = stage(handle, blocks, v, memory, draw)
    rng = np.random.default_rng([draw.seed, draw.epoch, draw.index, handle.partition])
    sent, sender = wire.up.encode(x, sender, rng)
    return ([sent], weight), (v, memory, sender)


def gradient_sent(
    model: Model, handle: Handle, blocks: Iterable[Block], v: np.ndarray, memory: Any, draw: Draw
) -> tuple[np.ndarray, float, Any]:
    """What :func:`sampled_gradient` adds up to in a partition; no rule has a memory here."""
    total, weight = np.zeros_like(v), 0.0
    for block in blocks:
        slope, share = sampled_gradient(model, block, v, draw.packed)
        total, weight = total + slope, weight + share
    return total, weight, memory


def moves_sent(
    model: Model,
    steps: Steps,
    ridge: np.ndarray,
    handle: Handle,
    blocks: Iterable[Block],
    v: np.ndarray,
    memory: Any,
    draw: Draw,
) -> tuple[np.ndarray, float, Memory]:
    """As :func:`moved`, by a rule that remembers the rounds before."""
    memory = steps.rule.start(len(v)) if memory is None else memory
    end, memory, weight = walked(model, steps, ridge, handle.n_rows, blocks, v, memory, draw)
    return weight * (end - v), weight, memory


def both(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    """Messages and weight of two neighbours."""
    return left[0] + right[0], left[1] + right[1]
