"""Rows that break their schema or a check: counted, sampled, reported, never silently dropped."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mllib_ext.columns import quoted
from mllib_ext.job.config.prepare import Quarantine
from mllib_ext.job.declared import ORIGINAL, REASONS, marked
from mllib_ext.job.errors import first_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """The rows of an input, those that are whole apart from those that are broken.

    Attributes
    ----------
    whole : DataFrame
        Rows that break nothing, without the marks.
    rows, broken : int
        How many there were, and how many of them are broken.
    reasons : dict of str to int
        Broken rows by reason, the most frequent first; a row may have several.
    sample : DataFrame
        Broken rows: ``reasons``, ``row`` (as JSON).
    """

    whole: DataFrame
    rows: int
    broken: int
    reasons: dict[str, int]
    sample: DataFrame

    def report(self) -> dict[str, Any]:
        """The counts, for ``metrics.json``."""
        return {"rows": self.rows, "broken": self.broken, "reasons": self.reasons}


def with_checks(frame: DataFrame, checks: Mapping[str, str]) -> DataFrame:
    """Mark the rows for which a condition is false, beside what is marked already.

    Raises
    ------
    ValueError
        SQL that Spark cannot read over these columns, or that is no condition.
    """
    if not checks:
        return frame
    visible = frame.drop(REASONS, ORIGINAL)
    wrongs = []
    for name, sql in checks.items():
        try:
            kind = visible.select(F.expr(sql)).schema[0].dataType.simpleString()
        except (AnalysisException, ParseException) as error:
            raise ValueError(
                f"checks.{name}: expected SQL over the columns, found {sql!r}: {first_line(error)}"
            ) from None
        if kind != "boolean":
            raise ValueError(f"checks.{name}: expected a condition, found {sql!r} of type {kind}")
        wrongs.append((~F.expr(sql), name))
    reasons = F.concat(quoted(REASONS), marked(wrongs))
    row = F.to_json(F.struct(*[quoted(name) for name in visible.columns]))
    return frame.withColumns(
        {REASONS: reasons, ORIGINAL: F.coalesce(ORIGINAL, F.when(F.size(reasons) > 0, row))}
    )


@contextmanager
def checked(frame: DataFrame, name: str, quarantine: Quarantine) -> Iterator[Checked]:
    """Divide the marked rows of an input, read once and cached while the block lasts.

    Raises
    ------
    ValueError
        No rows, none that is whole, or more broken ones than ``quarantine.most`` allows.
    """
    frame = frame.persist()
    try:
        is_broken = F.size(REASONS) > 0
        counts = frame.agg(
            F.count("*").alias("rows"), F.count_if(is_broken).alias("broken")
        ).first()
        assert counts is not None  # an aggregate has a row
        rows, broken = int(counts["rows"]), int(counts["broken"])
        reasons: dict[str, int] = {}
        if broken:
            found = frame.select(F.explode(REASONS).alias("reason")).groupBy("reason").count()
            by_count = sorted(found.collect(), key=lambda row: (-row["count"], row["reason"]))
            reasons = {row["reason"]: row["count"] for row in by_count}
            logger.warning("%s: %s", name, in_words(rows, broken, reasons))
        _refuse(name, rows, broken, reasons, quarantine)
        sample = frame.filter(is_broken).select(
            F.lit(name).alias("input"),
            quoted(REASONS).alias("reasons"),
            quoted(ORIGINAL).alias("row"),
        )
        # By a hash: the first rows of a file would be those of its first day.
        drawn = sample.orderBy(F.xxhash64("row"), "row").limit(quarantine.sample)
        whole = frame.filter(~is_broken).drop(REASONS, ORIGINAL)
        yield Checked(whole, rows, broken, reasons, drawn)
    finally:
        frame.unpersist()


def in_words(rows: int, broken: int, reasons: Mapping[str, int]) -> str:
    """Counts as part of a sentence."""
    details = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.items())
    return f"{broken:,} of {rows:,} rows are broken: {details}"


def _refuse(
    name: str, rows: int, broken: int, reasons: Mapping[str, int], quarantine: Quarantine
) -> None:
    if rows == 0:
        raise ValueError(f"{name}: expected at least one row, found no rows")
    if broken == rows or broken > quarantine.most * rows:
        expected = f"at most {quarantine.most:.4g} of the rows" if broken < rows else "whole rows"
        raise ValueError(f"{name}: expected {expected}, found {in_words(rows, broken, reasons)}")
