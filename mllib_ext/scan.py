"""Which DataFrames are plain Parquet scans, and what they read: told from Spark's physical plan.

A plan is plain if it is one scan of local Parquet files under projections that select and rename
columns and filters that compare a column with constants. :func:`plain_scan` describes such a plan
completely (columns, conditions, and the splits that Spark itself would read, in its partitions),
so that :mod:`mllib_ext.parquet` can read it without the JVM. Every other plan is Spark's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from mllib_ext.columns import quoted

logger = logging.getLogger(__name__)

EXECUTION = "org.apache.spark.sql.execution."
CATALYST = "org.apache.spark.sql.catalyst.expressions."
# Exactly this class: those of Delta and others, which inherit from it, drop rows that a file holds.
PARQUET = EXECUTION + "datasources.parquet.ParquetFileFormat"
RELATION = EXECUTION + "datasources.LogicalRelation"

# Types that mean the same to Spark and to Arrow: no dates, timestamps or decimals, which Spark may
# have to convert.
KINDS = frozenset(
    "tinyint smallint int bigint float double boolean string "
    "array<float> array<double> vector".split()
)
# Not float and double: to Spark NaN equals itself and is the largest number.
COMPARED = frozenset("tinyint smallint int bigint boolean string date".split())
OPERATORS = {
    "EqualTo": "=",
    "LessThan": "<",
    "LessThanOrEqual": "<=",
    "GreaterThan": ">",
    "GreaterThanOrEqual": ">=",
}


UNFIT = "not the Parquet file that was planned: "  # begins the fault of what Spark has to read


class NotPlain(Exception):
    """The plan is more than columns and rows of Parquet files."""


@dataclass(frozen=True)
class Split:
    """Bytes ``start`` to ``start + length`` of a file that is ``size`` bytes long in all."""

    path: str
    start: int
    length: int
    size: int


@dataclass(frozen=True)
class Condition:
    """Rows where ``column operator value`` holds; ``valid`` (not null) and ``in`` beside < and =.

    The value is Spark's own: a date is the number of days since 1970.
    """

    column: str
    operator: str
    value: Any = None


@dataclass(frozen=True)
class Scan:
    """All that a plain scan does.

    Attributes
    ----------
    columns : dict of str to str
        The DataFrame's columns, and what they are called in the files.
    kinds : dict of str to str
        The Spark type (of :data:`KINDS`) of all columns of the files that are needed.
    conditions : tuple of Condition
        All hold in every row that is kept.
    partitions : tuple of tuple of Split
        Spark's partitions of the data, in order.
    batch_rows, batch_bytes : int
        Where Spark would cut an Arrow batch: at so many rows, or once it reaches so many bytes.
    """

    columns: dict[str, str]
    kinds: dict[str, str]
    conditions: tuple[Condition, ...]
    partitions: tuple[tuple[Split, ...], ...]
    batch_rows: int
    batch_bytes: int


def plain_scan(df: DataFrame, names: Iterable[str]) -> Scan | None:
    """What ``df.select(*names)`` reads, or None where its plan is not a plain Parquet scan."""
    try:
        return _scan(df.select(*map(quoted, dict.fromkeys(names))))
    except Exception as why:  # plans are no public interface: what looks new is Spark's to read
        logger.debug("rows come through Spark: %s", why)
        return None


def _scan(df: DataFrame) -> Scan:
    spark: Any = df.sparkSession
    jvm: Any = spark._jvm
    listed = jvm.scala.jdk.javaapi.CollectionConverters.asJava
    query: Any = df._jdf.queryExecution()
    conf = spark._jsparkSession.sessionState().conf()
    # A look at the logical plan costs less than a physical one that is not used.
    for leaf in listed(query.withCachedData().collectLeaves()):
        _expect(leaf, RELATION)
    if conf.parquetFieldIdReadEnabled():
        raise NotPlain("columns may be found by their field ids")

    node = query.sparkPlan()
    wanted = [(attribute.name(), _id(attribute)) for attribute in listed(node.output())]
    renamed: dict[int, int] = {}
    filters = []
    while (kind := _class(node)) != EXECUTION + "FileSourceScanExec":
        if kind == EXECUTION + "FilterExec":
            filters.append(node.condition())
        else:
            _expect(node, EXECUTION + "ProjectExec")
            renamed.update(_aliases(listed(node.projectList())))
        node = node.child()
    _expect(node.relation().fileFormat(), PARQUET)
    if node.bucketedScan():  # which a later rule of Spark's may turn into an ordinary one
        raise NotPlain("buckets")

    # Behind the files' columns stand those of the partitions' directories, and of metadata.
    fields = StructType.fromJson(json.loads(node.requiredSchema().json())).fields
    files = {_id(a): f for a, f in zip(listed(node.output()), fields, strict=False)}

    def column(number: int) -> str:
        while number in renamed:
            number = renamed[number]
        if number not in files:
            raise NotPlain("a column of the directories' names, or of metadata")
        return files[number].name

    columns = {name: column(number) for name, number in wanted}
    types = {field.name: field.dataType.simpleString() for field in fields}
    conditions = tuple(c for f in filters for c in _conditions(f, column, types, listed))
    kinds = {name: types[name] for name in (*columns.values(), *(c.column for c in conditions))}
    others = {types[name] for name in columns.values()} - KINDS
    others |= set(kinds.values()) - KINDS - COMPARED
    if others:
        raise NotPlain(f"types {sorted(others)}")
    partitions = _partitions(node, listed)
    rows = conf.arrowMaxRecordsPerBatch()
    if not partitions or rows <= 0:
        raise NotPlain("no files, or no limit on the rows of an Arrow batch")
    return Scan(columns, kinds, conditions, partitions, rows, conf.arrowMaxBytesPerBatch())


def _class(node: Any) -> str:
    name: str = node.getClass().getName()
    return name


def _expect(node: Any, name: str) -> None:
    if _class(node) != name:
        raise NotPlain(_class(node))


def _id(attribute: Any) -> int:
    _expect(attribute, CATALYST + "AttributeReference")
    number: int = attribute.exprId().id()
    return number


def _aliases(projected: Sequence[Any]) -> Iterable[tuple[int, int]]:
    """The columns that a projection renames: their new id and the old one."""
    for expression in projected:
        if _class(expression) == CATALYST + "Alias":
            yield expression.exprId().id(), _id(expression.child())
        else:
            _id(expression)


def _conditions(e: Any, column: Any, types: dict[str, str], listed: Any) -> list[Condition]:
    """A filter's expression as conditions that all hold."""
    again = partial(_conditions, column=column, types=types, listed=listed)
    kind = _class(e).removeprefix(CATALYST)
    match kind:
        case "And":
            return [*again(e.left()), *again(e.right())]
        case "IsNotNull":
            return [Condition(column(_id(e.child())), "valid")]
        case "AttributeReference":  # of a boolean column
            return [Condition(column(_id(e)), "=", True)]
        case "Not":
            return [Condition(column(_id(e.child())), "=", False)]
        case "In":
            name = column(_id(e.value()))
            found: Any = [_literal(literal) for literal in listed(e.list())]
        case "InSet":
            name = column(_id(e.child()))
            found = [_value(value) for value in listed(e.hset())]
        case _ if kind in OPERATORS:
            name, found = column(_id(e.left())), _literal(e.right())
        case _:
            raise NotPlain(kind)
    if types[name] not in COMPARED:
        raise NotPlain(f"a comparison of {types[name]}")
    if kind in OPERATORS:
        return [Condition(name, OPERATORS[kind], found)]
    return [Condition(name, "in", [value for value in found if value is not None])]


def _literal(e: Any) -> Any:
    _expect(e, CATALYST + "Literal")
    return _value(e.value())


def _value(value: Any) -> Any:
    return value if isinstance(value, int | None) else value.toString()  # of a UTF8String


def _partitions(scan: Any, listed: Any) -> tuple[tuple[Split, ...], ...]:
    """The splits of Spark's own partitions."""
    (rdd,) = listed(scan.inputRDDs())
    found = [
        [(_local(file.urlEncodedPath()), file.start(), file.length()) for file in p.files()]
        for p in listed(rdd.filePartitions())
    ]
    sizes: dict[str, int] = {}
    for files in found:
        for path, start, length in files:
            sizes[path] = max(sizes.get(path, 0), start + length)
    return tuple(tuple(Split(*file, sizes[file[0]]) for file in files) for files in found)


def _local(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc:
        raise NotPlain(f"files of {parts.scheme}://{parts.netloc}")
    return unquote(parts.path)
