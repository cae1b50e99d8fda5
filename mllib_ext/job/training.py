"""A training job from its config to its result: read, split, fit, evaluate, write."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mllib_ext.columns import quoted
from mllib_ext.job import evaluation, inputs, outputs
from mllib_ext.job.config import JobConfig
from mllib_ext.job.progress import progress
from mllib_ext.job.stages import make, params_of
from mllib_ext.job.summary import summary

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


def train(spark: SparkSession, config: JobConfig) -> str:
    """Run a training job. The summary for its user.

    Parameters
    ----------
    spark : SparkSession
    config : JobConfig

    Raises
    ------
    FileExistsError
        The output exists: before anything is read.
    ValueError, TypeError
        Bad input: before training.
    """
    estimator_class = config.estimator.find()
    label = config.label if "labelCol" in params_of(estimator_class) else None
    stages = [make(stage.find(), stage.params) for stage in config.stages]
    estimator, assembler = _estimator(config, estimator_class, label)

    with outputs.output_directory(config.output) as directory:
        data = inputs.read(spark, config.input)
        if not stages:
            inputs.refuse_columns(data.schema, config, label)
        with _rows(data, config, label) as rows:
            _refuse_metrics(config, rows.classes)
            fitted, prepared = _prepare(stages, rows.train)
            inputs.refuse_columns(prepared.schema, config, label)
            if assembler is not None:
                fitted.append(assembler)
                prepared = assembler.transform(prepared)
            began = time.perf_counter()
            model = _fit(estimator, prepared, config, rows.counts["train"])
            seconds = time.perf_counter() - began
            pipeline = PipelineModel([*fitted, model])

            classes = getattr(model, "numClasses", rows.classes)
            metrics: Sequence[str] = config.evaluation or ()
            if config.evaluation is None:
                metrics = evaluation.default_metrics(estimator_class, classes)
            logger.info("evaluating %s", ", ".join(metrics) or "nothing")
            result = {
                "name": config.name,
                "estimator": config.estimator.class_,
                "rows": rows.counts,
                "fit": _fit_report(model, seconds),
                "metrics": _evaluate(pipeline, rows, metrics, estimator, config, label),
            }
        history = getattr(model, "history", ())
        outputs.write(directory, config, pipeline, outputs.plain(result), history)
    return summary(config, result)


def _estimator(config: JobConfig, cls: type, label: str | None) -> tuple[Any, Any]:
    """The estimator with its columns set, and the assembler that a list of columns may need."""
    estimator = make(cls, config.estimator.params)
    assembler = None
    if isinstance(config.features, str):
        if estimator.hasParam("featuresCol"):
            estimator._set(featuresCol=config.features)
    elif estimator.hasParam("featuresCols"):
        estimator.setFeaturesCol(config.features)
    else:
        # Not "features": a column of that name may be among the input's.
        assembler = VectorAssembler(inputCols=config.features, outputCol="assembled_features")
        estimator._set(featuresCol="assembled_features")
    if label is not None:
        estimator._set(labelCol=label)
    if config.weight is not None:
        estimator._set(weightCol=config.weight)
    return estimator, assembler


@contextmanager
def _rows(data: DataFrame, config: JobConfig, label: str | None) -> Iterator[Rows]:
    """Divide and cache the data, read once; the cache goes with the block."""
    side = "is_test"
    while side in {name.lower() for name in data.columns}:
        side = f"_{side}"
    divided = data.withColumn(side, inputs.is_test(data.schema, config.split))
    if not config.stages:
        # All columns decide the split, those that are used are kept.
        names = [*inputs.used_columns(config, label), side]
        divided = divided.select(*[quoted(name) for name in names])
    divided = divided.persist()
    try:
        aggregates = inputs.label_summary(data.schema, label)
        logger.info("reading %s", ", ".join(_source(source) for source in config.input))
        found = divided.groupBy(side).agg(
            F.count("*").alias("rows"),
            *[column.alias(name) for name, column in aggregates.items()],
        )
        rows = {row[side]: row.asDict() for row in found.collect()}
        yield Rows(
            divided.filter(~F.col(side)).drop(side),
            divided.filter(F.col(side)).drop(side),
            _counts(rows, config),
            _classes(rows, label),
        )
    finally:
        divided.unpersist()


def _source(source: Any) -> str:
    path = source.path if isinstance(source.path, str) else ", ".join(source.path or ())
    return f"{source.format} {source.dataset or path}".strip()


def _counts(rows: dict[bool, dict[str, Any]], config: JobConfig) -> dict[str, int]:
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


def _refuse_metrics(config: JobConfig, classes: int | None) -> None:
    """Spark's evaluator would take the ten classes of a label for two, without a word."""
    binary = [metric for metric in config.evaluation or () if metric in evaluation.BINARY]
    if binary and classes is not None and classes > 2:
        raise ValueError(
            f"evaluation: {binary[0]}: expected labels 0 and 1, found labels up to {classes - 1}"
        )


def _prepare(stages: list[Any], rows: DataFrame) -> tuple[list[Any], DataFrame]:
    """The stages before the estimator, fitted, and what they make of the training rows."""
    if not stages:
        return [], rows
    fitted = Pipeline(stages=stages).fit(rows)
    return list(fitted.stages), fitted.transform(rows)


def _fit(estimator: Any, rows: DataFrame, config: JobConfig, count: int) -> Any:
    title = f"{type(estimator).__name__} on {count:,} rows"
    with progress(config.progress, title) as callback:
        if hasattr(estimator, "setCallbacks"):
            estimator.setCallbacks([callback])
        return estimator.fit(rows)


def _fit_report(model: Any, seconds: float) -> dict[str, Any]:
    report: dict[str, Any] = {"seconds": seconds}
    for name in ("n_iter", "converged", "reason"):
        if hasattr(model, name):
            report[name] = getattr(model, name)
    history = getattr(model, "history", ())
    if history:
        report["loss"] = history[-1].loss
        report["rounds"] = sum(len(record.rounds) for record in history)
    return report


def _evaluate(
    pipeline: PipelineModel,
    rows: Rows,
    metrics: Sequence[str],
    estimator: Any,
    config: JobConfig,
    label: str | None,
) -> dict[str, dict[str, float | None]]:
    columns = {
        name: estimator.getOrDefault(name)
        for name in ("predictionCol", "rawPredictionCol", "probabilityCol", "featuresCol")
        if estimator.hasParam(name) and estimator.isDefined(name)
    }
    columns |= {"labelCol": label} if label is not None else {}
    columns |= {"weightCol": config.weight} if config.weight is not None else {}
    sides = {"train": rows.train} | ({"test": rows.test} if rows.counts["test"] else {})
    return {
        side: evaluation.evaluate(pipeline.transform(data), metrics, columns, side)
        for side, data in sides.items()
    }
