"""The cells of an index: k-means on a sample of the items, by rounds over their blocks.

The sample, and the items that k-means starts from, are those whose ids have the least hashes: the
same items in whatever partitions they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mllib_ext import lloyd
from mllib_ext.blockfile import Block
from mllib_ext.blocks import Blocks
from mllib_ext.columns import Matrix
from mllib_ext.distances import Metric, dense_rows
from mllib_ext.lloyd import Rounds
from mllib_ext.mapped import Mapped
from mllib_ext.neighbors.items import ARROW, stacked
from mllib_ext.neighbors.ivf import Cells
from mllib_ext.neighbors.plans import Side
from mllib_ext.optimizers.loop import Settings, iterate
from mllib_ext.partials import over
from mllib_ext.prediction import annotated, by_rows
from mllib_ext.space import SPACES

# The column of the items' cells.
CELL = "mllib_ext_cell"
# Cells by the square root of the number of items: ranking the centroids then takes a query as long
# as comparing it with the items of four cells.
CELLS_A_ROOT = 2
# Items of a cell that k-means sees, and its rounds: faiss's own for an IVF index.
ROWS_A_CELL, ROUNDS = 256, 10


@dataclass(frozen=True)
class Sample:
    """Rounds over the rows whose ids have hashes up to a limit."""

    blocks: Blocks
    seed: int
    limit: np.uint64

    def sum(self, stage: Any, *parameters: Any) -> tuple[Any, ...]:
        return self.blocks.sum(over(self._rows, stage), *parameters)

    def reduce(self, stage: Any, merge: Any, *parameters: Any) -> tuple[Any, ...]:
        return self.blocks.reduce(over(self._rows, stage), merge, *parameters)

    @property
    def _rows(self) -> Any:
        return partial(_hashed_up_to, self.seed, self.limit)

    def drain(self) -> tuple[Any, ...]:
        return self.blocks.drain()


def _hashed_up_to(seed: int, limit: np.uint64, block: Block) -> Block:
    rows = np.flatnonzero(_hashes(block.id, seed) <= limit)
    return replace(block, X=block.X[rows], w=block.w[rows], id=block.id[rows])


def _hashes(ids: np.ndarray, seed: int) -> np.ndarray:
    """A number for each id, uint64, as good as random."""
    from pandas.util import hash_array  # slow to import, and most of this module needs none of it

    hashes: np.ndarray = hash_array(hash_array(ids, categorize=False) ^ np.uint64(seed))
    return hashes


def default_n_cells(n: int) -> int:
    """How many cells n items are put into."""
    return max(1, round(CELLS_A_ROOT * np.sqrt(n)))


def trained_cells(blocks: Blocks, n_cells: int, metric: Metric, seed: int) -> Cells:
    """Cells of items in blocks that have their ids: a few rounds of Lloyd's algorithm.

    Fewer where there are fewer distinct items to start from.
    """
    n_cells = min(n_cells, blocks.n_rows)
    _, start = blocks.reduce(partial(_least_hashes, n_cells, seed), partial(_least, n_cells))
    start = np.unique(start.astype(np.float64), axis=0)
    share = ROWS_A_CELL * n_cells / blocks.n_rows
    rounds: Rounds = blocks
    if share < 1:
        rounds = Sample(blocks, seed, np.uint64(share * 2**64))
    space = SPACES["cosine" if metric.name == "cosine" else "euclidean"][0](blocks)
    result = iterate(
        partial(lloyd.step, rounds, space),
        lloyd.evaluated(rounds, space, space.settle(start)),
        Settings(max_iter=ROUNDS, tol=0.0),
        stopping=lloyd.STOPPING,
        drain=rounds.drain,
        warn=False,  # centroids need not stand to cut space into cells
    )
    return Cells(result.state.centers, metric)


def _least_hashes(size: int, seed: int, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """One block's rows of the least hashes: hashes (m,), rows (m, d)."""
    hashes = _hashes(block.id, seed)
    least = np.argsort(hashes, kind="stable")[:size]
    return hashes[least], dense_rows(block.X[least])


def _least(size: int, left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    hashes, rows = (np.concatenate(pair) for pair in zip(left, right, strict=True))
    least = np.argsort(hashes, kind="stable")[:size]
    return hashes[least], rows[least]


# --- items with their cells --------------------------------------------------------------------


@dataclass(frozen=True)
class CelledItems:
    """Items in memory with their cells.

    Attributes
    ----------
    X : ndarray or csr_array, shape (n, d)
    ids : pyarrow.Array
    cells : ndarray, shape (n,)
    """

    X: Matrix
    ids: pa.Array
    cells: np.ndarray

    @classmethod
    def collected(cls, blocks: Blocks, kind: str, cells: Cells | None) -> CelledItems:
        """All items of blocks; without cells, those that the blocks have as labels are theirs."""
        found = blocks.reduce(_with_cells, _both, cells)[0]
        Xs, ids, numbers = zip(*found, strict=True)
        ids = pa.concat_arrays([pa.array(part, ARROW[kind]) for part in ids])
        return cls(stacked(Xs), ids, np.concatenate(numbers).astype(np.int64))

    def __add__(self, other: CelledItems) -> CelledItems:
        ids = pa.concat_arrays([self.ids, other.ids])
        cells = np.concatenate([self.cells, other.cells])
        return CelledItems(stacked([self.X, other.X]), ids, cells)


def _with_cells(block: Block, cells: Cells | None) -> tuple[list[Any]]:
    numbers = block.y if cells is None else cells.of(block.X)
    return ([(block.X, block.id, numbers)],)


def _both(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    return (left[0] + right[0],)


def with_cells(items: DataFrame, side: Side, cells: Cells) -> DataFrame:
    """The items with one more column: their cells."""
    mapped = Mapped(items.sparkSession.sparkContext, cells)
    udf = F.arrow_udf(annotated(partial(_cells_of, side, mapped)), "int")  # type: ignore[call-overload]
    return by_rows(items).withColumn(CELL, udf(*side.columns(items)))


def _cells_of(side: Side, mapped: Mapped, *arrays: pa.Array) -> pa.Array:
    cells: Cells = mapped.open()
    ((X, _),) = side.decode([arrays], cells.metric)
    return pa.array(cells.of(X).astype(np.int32))
