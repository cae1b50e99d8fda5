r"""Distances between rows: exact for pairs, and fast with a bound on the error for whole blocks.

A metric orders rows x by a *key* of a query q, the smaller the nearer:

.. math::

    \|q - x\|_2^2 \;\text{(euclidean, sqeuclidean)}, \qquad
    \Big\|\frac{q}{\|q\|} - \frac{x}{\|x\|}\Big\|_2^2 = 2 (1 - \cos(q, x)), \qquad
    -q \cdot x, \qquad \|q - x\|_1

:meth:`Metric.keys` computes it in float64 from differences: it is 0 for identical rows, and the
same bits for a pair whatever stands beside it. :meth:`Metric.tile` prepares rows for *scores*: one
matrix product gives the keys of many pairs up to an error that is bounded,

.. math::

    |\mathrm{fl}(a \cdot b) - a \cdot b| \le \gamma_n \, \|a\| \|b\|, \qquad
    \gamma_n = \frac{n u}{1 - n u}

for n terms in the precision u and any order of addition (Higham 2002, section 3.1). The rows are
centred first, which shortens them, so that :math:`\|x\|^2 - 2 q \cdot x` cancels less.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from mllib_ext.columns import Matrix
from mllib_ext.names import did_you_mean


class Scores(NamedTuple):
    """Keys of a block of queries and a tile of rows, each within a bound.

    ``|key[i, j] - (scale[i] * values[i, j] + shift[i])| <= error[i]``

    Attributes
    ----------
    values : callable
        ``values(first, stop, out)`` are those of rows ``first`` to ``stop`` of the tile,
        (m, stop - first), in ``out`` where that serves.
    dtype : dtype
        Of the values: float32 or float64.
    scale, shift, error : ndarray, shape (m,), float64
    """

    values: Callable[[int, int, np.ndarray], np.ndarray]
    dtype: np.dtype
    scale: np.ndarray
    shift: np.ndarray
    error: np.ndarray


class Tile(ABC):
    """Rows that were prepared for scores."""

    @abstractmethod
    def scores(self, Q: Matrix) -> Scores:
        """The keys of all pairs with queries Q (m, d)."""


@dataclass(frozen=True)
class Metric(ABC):
    """An order of neighbours, and what is reported of it.

    Attributes
    ----------
    name : str
    """

    name: str

    def rows(self, X: Matrix) -> Matrix:
        """The rows as keys are computed of: float64.

        Raises
        ------
        ValueError
            A row that the metric is not defined for.
        """
        return X.astype(np.float64)

    @abstractmethod
    def keys(self, A: Matrix, B: Matrix) -> np.ndarray:
        """Keys (p,) of the pairs of :meth:`rows` A (p, d) and B (p, d), float64."""

    @abstractmethod
    def tile(self, X: Matrix, dtype: Any) -> Tile:
        """Rows X (t, d) for scores that are computed in ``dtype``."""

    def distances(self, keys: np.ndarray) -> np.ndarray:
        """What neighbours are ordered by: what is reported, up to its :attr:`sign`."""
        return keys

    def largest_key(self, distances: Any) -> Any:
        """No key is larger of what has :meth:`distances` up to these: a few roundings added."""
        return distances + 8 * _UNIT * abs(distances)

    @property
    def sign(self) -> float:
        """-1 where the largest comes first."""
        return 1.0


@dataclass(frozen=True)
class Squared(Metric):
    """The Euclidean distance, its square, or the cosine distance by unit vectors."""

    def rows(self, X: Matrix) -> Matrix:
        X = X.astype(np.float64)
        if self.name != "cosine":
            return X
        norms = np.sqrt(_squares(X))
        if not norms.all():
            row = int(np.flatnonzero(norms == 0)[0])
            raise ZeroVector(row)
        return _scaled_rows(X, 1 / norms)

    def keys(self, A: Matrix, B: Matrix) -> np.ndarray:
        return _squares(A - B)

    def tile(self, X: Matrix, dtype: Any) -> Tile:
        return _gemm_tile(self.rows(X), dtype, True)

    def distances(self, keys: np.ndarray) -> np.ndarray:
        match self.name:
            case "euclidean":
                return np.sqrt(keys)
            case "cosine":
                return keys / 2
        return keys

    def largest_key(self, distances: Any) -> Any:
        factor = {"euclidean": distances, "cosine": 2.0}.get(self.name, 1.0)
        return super().largest_key(factor * distances)


@dataclass(frozen=True)
class InnerProduct(Metric):
    """The inner product, the largest first."""

    def keys(self, A: Matrix, B: Matrix) -> np.ndarray:
        if not isinstance(A, np.ndarray):
            return -np.asarray(A.multiply(B).sum(axis=1)).ravel()
        return -np.einsum("ij,ij->i", A, B)

    def tile(self, X: Matrix, dtype: Any) -> Tile:
        return _gemm_tile(self.rows(X), dtype, False)

    @property
    def sign(self) -> float:
        return -1.0


@dataclass(frozen=True)
class Manhattan(Metric):
    """The sum of absolute differences: no matrix product has it."""

    def keys(self, A: Matrix, B: Matrix) -> np.ndarray:
        return _finite(np.asarray(abs(A - B).sum(axis=1)).ravel())

    def tile(self, X: Matrix, dtype: Any) -> Tile:
        return CityblockTile(self.rows(X))


class ZeroVector(ValueError):
    """A row of zeros, which has no direction; ``row`` is its place."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row

    def __str__(self) -> str:
        return f"expected no row of zeros under the cosine metric, found one: row {self.row}"


