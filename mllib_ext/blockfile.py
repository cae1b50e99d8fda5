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
import pickle
import socket
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from pyspark import TaskContext

from mllib_ext.columns import BadRow, Features, Matrix, numbers
from mllib_ext.compact import Scattered
from mllib_ext.partials import BlockMissing, Merge, Stage, joined, nbytes

# A block's values stay in a core's share of the last-level cache between X @ w and X.T @ r.
BLOCK_BYTES = 2 << 20
# What a stage that runs ahead gives may ride with a handle up to here; executors cache it there.
AHEAD_BYTES = 1 << 18
# From here on a vector of all columns outgrows the first-level cache: blocks keep to their own.
WIDE = 1 << 13
# Enough rows to make a Python call's microseconds small, few enough to keep margins in L2.
BLOCK_ROWS = 32_768
# Up to so many columns a round may ask for their Gram matrix: blocks of four times as many rows
# make its 8 d^2 bytes a block small (d = 1,000: 206 ms in place of 383 for 10,000 rows).
SQUARE = 1 << 10

HANDLE_SCHEMA = (
    "partition int, host string, path string, n_rows long, n_features int, weight_sum double, "
    "n_bytes long, seconds double, ordered long, unordered long, sparse boolean, fault string, "
    "ahead binary"
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
    columns : ndarray or None, shape (m,)
        The columns that a CSR block of :data:`WIDE` columns or more stores, ascending.
    places : ndarray or None, shape (nnz,)
        Of every stored value: the place of its column in ``columns``.
    file : str
        Where the rows were read from as they are; empty for what was made of them, as by
        ``dataclasses.replace``.
    """

    X: Matrix
    y: np.ndarray
    w: np.ndarray
    id: np.ndarray
    partition: int = 0
    start: int = 0
    columns: np.ndarray | None = None
    places: np.ndarray | None = None
    file: str = field(default="", init=False, compare=False)

    @property
    def n(self) -> int:
        """The number of rows."""
        return self.X.shape[0]

    @property
    def narrow(self) -> Matrix:
        """``X``; of a wide sparse block the columns that it stores alone, (n, m)."""
        if self.columns is None or isinstance(self.X, np.ndarray):
            return self.X
        parts = (self.X.data, self.places, self.X.indptr)
        return sp.csr_array(parts, shape=(self.n, len(self.columns)))

    def widened(self, array: np.ndarray) -> np.ndarray | Scattered:
        """An array by the columns of ``narrow`` as one by those of ``X``."""
        if self.columns is None:
            return array
        return Scattered(self.columns, array, self.X.shape[1])

    def freeze(self) -> None:
        """Make all arrays read-only, as they are when they come out of a file."""
        values = (self.X,) if isinstance(self.X, np.ndarray) else _parts(self.X)
        for array in (*values, self.y, self.w, self.id, self.columns, self.places):
            if array is not None:
                array.flags.writeable = False


def _parts(X: sp.csr_array) -> tuple[np.ndarray, ...]:
    return X.data, X.indices, X.indptr


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
    sparse: bool
    fault: str

    @classmethod
    def of(cls, row: Sequence[Any]) -> Handle:
        """The handle in a row of :data:`HANDLE_SCHEMA`."""
        return cls(*row[: len(fields(cls))])

    def same_rows(self, other: Handle) -> bool:
        """Both hold the same rows in blocks of one kind, in any order."""
        mine, theirs = ((h.n_rows, h.unordered, h.sparse, h.fault) for h in (self, other))
        return mine == theirs


@dataclass(frozen=True)
class Layout:
    """What a block file holds: settled once on the driver for the whole data set.

    ``ahead`` is a stage and its merge (None adds) that sees every block as it is written: the
    first round over new data needs no second look at them.
    """

    features: Features
    sparse: bool | None  # CSR or dense; None while each partition goes by its own first batch
    label: str | None
    weight: str | None
    id: str | None
    directory: str  # a name of its own below every executor's local directories
    block_bytes: int | None = None  # of a block's values; None for what suits the cache
    ahead: tuple[Stage, Merge | None] | None = None


@cache
def spare_collector() -> None:
    """Take what is imported by now out of the garbage collector's sight, once a worker.

    PySpark's worker collects garbage after every task, before it takes the next: with NumPy,
    SciPy and PyArrow loaded that is most of a short round (measured: 95 ms with, 40 without).
    """
    gc.freeze()


# --- writing -----------------------------------------------------------------------------------


def write_partition(layout: Layout, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Write one partition's rows as a block file and yield its handle (for ``mapInArrow``)."""
    context = TaskContext.get()
    assert context is not None
    row = write_rows(layout, context.partitionId(), batches)
    yield pa.RecordBatch.from_pylist([row], schema=_handle_arrow_schema())


def write_rows(layout: Layout, partition: int, batches: Iterator[pa.RecordBatch]) -> dict[str, Any]:
    """Write the rows of a partition as a block file: a row of :data:`HANDLE_SCHEMA`.

    The file gets a name of its own and is renamed at the end to one that carries its checksum:
    a second attempt or a speculative copy replaces it by an equal file or stands beside it. All
    input is read even after a fault, because a task that leaves input unread loses its worker.
    """
    began = time.perf_counter()
    spare_collector()
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
        sparse=bool(writer.sparse),
        fault=fault,
    )
    return {**vars(handle), "ahead": writer.ahead() if not fault else None}


