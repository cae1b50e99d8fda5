r"""The Nyström map: features whose scalar products are nearly a kernel's.

.. math:: z(x) = K(x, L) \, K(L, L)^{-1/2}

for m landmarks L among the rows: :math:`z(x) \cdot z(x')` is the kernel where x or x' is a
landmark, and its best approximation in the span of the landmarks elsewhere (Williams & Seeger
2001). A linear model of z is a model with the kernel at the price of m features. Landmarks at the
centers of k-means approximate better than rows drawn uniformly (Zhang, Tsang & Kwok 2008).
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from pyspark import keyword_only
from pyspark.ml.param import Param, Params, TypeConverters

from mllib_ext.base import frozen, unsigned_seed
from mllib_ext.blas import one_thread
from mllib_ext.blocks import Blocks
from mllib_ext.clustering import KMeans
from mllib_ext.columns import Matrix
from mllib_ext.feature.feature_map import FeatureMap, FeatureMapModel, FeatureMapParams
from mllib_ext.kernel_params import HasKernel, SetsKernel
from mllib_ext.kernels import Kernel, dense_enough
from mllib_ext.moments import merge, moments
from mllib_ext.seeding import drawn_rows

LANDMARKS = ("uniform", "k-means")
# Landmarks need to lie well, not to be the optimum of k-means.
K_MEANS_ROUNDS = 5


class NystroemParams(HasKernel, FeatureMapParams):
    """Parameters of the estimator and its model."""

    landmarks: Param[str] = Param(
        Params._dummy(),
        "landmarks",
        "uniform: rows drawn without replacement; k-means: centers of clusters",
        TypeConverters.toString,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(landmarks="uniform")

    def getLandmarks(self) -> str:
        """Where landmarks come from."""
        return self.getOrDefault(self.landmarks)


class NystroemModel(FeatureMapModel, NystroemParams):
    """Model fitted by :class:`Nystroem`.

    Parameters
    ----------
    values, indices, indptr : ndarray
        The landmarks: (m, d), or the parts of a CSR matrix.
    n_features : int
    normalization : ndarray, shape (m, m)
        The inverse square root of their kernel.
    gamma_value : float
    """

    _arrays = ("values", "indices", "indptr", "n_features", "normalization", "gamma_value")

    def __init__(
        self,
        values: Any,
        indices: Any,
        indptr: Any,
        n_features: Any,
        normalization: Any,
        gamma_value: Any,
    ) -> None:
        super().__init__()
        self._values, self._normalization = frozen(values), frozen(normalization)
        self._indices, self._indptr = (np.array(a, dtype=np.int32) for a in (indices, indptr))
        self._n_features, self._gamma_value = frozen(n_features), frozen(gamma_value)

    @property
    def landmarkRows(self) -> Matrix:
        """The landmarks, scikit-learn's ``components_``: (m, d), CSR where the input was."""
        if self._values.ndim == 2:
            return self._values
        shape = (self.numComponents, self.numFeatures)
        return sp.csr_array((self._values, self._indices, self._indptr), shape=shape)

    @property
    def normalization(self) -> np.ndarray:
        """The inverse square root of the landmarks' kernel, (m, m), read-only."""
        return self._normalization

    @property
    def gammaValue(self) -> float:
        """The coefficient of the kernel as a number, whatever rule gave it."""
        return float(self._gamma_value)

    @property
    def numFeatures(self) -> int:
        """Number of features that go in."""
        return int(self._n_features)

    @property
    def numComponents(self) -> int:
        """Number of features that come out: of landmarks."""
        return len(self._normalization)

    @property
    def _predictor(self) -> Any:
        kernel = self._kernel(self.gammaValue)
        return partial(embedded, kernel, dense_enough(self.landmarkRows), self._normalization)


def embedded(kernel: Kernel, L: Matrix, normalization: np.ndarray, X: Matrix) -> np.ndarray:
    """The map (n, m) of rows X (n, d) by landmarks L (m, d)."""
    K: np.ndarray = kernel(X, L) @ normalization.T
    return K


def inverse_square_root(K: np.ndarray) -> np.ndarray:
    r""":math:`K^{-1/2}` of a symmetric matrix (m, m), in the span that rounding leaves of it.

    scikit-learn's, ``U / sqrt(S) @ V`` of the singular value decomposition, also where K has
    negative eigenvalues (sigmoid). Singular values that are rounding errors of the largest one are
    left out, as in a pseudo-inverse: equal landmarks have them.
    """
    values, Q = scipy.linalg.eigh(K, driver="evd")  # a quarter less time than the default
    size = np.abs(values)
    kept = size > len(K) * np.finfo(np.float64).eps * size.max(initial=0.0)
    Q = Q[:, kept]
    root: np.ndarray = (Q * (np.sign(values[kept]) / np.sqrt(size[kept]))) @ Q.T
    return root


