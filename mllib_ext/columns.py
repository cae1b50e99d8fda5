"""Columns of a DataFrame as arrays: checks, the expressions that Arrow carries, and decoding.

Features are one vector column (dense or sparse rows, mixed or not), one ``array<float|double>``
column, or a list of numeric columns. All three cross from the JVM as flat Arrow buffers and
become one NumPy or SciPy CSR matrix a batch: never a Python object for a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DoubleType,
    FloatType,
    NumericType,
    StructType,
)

from mllib_ext.names import did_you_mean

Matrix: TypeAlias = np.ndarray | Any  # or scipy.sparse.csr_array, which has no type hints


class BadRow(ValueError):
    """A row that cannot be used: ``found`` says why, ``row`` is its place in the batch."""

    def __init__(self, name: str, expected: str, found: str, row: int) -> None:
        super().__init__(name, expected, found, row)  # the arguments, so that it can be pickled
        self.name, self.expected, self.found, self.row = name, expected, found, row

    def __str__(self) -> str:
        return f"{self.name}: expected {self.expected}, found {self.found}"


def refuse_no_dataframe(dataset: Any) -> None:
    """TypeError for what is given in place of a DataFrame of Spark's."""
    if not isinstance(dataset, DataFrame):
        kind = type(dataset)  # pandas has a DataFrame too
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        raise TypeError(f"dataset: expected a DataFrame, found {module}{kind.__qualname__}")


def quoted(name: str) -> Column:
    """The top-level column of exactly this name (dots and backticks are part of a name)."""
    return F.col("`" + name.replace("`", "``") + "`")


def data_type(schema: StructType, name: str, role: str) -> DataType:
    """The type of a column, or a ValueError with the nearest name there is."""
    if name in schema.names:
        return schema[name].dataType
    hint = did_you_mean(name, schema.names)
    raise ValueError(
        f"{role} column {name!r}: expected one of {schema.names}, found no such column{hint}"
    )


def number(schema: StructType, name: str, role: str) -> Column:
    """A label or weight column as a double; TypeError unless it is numeric."""
    kind = data_type(schema, name, role)
    if not isinstance(kind, NumericType | BooleanType):
        raise TypeError(
            f"{role} column {name!r}: expected a numeric type, found {kind.simpleString()}"
        )
    return quoted(name).cast("double")


def numbers(array: pa.Array, name: str, expected: str = "a number in every row") -> np.ndarray:
    """A decoded label or weight column: float64 ``(n,)``, finite; BadRow otherwise."""
    if array.null_count:
        raise BadRow(name, expected, "null", _first(array.is_null().to_numpy(zero_copy_only=False)))
    values = array.to_numpy(zero_copy_only=True)
    bad = ~np.isfinite(values)
    if bad.any():
        raise BadRow(name, expected, str(values[bad][0]), _first(bad))
    return values