def local_directory(name: str, partition: int) -> Path:
    """This executor's directory of that name; partitions take its local disks in turn."""
    disks = os.environ["SPARK_LOCAL_DIRS"].split(",")
    return Path(disks[partition % len(disks)]) / name


class _Writer:
    """Cuts Arrow batches of any size into blocks of half :data:`BLOCK_BYTES` up to all of it."""

    def __init__(self, layout: Layout, path: Path) -> None:
        self.layout, self.path = layout, path
        self.sparse = layout.sparse
        self.n_rows, self.n_features, self.weight_sum = 0, 0, 0.0
        self.ordered, self.unordered = 0, 0
        self._pending: list[tuple[Any, np.ndarray, np.ndarray, pa.Array]] = []
        self._file: Any = None
        self._ahead: Any = None
        self._written = 0
        self._codes: np.ndarray | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        layout, arrays = self.layout, batch.columns
        d = self.n_features or None
        if self.sparse is None:
            self.sparse = layout.features.mostly_zero(self._features(arrays))
        X = layout.features.decode(self._features(arrays), d, self.sparse)
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
        self._pending.append((X, y, w, ids))
        n = sum(part[0].shape[0] for part in self._pending)
        if 2 * n >= self._block_rows(X):
            self._flush()

    @property
    def _wide(self) -> bool:
        return bool(self.sparse) and self.n_features >= WIDE

    def _block_rows(self, X: Matrix) -> int:
        """How many rows such as these a block may hold."""
        asked = self.layout.block_bytes
        if isinstance(X, np.ndarray):
            row = X.shape[1] * X.itemsize
            if asked is not None:
                return max(1, asked // row)
            least = 4 * X.shape[1] if X.shape[1] <= SQUARE else 64
            return int(np.clip(BLOCK_BYTES // row, least, BLOCK_ROWS))
        # Each block of a sum adds vectors of up to d: the longer they, the more values share one.
        stored = sum(sparse.nnz for sparse, *_ in self._pending)
        n = sum(part[0].shape[0] for part in self._pending)
        if asked is not None:
            return max(1, asked * n // (12 * max(1, stored)))
        most = max(BLOCK_BYTES, 32 * X.shape[1]) * n // (12 * max(1, stored))
        return int(np.clip(most, 64, 4 * BLOCK_ROWS))

    def _features(self, arrays: list[pa.Array]) -> list[pa.Array]:
        return arrays[:3] if self.layout.features.kind == "vector" else arrays[:1]

    def _sum_up(self, X: Matrix, y: np.ndarray, w: np.ndarray, ids: pa.Array) -> None:
        """Counts and checksums, from the rows' bits: integers, so equal on every machine."""
        n, d = X.shape
        if not self.n_features:
            self.n_features = d
            if not self._wide:
                self._codes = _odd_codes(np.arange(d), X.dtype)
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
        """Write what is pending, in blocks of equal size."""
        Xs, ys, ws, ids = zip(*self._pending, strict=True)
        most = self._block_rows(Xs[0])
        self._pending = []
        if len(Xs) == 1:  # uncopied: large batches go to the file as they came
            X, y, w, id = Xs[0], ys[0], ws[0], ids[0]
        else:
            X = sp.csr_array(sp.vstack(Xs, format="csr")) if self.sparse else np.concatenate(Xs)
            y, w, id = np.concatenate(ys), np.concatenate(ws), pa.concat_arrays(ids)
        n = X.shape[0]
        cuts = np.linspace(0, n, -(-n // most) + 1).astype(int)
        for start, stop in pairwise(cuts):
            self._write(X[start:stop], y[start:stop], w[start:stop], id[start:stop])

    def _write(self, X: Matrix, y: np.ndarray, w: np.ndarray, id: pa.Array) -> None:
        names, arrays = [], []
        if not isinstance(X, np.ndarray):
            indptr, indices = X.indptr.astype(np.int32), X.indices.astype(np.int32)
            if self._wide:
                columns, indices = numbered(indices, X.shape[1])
                # A batch has no place for an array of another length: all in the first row's list.
                offsets = np.minimum(np.arange(X.shape[0] + 1, dtype=np.int32), 1) * len(columns)
                names.append("columns")
                arrays.append(pa.ListArray.from_arrays(offsets.astype(np.int32), columns))
            names += ["indices", "values"]
            arrays += [pa.ListArray.from_arrays(indptr, values) for values in (indices, X.data)]
        else:
            names.append("X")
            values = np.ascontiguousarray(X).ravel()
            arrays.append(pa.FixedSizeListArray.from_arrays(values, X.shape[1]))
        if self.layout.label is not None:
            names.append("y")
            arrays.append(pa.array(y))
        if self.layout.weight is not None:
            names.append("w")
            arrays.append(pa.array(w))
        if self.layout.id is not None:
            names.append("id")
            arrays.append(id)
        batch = pa.RecordBatch.from_arrays(arrays, names)
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pa.ipc.new_stream(str(self.path), self._schema(batch))
        self._file.write_batch(batch)
        if self.layout.ahead is not None:
            n = X.shape[0]
            weights = w if self.layout.weight is not None else _ones(n)
            ids = id.to_numpy(zero_copy_only=False)
            wide = (columns, indices) if self._wide else ()
            block = Block(X, y, weights, ids, 0, self._written, *wide)
            stage, merge = self.layout.ahead
            self._ahead = joined(self._ahead, stage(block), merge)
            self._written += n
            if nbytes(self._ahead) > AHEAD_BYTES:
                self.layout, self._ahead = replace(self.layout, ahead=None), None

    def ahead(self) -> bytes | None:
        """What the stage that ran ahead gave, for a handle to carry; None where it is too long."""
        return None if self._ahead is None else pickle.dumps(self._ahead, protocol=5)

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


def numbered(indices: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns (m,) that occur in ``indices``, ascending, and the place of each index there."""
    occurs = np.zeros(d, bool)
    occurs[indices] = True
    columns = np.flatnonzero(occurs).astype(np.int32)
    places = np.empty(d, np.int32)
    places[columns] = np.arange(len(columns), dtype=np.int32)
    return columns, places[indices]


def _odd_codes(columns: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """One odd multiplier a column: splitmix64 of its number, as wide as the values."""
    codes = _mix(columns.astype(np.uint64) + np.uint64(1))
    return (codes | np.uint64(1)).astype(np.uint32 if dtype.itemsize == 4 else np.uint64)


def _row_marks(X: Matrix, codes: np.ndarray | None) -> np.ndarray:
    """One number a row, linear in its folded bits modulo 2**64 (2**32 for float32).

    Without a code for every column, of which there are too many, those of what is stored are made.
    """
    if isinstance(X, np.ndarray):
        assert codes is not None
        return np.einsum("ij,j->i", _folded(X, codes.dtype), codes).astype(np.uint64)
    stored = codes[X.indices] if codes is not None else _odd_codes(X.indices, X.dtype)
    products = _folded(X.data, stored.dtype) * stored
    one_column = (products, np.zeros_like(X.indices), X.indptr)
    sums = sp.csr_array(one_column, shape=(X.shape[0], 1)) @ np.ones(1, stored.dtype)
    return sums.astype(np.uint64)


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
    kinds = {"int": pa.int32(), "long": pa.int64(), "double": pa.float64()}
    kinds |= {"string": pa.string(), "boolean": pa.bool_(), "binary": pa.binary()}
    pairs = [field.split() for field in HANDLE_SCHEMA.split(",")]
    return pa.schema([(name, kinds[kind]) for name, kind in pairs])


# --- reading -----------------------------------------------------------------------------------


def read_blocks(handle: Handle) -> Iterator[Block]:
    """The blocks of one partition's file, one in memory at a time.

    Raises
    ------
    BlockMissing
        The file is not on this machine.
    """
    if not handle.path:
        return
    start = 0
    try:
        file = pa.OSFile(handle.path)
    except FileNotFoundError as missing:
        raise BlockMissing(handle.path) from missing
    with file as source, pa.ipc.open_stream(source) as reader:
        d = json.loads(reader.schema.metadata[b"n_features"])
        for batch in reader:
            block = _block(batch, d, handle.partition, start)
            object.__setattr__(block, "file", handle.path)
            yield block
            start += block.n


def _block(batch: pa.RecordBatch, d: int, partition: int, start: int) -> Block:
    stored = places = None
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    n = batch.num_rows
    X: Matrix
    if "X" in columns:
        X = columns["X"].values.to_numpy(zero_copy_only=True).reshape(n, d)
    else:
        values = columns["values"]
        indices = columns["indices"].values.to_numpy(zero_copy_only=True)
        if "columns" in columns:
            stored, places = columns["columns"].values.to_numpy(zero_copy_only=True), indices
            indices = stored[places]
        data = values.values.to_numpy(zero_copy_only=True)
        X = sp.csr_array((data, indices, values.offsets.to_numpy()), shape=(n, d))
    y = columns["y"].to_numpy() if "y" in columns else np.empty(0)
    w = columns["w"].to_numpy() if "w" in columns else _ones(n)
    ids = columns["id"].to_numpy(zero_copy_only=False) if "id" in columns else np.empty(0)
    return Block(X, y, w, ids, partition, start, stored, places)


_ONES = np.ones(BLOCK_ROWS)
_ONES.flags.writeable = False


def _ones(n: int) -> np.ndarray:
    return _ONES[:n] if n <= BLOCK_ROWS else np.ones(n)
