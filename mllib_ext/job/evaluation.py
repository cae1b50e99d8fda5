"""An evaluation job from its config to its result: read, load a model, predict, measure, write."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mllib_ext.columns import data_type, number, quoted
from mllib_ext.job import inputs, metrics, models, outputs, report
from mllib_ext.job.config import EvaluateConfig
from mllib_ext.job.scores import scores
from mllib_ext.job.summary import metrics_table, output_line

SIDE = "input"


def evaluate(spark: SparkSession, config: EvaluateConfig) -> str:
    """Run an evaluation job. The summary for its user.

    Parameters
    ----------
    spark : SparkSession
    config : EvaluateConfig

    Raises
    ------
    FileExistsError
        The output exists: before anything is read.
    FileNotFoundError, ValueError, TypeError
        No model or no input there; a column that is missing or of the wrong type; a metric that
        does not fit the model: before anything is predicted.
    """
    with outputs.output_directory(config.output) as directory:
        model = models.load(spark, config.model)
        names = _metrics(model, config)
        data = inputs.read(spark, config.input)
        models.refuse_columns(model, data.schema)
        predictions, columns = _predictions(model, data, config)
        began = time.perf_counter()
        task = metrics.task_of(type(model.stages[-1]))
        rows = _count(predictions, columns, task)
        found = scores({SIDE: predictions}, names, columns, task)
        if names and all(value is None for value in found.report["metrics"][SIDE].values()):
            raise ValueError(
                f"evaluation: expected a metric that these rows have, found none of "
                f"{', '.join(names)}"
            )
        result = {
            "name": config.name,
            "model": config.model,
            "rows": rows,
            "seconds": time.perf_counter() - began,
            **{key: value[SIDE] for key, value in found.report.items()},
        }
        outputs.write_report(directory, config, result)
        report.write(directory, partial(report.evaluation, spark, config, result, found))
    lines = [
        f"{config.name}: {rows:,} rows evaluated in {result['seconds']:.1f} s",
        "",
        *metrics_table(found.report["metrics"], {SIDE: rows}),
        "",
        output_line(config),
    ]
    return "\n".join(lines)


def _metrics(model: PipelineModel, config: EvaluateConfig) -> list[str]:
    last = model.stages[-1]
    if metrics.task_of(type(last)) is None:
        raise ValueError(
            f"model: expected one that predicts, found {type(last).__name__}, which does not"
        )
    wrong = metrics.wrong_metrics(type(last), config.evaluation or ())
    if wrong:
        raise ValueError(
            "; ".join(f"evaluation: expected {w.expected}, found {w.found}" for w in wrong)
        )
    if config.evaluation is not None:
        return config.evaluation
    return list(metrics.default_metrics(type(last), getattr(last, "numClasses", None)))


def _predictions(
    model: PipelineModel, data: DataFrame, config: EvaluateConfig
) -> tuple[DataFrame, dict[str, str]]:
    """The model's predictions, and its columns by their Param: those that there are."""
    columns = models.output_columns(model.stages[-1])
    predictions = model.transform(data)
    if "labelCol" in columns:
        indexer = models.label_indexer(model)
        source = indexer[0] if indexer is not None else columns["labelCol"]
        if config.label is None and columns["labelCol"] not in predictions.columns:
            data_type(data.schema, source, "label")  # it says that this one is not there
        columns["labelCol"] = config.label or columns["labelCol"]
        number(predictions.schema, columns["labelCol"], "label")
    if config.weight is not None:
        number(predictions.schema, config.weight, "weight")
        columns["weightCol"] = config.weight
    return predictions, columns


def _count(predictions: DataFrame, columns: dict[str, str], task: metrics.Task | None) -> int:
    """The number of rows; a ValueError where there are none, or no metric can be of them."""
    label, weight = columns.get("labelCol"), columns.get("weightCol")
    y: Any = quoted(label).cast("double") if label is not None else F.lit(0.0)
    w: Any = quoted(weight).cast("double") if weight is not None else F.lit(1.0)
    no_class = (y < 0) | (y != F.floor(y)) if task == "classification" else F.lit(False)
    counts = predictions.agg(
        F.count("*").alias("rows"),
        F.count_if(y.isNull() | F.isnan(y)).alias("bad"),
        F.count_if(no_class).alias("no_class"),
        F.count_if(w.isNull() | F.isnan(w) | (w < 0) | (w == math.inf)).alias("bad_weight"),
    ).first()
    assert counts is not None  # an aggregate has a row
    if counts["rows"] == 0:
        raise ValueError("input: expected at least one row, found no rows")
    if counts["bad"]:
        raise ValueError(
            f"label column {label!r}: expected a finite number in every row, found null or NaN in "
            f"{counts['bad']} of them"
        )
    if counts["no_class"]:
        raise ValueError(
            f"label column {label!r}: expected a class 0, 1, ... in every row, found another "
            f"number in {counts['no_class']} of them"
        )
    if counts["bad_weight"]:
        raise ValueError(
            f"weight column {weight!r}: expected a finite number of 0 or more in every row, found "
            f"none in {counts['bad_weight']} of them"
        )
    return int(counts["rows"])
