r"""Kernels between rows, with the definitions and the names of scikit-learn.

.. math::

    \text{linear } x \cdot z, \quad
    \text{rbf } e^{-\gamma \|x - z\|^2}, \quad
    \text{poly } (\gamma \, x \cdot z + c_0)^p, \quad
    \text{sigmoid } \tanh(\gamma \, x \cdot z + c_0)

computed in float64 for blocks of dense or CSR rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from mllib_ext.columns import Matrix
from mllib_ext.distances import dense_rows, squared_norms

KERNELS = ("rbf", "linear", "poly", "sigmoid")

# An exponent of the rbf kernel may be off by this much, and so the kernel relatively.
EXPONENT_ERROR = 1e-10
# Rows that are made dense at once, where differences have to be taken.
DENSE_BYTES = 8 << 20
# Of CSR rows Z, stored: from here on products with dense ones are quicker.
DENSE_SHARE = 1 / 16


@dataclass(frozen=True)
class Kernel:
    """A kernel, its parameters resolved to numbers.

    Attributes
    ----------
    name : {"rbf", "linear", "poly", "sigmoid"}
    gamma : float
    degree : int
        Of ``poly``.
    coef0 : float
        Of ``poly`` and ``sigmoid``.
    """

    name: str = "rbf"
    gamma: float = 1.0
    degree: int = 3
    coef0: float = 0.0

    def __call__(self, X: Matrix, Z: Matrix) -> np.ndarray:
        """The kernel of rows X (n, d) and Z (m, d), float64 the latter: (n, m), float64.

        The caller bounds n. Rows X are made dense or CSR as rows Z are.
        """
        X = X.astype(np.float64)
        if isinstance(Z, np.ndarray):
            X = dense_rows(X)
        elif isinstance(X, np.ndarray):
            X = sp.csr_array(X)
        if self.name == "rbf":
            K = squared_distances(X, Z, EXPONENT_ERROR / self.gamma)
            K *= -self.gamma
            return np.exp(K, out=K)
        K = products(X, Z)
        if self.name == "linear":
            return K
        K *= self.gamma
        K += self.coef0
        return np.tanh(K, out=K) if self.name == "sigmoid" else np.power(K, self.degree, out=K)

    def largest(self, X: Matrix, Z: Matrix) -> np.ndarray:
        """A bound (n,) of each row's kernel with all rows Z, by absolute value (Cauchy-Schwarz)."""
        if self.name in ("rbf", "sigmoid"):
            return np.ones(X.shape[0])
        bound: np.ndarray = np.sqrt(squared_norms(X) * squared_norms(Z).max(initial=0.0))
        if self.name == "poly":
            return (self.gamma * bound + abs(self.coef0)) ** self.degree
        return bound

    def settled(self, X: Matrix) -> Matrix:
        """Rows of which this kernel is the same and squares of norms cancel less: centred, if rbf.

        CSR rows stay as they are: centred they would be dense.
        """
        if self.name == "rbf" and isinstance(X, np.ndarray):
            return X - X.mean(axis=0)
        return X


def dense_enough(Z: Matrix) -> Matrix:
    """CSR rows that kernels are taken with, made dense where a sixteenth of them is stored."""
    if isinstance(Z, np.ndarray) or DENSE_SHARE * Z.shape[0] * Z.shape[1] > Z.nnz:
        return Z
    return dense_rows(Z)


def squared_distances(X: Matrix, Z: Matrix, error: float) -> np.ndarray:
    r"""Squares of the Euclidean distances of rows X (n, d) and Z (m, d): (n, m), float64.

    By ``|x|^2 - 2 x.z + |z|^2`` around the mean of Z where its rounding, at most
    :math:`(d + 4) u (\|x\| + \|z\|)^2` (Higham 2002, section 3.1), stays below ``error``; by
    differences for the rows of X where it does not.
    """
    if isinstance(X, np.ndarray) and isinstance(Z, np.ndarray):
        origin = Z.mean(axis=0)
        X, Z = X - origin, Z - origin
    xx, zz = squared_norms(X), squared_norms(Z)
    D = products(X, Z)
    D *= -2.0
    D += xx[:, None]
    D += zz
    np.maximum(D, 0.0, out=D)
    unit = np.finfo(np.float64).eps / 2
    bound = (X.shape[1] + 4) * unit * (np.sqrt(xx) + np.sqrt(zz.max(initial=0.0))) ** 2
    (rough,) = np.nonzero(bound > error)
    step = max(1, DENSE_BYTES // (8 * X.shape[1]))
    for start in range(0, len(rough), step):
        rows = rough[start : start + step]
        for first in range(0, Z.shape[0], step):
            tile = slice(first, first + step)
            D[rows, tile] = cdist(dense_rows(X[rows]), dense_rows(Z[tile]), "sqeuclidean")
    return D


def scale_gamma(variance: float, n_features: int) -> float:
    """scikit-learn's ``gamma="scale"``: 1 / (d var(X)), over all values; 1 where they are equal."""
    return 1.0 / (n_features * variance) if variance > 0 else 1.0


def products(X: Matrix, Z: Matrix) -> np.ndarray:
    """The scalar products (n, m) of rows X (n, d) and Z (m, d)."""
    product: Any = X @ Z.T
    dense: np.ndarray = product.toarray() if sp.issparse(product) else product
    return dense
