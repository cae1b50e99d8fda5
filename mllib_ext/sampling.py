"""Which rows of a pass a round draws, and the mini-batches that a partition makes of them.

A pass goes through every row once. Each block shuffles its rows for the pass, by a generator seeded
with (seed, pass, partition, place): a round takes one of equal shares of them, the same under
retry.

Rows that are held out for validation are told by what they are, not by where they stand: the same
ones whatever the order of the rows and their partitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

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
    held_out : float
        The share of all rows that no round draws (:func:`held_out`), in [0, 1).
    n_passes : int
        How many passes it goes through, this one first; more than one of whole passes alone.
    """

    seed: int
    epoch: int
    index: int
    count: int
    held_out: float = 0.0
    n_passes: int = 1

    @property
    def packed(self) -> tuple[int, int, int, int, float, int]:
        """The same as plain numbers: a round sends no more."""
        return self.seed, self.epoch, self.index, self.count, self.held_out, self.n_passes

    @property
    def passes(self) -> list[Draw]:
        """One draw for each of its passes."""
        epochs = range(self.epoch, self.epoch + self.n_passes)
        return [replace(self, epoch=epoch, n_passes=1) for epoch in epochs]

    def training(self, rows: Block) -> Block:
        """Those of some rows that are not held out."""
        if not self.held_out:
            return rows
        return taken(rows, np.flatnonzero(~held_out(rows.X, self.held_out, self.seed)))

    def noise(self, rows: Block) -> np.random.Generator:
        """What a model draws besides rows: the same under retry."""
        place = rows.partition, rows.start
        return np.random.default_rng([self.seed, self.epoch, self.index, *place])

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


def held_out(X: Any, fraction: float, seed: int) -> np.ndarray:
    """Which rows (n,) are held out: about ``fraction`` of them, equal ones together.

    By a hash of the row's bits: a sum of them times random odd factors modulo 2**64, mixed by the
    finalizer of SplitMix64 (Steele, Lea & Flood 2014).

    Parameters
    ----------
    X : ndarray or scipy.sparse.csr_array, shape (n, d)
    fraction : float
        In [0, 1].
    seed : int
    """
    factors = _factors(seed, X.shape[1])
    with np.errstate(over="ignore"):
        if isinstance(X, np.ndarray):
            bits = np.ascontiguousarray(X).view(f"u{X.dtype.itemsize}")
            z = np.einsum("ij,j->i", bits, factors, dtype=np.uint64)
        else:
            bits = X.data.view(f"u{X.dtype.itemsize}").astype(np.uint64)
            z = sp.csr_array((bits, X.indices, X.indptr), shape=X.shape) @ factors
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    unit = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53
    return np.asarray(unit < fraction)


@lru_cache(maxsize=2)
def _factors(seed: int, d: int) -> np.ndarray:
    return np.random.default_rng([seed, d]).integers(0, 1 << 64, d, np.uint64) | np.uint64(1)


def batches(
    fraction: float, draw: Draw, n_rows: int, blocks: Iterable[Block]
) -> Iterator[tuple[Block, float]]:
    """Mini-batches of what is drawn from a partition, and the passes up to the middle of each."""
    size = max(1, round(fraction * n_rows))
    n_training = (1.0 - draw.held_out) * n_rows
    done = 0
    for block in blocks:
        sample = draw.training(taken(block, draw.rows(block)))
        cuts = np.linspace(0, sample.n, -(-sample.n // size) + 1).astype(int)
        for low, high in pairwise(cuts):
            batch = taken(sample, slice(low, high))
            done += batch.n
            middle = (done - batch.n / 2) / n_training
            yield batch, draw.epoch + draw.index / draw.count + middle
