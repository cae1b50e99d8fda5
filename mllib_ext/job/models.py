"""Saved models: found, loaded, and asked what they read and what their classes are called."""

from __future__ import annotations

from typing import Any

from pyspark.ml import PipelineModel
from pyspark.ml.feature import StringIndexerModel
from pyspark.ml.util import DefaultParamsReader
from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from mllib_ext import storage
from mllib_ext.classification import CalibratedClassifierModel
from mllib_ext.feature import ClassBalancerModel
from mllib_ext.job.outputs import MODEL
from mllib_ext.names import did_you_mean


def load(spark: SparkSession, path: str) -> PipelineModel:
    """A saved model, as a pipeline where it is none.

    Parameters
    ----------
    spark : SparkSession
    path : str
        The result of a job, or any model that pyspark.ml or this package saved.

    Raises
    ------
    FileNotFoundError
        Nothing at the path.
    ValueError
        Something that is no saved model.
    """
    names = storage.names(path)
    if names is None:
        raise FileNotFoundError(
            f"model: expected the result of a training job, found nothing at "
            f"{storage.qualified(path)}"
        )
    if MODEL in names:
        path = f"{path}/{MODEL}"
        names = storage.names(path) or []
    if "metadata" not in names:
        raise ValueError(
            f"model: expected a saved model, found {storage.qualified(path)}, which has none"
        )
    try:
        model: Any = DefaultParamsReader.loadParamsInstance(path, spark)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"model: expected a model of classes that are installed here, found one that needs "
            f"another: {error}"
        ) from None
    if not hasattr(model, "transform"):
        raise ValueError(
            f"model: expected a fitted model, found {type(model).__name__}, which is not fitted"
        )
    return model if isinstance(model, PipelineModel) else PipelineModel([model])


def refuse_columns(model: PipelineModel, schema: StructType) -> None:
    """A ValueError for a column that the model reads and the input lacks.

    What Spark's StringIndexer does not find it leaves out, without a word, as it should for a
    label at prediction; a stage that needs its outcome is then told which column it was.
    """
    known = set(schema.names)
    lacking: dict[str, str] = {}  # a column that was not made, by what it would be made of
    for stage in model.stages:
        inputs, outputs = _inputs(stage), _outputs(stage)
        optional = isinstance(stage, StringIndexerModel | ClassBalancerModel)
        for place, name in enumerate(inputs):
            if name in known:
                continue
            if optional:
                made = outputs[place] if len(outputs) == len(inputs) else outputs[0]
                lacking[made] = name
                continue
            source = lacking.get(name, name)
            near = did_you_mean(source, schema.names)
            raise ValueError(
                f"input: expected a column {source!r}, which the model's {type(stage).__name__} "
                f"needs, found {schema.names}{near}"
            )
        known.update(name for name in outputs if name not in lacking)


def _inputs(stage: Any) -> list[str]:
    if isinstance(stage, ClassBalancerModel):
        return [stage.getLabelCol()]
    if isinstance(stage, CalibratedClassifierModel):
        return _inputs(stage.model)
    for name in ("inputCols", "inputCol", "featuresCols", "featuresCol"):
        if _has(stage, name):
            value = stage.getOrDefault(name)
            return [value] if isinstance(value, str) else list(value)
    return []


def _outputs(stage: Any) -> list[str]:
    for name in ("outputCols", "outputCol"):
        if _has(stage, name):
            value = stage.getOrDefault(name)
            return [value] if isinstance(value, str) else list(value)
    predictions = ("predictionCol", "rawPredictionCol", "probabilityCol")
    return [stage.getOrDefault(name) for name in predictions if _has(stage, name)]


def _has(stage: Any, param: str) -> bool:
    """Whether a Param has a value; one that was set goes before one that has a default alone."""
    if not stage.hasParam(param) or not stage.isDefined(param):
        return False
    several = {"inputCol": "inputCols", "outputCol": "outputCols"}.get(param)
    return not (several and stage.hasParam(several) and stage.isSet(several))


def output_columns(model: Any) -> dict[str, str]:
    """The columns of a model's last stage by their Param: those that there are."""
    params = (
        "labelCol", "featuresCol", "predictionCol", "rawPredictionCol", "probabilityCol",
    )  # fmt: skip
    return {
        name: model.getOrDefault(name)
        for name in params
        if model.hasParam(name) and model.isDefined(name) and model.getOrDefault(name)
    }


def label_indexer(model: PipelineModel) -> tuple[str, list[str]] | None:
    """The text column that the last stage's label was made of, and the names of its classes."""
    label = output_columns(model.stages[-1]).get("labelCol")
    for stage in model.stages[:-1]:
        if isinstance(stage, StringIndexerModel) and label in _outputs(stage):
            place = _outputs(stage).index(label)
            return _inputs(stage)[place], list(stage.labelsArray[place])
    return None
