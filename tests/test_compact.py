import pickle
import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from arrays import block
from mllib_ext import huber, objective
from mllib_ext.blockfile import Handle, numbered
from mllib_ext.classes import merge_class_moments
from mllib_ext.classification.logistic_regression import class_moments
from mllib_ext.compact import Scattered, Symmetric, dense
from mllib_ext.losses import Logistic, Multinomial
from mllib_ext.moments import Summary, merge, moments
from mllib_ext.partials import of_partition, total
from mllib_ext.regression.linear_regression import moments_with_label

D = 1 << 20
RNG = np.random.default_rng(5)


def scattered(places, shape=()):
    places = np.array(places)
    return Scattered(places, RNG.normal(size=(len(places), *shape)), 9)


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("places", [([0, 2, 8], [1, 2, 7, 8]), ([3, 4], [3, 4]), ([], [5])])
def test_arithmetic_is_that_of_whole_arrays(places, shape):
    a, b = (scattered(np.array(p, dtype=int), shape) for p in places)
    A, B = a.toarray(), b.toarray()
    assert A.shape == (9, *shape)
    assert a.ndim == A.ndim
    np.testing.assert_array_equal((a + b).toarray(), A + B)
    np.testing.assert_array_equal((a - b).toarray(), A - B)
    np.testing.assert_array_equal((np.float64(2.5) * a).toarray(), 2.5 * A)
    np.testing.assert_array_equal((a * a).toarray(), A * A)
    assert ((a + b).places == np.union1d(*places)).all()
    whole = B.copy()
    a.add_to(whole)
    np.testing.assert_array_equal(whole, A + B)


def test_a_row_can_be_appended():
    a = scattered([1, 4])
    np.testing.assert_array_equal(a.append(np.array([7.0])).toarray(), [*a.toarray(), 7.0])


# --- symmetric matrices ---------------------------------------------------------------------------


def symmetric(outputs, dtype=np.float64):
    """A Hessian of 41 features and an intercept for so many outputs."""
    A = RNG.normal(size=(42 * outputs, 42 * outputs))
    return Symmetric((A @ A.T).reshape(42, outputs, 42, outputs), np.dtype(dtype))


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_symmetric_matrix_comes_back_from_its_triangle(outputs):
    H = symmetric(outputs)
    sent = pickle.dumps(H, protocol=5)
    assert H.nbytes <= len(sent) < 0.53 * H.array.nbytes
    np.testing.assert_array_equal(pickle.loads(sent).toarray(), H.array)


def test_a_hessian_of_float32_rows_travels_as_float32():
    H = symmetric(1, np.float32)
    sent = pickle.dumps(H, protocol=5)
    assert H.nbytes <= len(sent) < 0.27 * H.array.nbytes
    there = pickle.loads(sent)
    assert there.array.dtype == np.float64
    np.testing.assert_array_equal(there.array, H.array.astype(np.float32))


def test_symmetric_matrices_add_up_to_the_sum_of_their_arrays():
    parts = [pickle.loads(pickle.dumps(symmetric(2))) for _ in range(3)]
    arrays = [part.array.copy() for part in parts]
    (H,) = total([(part,) for part in parts], None)
    np.testing.assert_array_equal(H, arrays[0] + arrays[1] + arrays[2])
    blocks = [block(RNG.normal(size=(9, 3)), np.ones(9)) for _ in range(3)]
    handle = Handle(0, "", "", 0, 3, 0.0, 0, 0.0, 0, 0, False, "")
    stage = partial(objective.value_gradient_hessian, Logistic())
    values: Any = of_partition(handle, blocks, stage, None, (np.zeros(3), 0.0)).values
    X = np.column_stack([np.vstack([b.X for b in blocks]), np.ones(27)])
    np.testing.assert_allclose(values[-1].toarray()[:, 0, :, 0], 0.25 * X.T @ X, rtol=1e-12)


# --- stages on wide sparse blocks ----------------------------------------------------------------


def rows(n, seed):
    """Sparse rows (n, D) of about 20 values each and labels, one column stored in each of them."""
    rng = np.random.default_rng(seed)
    columns = rng.integers(0, D - 1, size=(n, 20))
    columns[:, 0] = 77
    values = rng.normal(size=columns.shape)
    values[:, 1] = 3.0
    indptr = np.arange(0, 20 * n + 1, 20)
    X = sp.csr_array((values.ravel(), columns.ravel().astype(np.int32), indptr), shape=(n, D))
    X.sum_duplicates()
    return block(X, rng.integers(0, 2, n), rng.uniform(0.5, 2.0, n))


def wide(plain):
    columns, places = numbered(plain.X.indices, D)
    return type(plain)(plain.X, plain.y, plain.w, plain.id, 0, 0, columns, places)


PLAIN = [rows(50, 1), rows(30, 2), rows(40, 3)]
WIDE = [wide(b) for b in PLAIN]
COEF, INTERCEPT = RNG.normal(size=D), 0.3
COEFS, INTERCEPTS = RNG.normal(size=(D, 2)), np.array([0.1, -0.2])
STAGES: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {
    "moments": (moments, merge, ()),
    "moments with label": (moments_with_label, merge, ()),
    "class moments": (class_moments, merge_class_moments, ()),
    "gradient": (partial(objective.value_and_gradient, Logistic()), None, (COEF, INTERCEPT)),
    "multinomial gradient": (
        partial(objective.value_and_gradient, Multinomial(2)),
        None,
        (COEFS, INTERCEPTS),
    ),
    "hessian product": (
        partial(objective.hessian_product, Logistic()),
        None,
        (COEF, INTERCEPT, COEF[::-1].copy(), 0.2),
    ),
    "huber": (partial(huber.value_and_gradient, 1.35), None, (COEF, INTERCEPT, 2.0)),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_gives_the_same_over_wide_blocks_as_over_whole_rows(name):
    stage, join, parameters = STAGES[name]
    results = []
    for blocks in (PLAIN, WIDE):
        parts = [stage(b, *parameters) for b in blocks]
        results.append(total(parts, join))
    for whole, narrow in zip(*results, strict=True):
        np.testing.assert_array_equal(narrow, whole)  # the same additions, but for those of 0


@pytest.mark.parametrize("name", STAGES)
def test_no_stage_makes_an_array_of_all_columns_in_a_partition(name):
    stage, join, parameters = STAGES[name]
    handle = Handle(0, "", "", 0, D, 0.0, 0, 0.0, 0, 0, True, "")
    of_partition(handle, WIDE, stage, join, parameters)  # imports and caches
    tracemalloc.start()
    try:
        part = of_partition(handle, WIDE, stage, join, parameters)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert any(isinstance(v, Scattered) for v in part.values)
    assert peak < D, "an array of all columns has 8 times as many bytes"


def test_a_column_that_is_constant_has_no_variance_in_wide_blocks_either():
    constant = sp.csr_array((np.full(60, 0.1), np.full(60, 5), np.arange(61)), shape=(60, D))
    parts = [moments(wide(block(constant[i:j]))) for i, j in ((0, 20), (20, 60))]
    summary = Summary(*map(dense, merge(*parts)))
    assert summary.mean[5] == 0.1
    assert not summary.scatter.any()
