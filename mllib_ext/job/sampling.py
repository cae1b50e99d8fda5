"""Classes of the same size, on average, by drawing rows or repeating them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mllib_ext.columns import data_type, quoted
from mllib_ext.job.config.prepare import Balance


def balanced(rows: DataFrame, how: Balance, counts: Mapping[Any, int]) -> DataFrame:
    """Rows drawn (``under``) or repeated (``over``).

    A row of a class with n of the m rows that a class is to have stands m // n times in the
    result, and once more with the probability of the remainder.

    Parameters
    ----------
    rows : DataFrame
    how : Balance
    counts : mapping of object to int
        The rows of each class, from :func:`class_counts`.
    """
    wanted = (max if how.method == "over" else min)(counts.values())
    copies = F.lit(0.0)
    for value, count in counts.items():
        copies = F.when(quoted(how.column) == F.lit(value), F.lit(wanted / count)).otherwise(copies)
    times = F.floor(copies + F.rand(how.seed)).cast("int")
    if how.method == "under":
        return rows.filter(times > 0)
    number = "__times"
    repeated = rows.withColumn(number, F.explode(F.array_repeat(F.lit(0), times)))
    return repeated.drop(number)


def class_counts(rows: DataFrame, column: str) -> dict[Any, int]:
    """Rows of each class.

    Raises
    ------
    ValueError
        No such column, a class that is null, or one class alone.
    """
    data_type(rows.schema, column, "balance.column")
    found = rows.groupBy(quoted(column).alias("class")).count().collect()
    counts = {row["class"]: row["count"] for row in sorted(found, key=lambda row: -row["count"])}
    if None in counts:
        raise ValueError(
            f"balance.column {column!r}: expected a class in every row, found null in "
            f"{counts[None]} of them"
        )
    if len(counts) < 2:
        raise ValueError(
            f"balance.column {column!r}: expected at least two classes, found {len(counts)}"
        )
    return counts
