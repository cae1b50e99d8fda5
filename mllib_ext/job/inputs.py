"""DataFrames out of a config: read, derived, united."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import AnalysisException, ParseException, PySparkException
from pyspark.ml.functions import array_to_vector
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import NumericType, StructType

from mllib_ext import storage
from mllib_ext.job.config import FILES, Source
from mllib_ext.job.config.section import listed
from mllib_ext.job.errors import first_line
from mllib_ext.job.idx import read_idx
from mllib_ext.names import did_you_mean

Reader = Callable[[SparkSession, Source, str], DataFrame]


def read(spark: SparkSession, sources: Sequence[Source]) -> DataFrame:
    """One DataFrame of all inputs, united by column name. Lazy: only schemas are read.

    Raises
    ------
    FileNotFoundError
        Nothing at a path.
    ValueError
        An input that cannot be read, or has other columns than the first one.
    """
    return united(spark, sources, _read)


def united(spark: SparkSession, sources: Sequence[Source], reader: Reader) -> DataFrame:
    """What ``reader(spark, source, name)`` makes of each input, united by column name."""
    many = len(sources) > 1
    names = [f"input.{i}" if many else "input" for i in range(len(sources))]
    frames = [reader(spark, source, name) for source, name in zip(sources, names, strict=True)]
    whole = frames[0]
    for name, frame in zip(names[1:], frames[1:], strict=True):
        _refuse_other_columns(frames[0].schema, frame.schema, names[0], name)
        whole = whole.unionByName(frame)
    return whole


def _read(spark: SparkSession, source: Source, name: str) -> DataFrame:
    return derived(load(spark, source, name), source.derive, f"{name}.derive")


def load(spark: SparkSession, source: Source, name: str) -> DataFrame:
    """One input as it is, without what it derives.

    Parameters
    ----------
    spark : SparkSession
    source : Source
    name : str
        Its key in the config, for messages.
    """
    if source.dataset is not None:
        return _sklearn(spark, source.dataset)
    paths = listed(source.path) if source.path is not None else None
    if source.format in FILES:
        _refuse_missing(f"{name}.path", paths or (), source.format)
    if source.format == "idx" and isinstance(source.path, str):
        labels = source.options.get("labels")
        _refuse_missing(f"{name}.options.labels", [str(labels)] if labels else [], "idx")
        return read_idx(spark, source.path, str(labels) if labels else None, name)
    reader = spark.read.format(source.format).options(**_options(source))
    try:
        if source.schema_ is not None:
            reader = reader.schema(source.schema_)
        return reader.load(paths)
    except AnalysisException as error:
        expected = f"input that can be read as {source.format}"
        raise ValueError(f"{name}: expected {expected}, found: {first_line(error)}") from None
    except (PySparkException, Py4JJavaError) as error:
        if "DATA_SOURCE_NOT_FOUND" not in str(error):
            expected = f"what Spark's reader of {source.format} takes"
            raise ValueError(f"{name}: expected {expected}, found: {first_line(error)}") from None
        raise ValueError(
            f"{name}.format: expected a format that this Spark has, found "
            f"{source.format!r}{did_you_mean(source.format, (*FILES, 'sklearn'))}"
        ) from None


def _options(source: Source) -> dict[str, Any]:
    """The reader's options: with a schema, text that is of another one is an error.

    Spark itself would take two columns in another order for each other, and make what is no
    number null.
    """
    defaults: dict[str, Any] = {}
    if source.schema_ is not None and source.format in ("csv", "json"):
        defaults["mode"] = "FAILFAST"
    if source.schema_ is not None and source.format == "csv":
        defaults["enforceSchema"] = False
    given = {name.lower() for name in source.options}
    kept = {name: value for name, value in defaults.items() if name.lower() not in given}
    return {**kept, **source.options}


def _refuse_missing(key: str, paths: Sequence[str], kind: str) -> None:
    """FileNotFoundError: Spark would say so too, after a warning with a Java stack trace."""
    for path in paths:
        if not storage.matches(path):
            where = path if re.search(r"[*?\[{]", path) else storage.qualified(path)
            raise FileNotFoundError(f"{key}: expected {kind} files, found nothing at {where}")


def derived(frame: DataFrame, columns: Mapping[str, str], key: str) -> DataFrame:
    """Columns added or replaced, one after the other, by SQL over those before.

    Raises
    ------
    ValueError
        SQL that Spark cannot read over these columns.
    """
    for name, sql in columns.items():
        try:
            frame = frame.withColumn(name, F.expr(sql))
        except (AnalysisException, ParseException) as error:
            raise ValueError(
                f"{key}.{name}: expected SQL over the columns, found {sql!r}: {first_line(error)}"
            ) from None
    return frame


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
