"""What estimators with a kernel and their models share: parameters, checks, support vectors."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasAggregationDepth,
    HasMaxBlockSizeInMB,
    HasMaxIter,
    HasTol,
    HasWeightCol,
)

from mllib_ext.base import HasCheckpoints, HasFeatures, Trained, frozen
from mllib_ext.columns import Matrix
from mllib_ext.fitting import FitsOverBlocks
from mllib_ext.kernel_params import HasKernel, SetsKernel
from mllib_ext.mapped import Shipped

# A pass over more bytes is worth the executors: it takes kernels, not products.
DRIVER_BYTES = 1 << 20
# From here on predictions are slow, and rows that are support vectors by this share are many.
MANY_SUPPORT_VECTORS = 1_000
LARGE_SHARE = 0.3


class KernelParams(
    HasKernel,
    HasFeatures,
    HasCheckpoints,
    HasMaxIter,
    HasTol,
    HasWeightCol,
    HasAggregationDepth,
    HasMaxBlockSizeInMB,
):
    """Parameters of an estimator with a kernel and its model."""

    maxSupportVectors: Param[int] = Param(
        Params._dummy(),
        "maxSupportVectors",
        "more support vectors than this are an error",
        TypeConverters.toInt,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            tol=1e-3,
            maxIter=100,
            maxSupportVectors=20_000,
            aggregationDepth=3,
            maxBlockSizeInMB=64.0,
        )

    def getMaxSupportVectors(self) -> int:
        """The largest number of support vectors."""
        return self.getOrDefault(self.maxSupportVectors)


class SupportVectors(Shipped, Trained):
    """The support vectors of a model, in the first four of its ``_arrays``.

    Parameters
    ----------
    values, indices, indptr : ndarray
        The support vectors: (n_sv, d), or the parts of a CSR matrix.
    n_features : int
    gamma_value, dual_objective : float
    """

    def _hold(
        self,
        values: Any,
        indices: Any,
        indptr: Any,
        n_features: Any,
        gamma_value: Any,
        dual_objective: Any,
    ) -> None:
        self._values, self._n_features = frozen(values), frozen(n_features)
        self._indices, self._indptr = integers(indices, np.int32), integers(indptr, np.int32)
        self._gamma_value, self._dual_objective = frozen(gamma_value), frozen(dual_objective)

    @property
    def numFeatures(self) -> int:
        """Number of features."""
        return int(self._n_features)

    @property
    def numSupportVectors(self) -> int:
        """Number of support vectors."""
        return int(self.supportVectors.shape[0])

    @property
    def supportVectors(self) -> Matrix:
        """The support vectors (n_sv, d), by class; CSR where the training data were."""
        if self._values.ndim == 2:
            return self._values
        parts = (self._values, self._indices, self._indptr)
        return sp.csr_array(parts, shape=(len(self._indptr) - 1, self.numFeatures))

    @property
    def gammaValue(self) -> float:
        """The coefficient of the kernel as a number, whatever rule gave it."""
        return float(self._gamma_value)

    @property
    def dualObjective(self) -> float:
        """The dual objective as it is maximised, of all pairs of classes together."""
        return float(self._dual_objective)


def parts_of(X: Matrix) -> tuple[Any, Any, Any, int]:
    """Support vectors as :class:`SupportVectors` hold them: the first four arrays."""
    if isinstance(X, np.ndarray):
        return X, [], [], X.shape[1]
    return X.data, X.indices, X.indptr, X.shape[1]


def integers(values: Any, dtype: Any) -> np.ndarray:
    """A read-only copy, for a model to hold."""
    array = np.array(values, dtype=dtype)
    array.flags.writeable = False
    return array


class KernelEstimator(FitsOverBlocks, SetsKernel, KernelParams):
    """Setters and checks of an estimator with a kernel."""

    setFeaturesCol = HasFeatures.setFeaturesCol

    def setWeightCol(self, value: str) -> Self:
        """Set the column of row weights."""
        return self._set(weightCol=value)

    def setTol(self, value: float) -> Self:
        """Set by how much a KKT condition may be violated."""
        return self._set(tol=value)

    def setMaxIter(self, value: int) -> Self:
        """Set the largest number of passes."""
        return self._set(maxIter=value)

    def setMaxSupportVectors(self, value: int) -> Self:
        """Set the largest number of support vectors."""
        return self._set(maxSupportVectors=value)

    def setAggregationDepth(self, value: int) -> Self:
        """Set the levels on which support vectors are merged."""
        return self._set(aggregationDepth=value)

    def setMaxBlockSizeInMB(self, value: float) -> Self:
        """Set the size of a block in MB."""
        return self._set(maxBlockSizeInMB=value)

    def _driver_bytes(self) -> int:
        return min(DRIVER_BYTES, super()._driver_bytes())

    def _refuse_params(self) -> None:
        self._refuse_kernel()
        self._refuse_not_above_0("tol")
        lowest = {"maxIter": 0, "maxSupportVectors": 2}
        for name, low in {**lowest, "aggregationDepth": 2, "maxBlockSizeInMB": 0}.items():
            value = self.getOrDefault(name)
            if not value >= low:
                raise ValueError(f"param {name}: expected {low} or more, found {value!r}")

    def _refuse_not_above_0(self, name: str) -> None:
        value = self.getOrDefault(name)
        if not 0 < value < np.inf:
            raise ValueError(f"param {name}: expected a number above 0, found {value!r}")


def warn_of_many(n_support_vectors: int, n_rows: int, remedy: str) -> None:
    """A warning where predictions will be slow."""
    if n_support_vectors > max(MANY_SUPPORT_VECTORS, LARGE_SHARE * n_rows):
        warnings.warn(
            f"{n_support_vectors} of {n_rows} rows are support vectors, and each is "
            f"part of every prediction: {remedy}",
            stacklevel=5,
        )
