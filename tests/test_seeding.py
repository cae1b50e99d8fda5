"""Where k-means starts: how good it is, and what decides it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from sklearn.cluster import KMeans as Sklearn
from sklearn.datasets import load_digits, load_iris, make_blobs

from arrays import Arrays
from mllib_ext import lloyd
from mllib_ext.optimizers.loop import Settings
from mllib_ext.seeding import k_means_parallel, plus_plus, random_rows
from mllib_ext.space import Space

SETS = {
    "iris": load_iris().data,
    "digits": load_digits().data[:900],
    "blobs": make_blobs(1200, 5, centers=20, random_state=1)[0],
    "uniform": np.random.default_rng(0).random((1000, 3)),
}


@cache
def best_of_20(name, k):
    X = SETS[name]
    return min(Sklearn(k, n_init=1, random_state=i).fit(X).inertia_ for i in range(20))


@pytest.mark.parametrize("parts", [1, 2, 7])
@pytest.mark.parametrize(
    ("name", "k"), [("iris", 3), ("iris", 8), ("digits", 10), ("blobs", 20), ("uniform", 12)]
)
def test_the_cost_is_within_6_percent_of_the_best_of_20_starts_of_scikit_learn(name, k, parts):
    X = SETS[name]
    rounds, space = Arrays.of(X, parts=parts), Space(X.mean(axis=0))
    for seed in range(3):
        start = k_means_parallel(rounds, space, k, 2, [seed])
        found = lloyd.fit(rounds, space, start, Settings(max_iter=100, tol=1e-4))
        assert found.state.loss <= 1.06 * best_of_20(name, k)


def starts(rounds, space, k, seed=0):
    return {
        "k-means||": k_means_parallel(rounds, space, k, 2, [seed]),
        "random": random_rows(rounds, space, k, [seed]),
    }


def test_the_seed_decides():
    X = SETS["digits"]
    rounds, space = Arrays.of(X, parts=3), Space(X.mean(axis=0))
    for mode in ("k-means||", "random"):
        first, again, other = (starts(rounds, space, 5, seed)[mode] for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_rows_of_weight_0_are_never_chosen():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    w = np.arange(200) % 2.0
    X[w == 0] += 100.0
    rounds, space = Arrays.of(X, w=w, parts=2), Space(np.zeros(3))
    for centers in starts(rounds, space, 6).values():
        assert np.abs(centers).max() < 50


def test_random_rows_are_drawn_by_their_weights():
    w = np.array([1.0, 2.0, 4.0, 1.0])
    rounds = Arrays.of(np.arange(4.0)[:, None], w=w, parts=2)
    drawn = [random_rows(rounds, Space(np.zeros(1)), 1, [seed])[0, 0] for seed in range(2000)]
    # Four standard deviations of a share of 2,000 draws.
    np.testing.assert_allclose(np.bincount(np.array(drawn, int)) / 2000, w / 8, atol=0.045)


def test_as_many_centers_as_rows_are_all_of_them():
    X = np.random.default_rng(1).normal(size=(25, 2))
    rounds, space = Arrays.of(X, parts=2), Space(np.zeros(2))
    for centers in starts(rounds, space, 25).values():
        np.testing.assert_array_equal(np.unique(centers, axis=0), np.unique(X, axis=0))


@pytest.mark.parametrize("unit", [False, True])
def test_equal_rows_give_equal_centers(unit):
    rounds = Arrays.of(np.full((9, 2), 0.1), parts=2)
    for centers in starts(rounds, Space(np.full(2, 0.1 * (not unit)), unit), 3).values():
        assert centers.shape == (3, 2)
        assert np.isfinite(centers).all()


def test_plus_plus_meets_every_one_of_clusters_far_apart():
    X, labels = make_blobs(300, 2, centers=10, cluster_std=0.01, random_state=0)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        centers = plus_plus(X, np.ones(300), 10, Space(np.zeros(2)), rng)
        nearest = ((X[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
        assert len({(a, b) for a, b in zip(nearest, labels, strict=True)}) == 10
