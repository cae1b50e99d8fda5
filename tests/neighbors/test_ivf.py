"""An inverted file, without Spark: against exact search among the rows of the probed cells."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from mllib_ext.distances import metric
from mllib_ext.neighbors import ivf, top_k
from mllib_ext.neighbors.ivf import Cells, InvertedFile, Recall
from mllib_ext.neighbors.top_k import Search

RNG = np.random.default_rng(0)
MEANS = RNG.normal(size=(30, 6)) * 3
X = MEANS[RNG.integers(0, 30, 2_000)] + RNG.normal(size=(2_000, 6))
Q = MEANS[RNG.integers(0, 30, 300)] + RNG.normal(size=(300, 6))
IDS = RNG.permutation(2_000)
CENTROIDS = X[:40]


def inverted(X=X, ids=IDS, name="euclidean", centroids=CENTROIDS):
    cells = Cells(centroids, metric(name))
    return InvertedFile.of(cells, X, ids, cells.of(X))


def exact(X, Q, k, name="euclidean", ids=IDS):
    search = Search(Q, k, metric(name))
    search.add(X, ids)
    return search.neighbors()


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ivf.METRICS)
def test_all_cells_together_give_the_exact_neighbours(name):
    assert_same(inverted(name=name).neighbors(Q, 7, 40), exact(X, Q, 7, name))


@pytest.mark.parametrize("name", ivf.METRICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_few_cells_give_the_nearest_of_the_rows_in_them(name, dtype):
    A, B = X.astype(dtype), Q.astype(dtype)
    file = inverted(A, name=name)
    found = file.neighbors(B, 3, 2)
    cell_of_row, near = file.cells.of(A), file.cells.near(B, 2)
    for i in range(0, len(B), 17):
        inside = np.isin(cell_of_row, near[i])
        expected = exact(A[inside], B[i : i + 1], 3, name, IDS[inside])
        np.testing.assert_array_equal(found.ids.reshape(-1, 3)[i], expected.ids)
        np.testing.assert_array_equal(found.distances.reshape(-1, 3)[i], expected.distances)


def test_sparse_rows_have_the_neighbours_of_the_same_dense_rows():
    A, B = (np.where(Z < 1, 0.0, Z) for Z in (X, Q))
    dense = inverted(A, centroids=A[:20]).neighbors(B, 5, 3)
    for rows, queries in ((sp.csr_array(A), sp.csr_array(B)), (sp.csr_array(A), B)):
        found = inverted(rows, centroids=A[:20]).neighbors(queries, 5, 3)
        np.testing.assert_array_equal(found.ids, dense.ids)
        # Two orders of addition of the same float64 terms.
        np.testing.assert_allclose(found.distances, dense.distances, rtol=1e-14)


def test_the_answer_does_not_depend_on_batches_tiles_or_the_order_of_the_rows(monkeypatch):
    whole = inverted().neighbors(Q, 5, 4)
    parts = [inverted().neighbors(Q[i : i + 50], 5, 4) for i in range(0, 300, 50)]
    assert_same(top_k.Neighbors(*map(np.concatenate, zip(*parts, strict=True))), whole)
    order = RNG.permutation(len(X))
    assert_same(inverted(X[order], IDS[order]).neighbors(Q, 5, 4), whole)
    monkeypatch.setattr(ivf, "ROWS", 7)
    monkeypatch.setattr(top_k, "QUERIES", 3)
    monkeypatch.setattr(top_k, "PENDING", 50)
    small = inverted()
    assert len(small.tiles.tiles) > 250
    assert_same(small.neighbors(Q, 5, 4), whole)


def test_a_query_whose_cells_hold_too_few_rows_looks_further():
    rows = np.array([[0.0], [10.0], [10.5], [20.0], [20.5], [20.7]])
    file = inverted(rows, np.arange(6), centroids=np.array([[0.0], [5.0], [10.0], [20.0]]))
    assert file.sizes.tolist() == [1, 0, 2, 3]
    query = np.array([[1.0]])
    assert file.neighbors(query, 1, 1).ids.tolist() == [0]
    assert file.neighbors(query, 2, 1).ids.tolist() == [0, 1]
    assert file.neighbors(query, 3, 2).ids.tolist() == [0, 1, 2]
    for k in (6, 10):
        found = file.neighbors(query, k, 1)
        assert (found.counts.tolist(), found.ids.tolist()) == ([6], [0, 1, 2, 3, 4, 5])
    assert len(file.neighbors(query[:0], 3, 2).ids) == 0


def test_equal_rows_in_many_tiles_are_told_apart_by_their_ids():
    rows = np.ones((500, 3), np.float32)
    file = inverted(rows, IDS[:500], centroids=np.ones((1, 3)))
    found = file.neighbors(rows[:2], 4, 1)
    assert found.ids.tolist() == np.sort(IDS[:500])[:4].tolist() * 2
    assert not found.distances.any()


def test_a_cell_whose_rows_float32_cannot_tell_apart_is_searched_in_float64():
    far = X[:600].copy()
    far[:300] += 1e7
    file = inverted(far, IDS[:600], centroids=far.mean(axis=0)[None])
    assert_same(file.neighbors(far[:20], 5, 1), exact(far, far[:20], 5, ids=IDS[:600]))


def test_opposite_directions_have_a_centroid_of_zeros():
    rows = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]])
    file = inverted(rows, np.arange(3), "cosine", np.zeros((1, 2)))
    found = file.neighbors(np.array([[5.0, 1.0]]), 3, 1)
    assert found.ids.tolist() == [0, 2, 1]


def test_the_measured_recall_is_that_of_answers_to_rows_that_the_file_has_not_seen(monkeypatch):
    monkeypatch.setattr(ivf, "SAMPLE", 150)
    file = inverted()
    curve = file.recall(5, 0)
    assert curve.probes[0] == 1
    assert (curve.probes[-1], curve.recall[-1], curve.compared[-1]) == (40, 1.0, 1.0)
    assert (np.diff(curve.recall) >= 0).all()
    assert (curve.lower <= curve.recall).all()
    places = np.sort(np.random.default_rng(0).choice(2_000, 150, replace=False))
    for probes in (1, 3, 8):
        hits = 0
        for place in places:
            one = np.arange(2_000) == place
            others = InvertedFile.of(
                file.cells, file.X[~one], file.ids[~one], file.cells.of(file.X[~one])
            )
            query = file.X[place][None]
            true = exact(file.X[~one], query, 5, ids=file.ids[~one])
            hits += len(np.intersect1d(others.neighbors(query, 5, probes).ids, true.ids))
        (at,) = np.flatnonzero(curve.probes == probes)
        # The same hits, added up in another order.
        assert curve.recall[at] == pytest.approx(hits / 750, rel=1e-12)
        assert curve.at(probes) == (curve.compared[at], curve.recall[at])


@pytest.mark.parametrize("target", [0.7, 0.9, 0.99])
def test_the_probes_for_a_target_reach_it_on_unseen_queries(target):
    file = inverted()
    probes = file.recall(5, 0).probes_for(target)
    assert probes < 40
    true = exact(X, Q, 5).ids.reshape(-1, 5)
    found = file.neighbors(Q, 5, probes).ids.reshape(-1, 5)
    recall = np.mean([np.isin(*pair).mean() for pair in zip(true, found, strict=True)])
    # 300 queries: two standard errors of the mean.
    assert recall >= target - 0.02


def test_a_target_of_1_is_reached_and_a_curve_survives_json():
    curve = inverted().recall(5, 0)
    full = curve.probes_for(1.0)
    assert curve.recall[curve.probes == full] == 1.0
    again = Recall.of_json(curve.as_json())
    assert_same(again, curve)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_rows_have_a_recall_too(n):
    file = inverted(X[:n], IDS[:n], centroids=X[:2])
    assert file.recall(5, 0).recall[-1] == 1.0
    assert file.recall(5, 0).k == n - 1
