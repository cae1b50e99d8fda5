r"""Support vector machines with a kernel: one soft-margin problem for each pair of classes.

.. math::

    \min_{\alpha} \frac12 \sum_{ij} \alpha_i \alpha_j s_i s_j k(x_i, x_j) - \sum_i \alpha_i,
    \qquad 0 \le \alpha_i \le C_i, \quad \sum_i s_i \alpha_i = 0

over the rows of two classes, with :math:`s_i = 1` in the later class and -1 in the earlier. The
machine of the pair decides for the later class where

.. math:: f(x) = \sum_i s_i \alpha_i k(x_i, x) + b > 0

and a row with :math:`\alpha_i = 0` satisfies its Karush-Kuhn-Tucker condition where
:math:`s_i f(x_i) \ge 1`. More than two classes vote one against one (Knerr et al. 1990). Small
problems are solved by libsvm (Chang & Lin 2011), through scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from mllib_ext.columns import Matrix, stacked
from mllib_ext.distances import dense_rows
from mllib_ext.kernels import Kernel, dense_enough

# Rows whose kernels are computed at once. Always as many, for then a row has the same bits whatever
# stands beside it, and a multiple of what products take at once on every processor.
TILE_ROWS = 192
# libsvm keeps kernel values in single precision, each rounded by so much of its size.
SOLVER_ROUNDING = 2.0**-24
# MB of kernel values that libsvm may keep, as a problem needs them: 11,000 rows, all with all.
CACHE_MB = 500


@dataclass(frozen=True)
class Rows:
    """Training rows that know where they come from.

    Attributes
    ----------
    id : ndarray, shape (m,), int64
        Different for every row of the data set, also for equal ones.
    X : ndarray or csr_array, shape (m, d), float64
    y : ndarray, shape (m,), int64
        Classes 0 .. k-1, every one of which has rows in the data set.
    bound : ndarray, shape (m,), float64
        The largest dual coefficient that a row may have: C by its weight and its class's.
    """

    id: np.ndarray
    X: Matrix
    y: np.ndarray
    bound: np.ndarray

    def __len__(self) -> int:
        return len(self.id)

    def take(self, places: np.ndarray) -> Rows:
        """The rows at these places."""
        return Rows(self.id[places], self.X[places], self.y[places], self.bound[places])

    def followed_by(self, other: Rows) -> Rows:
        """These rows and those of another."""
        id, y = np.concatenate([self.id, other.id]), np.concatenate([self.y, other.y])
        bound = np.concatenate([self.bound, other.bound])
        return Rows(id, stacked([self.X, other.X]), y, bound)

    def union(self, other: Rows) -> Rows:
        """The rows of both, once each, by ascending id."""
        both = self.followed_by(other)
        return both.take(np.unique(both.id, return_index=True)[1])

    @property
    def nbytes(self) -> int:
        values = self.X if isinstance(self.X, np.ndarray) else self.X.data
        return int(values.nbytes + self.id.nbytes + self.y.nbytes + self.bound.nbytes)


@dataclass(frozen=True)
class Machine:
    """Support vectors and what they weigh in the machine of each pair.

    Attributes
    ----------
    rows : Rows
        The support vectors, by class, then by id.
    alpha : ndarray, shape (m, k)
        Of each its dual coefficient in the machine of its class and that of the column; 0 in the
        column of its own class.
    intercepts : ndarray, shape (k (k - 1) / 2,)
        Of the pairs (0, 1), (0, 2), ..., (1, 2), ...
    """

    rows: Rows
    alpha: np.ndarray
    intercepts: np.ndarray

    @classmethod
    def solved(cls, kernel: Kernel, rows: Rows, n_classes: int, tol: float) -> Self:
        """The machine of these rows, all of whose classes occur, by libsvm.

        At most ``tol`` is what the KKT conditions of the rows are violated by.
        """
        from sklearn.svm import SVC  # slow to import, and prediction needs none of it

        rows = rows.take(np.argsort(rows.y, kind="stable"))
        name, gamma, coef0 = kernel.name, kernel.gamma, kernel.coef0
        svc = SVC(
            C=1.0,
            kernel=name,
            gamma=gamma,
            degree=kernel.degree,
            coef0=coef0,
            tol=tol,
            cache_size=CACHE_MB,
        )
        svc.fit(kernel.settled(rows.X), rows.y, sample_weight=rows.bound)
        support = rows.take(svc.support_)
        dual = np.abs(dense_rows(svc.dual_coef_))  # (k - 1, m): a row's own class is left out
        alpha = np.zeros((len(support), n_classes))
        for other in range(n_classes):
            for side, place in ((support.y > other, other), (support.y < other, other - 1)):
                alpha[side, other] = dual[place, side] if side.any() else 0.0
        return cls(support, alpha, _sign(n_classes) * svc.intercept_)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_classes(self) -> int:
        return self.alpha.shape[1]

    @property
    def dual_coef(self) -> np.ndarray:
        """``alpha`` with signs, (k - 1, m): scikit-learn's ``dual_coef_``."""
        y, classes = self.rows.y[:, None], np.arange(self.n_classes)
        signed = self._sign * np.sign(y - classes) * self.alpha
        others: np.ndarray = signed[y != classes].reshape(len(self), self.n_classes - 1)
        return others.T

    @property
    def intercept(self) -> np.ndarray:
        """The intercepts by scikit-learn's signs."""
        return self._sign * self.intercepts

    @property
    def _sign(self) -> float:
        return _sign(self.n_classes)

    @property
    def nbytes(self) -> int:
        return int(self.rows.nbytes + self.alpha.nbytes)

    def decisions(self, kernel: Kernel, X: Matrix) -> np.ndarray:
        """Decision values (n, k (k - 1) / 2) of rows X (n, d): above 0 for a pair's later class."""
        n, k = X.shape[0], self.n_classes
        if k == 1:
            return np.empty((n, 0))
        ends = np.searchsorted(self.rows.y, np.arange(k + 1))
        earlier, later = np.triu_indices(k, 1)
        values = np.empty((n, len(earlier)))
        for tile, K in tiles(kernel, X, self.rows.X):
            # of each class: what its support vectors say against each other one
            against = np.stack([
                K[:, ends[c] : ends[c + 1]] @ self.alpha[ends[c] : ends[c + 1]] for c in range(k)
            ])  # fmt: skip  # (k, t, k)
            found = against[later, :, earlier] - against[earlier, :, later]  # (pairs, t)
            values[tile] = found.T[: tile.stop - tile.start]
        return values + self.intercepts

    def violations(self, kernel: Kernel, X: Matrix, y: np.ndarray) -> np.ndarray:
        """By how much rows X (n, d) of classes y, with no dual coefficient, violate their worst
        KKT condition: (n,), negative where they satisfy all.

        What the solver's single precision leaves undecided is no violation.
        """
        n, k = len(y), self.n_classes
        earlier, later = np.triu_indices(k, 1)
        values = self.decisions(kernel, X)
        margins = np.full((n, k), np.inf)  # of each row against each other class
        for pair, (i, j) in enumerate(zip(earlier, later, strict=True)):
            margins[y == j, i] = values[y == j, pair]
            margins[y == i, j] = -values[y == i, pair]
        own = np.zeros((k, k))
        np.add.at(own, self.rows.y, self.alpha)  # (k, k): summed coefficients against each other
        rounding = kernel.largest(X, self.rows.X)[:, None] * (own + own.T)[y] * SOLVER_ROUNDING
        worst: np.ndarray = (1.0 - margins - rounding).max(axis=1)
        return worst

    def dual_objective(self, kernel: Kernel) -> float:
        """Of all pairs together, as it is maximised: that of the module with its sign changed."""
        values = self.decisions(kernel, self.rows.X) - self.intercepts
        earlier, later = np.triu_indices(self.n_classes, 1)
        total = float(self.alpha.sum())
        for pair, (i, j) in enumerate(zip(earlier, later, strict=True)):
            for own, other, sign in ((j, i, 1.0), (i, j, -1.0)):
                mine = self.rows.y == own
                total -= 0.5 * sign * float(self.alpha[mine, other] @ values[mine, pair])
        return total


