"""A value that all workers of a machine read out of one memory-mapped file.

PySpark unpickles a broadcast in every worker process: 80 MB take 20 ms and 80 MB of memory each.
Here the arrays of a value stay in the file that Spark puts on each executor's disk, and a worker
maps it: all of them share the page cache.
"""

from __future__ import annotations

import mmap
import pickle
import struct
from abc import abstractmethod
from functools import lru_cache
from typing import Any

from pyspark import SparkContext
from pyspark.sql import DataFrame

from mllib_ext.columns import refuse_no_dataframe

# Stands before the payload, which the broadcast's own pickle surrounds with a few bytes.
_MARK = b"mllib_ext mapped value\0\0"


class Mapped:
    """A broadcast of a value with large arrays (NumPy's, SciPy's or Arrow's).

    It is never destroyed: a lazy DataFrame that uses it may outlive everything else. Spark deletes
    it when nothing refers to it, at the latest with the session.
    """

    def __init__(self, context: SparkContext, value: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        parts: list[Any] = [head, *(buffer.raw() for buffer in buffers)]
        sizes = [memoryview(part).nbytes for part in parts]
        lengths = struct.pack(f"<{1 + len(sizes)}Q", len(sizes), *sizes)
        self._broadcast = context.broadcast(b"".join([_MARK, lengths, *parts]))

    def open(self) -> Any:
        """The value, its arrays read-only; for workers."""
        path = getattr(self._broadcast, "_path", None)
        if path is None:  # with spark.io.encryption.enabled there is no file in the clear
            return _unpacked(memoryview(self._broadcast.value), 0)
        return _opened(path)


class Shipped:
    """A model whose predictor the workers map, sent once for all calls of ``transform``."""

    _mapped: Mapped | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}  # a broadcast belongs to its session

    @property
    @abstractmethod
    def _predictor(self) -> Any:
        """What the workers need, free of the model itself."""

    def _shipped(self, dataset: DataFrame) -> Mapped:
        """The predictor for the workers."""
        refuse_no_dataframe(dataset)
        if self._mapped is None:
            self._mapped = Mapped(dataset.sparkSession.sparkContext, self._predictor)
        return self._mapped


@lru_cache(maxsize=2)  # a worker outlives the jobs of a session
def _opened(path: str) -> Any:
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return _unpacked(memoryview(content), content.find(_MARK))


def _unpacked(content: memoryview, start: int) -> Any:
    place = start + len(_MARK)
    (n,) = struct.unpack_from("<Q", content, place)
    lengths = struct.unpack_from(f"<{n}Q", content, place + 8)
    place += 8 + 8 * n
    parts = []
    for length in lengths:
        parts.append(content[place : place + length])
        place += length
    return pickle.loads(parts[0], buffers=parts[1:])