_METRICS = {
    "euclidean": Squared("euclidean"),
    "l2": Squared("euclidean"),
    "sqeuclidean": Squared("sqeuclidean"),
    "cosine": Squared("cosine"),
    "inner_product": InnerProduct("inner_product"),
    "manhattan": Manhattan("manhattan"),
    "cityblock": Manhattan("manhattan"),
    "l1": Manhattan("manhattan"),
}


def metric(name: str) -> Metric:
    """The metric of that name; ValueError for another one."""
    if name in _METRICS:
        return _METRICS[name]
    raise ValueError(
        f"param metric: expected one of {sorted(_METRICS)}, found {name!r}"
        f"{did_you_mean(name, _METRICS)}"
    )


# --- scores ------------------------------------------------------------------------------------

_UNIT = 2.0**-53


class DenseTile(Tile):
    """Centred rows with their squared norms as one more column: scores are one product.

    Rows are scaled by a power of two to length 1 at most and so is each query, so that no square
    overflows in float32, and what underflows is far below the bound.
    """

    def __init__(self, X: np.ndarray, dtype: Any, squared: bool) -> None:
        t, d = X.shape
        self._squared = squared
        self._center = X.mean(axis=0) if squared else np.zeros(d)
        X = X - self._center
        norms = _squares(X)
        self._radius = float(np.sqrt(norms.max()))
        self._scale = _power_of_two(self._radius)
        self._B = np.empty((t, d + squared), dtype)
        self._B[:, :d] = X / self._scale
        if squared:
            self._B[:, d] = norms / self._scale**2
        self._gamma = _gamma(d + 8, np.finfo(dtype).eps / 2)

    def scores(self, Q: np.ndarray) -> Scores:
        m, d = Q.shape
        factor = 2.0 if self._squared else 1.0
        Q = Q - self._center
        norms = _squares(Q)
        lengths = np.sqrt(norms)
        shrink = _power_of_two(lengths / self._scale)
        A = np.empty((m, d + self._squared), self._B.dtype)
        A[:, :d] = Q * (-factor / (self._scale * shrink))[:, None]
        if self._squared:
            A[:, d] = 1 / shrink

        def values(first: int, stop: int, out: np.ndarray) -> np.ndarray:
            return np.matmul(A, self._B[first:stop].T, out=out)

        scale = self._scale**2 * shrink
        # The product and the rounding of its factors; the key's own; what underflowed.
        error = self._gamma * (factor * lengths * self._radius + self._squared * self._radius**2)
        error += _gamma(2 * d + 16, _UNIT) * (lengths + self._radius) ** 2
        error += scale * (d + 8) * float(np.finfo(A.dtype).tiny)
        return Scores(values, A.dtype, scale, norms if self._squared else np.zeros(m), error)


