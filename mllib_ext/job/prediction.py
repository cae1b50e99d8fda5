"""A prediction job from its config to its result: read, load a model, predict, write."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from pyspark.ml import PipelineModel
from pyspark.ml.feature import IndexToString
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame, Observation, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, MapType, NumericType, StructType

from mllib_ext.columns import data_type, quoted
from mllib_ext.job import inputs, metrics, models, outputs, report
from mllib_ext.job.class_report import LARGEST_MATRIX
from mllib_ext.job.config import PredictConfig
from mllib_ext.job.rows import described
from mllib_ext.job.summary import output_line

logger = logging.getLogger(__name__)


def predict(spark: SparkSession, config: PredictConfig) -> str:
    """Run a prediction job. The summary for its user.

    Parameters
    ----------
    spark : SparkSession
    config : PredictConfig

    Raises
    ------
    FileExistsError
        The output exists: before anything is read.
    FileNotFoundError, ValueError
        No model or no input there; a column that is missing: before anything is predicted.
    """
    with outputs.output_directory(config.output) as directory:
        model = models.load(spark, config.model)
        data = inputs.read(spark, config.input)
        models.refuse_columns(model, data.schema)
        written = _columns(model, data, config)
        counted = Observation()
        began = time.perf_counter()
        logger.info("predicting %s", described(config.input))
        told = _told(model.stages[-1], written)
        observed = written.observe(counted, F.count("*").alias("rows"), *told.values())
        writer = observed.write.format(config.output.format).options(**config.output.options)
        writer.save(f"{directory}/{outputs.PREDICTIONS}")
        found = counted.get
        rows = found["rows"]
        result = {
            "name": config.name,
            "model": config.model,
            "rows": rows,
            "seconds": time.perf_counter() - began,
            "columns": {field.name: field.dataType.simpleString() for field in written.schema},
        }
        if told:
            result["predicted"] = _predicted({name: found[name] for name in told})
        outputs.write_report(directory, config, result)
        report.write(directory, partial(report.prediction, spark, config, result))
    return (
        f"{config.name}: {rows:,} rows predicted in {result['seconds']:.1f} s\n\n"
        f"{output_line(config)}/{outputs.PREDICTIONS}"
    )


def _columns(model: PipelineModel, data: DataFrame, config: PredictConfig) -> DataFrame:
    """The columns to write, vectors as arrays."""
    predicted = model.transform(data)
    made = models.output_columns(model.stages[-1])
    names = [*data.columns]
    for param in ("predictionCol", "probabilityCol"):
        if made.get(param) in predicted.columns:
            names.append(made[param])
    if "predictionCol" not in made:  # not a prediction, but what prepares the columns of one
        names = predicted.columns
    indexer = models.label_indexer(model)
    if indexer is not None:
        label, classes = indexer
        text = f"predicted_{label}"
        back = IndexToString(inputCol=made["predictionCol"], outputCol=text, labels=classes)
        predicted = back.transform(predicted)
        names.append(text)
    names = config.columns or names
    for name in names:
        data_type(predicted.schema, name, "columns")
    kept = predicted.select(*[_plain(predicted.schema, name) for name in names])
    if config.output.format == "csv":
        _refuse_nested(kept.schema)
    return kept.coalesce(config.output.files) if config.output.files is not None else kept


def _told(model: Any, written: DataFrame) -> dict[str, Column]:
    """What the pass that writes the predictions counts of them, by name: no other pass is needed.

    Rows of every class or cluster, where these are few; of numbers their range, mean and standard
    deviation.
    """
    name = models.output_columns(model).get("predictionCol")
    if name not in written.columns or not isinstance(written.schema[name].dataType, NumericType):
        return {}
    y = quoted(name)
    task = metrics.task_of(type(model))
    if task == "regression":
        functions = {"least": F.min, "mean": F.mean, "deviation": F.stddev, "most": F.max}
        return {key: function(y).alias(key) for key, function in functions.items()}
    clusters = model.getK() if task == "clustering" and model.hasParam("k") else None
    k = getattr(model, "numClasses", clusters)
    if not isinstance(k, int) or k > LARGEST_MATRIX:
        return {}
    return {str(i): F.count_if(y == i).alias(str(i)) for i in range(k)}


def _predicted(found: dict[str, Any]) -> dict[str, Any]:
    if "mean" in found:
        return found
    return {"labels": [int(name) for name in found], "rows": list(found.values())}


def _plain(schema: StructType, name: str) -> Any:
    column = quoted(name)
    if isinstance(schema[name].dataType, VectorUDT):
        return vector_to_array(column).alias(name)
    return column


def _refuse_nested(schema: StructType) -> None:
    for field in schema:
        if isinstance(field.dataType, ArrayType | MapType | StructType):
            raise ValueError(
                f"columns: expected types that a csv file can hold, found column {field.name!r} of "
                f"type {field.dataType.simpleString()}; name the others, or take another "
                "output.format"
            )
