"""K-means on samples: against scikit-learn's steps, and as a model that a stream refines."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from pyspark.ml import clustering as mllib
from pyspark.ml.linalg import Vectors
from sklearn.cluster import MiniBatchKMeans as Sklearn
from sklearn.datasets import load_digits

from arrays import Arrays
from mllib_ext import fitting
from mllib_ext.clustering import KMeans, MiniBatchKMeans, MiniBatchKMeansModel
from mllib_ext.clustering.mini_batch_k_means import Sampling, fit
from mllib_ext.optimizers.loop import Settings
from mllib_ext.space import Space

X = load_digits().data
START = X[:10]
ONCE = Settings(max_iter=1, tol=0.0)


@pytest.fixture(autouse=True)
def ends_at_max_iter():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "not converged")
        yield


def moved(X, centers, seen, w=None, fraction=1.0, settings=ONCE, parts=2, unit=False):
    rounds = Arrays.of(X, w=w, parts=parts)
    space = Space(np.zeros(X.shape[1]) if unit else X.mean(axis=0), unit)
    sampling = Sampling(rounds, space, fraction, 0, rounds.weight_sum)
    return fit(sampling, centers, seen, settings).state


def test_batches_one_after_the_other_move_the_centers_as_scikit_learns_do():
    w = np.random.default_rng(0).integers(1, 4, size=len(X)).astype(float)
    expected = Sklearn(10, init=START, n_init=1, reassignment_ratio=0.0)
    centers, seen = START, np.zeros(10)
    for rows in np.array_split(np.arange(len(X)), 6):
        expected.partial_fit(X[rows], sample_weight=w[rows])
        state = moved(X[rows], centers, seen, w[rows])
        centers, seen = state.centers, state.seen
        np.testing.assert_allclose(centers, expected.cluster_centers_, atol=1e-10)
    assert seen.sum() == pytest.approx(w.sum())


def test_a_sample_has_about_the_share_of_rows_and_its_cost_stands_for_all():
    state = moved(X, START, np.zeros(10), fraction=0.3, settings=Settings(max_iter=0))
    # Six standard deviations of a share of 1,797 rows.
    assert state.sizes.sum() / len(X) == pytest.approx(0.3, abs=0.065)
    whole = moved(X, START, np.zeros(10), settings=Settings(max_iter=0))
    assert state.loss == pytest.approx(whole.loss, rel=0.05)


def test_a_sample_of_no_rows_is_replaced_by_all_rows():
    state = moved(X[:3], START[:1], np.zeros(1), fraction=1e-9)
    np.testing.assert_allclose(state.centers[0], X[:3].mean(axis=0))


def test_centers_of_directions_stay_on_the_sphere():
    state = moved(X, START, np.zeros(10), unit=True, settings=Settings(max_iter=3, tol=0.0))
    np.testing.assert_allclose(np.linalg.norm(state.centers, axis=1), 1.0, rtol=1e-12)


@pytest.fixture(scope="module")
def frame(spark):
    rows = [(Vectors.dense(x), float(i % 3)) for i, x in enumerate(X)]
    df = spark.createDataFrame(rows, ["features", "w"]).coalesce(2).cache()
    yield df
    df.unpersist()


def test_the_cost_comes_near_that_of_whole_passes_and_is_of_all_rows(frame):
    model = MiniBatchKMeans(k=10, miniBatchFraction=0.2, maxIter=30, tol=0.0).fit(frame)
    whole = KMeans(k=10, maxIter=30).fit(frame)
    assert model.cost <= 1.05 * whole.cost
    nearest = ((X[:, None] - np.array(model.clusterCenters())) ** 2).sum(axis=2).min(axis=1)
    assert model.cost == pytest.approx(nearest.sum(), rel=1e-10)
    assert model.summary.trainingCost == model.cost


def test_the_sample_depends_on_the_seed_alone_wherever_the_blocks_are(frame, monkeypatch):
    def centers(seed):
        estimator = MiniBatchKMeans(k=4, miniBatchFraction=0.1, maxIter=2, tol=0.0, seed=seed)
        return np.array(estimator.setInitialCenters(START[:4]).fit(frame).clusterCenters())

    first = centers(1)
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    np.testing.assert_allclose(centers(1), first, rtol=1e-12)
    assert not np.array_equal(centers(2), first)


def test_each_batch_of_a_stream_refines_the_model(spark, tmp_path):
    source = str(tmp_path / "in")
    data = [(i, x.tolist()) for i, x in enumerate(X[:600])]
    schema = "i int, features array<double>"
    df = spark.createDataFrame(data, schema)
    for part in range(3):
        df.where(f"i % 3 = {part}").coalesce(1).write.mode("append").parquet(source)
    estimator = MiniBatchKMeans(k=10, miniBatchFraction=1.0, maxIter=1, initialCenters=START)
    models = []

    def refine(batch, number):
        models.append(estimator.fit(batch))
        estimator.setInitialModel(models[-1])

    stream = spark.readStream.schema(schema).option("maxFilesPerTrigger", 1).parquet(source)
    query = (
        stream.writeStream.foreachBatch(refine).trigger(availableNow=True)
        .option("checkpointLocation", str(tmp_path / "log")).start()
    )  # fmt: skip
    assert query.awaitTermination(120)
    assert [model.clusterWeights.sum() for model in models] == [200, 400, 600]
    path = str(tmp_path / "model")
    models[-1].save(path)
    loaded = MiniBatchKMeansModel.load(path)
    again = MiniBatchKMeans(k=10).setInitialModel(loaded)
    np.testing.assert_array_equal(again.getInitialWeights(), models[-1].clusterWeights)
    np.testing.assert_array_equal(again.getInitialCenters().toArray(), models[-1].clusterCenters())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"miniBatchFraction": 0.0}, r"param miniBatchFraction: expected a number in \(0, 1\]"),
        ({"miniBatchFraction": 1.5}, r"param miniBatchFraction: expected a number in \(0, 1\]"),
        ({"initialWeights": Vectors.dense(1, 1)}, "expected initialCenters beside it"),
        (
            {"initialWeights": Vectors.dense(1, -1), "initialCenters": START[:2]},
            "param initialWeights: expected 2 numbers of 0 or more",
        ),
    ],
)
def test_params_out_of_range_are_refused(frame, params, message):
    with pytest.raises(ValueError, match=message):
        MiniBatchKMeans(**params).fit(frame)


def test_a_model_that_does_not_know_what_it_has_seen_is_refused(frame):
    theirs = mllib.KMeans(k=2, maxIter=1, seed=1).fit(frame)
    with pytest.raises(TypeError, match="expected a model that has clusterWeights"):
        MiniBatchKMeans().setInitialModel(theirs)


def test_fewer_distinct_rows_than_k_give_fewer_centers_and_a_warning(spark):
    df = spark.createDataFrame([(Vectors.dense(i % 2, 0.0),) for i in range(40)], ["features"])
    with pytest.warns(UserWarning, match="fewer distinct rows than k = 5: the model has 2 centers"):
        model = MiniBatchKMeans(k=5, maxIter=3).fit(df)
    assert sorted(map(tuple, model.clusterCenters())) == [(0.0, 0.0), (1.0, 0.0)]
    assert (model.clusterWeights > 0).all()
