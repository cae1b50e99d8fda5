"""Arrays that travel as less than they are.

:class:`Scattered`: what a few sparse rows say of a million columns. A block of wide sparse data
knows the columns that it stores (:class:`mllib_ext.blockfile.Block`). Its gradient, means and
variances are arrays of these columns alone, and so are their sums.

:class:`Symmetric`: a Hessian, half of which says all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Scattered:
    """An array of shape (length, ...) that is 0 outside some of its rows.

    Attributes
    ----------
    places : ndarray, shape (m,)
        The numbers of those rows, ascending.
    values : ndarray, shape (m, ...)
    length : int
    """

    places: np.ndarray
    values: np.ndarray
    length: int

    __array_ufunc__ = None  # numpy's scalars leave a product with one to it

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def nbytes(self) -> int:
        return self.places.nbytes + self.values.nbytes

    def toarray(self) -> np.ndarray:
        """All rows."""
        array = np.zeros((self.length, *self.values.shape[1:]), self.values.dtype)
        array[self.places] = self.values
        return array

    def astype(self, dtype: Any) -> Scattered:
        """The same values in another precision."""
        return Scattered(self.places, self.values.astype(dtype), self.length)

    def append(self, value: np.ndarray) -> Scattered:
        """With one more row (...) at the end."""
        places, values = np.append(self.places, self.length), np.append(self.values, value)
        return Scattered(places, values.reshape(-1, *self.values.shape[1:]), self.length + 1)

    def add_to(self, array: np.ndarray) -> None:
        """Add to an array of all rows, in place."""
        array[self.places] += self.values

    def __add__(self, other: Scattered) -> Scattered:
        if np.array_equal(self.places, other.places):
            return Scattered(self.places, self.values + other.values, self.length)
        places = np.union1d(self.places, other.places)
        values = np.zeros((len(places), *self.values.shape[1:]), self.values.dtype)
        for one in (self, other):
            values[np.searchsorted(places, one.places)] += one.values
        return Scattered(places, values, self.length)

    def __neg__(self) -> Scattered:
        return Scattered(self.places, -self.values, self.length)

    def __sub__(self, other: Scattered) -> Scattered:
        return self + -other

    def __mul__(self, factor: float | Scattered) -> Scattered:
        """Times a number, or row by row times one that has the same places."""
        by = factor.values if isinstance(factor, Scattered) else factor
        return Scattered(self.places, self.values * by, self.length)

    __rmul__ = __mul__


@dataclass(frozen=True, eq=False)
class Symmetric:
    """A symmetric matrix, pickled as its lower triangle.

    Attributes
    ----------
    array : ndarray, shape (m, m), or (a, k, a, k) with m = a k
    dtype : numpy.dtype
        What the triangle is rounded to on its way: that of the rows whose products it holds.
    """

    array: np.ndarray
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the triangle."""
        m = _side(self.array.shape)
        return m * (m + 1) // 2 * self.dtype.itemsize

    def toarray(self) -> np.ndarray:
        """All of the matrix."""
        return self.array

    def astype(self, dtype: Any) -> Symmetric:
        """A copy to add to in another precision; it travels as before."""
        return Symmetric(self.array.astype(dtype), self.dtype)

    def add_to(self, array: np.ndarray) -> None:
        """Add to a whole matrix, in place."""
        np.add(array, self.array, out=array)

    def __add__(self, other: Symmetric) -> Symmetric:
        return Symmetric(self.array + other.array, self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        m = _side(self.array.shape)
        lower = self.array.reshape(m, m)[np.tri(m, dtype=bool)]
        return _whole, (lower.astype(self.dtype, copy=False), self.array.shape)


def _side(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[: len(shape) // 2]))


def _whole(lower: np.ndarray, shape: tuple[int, ...]) -> Symmetric:
    m = _side(shape)
    array, below = np.empty((m, m)), np.tri(m, dtype=bool)
    array[below] = lower
    array.T[below] = lower
    return Symmetric(array.reshape(shape), lower.dtype)


def dense(value: Any) -> Any:
    """A value as an array of all its entries, if it is compact; others as they are."""
    return value.toarray() if isinstance(value, Scattered | Symmetric) else value
