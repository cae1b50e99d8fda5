"""The rows that neighbours are looked for among, in memory, and their way there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column
from pyspark.sql.types import DataType, IntegralType, StringType, StructType

from mllib_ext.blockfile import Block
from mllib_ext.blocks import Blocks
from mllib_ext.columns import BadRow, Features, Matrix, data_type, quoted, stacked
from mllib_ext.distances import Metric
from mllib_ext.neighbors.top_k import Tiles

# --- ids ---------------------------------------------------------------------------------------


# Arrow's types by those of ids.
ARROW = {"long": pa.int64(), "string": pa.string()}


def id_column(schema: StructType, name: str) -> tuple[Column, str]:
    """An id column as Arrow carries it, and its type: ``long`` or ``string``.

    Raises
    ------
    ValueError
        There is no such column.
    TypeError
        Its type is neither an integer nor a string.
    """
    kind: DataType = data_type(schema, name, "id")
    if isinstance(kind, IntegralType):
        return quoted(name).cast("long"), "long"
    if isinstance(kind, StringType):
        return quoted(name), "string"
    raise TypeError(
        f"id column {name!r}: expected integers or strings, found {kind.simpleString()}"
    )


def checked_ids(ids: pa.Array, name: str) -> pa.Array:
    """The ids of a batch; BadRow at the first null."""
    if ids.null_count:
        row = int(np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))[0])
        raise BadRow(f"id column {name!r}", "an id in every row", "null", row)
    return ids


@dataclass(frozen=True)
class Codes:
    """Ids as int64 in the same order: integers are their own codes, strings have their rank.

    Attributes
    ----------
    names : pyarrow.Array or None
        The different strings, ascending.
    """

    names: pa.Array | None

    @classmethod
    def of(cls, ids: pa.Array) -> tuple[Codes, np.ndarray]:
        """The codes of all ids there are, and those of these (n,)."""
        if not pa.types.is_string(ids.type) and not pa.types.is_large_string(ids.type):
            return cls(None), ids.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        unique = pc.unique(ids)
        codes = cls(unique.take(pc.sort_indices(unique)))
        return codes, codes.encode(ids)

    def encode(self, ids: pa.Array) -> np.ndarray:
        """Codes (n,); -1 for a string that is not known."""
        if self.names is None:
            return ids.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        found = pc.fill_null(pc.index_in(ids, self.names), -1)
        return found.to_numpy(zero_copy_only=False).astype(np.int64)

    def decode(self, codes: np.ndarray) -> pa.Array:
        """The ids of codes (n,)."""
        return pa.array(codes) if self.names is None else self.names.take(pa.array(codes))


# --- rows --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Items:
    """Rows with their ids.

    Attributes
    ----------
    X : ndarray or csr_array, shape (n, d)
    ids : ndarray, shape (n,), int64
        The codes of the ids.
    codes : Codes
    tiles : Tiles or None
        The rows prepared for many searches.
    """

    X: Matrix
    ids: np.ndarray
    codes: Codes = field(default_factory=lambda: Codes(None))
    tiles: Tiles | None = None

    @classmethod
    def of(cls, X: Matrix, ids: pa.Array) -> Items:
        codes, ids = Codes.of(ids)
        return cls(X, ids, codes)

    @classmethod
    def collected(cls, blocks: Blocks, kind: str) -> Items:
        """All rows of blocks with an id, in the driver's memory."""
        found = blocks.collect()
        return cls.joined([(block.X, pa.array(block.id, ARROW[kind])) for block in found])

    @classmethod
    def joined(cls, parts: Sequence[tuple[Matrix, pa.Array]]) -> Items:
        """One after the other."""
        Xs, ids = zip(*parts, strict=True)
        return cls.of(stacked(Xs), pa.concat_arrays(ids))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def duplicate(self) -> Any:
        """An id that stands more than once, or None."""
        ids = np.sort(self.ids)
        twice = ids[1:][ids[1:] == ids[:-1]]
        return self.codes.decode(twice[:1])[0].as_py() if len(twice) else None


def n_bytes(X: Matrix) -> int:
    """What the rows take in memory."""
    if isinstance(X, np.ndarray):
        return X.nbytes
    return X.data.nbytes + X.indices.nbytes + X.indptr.nbytes


def decoded_rows(
    features: Features, arrays: Sequence[pa.Array], d: int | None, metric: Metric
) -> Matrix:
    """One batch as a matrix, of which the metric is defined.

    Raises
    ------
    BadRow
        A null row or element, a row of another length, a NaN or infinite value; a row of zeros
        under the cosine metric.
    """
    X = features.decode(arrays, d, None)
    features.refuse_non_finite(X)
    if metric.name == "cosine":
        refuse_zeros(features.label, X)
    return X


def refuse_directionless(blocks: Blocks) -> None:
    """ValueError at the first row of zeros, which it names: one round."""
    (faults,) = blocks.reduce(_directionless, _joined, blocks.features.label)
    if faults:
        raise ValueError(faults[0])


def _directionless(block: Block, label: str) -> tuple[list[str]]:
    try:
        refuse_zeros(label, block.X)
    except BadRow as bad:
        return ([f"{bad} (partition {block.partition}, row {block.start + bad.row})"],)
    return ([],)


def _joined(left: tuple[list[str]], right: tuple[list[str]]) -> tuple[list[str]]:
    return ((left[0] + right[0])[:1],)


def refuse_zeros(label: str, X: Matrix) -> None:
    """BadRow at the first row of zeros."""
    stored = np.abs(X).max(axis=1)
    lengths = stored if isinstance(stored, np.ndarray) else stored.toarray().ravel()
    if not lengths.all():
        row = int(np.flatnonzero(lengths == 0)[0])
        raise BadRow(label, "a direction in every row (metric cosine)", "a row of zeros", row)
