"""The pipeline of a config: what encodes the columns, Spark ML stages, the estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import Imputer, OneHotEncoder, StringIndexer, VectorAssembler
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import BooleanType, NumericType, StringType, StructType

from mllib_ext.columns import Features, data_type, number, quoted
from mllib_ext.feature import ClassBalancer, ClassBalancerModel
from mllib_ext.job import metrics
from mllib_ext.job.config import Encoding, Stage, TrainConfig
from mllib_ext.job.config.section import listed
from mllib_ext.job.config.train import BALANCED
from mllib_ext.job.stages import make

# Columns of the pipeline's own. Not "features": the input may have a column of that name.
ASSEMBLED, WEIGHT = "assembled_features", "balanced_weight"


def preparation(encode: Encoding | None, stages: Sequence[Stage]) -> list[Any]:
    """The stages before an estimator, not fitted."""
    encoded = encoding(encode) if encode is not None else []
    return [*encoded, *(make(stage.find(), stage.params) for stage in stages)]


def encoding(encode: Encoding) -> list[Any]:
    """Spark's stages for an encoding, not fitted."""
    stages: list[Any] = []
    by_strategy = sorted(encode.impute, key=lambda name: encode.impute[name])
    for strategy, group in groupby(by_strategy, key=lambda name: encode.impute[name]):
        names = list(group)
        stages.append(
            Imputer(strategy=strategy, inputCols=names, outputCols=_named(names, "imputed"))
        )
    if encode.categorical:
        indexed = _named(encode.categorical, "index")
        # What is missing or unknown becomes one more category, the last, which is the one that
        # the encoder drops: all zeros.
        stages.append(
            StringIndexer(inputCols=encode.categorical, outputCols=indexed, handleInvalid="keep")
        )
        onehot = _named(encode.categorical, "onehot")
        stages.append(OneHotEncoder(inputCols=indexed, outputCols=onehot))
    if encode.index:
        stages.append(
            StringIndexer(inputCols=encode.index, outputCols=_named(encode.index, "index"))
        )
    if encode.features:
        columns = [
            *encode.numeric,
            *_named(list(encode.impute), "imputed"),
            *_named(encode.categorical, "onehot"),
        ]
        stages.append(VectorAssembler(inputCols=columns, outputCol=encode.output))
    return stages


def _named(names: list[str], suffix: str) -> list[str]:
    return [f"{name}_{suffix}" for name in names]


def training(config: TrainConfig, cls: type) -> tuple[Any, list[Any]]:
    """The estimator with its columns set, and the stages that those columns may need.

    The stages stand between the preparation and the estimator: an assembler for a list of
    columns, a :class:`~mllib_ext.feature.ClassBalancer` for ``weight: balanced``.
    """
    estimator = make(cls, config.estimator.params)
    between: list[Any] = []
    if isinstance(config.features, str):
        if estimator.hasParam("featuresCol"):
            estimator._set(featuresCol=config.features)
    elif estimator.hasParam("featuresCols") and metrics.task_of(cls) != "clustering":
        estimator.setFeaturesCol(config.features)
    else:  # Spark's ClusteringEvaluator, too, wants one column
        between.append(VectorAssembler(inputCols=config.features, outputCol=ASSEMBLED))
        estimator._set(featuresCol=ASSEMBLED)
    label = config.label_column
    if label is not None:
        estimator._set(labelCol=label)
    if config.weight == BALANCED and label is not None:
        between.append(ClassBalancer(labelCol=label, outputCol=WEIGHT))
        estimator._set(weightCol=WEIGHT)
    elif config.weight is not None:
        estimator._set(weightCol=config.weight)
    return estimator, between


def columns(estimator: Any, config: TrainConfig) -> dict[str, str]:
    """The columns that metrics need, by their Param: those that there are."""
    names = ("predictionCol", "rawPredictionCol", "probabilityCol", "featuresCol", "labelCol")
    found = {
        name: estimator.getOrDefault(name)
        for name in names
        if estimator.hasParam(name) and estimator.isDefined(name)
    }
    # Weights that balance the classes are for training: metrics are those of the rows as they are.
    if config.weight not in (None, BALANCED):
        found["weightCol"] = config.weight
    return found


def prepare(stages: list[Any], rows: DataFrame) -> tuple[list[Any], DataFrame]:
    """Stages fitted one after the other, and what they make of the rows that fitted them."""
    if not stages:
        return [], rows
    fitted = Pipeline(stages=stages).fit(rows)
    return list(fitted.stages), fitted.transform(rows)


def for_prediction(stages: Sequence[Any]) -> PipelineModel:
    """Fitted stages as a model, without those that only training needs."""
    return PipelineModel(
        [
            stage
            for stage in stages
            if not (isinstance(stage, ClassBalancerModel) and stage.getOutputCol() == WEIGHT)
        ]
    )


# --- columns that are not what they have to be -----------------------------------------------


def refuse_encoding(schema: StructType, encode: Encoding | None) -> None:
    """A ValueError or TypeError for a column of ``encode`` that is missing or of no use there."""
    if encode is None:
        return
    for key in ("numeric", "impute"):
        for name in getattr(encode, key):
            _refuse(schema, name, f"encode.{key}", "; encode.categorical is for text")
    for key in ("categorical", "index"):
        for name in getattr(encode, key):
            kind = data_type(schema, name, f"encode.{key}")
            if not isinstance(kind, StringType | NumericType | BooleanType):
                raise TypeError(
                    f"encode.{key} column {name!r}: expected text or a number, "
                    f"found {kind.simpleString()}"
                )


def missing(encode: Encoding | None) -> dict[str, Column]:
    """How many rows lack each numeric column that goes into the vector as it is: aggregates."""
    counts = {}
    for name in encode.numeric if encode is not None else ():
        x = quoted(name).cast("double")
        counts[f"missing {name}"] = F.count_if(x.isNull() | F.isnan(x))
    return counts


def refuse_missing(counts: Mapping[str, int]) -> None:
    """A ValueError for counts, by the names of :func:`missing`, that are not 0."""
    for key, count in counts.items():
        if count:
            raise ValueError(
                f"encode.numeric column {key.removeprefix('missing ')!r}: expected a number in "
                f"every row, found null or NaN in {count} of them; encode.impute fills them"
            )


def refuse_columns(schema: StructType, config: TrainConfig) -> None:
    """A ValueError or TypeError for a column that is missing or of the wrong type.

    Parameters
    ----------
    schema : StructType
        What the estimator will see.
    config : TrainConfig
    """
    text = "; encode.index, or a StringIndexer in `stages`, turns text into numbers"
    if any(s.format == "csv" and s.schema_ is None for s in config.input):
        text += ", and without `schema` or the option inferSchema every column of a csv is text"
    for name in listed(config.features) if isinstance(config.features, list) else ():
        _refuse(schema, name, "features", text)
    Features.of(schema, config.features)
    if config.weight == BALANCED and BALANCED in schema.names:
        raise ValueError(
            f"weight: expected no column named {BALANCED!r} beside weight: {BALANCED}, which asks "
            "for weights by class, found one"
        )
    weight = config.weight if config.weight != BALANCED else None
    for column, role in ((config.label_column, "label"), (weight, "weight")):
        if column is not None:
            _refuse(schema, column, role, text)


def _refuse(schema: StructType, name: str, role: str, hint: str) -> None:
    try:
        number(schema, name, role)
    except TypeError as error:
        text = isinstance(schema[name].dataType, StringType)
        raise TypeError(f"{error}{hint if text else ''}") from None
