"""What every estimator and model shares: feature columns, callbacks, how models are kept.

Written once, here; the rest is Spark's own parameters and mixins. For the columns that a model
appends see :mod:`mllib_ext.prediction`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self, TypeVar

import numpy as np
import scipy.sparse as sp
from pyspark import keyword_only
from pyspark.ml.base import Model
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

from mllib_ext.names import did_you_mean
from mllib_ext.optimizers.loop import Callback, Record, Result
from mllib_ext.persistence import ArraysReader, ArraysWriter

P = TypeVar("P", bound=Params)

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
        return set_columns(self, "featuresCol", "featuresCols", value)

    def setFeaturesCols(self, value: Sequence[str]) -> Self:
        """Set the list of numeric columns that are the features."""
        return self.setFeaturesCol(list(value))

    def getFeaturesCols(self) -> list[str]:
        """The list of numeric feature columns."""
        return self.getOrDefault(self.featuresCols)

    def copy(self: Any, extra: Any = None) -> Any:
        """A copy with other parameters; a column takes the place of several, and they of it."""
        return with_columns(super().copy(extra), "featuresCol", "featuresCols", extra)

    def _features(self) -> str | list[str]:
        several = self.isSet(self.featuresCols)
        return self.getFeaturesCols() if several else self.getFeaturesCol()


def set_columns(instance: P, one: str, several: str, value: Any) -> P:
    """Set the parameter of one column or that of several, and clear the other.

    TypeError unless ``value`` is a name or names.
    """
    used, unused = (one, several) if isinstance(value, str) else (several, one)
    if not isinstance(value, str):
        value = list(value) if isinstance(value, Iterable) else [value]
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"param {one}: expected names of columns, found {value}")
    instance.clear(instance.getParam(unused))
    instance.set(instance.getParam(used), value)
    return instance


def with_columns(instance: P, one: str, several: str, extra: Any) -> P:
    """The instance with the parameter of one column or of several that ``extra`` has, not both."""
    given = {param.name for param in extra or ()}
    for name, other in ((one, several), (several, one)):
        if name in given and other not in given:
            instance.clear(instance.getParam(other))
    return instance


def unsigned_seed(instance: Params) -> int:
    """The param seed as NumPy takes it: Spark's may be negative."""
    seed: int = instance.getOrDefault("seed")
    return seed % (1 << 64)


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
    _shares_checkpoint_dir: bool = False
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

    def setCheckpointDir(self, path: str | None, shared: bool = False) -> Self:
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

        Fits of one ``fitMultiple``, which is also what Spark's tuners call on an estimator, have a
        directory each below, by a key of their data and params. With ``shared`` all fits have: what
        ``OneVsRest`` makes, or a tuner of a ``Pipeline``, or of several grids. Then no fit is
        refused, and one with other params begins anew. Carried along by ``copy``, never saved.
        """
        self._checkpoint_dir, self._shares_checkpoint_dir = path, shared
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


# --- arrays ----------------------------------------------------------------------------------


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
