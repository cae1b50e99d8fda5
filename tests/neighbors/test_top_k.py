"""Exact nearest rows, without Spark: against all distances, computed in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from mllib_ext.distances import ZeroVector, metric
from mllib_ext.neighbors import top_k
from mllib_ext.neighbors.top_k import Search, prepared

METRICS = ["euclidean", "sqeuclidean", "cosine", "inner_product", "manhattan"]


def search(X, Q, k, name="euclidean", ids=None, cuts=(), **options):
    """The neighbours of all queries, the rows in blocks that end at the cuts."""
    ids = np.arange(X.shape[0]) if ids is None else ids
    running = Search(Q, k, metric(name), **options)
    edges = [0, *cuts, X.shape[0]]
    for start, stop in pairwise(edges):
        running.add(X[start:stop], ids[start:stop])
    return running.neighbors()


def all_distances(X, Q, name):
    X, Q = X.astype(np.float64), Q.astype(np.float64)
    if name == "inner_product":
        return -np.einsum("id,jd->ij", Q, X)
    if name == "cosine":
        X, Q = (A / np.linalg.norm(A, axis=1)[:, None] for A in (X, Q))
        return ((Q[:, None] - X[None]) ** 2).sum(axis=2) / 2
    power = {"manhattan": lambda D: abs(D).sum(axis=2)}.get(name, lambda D: (D**2).sum(axis=2))
    D = np.stack([power(q[None, None] - X[None])[0] for q in Q])
    return np.sqrt(D) if name == "euclidean" else D


def nearest(D, k, ids):
    order = np.lexsort((np.broadcast_to(ids, D.shape), D), axis=1)[:, :k]
    return ids[order], np.take_along_axis(D, order, axis=1)


def assert_nearest(found, D, k, ids=None, name="euclidean"):
    expected_ids, expected = nearest(D, k, np.arange(D.shape[1]) if ids is None else ids)
    assert (found.counts == expected.shape[1]).all()
    np.testing.assert_array_equal(found.ids.reshape(expected.shape), expected_ids)
    sign = -1 if name == "inner_product" else 1
    # Two orders of addition of the same float64 terms.
    np.testing.assert_allclose(
        found.distances.reshape(expected.shape), sign * expected, rtol=1e-12, atol=1e-14
    )


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3_000, 7)), rng.normal(size=(40, 7))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 10])
def test_the_neighbours_are_those_of_all_distances(data, name, dtype, k):
    X, Q = (A.astype(dtype) for A in data)
    for precision in (np.float32, np.float64):
        found = search(X, Q, k, name, dtype=precision)
        assert_nearest(found, all_distances(X, Q, name), k, name=name)


@pytest.mark.parametrize("name", ["euclidean", "manhattan", "cosine"])
def test_the_distances_are_scikit_learns(data, name):
    X, Q = data
    D, places = NearestNeighbors(n_neighbors=6, metric=name, algorithm="brute").fit(X).kneighbors(Q)
    found = search(X, Q, 6, name)
    np.testing.assert_array_equal(found.ids.reshape(D.shape), places)
    # scikit-learn subtracts products from norms: 1e-16 under the root.
    np.testing.assert_allclose(found.distances.reshape(D.shape), D, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", METRICS)
def test_sparse_rows_have_the_neighbours_of_the_same_dense_rows(name):
    rng = np.random.default_rng(1)
    X, Q = (sp.random_array((n, 50), density=0.2, rng=rng, format="csr") for n in (700, 30))
    D = all_distances(X.toarray(), Q.toarray(), name)
    for rows, queries in ((X, Q), (X, Q.toarray()), (X.toarray(), Q)):
        found = search(rows, queries, 5, name)
        assert_nearest(found, D, 5, name=name)


@pytest.mark.parametrize("name", METRICS)
def test_the_answer_does_not_depend_on_blocks_batches_or_precision(data, name, monkeypatch):
    X, Q = (A.astype(np.float32) for A in data)
    whole = search(X, Q, 8, name)
    monkeypatch.setattr(top_k, "QUERIES", 7)
    monkeypatch.setattr(top_k, "ROWS", 61)
    monkeypatch.setattr(top_k, "PAIRS", 90)
    monkeypatch.setattr(top_k, "PENDING", 50)
    others = [
        search(X, Q, 8, name, cuts=(1, 1, 5, 2_000)),
        search(X, Q, 8, name, dtype=np.float64),
    ]
    single = [search(X, Q[i : i + 1], 8, name) for i in range(len(Q))]
    others.append(top_k.Neighbors(*map(np.concatenate, zip(*single, strict=True))))
    for prepared_by in (name, "inner_product"):  # what is prepared by another metric is of no use
        running = Search(Q, 8, metric(name))
        running.add(X, np.arange(len(X)), prepared(X, metric(prepared_by)))
        others.append(running.neighbors())
    for other in others:
        for one, same in zip(whole, other, strict=True):
            np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_float32_rows_far_from_the_origin_have_their_true_neighbours(data, offset):
    X, Q = ((A + offset).astype(np.float32) for A in data)
    assert_nearest(search(X, Q, 10), all_distances(X, Q, "euclidean"), 10)


def test_two_far_clusters_in_float32_have_their_true_neighbours(data):
    X, Q = (A.copy() for A in data)
    X[::2] += 1e5
    Q[::2] += 1e5
    X, Q = X.astype(np.float32), Q.astype(np.float32)
    assert_nearest(search(X, Q, 10), all_distances(X, Q, "euclidean"), 10)
    # Farther apart than float64 could tell by products.
    X[::3] *= 1e9
    assert_nearest(search(X, Q, 10), all_distances(X, Q, "euclidean"), 10)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_float32_rows_whose_squares_leave_float32_have_their_true_neighbours(data, scale):
    X, Q = ((scale * A).astype(np.float32) for A in data)
    D = all_distances(X / scale, Q / scale, "euclidean")
    found = search(X.astype(np.float64), Q.astype(np.float64), 5)
    np.testing.assert_allclose(found.distances, nearest(D, 5, np.arange(3_000))[1].ravel() * scale)
    Q[0] = 3e38
    found = search(X, Q, 5)
    far = all_distances(X, Q[:1], "euclidean")
    np.testing.assert_array_equal(found.ids[:5], nearest(far, 5, np.arange(3_000))[0][0])


def test_ties_at_the_last_place_go_to_the_smaller_id():
    X = np.array([[1.0], [-1.0], [1.0], [0.0], [-1.0]])
    ids = np.array([50, 20, 10, 40, 30])
    found = search(X, np.zeros((1, 1)), 3, ids=ids)
    assert found.ids.tolist() == [40, 10, 20]
    for cut in range(6):
        assert search(X, np.zeros((1, 1)), 3, ids=ids, cuts=(cut,)).ids.tolist() == [40, 10, 20]


def test_distances_that_are_equal_after_rounding_are_in_the_order_of_ids():
    # The squares differ in their last bit, the roots do not.
    X = np.array([[np.nextafter(3.0, 4)], [3.0]])
    near = np.hstack([X, np.full((2, 1), 1e3)])
    found = search(near, np.zeros((1, 2)), 2)
    assert found.distances[0] == found.distances[1]
    assert found.ids.tolist() == [0, 1]
    assert search(near, np.zeros((1, 2)), 1).ids.tolist() == [0]


def test_many_equal_rows_are_told_apart_by_their_ids():
    X = np.repeat(np.random.default_rng(2).normal(size=(3, 4)), 1_000, axis=0)
    ids = np.random.default_rng(3).permutation(3_000)
    Q = X[::500]
    found = search(X, Q, 5, ids=ids)
    for i, row in enumerate(found.ids.reshape(-1, 5)):
        assert row.tolist() == np.sort(ids[(Q[i] == X).all(axis=1)])[:5].tolist()


@pytest.mark.parametrize("name", ["euclidean", "sqeuclidean", "cosine", "manhattan"])
def test_an_identical_row_has_a_distance_of_exactly_0(data, name):
    X = (data[0] * 1e3 + 1e4).astype(np.float32)
    found = search(X, X[:100], 1, name)
    assert (found.distances == 0).all()
    assert found.ids.tolist() == list(range(100))


@pytest.mark.parametrize("name", METRICS)
def test_more_neighbours_than_rows_are_all_rows(data, name):
    X, Q = data[0][:9], data[1]
    for cuts in ((), (2,)):
        assert_nearest(search(X, Q, 20, name, cuts=cuts), all_distances(X, Q, name), 9, name=name)


@pytest.mark.parametrize("name", METRICS)
def test_a_radius_keeps_the_rows_up_to_it(data, name):
    X, Q = data
    D = all_distances(X, Q, name)
    radius = np.sort(D, axis=1)[:, 3].mean()  # some queries have fewer than 5
    found = search(X, Q, 5, name, radius=-radius if name == "inner_product" else radius)
    expected = [
        ids[row <= radius] for ids, row in zip(*nearest(D, 5, np.arange(3_000)), strict=True)
    ]
    assert found.counts.tolist() == [len(ids) for ids in expected]
    assert 0 < found.counts.sum() < 5 * len(Q)
    np.testing.assert_array_equal(found.ids, np.concatenate(expected))


def test_a_row_at_exactly_the_radius_is_within_it():
    X = np.array([[3.0, 4.0], [3.0, 4.1]])
    assert search(X, np.zeros((1, 2)), 2, radius=5.0).ids.tolist() == [0]


def test_excluded_ids_are_not_among_the_neighbours(data):
    X = data[0][:200]
    ids = np.arange(200) // 2  # each id twice
    found = search(X, X, 3, ids=ids, exclude=ids)
    D = all_distances(X, X, "euclidean")
    D[ids[:, None] == ids[None]] = np.inf
    assert_nearest(found, D, 3, ids)
    assert_nearest(search(X, X, 3, ids=ids, exclude=ids, cuts=(77,)), D, 3, ids)
    alone = search(X[:2], X[:2], 3, ids=ids[:2], exclude=ids[:2])
    assert alone.counts.tolist() == [0, 0]


def test_scores_keep_their_bounds(data):
    rng = np.random.default_rng(4)
    for name in METRICS:
        for dtype in (np.float32, np.float64):
            X, Q = (A + 10.0 ** rng.integers(-3, 6) for A in data)
            rule = metric(name)
            scores = rule.tile(X[:500], dtype).scores(rule.rows(Q))
            parts = [
                scores.values(first, stop, np.empty((len(Q), stop - first), scores.dtype))
                for first, stop in ((0, 137), (137, 500))
            ]
            found = scores.scale[:, None] * np.hstack(parts) + scores.shift[:, None]
            pairs = np.repeat(rule.rows(Q), 500, axis=0), np.tile(rule.rows(X[:500]), (len(Q), 1))
            keys = rule.keys(*pairs).reshape(found.shape)
            assert (abs(found - keys) <= scores.error[:, None]).all()
            # A bound of no use would hold too.
            size = 4 * max((A**2).sum(axis=1).max() for A in (X, Q))
            assert (scores.error <= 1e3 * np.finfo(dtype).eps * size).all()


def test_no_query_and_no_row_give_nothing():
    X = np.ones((4, 2))
    assert search(X, X[:0], 3).counts.shape == (0,)
    assert search(X[:0], X, 3).counts.tolist() == [0] * 4


def test_what_cannot_be_compared_is_refused():
    X = np.ones((4, 2))
    with pytest.raises(ValueError, match="expected rows of 2 features, found 3"):
        search(np.ones((2, 3)), X, 1)
    with pytest.raises(ZeroVector, match=r"no row of zeros under the cosine metric.*row 1"):
        search(X, np.array([[1.0, 0.0], [0.0, 0.0]]), 1, "cosine")
    with pytest.raises(ValueError, match="expected numbers whose squares add up"):
        search(1e200 * X, -1e200 * X, 1)
    with pytest.raises(ValueError, match=r"param metric: .*'euclidian' \(did you mean 'euclidean'"):
        metric("euclidian")


def test_one_feature_and_one_row_are_enough():
    found = search(np.array([[2.0]]), np.array([[5.0]]), 1)
    assert (found.ids.tolist(), found.distances.tolist()) == ([0], [3.0])
    X = np.random.default_rng(5).normal(size=(500, 1))
    np.testing.assert_array_equal(
        search(X, X, 2).distances.reshape(-1, 2)[:, 1], np.sort(cdist(X, X), axis=1)[:, 1]
    )
