from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.ml.linalg import Vectors
from pyspark.ml.stat import Summarizer
from pyspark.sql import functions as F

from arrays import Arrays, block
from mllib_ext import moments as module
from mllib_ext.moments import Summary, comoments, merge, moments, weighted_gram

# Sums of a few hundred products of order 1, and one division.
ROUNDING = 1e-12


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def data(rng):
    """200 rows: normal, skewed, mostly zero and constant columns; labels; weights, some of 0."""
    X = rng.standard_normal((200, 5))
    X[:, 1] = np.exp(X[:, 1])
    X[:, 2] *= X[:, 0] > 1
    X[:, 3] = 0.1
    w = rng.uniform(0, 3, 200) * (rng.random(200) > 0.2)
    return X, X @ [1.0, 2.0, -1.0, 0.5, 0.0] + rng.standard_normal(200), w


def summary(X, y=None, w=None, parts=1, stage=moments):
    return Summary(*Arrays.of(X, y, w, parts).reduce(stage, merge))


def test_moments_are_those_of_numpy(data):
    X, y, w = data
    found = summary(X, y, w)
    assert found.weight_sum == pytest.approx(w.sum(), rel=1e-15)
    assert found.squared_weight_sum == pytest.approx(w @ w, rel=1e-15)
    assert found.n_rows == 200
    np.testing.assert_allclose(found.mean, np.average(X, axis=0, weights=w), rtol=ROUNDING)
    expected = np.cov(X.T, aweights=w)  # reliability weights: Spark's Summarizer's formula
    np.testing.assert_allclose(found.variance(), expected.diagonal(), rtol=ROUNDING, atol=1e-30)
    population = np.cov(X.T, aweights=w, ddof=0).diagonal()
    np.testing.assert_allclose(found.population_variance(), population, rtol=ROUNDING, atol=1e-30)


def test_comoments_are_the_covariances_of_features_and_label(data):
    X, y, w = data
    found = summary(X, y, w, stage=comoments)
    expected = np.cov(np.column_stack([X, y]).T, aweights=w, ddof=0)
    np.testing.assert_allclose(found.scatter / found.weight_sum, expected, atol=ROUNDING)
    np.testing.assert_allclose(found.mean[5], np.average(y, weights=w), rtol=ROUNDING)
    np.testing.assert_allclose(found.population_variance(), expected.diagonal(), atol=ROUNDING)
    only = summary(X, y, w)
    np.testing.assert_allclose(found.mean[:5], only.mean, rtol=ROUNDING)
    np.testing.assert_allclose(found.scatter.diagonal()[:5], only.scatter, rtol=ROUNDING)


@pytest.mark.parametrize("stage", [moments, comoments])
@pytest.mark.parametrize("parts", [2, 3, 7, 200])
def test_any_split_of_the_rows_has_the_moments_of_the_whole(data, stage, parts):
    X, y, w = data
    w = w + 0.1  # a part of one row has weight too
    whole, split = summary(X, y, w, 1, stage), summary(X, y, w, parts, stage)
    assert split.n_rows == 200
    for name in ("weight_sum", "squared_weight_sum", "mean", "scatter"):
        np.testing.assert_allclose(
            getattr(split, name), getattr(whole, name), rtol=ROUNDING, atol=ROUNDING
        )


@pytest.mark.parametrize("stage", [moments, comoments])
def test_sparse_rows_have_the_moments_of_dense_ones(data, stage):
    X, y, w = data
    for parts in (1, 4):
        dense, sparse = (summary(m, y, w, parts, stage) for m in (X, sp.csr_array(X)))
        np.testing.assert_allclose(sparse.mean, dense.mean, rtol=ROUNDING, atol=ROUNDING)
        np.testing.assert_allclose(sparse.scatter, dense.scatter, atol=1e-10)  # sums of 200 terms


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("stage", [moments, comoments])
def test_a_constant_column_has_a_variance_of_exactly_0(rng, make, stage):
    values = np.array([0.1, 1e8 + 0.1, -1 / 3, 0.0, 1e-300])
    X = make(np.tile(values, (90, 1)))
    w = rng.uniform(0.1, 2, 90)
    for parts in (1, 5):
        found = summary(X, np.full(90, np.pi), w, parts, stage)
        assert not found.scatter.any()
        assert not found.variance().any()
        assert not found.population_variance().any()
        assert found.mean[:5].tolist() == values.tolist()


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array])
def test_rows_of_weight_0_do_not_make_a_constant_column_vary(rng, make):
    X = np.full((50, 2), 0.1)
    w = rng.uniform(0.1, 2, 50)
    X[[0, 20]], w[[0, 20]] = 5.0, 0.0
    found = summary(make(X), w=w, parts=3)
    assert not found.variance().any()
    assert found.mean.tolist() == [0.1, 0.1]


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("stage", [moments, comoments])
def test_an_offset_of_1e8_costs_no_digits(rng, make, stage):
    X = rng.integers(-1000, 1000, (300, 3)) / 256.0  # the offset rounds nothing
    y = rng.integers(-1000, 1000, 300) / 256.0
    # A block is summed about one of its rows. Joining two blocks takes the difference of means of
    # 1e8, which are good to 1e8 * eps = 2e-8: of the scatter that is about as much, relatively.
    for parts, tolerance in ((1, ROUNDING), (4, 1e-8)):
        near = summary(make(X), y, parts=parts, stage=stage)
        far = summary(make(X + 1e8), y + 1e8, parts=parts, stage=stage)
        largest = near.scatter.max()
        np.testing.assert_allclose(far.scatter, near.scatter, rtol=0, atol=tolerance * largest)
        np.testing.assert_allclose(far.mean - 1e8, near.mean, atol=5e-8)


