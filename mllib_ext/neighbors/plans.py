"""How queries and items meet on a cluster, as lazy DataFrames.

====================  ===========================================================================
broadcast_items       each executor holds the items in one mapped file, and the queries stream by;
                      a streaming DataFrame of queries may, too
broadcast_queries     the other way round: each partition of items answers all queries, and the
                      answers are merged by query
exchange              neither fits: both sides are packed into blocks, dealt into groups, and each
                      pair of groups meets in one task; the answers are merged by query
====================  ===========================================================================

All three are plain DataFrame lineage: what an executor loses is computed again.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mllib_ext.columns import BadRow, Features, Matrix
from mllib_ext.distances import Metric
from mllib_ext.mapped import Mapped
from mllib_ext.neighbors.items import ARROW, Codes, Items, checked_ids, decoded_rows, id_column
from mllib_ext.neighbors.ivf import InvertedFile
from mllib_ext.neighbors.top_k import Neighbors, Search
from mllib_ext.prediction import by_rows

# What a task of an exchange holds of either side.
GROUP_BYTES = 64 << 20


@dataclass(frozen=True)
class Request:
    """What is looked for.

    Attributes
    ----------
    k : int
    metric : Metric
    radius : float or None
    exclude_self : bool
        Items of the query's own id do not count.
    """

    k: int
    metric: Metric
    radius: float | None = None
    exclude_self: bool = False

    def search(self, Q: Matrix, exclude: np.ndarray | None) -> Search:
        """A search that begins."""
        return Search(Q, self.k, self.metric, radius=self.radius, exclude=exclude)

    def neighbors(self, items: Items, Q: Matrix, ids: pa.Array) -> Neighbors:
        """The neighbours of queries Q (m, d) of these ids (m,) among items in memory."""
        search = self.search(Q, items.codes.encode(ids) if self.exclude_self else None)
        search.add(items.X, items.ids, items.tiles)
        return search.neighbors()


class Lookup(Protocol):
    """How neighbours are looked up in what the executors hold: a value with ``codes``."""

    @property
    def metric(self) -> Metric: ...
    def neighbors(self, items: Any, Q: Matrix, ids: pa.Array) -> Neighbors: ...


@dataclass(frozen=True)
class Index:
    """An inverted file, and what the ids in it stand for."""

    file: InvertedFile
    codes: Codes


@dataclass(frozen=True)
class Probes:
    """A :class:`Lookup` in an index."""

    k: int
    n: int
    metric: Metric

    def neighbors(self, index: Index, Q: Matrix, ids: pa.Array) -> Neighbors:
        return index.file.neighbors(Q, self.k, self.n)


@dataclass(frozen=True)
class Side:
    """One side of the join: its columns, resolved on the driver.

    Attributes
    ----------
    features : Features
    n_features : int
    id : str
    kind : {"long", "string"}
        The type of the ids.
    """

    features: Features
    n_features: int
    id: str
    kind: str

    def columns(self, df: DataFrame) -> list[Any]:
        """What Arrow carries: the id, then the features."""
        return [id_column(df.schema, self.id)[0], *self.features.expressions()]

    def select(self, df: DataFrame) -> DataFrame:
        columns = [c.alias(f"c{i}") for i, c in enumerate(self.columns(df))]
        return df.select(*columns)

    def decode(self, batches: Iterable[Any], metric: Metric) -> Iterator[tuple[Matrix, pa.Array]]:
        """Features and ids, batch by batch; ValueError at a bad row, which it names."""
        n = 0
        for batch in batches:
            arrays = batch.columns if isinstance(batch, pa.RecordBatch) else batch
            try:
                ids = checked_ids(arrays[0], self.id)
                d = self.n_features
                X = decoded_rows(self.features, arrays[1:], d, metric) if len(ids) else None
            except BadRow as bad:
                context = TaskContext.get()
                where = f"partition {context.partitionId()}, " if context else ""
                raise ValueError(f"{bad} ({where}row {n + bad.row})") from None
            yield np.empty((0, d)) if X is None else X, ids
            n += len(ids)


# --- broadcast_items ---------------------------------------------------------------------------


def with_neighbors(
    queries: DataFrame, side: Side, items: Mapped, item_kind: str, request: Lookup, name: str
) -> DataFrame:
    """The queries with one more column: a struct of ``indices`` and ``distances``."""
    function = partial(_stream, side, items, request)

    def search(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        return function(batches)

    search.__annotations__ = {
        "batches": Iterator[tuple[pa.Array, ...]],
        "return": Iterator[pa.Array],
    }
    schema = f"indices array<{item_kind}>, distances array<double>"
    udf = F.arrow_udf(search, schema)  # type: ignore[call-overload]
    return by_rows(queries).withColumn(name, udf(*side.columns(queries)))


def _stream(
    side: Side, mapped: Mapped, request: Lookup, batches: Iterator[tuple[pa.Array, ...]]
) -> Iterator[pa.Array]:
    items = mapped.open()
    for Q, ids in side.decode(batches, request.metric):
        found = request.neighbors(items, Q, ids)
        yield pa.StructArray.from_arrays(
            [
                pa.ListArray.from_arrays(found.offsets, items.codes.decode(found.ids)),
                pa.ListArray.from_arrays(found.offsets, found.distances),
            ],
            ["indices", "distances"],
        )


# --- answers of parts, and their merge ---------------------------------------------------------


class QueryBlock(NamedTuple):
    """Some queries; ``number`` tells their rows from those of other blocks."""

    number: int
    Q: Matrix
    ids: pa.Array


def packed(df: DataFrame, side: Side, metric: Metric) -> DataFrame:
    """The rows as a few large binary values: ``block long, data binary``."""
    function = partial(_pack, side, metric)
    return side.select(df).mapInArrow(function, "block long, data binary")


def _pack(side: Side, metric: Metric, batches: Iterator[pa.RecordBatch]) -> Iterator[Any]:
    context = TaskContext.get()
    assert context is not None
    for i, rows in enumerate(side.decode(batches, metric)):
        if len(rows[1]):
            row = {"block": (context.partitionId() << 33) + i, "data": pickle.dumps(rows, 5)}
            yield pa.RecordBatch.from_pylist([row], _BLOCK)


_BLOCK = pa.schema([("block", pa.int64()), ("data", pa.binary())])


def _opened(blocks: Iterable[pa.RecordBatch]) -> Iterator[QueryBlock]:
    for batch in blocks:
        for number, data in zip(batch.column(0), batch.column(1), strict=True):
            yield QueryBlock(number.as_py(), *pickle.loads(data.as_buffer()))


def _comparable(parts: Iterable[tuple[Matrix, pa.Array]]) -> Iterator[Items]:
    """Items whose codes may be compared: of integers each part, of strings all parts as one."""
    strings = []
    for X, ids in parts:
        if pa.types.is_integer(ids.type):
            yield Items.of(X, ids)
        else:
            strings.append((X, ids))
    if strings:
        yield Items.joined(strings)


def _answers(
    queries: Iterable[QueryBlock], items: Iterable[Items], request: Request, kind: str
) -> Iterator[pa.RecordBatch]:
    """For every query, if without any neighbour too: its nearest among the items."""
    blocks = list(queries)
    searches: list[Search] = []
    codes = None
    for part in items:
        codes = part.codes
        if not searches:
            for block in blocks:
                exclude = codes.encode(block.ids) if request.exclude_self else None
                searches.append(request.search(block.Q, exclude))
        for search in searches:
            search.add(part.X, part.ids)
    for i, block in enumerate(blocks):
        n = len(block.ids)
        found = searches[i].neighbors() if searches else Neighbors.none(n)
        ids = codes.decode(found.ids) if codes else pa.array([], ARROW[kind])
        pairs = pa.StructArray.from_arrays(
            [pa.array(request.metric.sign * found.distances), ids.cast(ARROW[kind])],
            ["distance", "id"],
        )
        yield pa.RecordBatch.from_arrays(
            [
                pa.array(np.full(n, block.number)),
                pa.array(np.arange(n)),
                block.ids,
                pa.ListArray.from_arrays(found.offsets, pairs),
            ],
            ["block", "row", "query", "candidates"],
        )


def _answer_schema(query_kind: str, item_kind: str) -> str:
    candidates = f"array<struct<distance:double,id:{item_kind}>>"
    return f"block long, row long, query {query_kind}, candidates {candidates}"


def _merged(answers: DataFrame, request: Request) -> DataFrame:
    """``query``, ``indices`` and ``distances`` of every query, from its answers."""
    candidates = F.array_sort(F.flatten(F.collect_list("candidates")))
    nearest = answers.groupBy("block", "row").agg(
        F.first("query").alias("query"), F.slice(candidates, 1, request.k).alias("nearest")
    )
    distances = F.transform("nearest", lambda c: F.lit(request.metric.sign) * c["distance"])
    return nearest.select(
        "query", F.col("nearest")["id"].alias("indices"), distances.alias("distances")
    )


# --- broadcast_queries -------------------------------------------------------------------------


def broadcast_queries(
    queries: DataFrame, query_side: Side, items: DataFrame, item_side: Side, request: Request
) -> DataFrame:
    """``query``, ``indices``, ``distances``: the queries go to the items."""
    rows = packed(queries, query_side, request.metric).collect()
    blocks = [QueryBlock(row.block, *pickle.loads(row.data)) for row in rows]
    mapped = Mapped(queries.sparkSession.sparkContext, blocks)
    function = partial(_answer_partition, item_side, mapped, request)
    schema = _answer_schema(query_side.kind, item_side.kind)
    return _merged(item_side.select(items).mapInArrow(function, schema), request)


def _answer_partition(
    side: Side, mapped: Mapped, request: Request, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    parts = (part for part in side.decode(batches, request.metric) if len(part[1]))
    yield from _answers(mapped.open(), _comparable(parts), request, side.kind)


# --- exchange ----------------------------------------------------------------------------------


def exchange(
    queries: DataFrame,
    query_side: Side,
    items: DataFrame,
    item_side: Side,
    request: Request,
    groups: tuple[int, int],
) -> DataFrame:
    """``query``, ``indices``, ``distances``: both sides in groups that meet pair by pair.

    ``groups`` says how many of queries and of items.
    """
    h, g = groups
    mine, other = F.pmod(F.xxhash64("block"), F.lit(h)), F.pmod(F.xxhash64("block"), F.lit(g))
    left = packed(queries, query_side, request.metric).select(
        "block", "data", mine.alias("h"), F.explode(F.sequence(F.lit(0), F.lit(g - 1))).alias("g")
    )
    right = packed(items, item_side, request.metric).select(
        "block", "data", F.explode(F.sequence(F.lit(0), F.lit(h - 1))).alias("h"), other.alias("g")
    )
    left, right = (
        side.withColumns({"h": F.col("h").cast("long"), "g": F.col("g").cast("long")})
        for side in (left, right)
    )
    function = partial(_answer_pair, request, query_side.kind, item_side.kind)

    def meet(left: pa.Table, right: pa.Table) -> pa.Table:
        return function(left, right)

    schema = _answer_schema(query_side.kind, item_side.kind)
    pairs = left.groupBy("h", "g").cogroup(right.groupBy("h", "g"))
    return _merged(pairs.applyInArrow(meet, schema), request)


def _answer_pair(
    request: Request, query_kind: str, item_kind: str, left: pa.Table, right: pa.Table
) -> pa.Table:
    items = ((block.Q, block.ids) for block in _opened(right.to_batches()))
    queries = _opened(left.to_batches())
    found = _answers(queries, _comparable(items), request, item_kind)
    pairs = pa.list_(pa.struct([("distance", pa.float64()), ("id", ARROW[item_kind])]))
    places = [("block", pa.int64()), ("row", pa.int64())]
    columns = [*places, ("query", ARROW[query_kind]), ("candidates", pairs)]
    return pa.Table.from_batches(found, pa.schema(columns))
