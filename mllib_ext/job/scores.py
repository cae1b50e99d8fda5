"""What is told of a model's predictions: metrics, and of each class or cluster how it came out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql.types import StructType

from mllib_ext.columns import quoted
from mllib_ext.job import metrics
from mllib_ext.job.class_report import class_report
from mllib_ext.job.cluster_report import cluster_report

logger = logging.getLogger(__name__)


def scores(
    sides: Mapping[str, DataFrame],
    names: Sequence[str],
    columns: Mapping[str, str],
    task: metrics.Task | None,
) -> dict[str, dict[str, Any]]:
    """Metrics of predictions, by the side of the data that they are of.

    Parameters
    ----------
    sides : mapping of str to DataFrame
        Predictions by the name of their rows.
    names : sequence of str
        The metrics.
    columns : mapping of str to str
        As :func:`mllib_ext.job.metrics.evaluate` takes them.
    task : {"classification", "regression", "clustering"} or None

    Returns
    -------
    dict
        ``metrics`` by side and, for a classification, ``classes`` by side
        (:func:`mllib_ext.job.class_report.class_report`), or, for a clustering, ``clusters`` by
        side (:func:`mllib_ext.job.cluster_report.cluster_report`).
    """
    logger.info("evaluating %s", ", ".join(names) or "nothing")
    found: dict[str, dict[str, Any]] = {"metrics": {}}
    if task == "classification":
        found["classes"] = {}
    elif task == "clustering":
        found["clusters"] = {}
    needed = {param for name in names for param in metrics.columns_of(name)}
    if task == "classification":
        needed |= {"labelCol", "predictionCol", "weightCol"}
    elif task == "clustering":
        needed |= {"predictionCol", "weightCol"}
    for side, predictions in sides.items():
        kept = [_numeric(param, columns[param]) for param in sorted(needed & columns.keys())]
        cached = predictions.select(*kept).persist()
        try:
            found["metrics"][side] = metrics.evaluate(cached, names, columns, side)
            if task == "classification":
                called = label_names(predictions.schema, columns["labelCol"])
                found["classes"][side] = class_report(cached, columns, called)
            elif task == "clustering":
                found["clusters"][side] = cluster_report(cached, columns)
        finally:
            cached.unpersist()
    return found


def _numeric(param: str, name: str) -> Column:
    column = quoted(name)
    return column.cast("double").alias(name) if param in ("labelCol", "weightCol") else column


def label_names(schema: StructType, label: str) -> list[str] | None:
    """What the classes 0, 1, ... were called before a StringIndexer numbered them."""
    attribute = schema[label].metadata.get("ml_attr", {})
    values = attribute.get("vals")
    return list(values) if values else None
