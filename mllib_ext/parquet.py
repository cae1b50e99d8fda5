"""Rows of a plain Parquet scan, read by pyarrow inside the tasks that write block files.

From Parquet through the JVM to Python a row is decoded to columns, turned into a row, and into
columns again. pyarrow gives the columns at once. What the writer of block files sees is the same
to the bit: the partitions, their rows in order, and batches cut where Spark cuts them.

A file that is not as planned (gone, broken, another type) is left to Spark and its messages: its
partition reports :data:`~mllib_ext.scan.UNFIT`, and all rows are then read the ordinary way.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.sql import Row

from mllib_ext.blockfile import Handle, Layout, write_rows
from mllib_ext.columns import Features
from mllib_ext.scan import UNFIT, Condition, Scan, Split

ARROW = {
    "tinyint": pa.int8(),
    "smallint": pa.int16(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "date": pa.date32(),
    "array<float>": pa.list_(pa.float32()),
    "array<double>": pa.list_(pa.float64()),
}
VECTOR = {"size": pa.int32(), "indices": pa.list_(pa.int32()), "values": pa.list_(pa.float64())}
# Earlier days may be of the Julian calendar, which ended in 1582: Spark may have to shift them.
FIRST_GREGORIAN_DAY = -141_427
COMPARE = {
    "=": pc.equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


class Unfit(Exception):
    """A file that has to be read by Spark."""


def write_splits(
    layout: Layout, scan: Scan, partitions: Iterable[tuple[int, Sequence[Split]]]
) -> Iterator[Row]:
    """Write block files of numbered partitions and yield their handles (for ``mapPartitions``)."""
    for number, splits in list(partitions):
        try:
            row = write_rows(layout, number, read_splits(layout, scan, splits))
        except Unfit as why:
            handle = Handle(number, "", "", 0, 0, 0.0, 0, 0.0, 0, 0, False, f"{UNFIT}{why}")
            row = {**vars(handle), "ahead": None}
        yield Row(**row)


def read_splits(layout: Layout, scan: Scan, splits: Sequence[Split]) -> Iterator[pa.RecordBatch]:
    """The rows of some splits, in the very batches that Spark would send to ``mapInArrow``.

    Raises
    ------
    Unfit
        A file that cannot be read, or is not as planned.
    RuntimeError
        A file that has got another length.
    """
    batches = (
        _laid_out(layout, scan.columns, batch) for split in splits for batch in _read(scan, split)
    )
    return _cut(batches, scan.batch_rows, scan.batch_bytes)


# --- files ---------------------------------------------------------------------------------------


def _read(scan: Scan, split: Split) -> Iterator[pa.RecordBatch]:
    """The columns that a scan needs, of those rows of one split that it keeps."""
    try:
        if (size := os.path.getsize(split.path)) != split.size:
            # Spark would read what lies in the old splits: none of a row group that grew.
            raise RuntimeError(
                f"{split.path}: expected {split.size} bytes, as when the DataFrame was made, "
                f"found {size}: read the files again"
            )
        # Mapped, 250,000 rows of 100 doubles take half as long as read through a buffer. Checksums
        # cost 0.05 of 0.17 s; Spark has those of Hadoop's local files.
        with pq.ParquetFile(split.path, memory_map=True, page_checksum_verification=True) as file:
            _check(file.schema_arrow, scan.kinds, split.path)
            groups = [g for g in _row_groups(file.metadata, split) if _may_match(file, g, scan)]
            yield from _read_groups(file, groups, scan)
    except (OSError, pa.ArrowException) as why:
        raise Unfit(f"{split.path}: {why}") from why


def _row_groups(metadata: pq.FileMetaData, split: Split) -> list[int]:
    """The row groups of a split: those whose middle lies in it (parquet-java's rule)."""
    found = []
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        first = group.column(0)
        start = first.data_page_offset
        if first.dictionary_page_offset is not None:
            start = min(start, first.dictionary_page_offset)
        size = sum(group.column(j).total_compressed_size for j in range(group.num_columns))
        if split.start <= start + size // 2 < split.start + split.length:
            found.append(i)
    return found


def _check(schema: pa.Schema, kinds: dict[str, str], path: str) -> None:
    """Unfit unless the file has every column once, whatever its case, in the planned type."""
    lower = [name.lower() for name in schema.names]
    for name, kind in kinds.items():
        if name not in schema.names or lower.count(name.lower()) != 1:
            raise Unfit(f"{path}: no column {name!r}, or more than one")
        found = schema.field(name).type
        if kind == "vector":
            fits = pa.types.is_struct(found) and VECTOR.items() <= {
                (field.name, _plain(field.type)) for field in found
            }
        else:
            fits = _plain(found) == ARROW[kind]
        if not fits:
            raise Unfit(f"{path}: {name!r} is {found}, not {kind}")


def _plain(kind: pa.DataType) -> pa.DataType:
    """A list's type without its element's name, and whether that may be null."""
    return pa.list_(kind.value_type) if pa.types.is_list(kind) else kind


def _may_match(file: pq.ParquetFile, group: int, scan: Scan) -> bool:
    """False if no row of a row group is kept: its other columns need not be read."""
    compared = [c for c in scan.conditions if c.operator != "valid"]
    if not compared:
        return True
    names = list({c.column for c in compared})
    table = file.read_row_group(group, columns=names, use_threads=False)
    return any(_mask(batch, compared).true_count for batch in table.to_batches())


def _read_groups(
    file: pq.ParquetFile, groups: Sequence[int], scan: Scan
) -> Iterator[pa.RecordBatch]:
    leaves = [
        leaf
        for name, kind in scan.kinds.items()
        for leaf in ([f"{name}.{part}" for part in VECTOR] if kind == "vector" else [name])
    ]
    # Rows that are wide are read a few at a time, as they are cut.
    about = [file.metadata.row_group(group) for group in groups]
    widest = max((g.total_byte_size // max(1, g.num_rows) for g in about), default=0)
    rows = max(1, min(scan.batch_rows, scan.batch_bytes // max(1, widest)))
    for batch in file.iter_batches(rows, row_groups=groups, columns=leaves, use_threads=False):
        yield batch.filter(_mask(batch, scan.conditions)) if scan.conditions else batch


def _mask(batch: pa.RecordBatch, conditions: Sequence[Condition]) -> pa.Array:
    """Whether each row is kept; null stands for no."""
    kept: Any = None
    for condition in conditions:
        column = batch.column(condition.column)
        if condition.operator == "valid":
            holds = column.is_valid()
        elif condition.operator == "in":
            holds = pc.is_in(column, _constants(condition.value, column))
        else:
            holds = COMPARE[condition.operator](column, _constants([condition.value], column)[0])
        kept = holds if kept is None else pc.and_kleene(kept, holds)
    return kept


def _constants(values: list[Any], column: pa.Array) -> pa.Array:
    """Values of a filter in the type of the column that they are compared with."""
    if column.type != pa.date32():
        return pa.array(values, column.type)
    first = pc.min(column.cast(pa.int32())).as_py()
    if first is not None and first < FIRST_GREGORIAN_DAY:
        raise Unfit("days before 1582-10-15")
    return pa.array(values, pa.int32()).cast(column.type)


# --- columns -------------------------------------------------------------------------------------


def _laid_out(layout: Layout, columns: dict[str, str], batch: pa.RecordBatch) -> pa.RecordBatch:
    """The columns that Spark would send: features, label, weight, id."""

    def array(name: str) -> pa.Array:
        return batch.column(columns[name])

    arrays = _features(layout.features, [array(name) for name in layout.features.names])
    for name in (layout.label, layout.weight):
        if name is not None:
            arrays.append(array(name).cast(pa.float64(), safe=False))  # Spark rounds longs, too
    if layout.id is not None:
        arrays.append(array(layout.id))
    return pa.RecordBatch.from_arrays(arrays, [str(i) for i in range(len(arrays))])


def _features(features: Features, columns: list[pa.Array]) -> list[pa.Array]:
    """What the columns give under ``Features.expressions``."""
    if features.kind == "array":
        return columns
    if features.kind == "vector":
        (vectors,) = columns
        names = [field.name for field in vectors.type]
        parts = dict(zip(names, vectors.flatten(), strict=True))  # null where the vector is
        return [parts[name] for name in VECTOR]
    n, d = len(columns[0]), len(columns)
    X = np.empty((n, d), dtype=features.dtype)
    null = np.zeros((n, d), dtype=bool) if any(c.null_count for c in columns) else None
    for j, column in enumerate(columns):
        if null is not None and column.null_count:
            null[:, j] = column.is_null().to_numpy(zero_copy_only=False)
            column = column.fill_null(False if column.type == pa.bool_() else 0)
        X[:, j] = column.to_numpy(zero_copy_only=False)
    values = pa.array(X.ravel(), mask=None if null is None else null.ravel())
    return [pa.ListArray.from_arrays(np.arange(0, n * d + 1, d, dtype=np.int32), values)]


# --- batches -------------------------------------------------------------------------------------


def _cut(batches: Iterable[pa.RecordBatch], rows: int, limit: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches that end after ``rows`` rows or once they reach ``limit`` bytes.

    So does Spark. Where a batch ends shows: in which row a message names, in the order of sums.
    """
    pending: list[pa.RecordBatch] = []
    n = size = 0
    for batch in chain(batches, [None]):
        if batch is not None:
            pending.append(batch)
            n += batch.num_rows
            size += batch.nbytes
            if n < rows and size < limit // 2:  # half, as Spark also counts bits for nulls
                continue
        elif not n:
            return
        rest = _joined(pending)
        while stop := _stop(rest, rows, limit, batch is None):
            yield rest.slice(0, stop)
            rest = rest.slice(stop)
        pending, n, size = [rest], rest.num_rows, rest.nbytes


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    filled = [batch for batch in batches if batch.num_rows] or batches[:1]
    if len(filled) == 1:
        return filled[0]
    (joined,) = pa.Table.from_batches(filled).combine_chunks().to_batches()
    return joined


def _stop(batch: pa.RecordBatch, rows: int, limit: int, last: bool) -> int:
    """How many rows make a whole batch; 0 if more have to come first."""
    n = min(batch.num_rows, rows)
    whole = int(np.searchsorted(_arrow_bytes(batch, n), limit))
    if whole <= n:
        return whole
    return n if last or n == rows else 0


def _arrow_bytes(batch: pa.RecordBatch, n: int) -> np.ndarray:
    """What the first 0 to ``n`` rows take in the buffers of Arrow's Java writer: ``(n + 1,)``."""
    rows = np.arange(n + 1)
    bits = -(-rows // 8)
    total = bits.copy()  # of the struct that Spark packs the columns in
    for array in batch.columns:
        total += bits
        if pa.types.is_list(array.type):
            ends = array.offsets.to_numpy()[: n + 1].astype(np.int64)
            ends -= ends[0]
            total += 4 * (rows + 1) + ends * (array.type.value_type.bit_width // 8) - (-ends // 8)
        elif pa.types.is_string(array.type):
            lengths = pc.binary_length(array.slice(0, n)).fill_null(0).to_numpy()
            total += 4 * (rows + 1)
            total[1:] += np.cumsum(lengths, dtype=np.int64)
        elif pa.types.is_boolean(array.type):
            total += bits
        else:
            total += rows * (array.type.bit_width // 8)
    total[0] = 0
    return total