def tiles(kernel: Kernel, X: Matrix, Z: Matrix) -> Iterator[tuple[slice, np.ndarray]]:
    """The kernel of rows X (n, d) and Z (m, d), one tile of X after the other: places, (t, m)."""
    Z = dense_enough(Z)
    for start in range(0, X.shape[0], TILE_ROWS):
        tile = slice(start, min(start + TILE_ROWS, X.shape[0]))
        rows = dense_rows(X[tile]) if isinstance(Z, np.ndarray) else X[tile]
        yield tile, kernel(_filled(rows), Z)


def _filled(X: Matrix) -> Matrix:
    """A tile of rows; a dense one is filled up with zeros. CSR products go row by row."""
    if not isinstance(X, np.ndarray) or len(X) == TILE_ROWS:
        return X
    return np.concatenate([X, np.zeros((TILE_ROWS - len(X), X.shape[1]), X.dtype)])


def _sign(n_classes: int) -> float:
    """scikit-learn's machines decide for a pair's earlier class, unless there are two classes."""
    return 1.0 if n_classes == 2 else -1.0


def votes(values: np.ndarray, n_classes: int) -> np.ndarray:
    """Votes (n, k) of the machines of all pairs, as scikit-learn's ``decision_function``.

    The decision values of a class, squeezed into (-1/3, 1/3), are added to its votes: they order
    classes with as many votes, and no others.
    """
    n = len(values)
    counts, confidence = np.zeros((n, n_classes)), np.zeros((n, n_classes))
    for pair, (i, j) in enumerate(zip(*np.triu_indices(n_classes, 1), strict=True)):
        value = values[:, pair]
        confidence[:, i] -= value
        confidence[:, j] += value
        counts[:, i] += value <= 0
        counts[:, j] += value > 0
    return counts + confidence / (3.0 * (np.abs(confidence) + 1.0))