@pytest.mark.parametrize("stage", [moments, comoments])
def test_blocks_of_weight_0_change_nothing_wherever_they_stand(data, stage):
    X, y, w = data
    rows = block(X, y, w)
    nothing = block(X + 100.0, y - 3.0, np.zeros(200))
    alone = Summary(*Arrays([rows]).reduce(stage, merge))
    for blocks in ([nothing, rows], [rows, nothing], [nothing, nothing, rows, nothing]):
        found = Summary(*Arrays(blocks).reduce(stage, merge))
        assert found.weight_sum == alone.weight_sum
        assert found.n_rows == 200 * len(blocks)
        np.testing.assert_allclose(found.mean, alone.mean, rtol=ROUNDING)
        np.testing.assert_allclose(found.scatter, alone.scatter, rtol=ROUNDING)


def test_one_row_has_a_variance_of_0():
    found = summary(np.array([[3.0, -1.0]]), w=[0.7])
    assert found.mean.tolist() == [3.0, -1.0]
    assert found.variance().tolist() == found.population_variance().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("stage", [moments, comoments])
def test_float32_rows_are_summed_as_float64(data, make, stage):
    X, y, w = data
    single = (X + 1000).astype(np.float32)
    found = summary(make(single), y, w, 2, stage)
    expected = summary(single.astype(np.float64), y, w, 2, stage)
    assert found.mean.dtype == found.scatter.dtype == np.float64
    np.testing.assert_allclose(found.mean, expected.mean, rtol=ROUNDING)
    np.testing.assert_allclose(found.scatter, expected.scatter, rtol=ROUNDING, atol=1e-9)


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("columns", [3, 600])  # 600: more columns than a sparse slice makes dense
@pytest.mark.parametrize("zeros", [0, 5, 30, 40])  # rows that are left out
def test_a_weighted_gram_is_the_product_it_says(rng, make, columns, zeros, monkeypatch):
    monkeypatch.setattr(module, "DENSE_SLICE_BYTES", 8 * 3 * 7)  # seven rows of three at a time
    X = rng.standard_normal((40, columns)) * (rng.random((40, columns)) < 0.3)
    w = rng.uniform(0, 2, 40)
    w[rng.permutation(40)[:zeros]] = 0.0
    given = X.copy()
    found = weighted_gram(make(given), w)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(given, X)
    np.testing.assert_allclose(found, X.T @ np.diag(w) @ X, atol=ROUNDING)
    single = weighted_gram(make(X.astype(np.float32)), w)
    assert single.dtype == np.float64
    np.testing.assert_allclose(single, found, atol=1e-4)  # 40 products of order 10 at 1e-7


def test_means_and_variances_are_those_of_sparks_summarizer(spark, data):
    X, y, w = data
    rows = [(Vectors.dense(x), float(v)) for x, v in zip(X.tolist(), w, strict=True)]
    df = spark.createDataFrame(rows, ["x", "w"])
    means, variances = df.select(
        Summarizer.mean(F.col("x"), F.col("w")), Summarizer.variance(F.col("x"), F.col("w"))
    ).first()
    found = summary(X, y, w, 3)
    np.testing.assert_allclose(found.mean, means.toArray(), rtol=1e-11)
    # Spark leaves rounding where a column is constant.
    np.testing.assert_allclose(found.variance(), variances.toArray(), rtol=1e-11, atol=1e-15)
