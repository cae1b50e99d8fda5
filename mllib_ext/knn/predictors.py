"""What the predictors by nearest rows share: parameters, training rows, prediction, files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from pyspark.ml.base import Model
from pyspark.ml.linalg import Vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasMaxBlockSizeInMB, HasWeightCol
from pyspark.ml.util import MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame, SparkSession

from mllib_ext.base import HasFeatures, as_row
from mllib_ext.blocks import Blocks
from mllib_ext.columns import (
    BadRow,
    Features,
    Matrix,
    number,
    refuse_no_dataframe,
    stacked,
)
from mllib_ext.fitting import FitsOverBlocks
from mllib_ext.knn.params import HasNeighbors
from mllib_ext.mapped import Shipped
from mllib_ext.neighbors.items import refuse_zeros
from mllib_ext.neighbors.votes import LabelledRows, Settings, predicted
from mllib_ext.persistence import ParamsReader, ParamsWriter, restored
from mllib_ext.prediction import Output, with_predictions

WEIGHTS = ("uniform", "distance")


class KNeighborsParams(HasNeighbors, HasFeatures, HasWeightCol, HasMaxBlockSizeInMB):
    """Parameters of the predictors and of their models."""

    weights: Param[str] = Param(
        Params._dummy(),
        "weights",
        "weight of a neighbour's vote: uniform, or distance (its inverse)",
        TypeConverters.toString,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(weights="uniform", maxBlockSizeInMB=0.0)

    def setWeights(self, value: str) -> Self:
        """Set the weight of a neighbour's vote."""
        return self._set(weights=value)

    def getWeights(self) -> str:
        """The weight of a neighbour's vote."""
        return self.getOrDefault(self.weights)

    def _settings(self) -> Settings:
        """What a prediction goes by; ValueError for a parameter out of range."""
        rule, weights = self._rule(), self.getWeights()
        if weights not in WEIGHTS:
            raise ValueError(f"param weights: expected one of {WEIGHTS}, found {weights!r}")
        if weights == "distance" and rule.sign < 0:
            raise ValueError(
                "param weights: expected uniform under the metric inner_product, found 'distance'"
            )
        return Settings(self.getK(), rule, weights == "distance")


class KNeighborsEstimator(FitsOverBlocks, KNeighborsParams):
    # Spark's estimators have one of their own, nearer in the method resolution order.
    setFeaturesCol = HasFeatures.setFeaturesCol

    def setWeightCol(self, value: str) -> Self:
        """Set the column of row weights."""
        return self._set(weightCol=value)

    def setMaxBlockSizeInMB(self, value: float) -> Self:
        """Set the size of blocks in MB; 0 means a size that suits the processor's cache."""
        return self._set(maxBlockSizeInMB=value)

    def _refuse_params(self: Any) -> None:
        self._settings()

    def _refuse(self: Any, dataset: DataFrame) -> None:
        super()._refuse(dataset)
        if self.isDefined("weightCol") and self.getWeightCol():
            number(dataset.schema, self.getWeightCol(), "weight")

    def _rows(self, blocks: Blocks) -> LabelledRows:
        found = blocks.collect()
        label = blocks.features.label
        if self.getMetric() == "cosine":
            for block in found:
                _checked(label, block.X, f"partition {block.partition}, ", block.start)
        y, w = (np.concatenate([getattr(block, name) for block in found]) for name in "yw")
        return LabelledRows.of(stacked(block.X for block in found), y, w)

    def _taken_over(self: Any, model: Any) -> Any:
        model._resetUid(self.uid)
        return self._copyValues(model)


def _checked(label: str, X: Matrix, where: str, start: int) -> None:
    try:
        refuse_zeros(label, X)
    except BadRow as bad:
        raise ValueError(f"{bad} ({where}row {start + bad.row})") from None


