"""DataFrames out of a config: read, united, checked, divided into training and test rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.ml.functions import array_to_vector
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    MapType,
    NumericType,
    StringType,
    StructType,
    VariantType,
)

from mllib_ext import storage
from mllib_ext.columns import Features, data_type, number, quoted
from mllib_ext.job.config import FILES, JobConfig, Source, Split
from mllib_ext.names import did_you_mean

# Row hashes fall into this many equal parts, of which `split.test` is a share.
PARTS = 1 << 31


def read(spark: SparkSession, sources: Sequence[Source]) -> DataFrame:
    """One DataFrame of all inputs, united by column name. Lazy: only schemas are read.

    Raises
    ------
    FileNotFoundError
        Nothing at a path.
    ValueError
        An input that cannot be read, or has other columns than the first one.
    """
    many = len(sources) > 1
    names = [f"input.{i}" if many else "input" for i in range(len(sources))]
    frames = [_read(spark, source, name) for source, name in zip(sources, names, strict=True)]
    united = frames[0]
    for name, frame in zip(names[1:], frames[1:], strict=True):
        _refuse_other_columns(frames[0].schema, frame.schema, names[0], name)
        united = united.unionByName(frame)
    return united


def _read(spark: SparkSession, source: Source, name: str) -> DataFrame:
    if source.dataset is not None:
        return _sklearn(spark, source.dataset)
    paths = [source.path] if isinstance(source.path, str) else source.path
    if source.format in FILES:
        # Spark would say so too, after a warning with a Java stack trace.
        for path in paths or ():
            if not storage.matches(path):
                where = path if re.search(r"[*?\[{]", path) else storage.qualified(path)
                raise FileNotFoundError(
                    f"{name}.path: expected {source.format} files, found nothing at {where}"
                )
    reader = spark.read.format(source.format).options(**source.options)
    try:
        if source.schema_ is not None:
            reader = reader.schema(source.schema_)
        return reader.load(paths)
    except AnalysisException as error:
        expected = f"input that can be read as {source.format}"
        raise ValueError(f"{name}: expected {expected}, found: {_why(error)}") from None
    except Exception as error:
        if "DATA_SOURCE_NOT_FOUND" not in str(error):
            raise
        raise ValueError(
            f"{name}.format: expected a format that this Spark has, found "
            f"{source.format!r}{did_you_mean(source.format, (*FILES, 'sklearn'))}"
        ) from None


def _why(error: AnalysisException) -> str:
    """The first line of Spark's message, without its codes."""
    line = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
    return re.sub(r"^\[[A-Z_.0-9]+\] | SQLSTATE: \w+", "", line.strip())


def _sklearn(spark: SparkSession, dataset: str) -> DataFrame:
    """A bundled data set: ``features``, a vector, which every estimator takes, and ``label``."""
    from sklearn import datasets

    X, y = getattr(datasets, f"load_{dataset}")(return_X_y=True)  # (n, d), (n,)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(X.astype("float64").ravel()), X.shape[1])
    table = pa.table({"x": rows.cast(pa.list_(pa.float64())), "label": y.astype("float64")})
    return spark.createDataFrame(table).select(
        array_to_vector(F.col("x")).alias("features"), "label"
    )


def _refuse_other_columns(first: StructType, other: StructType, one: str, two: str) -> None:
    for name in first.names:
        if name not in other.names:
            near = did_you_mean(name, other.names)
            raise ValueError(f"{two}: expected a column {name!r} as in {one}, found none{near}")
    for name in other.names:
        if name not in first.names:
            near = did_you_mean(name, first.names)
            raise ValueError(f"{two}: expected the columns of {one}, found also {name!r}{near}")
        mine, theirs = first[name].dataType, other[name].dataType
        # CSV files of the same table may be inferred as int here and double there.
        both = isinstance(mine, NumericType) and isinstance(theirs, NumericType)
        if not both and mine.simpleString() != theirs.simpleString():
            raise ValueError(
                f"{two}: column {name!r}: expected {mine.simpleString()} as in {one}, "
                f"found {theirs.simpleString()}"
            )


def refuse_columns(schema: StructType, config: JobConfig, label: str | None) -> None:
    """A ValueError or TypeError for a column that is missing or of the wrong type.

    Parameters
    ----------
    schema : StructType
        What the estimator will see.
    config : JobConfig
    label : str or None
        The label, where the estimator takes one.
    """
    text = "; a StringIndexer in `stages` turns text into numbers"
    if any(s.format == "csv" and s.schema_ is None for s in config.input):
        text += ", and without `schema` or the option inferSchema every column of a csv is text"
    for name in _listed(config.features) if isinstance(config.features, list) else ():
        _refuse(schema, name, "features", text)
    Features.of(schema, config.features)
    for column, role in ((label, "label"), (config.weight, "weight")):
        if column is not None:
            _refuse(schema, column, role, text)


def _refuse(schema: StructType, name: str, role: str, hint: str) -> None:
    try:
        number(schema, name, role)
    except TypeError as error:
        text = isinstance(schema[name].dataType, StringType)
        raise TypeError(f"{error}{hint if text else ''}") from None


def _listed(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def used_columns(config: JobConfig, label: str | None) -> list[str]:
    """The columns that a job without ``stages`` needs, each once."""
    names = [*_listed(config.features), label, config.weight]
    return list(dict.fromkeys(name for name in names if name is not None))


def is_test(schema: StructType, split: Split) -> Column:
    """Whether a row is for testing: a hash of the row itself decides.

    ``randomSplit`` depends on how rows lie in partitions, so that a recomputed partition, another
    cluster or another reader gives another split; a row's hash is the same everywhere. Rows that
    are equal land on the same side: none of them is both trained on and tested with.

    Raises
    ------
    ValueError
        A column of ``split.by`` that is missing or cannot be hashed.
    """
    for name in split.by or ():
        if not _hashable(data_type(schema, name, "split.by")):
            kind = schema[name].dataType.simpleString()
            raise ValueError(f"split.by column {name!r}: expected a type with a hash, found {kind}")
    names = split.by or [field.name for field in schema if _hashable(field.dataType)]
    hashed = F.xxhash64(*[quoted(name) for name in names], F.lit(split.seed))
    return F.pmod(hashed, F.lit(PARTS)) < F.lit(round(split.test * PARTS))


def _hashable(kind: DataType) -> bool:
    """Spark hashes neither maps nor variants."""
    match kind:
        case ArrayType():
            return _hashable(kind.elementType)
        case StructType():
            return all(_hashable(field.dataType) for field in kind)
    return not isinstance(kind, MapType | VariantType)


def label_summary(schema: StructType, label: str | None) -> dict[str, Column]:
    """Aggregates of the label beside a count of rows: ``bad`` (null or not finite), ``top``."""
    if label is None or label not in schema.names:  # a stage will make it
        return {}
    if not isinstance(schema[label].dataType, NumericType | BooleanType):
        return {}
    y: Any = quoted(label).cast("double")
    bad = y.isNull() | F.isnan(y) | (F.abs(y) == float("inf"))
    return {"bad": F.count_if(bad), "top": F.max(y)}
