"""How rows are spread over partitions, and how unevenly."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mllib_ext.columns import data_type, quoted
from mllib_ext.job.config.prepare import Partitioning

# Groups of method "balanced" are told to the driver and sent to every executor.
MOST_GROUPS = 1_000_000


def partitioned(rows: DataFrame, how: Partitioning) -> DataFrame:
    """The rows in ``how.count`` partitions.

    Raises
    ------
    ValueError
        A column that is not there, or too many groups of equal columns to balance.
    """
    for name in how.columns or ():
        data_type(rows.schema, name, "partition.columns")
    columns = [quoted(name) for name in how.columns or ()]
    match how.method:
        case "hash":
            return rows.repartition(how.count, *columns)
        case "range":
            return rows.repartitionByRange(how.count, *columns)
        case "balanced":
            return _balanced(rows, columns, how.count)
    return rows.repartition(how.count)


def _balanced(rows: DataFrame, columns: list[Any], count: int) -> DataFrame:
    group, target = "__group", "__target"
    # Equal columns have an equal hash; two groups with the same hash stay together, harmlessly.
    marked = rows.withColumn(group, F.xxhash64(*columns))
    groups = marked.groupBy(group).count().limit(MOST_GROUPS + 1).collect()
    if len(groups) > MOST_GROUPS:
        raise ValueError(
            f"partition.columns: expected at most {MOST_GROUPS:,} groups of equal columns to "
            "balance, found more; method: hash or range takes any number"
        )
    groups.sort(key=lambda row: (-row["count"], row[group]))
    places = emptiest_first([row["count"] for row in groups], count)
    table = rows.sparkSession.createDataFrame(
        [(row[group], place) for row, place in zip(groups, places, strict=True)],
        f"{group} bigint, {target} int",
    )
    joined = marked.join(F.broadcast(table), group)
    return joined.repartitionById(count, F.col(target)).drop(group, target)


def emptiest_first(sizes: Sequence[int], count: int) -> list[int]:
    """The partition of each group, given the largest first: always the emptiest.

    The largest partition has at most 4/3 - 1/(3 count) times the rows that it needs to have
    (Graham 1969, Bounds on Multiprocessing Timing Anomalies, theorem 2).
    """
    heap = [(0, place) for place in range(count)]
    places = []
    for size in sizes:
        filled, place = heapq.heappop(heap)
        places.append(place)
        heapq.heappush(heap, (filled + size, place))
    return places


def skew(rows: DataFrame) -> dict[str, Any]:
    """How rows lie in partitions: their number, and the rows of the emptiest and the fullest.

    Returns
    -------
    dict
        ``rows``, ``partitions``, ``least``, ``most``, and ``skew``, the most over the mean: 1 is
        even.
    """
    partitions = rows.rdd.getNumPartitions()
    counts = [row["count"] for row in rows.groupBy(F.spark_partition_id()).count().collect()]
    total, most = sum(counts), max(counts, default=0)
    return {
        "rows": total,
        "partitions": partitions,
        "least": min(counts) if len(counts) == partitions and counts else 0,
        "most": most,
        "skew": most * partitions / total if total else None,
    }
