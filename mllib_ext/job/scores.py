"""What is told of a model's predictions: metrics, and of each class or cluster how it came out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql.types import StructType

from mllib_ext.columns import quoted
from mllib_ext.curves import Residuals, ScoreBins, residual_bins, score_bins
from mllib_ext.job import metrics
from mllib_ext.job.class_report import class_report
from mllib_ext.job.cluster_report import cluster_report
from mllib_ext.job.errors import first_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What was measured of predictions.

    Attributes
    ----------
    report : dict
        ``metrics`` by side and, for a classification, ``classes`` by side
        (:func:`mllib_ext.job.class_report.class_report`), or, for a clustering, ``clusters`` by
        side (:func:`mllib_ext.job.cluster_report.cluster_report`): for ``metrics.json``.
    side : str
        The rows that judge the model, which alone have the rest.
    bins : tuple of ScoreBins
        Of a classification with scores.
    residuals : Residuals or None
        Of a regression.
    """

    report: dict[str, dict[str, Any]]
    side: str
    bins: tuple[ScoreBins, ...] = ()
    residuals: Residuals | None = None


def scores(
    sides: Mapping[str, DataFrame],
    names: Sequence[str],
    columns: Mapping[str, str],
    task: metrics.Task | None,
) -> Measured:
    """Metrics of predictions, by the side of the data that they are of.

    Parameters
    ----------
    sides : mapping of str to DataFrame
        Predictions by the name of their rows; the last ones judge the model.
    names : sequence of str
        The metrics.
    columns : mapping of str to str
        As :func:`mllib_ext.job.metrics.evaluate` takes them.
    task : {"classification", "regression", "clustering"} or None

    Returns
    -------
    Measured
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
    curves: dict[str, Any] = {}
    for side, predictions in sides.items():
        last = side == list(sides)[-1]
        if last and task == "classification":
            needed |= {
                param
                for param in ("rawPredictionCol", "probabilityCol")
                if columns.get(param) in predictions.columns
            }
        elif task == "regression":
            needed |= {"labelCol", "predictionCol", "weightCol"}
        kept = [_numeric(param, columns[param]) for param in sorted(needed & columns.keys())]
        cached = predictions.select(*kept).persist()
        try:
            found["metrics"][side] = metrics.evaluate(cached, names, columns, side)
            if task == "classification":
                called = label_names(predictions.schema, columns)
                found["classes"][side] = class_report(cached, columns, called)
            elif task == "clustering":
                found["clusters"][side] = cluster_report(cached, columns)
            if last:
                curves = _curves(cached, columns, task, label_names(predictions.schema, columns))
        finally:
            cached.unpersist()
    return Measured(found, side, **curves)


def _curves(
    predictions: DataFrame,
    columns: Mapping[str, str],
    task: metrics.Task | None,
    classes: Sequence[str] | None,
) -> dict[str, Any]:
    """What the report draws. A warning where it fails: nothing else needs it."""
    names = {name: columns[name] for name in ("labelCol", "weightCol") if name in columns}
    try:
        if task == "regression":
            return {
                "residuals": residual_bins(
                    predictions, predictionCol=columns["predictionCol"], **names
                )
            }
        scored = {
            name: columns[name]
            for name in ("rawPredictionCol", "probabilityCol")
            if columns.get(name) in predictions.columns
        }
        if task == "classification" and scored:
            return {"bins": score_bins(predictions, classes=classes, **names, **scored)}
    except Exception as error:
        logger.warning("the report goes without curves: %s", first_line(error))
    return {}


def _numeric(param: str, name: str) -> Column:
    column = quoted(name)
    return column.cast("double").alias(name) if param in ("labelCol", "weightCol") else column


def label_names(schema: StructType, columns: Mapping[str, str]) -> list[str] | None:
    """What the classes 0, 1, ... were called before a StringIndexer numbered them."""
    label = columns.get("labelCol")
    if label is None or label not in schema.names:
        return None
    attribute = schema[label].metadata.get("ml_attr", {})
    values = attribute.get("vals")
    return list(values) if values else None
