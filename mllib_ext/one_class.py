r"""One-class support vector machine (Schoelkopf, Platt, Shawe-Taylor, Smola & Williamson 2001).

.. math::

    \min_{\alpha} \frac12 \sum_{ij} \alpha_i \alpha_j k(x_i, x_j),
    \qquad 0 \le \alpha_i \le w_i, \quad \sum_i \alpha_i = \nu \sum_i w_i

A row is inside where :math:`f(x) = \sum_i \alpha_i k(x_i, x) - \rho \ge 0`, and one with
:math:`\alpha_i = 0` satisfies its Karush-Kuhn-Tucker condition there. As libsvm has it, a solution
of all rows by :mod:`mllib_ext.cascade`.

The sum is one of the whole data set, so that a part of the rows has a solution only if its bounds
add up to more than the sum: the first machine is of that many, and every other problem holds the
support vectors of a machine, whose coefficients meet the sum, and further rows. libsvm takes the
sum as a share of the rows that it is given: :math:`\nu` of a part is the sum of the whole by the
weight of the part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from mllib_ext.blockfile import Block
from mllib_ext.cascade import MOST_VIOLATORS, MOST_WAITING, SAMPLE, row_ids
from mllib_ext.columns import Matrix
from mllib_ext.distances import dense_rows
from mllib_ext.kernel_machine import CACHE_MB, SOLVER_ROUNDING, Rows, tiles
from mllib_ext.kernels import Kernel

# libsvm reads past its rows where rounding makes the sum larger than that of the bounds.
LARGEST_NU = 1.0 - 1e-12


@dataclass(frozen=True)
class OneClassMachine:
    """Support vectors, and from where on a row is inside.

    Attributes
    ----------
    rows : Rows
        The support vectors, by id, all of class 0.
    alpha : ndarray, shape (m,)
        Their dual coefficients.
    offset : float
        :math:`\\rho`.
    """

    rows: Rows
    alpha: np.ndarray
    offset: float

    @classmethod
    def solved(cls, kernel: Kernel, rows: Rows, total: float, tol: float) -> Self:
        """The machine of these rows whose coefficients add up to ``total``, by libsvm.

        At most ``tol`` is what the KKT conditions of the rows are violated by.
        """
        from sklearn.svm import OneClassSVM  # slow to import, and prediction needs none of it

        svm = OneClassSVM(
            kernel=kernel.name,
            gamma=kernel.gamma,
            degree=kernel.degree,
            coef0=kernel.coef0,
            nu=min(total / rows.bound.sum(), LARGEST_NU),
            tol=tol,
            cache_size=CACHE_MB,
        )
        svm.fit(kernel.settled(rows.X), sample_weight=rows.bound)
        alpha = dense_rows(svm.dual_coef_)[0]
        return cls(rows.take(svm.support_), alpha, float(svm.offset_[0]))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        return int(self.rows.nbytes + self.alpha.nbytes)

    def scores(self, kernel: Kernel, X: Matrix) -> np.ndarray:
        """Decision values (n,) of rows X (n, d) before the offset is taken off."""
        values = np.empty(X.shape[0])
        for tile, K in tiles(kernel, X, self.rows.X):
            values[tile] = (K @ self.alpha)[: tile.stop - tile.start]
        return values

    def decisions(self, kernel: Kernel, X: Matrix) -> np.ndarray:
        """Decision values (n,) of rows X (n, d): 0 or more inside."""
        values: np.ndarray = self.scores(kernel, X) - self.offset
        return values

    def violations(self, kernel: Kernel, X: Matrix, y: np.ndarray) -> np.ndarray:
        """By how much rows X (n, d), with no dual coefficient, violate their KKT condition: (n,),
        negative where they satisfy it.

        What the solver's single precision leaves undecided is no violation.
        """
        rounding = kernel.largest(X, self.rows.X) * self.alpha.sum() * SOLVER_ROUNDING
        violations: np.ndarray = -self.decisions(kernel, X) - rounding
        return violations

    def dual_objective(self, kernel: Kernel) -> float:
        """That of the module with its sign changed, so that it is maximised."""
        return -0.5 * float(self.alpha @ self.scores(kernel, self.rows.X))


@dataclass(frozen=True)
class OneClassProblem:
    """What a cascade solves.

    Attributes
    ----------
    kernel : Kernel
    total : float
        What the dual coefficients add up to: nu by the weight of all rows.
    max_support_vectors : int
    sample : int
        Rows of the first machine beyond those that its coefficients need.
    most_violators, most_waiting : int
    remedy : str
        As of :class:`mllib_ext.cascade.Problem`.
    """

    kernel: Kernel
    total: float
    max_support_vectors: int
    sample: int = SAMPLE
    most_violators: int = MOST_VIOLATORS
    most_waiting: int = MOST_WAITING
    remedy: str = "make nu smaller: at least this share of the rows are support vectors"

    def classes(self, block: Block, places: np.ndarray) -> np.ndarray:
        """0 for every row."""
        return np.zeros(len(places), np.intp)

    def rows(self, block: Block, places: np.ndarray) -> Rows:
        """Rows of a block, by their places in it."""
        X = block.X[places].astype(np.float64)
        return Rows(row_ids(block)[places], X, self.classes(block, places), block.w[places])

    def drawn(self, numbers: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        """The places of the lowest numbers: rows whose weights reach the total, and some more."""
        order = np.argsort(numbers, kind="stable")
        needed = np.searchsorted(np.cumsum(w[order]), self.total) + 1
        lowest: np.ndarray = np.sort(order[: needed + self.sample])
        return lowest

    def solved(self, rows: Rows, tol: float) -> OneClassMachine:
        """The machine of some rows."""
        # Half the tolerance: a row that a solution leaves out is not at once a violator again.
        return OneClassMachine.solved(self.kernel, rows, self.total, tol / 2)
