"""Which rows of a pass a round draws, and the mini-batches that a partition makes of them.

A pass goes through every row once. Each block shuffles its rows for the pass, by a generator seeded
with (seed, pass, partition, place): a round takes one of equal shares of them, the same under
retry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mllib_ext.optimizers.schedules import Schedule
from mllib_ext.optimizers.updates import Rule

if TYPE_CHECKING:
    from mllib_ext.blockfile import Block


@dataclass(frozen=True)
class Draw:
    """The rows that a round takes of a pass: one of ``count`` equal shares.

    Attributes
    ----------
    seed, epoch : int
        The shuffle: of a run and a pass.
    index, count : int
    """

    seed: int
    epoch: int
    index: int
    count: int

    @property
    def packed(self) -> tuple[int, int, int, int]:
        """The same as plain numbers: a round sends no more."""
        return self.seed, self.epoch, self.index, self.count

    def rows(self, block: Block) -> np.ndarray:
        """Places of the block's rows that are drawn, in random order."""
        rng = np.random.default_rng([self.seed, self.epoch, block.partition, block.start])
        order = rng.permutation(block.n)
        # Of few rows most shares are empty: not the same ones in every block.
        index = (self.index + int(rng.integers(self.count))) % self.count
        low, high = (block.n * i // self.count for i in (index, index + 1))
        return order[low:high]


@dataclass(frozen=True)
class Steps:
    """How a partition goes through the rows that it drew.

    Attributes
    ----------
    rule : Rule
    schedule : Schedule
    fraction : float
        Of a partition's rows, in a mini-batch; a batch ends with its block.
    """

    rule: Rule
    schedule: Schedule
    fraction: float


def taken(block: Block, rows: np.ndarray | slice) -> Block:
    """Some rows of a block. Arrays that tell where a block stands in its file stay behind."""
    y, id = (a[rows] if len(a) else a for a in (block.y, block.id))
    return replace(block, X=block.X[rows], y=y, w=block.w[rows], id=id, columns=None, places=None)


def batches(
    fraction: float, draw: Draw, n_rows: int, blocks: Iterable[Block]
) -> Iterator[tuple[Block, float]]:
    """Mini-batches of what is drawn from a partition, and the passes up to the middle of each."""
    size = max(1, round(fraction * n_rows))
    done = 0
    for block in blocks:
        sample = taken(block, draw.rows(block))
        cuts = np.linspace(0, sample.n, -(-sample.n // size) + 1).astype(int)
        for low, high in pairwise(cuts):
            batch = taken(sample, slice(low, high))
            done += batch.n
            middle = (done - batch.n / 2) / n_rows
            yield batch, draw.epoch + draw.index / draw.count + middle