class KNeighborsModel(Shipped, Model, KNeighborsParams, MLWritable, MLReadable[Any]):
    """Training rows that are searched at every prediction."""

    setFeaturesCol = HasFeatures.setFeaturesCol

    def __init__(self, rows: LabelledRows) -> None:
        super().__init__()
        self._labelled = rows

    @property
    def numFeatures(self) -> int:
        """Number of features."""
        return int(self._labelled.X.shape[1])

    @property
    def numItems(self) -> int:
        """Number of training rows with a weight above 0."""
        return len(self._labelled.y)

    @property
    def features(self) -> Matrix:
        """The training rows (n, d), by label and weight; read-only."""
        return self._labelled.X

    @property
    def labels(self) -> np.ndarray:
        """Their labels (n,), ascending; read-only."""
        return self._labelled.y

    @property
    def itemWeights(self) -> np.ndarray:
        """Their weights (n,); read-only."""
        return self._labelled.w

    @abstractmethod
    def _answer(self, names: Any) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
        """``answer(labels, weights) -> columns`` by these names, free of the model itself."""

    @abstractmethod
    def _outputs(self) -> dict[str, Output]:
        """The prediction columns."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        refuse_no_dataframe(dataset)
        settings, outputs = self._settings(), self._outputs()
        features = Features.of(dataset.schema, self._features())
        answer = self._answer(tuple(outputs))
        predict = partial(predicted, self._shipped(dataset), features, settings, answer)
        return with_predictions(self, dataset, self.numFeatures, outputs, predict)

    @property
    def _predictor(self) -> LabelledRows:
        return self._labelled.prepared(self._rule())

    def _predict_row(self, value: Vector) -> dict[str, np.ndarray]:
        row = as_row(value, self.numFeatures)
        names = tuple(self._outputs_of_a_row)
        return self._answer(names)(*self._labelled.votes(row, self._settings()))

    _outputs_of_a_row: tuple[str, ...] = ("prediction",)

    def write(self) -> MLWriter:
        """A writer: ``model.write().overwrite().save(path)``; the rows go along as Parquet."""
        return _Writer(self)

    @classmethod
    def read(cls) -> MLReader[Any]:
        """A reader: ``Model.read().load(path)``."""
        return _Reader(cls)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: uid={self.uid}, numItems={self.numItems}, "
            f"numFeatures={self.numFeatures}"
        )


class _Writer(ParamsWriter):
    """Parameters as JSON under ``metadata``, a row of Parquet for every training row."""

    def saveImpl(self, path: str) -> None:
        model = self.instance
        rows: LabelledRows = model._labelled
        self.save_metadata(path, {"shape": list(rows.X.shape), **model._extra()})
        columns = {"label": pa.array(rows.y), "weight": pa.array(rows.w)}
        if isinstance(rows.X, np.ndarray):
            flat = pa.array(rows.X.ravel())
            columns["values"] = pa.FixedSizeListArray.from_arrays(flat, rows.X.shape[1]).cast(
                pa.list_(flat.type)
            )
        else:
            offsets = rows.X.indptr.astype(np.int32)
            columns["indices"] = pa.ListArray.from_arrays(offsets, rows.X.indices)
            columns["values"] = pa.ListArray.from_arrays(offsets, rows.X.data)
        df = self.sparkSession.createDataFrame(pa.table(columns))
        df.coalesce(1).write.parquet(f"{path}/data")


class _Reader(ParamsReader):
    def load(self, path: str) -> Any:
        metadata = self.load_metadata(path)
        rows = _read(self.sparkSession, f"{path}/data", metadata["shape"])
        return restored(self.cls._of(rows, metadata), metadata)


def _read(spark: SparkSession, path: str, shape: list[int]) -> LabelledRows:
    table = spark.read.parquet(path).toArrow().combine_chunks()
    (values,) = table["values"].chunks
    flat = values.flatten().to_numpy()
    X: Matrix
    if "indices" in table.column_names:
        indices = table["indices"].chunk(0).flatten().to_numpy()
        X = sp.csr_array((flat, indices, values.offsets.to_numpy()), shape=shape)
    else:
        X = flat.reshape(shape)
    return LabelledRows.of(X, table["label"].to_numpy(), table["weight"].to_numpy())
