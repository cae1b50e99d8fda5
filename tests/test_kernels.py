"""Kernels, against scikit-learn's, and where squares of norms cancel."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import pairwise_kernels

from mllib_ext.kernels import KERNELS, Kernel, scale_gamma, squared_distances

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 7)) * (RNG.random((40, 7)) < 0.6)
Z = RNG.normal(size=(30, 7)) * (RNG.random((30, 7)) < 0.6)
KINDS = {"dense": np.asarray, "csr": sp.csr_array}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("x", KINDS)
@pytest.mark.parametrize("z", KINDS)
def test_kernels_of_dense_and_sparse_rows_are_scikit_learns(name, x, z):
    kernel = Kernel(name, 0.3, 4, 0.7)
    params = {"gamma": 0.3, "degree": 4, "coef0": 0.7}
    expected = pairwise_kernels(X, Z, metric=name, filter_params=True, **params)
    # Sums of seven products.
    np.testing.assert_allclose(kernel(KINDS[x](X), KINDS[z](Z)), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", KERNELS)
def test_no_kernel_exceeds_its_bound(name):
    kernel = Kernel(name, 0.3, 4, -0.7)
    assert (np.abs(kernel(X, Z)) <= kernel.largest(X, Z)[:, None] * (1 + 1e-12)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("far", [0.0, 1e6], ids=["offset", "two clusters"])
def test_rbf_distances_do_not_cancel_far_from_the_origin(kind, far):
    shift = np.full((30, 1), 1e7)
    shift[::2] += far
    A, B = Z + shift, Z[::-1] + shift
    expected = cdist(A, B, "sqeuclidean")
    found = squared_distances(KINDS[kind](A), KINDS[kind](B), 1e-10)
    # Wherever a kernel is not 0 its exponent is right to 1e-10 and to rounding.
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-10)


def test_float32_rows_are_computed_in_float64():
    rows = X.astype(np.float32)
    expected = pairwise_kernels(rows.astype(np.float64), Z, metric="rbf", gamma=0.3)
    np.testing.assert_allclose(Kernel("rbf", 0.3)(rows, Z), expected, rtol=1e-12)


def test_scale_is_scikit_learns_and_1_where_all_values_are_equal():
    assert scale_gamma(X.var(), 7) == pytest.approx(1 / (7 * X.var()), rel=1e-15)
    assert scale_gamma(0.0, 7) == 1.0
