"""Which center is nearest: against distances taken one by one in float64, and against SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from mllib_ext import nearest
from mllib_ext.nearest import Nearest, add_sums, distances
from mllib_ext.space import Space

RNG = np.random.default_rng(0)


def problem(n=500, d=7, k=9, offset=0.0, spread=1.0):
    centers = offset + spread * RNG.normal(size=(k, d))
    X = centers[RNG.integers(k, size=n)] + RNG.normal(size=(n, d))
    return X, centers


def about_the_mean(X):
    return Space(X.mean(axis=0, dtype=np.float64).astype(X.dtype).astype(np.float64))


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(nearest, "CHUNK_ROWS", 64)
    monkeypatch.setattr(nearest, "TILE_BYTES", 1)


@pytest.mark.parametrize("k", [1, 2, 9, 200])
@pytest.mark.parametrize("d", [1, 2, 7, 65])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("as_is", [False, True])
@pytest.mark.usefixtures("small_pieces")
def test_labels_and_distances_are_those_of_every_pair(k, d, dtype, as_is):
    X, centers = problem(d=d, k=k)
    X = X.astype(dtype)
    expected = cdist(X.astype(np.float64), centers, "sqeuclidean")
    space = Space(np.zeros(d)) if as_is else about_the_mean(X)
    assert space.as_is == as_is
    labels, squared = distances(X, space, centers)
    # RESOLUTION allows a thousandth to a row in float32, where rounding happens to be that large.
    rounding: Any = {"rtol": 1e-3 if dtype == np.float32 else 0, "atol": 1e-13 * expected.max()}
    np.testing.assert_allclose(squared, expected.min(axis=1), **rounding)
    chosen = expected[np.arange(len(X)), labels]
    np.testing.assert_allclose(chosen, expected.min(axis=1), **rounding)
    # Float32 differs from float64 in near ties alone.
    assert (labels != expected.argmin(axis=1)).mean() <= (0.002 if dtype == np.float32 else 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_offset_of_100000_and_two_far_groups_of_clusters_keep_their_labels(dtype):
    for signs in (np.ones(4), np.array([1, 1, -1, -1])):
        centers = 1e5 * signs[:, None] + 3.0 * np.arange(4)[:, None] * np.ones(16)
        X = (centers[RNG.integers(4, size=2000)] + RNG.normal(size=(2000, 16))).astype(dtype)
        expected = cdist(X.astype(np.float64), centers, "sqeuclidean")
        labels, squared = distances(X, about_the_mean(X), centers)
        np.testing.assert_array_equal(labels, expected.argmin(axis=1))
        # 1e10 * eps is what the formula leaves of a distance near 16 between far groups.
        np.testing.assert_allclose(squared, expected.min(axis=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["float32", "float64", "csr"])
def test_a_row_on_its_center_costs_nothing_and_one_beside_it_what_it_should(kind):
    rows = 1e4 + RNG.integers(0, 1000, size=(40, 5)).astype(float)
    rows[::2] += 0.25  # exact in float32
    X = sp.csr_array(rows) if kind == "csr" else rows.astype(kind)
    centers = np.floor(rows)
    _, squared = distances(X, Space(np.zeros(5)), centers)
    np.testing.assert_array_equal(squared, np.where(np.arange(40) % 2, 0.0, 5 / 16))


def test_rows_that_float32_cannot_hold_the_squares_of_are_assigned_in_float64():
    X = np.array([[1e30, 0], [2e30, 1], [-1e25, 3]], np.float32)
    labels, squared = distances(X, Space(np.zeros(2)), X[::-1].astype(np.float64))
    np.testing.assert_array_equal(labels, [2, 1, 0])
    assert (squared < 1e45).all()


def test_of_equally_near_centers_the_first_is_chosen():
    X = np.zeros((3, 2))
    labels, _ = distances(X, Space(np.zeros(2)), np.array([[2.0, 0], [0, 1], [0, -1], [1, 0]]))
    np.testing.assert_array_equal(labels, 1)


@pytest.mark.parametrize("unit", [False, True])
def test_sparse_rows_are_assigned_as_dense_ones_are(unit):
    X, centers = problem(d=30)
    X[RNG.random(X.shape) < 0.8] = 0.0
    X[:, 0] = 1.0
    space = Space(np.zeros(30), unit)
    centers = space.settle(centers)
    dense, sparse = (distances(rows, space, centers) for rows in (X, sp.csr_array(X)))
    np.testing.assert_array_equal(sparse[0], dense[0])
    np.testing.assert_allclose(sparse[1], dense[1], rtol=1e-10)


@pytest.mark.parametrize("kind", ["float32", "float64", "csr"])
@pytest.mark.usefixtures("small_pieces")
def test_distances_on_the_sphere_are_twice_the_cosine_distance(kind):
    X, centers = problem()
    space = Space(np.zeros(7), unit=True)
    centers = space.settle(centers)
    rows = sp.csr_array(X) if kind == "csr" else X.astype(kind)
    labels, squared = distances(rows, space, centers)
    expected = cdist(X, centers, "cosine")
    assert (labels == expected.argmin(axis=1)).mean() >= 0.998  # but for ties in float32
    tolerance = 2e-3 if kind == "float32" else 1e-10
    np.testing.assert_allclose(space.distance(squared), expected.min(axis=1), rtol=tolerance)


@pytest.mark.parametrize("as_is", [False, True])
@pytest.mark.parametrize("kind", ["float32", "float64", "csr"])
@pytest.mark.usefixtures("small_pieces")
def test_every_row_is_added_once_to_the_sum_of_its_center(kind, as_is):
    X, centers = problem(k=5)
    # Half of the rows on their centers: in float32 they are the ones that go to float64.
    X[::2] = centers[RNG.integers(5, size=250)]
    w = RNG.integers(0, 4, size=500).astype(float)
    rows = sp.csr_array(X) if kind == "csr" else X.astype(kind)
    space = Space(np.zeros(7)) if as_is or kind == "csr" else about_the_mean(rows)
    sums, seen = np.zeros((5, 7)), []
    for piece in Nearest(space, centers).assigned(rows):
        add_sums(sums, piece, w[piece.rows])
        seen.append(np.arange(500)[piece.rows])
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(500))
    labels = cdist(X, centers).argmin(axis=1)
    expected = [(w[labels == j, None] * (X - space.origin)[labels == j]).sum(0) for j in range(5)]
    tolerance = 1e-3 if kind == "float32" else 1e-9  # 100 rows of some units, in float32
    np.testing.assert_allclose(sums, expected, atol=tolerance)


@pytest.mark.parametrize("offset", [0.0, 1.7e9])
def test_sparse_rows_are_assigned_where_they_lie_whatever_the_origin(offset):
    rng = np.random.default_rng(3)
    X = np.zeros((60, 8))
    X[:, 0] = offset  # as a column of times has it: scores cancel
    X[np.arange(60), 1 + np.arange(60) % 3] = rng.uniform(1, 4, 60)
    C = X[:6] + 0.1 * rng.normal(size=(6, 8))
    C[:, 0] = offset
    expected = cdist(X - [offset, *[0] * 7], C - [offset, *[0] * 7], "sqeuclidean")
    for origin in (np.zeros(8), C.mean(axis=0), rng.normal(size=8)):
        labels, squared = distances(sp.csr_array(X), Space(origin), C)
        np.testing.assert_array_equal(labels, expected.argmin(axis=1))
        np.testing.assert_allclose(squared, expected.min(axis=1), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-300, 1e-42, 1.0, 1e39, 1e300])
def test_weights_of_any_size_count_in_float32(scale):
    rng = np.random.default_rng(4)
    X, w = rng.normal(size=(50, 3)).astype(np.float32), rng.uniform(1, 2, 50)
    sums = np.zeros((1, 3))
    for piece in Nearest(Space(np.zeros(3)), np.zeros((1, 3))).assigned(X):
        add_sums(sums, piece, scale * w[piece.rows])
    np.testing.assert_allclose(sums[0] / scale, w @ X, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.usefixtures("small_pieces")
def test_norms_that_are_kept_change_no_bit(monkeypatch, dtype):
    kept = nearest._Norms()
    monkeypatch.setattr(nearest, "_norms", kept)
    X, centers = problem()
    X = np.concatenate([X, centers]).astype(dtype)  # rows that are assigned again in float64, too
    spaces = [Space(np.zeros(7)), about_the_mean(X), Space(np.zeros(7), unit=True)]
    for space in spaces:
        once = Nearest(space, centers)
        expected = [np.concatenate(part) for part in zip(*pieces(once.assigned(X)), strict=True)]
        for _ in range(2):
            found = pieces(once.assigned(X, ("file", 0)))
            for part, same in zip(zip(*found, strict=True), expected, strict=True):
                np.testing.assert_array_equal(np.concatenate(part), same)
    assert len(kept._known) == len(spaces)
    assert not any(key[0] == "" for key in kept._known)


def pieces(assigned):
    return [(np.arange(509)[piece.rows], piece.labels, piece.squared) for piece in assigned]


def test_no_more_norms_are_kept_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(nearest, "NORMS_BYTES", 100)
    kept = nearest._Norms()
    for place in range(7):
        kept.put(place, np.zeros(5))
        assert sum(norms.nbytes for norms in kept._known.values()) <= 100
    assert kept.get(6) is not None
    assert kept.get(0) is None
