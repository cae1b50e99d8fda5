"""One partition's share of a round: a stage function over its blocks, added up or merged.

Runs wherever the blocks are: on an executor beside the file, or on the driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mllib_ext.compact import Scattered, Symmetric, dense

if TYPE_CHECKING:
    from mllib_ext.blockfile import Block, Handle

Stage = Callable[..., tuple[Any, ...]]
Merge = Callable[[tuple[Any, ...], tuple[Any, ...]], tuple[Any, ...]]


class BlockMissing(FileNotFoundError):
    """A block file is not on this machine: the round looks for it elsewhere."""


class StateLost(RuntimeError):
    """A partition's state went with its executor: go back to where all of it is known."""


@dataclass(frozen=True)
class Walk:
    """A stage that goes through all blocks of a partition itself, with what it carries along.

    Attributes
    ----------
    stage : callable
        ``stage(handle, blocks, *parameters) -> tuple``, the blocks an iterator in their order.
        A partition without rows is left out.
    """

    stage: Stage

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        return self.stage(*arguments)


def over(rows: Callable[[Block], Block], stage: Stage) -> Stage:
    """The stage over what ``rows`` makes of each block."""
    if isinstance(stage, Walk):
        return Walk(partial(_walk_over, rows, stage.stage))
    return partial(_stage_over, rows, stage)


def _walk_over(
    rows: Callable[[Block], Block],
    stage: Stage,
    handle: Handle,
    blocks: Iterable[Block],
    *parameters: Any,
) -> tuple[Any, ...]:
    return stage(handle, map(rows, blocks), *parameters)


def _stage_over(
    rows: Callable[[Block], Block], stage: Stage, block: Block, *parameters: Any
) -> tuple[Any, ...]:
    return stage(rows(block), *parameters)


@dataclass(frozen=True)
class Partial:
    """What one partition gave in a round.

    Attributes
    ----------
    handle : Handle
    found : bool
        The block file was there.
    values : tuple or None
        None for a partition without rows.
    seconds : float
    """

    handle: Handle
    found: bool
    values: tuple[Any, ...] | None
    seconds: float


def of_partition(
    handle: Handle,
    blocks: Iterable[Block],
    stage: Stage,
    merge: Merge | None,
    parameters: tuple[Any, ...],
) -> Partial:
    """Run a stage over the blocks of one partition, in their order."""
    began = time.perf_counter()
    values: tuple[Any, ...] | None = None
    try:
        if isinstance(stage, Walk):
            if handle.n_rows:
                values = joined(None, stage(handle, blocks, *parameters), merge)
        else:
            for block in blocks:
                values = joined(values, stage(block, *parameters), merge)
    except BlockMissing:  # a stage's own file that is missing is its own affair
        return Partial(handle, False, None, 0.0)
    return Partial(handle, True, values, time.perf_counter() - began)


def total(values: Iterable[tuple[Any, ...] | None], merge: Merge | None) -> tuple[Any, ...]:
    """The values of all partitions as one, joined from left to right, arrays whole."""
    whole: tuple[Any, ...] | None = None
    for part in values:
        if part is not None:
            # A sum begins with all rows: the others are added to them in place, one at a time.
            part = tuple(map(dense, part)) if whole is None and merge is None else part
            whole = joined(whole, part, merge)
    assert whole is not None
    whole = tuple(map(dense, whole))
    return tuple(v[()] if isinstance(v, np.ndarray) and v.ndim == 0 else v for v in whole)


def joined(
    total: tuple[Any, ...] | None, part: tuple[Any, ...], merge: Merge | None
) -> tuple[Any, ...]:
    """The values so far and of one more block or partition. Sums may change ``total`` in place."""
    if merge is not None:
        return part if total is None else merge(total, part)
    if total is None:
        return tuple(map(_accumulator, part))
    return tuple(_added(into, value) for into, value in zip(total, part, strict=True))


def _accumulator(value: Any) -> Any:
    """A copy to add to: float64 whatever the precision of the block, integers as int64."""
    if isinstance(value, Scattered | Symmetric):
        return value.astype(np.float64)
    array = np.asarray(value)
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def _added(into: Any, value: Any) -> Any:
    if isinstance(into, Scattered | Symmetric):
        return into + value
    if isinstance(value, Scattered | Symmetric):
        value.add_to(into)
        return into
    return np.add(into, value, out=into)


def nbytes(value: Any) -> int:
    """Bytes of a partial's arrays and messages; 8 for a number."""
    if value is None:
        return 0
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return nbytes(tuple(value.values()))
    if isinstance(value, tuple | list):
        return sum(map(nbytes, value))
    return int(getattr(value, "nbytes", 8))
