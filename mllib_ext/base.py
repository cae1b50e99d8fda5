"""What every estimator and model shares: feature columns, callbacks, prediction.

Written once, here. An estimator says which columns go in and which function predicts; the rest is
Spark's own parameters and mixins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from pyspark import keyword_only
from pyspark.ml.base import Model
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import (
    DenseMatrix,
    DenseVector,
    SparseMatrix,
    Vector,
    Vectors,
)
from pyspark.ml.linalg import (
    Matrix as SparkMatrix,
)
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasCheckpointInterval, HasFeaturesCol
from pyspark.ml.util import MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DoubleType,
    FloatType,
    IntegerType,
    StructField,
    StructType,
)

from mllib_ext.columns import Features, Matrix, quoted
from mllib_ext.names import did_you_mean
from mllib_ext.optimizers.loop import Callback, Record, Result
from mllib_ext.persistence import ArraysReader, ArraysWriter

# --- columns in ------------------------------------------------------------------------------


class HasFeatures(HasFeaturesCol):
    """Features from one column (``featuresCol``) or from several numeric ones (``featuresCols``).

    ``setFeaturesCol`` takes a name or a list of names, as in spark-rapids-ml.
    """

    featuresCols: Param[list[str]] = Param(
        Params._dummy(),
        "featuresCols",
        "names of numeric feature columns, in place of featuresCol",
        typeConverter=TypeConverters.toListString,
    )

    @keyword_only
    def setParams(self, **params: Any) -> Self:
        """Set several parameters at once, by the constructor's keywords."""
        params = {name: value for name, value in params.items() if value is not None}
        for name in params:
            if not self.hasParam(name):
                hint = did_you_mean(name, [param.name for param in self.params])
                raise TypeError(f"{type(self).__name__} has no parameter {name!r}{hint}")
        for name in ("featuresCol", "featuresCols"):
            if name in params:
                self.setFeaturesCol(params.pop(name))
        return self._set(**params)

    def setFeaturesCol(self, value: str | Sequence[str]) -> Self:
        """Set the features column, or the list of numeric columns that are the features."""
        one, several = self.getParam("featuresCol"), self.getParam("featuresCols")
        used, unused = (one, several) if isinstance(value, str) else (several, one)
        self.clear(unused)
        self.set(used, value if isinstance(value, str) else list(value))
        return self

    def setFeaturesCols(self, value: Sequence[str]) -> Self:
        """Set the list of numeric columns that are the features."""
        return self.setFeaturesCol(list(value))

    def getFeaturesCols(self) -> list[str]:
        """The list of numeric feature columns."""
        return self.getOrDefault(self.featuresCols)

    def _features(self) -> str | list[str]:
        several = self.isSet(self.featuresCols)
        return self.getFeaturesCols() if several else self.getFeaturesCol()


