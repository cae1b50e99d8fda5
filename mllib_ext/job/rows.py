"""Training and test rows: divided, cached, checked in the one pass that counts them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, NumericType, StructType

from mllib_ext.columns import quoted
from mllib_ext.job import pipelines
from mllib_ext.job.config import Source, TrainConfig
from mllib_ext.job.config.section import listed
from mllib_ext.job.config.train import BALANCED
from mllib_ext.job.split import is_test

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """Training and test rows, cached, and what one pass over them told.

    Attributes
    ----------
    train, test : DataFrame
    counts : dict of str to int
        Rows of ``train`` and ``test``.
    classes : int or None
        The largest label + 1, where there is a numeric label.
    """

    train: DataFrame
    test: DataFrame
    counts: dict[str, int]
    classes: int | None

    @property
    def sides(self) -> dict[str, DataFrame]:
        """``train`` and, where there are any, ``test`` rows by their name."""
        return {"train": self.train} | ({"test": self.test} if self.counts["test"] else {})


@contextmanager
def divided(
    data: DataFrame, config: TrainConfig, added: Mapping[str, Column] | None = None
) -> Iterator[Rows]:
    """Divide and cache the data, read once; the cache goes with the block.

    Parameters
    ----------
    data : DataFrame
    config : TrainConfig
    added : mapping of str to Column, optional
        Columns to compute from all of the data, and to keep beside those that the job uses.

    Raises
    ------
    ValueError
        No rows on a side, or values that cannot be trained on.
    """
    side = free_name("is_test", data)
    new = {**(added or {}), side: is_test(data.schema, config.split)}
    divided = data.withColumns(new)
    if not config.stages and config.encode is None:
        # All columns decide the split, those that are used are kept.
        divided = divided.select(*[quoted(name) for name in [*used_columns(config), *new]])
    divided = divided.persist()
    try:
        logger.info("reading %s", described(config.input))
        missing = pipelines.missing(config.encode)
        aggregates = {**_label_summary(data.schema, config.label_column), **missing}
        found = divided.groupBy(side).agg(
            F.count("*").alias("rows"),
            *[column.alias(name) for name, column in aggregates.items()],
        )
        rows = {row[side]: row.asDict() for row in found.collect()}
        counts = _counts(rows, config)
        classes = _classes(rows, config.label_column)
        pipelines.refuse_missing({k: sum(row[k] for row in rows.values()) for k in missing})
        yield Rows(
            divided.filter(~F.col(side)).drop(side),
            divided.filter(F.col(side)).drop(side),
            counts,
            classes,
        )
    finally:
        divided.unpersist()


def free_name(name: str, data: DataFrame) -> str:
    """The name, with underscores before it until no column has it."""
    taken = {column.lower() for column in data.columns}
    while name in taken:
        name = f"_{name}"
    return name


def described(sources: list[Source]) -> str:
    """Inputs in words: formats and paths."""
    return ", ".join(
        f"{source.format} {source.dataset or ', '.join(listed(source.path or []))}".strip()
        for source in sources
    )


def used_columns(config: TrainConfig) -> list[str]:
    """The columns that a job without ``encode`` and ``stages`` needs, each once."""
    weight = config.weight if config.weight != BALANCED else None
    names = [*listed(config.features), config.label_column, weight]
    return list(dict.fromkeys(name for name in names if name is not None))


def _label_summary(schema: StructType, label: str | None) -> dict[str, Column]:
    """Aggregates of the label beside a count of rows: ``bad`` (null or not finite), ``top``."""
    if label is None or label not in schema.names:  # a stage will make it
        return {}
    if not isinstance(schema[label].dataType, NumericType | BooleanType):
        return {}
    y: Any = quoted(label).cast("double")
    bad = y.isNull() | F.isnan(y) | (F.abs(y) == float("inf"))
    return {"bad": F.count_if(bad), "top": F.max(y)}


def _counts(rows: dict[bool, dict[str, Any]], config: TrainConfig) -> dict[str, int]:
    counts = {
        "train": rows[False]["rows"] if False in rows else 0,
        "test": rows[True]["rows"] if True in rows else 0,
    }
    total = sum(counts.values())
    if total == 0:
        raise ValueError("input: expected at least one row, found no rows")
    for side, count in counts.items():
        if count == 0 and (side == "train" or config.split.test > 0):
            raise ValueError(
                f"split.test: expected rows to train and to test with, found none to {side} with "
                f"when {config.split.test} of {total} rows are for testing"
            )
    return counts


def _classes(rows: dict[bool, dict[str, Any]], label: str | None) -> int | None:
    bad = sum(row.get("bad", 0) for row in rows.values())
    if bad:
        raise ValueError(
            f"label column {label!r}: expected a finite number in every row, found null, NaN or "
            f"an infinite value in {bad} of them"
        )
    tops = [row["top"] for row in rows.values() if row.get("top") is not None]
    return int(max(tops)) + 1 if tops else None
