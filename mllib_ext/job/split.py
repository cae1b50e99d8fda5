"""Which side of a split, and which fold, a row is on: a hash of the row itself decides.

``randomSplit`` depends on how rows lie in partitions, so that a recomputed partition, another
cluster or another reader gives another split; a row's hash is the same everywhere. Rows that are
equal land on the same side: none of them is both trained on and tested with.
"""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructType, VariantType

from mllib_ext.columns import data_type, quoted
from mllib_ext.job.config import Split

# Row hashes fall into this many equal parts, of which `split.test` is a share.
PARTS = 1 << 31


def is_test(schema: StructType, split: Split) -> Column:
    """Whether a row is for testing.

    Raises
    ------
    ValueError
        A column of ``split.by`` that is missing or cannot be hashed.
    """
    hashed = F.xxhash64(*_deciding(schema, split), F.lit(split.seed))
    return F.pmod(hashed, F.lit(PARTS)) < F.lit(round(split.test * PARTS))


def fold(schema: StructType, split: Split, folds: int, seed: int) -> Column:
    """The fold of a row for cross-validation: 0, 1, ..., folds - 1; errors as :func:`is_test`."""
    # Seeds of both: a fold must not follow from the side of the split.
    hashed = F.xxhash64(*_deciding(schema, split), F.lit(split.seed), F.lit(seed))
    return F.pmod(hashed, F.lit(folds)).cast("int")


def _deciding(schema: StructType, split: Split) -> list[Column]:
    for name in split.by or ():
        if not _hashable(data_type(schema, name, "split.by")):
            kind = schema[name].dataType.simpleString()
            raise ValueError(f"split.by column {name!r}: expected a type with a hash, found {kind}")
    names = split.by or [field.name for field in schema if _hashable(field.dataType)]
    return [quoted(name) for name in names]


def _hashable(kind: DataType) -> bool:
    """Spark hashes neither maps nor variants."""
    match kind:
        case ArrayType():
            return _hashable(kind.elementType)
        case StructType():
            return all(_hashable(field.dataType) for field in kind)
    return not isinstance(kind, MapType | VariantType)
