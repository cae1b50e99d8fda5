"""What is saved of an estimator or a model: parameters as JSON, arrays as one row of Parquet.

Spark's ``DefaultParamsWriter`` writes what JSON knows, and drops arrays silently. Vectors and
matrices among the parameters (bounds) are written here as Spark's own estimators write them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
from pyspark.ml.linalg import DenseMatrix, DenseVector, SparseMatrix, SparseVector
from pyspark.ml.param import Params
from pyspark.ml.util import (
    DefaultParamsReader,
    DefaultParamsWriter,
    GeneralMLWriter,
    MLReadable,
    MLReader,
    MLWritable,
    MLWriter,
)

# In the metadata: the names of parameters that are stages.
STAGES = "stages"


class SavesParams(MLWritable, MLReadable[Any]):
    """An estimator that is its parameters: ``save``, ``write``, ``load`` and ``read``."""

    def write(self) -> MLWriter:
        """A writer: ``estimator.write().overwrite().save(path)``."""
        return ParamsWriter(self)

    @classmethod
    def read(cls) -> MLReader[Any]:
        """A reader: ``Estimator.read().load(path)``."""
        return ParamsReader(cls)


class ParamsWriter(MLWriter):
    """Parameters as JSON under ``metadata``; one that is a stage under its own name beside it."""

    def __init__(self, instance: Any) -> None:
        super().__init__()
        self.instance = instance

    def saveImpl(self, path: str) -> None:
        self.save_metadata(path, {})

    def save_metadata(self, path: str, extra: dict[str, Any]) -> None:
        """Write the class, the uid, the parameters and ``extra``."""
        values = {param.name: value for param, value in self.instance._paramMap.items()}
        stages: dict[str, Any] = {
            name: value for name, value in values.items() if isinstance(value, Params)
        }
        for name, stage in stages.items():
            if not isinstance(stage, MLWritable):
                raise ValueError(
                    f"param {name}: expected a stage that can be saved, "
                    f"found {type(stage).__name__}"
                )
        params = {name: encoded(values[name]) for name in values.keys() - stages.keys()}
        if stages:
            extra = {**extra, STAGES: sorted(stages)}
        DefaultParamsWriter.saveMetadata(
            self.instance, path, self.sparkSession, extraMetadata=extra, paramMap=params
        )
        for name, stage in stages.items():
            stage.save(f"{path}/{name}")


class ParamsReader(MLReader[Any]):
    """An estimator from its parameters."""

    def __init__(self, cls: type[Any]) -> None:
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> Any:
        metadata = self.load_metadata(path)
        return self.with_stages(restored(self.cls(), metadata), path, metadata)

    def with_stages(self, instance: Any, path: str, metadata: dict[str, Any]) -> Any:
        """The instance, with the parameters that are stages."""
        for name in metadata.get(STAGES, ()):
            stage: Any = DefaultParamsReader.loadParamsInstance(f"{path}/{name}", self.sparkSession)
            instance._set(**{name: stage})
        return instance

    def load_metadata(self, path: str) -> dict[str, Any]:
        """What a writer left; ValueError for that of another class."""
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        name = f"{self.cls.__module__}.{self.cls.__name__}"
        if metadata["class"] != name:
            raise ValueError(f"{path}: expected a saved {name}, found {metadata['class']}")
        return metadata


class ArraysWriter(ParamsWriter):
    """Parameters as JSON under ``metadata``, arrays as one row of Parquet under ``data``."""

    def saveImpl(self, path: str) -> None:
        model = self.instance
        arrays = {name: getattr(model, f"_{name}") for name in model._arrays}
        extra = {
            "shapes": {name: list(array.shape) for name, array in arrays.items()},
            "converged": model.converged,
            "reason": model.reason,
            "nIter": model.n_iter,
        }
        self.save_metadata(path, extra)
        table = pa.table({name: [array.ravel()] for name, array in arrays.items()})
        self.sparkSession.createDataFrame(table).coalesce(1).write.parquet(f"{path}/data")


class ArraysOrPmmlWriter(ArraysWriter, GeneralMLWriter):
    """As :class:`ArraysWriter`, or after ``format("pmml")`` as PMML, by Spark's own writer.

    ``java_model`` makes the model's twin in the JVM.
    """

    def __init__(self, instance: Any, java_model: Callable[[], Any]) -> None:
        super().__init__(instance)
        self.source, self.java_model = "internal", java_model

    def saveImpl(self, path: str) -> None:
        if self.source == "internal":
            super().saveImpl(path)
        else:
            self.java_model().write().format(self.source).save(path)


class ArraysReader(ParamsReader):
    """A model from its arrays and parameters."""

    def load(self, path: str) -> Any:
        metadata = self.load_metadata(path)
        table = self.sparkSession.read.parquet(f"{path}/data").toArrow()
        arrays = [
            table[array][0].values.to_numpy().reshape(metadata["shapes"][array])
            for array in self.cls._arrays
        ]
        model = self.with_stages(restored(self.cls(*arrays), metadata), path, metadata)
        model.converged, model.reason = metadata["converged"], metadata["reason"]
        model.n_iter = metadata["nIter"]
        return model


def restored(instance: Any, metadata: dict[str, Any]) -> Any:
    """The instance, with the uid and the parameters of the metadata."""
    params = {name: decoded(value) for name, value in metadata["paramMap"].items()}
    instance._resetUid(metadata["uid"])
    DefaultParamsReader.getAndSetParams(instance, {**metadata, "paramMap": params})
    return instance


def encoded(value: Any) -> Any:
    """A parameter as JSON knows it: Spark's ``JsonVectorConverter`` and ``JsonMatrixConverter``."""
    match value:
        case DenseVector():
            return {"type": 1, "values": value.values.tolist()}
        case SparseVector():
            return {
                "type": 0,
                "size": int(value.size),
                "indices": value.indices.tolist(),
                "values": value.values.tolist(),
            }
        case DenseMatrix():
            parts = {"type": 1}
        case SparseMatrix():
            parts = {
                "type": 0,
                "colPtrs": value.colPtrs.tolist(),
                "rowIndices": value.rowIndices.tolist(),
            }
        case _:
            return value
    return {
        **parts,
        "class": "matrix",
        "numRows": int(value.numRows),
        "numCols": int(value.numCols),
        "values": value.values.tolist(),
        "isTransposed": bool(value.isTransposed),
    }


def decoded(value: Any) -> Any:
    """The inverse of :func:`encoded`."""
    match value:
        case {"numRows": n, "numCols": d, "values": values, "isTransposed": transposed}:
            if value["type"] == 1:
                return DenseMatrix(n, d, values, transposed)
            return SparseMatrix(n, d, value["colPtrs"], value["rowIndices"], values, transposed)
        case {"size": size, "indices": indices, "values": values}:
            return SparseVector(size, indices, values)
        case {"type": 1, "values": values}:
            return DenseVector(values)
    return value
