"""A preparation job: read, check, join, sample, encode, partition, write as Parquet."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from functools import partial, reduce
from typing import Any

from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession

from mllib_ext.columns import data_type, quoted
from mllib_ext.job import declared, inputs, outputs, partitioning, pipelines, report, sampling
from mllib_ext.job.config import PrepareConfig
from mllib_ext.job.config.prepare import Join
from mllib_ext.job.config.section import listed
from mllib_ext.job.quarantine import Checked, checked, in_words, with_checks
from mllib_ext.job.rows import described
from mllib_ext.job.summary import output_line

logger = logging.getLogger(__name__)


def prepare(spark: SparkSession, config: PrepareConfig) -> str:
    """Run a preparation job. The summary for its user.

    Parameters
    ----------
    spark : SparkSession
    config : PrepareConfig

    Raises
    ------
    FileExistsError
        The output exists: before anything is read.
    ValueError, TypeError
        Bad input: before anything is written.
    """
    began = time.perf_counter()
    stages = pipelines.preparation(config.encode, config.stages)
    with outputs.output_directory(config.output) as directory, ExitStack() as caches:
        rows, sides = _joined(spark, config, caches)
        result: dict[str, Any] = {
            "name": config.name,
            "inputs": {name: side.report() for name, side in sides.items()},
        }
        pipelines.refuse_encoding(rows.schema, config.encode)
        rows = _sampled(rows, config, result, caches)
        _refuse_missing(rows, config)
        fitted, rows = pipelines.prepare(stages, rows)
        rows = _cached(_kept(rows, config), caches)
        result["partitions"] = {"before": partitioning.skew(rows)}
        if result["partitions"]["before"]["most"] == 0:
            raise ValueError("join: expected rows that match, found none")
        if config.partition is not None:
            rows = _cached(partitioning.partitioned(rows, config.partition), caches)
            result["partitions"]["after"] = partitioning.skew(rows)
        logger.info("writing")
        rows.write.parquet(f"{directory}/{outputs.DATA}")
        result["rows"] = next(iter(result["partitions"].values()))["rows"]
        result["columns"] = {field.name: field.dataType.simpleString() for field in rows.schema}
        broken = [side.sample for side in sides.values() if side.broken]
        if broken and config.quarantine.sample:
            sample = reduce(DataFrame.unionByName, broken)
            sample.coalesce(1).write.json(f"{directory}/{outputs.QUARANTINE}")
        if fitted:
            outputs.write_model(directory, PipelineModel(fitted))
        result["seconds"] = time.perf_counter() - began
        outputs.write_report(directory, config, result)
        report.write(directory, partial(report.preparation, spark, config, result))
    return _summary(config, result)


def _joined(
    spark: SparkSession, config: PrepareConfig, caches: ExitStack
) -> tuple[DataFrame, dict[str, Checked]]:
    """The whole rows of all inputs, joined; and the rows of each input, checked."""
    frame = with_checks(inputs.united(spark, config.input, declared.read), config.checks)
    others = [
        (f"join.{i}.input", join, declared.read(spark, join.input, f"join.{i}.input"))
        for i, join in enumerate(config.join)
    ]
    known = [name for name in frame.columns if name not in (declared.REASONS, declared.ORIGINAL)]
    for name, join, other in others:  # all of them before the first is read
        known = _refuse_join(known, other, join, name.removesuffix(".input"))
    logger.info("reading %s", described([*config.input, *(join.input for join in config.join)]))
    enter = partial(_entered, config, caches)
    sides = {"input": enter("input", frame)}
    rows = sides["input"].whole
    for name, join, other in others:
        sides[name] = enter(name, other)
        rows = rows.join(sides[name].whole, listed(join.by), join.how)
    return rows, sides


def _entered(config: PrepareConfig, caches: ExitStack, name: str, frame: DataFrame) -> Checked:
    return caches.enter_context(checked(frame, name, config.quarantine))


def _refuse_join(known: list[str], other: DataFrame, join: Join, name: str) -> list[str]:
    """The columns after a join; a ValueError for keys that are missing and names that clash."""
    theirs = [c for c in other.columns if c not in (declared.REASONS, declared.ORIGINAL)]
    keys = listed(join.by)
    for key in keys:
        for where, columns in (("the columns before it", known), ("its input", theirs)):
            if key not in columns:
                raise ValueError(
                    f"{name}.by: expected a column of {where}, {columns}, found {key!r}"
                )
    if join.how in ("semi", "anti"):
        return known
    for column in theirs:
        if column not in keys and column.lower() in {k.lower() for k in known}:
            raise ValueError(
                f"{name}: expected no column but its keys to be there already, found {column!r}; "
                "derive renames it"
            )
    return [*known, *(column for column in theirs if column not in keys)]


def _sampled(
    rows: DataFrame, config: PrepareConfig, result: dict[str, Any], caches: ExitStack
) -> DataFrame:
    if config.balance is None:
        return rows
    before = sampling.class_counts(rows, config.balance.column)
    # Cached: rows that are drawn twice might be others.
    rows = _cached(sampling.balanced(rows, config.balance, before), caches)
    after = sampling.class_counts(rows, config.balance.column)
    result["classes"] = {
        when: {str(value): count for value, count in counts.items()}
        for when, counts in (("before", before), ("after", after))
    }
    return rows


def _refuse_missing(rows: DataFrame, config: PrepareConfig) -> None:
    missing = pipelines.missing(config.encode)
    if missing:
        counts = rows.agg(*[column.alias(key) for key, column in missing.items()]).first()
        assert counts is not None  # an aggregate has a row
        pipelines.refuse_missing(counts.asDict())


def _kept(rows: DataFrame, config: PrepareConfig) -> DataFrame:
    for name in config.columns or ():
        data_type(rows.schema, name, "columns")
    return rows.select(*[quoted(name) for name in config.columns or rows.columns])


def _cached(rows: DataFrame, caches: ExitStack) -> DataFrame:
    rows = rows.persist()
    caches.callback(rows.unpersist)
    return rows


def _summary(config: PrepareConfig, result: dict[str, Any]) -> str:
    lines = [f"{config.name}: {result['rows']:,} rows written in {result['seconds']:.1f} s", ""]
    for name, side in result["inputs"].items():
        if side["broken"]:
            words = in_words(side["rows"], side["broken"], side["reasons"])
            sample = f"; a sample is in {outputs.QUARANTINE}" if config.quarantine.sample else ""
            lines += [f"{name}: {words}{sample}"]
        else:
            lines += [f"{name}: {side['rows']:,} rows, none of them broken"]
    for when, counts in result.get("classes", {}).items():
        words = ", ".join(f"{value} ({count:,})" for value, count in counts.items())
        lines += [f"classes {when}: {words}"]
    for when, skew in result["partitions"].items():
        lines += [
            f"partitions {when}: {skew['partitions']} of {skew['least']:,} to {skew['most']:,} "
            f"rows, skew {skew['skew']:.3g}"
        ]
    return "\n".join([*lines, "", f"{output_line(config)}/{outputs.DATA}"])
