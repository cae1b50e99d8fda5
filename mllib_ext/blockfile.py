"""One partition of a data set as an Arrow IPC stream in a file on its executor's local disk.

Writing happens once, in ``mapInArrow``; every later round reads the file block by block, out of
the page cache that the workers of a machine share, so that data larger than memory works. A record
batch is a :class:`Block`: a few megabytes, so that the products of a gradient find its rows in
the processor's cache. (Read, not mapped: docs/decisions/0003-read-blocks.md.)
"""

from __future__ import annotations

import gc
import json
import os
import socket
import time
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from pyspark import TaskContext

from mllib_ext.columns import BadRow, Features, Matrix, numbers

# A block's values stay in a core's share of the last-level cache between X @ w and X.T @ r.
BLOCK_BYTES = 4 << 20
# Enough rows to make a Python call's microseconds small, few enough to keep margins in L2.
BLOCK_ROWS = 32_768

HANDLE_SCHEMA = (
    "partition int, host string, path string, n_rows long, n_features int, weight_sum double, "
    "n_bytes long, seconds double, ordered long, unordered long, fault string"
)


@dataclass(frozen=True)
class Block:
    """Rows of one partition that a stage function sees at once (read-only arrays).

    Attributes
    ----------
    X : ndarray or scipy.sparse.csr_array, shape (n, d)
        float32 or float64, as the input was.
    y : ndarray, shape (n,), float64
        Labels; empty where no label column was asked for.
    w : ndarray, shape (n,), float64
        Weights; ones where no weight column was named.
    id : ndarray, shape (n,)
        Row ids; empty where no id column was asked for.
    partition, start : int
        Where the rows stand: the partition, and the place of the first one in it.
    """

    X: Matrix
    y: np.ndarray
    w: np.ndarray
    id: np.ndarray
    partition: int = 0
    start: int = 0

    @property
    def n(self) -> int:
        """The number of rows."""
        return self.X.shape[0]


@dataclass(frozen=True)
class Handle:
    """What is known of one partition's file; small enough to travel with every round.

    ``ordered`` is a checksum of the rows in their order, ``unordered`` one of the rows as a set:
    they tell whether lineage rebuilt the same data. ``fault`` describes the first unusable row
    and is empty where there is none; ``path`` is empty where there are no rows.
    """

    partition: int
    host: str
    path: str
    n_rows: int
    n_features: int
    weight_sum: float
    n_bytes: int
    seconds: float
    ordered: int
    unordered: int
    fault: str

    def same_rows(self, other: Handle) -> bool:
        """Both hold the same rows, in any order."""
        mine, theirs = ((h.n_rows, h.unordered, h.fault) for h in (self, other))
        return mine == theirs


@dataclass(frozen=True)
class Layout:
    """What a block file holds: settled once on the driver for the whole data set."""

    features: Features
    sparse: bool
    label: str | None
    weight: str | None
    id: str | None
    directory: str  # a name of its own below every executor's local directories


@cache
def spare_collector() -> None:
    """Take what is imported by now out of the garbage collector's sight, once a worker.

    PySpark's worker collects garbage after every task, before it takes the next: with NumPy,
    SciPy and PyArrow loaded that is most of a short round (measured: 95 ms with, 40 without).
    """
    gc.freeze()


# --- writing -----------------------------------------------------------------------------------