@dataclass(frozen=True)
class Features:
    """How the features of a DataFrame cross over: resolved once on the driver, then shipped.

    Attributes
    ----------
    kind : {"vector", "array", "columns"}
    names : tuple of str
        The columns they come from.
    dtype : str
        ``float32`` where every input value is a float, else ``float64``.
    """

    kind: Literal["vector", "array", "columns"]
    names: tuple[str, ...]
    dtype: str

    @classmethod
    def of(cls, schema: StructType, features: str | Sequence[str]) -> Features:
        """Resolve ``features`` against a schema.

        Raises
        ------
        ValueError
            A column that is not there.
        TypeError
            A column of another type than vector, ``array<float|double>`` or, in a list, numeric.
        """
        # pyspark.ml brings pandas: half a second that a worker, which reads this module, can spare.
        from pyspark.ml.linalg import VectorUDT

        if not isinstance(features, str):
            return cls._of_columns(schema, tuple(features))
        kind = data_type(schema, features, "features")
        match kind:
            case VectorUDT():
                return cls("vector", (features,), "float64")
            case ArrayType(elementType=FloatType()):
                return cls("array", (features,), "float32")
            case ArrayType(elementType=DoubleType()):
                return cls("array", (features,), "float64")
        raise TypeError(
            f"features column {features!r}: expected a vector, array<float> or array<double> "
            f"(or a list of numeric columns), found {kind.simpleString()}"
        )

    @classmethod
    def _of_columns(cls, schema: StructType, names: tuple[str, ...]) -> Features:
        if not names:
            raise ValueError("features columns: expected at least one column name, found none")
        kinds = [data_type(schema, name, "features") for name in names]
        for name, kind in zip(names, kinds, strict=True):
            if not isinstance(kind, NumericType | BooleanType):
                raise TypeError(
                    f"features column {name!r}: expected a numeric type, "
                    f"found {kind.simpleString()}"
                )
        single = all(isinstance(kind, FloatType) for kind in kinds)
        return cls("columns", names, "float32" if single else "float64")

    @property
    def label(self) -> str:
        """The column or columns in words, for messages."""
        if self.kind == "columns":
            return f"features columns {self.names[0]!r} to {self.names[-1]!r}"
        return f"features column {self.names[0]!r}"

    def expressions(self) -> list[Column]:
        """The columns that Arrow carries: ``[values]``, or ``[size, indices, values]`` of vectors.

        An absent ``indices`` list is sent as an empty one: Arrow's Java writer spends 6 us on a
        null list, 3 s in 500,000 dense rows (measured).
        """
        if self.kind == "columns":
            element = "float" if self.dtype == "float32" else "double"
            return [F.array(*[quoted(name).cast(element) for name in self.names])]
        column = quoted(self.names[0])
        if self.kind == "array":
            return [column]
        vector = _unwrap_udt(column)
        indices = F.coalesce(vector["indices"], F.array().cast("array<int>"))
        return [vector["size"], indices, vector["values"]]

    def decode(self, arrays: Sequence[pa.Array], d: int | None, sparse: bool | None) -> Matrix:
        """One batch as a matrix ``(n, d)``.

        Parameters
        ----------
        arrays : sequence of pyarrow.Array
            What :meth:`expressions` gave, carried by Arrow.
        d : int or None
            The number of features; None takes it from the first row.
        sparse : bool or None
            CSR or dense; None picks CSR if any row of the batch is sparse.

        Raises
        ------
        BadRow
            A null row or element, or a row of another length.
        """
        values = arrays[-1]
        if values.null_count:
            row = _first(values.is_null().to_numpy(zero_copy_only=False))
            raise BadRow(self.label, "a vector in every row", "null", row)
        flat = values.flatten()
        counts = np.diff(values.offsets.to_numpy())
        if flat.null_count:
            self._refuse_null(flat, counts)
        flat = flat.to_numpy(zero_copy_only=True)
        sizes, is_sparse = counts, None
        if self.kind == "vector":
            is_sparse = arrays[0].is_valid().to_numpy(zero_copy_only=False)
            if is_sparse.any():
                declared = arrays[0].fill_null(0).to_numpy(zero_copy_only=True)
                sizes = np.where(is_sparse, declared, counts)
            else:
                is_sparse = None
        if d is None:
            d = int(sizes[0])
        if d == 0:
            raise BadRow(self.label, "at least one feature", "vectors of length 0", 0)
        if (sizes != d).any():
            row = _first(sizes != d)
            raise BadRow(self.label, f"vectors of length {d}", f"length {sizes[row]}", row)
        if sparse is None:
            sparse = is_sparse is not None
        if is_sparse is None and not sparse:
            return flat.reshape(len(counts), d)
        X = _csr(counts, is_sparse, arrays[1].flatten().to_numpy(), flat, d)
        return X if sparse else X.toarray()

    def _refuse_null(self, flat: pa.Array, counts: np.ndarray) -> None:
        place = _first(flat.is_null().to_numpy(zero_copy_only=False))
        row = int(np.searchsorted(np.cumsum(counts), place, side="right"))
        feature = place - int(counts[:row].sum())
        raise BadRow(self.feature(feature), "a number in every row", "null", row)

    def feature(self, j: int) -> str:
        """Feature ``j`` in words, for messages."""
        if self.kind == "columns":
            return f"features column {self.names[j]!r}"
        return f"{self.label}, element {j}"

    def mostly_zero(self, arrays: Sequence[pa.Array]) -> bool:
        """Whether CSR takes less memory than dense rows, for a batch of :meth:`expressions`."""
        if self.kind != "vector":
            return False
        declared, _, values = arrays
        # A null row, whose size is null or -1, is refused when the rows are decoded.
        stored = np.diff(values.offsets.to_numpy()).astype(np.int64)
        sizes = declared.fill_null(-1).to_numpy(zero_copy_only=True)
        total = np.where(sizes >= 0, sizes, stored).sum(dtype=np.int64)
        # an int32 and a double an entry, against a double a place
        return bool(12 * stored.sum() < 8 * total)

    def refuse_non_finite(self, X: Matrix) -> None:
        """BadRow at the first NaN or infinite value of ``X``."""
        if isinstance(X, np.ndarray):
            finite = np.isfinite(X)
            if finite.all():
                return
            row, j = np.argwhere(~finite)[0]
            value = X[row, j]
        else:
            finite = np.isfinite(X.data)
            if finite.all():
                return
            place = _first(~finite)
            row = np.searchsorted(X.indptr, place, side="right") - 1
            j, value = X.indices[place], X.data[place]
        raise BadRow(self.feature(int(j)), "finite numbers", str(value), int(row))


def stacked(parts: Iterable[Matrix]) -> Matrix:
    """Matrices one below the other; CSR if all of them are."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return sp.csr_array(sp.vstack(parts, format="csr"))


def _unwrap_udt(column: Column) -> Column:
    """The struct behind a vector column (Spark has the function, classic PySpark no name for it).

    ``vector_to_array`` would be public, takes as long, and makes a sparse row dense.
    """
    from pyspark import SparkContext

    jvm: Any = SparkContext._active_spark_context._jvm  # type: ignore[union-attr]
    java = jvm.functions.unwrap_udt(column._jc)  # type: ignore[attr-defined]
    return type(column)(java)  # type: ignore[call-arg]


def _csr(
    counts: np.ndarray, is_sparse: np.ndarray | None, indices: np.ndarray, data: np.ndarray, d: int
) -> sp.csr_array:
    """Rows with ``counts`` stored values as CSR; rows that are not sparse store all ``d``."""
    indptr = np.concatenate(([0], np.cumsum(counts, dtype=np.int32)), dtype=np.int32)
    if is_sparse is None or not is_sparse.all():
        columns = np.arange(indptr[-1], dtype=np.int32) - np.repeat(indptr[:-1], counts)
        if is_sparse is not None:
            columns[np.repeat(is_sparse, counts)] = indices
        indices = columns
    return sp.csr_array((data, indices, indptr), shape=(len(counts), d))


def _first(mask: np.ndarray) -> int:
    return int(np.flatnonzero(mask)[0])
