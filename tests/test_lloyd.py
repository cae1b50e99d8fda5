"""Lloyd's algorithm on arrays: against scikit-learn's from the same centers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.cluster import KMeans as Sklearn
from sklearn.datasets import load_digits, make_blobs

from arrays import Arrays
from mllib_ext import lloyd
from mllib_ext.optimizers.loop import Change, ConvergenceWarning, Settings
from mllib_ext.space import Space

DIGITS = load_digits().data
LONG = Settings(max_iter=300, tol=0.0)


def fitted(X, centers, w=None, parts=3, settings=LONG, unit=False, callbacks=()):
    origin = np.zeros(X.shape[1])
    if isinstance(X, np.ndarray) and not unit:
        origin = X.mean(axis=0, dtype=np.float64).astype(X.dtype).astype(np.float64)
    rounds = Arrays.of(X, w=w, parts=parts)
    return lloyd.fit(rounds, Space(origin, unit), np.asarray(centers, float), settings, callbacks)


def sklearn(X, centers, w=None, max_iter=300):
    model = Sklearn(len(centers), init=centers, n_init=1, max_iter=max_iter, tol=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, sample_weight=w)


@pytest.mark.parametrize("k", [1, 2, 10, 37])
def test_centers_cost_and_iterations_are_scikit_learns(k):
    found, expected = fitted(DIGITS, DIGITS[:k]), sklearn(DIGITS, DIGITS[:k])
    np.testing.assert_allclose(found.state.centers, expected.cluster_centers_, atol=1e-9)
    assert found.state.loss == pytest.approx(expected.inertia_, rel=1e-9)
    # Scikit-learn counts the round that finds the labels unchanged.
    assert found.n_iter == expected.n_iter_
    assert (found.converged, found.reason) == (True, "shift")


@pytest.mark.parametrize("iterations", [0, 1, 5])
def test_the_cost_belongs_to_the_last_centers_and_never_rises(iterations):
    settings = Settings(max_iter=iterations, tol=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = fitted(DIGITS, DIGITS[:10], settings=settings)
    nearest = ((DIGITS[:, None] - result.state.centers) ** 2).sum(axis=2)
    assert result.state.loss == pytest.approx(nearest.min(axis=1).sum(), rel=1e-10)
    np.testing.assert_array_equal(
        result.state.sizes, np.bincount(nearest.argmin(axis=1), minlength=10)
    )
    costs = [record.loss for record in result.history]
    assert len(costs) == iterations + 1
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_offset_of_100000_and_two_far_groups_cost_no_digits_that_matter(dtype):
    rng = np.random.default_rng(1)
    near = 6.0 * rng.normal(size=(6, 8))
    for groups in (np.full(6, 1e5), np.where(np.arange(6) < 3, 1e5, -1e5)):
        centers = near + groups[:, None]
        X = (centers[rng.integers(6, size=3000)] + rng.normal(size=(3000, 8))).astype(dtype)
        found = fitted(X, centers + 0.3)
        expected = sklearn(X.astype(np.float64) - groups[0], centers + 0.3 - groups[0])
        # Float32 rounds sums of far rows about their origin by up to 1e-5 of a cluster's width.
        tolerance = 1e-6 if dtype == np.float64 else 1e-4
        assert found.state.loss == pytest.approx(expected.inertia_, rel=tolerance)


@pytest.mark.parametrize("parts", [1, 2, 7])
@pytest.mark.parametrize("unit", [False, True])
def test_parts_are_no_more_than_a_way_to_add(parts, unit):
    found, expected = (fitted(DIGITS, DIGITS[:10], parts=p, unit=unit) for p in (parts, 1))
    np.testing.assert_allclose(found.state.centers, expected.state.centers, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(found.state.sizes, expected.state.sizes)


def test_weight_w_equals_w_copies_and_weight_0_no_row():
    w = np.random.default_rng(2).integers(0, 4, size=len(DIGITS)).astype(float)
    weighted = fitted(DIGITS, DIGITS[:10], w)
    copied = fitted(np.repeat(DIGITS, w.astype(int), axis=0), DIGITS[:10])
    np.testing.assert_allclose(weighted.state.centers, copied.state.centers, atol=1e-10)
    assert weighted.state.loss == pytest.approx(copied.state.loss, rel=1e-12)
    expected = sklearn(DIGITS, DIGITS[:10], w)
    assert weighted.state.loss == pytest.approx(expected.inertia_, rel=1e-9)


def test_sparse_rows_give_what_dense_ones_do():
    found, expected = fitted(sp.csr_array(DIGITS), DIGITS[:10]), fitted(DIGITS, DIGITS[:10])
    np.testing.assert_allclose(found.state.centers, expected.state.centers, atol=1e-10)
    assert found.state.loss == pytest.approx(expected.state.loss, rel=1e-10)


def test_the_cosine_distance_is_k_means_of_directions():
    X = DIGITS / np.linalg.norm(DIGITS, axis=1, keepdims=True)
    result = fitted(DIGITS, DIGITS[:10], unit=True)
    C = result.state.centers
    np.testing.assert_allclose(np.linalg.norm(C, axis=1), 1.0, rtol=1e-12)
    similarity = X @ C.T
    labels = similarity.argmax(axis=1)
    assert result.state.loss == pytest.approx((1 - similarity.max(axis=1)).sum(), rel=1e-10)
    sums = np.array([X[labels == j].sum(axis=0) for j in range(10)])
    # A fixed point: the centers are the directions of the sums of their rows.
    np.testing.assert_allclose(C, sums / np.linalg.norm(sums, axis=1, keepdims=True), atol=1e-12)


# --- empty clusters -----------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_an_empty_cluster_takes_the_farthest_row_as_in_scikit_learn(parts):
    X, _ = make_blobs(200, 3, centers=4, random_state=3)
    start = np.vstack([X[:3], [[1e3, 1e3, 1e3]]])
    for iterations in (1, 50):
        settings = Settings(max_iter=iterations, tol=0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = fitted(X, start, parts=parts, settings=settings)
        expected = sklearn(X, start, max_iter=iterations)
        assert found.state.loss == pytest.approx(expected.inertia_, rel=1e-10)


def test_several_empty_clusters_take_rows_of_several_clusters():
    X, _ = make_blobs(300, 2, centers=6, cluster_std=0.1, random_state=4)
    start = np.vstack([X[:2], np.full((4, 2), 1e3)])
    assert (fitted(X, start).state.sizes > 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 0.1, 1e5 / 3])
def test_fewer_distinct_rows_than_centers_leave_as_many_clusters_as_there_are_rows(dtype, offset):
    distinct = (offset + np.array([[0.0, 1], [2, 1], [0.7, 3]])).astype(dtype)
    X = np.repeat(distinct, [40, 5, 1], axis=0)
    rounds = Arrays.of(X, parts=2)
    space = Space(X.mean(axis=0, dtype=np.float64).astype(dtype).astype(np.float64))
    result = lloyd.fit(rounds, space, np.resize(distinct.astype(float), (5, 2)), LONG)
    state = lloyd.without_needless(rounds, space, result.state)
    np.testing.assert_allclose(state.centers, distinct, rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(state.sizes, [40, 5, 1])
    assert state.loss == pytest.approx(0.0, abs=1e-6)


def test_an_empty_cluster_of_a_start_far_away_stays_where_there_are_no_rounds():
    rounds, space = Arrays.of(DIGITS), Space(np.zeros(64))
    start = np.vstack([DIGITS[:2], np.full((1, 64), 1e3)])
    result = lloyd.fit(rounds, space, start, Settings(max_iter=0))
    assert len(lloyd.without_needless(rounds, space, result.state).centers) == 3


def test_as_many_centers_as_rows_cost_nothing():
    X = np.random.default_rng(5).normal(size=(30, 4))
    result = fitted(X, X)
    assert (result.state.loss, result.n_iter, result.reason) == (0.0, 0, "precision")


def test_centers_whose_directions_cancel_out_stay_where_they_are():
    X = np.array([[1.0, 0], [-1, 0]])
    settings = Settings(max_iter=3)
    result = fitted(X, [[0.0, 1.0]], unit=True, settings=settings, parts=1)
    np.testing.assert_array_equal(result.state.centers, [[0.0, 1.0]])


# --- the loop -----------------------------------------------------------------------------------


def test_a_callback_sees_cost_shift_and_sizes_and_may_loosen_the_tolerance():
    seen = []

    def watch(state, record):
        seen.append((record.loss, record.step_size, state.shift, state.sizes.sum()))
        return Change(tol=1e9) if record.iteration == 2 else None

    result = fitted(DIGITS, DIGITS[:10], callbacks=[watch])
    assert (result.n_iter, result.reason) == (3, "shift")
    assert np.isnan(seen[0][1])
    assert all(step == shift > 0 for _, step, shift, _ in seen[1:])
    assert {total for *_, total in seen} == {len(DIGITS)}


def test_the_run_ends_when_no_center_moves_farther_than_the_tolerance():
    result = fitted(DIGITS, DIGITS[:10], settings=Settings(max_iter=100, tol=0.5))
    shifts = [record.step_size for record in result.history[1:]]
    assert shifts[-1] <= 0.5 < min(shifts[:-1])
    with pytest.warns(ConvergenceWarning, match=r"the loss is [\d.e+]+; raise maxIter or tol"):
        fitted(DIGITS, DIGITS[:10], settings=Settings(max_iter=2, tol=0.0))