class SparseTile(Tile):
    """CSR rows as they are: to centre them would make them dense."""

    def __init__(self, X: Any, squared: bool) -> None:
        self._squared = squared
        self._norms = _squares(X)
        self._radius = float(np.sqrt(self._norms.max()))
        self._transposed = sp.csr_array(X.T)
        self._stored = int(np.diff(X.indptr).max())

    def scores(self, Q: Any) -> Scores:
        m = Q.shape[0]
        norms = _squares(Q)
        lengths = np.sqrt(norms)
        values = (Q @ self._transposed).toarray()
        values *= -2.0 if self._squared else -1.0
        if self._squared:
            values += self._norms
        else:
            norms = np.zeros(m)
        terms = 2 * (self._stored + int(np.diff(Q.indptr).max())) + 16
        error = _gamma(terms, _UNIT) * (lengths + self._radius) ** 2
        return _computed(values, norms, error)


class CityblockTile(Tile):
    """Rows for SciPy's loop over all pairs, in float64."""

    def __init__(self, X: Matrix) -> None:
        self._X = dense_rows(X)

    def scores(self, Q: Matrix) -> Scores:
        Q = dense_rows(Q)
        values = cdist(Q, self._X, "cityblock")
        m, d = Q.shape
        # Both sums are within half of this of the true one.
        error = _gamma(2 * d + 16, _UNIT) * values.max(axis=1)
        return _computed(values, np.zeros(m), error)


def _computed(values: np.ndarray, shift: np.ndarray, error: np.ndarray) -> Scores:
    """Scores of which all values (m, t) are there."""

    def some(first: int, stop: int, out: np.ndarray) -> np.ndarray:
        return values[:, first:stop]

    return Scores(some, values.dtype, np.ones(len(shift)), shift, error)


def _gemm_tile(X: Matrix, dtype: Any, squared: bool) -> Tile:
    dense = isinstance(X, np.ndarray)
    return DenseTile(X, dtype, squared) if dense else SparseTile(X, squared)


def dense_rows(X: Matrix) -> np.ndarray:
    """The rows (n, d), not sparse."""
    return X if isinstance(X, np.ndarray) else X.toarray()


def _gamma(n: int, unit: float) -> float:
    return n * unit / (1 - n * unit) if n * unit < 1 else np.inf


def _power_of_two(lengths: Any) -> Any:
    """The smallest powers of two above the lengths; 1 for a length of 0."""
    return np.where(np.equal(lengths, 0), 1.0, np.ldexp(1.0, np.frexp(lengths)[1]))[()]


def squared_norms(X: Matrix) -> np.ndarray:
    """Squared lengths of rows, float64 (n,)."""
    if isinstance(X, np.ndarray):
        return np.einsum("ij,ij->i", X, X, dtype=np.float64)
    squares = sp.csr_array((X.data**2, X.indices, X.indptr), shape=X.shape)
    norms: np.ndarray = squares @ np.ones(X.shape[1])
    return norms


def weights_as(dtype: np.dtype, w: np.ndarray) -> tuple[np.ndarray, int]:
    """Weights (n,) over a power of two in a precision that has room for them, and its exponent."""
    exponent = 0
    if dtype != np.float64 and len(w):
        exponent = int(np.frexp(w.max())[1])
        if abs(exponent) > 8:
            return np.ldexp(w, -exponent).astype(dtype), exponent
    return w.astype(dtype), 0


def restored(sums: np.ndarray, exponent: int) -> np.ndarray:
    """Sums by the weights of :func:`weights_as` as they are."""
    return np.ldexp(sums.astype(np.float64), exponent) if exponent else sums


def _squares(X: Matrix) -> np.ndarray:
    """Squared norms (n,) of rows, added up in the order of the columns whatever n is."""
    if not isinstance(X, np.ndarray):
        return _finite(np.asarray(X.multiply(X).sum(axis=1)).ravel())
    return _finite(np.einsum("ij,ij->i", X, X))


def _finite(sums: np.ndarray) -> np.ndarray:
    if not np.isfinite(sums).all():
        raise ValueError("expected numbers whose squares add up to a finite one, found larger ones")
    return sums


def _scaled_rows(X: Matrix, factors: np.ndarray) -> Matrix:
    if not isinstance(X, np.ndarray):
        data = X.data * np.repeat(factors, np.diff(X.indptr))
        return sp.csr_array((data, X.indices, X.indptr), shape=X.shape)
    return X * factors[:, None]
