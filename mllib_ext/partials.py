"""One partition's share of a round: a stage function over its blocks, added up or merged.

Runs wherever the blocks are: on an executor beside the file, or on the driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mllib_ext.blockfile import Block, Handle

# Below this size to look for zeros costs as much as to send them.
PACKED_BYTES = 1 << 16

Stage = Callable[..., tuple[Any, ...]]
Merge = Callable[[tuple[Any, ...], tuple[Any, ...]], tuple[Any, ...]]


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
        for block in blocks:
            values = joined(values, stage(block, *parameters), merge)
    except FileNotFoundError:
        return Partial(handle, False, None, 0.0)
    return Partial(handle, True, values, time.perf_counter() - began)


@dataclass(frozen=True)
class Packed:
    """An array of mostly zeros on its way to the driver: the places and values of the others.

    A partition of sparse rows touches few of a million columns. The driver unpacks one partition
    at a time, so that it never holds a dense vector for each of them.
    """

    places: np.ndarray
    values: np.ndarray
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.places.nbytes + self.values.nbytes

    def unpack(self) -> np.ndarray:
        """The array again."""
        array = np.zeros(self.shape, self.values.dtype)
        array.ravel()[self.places] = self.values
        return array


def packed(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values with their large arrays of mostly zeros packed."""
    return tuple(map(_pack, values))


def unpacked(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values, all arrays as they were."""
    return tuple(v.unpack() if isinstance(v, Packed) else v for v in values)


def _pack(value: Any) -> Any:
    if not isinstance(value, np.ndarray) or value.nbytes < PACKED_BYTES or value.dtype.hasobject:
        return value
    places = np.flatnonzero(value)
    if 3 * len(places) > value.size:
        return value
    return Packed(places, value.ravel()[places], value.shape)


def total(values: Iterable[tuple[Any, ...] | None], merge: Merge | None) -> tuple[Any, ...]:
    """The values of all partitions as one, joined from left to right."""
    whole = reduce(merge or _add, (unpacked(v) for v in values if v is not None))
    return tuple(v[()] if isinstance(v, np.ndarray) and v.ndim == 0 else v for v in whole)


def joined(
    total: tuple[Any, ...] | None, part: tuple[Any, ...], merge: Merge | None
) -> tuple[Any, ...]:
    """The values of the blocks so far and of one more."""
    if merge is not None:
        return part if total is None else merge(total, part)
    if total is None:
        return tuple(_accumulator(value) for value in part)
    for into, value in zip(total, part, strict=True):
        np.add(into, value, out=into)
    return total


def _accumulator(value: Any) -> np.ndarray:
    """A copy to add to: float64 whatever the precision of the block, integers as int64."""
    array = np.asarray(value)
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def _add(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def nbytes(value: Any) -> int:
    """Bytes of a partial's arrays; 8 for a number."""
    if value is None:
        return 0
    if isinstance(value, tuple | list):
        return sum(map(nbytes, value))
    return int(getattr(value, "nbytes", 8))
