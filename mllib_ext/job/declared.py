"""Rows against the schema that is declared for them: what breaks it is kept and named.

Spark's readers turn a value of another type into null, without a word. Here a text file is read
as text, every value is cast by itself, and a row carries what is wrong with it, until
:mod:`mllib_ext.job.quarantine` takes it out.
"""

from __future__ import annotations

from typing import Any

from pyspark.errors import ParseException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    DataType,
    DateType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from mllib_ext.columns import data_type, quoted
from mllib_ext.job.config import Source
from mllib_ext.job.errors import first_line
from mllib_ext.job.inputs import derived, load

# Columns beside those of the input: what is wrong with a row, an array of text, empty for most;
# and what then stood in the row, as JSON, null where nothing is wrong.
REASONS, ORIGINAL = "__reasons", "__original"
# Spark puts a line with too few or too many values here.
CORRUPT = "__corrupt"


def read(spark: SparkSession, source: Source, name: str) -> DataFrame:
    """One input with :data:`REASONS` and :data:`ORIGINAL`, its derived columns included.

    Parameters
    ----------
    spark : SparkSession
    source : Source
        Without ``schema``, nothing is wrong with any row.
    name : str
        Its key in the config, for messages.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`mllib_ext.job.inputs.read`; a declared column that is not there.
    """
    if source.schema_ is None:
        frame = load(spark, source, name)
        kept = [quoted(column) for column in frame.columns]
        frame = frame.select(*kept, *_marks([], frame.columns))
    else:
        declared = parsed(source.schema_, name)
        raw = load(spark, _raw(source, declared), name)
        for field in declared:
            data_type(raw.schema, field.name, f"{name}.schema")
        frame = _cast(raw, declared, source)
    return derived(frame, source.derive, f"{name}.derive")


def parsed(ddl: str, name: str) -> StructType:
    """A schema from DDL text; ValueError where it is none."""
    try:
        schema = StructType.fromDDL(ddl)
    except ParseException as error:
        raise ValueError(
            f"{name}.schema: expected columns and types as DDL text, found {ddl!r}: "
            f"{first_line(error)}"
        ) from None
    if not isinstance(schema, StructType):
        raise ValueError(f"{name}.schema: expected columns and their types, found {ddl!r}")
    return schema


def _raw(source: Source, declared: StructType) -> Source:
    """How to read what is to be cast: text files as text, others in the types that they have."""
    if source.format not in ("csv", "json"):
        return source.model_copy(update={"schema_": None})
    fields = [StructField(field.name, StringType()) for field in declared]
    corrupt = StructField(CORRUPT, StringType())
    options = {
        **source.options,
        "mode": "PERMISSIVE",
        "columnNameOfCorruptRecord": CORRUPT,
    }
    schema = ", ".join(f"`{f.name.replace('`', '``')}` string" for f in [*fields, corrupt])
    return source.model_copy(update={"schema_": schema, "options": options})


def _cast(raw: DataFrame, declared: StructType, source: Source) -> DataFrame:
    """Every column as it is declared, null where it cannot be; and what was wrong."""
    columns, wrongs = [], []
    for field in declared:
        found = quoted(field.name)
        value = _value(found, raw.schema[field.name].dataType, field.dataType, source)
        columns.append(value.alias(field.name))
        kind = field.dataType.simpleString()
        wrongs.append((found.isNotNull() & value.isNull(), f"{field.name}: not {kind}"))
        if not field.nullable:
            wrongs.append((found.isNull(), f"{field.name}: missing"))
    if CORRUPT in raw.columns:
        wrongs.append((quoted(CORRUPT).isNotNull(), "the line: not the declared columns"))
    return raw.select(*columns, *_marks(wrongs, raw.columns))


def _value(found: Column, have: DataType, want: DataType, source: Source) -> Column:
    """A value as its declared type, null where it is none."""
    if have == want:
        return found
    options = {name.lower(): str(value) for name, value in source.options.items()}
    if isinstance(have, StringType):
        # What the reader itself would have parsed them by.
        if isinstance(want, TimestampType | TimestampNTZType) and "timestampformat" in options:
            form = F.lit(options["timestampformat"])
            return F.try_to_timestamp(found, form).cast(want)
        if isinstance(want, DateType) and "dateformat" in options:
            return F.try_to_timestamp(found, F.lit(options["dateformat"])).cast(want)
    return found.try_cast(want)


def _marks(wrongs: list[tuple[Column, str]], columns: list[str]) -> list[Column]:
    reasons = marked(wrongs)
    whole = F.to_json(F.struct(*[quoted(name) for name in columns]))
    return [
        reasons.alias(REASONS),
        F.when(F.size(reasons) > 0, whole).alias(ORIGINAL),
    ]


def marked(wrongs: list[tuple[Column, str]]) -> Any:
    """The reasons whose condition holds, as an array of text."""
    if not wrongs:
        return F.array().cast("array<string>")
    return F.array_compact(F.array(*[F.when(holds, F.lit(text)) for holds, text in wrongs]))
