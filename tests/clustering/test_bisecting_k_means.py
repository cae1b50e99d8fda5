"""Bisecting k-means: the tree by itself, and the cost of pyspark.ml's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.ml import clustering as mllib
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F
from sklearn.datasets import load_digits, load_iris, make_blobs

from arrays import Arrays
from data_frames import every_kind_of_features
from mllib_ext import fitting
from mllib_ext.bisecting import Descent, fit
from mllib_ext.clustering import BisectingKMeans, BisectingKMeansModel
from mllib_ext.optimizers.loop import Settings, Stop
from mllib_ext.space import Space

X = load_iris().data
DIGITS = load_digits().data


def split(X, k, least=1.0, w=None, parts=2, unit=False, max_iter=20, callbacks=()):
    dense = isinstance(X, np.ndarray) and not unit
    space = Space(X.mean(axis=0) if dense else np.zeros(X.shape[1]), unit)
    rounds = Arrays.of(X, w=w, parts=parts)
    return fit(rounds, space, k, least, Settings(max_iter=max_iter, tol=0.0), 0, callbacks)


def test_a_row_goes_down_to_the_nearer_child_at_every_node():
    #        0
    #      1   2
    #         3 4
    descent = Descent(np.array([[1, 2], [-1, -1], [3, 4], [-1, -1], [-1, -1]]))
    scores = np.array([[0, 2, 1, 9, 9], [0, 1, 2, 4, 3], [0, 1, 2, 3, 4], [0, 1, 1, 0, 9]])
    np.testing.assert_array_equal(descent(scores), [1, 3, 4, 1])
    np.testing.assert_array_equal(descent.leaves, [1, 3, 4])


def test_pairs_of_blobs_are_split_into_pairs_and_then_into_blobs_whatever_their_offset():
    centers = np.array([[100.0, 10, 0], [100, -10, 0], [-100, 0, 10], [-100, 0, -10]])
    for offset in (0.0, 1e5):
        Y, labels = make_blobs(200, centers=centers + offset, random_state=0)
        tree = split(Y, 4).state
        found = tree.centers[tree.descent.leaves]
        expected = np.array([Y[labels == j].mean(axis=0) for j in range(4)])
        order = ((found[:, None] - expected) ** 2).sum(axis=2).argmin(axis=1)
        assert {frozenset(order[:2]), frozenset(order[2:])} == {
            frozenset({0, 1}),
            frozenset({2, 3}),
        }
        np.testing.assert_allclose(found, expected[order], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("unit", [False, True])
def test_parts_and_sparse_rows_change_no_more_than_rounding(unit):
    expected = split(DIGITS, 7, parts=1, unit=unit).state
    for rows, parts in ((DIGITS, 2), (DIGITS, 7), (sp.csr_array(DIGITS), 3)):
        found = split(rows, 7, parts=parts, unit=unit).state
        assert found.loss == pytest.approx(expected.loss, rel=1e-9)
        leaves = found.descent.leaves
        np.testing.assert_array_equal(leaves, expected.descent.leaves)
        np.testing.assert_allclose(found.centers[leaves], expected.centers[leaves], atol=1e-9)


def test_weight_w_equals_w_copies():
    w = np.random.default_rng(2).integers(0, 4, size=len(X)).astype(float)
    weighted = split(X, 5, least=20, w=w).state
    copied = split(np.repeat(X, w.astype(int), axis=0), 5, least=20).state
    np.testing.assert_allclose(weighted.centers, copied.centers, atol=1e-10)
    np.testing.assert_array_equal(weighted.sizes, copied.sizes)


def test_the_larger_clusters_are_split_where_not_all_are_needed():
    tree = split(make_blobs([40, 40, 10, 10], 2, random_state=5)[0], 3).state
    inner = tree.sizes[tree.children[:, 0] >= 0]
    assert len(tree.descent.leaves) == 3
    assert inner[1] >= 50  # of two clusters at the second level


@pytest.mark.parametrize(("least", "count"), [(1.0, 4), (100.0, 2), (0.7, 2), (1000.0, 1)])
def test_clusters_that_are_too_small_are_left_whole(least, count):
    assert len(split(X, 4, least=least).state.descent.leaves) == count


def test_equal_rows_are_never_split():
    rows = np.repeat([[0.1, 0.2], [0.3, 0.7], [5.0, 1.0]], 9, axis=0) + 1e4 / 3
    tree = split(rows, 8).state
    assert len(tree.descent.leaves) == 3
    assert tree.loss == pytest.approx(0, abs=1e-9)
    assert len(split(np.full((5, 2), 0.1), 3).state.centers) == 1


def test_a_callback_sees_every_level_and_may_end_the_run():
    seen = []

    def watch(state, record):
        seen.append((record.iteration, len(state.descent.leaves), state.loss))
        return Stop("enough") if len(state.descent.leaves) == 4 else None

    result = split(DIGITS, 16, callbacks=[watch])
    assert (result.reason, result.converged) == ("enough", False)
    assert {leaves for _, leaves, _ in seen} == {2, 4}
    losses = [loss for iteration, _, loss in seen if iteration]
    assert losses == sorted(losses, reverse=True)


# --- on DataFrames ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frame(spark):
    with every_kind_of_features(spark, X, w=1 + np.arange(len(X)) % 3.0) as df:
        yield df


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("weight", [None, "w"])
def test_the_cost_is_within_5_percent_of_pyspark_mls_or_below(frame, distance, weight):
    # Both end at optima of splits in two, from starts of their own.
    params: dict = {"k": 6, "distanceMeasure": distance, "featuresCol": "dense"}
    params |= {"weightCol": weight} if weight else {}
    found = BisectingKMeans(**params).fit(frame)
    expected = mllib.BisectingKMeans(seed=1, **params).fit(frame)
    assert found.cost <= 1.05 * expected.summary.trainingCost
    assert len(found.clusterCenters()) == 6
    assert found.summary.numIter == expected.summary.numIter == found.getMaxIter()


def test_a_model_predicts_its_leaves_and_is_loaded_again(frame, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    model = BisectingKMeans(k=5, featuresCol="dense").fit(frame)
    labels = [r.prediction for r in model.transform(frame).orderBy("i").collect()]
    np.testing.assert_array_equal(np.bincount(labels), model.clusterWeights)
    for j, center in enumerate(model.clusterCenters()):
        np.testing.assert_allclose(center, X[np.array(labels) == j].mean(axis=0), rtol=1e-9)
    assert model.summary.clusterSizes == model.clusterWeights.tolist()
    assert (model.summary.k, model.summary.trainingCost) == (5, model.cost)
    model.save(str(tmp_path / "model"))
    loaded = BisectingKMeansModel.load(str(tmp_path / "model"))
    assert [loaded.predict(Vectors.dense(x)) for x in X[::10]] == labels[::10]
    with pytest.warns(FutureWarning, match="computeCost is deprecated"):
        cost = loaded.setFeaturesCol("sparse").computeCost(frame)
    assert cost == pytest.approx(model.cost, rel=1e-12)


def test_bad_params_and_rows_of_zeros_are_refused(frame):
    for params, message in (
        ({"k": 0}, "param k: expected a number of 1 or more"),
        ({"minDivisibleClusterSize": 0.0}, "param minDivisibleClusterSize: expected a number"),
        ({"distanceMeasure": "l1"}, "param distanceMeasure: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            BisectingKMeans(featuresCol="dense", **params).fit(frame)
    df = frame.withColumn("array", F.array(*[F.lit(0.0)] * 4))
    with pytest.raises(ValueError, match="rows of a length above 0"):
        BisectingKMeans(featuresCol="array", distanceMeasure="cosine").fit(df)


def test_small_weights_forbid_no_split_and_too_few_rows_are_a_warning(spark):
    blobs, _ = make_blobs([25] * 4, 2, centers=[(0, 0), (5, 5), (0, 5), (5, 0)], cluster_std=0.2)
    data = [(Vectors.dense(x), 0.001) for x in blobs]
    df = spark.createDataFrame(data, ["features", "w"]).coalesce(2)
    assert len(BisectingKMeans(k=4, weightCol="w").fit(df).clusterCenters()) == 4
    two = spark.createDataFrame([(Vectors.dense(i % 2, 0.0),) for i in range(9)], ["features"])
    with pytest.warns(UserWarning, match="than k = 5: the model has 2 centers"):
        assert len(BisectingKMeans(k=5).fit(two).clusterCenters()) == 2
