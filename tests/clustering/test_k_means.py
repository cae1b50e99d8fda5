"""KMeans on DataFrames: against scikit-learn from the same centers, and pyspark.ml's semantics."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from pyspark.ml import clustering as mllib
from pyspark.ml.evaluation import ClusteringEvaluator
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F
from sklearn.cluster import KMeans as Sklearn
from sklearn.datasets import load_iris

from data_frames import FittedOnce, every_kind_of_features
from mllib_ext import fitting
from mllib_ext.blocks import Blocks
from mllib_ext.clustering import BisectingKMeans, KMeans, KMeansModel, MiniBatchKMeans
from mllib_ext.optimizers.loop import ConvergenceWarning, Stop
from mllib_ext.space import euclidean

X = load_iris().data
N, D = X.shape
START = X[[0, 60, 120]]
W = np.arange(N) % 3.0


@pytest.fixture(scope="module")
def frame(spark):
    with every_kind_of_features(spark, X, w=W) as df:
        yield df


@pytest.fixture(scope="module")
def fitted(frame):
    fit = FittedOnce(KMeans, frame)
    base = {"featuresCol": "dense", "k": 3, "maxIter": 100, "tol": 0.0}
    return lambda **params: fit(**{**base, **params})


def rows(spark, X, w=None):
    """A DataFrame of arrays of doubles ``features`` in one partition."""
    w = np.ones(len(X)) if w is None else w
    data = [(x.tolist(), float(v)) for x, v in zip(np.asarray(X, float), w, strict=True)]
    return spark.createDataFrame(data, "features array<double>, w double").coalesce(1)


def predicted(model, df):
    return np.array([r.prediction for r in model.transform(df).orderBy("i").collect()])


def test_from_the_same_centers_the_model_is_scikit_learns(fitted, frame):
    for w in (None, "w"):
        weights = None if w is None else W
        expected = Sklearn(3, init=START, n_init=1, tol=0).fit(X, sample_weight=weights)
        model = fitted(initialCenters=START.tolist(), **({"weightCol": w} if w else {}))
        np.testing.assert_allclose(model.clusterCenters(), expected.cluster_centers_, atol=1e-9)
        assert model.cost == pytest.approx(expected.inertia_, rel=1e-10)
        np.testing.assert_array_equal(predicted(model, frame), expected.predict(X))
        weights = np.ones(N) if weights is None else weights
        sizes = np.bincount(expected.labels_, weights)
        np.testing.assert_array_equal(model.clusterWeights, sizes)


def test_from_the_same_rows_of_equal_start_the_cost_is_pyspark_mls(fitted, frame):
    for distance in ("euclidean", "cosine"):
        params: dict[str, Any] = {"k": 3, "distanceMeasure": distance, "featuresCol": "dense"}
        expected = mllib.KMeans(seed=1, tol=0.0, maxIter=100, **params).fit(frame)
        start = np.array(expected.clusterCenters()).tolist()
        model = fitted(distanceMeasure=distance, initialCenters=start)
        np.testing.assert_allclose(model.clusterCenters(), start, rtol=1e-9)
        assert model.cost == pytest.approx(expected.summary.trainingCost, rel=1e-9)
        assert model.n_iter <= 2  # the centers are those already, but for rounding
        np.testing.assert_array_equal(predicted(model, frame), predicted(expected, frame))


@pytest.mark.parametrize("features", ["sparse", "array", "float", ["x0", "x1", "x2", "x3"]])
def test_every_kind_of_features_column_gives_the_same_model(fitted, features):
    start = START.tolist()
    found, expected = (fitted(featuresCol=f, initialCenters=start) for f in (features, "dense"))
    # Lengths of flowers in float32: 3e-8 of 8 cm.
    tolerance = 1e-6 if features == "float" else 1e-12
    np.testing.assert_allclose(found.clusterCenters(), expected.clusterCenters(), rtol=tolerance)
    assert found.cost == pytest.approx(expected.cost, rel=tolerance)


@pytest.mark.parametrize("partitions", [1, 2, 7])
def test_partitions_and_block_files_change_no_more_than_rounding(
    fitted, frame, partitions, monkeypatch
):
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    # One partition without rows beside those that hold all.
    df = frame.orderBy("i").coalesce(1).withColumn("p", F.col("i") % partitions)
    if partitions > 1:
        df = df.repartition(partitions, "p")
    estimator = KMeans(k=3, featuresCol="dense", maxIter=100, tol=0.0, initialCenters=START)
    model = estimator.fit(df.union(df.where("false")))
    assert any(record.rounds for record in model.history)
    expected = fitted(initialCenters=START.tolist())
    np.testing.assert_allclose(model.clusterCenters(), expected.clusterCenters(), rtol=1e-12)
    again = estimator.fit(df.union(df.where("false")))
    np.testing.assert_array_equal(model.clusterCenters(), again.clusterCenters())


@pytest.mark.parametrize("mode", ["k-means||", "random"])
def test_the_start_depends_on_the_seed_alone_wherever_the_blocks_are(frame, mode, monkeypatch):
    def centers(seed):
        estimator = KMeans(k=5, featuresCol="dense", initMode=mode, maxIter=1, tol=1e9, seed=seed)
        return np.array(estimator.fit(frame).clusterCenters())

    first = centers(-3)
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    np.testing.assert_allclose(centers(-3), first, rtol=1e-12)
    assert not np.array_equal(centers(-4), first)


def test_several_starts_keep_the_run_of_least_cost(frame):
    def run(n):
        estimator = KMeans(k=9, featuresCol="dense", initMode="random", nInit=n, maxIter=50)
        ends = []
        estimator.setCallbacks([lambda state, record: ends.append(state.loss)])
        return estimator.fit(frame), ends

    (one, _), (several, costs) = run(1), run(4)
    assert several.cost == min(costs)
    assert several.cost < one.cost
    assert several.history[-1].loss == several.cost


# --- the model ----------------------------------------------------------------------------------


def test_the_summary_is_pyspark_mls_over_our_predictions(fitted, frame):
    for model in (fitted(), fitted(predictionCol="")):
        summary = model.summary
        assert isinstance(summary, mllib.KMeansSummary)
        assert summary.trainingCost == model.cost
        assert (summary.k, summary.numIter, summary.featuresCol) == (3, model.n_iter, "dense")
        # Without weights they count rows.
        assert summary.clusterSizes == model.clusterWeights.tolist()
        assert summary.cluster.count() == summary.predictions.count() == N
    assert fitted(featuresCol=["x0", "x1"]).summary.featuresCol == "x0,x1"


def test_sparks_evaluator_takes_the_predictions(fitted, frame):
    predictions = fitted(initialCenters=START.tolist()).transform(frame)
    silhouette = ClusteringEvaluator(featuresCol="dense").evaluate(predictions)
    assert silhouette == pytest.approx(0.7354, abs=1e-3)  # of iris, squared euclidean


def test_a_model_is_loaded_with_all_but_its_summary_and_history(fitted, frame, tmp_path):
    model = fitted(distanceMeasure="cosine")
    model.save(str(tmp_path / "model"))
    loaded = KMeansModel.load(str(tmp_path / "model"))
    assert (loaded.cost, loaded.reason, loaded.converged) == (model.cost, "shift", True)
    assert (loaded.hasSummary, loaded.history) == (False, ())
    np.testing.assert_array_equal(predicted(loaded, frame), predicted(model, frame))
    assert loaded.predict(Vectors.dense(X[7])) == predicted(model, frame)[7]


def test_centers_handed_out_are_copies(fitted):
    model = fitted()
    model.clusterCenters()[0][:] = 0
    assert model.clusterCenters()[0].any()
    with pytest.raises(ValueError, match="read-only"):
        model.clusterWeights[0] = 1


def test_a_fit_goes_on_from_a_fitted_model_of_either_package(fitted, frame):
    model = fitted()
    theirs = mllib.KMeans(k=3, featuresCol="dense", maxIter=100, seed=3).fit(frame)
    for start in (model, theirs):
        again = KMeans(k=3, featuresCol="dense").setInitialModel(start).fit(frame)
        np.testing.assert_allclose(again.clusterCenters(), start.clusterCenters(), atol=1e-3)
        assert again.n_iter <= 2


def test_a_callback_may_end_the_run(frame):
    estimator = KMeans(k=3, featuresCol="dense", tol=0.0)
    estimator.setCallbacks(
        [lambda state, record: Stop("enough") if record.iteration == 1 else None]
    )
    model = estimator.fit(frame)
    assert (model.n_iter, model.reason, model.converged) == (1, "enough", False)
    with pytest.warns(ConvergenceWarning, match="not converged in maxIter = 1"):
        KMeans(k=3, featuresCol="dense", maxIter=1, tol=0.0).fit(frame)


# --- rows that are special ----------------------------------------------------------------------


def test_fewer_distinct_rows_than_k_give_fewer_centers_and_a_warning(spark):
    df = rows(spark, [[0, 0], [0, 0], [1, 0], [1, 0], [0, 3]])
    for mode in ("k-means||", "random"):
        with pytest.warns(UserWarning, match="fewer distinct rows than k = 4: .* has 3 centers"):
            model = KMeans(k=4, initMode=mode).fit(df)
        found = sorted(map(tuple, np.round(model.clusterCenters(), 12) + 0.0))
        assert found == [(0, 0), (0, 3), (1, 0)]
        assert model.cost == 0
        assert len(model.summary.clusterSizes) == model.summary.k == 3


@pytest.mark.parametrize("k", [1, 150])
def test_one_center_is_the_mean_and_as_many_as_rows_are_the_rows(spark, k):
    noisy = X + 1e-3 * np.random.default_rng(0).normal(size=X.shape)
    model = KMeans(k=k, tol=1e-9).fit(rows(spark, noisy))
    if k == 1:
        np.testing.assert_allclose(model.clusterCenters()[0], noisy.mean(axis=0), rtol=1e-12)
    else:
        assert model.cost == pytest.approx(0, abs=1e-20)
        assert len(model.clusterCenters()) == 150


def test_one_feature_and_an_offset_of_100000(spark):
    values = np.array([0.0, 0.1, 0.2, 5, 5.1, 5.2])[:, None] + 1e5
    model = KMeans(k=2).fit(rows(spark, values))
    # Doubles near 1e5 are 1.5e-11 apart.
    assert sorted(c[0] for c in model.clusterCenters()) == pytest.approx([1e5 + 0.1, 1e5 + 5.1])
    assert model.cost == pytest.approx(0.04, abs=1e-9)


@pytest.mark.parametrize(("offset", "as_is"), [(0.0, True), (1.0, True), (2.0, False)])
def test_distances_are_taken_about_the_mean_where_that_shortens_the_rows(spark, offset, as_is):
    # Of deviation 1 after weighting: an offset above 1 is more than half of their mean square.
    values = offset + np.array([1.0, -1.0, 7.0])[:, None] * np.ones(3)
    with Blocks.of(rows(spark, values, [2, 2, 0]), "features", weight="w") as blocks:
        space = euclidean(blocks)
    assert space.as_is == as_is
    np.testing.assert_array_equal(space.origin, np.zeros(3) if as_is else np.full(3, offset))


def test_rows_of_weight_0_count_as_absent(frame):
    estimator = KMeans(weightCol="w", featuresCol="dense", k=4, initMode="random")
    four = F.col("i").isin(0, 1, 2, 7).cast("int")
    model = estimator.fit(frame.withColumn("w", four))
    assert model.clusterWeights.tolist() == [1, 1, 1, 1]
    assert model.cost == 0
    with pytest.raises(ValueError, match="weight column 'w': expected a weight above 0"):
        estimator.fit(frame.withColumn("w", F.lit(0.0)))


def test_rows_of_zeros_have_no_cosine_distance(spark):
    df = rows(spark, [[0, 0], [1, 0], [0, 1], [0, 0]])
    with pytest.raises(ValueError, match=r"features column 'features': .* found 2 rows of zeros"):
        KMeans(distanceMeasure="cosine").fit(df)
    model = KMeans(distanceMeasure="cosine").fit(df.where("features[0] + features[1] > 0"))
    with pytest.raises(ValueError, match="found a row of zeros"):
        model.predict(Vectors.dense([0.0, 0.0]))


def test_rows_of_one_direction_are_one_to_the_cosine_distance(spark):
    df = rows(spark, [[1, 2], [3, 6], [0.1, 0.2], [1e9, 1], [0, 5]])
    with pytest.warns(UserWarning, match="has 3 centers"):
        model = KMeans(k=4, distanceMeasure="cosine").fit(df)
    assert model.cost == pytest.approx(0, abs=1e-15)


def test_null_nan_and_ragged_rows_are_refused(spark):
    for bad in ("null", "array(1.0d, double('NaN'))", "array(1.0d)", "array(1.0d, null)"):
        df = rows(spark, X[:5, :2]).union(spark.sql(f"select {bad} as features, 1.0d as w"))
        with pytest.raises(ValueError, match=r"features column 'features'.*: expected"):
            KMeans().fit(df)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"k": 0}, "param k: expected a number of 1 or more, found 0"),
        ({"maxIter": -1}, "param maxIter: expected a number of 0 or more"),
        ({"tol": float("nan")}, "param tol: expected a number of 0 or more, found nan"),
        ({"initSteps": 0}, "param initSteps: expected a number of 1 or more"),
        ({"nInit": 0}, "param nInit: expected a number of 1 or more"),
        ({"maxBlockSizeInMB": -1.0}, "param maxBlockSizeInMB: expected a number of 0"),
        ({"initMode": "k-means++"}, r"param initMode: expected one of \('k-means\|\|', 'random'\)"),
        ({"distanceMeasure": "manhattan"}, "param distanceMeasure: expected one of"),
        ({"solver": "elkan"}, r"param solver: expected one of \('auto', 'row', 'block'\)"),
        ({"initialCenters": [[1.0, 2.0]]}, r"shape \(2, 4\), k by features, found \(1, 2\)"),
        ({"initialCenters": [[np.inf] * 4] * 2}, "initialCenters: expected finite numbers"),
    ],
)
def test_params_out_of_range_are_refused(frame, params, message):
    with pytest.raises(ValueError, match=message):
        KMeans(featuresCol="dense", **params).fit(frame)


def test_centers_that_are_no_matrix_are_refused():
    for value in ("centers", [1.0, 2.0], [[1.0], [2.0, 3.0]]):
        with pytest.raises(TypeError, match="expected a model or centers of the shape"):
            KMeans(initialCenters=value)


def test_a_grid_of_k_builds_the_blocks_once(frame):
    estimator = KMeans(featuresCol="dense")
    maps = [{estimator.k: k} for k in (2, 3, 4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        models = dict(estimator.fitMultiple(frame, maps))
        single = estimator.copy(maps[2]).fit(frame)
    assert [len(models[i].clusterCenters()) for i in range(3)] == [2, 3, 4]
    np.testing.assert_array_equal(models[2].clusterCenters(), single.clusterCenters())


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
def test_sparse_rows_are_predicted_as_one_by_one_and_counted_so(spark):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 20)) * (rng.random((200, 20)) < 0.2)
    data = [(Vectors.sparse(20, np.flatnonzero(x), x[x != 0]),) for x in X]
    df = spark.createDataFrame(data, ["features"]).coalesce(1)
    for cls in (KMeans, MiniBatchKMeans, BisectingKMeans):
        model = cls(k=4, maxIter=20).fit(df)
        found = [row.prediction for row in model.transform(df).collect()]
        assert found == [model.predict(row[0]) for row in data]
    model = KMeans(k=4, maxIter=100, tol=0.0).fit(df)
    assert model.summary.clusterSizes == model.clusterWeights.tolist()


@pytest.mark.parametrize("scale", [1.0, 1e20])
def test_float_rows_have_the_cosine_distances_of_double_ones_at_any_scale(spark, scale):
    X = scale * np.array([[1, 0.1], [1, 0.2], [1, -0.1], [-1, 0.1], [-1, 0.3], [-1, -0.2]])
    df = rows(spark, X).withColumn("float", F.col("features").cast("array<float>"))
    costs = [
        KMeans(k=2, distanceMeasure="cosine", featuresCol=name).fit(df).cost
        for name in ("features", "float")
    ]
    np.testing.assert_allclose(costs, 0.08324, rtol=1e-4)


def test_numbers_whose_squares_overflow_are_refused_by_the_column(spark):
    df = rows(spark, np.array([[1e160, 1.0], [1.0, 2.0], [3.0, 1.0]]))
    for measure in ("euclidean", "cosine"):
        with pytest.raises(ValueError, match=r"column 'features': .* squares .* larger ones"):
            KMeans(k=2, distanceMeasure=measure).fit(df)
