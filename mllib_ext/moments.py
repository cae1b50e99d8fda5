r"""Weighted means, variances and covariances of columns, in one pass and without cancellation.

A block's moments are taken about a reference row of its own, then joined by the update of Chan,
Golub & LeVeque (1979): a column that is constant has a variance of exactly 0, and an offset of
:math:`10^8` costs no digits. Stages and their merges for ``Blocks.reduce``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from mllib_ext.compact import Scattered

if TYPE_CHECKING:
    from mllib_ext.blockfile import Block
    from mllib_ext.columns import Matrix

# A CSR block is made dense this many bytes at a time where a product of few columns is wanted.
DENSE_SLICE_BYTES = 1 << 20
# Below this many columns a dense product beats a sparse one at any density worth storing as CSR.
DENSE_COLUMNS = 512

Moments = tuple[float, float, int, Any, Any]


@dataclass(frozen=True)
class Summary:
    """Moments of the columns of a data set.

    Attributes
    ----------
    weight_sum, squared_weight_sum : float
    n_rows : int
    mean : ndarray, shape (d,)
    scatter : ndarray, shape (d,) or (d, d)
        Weighted sum of squares (and products) about the mean.
    """

    weight_sum: float
    squared_weight_sum: float
    n_rows: int
    mean: np.ndarray
    scatter: np.ndarray

    def variance(self) -> np.ndarray:
        """Unbiased under reliability weights, as Spark's Summarizer has it; 0 for one row."""
        diagonal = self.scatter if self.scatter.ndim == 1 else self.scatter.diagonal()
        degrees = self.weight_sum - self.squared_weight_sum / self.weight_sum
        return np.maximum(diagonal, 0.0) / degrees if degrees > 0 else np.zeros_like(diagonal)

    def population_variance(self) -> np.ndarray:
        """Divided by the sum of the weights."""
        diagonal = self.scatter if self.scatter.ndim == 1 else self.scatter.diagonal()
        return np.maximum(diagonal, 0.0) / self.weight_sum


def moments(block: Block) -> Moments:
    """One block's weights, means and scatter (d,) of the features.

    Of a wide sparse block they are scattered: a column that it does not store has mean 0 and
    scatter 0 there, which is what the update of Chan et al. needs to know.
    """
    X = block.narrow
    reference = _reference(X, int(block.w.argmax()))
    D = _minus(X, reference)
    sums = D.T @ block.w
    # In place: a second temporary of a block's size costs ten times the arithmetic in page faults.
    values: Any = D if isinstance(D, np.ndarray) else D.data
    np.multiply(values, values, out=values)
    found = _centred(block, block.w.sum(), sums, D.T @ block.w, reference)
    return *found[:3], block.widened(found[3]), block.widened(found[4])


def moments_with_label(block: Block) -> Moments:
    """One block's weights, means and scatter (d + 1,) of the features and the label."""
    weight, squared, n, mean, scatter = moments(block)
    *_, label_mean, label_scatter = moments(replace(block, X=block.y[:, None], columns=None))
    if isinstance(mean, Scattered):
        return weight, squared, n, mean.append(label_mean), scatter.append(label_scatter)
    return weight, squared, n, np.append(mean, label_mean), np.append(scatter, label_scatter)


def comoments(block: Block) -> Moments:
    """One block's weights, means and scatter (d + 1, d + 1) of the features and the label."""
    heaviest = int(block.w.argmax())
    reference = _reference(block.X, heaviest)
    D = _minus(block.X, reference)
    label = block.y[heaviest]
    w, e = block.w, block.y - label
    d = block.X.shape[1]
    products = np.empty((d + 1, d + 1))
    products[:d, :d] = weighted_gram(D, w)
    products[:d, d] = products[d, :d] = D.T @ (w * e)
    products[d, d] = w @ (e * e)
    sums = np.append(D.T @ w, w @ e)
    return _centred(block, w.sum(), sums, products, np.append(reference, label))


def merge(left: Moments, right: Moments) -> Moments:
    """The moments of two sets of rows together."""
    (a, aa, n, mean_a, scatter_a), (b, bb, m, mean_b, scatter_b) = left, right
    total = a + b
    if not (a and b):  # rows without weight have no say
        kept = left if a else right
        return total, aa + bb, n + m, *kept[3:]
    delta = mean_b - mean_a
    spread = np.outer(delta, delta) if scatter_a.ndim == 2 else delta * delta
    scatter = scatter_a + scatter_b + (a * b / total) * spread
    return total, aa + bb, n + m, mean_a + (b / total) * delta, scatter


def weighted_gram(X: Matrix, w: np.ndarray) -> np.ndarray:
    """``X.T @ diag(w) @ X`` as float64, shape (d, d), for weights of 0 or more."""
    curved = np.flatnonzero(w)
    if isinstance(X, np.ndarray):
        few = len(curved) < len(w)  # a copy is made anyway
        A = X[curved] if few else X.copy()  # (n, d)
        A *= np.sqrt(w[curved] if few else w).astype(X.dtype)[:, None]
        return (A.T @ A).astype(np.float64)  # one symmetric product: NumPy sees that it is
    if 2 * len(curved) < len(w):  # a copy of few rows costs less than their products
        X, w = X[curved], w[curved]
    root = np.sqrt(w).astype(X.dtype)
    n, d = X.shape
    data = X.data * np.repeat(root, np.diff(X.indptr))
    A = sp.csr_array((data, X.indices, X.indptr), shape=X.shape)
    if d > DENSE_COLUMNS:
        return (A.T @ A).toarray().astype(np.float64)
    gram = np.zeros((d, d))
    rows = max(1, min(n, DENSE_SLICE_BYTES // (8 * d)))
    dense = np.empty((rows, d), X.dtype)  # one for all: fresh pages cost more than the product
    for start in range(0, n, rows):
        D = A[start : start + rows].toarray(out=dense[: n - start])
        gram += D.T @ D
    return gram


def _reference(X: Matrix, row: int) -> np.ndarray:
    """A row of weight (d,), float64, with 0 where CSR does not store a column throughout.

    A row of weight 0 would leave rounding in columns that are constant elsewhere.
    """
    if isinstance(X, np.ndarray):
        return X[row].astype(np.float64)
    full = np.bincount(X.indices, minlength=X.shape[1]) == X.shape[0]
    reference = np.zeros(X.shape[1])
    if full.any():
        reference[full] = X[[row]].toarray().ravel()[full]
    return reference


def _minus(X: Matrix, reference: np.ndarray) -> Matrix:
    """``X - reference`` (float64); what CSR does not store stays 0, as the reference is there."""
    if isinstance(X, np.ndarray):
        return X - reference
    return sp.csr_array((X.data - reference[X.indices], X.indices, X.indptr), shape=X.shape)


def _centred(
    block: Block, total: float, sums: np.ndarray, products: np.ndarray, reference: np.ndarray
) -> Moments:
    shift = sums / total if total else np.zeros_like(sums)
    spread = np.outer(shift, shift) if products.ndim == 2 else shift * shift
    squared = float(block.w @ block.w)
    return float(total), squared, block.n, reference + shift, products - total * spread
