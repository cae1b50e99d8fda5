"""A training job from its config to its result: read, split, encode, fit, evaluate, write."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession

from mllib_ext.job import inputs, metrics, outputs, pipelines, report
from mllib_ext.job.config import TrainConfig
from mllib_ext.job.progress import progress
from mllib_ext.job.rows import Rows, divided
from mllib_ext.job.scores import Measured, scores
from mllib_ext.job.summary import training_summary
from mllib_ext.job.watching import page, stopped_by_interrupt
from mllib_ext.monitor.fits import Monitor, Served


def train(spark: SparkSession, config: TrainConfig) -> str:
    """Run a training job. The summary for its user.

    Parameters
    ----------
    spark : SparkSession
    config : TrainConfig

    Raises
    ------
    FileExistsError
        The output exists: before anything is read.
    ValueError, TypeError
        Bad input: before training.
    """
    estimator, between = pipelines.training(config, config.estimator.find())
    stages = pipelines.preparation(config.encode, config.stages)

    watched = hasattr(estimator, "setCallbacks")
    runs: dict[str, Served] = {}  # that the page shows

    with (
        outputs.output_directory(config.output) as directory,
        page(watched and config.page, lambda: runs) as url,
    ):
        data = inputs.read(spark, config.input)
        refuse(data, config)
        with divided(data, config) as rows:
            refuse_metrics(config, rows.classes)
            fitted, prepared = pipelines.prepare(stages, rows.train)
            pipelines.refuse_columns(prepared.schema, config)
            more, prepared = pipelines.prepare(between, prepared)
            began = time.perf_counter()
            model = _fit(estimator, prepared, config, rows.counts["train"], runs, url)
            seconds = time.perf_counter() - began
            pipeline = pipelines.for_prediction([*fitted, *more, model])
            found = measured(pipeline, rows, estimator, config)
            result = {
                "name": config.name,
                "estimator": config.estimator.class_,
                "rows": rows.counts,
                "fit": _fit_report(model, seconds),
                **found.report,
            }
        outputs.write_model(directory, pipeline, getattr(model, "history", ()))
        outputs.write_report(directory, config, result)
        run = outputs.recorded(config.output) if hasattr(estimator, "setRunDir") else None
        drawn = partial(
            report.training, spark, config, result, found, estimator, model, prepared.schema, run
        )
        report.write(directory, drawn)
    return training_summary(config, result)


def refuse(data: DataFrame, config: TrainConfig) -> None:
    """A ValueError or TypeError for columns of the input that the job cannot use."""
    pipelines.refuse_encoding(data.schema, config.encode)
    if config.encode is None and not config.stages:
        pipelines.refuse_columns(data.schema, config)


def refuse_metrics(config: TrainConfig, classes: int | None) -> None:
    """Spark's evaluator would take the ten classes of a label for two, without a word."""
    binary = [metric for metric in config.evaluation or () if metric in metrics.BINARY]
    if binary and classes is not None and classes > 2:
        raise ValueError(
            f"evaluation: {binary[0]}: expected labels 0 and 1, found labels up to {classes - 1}"
        )


def measured(pipeline: PipelineModel, rows: Rows, estimator: Any, config: TrainConfig) -> Measured:
    """The metrics that the config asks for, or those that fit, of both sides of the rows."""
    cls, names = type(estimator), config.evaluation
    if names is None:
        classes = getattr(pipeline.stages[-1], "numClasses", rows.classes)
        names = list(metrics.default_metrics(cls, classes))
    predictions = {side: pipeline.transform(data) for side, data in rows.sides.items()}
    columns = pipelines.columns(estimator, config)
    return scores(predictions, names, columns, metrics.task_of(cls))


def _fit(
    estimator: Any,
    rows: DataFrame,
    config: TrainConfig,
    count: int,
    runs: dict[str, Served],
    url: str | None,
) -> Any:
    title = f"{type(estimator).__name__} on {count:,} rows"
    if not hasattr(estimator, "setCallbacks"):
        with progress(config.progress, title):
            return estimator.fit(rows)
    with outputs.recording(config.output, config.checkpointDir) as run:
        monitor = Monitor.at(run, keep=url is not None)
        runs["."] = Served(monitor)
        with (
            progress(config.progress, title, url) as callback,
            stopped_by_interrupt(monitor),
        ):
            estimator.setCallbacks([callback]).setCheckpointDir(config.checkpointDir)
            estimator._monitor = monitor
            return estimator.fit(rows)


def _fit_report(model: Any, seconds: float) -> dict[str, Any]:
    told: dict[str, Any] = {"seconds": seconds}
    for name in ("n_iter", "converged", "reason"):
        if hasattr(model, name):
            told[name] = getattr(model, name)
    if isinstance(getattr(model, "cost", None), float):
        told["cost"] = model.cost
    history = getattr(model, "history", ())
    if history:
        told["loss"] = history[-1].loss
        told["rounds"] = sum(len(record.rounds) for record in history)
    return told