class Nystroem(FeatureMap, SetsKernel, NystroemParams):
    """Features whose scalar products are nearly a kernel's; see :mod:`mllib_ext.feature.nystroem`.

    Parameters
    ----------
    inputCol : str
        A vector or array column. Scale features first.
    inputCols : list of str
        Numeric columns in place of it.
    outputCol : str
    outputType : {"vector", "array<float>", "array<double>"}
        Vectors for every estimator of Spark's; arrays, which the estimators of this package take as
        well, cross to Python faster. All is computed in float64, as the inverse of a nearly
        singular kernel magnifies rounding; ``array<float>`` is rounded at the end.
    kernel : {"rbf", "linear", "poly", "sigmoid"}
    gamma : {"scale", "auto"} or float
        ``scale`` is 1 / (d var(X)), ``auto`` 1 / d.
    degree : int
        Of ``poly``.
    coef0 : float
        Of ``poly`` and ``sigmoid``.
    nComponents : int
        The number of landmarks. Fewer rows give as many features as there are rows, and a warning.
    landmarks : {"uniform", "k-means"}
        Rows drawn without replacement, every one with the same chance, in one pass; or centers of
        :class:`mllib_ext.clustering.KMeans` after a few rounds.
    seed : int
        The same rows in the same partitions give the same landmarks.

    Raises
    ------
    ValueError
        From ``fit``: a parameter out of range; what :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Notes
    -----
    A linear machine of these features has the objective of a kernel machine where it leaves them as
    they are: ``LinearSVC(standardization=False, regParam=1 / (C * n))`` stands for
    ``KernelSVC(C=C)`` of n rows.

    Examples
    --------
    >>> from mllib_ext.feature import Nystroem
    >>> mapped = Nystroem(nComponents=300, outputCol="z").fit(df).transform(df)  # doctest: +SKIP
    >>> LinearSVC(featuresCol="z", standardization=False).fit(mapped)  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "features",
        outputCol: str = "mapped_features",
        kernel: str = "rbf",
        gamma: str | float = "scale",
        degree: int = 3,
        coef0: float = 0.0,
        nComponents: int = 100,
        landmarks: str = "uniform",
        outputType: str = "vector",
        seed: int = 0,
        inputCols: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def setLandmarks(self, value: str) -> Nystroem:
        """Set where landmarks come from: uniform or k-means."""
        return self._set(landmarks=value)

    def _refuse_params(self) -> None:
        super()._refuse_params()
        self._refuse_kernel()
        if self.getLandmarks() not in LANDMARKS:
            raise ValueError(
                f"param landmarks: expected one of {LANDMARKS}, found {self.getLandmarks()!r}"
            )

    def _fit_blocks(self, blocks: Blocks) -> NystroemModel:
        weight, _, _, mean, scatter = blocks.reduce(moments, merge)
        gamma = self._resolved_gamma(mean, scatter, weight)
        L = self._landmarks_of(blocks)
        n_landmarks = L.shape[0]
        if n_landmarks < self.getNComponents():
            warnings.warn(
                f"{blocks.features.label}: {n_landmarks} different rows are fewer than "
                f"nComponents = {self.getNComponents()}: the model has {n_landmarks} components",
                stacklevel=4,
            )
        kernel = self._kernel(gamma)
        with one_thread():
            normalization = inverse_square_root(kernel(L, L))
        parts: tuple[Any, Any, Any] = (L, [], [])
        if not isinstance(L, np.ndarray):
            parts = (L.data, L.indices, L.indptr)
        model = NystroemModel(*parts, blocks.n_features, normalization, gamma)
        return model._trained(self, None, "closed_form")

    def _landmarks_of(self, blocks: Blocks) -> Matrix:
        """Landmarks (m, d), float64: CSR where they are rows of CSR blocks."""
        if self.getLandmarks() == "uniform":
            rows = drawn_rows(blocks, self.getNComponents(), [unsigned_seed(self)])
            return rows.astype(np.float64)
        k_means = KMeans(k=self.getNComponents(), maxIter=K_MEANS_ROUNDS, seed=self.getSeed())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it was stopped, or that there are few rows
            return np.array(k_means._fit_blocks(blocks).clusterCenters())