def write_partition(layout: Layout, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Write one partition's rows as a block file and yield its handle (for ``mapInArrow``).

    The file gets a name of its own and is renamed at the end to one that carries its checksum:
    a second attempt or a speculative copy replaces it by an equal file or stands beside it. All
    input is read even after a fault, because a task that leaves input unread loses its worker.
    """
    began = time.perf_counter()
    spare_collector()
    context = TaskContext.get()
    assert context is not None
    partition = context.partitionId()
    directory = local_directory(layout.directory, partition)
    temporary = directory / f"{uuid.uuid4().hex}.tmp"
    writer = _Writer(layout, temporary)
    fault = ""
    try:
        for batch in batches:
            if fault or not batch.num_rows:
                continue
            try:
                writer.add(batch)
            except BadRow as bad:
                fault = f"{bad} (partition {partition}, row {writer.n_rows + bad.row})"
        writer.close()
        path = ""
        if writer.n_rows and not fault:
            path = str(directory / f"part-{partition:05d}-{writer.name()}.arrow")
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    handle = Handle(
        partition=partition,
        host=socket.gethostname(),
        path=path,
        n_rows=writer.n_rows,
        n_features=writer.n_features,
        weight_sum=writer.weight_sum,
        n_bytes=os.path.getsize(path) if path else 0,
        seconds=time.perf_counter() - began,
        ordered=writer.ordered,
        unordered=_signed(writer.unordered),
        fault=fault,
    )
    yield pa.RecordBatch.from_pylist([vars(handle)], schema=_handle_arrow_schema())


def local_directory(name: str, partition: int) -> Path:
    """This executor's directory of that name; partitions take its local disks in turn."""
    disks = os.environ["SPARK_LOCAL_DIRS"].split(",")
    directory = Path(disks[partition % len(disks)]) / name
    directory.mkdir(parents=True, exist_ok=True)
    return directory


class _Writer:
    """Gathers Arrow batches of any size into blocks of :data:`BLOCK_BYTES`."""

    def __init__(self, layout: Layout, path: Path) -> None:
        self.layout, self.path = layout, path
        self.n_rows, self.n_features, self.weight_sum = 0, 0, 0.0
        self.ordered, self.unordered = 0, 0
        self._pending: list[tuple[Any, np.ndarray, np.ndarray, pa.Array]] = []
        self._file: Any = None
        self._codes: np.ndarray | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        layout, arrays = self.layout, batch.columns
        d = self.n_features or None
        X = layout.features.decode(self._features(arrays), d, layout.sparse)
        layout.features.refuse_non_finite(X)
        rest = iter(arrays[len(self._features(arrays)) :])
        y = w = np.empty(0)
        ids = pa.nulls(0, pa.int64())
        if layout.label is not None:
            y = numbers(next(rest), f"label column {layout.label!r}", "finite numbers")
        if layout.weight is not None:
            name, expected = f"weight column {layout.weight!r}", "finite numbers of 0 or more"
            w = numbers(next(rest), name, expected)
            if (w < 0).any():
                row = int(np.flatnonzero(w < 0)[0])
                raise BadRow(name, expected, str(w[row]), row)
        if layout.id is not None:
            ids = next(rest)
            if ids.null_count:
                row = int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
                raise BadRow(f"id column {layout.id!r}", "an id in every row", "null", row)
        self._sum_up(X, y, w, ids)
        start = 0
        while start < batch.num_rows:  # fill the pending block, write it when it is full
            stop = min(batch.num_rows, start + self._room(X))
            self._pending.append((X[start:stop], y[start:stop], w[start:stop], ids[start:stop]))
            start = stop
            if not self._room(X):
                self._flush()

    def _room(self, X: Matrix) -> int:
        """Rows that the pending block may still take; 0 where it is full."""
        n = sum(part[0].shape[0] for part in self._pending)
        if isinstance(X, np.ndarray):
            full = np.clip(BLOCK_BYTES // max(1, X.shape[1] * X.itemsize), 64, BLOCK_ROWS)
            return int(full) - n
        # Each block of a sum adds dense vectors of d: the longer they, the more values share one.
        stored = sum(sparse.nnz for sparse, *_ in self._pending)
        full = stored * 12 >= max(BLOCK_BYTES, 32 * X.shape[1])
        return 0 if full else 4 * BLOCK_ROWS - n

    def _features(self, arrays: list[pa.Array]) -> list[pa.Array]:
        return arrays[:3] if self.layout.features.kind == "vector" else arrays[:1]

    def _sum_up(self, X: Matrix, y: np.ndarray, w: np.ndarray, ids: pa.Array) -> None:
        """Counts and checksums, from the rows' bits: integers, so equal on every machine."""
        n, d = X.shape
        if self._codes is None:
            self.n_features = d
            self._codes = _odd_codes(d, X.dtype)
        marks = _row_marks(X, self._codes)
        for values in (y, w):
            if len(values):
                marks = _mix(marks) + values.view(np.uint64)
        if len(ids):
            from pandas.util import hash_array  # slow to import, and rounds need none of it

            marks = _mix(marks) + hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)
        marks = _mix(marks)
        self.ordered = zlib.crc32(marks.tobytes(), self.ordered)
        self.unordered = (self.unordered + int(marks.sum(dtype=np.uint64))) % (1 << 64)
        self.n_rows += n
        self.weight_sum += float(w.sum()) if self.layout.weight is not None else n

    def _flush(self) -> None:
        Xs, ys, ws, ids = zip(*self._pending, strict=True)
        self._pending = []
        names, arrays = [], []
        if self.layout.sparse:
            X = sp.csr_array(sp.vstack(Xs, format="csr")) if len(Xs) > 1 else Xs[0]
            indptr, indices = X.indptr.astype(np.int32), X.indices.astype(np.int32)
            names += ["indices", "values"]
            arrays += [pa.ListArray.from_arrays(indptr, values) for values in (indices, X.data)]
        else:
            X = np.concatenate(Xs) if len(Xs) > 1 else np.ascontiguousarray(Xs[0])
            names.append("X")
            arrays.append(pa.FixedSizeListArray.from_arrays(X.ravel(), X.shape[1]))
        if self.layout.label is not None:
            names.append("y")
            arrays.append(pa.array(np.concatenate(ys)))
        if self.layout.weight is not None:
            names.append("w")
            arrays.append(pa.array(np.concatenate(ws)))
        if self.layout.id is not None:
            names.append("id")
            arrays.append(pa.concat_arrays(ids))
        batch = pa.RecordBatch.from_arrays(arrays, names)
        if self._file is None:
            self._file = pa.ipc.new_stream(str(self.path), self._schema(batch))
        self._file.write_batch(batch)

    def _schema(self, batch: pa.RecordBatch) -> pa.Schema:
        return batch.schema.with_metadata({"n_features": json.dumps(self.n_features)})

    def name(self) -> str:
        """What the rows are, as a file name."""
        return f"{self.ordered:08x}{self.unordered:016x}"

    def close(self) -> None:
        if self._pending:
            self._flush()
        if self._file is not None:
            self._file.close()


def _odd_codes(d: int, dtype: np.dtype) -> np.ndarray:
    """One odd multiplier a feature: splitmix64 of its number, as wide as the values."""
    codes = _mix(np.arange(1, d + 1, dtype=np.uint64))
    return (codes | np.uint64(1)).astype(np.uint32 if dtype.itemsize == 4 else np.uint64)


def _row_marks(X: Matrix, codes: np.ndarray) -> np.ndarray:
    """One number a row, linear in its folded bits modulo 2**64 (2**32 for float32)."""
    if isinstance(X, np.ndarray):
        return np.einsum("ij,j->i", _folded(X, codes.dtype), codes).astype(np.uint64)
    bits = sp.csr_array((_folded(X.data, codes.dtype), X.indices, X.indptr), shape=X.shape)
    return (bits @ codes).astype(np.uint64)


def _folded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The bits, upper half onto lower: small integers end in zeros, which no product brings back.

    Without it the mark of a row of zeros and ones has 12 bits (9 in float32).
    """
    bits = values.view(dtype)
    return bits ^ (bits >> dtype.type(4 * dtype.itemsize))


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): a bijection that scatters bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


def _handle_arrow_schema() -> pa.Schema:
    kinds = {"int": pa.int32(), "long": pa.int64(), "double": pa.float64(), "string": pa.string()}
    pairs = [field.split() for field in HANDLE_SCHEMA.split(",")]
    return pa.schema([(name, kinds[kind]) for name, kind in pairs])


# --- reading -----------------------------------------------------------------------------------


def read_blocks(handle: Handle) -> Iterator[Block]:
    """The blocks of one partition's file, one in memory at a time.

    Raises
    ------
    FileNotFoundError
        The file is not on this machine.
    """
    if not handle.path:
        return
    start = 0
    with pa.OSFile(handle.path) as source, pa.ipc.open_stream(source) as reader:
        d = json.loads(reader.schema.metadata[b"n_features"])
        for batch in reader:
            block = _block(batch, d, handle.partition, start)
            yield block
            start += block.n


def _block(batch: pa.RecordBatch, d: int, partition: int, start: int) -> Block:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    n = batch.num_rows
    X: Matrix
    if "X" in columns:
        X = columns["X"].values.to_numpy(zero_copy_only=True).reshape(n, d)
    else:
        values = columns["values"]
        indices = columns["indices"].values.to_numpy(zero_copy_only=True)
        data = values.values.to_numpy(zero_copy_only=True)
        X = sp.csr_array((data, indices, values.offsets.to_numpy()), shape=(n, d))
    y = columns["y"].to_numpy() if "y" in columns else np.empty(0)
    w = columns["w"].to_numpy() if "w" in columns else _ones(n)
    ids = columns["id"].to_numpy(zero_copy_only=False) if "id" in columns else np.empty(0)
    return Block(X, y, w, ids, partition, start)


_ONES = np.ones(BLOCK_ROWS)
_ONES.flags.writeable = False


def _ones(n: int) -> np.ndarray:
    return _ONES[:n] if n <= BLOCK_ROWS else np.ones(n)