class HasCheckpoints(HasCheckpointInterval):
    """How often a fit is kept, where its estimator has a directory for that."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(checkpointInterval=10)


class HasCallbacks:
    """Functions called after every round of a fit (:mod:`mllib_ext.optimizers.loop`).

    A run directory, one for checkpoints and :meth:`~mllib_ext.fitting.FitsOverBlocks.fitAsync` add
    one of their own.
    """

    _callbacks: tuple[Callback, ...] = ()
    _run_dir: str | None = None
    _checkpoint_dir: str | None = None
    _resumes_with: tuple[str, ...] = ("maxIter",)  # params that may differ when a fit goes on
    _monitor: Any = None  # that of a handle

    def setCallbacks(self, callbacks: Sequence[Callback]) -> Self:
        """Set the callbacks: carried along by ``copy``, never saved."""
        self._callbacks = tuple(callbacks)
        return self

    def getCallbacks(self) -> tuple[Callback, ...]:
        """The callbacks."""
        return self._callbacks

    def setRunDir(self, path: str | None) -> Self:
        """Set the directory that a fit records its rounds in and takes commands from.

        On any Hadoop file system, and there while the fit runs: see
        :func:`mllib_ext.monitor.read_run`. A fit that finds a run there already goes to ``fit-2``,
        ``fit-3``, ... below it, and those of a grid to ``fold-1/point-1``, ... Carried along by
        ``copy``, never saved.
        """
        self._run_dir = path
        return self

    def getRunDir(self) -> str | None:
        """The directory that a fit is recorded in."""
        return self._run_dir

    def setCheckpointDir(self, path: str | None) -> Self:
        """Set the directory that a fit is kept in, and goes on from where it was killed.

        On any Hadoop file system. A fit writes what it needs to go on every ``checkpointInterval``
        iterations, whenever a callback says ``Checkpoint``, and at its end; the last two are left.
        The next one with the same directory, params and data goes on from the last, and ends with
        the bits of one that was never interrupted (not with asynchronous updates, whose order is
        the cluster's). What may differ: ``maxIter``, which may be raised, but for
        ``BisectingKMeans``; names of columns; thresholds; ``checkpointInterval``. Other partitions
        or blocks of the same rows are a warning; other rows, other params, and other partitions
        where rows or states are known by them (support vectors, compressed or local updates that
        remember), a ValueError. The history goes on too, its earlier rounds without what each
        partition did; what callbacks remember is theirs to keep.

        Those of ``fitMultiple``, which is also what Spark's tuners call, have a directory each
        below, by their data and params. Other fits need directories of their own: those that
        ``OneVsRest`` makes are refused. Carried along by ``copy``, never saved.
        """
        self._checkpoint_dir = path
        return self

    def getCheckpointDir(self) -> str | None:
        """The directory that a fit is kept in."""
        return self._checkpoint_dir

    def setCheckpointInterval(self: Any, value: int) -> Any:
        """Set after how many iterations a fit is kept; -1 for never."""
        return self._set(checkpointInterval=value)


# --- a fitted model --------------------------------------------------------------------------


class Fitted(Model, MLWritable, MLReadable[Any]):
    """A model of arrays: how its training ended, and how it is written and read.

    A subclass is made as ``cls(*arrays)``, the arrays in the order of ``_arrays``, and holds them
    read-only under those names.

    Attributes
    ----------
    converged : bool
        A stopping rule held (or the solution is a closed form).
    reason : str
        What ended the training: ``gradient``, ``loss``, ``shift``, ``precision``, ``max_iter``,
        ``closed_form``, ``constant_label`` or a callback's words.
    n_iter : int
    history : tuple of Record
        Every round of the fit, the start first; empty on a loaded model.
    """

    _arrays: tuple[str, ...] = ()

    converged: bool = True
    reason: str = ""
    n_iter: int = 0
    history: tuple[Record, ...] = ()

    def _trained(self, estimator: Any, result: Result[Any] | None, reason: str = "") -> Self:
        """Take over an estimator's uid and parameters and the story of its fit."""
        self._resetUid(estimator.uid)
        estimator._copyValues(self)
        if result is None:
            self.reason = reason
        else:
            self.converged, self.reason = result.converged, result.reason
            self.n_iter, self.history = result.n_iter, result.history
        return self

    def write(self) -> MLWriter:
        """A writer: ``model.write().overwrite().save(path)``."""
        return ArraysWriter(self)

    @classmethod
    def read(cls) -> MLReader[Any]:
        """A reader: ``Model.read().load(path)``."""
        return ArraysReader(cls)


class Trained(Fitted, HasFeatures):
    """A model of arrays that was trained on features."""

    # Spark's models have one of their own, nearer in the method resolution order.
    setFeaturesCol = HasFeatures.setFeaturesCol


# --- prediction out --------------------------------------------------------------------------

# predict(X) -> {column: values}: (n,) becomes a double or integer column, (n, k) a vector or array.
Predict = Callable[[Matrix], dict[str, np.ndarray]]


class Output(NamedTuple):
    """A prediction column: its type, and what Spark's metadata say of its values.

    Attributes
    ----------
    kind : {"double", "integer", "vector", "array<float>", "array<double>"}
    attributes : dict
        Spark's ``ml_attr``: ``{"num_attrs": k}`` of a vector, ``{}`` of a number.
    """

    kind: Literal["double", "integer", "vector", "array<float>", "array<double>"]
    attributes: dict[str, Any]


def class_outputs(names: Sequence[str], n_classes: int) -> dict[str, Output]:
    """The columns of a classifier: vectors of a value for each class, and last the class."""
    vectors = dict.fromkeys(names[:-1], Output("vector", {"num_attrs": n_classes}))
    return vectors | {names[-1]: Output("double", {"num_vals": n_classes, "type": "nominal"})}


class ReadsFeatures(Protocol):
    """A model that knows the column, or the columns, that it reads."""

    @property
    def uid(self) -> str: ...

    def _features(self) -> str | list[str]: ...


def with_predictions(
    model: ReadsFeatures,
    dataset: DataFrame,
    n_features: int,
    outputs: dict[str, Output],
    predict: Predict,
) -> DataFrame:
    """Append a model's prediction columns: one Arrow UDF, one call of ``predict`` a batch.

    Parameters
    ----------
    model : ReadsFeatures
        For its feature columns.
    dataset : DataFrame
        Batch or streaming.
    n_features : int
        What the model was trained on.
    outputs : dict of str to Output
        By the name of the column; nothing where the name is empty.
    predict : callable
        Made of module-level functions and arrays alone: it travels to the workers, and the plan
        outlives the model.
    """
    features = Features.of(dataset.schema, model._features())
    if features.kind == "columns" and len(features.names) != n_features:
        raise ValueError(
            f"{features.label}: expected {n_features} columns as in training, "
            f"found {len(features.names)}"
        )
    outputs = {name: output for name, output in outputs.items() if name}
    for name in outputs:
        if name in dataset.columns:
            raise ValueError(
                f"output column {name!r}: expected a name that is free, found it in the input"
            )
    if not outputs:
        return dataset
    kinds = {
        "double": DoubleType(),
        "integer": IntegerType(),
        "vector": ArrayType(DoubleType(), False),
        "array<float>": ArrayType(FloatType(), False),
        "array<double>": ArrayType(DoubleType(), False),
    }
    fields = [StructField(f"c{i}", kinds[o.kind], False) for i, o in enumerate(outputs.values())]
    function = partial(_predict_batch, features, n_features, tuple(outputs), predict)
    udf = F.arrow_udf(annotated(function), StructType(fields))  # type: ignore[call-overload]
    packed = f"{model.uid}_predictions"
    columns = {}
    for i, (name, output) in enumerate(outputs.items()):
        column = F.col(packed)[f"c{i}"]
        column = array_to_vector(column) if output.kind == "vector" else column
        columns[name] = column.alias(name, metadata={"ml_attr": output.attributes})
    predicted = by_rows(dataset).withColumn(packed, udf(*features.expressions()))
    return predicted.withColumns(columns).drop(packed)


def by_rows(dataset: DataFrame) -> DataFrame:
    """The same rows, of which Spark can hand vectors past an Arrow UDF.

    Spark 4.3 hands Parquet's columns past it as they are, and fails where one of them is a vector.
    Above a filter there are rows; this one is always true, which Spark does not see.
    """
    for field in dataset.schema:
        if '"udt"' in field.dataType.json():
            return dataset.where(F.hash(F.isnull(quoted(field.name))) >= -(2**31))
    return dataset


def annotated(function: Callable[..., pa.Array]) -> Callable[..., pa.Array]:
    """A plain function of any number of Arrow arrays, whose kind PySpark reads from its hints."""

    def call(*arrays: pa.Array) -> pa.Array:
        return function(*arrays)

    call.__annotations__ = {"arrays": pa.Array, "return": pa.Array}
    return call


def _predict_batch(
    features: Features, n_features: int, names: Sequence[str], predict: Predict, *arrays: pa.Array
) -> pa.Array:
    X = features.decode(arrays, n_features, None)
    if X.dtype != np.float64:
        X = X.astype(np.float64)  # transfer dwarfs the product: no reason to lose digits
    outputs = predict(X)
    return pa.StructArray.from_arrays(
        [_column(outputs[name]) for name in names], [f"c{i}" for i in range(len(names))]
    )


def _column(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    n, k = values.shape
    offsets = np.arange(0, (n + 1) * k, k, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(values).ravel())


def frozen(values: Any) -> np.ndarray:
    """A read-only float64 copy, for a model to hold."""
    array = np.array(values, dtype=np.float64)
    array.flags.writeable = False
    return array


def as_row(value: Any, n_features: int) -> np.ndarray:
    """One vector (Spark's, or anything array-like) as a matrix (1, n_features)."""
    vector = value.toArray() if isinstance(value, Vector) else np.asarray(value, dtype=np.float64)
    if vector.shape != (n_features,):
        raise ValueError(
            f"features: expected a vector of length {n_features}, found shape {vector.shape}"
        )
    return vector.reshape(1, -1)


def dense(values: np.ndarray) -> DenseVector:
    """A copy as Spark's vector."""
    return Vectors.dense(values.tolist())


def compressed(values: np.ndarray) -> Vector:
    """A copy as Spark's vector, sparse where pyspark.ml's is: in less than two thirds the space."""
    stored = np.flatnonzero(values)
    if 1.5 * (len(stored) + 1) < len(values):
        return Vectors.sparse(len(values), stored.tolist(), values[stored].tolist())
    return dense(values)


def compressed_matrix(values: np.ndarray) -> SparkMatrix:
    """A copy (n, d) as Spark's matrix, sparse by columns or rows where pyspark.ml's is: if smaller.

    An entry takes 12 bytes and not 8, and a pointer to a column or row 4 (``Matrix.compressed``).
    """
    n, d = values.shape
    by_columns = d <= n
    if 12 * np.count_nonzero(values) + 4 * (min(n, d) + 1) + 24 >= 8 * values.size:
        return DenseMatrix(n, d, values.ravel().tolist(), isTransposed=True)
    stored = sp.csc_array(values) if by_columns else sp.csr_array(values)
    parts = (stored.indptr.tolist(), stored.indices.tolist(), stored.data.tolist())
    # A number, as Spark's matrices have it: it shows in their representation.
    return SparseMatrix(n, d, *parts, int(not by_columns))  # type: ignore[arg-type]
