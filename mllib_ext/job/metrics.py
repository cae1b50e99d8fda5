"""Metrics of predictions, by Spark's own evaluators."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.ml.evaluation import (
    BinaryClassificationEvaluator,
    ClusteringEvaluator,
    Evaluator,
    MulticlassClassificationEvaluator,
    RegressionEvaluator,
)
from pyspark.sql import DataFrame

from mllib_ext.job.errors import first_line
from mllib_ext.job.problems import Wrong, found
from mllib_ext.job.stages import params_of
from mllib_ext.names import did_you_mean

logger = logging.getLogger(__name__)

Task = Literal["classification", "regression", "clustering"]

BINARY = ("areaUnderROC", "areaUnderPR")
MULTICLASS = (
    "accuracy",
    "f1",
    "weightedPrecision",
    "weightedRecall",
    "weightedFMeasure",
    "weightedTruePositiveRate",
    "weightedFalsePositiveRate",
    "hammingLoss",
    "logLoss",
)
METRICS: Mapping[Task, tuple[str, ...]] = {
    "classification": BINARY + MULTICLASS,
    "regression": ("rmse", "mse", "mae", "r2", "var"),
    "clustering": ("silhouette", "cosineSilhouette"),
}


def task_of(estimator: type) -> Task | None:
    """What an estimator's predictions are, told by its Params; None where it makes none."""
    params = params_of(estimator)
    if "predictionCol" not in params:
        return None
    if "labelCol" not in params:
        return "clustering"
    return "classification" if "rawPredictionCol" in params else "regression"


def default_metrics(estimator: type, classes: int | None) -> tuple[str, ...]:
    """The metrics to compute where a config names none.

    Parameters
    ----------
    estimator : type
    classes : int or None
        The number of classes, where the task is classification.
    """
    match task_of(estimator):
        case "classification":
            binary = BINARY if classes is not None and classes <= 2 else ()
            loss = ("logLoss",) if "probabilityCol" in params_of(estimator) else ()
            return (*binary, "accuracy", "f1", *loss)
        case "regression":
            return ("rmse", "mae", "r2")
        case "clustering":
            return ("silhouette",)
    return ()


def deciding_metric(estimator: type) -> str:
    """The metric that compares models where a config names none: that of Spark's evaluators."""
    task = task_of(estimator)
    return {"classification": "f1", "regression": "rmse", "clustering": "silhouette"}[task or ""]


def wrong_metrics(estimator: type, metrics: Sequence[str]) -> list[Wrong]:
    """What is wrong with the metrics that a config names for an estimator or a model."""
    task = task_of(estimator)
    known = METRICS[task] if task else ()
    wrongs = []
    for index, metric in enumerate(metrics):
        if metric not in known:
            what = f"a metric of {task}: {', '.join(known)}" if task else "no metric"
            near = did_you_mean(metric, known)
            wrongs.append(Wrong(["evaluation", index], what, found(metric) + near))
        elif metric == "logLoss" and "probabilityCol" not in params_of(estimator):
            what = f"a metric without probabilities: {estimator.__name__} gives none"
            wrongs.append(Wrong(["evaluation", index], what, found(metric)))
    return wrongs


def evaluate(
    predictions: DataFrame,
    metrics: Sequence[str],
    columns: Mapping[str, str],
    split: str,
) -> dict[str, float | None]:
    """Compute metrics, each in a pass of its own over the predictions.

    Parameters
    ----------
    predictions : DataFrame
        What a model's ``transform`` gave, cached, label and weight as doubles: Spark's evaluators
        refuse a label of true and false.
    metrics : sequence of str
        Names out of :data:`METRICS`.
    columns : mapping of str to str
        ``labelCol``, ``weightCol``, ``featuresCol``, ``predictionCol``, ``rawPredictionCol``,
        ``probabilityCol``: those that there are.
    split : str
        The name of the data in warnings.

    Returns
    -------
    dict of str to float or None
        None, with a warning, for a metric that the data does not have: a model that took hours
        to train is not lost for that.
    """
    return {name: _value(predictions, name, columns, split) for name in metrics}


def columns_of(metric: str) -> tuple[str, ...]:
    """The column Params of a metric's evaluator that matter to this metric."""
    if metric in BINARY:
        return "labelCol", "weightCol", "rawPredictionCol"
    if metric == "logLoss":
        return "labelCol", "weightCol", "predictionCol", "probabilityCol"
    if metric in METRICS["clustering"]:
        return "featuresCol", "weightCol", "predictionCol"
    return "labelCol", "weightCol", "predictionCol"


def _value(
    predictions: DataFrame, metric: str, columns: Mapping[str, str], split: str
) -> float | None:
    try:
        value = evaluator(metric, columns).evaluate(predictions)
    except (PySparkException, Py4JJavaError) as error:
        logger.warning(
            "%s of the %s rows could not be computed: %s", metric, split, first_line(error)
        )
        return None
    if not math.isfinite(value):
        logger.warning("%s of the %s rows is %s", metric, split, value)
        return None
    return float(value)


def evaluator(metric: str, columns: Mapping[str, str]) -> Evaluator:
    """Spark's evaluator of a metric, for these columns (as in :func:`evaluate`)."""
    params = {name: columns[name] for name in columns_of(metric) if name in columns}
    cls: Any = RegressionEvaluator
    if metric == "cosineSilhouette":
        params |= {"distanceMeasure": "cosine"}
        metric = "silhouette"
    if metric in BINARY:
        cls = BinaryClassificationEvaluator
    elif metric in MULTICLASS:
        cls = MulticlassClassificationEvaluator
    elif metric == "silhouette":
        cls = ClusteringEvaluator
    made: Evaluator = cls(metricName=metric, **params)
    return made
