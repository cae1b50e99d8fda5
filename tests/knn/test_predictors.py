"""Predictors by nearest rows, against scikit-learn's."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.ml import Pipeline
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import StandardScaler
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import functions as F
from sklearn import neighbors as sklearn
from sklearn.datasets import load_iris

from data_frames import FittedOnce, every_kind_of_features
from mllib_ext.distances import metric
from mllib_ext.knn import (
    KNeighborsClassificationModel,
    KNeighborsClassifier,
    KNeighborsRegressionModel,
    KNeighborsRegressor,
)
from mllib_ext.neighbors.votes import LabelledRows, Settings, class_votes, inverse

X, Y = load_iris(return_X_y=True)
# Measured to a tenth, iris is full of ties, which scikit-learn decides by the order of the rows.
X = X + np.random.default_rng(0).normal(scale=1e-3, size=X.shape)
TARGET = X[:, 3] * 2 + Y
COLUMNS = [f"x{j}" for j in range(4)]


@pytest.fixture(scope="module")
def frame(spark):
    others = {"label": Y, "target": TARGET, "w": np.arange(150) % 3}
    with every_kind_of_features(spark, X, **others) as df:
        yield df


@pytest.fixture(scope="module")
def classified(frame):
    return FittedOnce(KNeighborsClassifier, frame)


@pytest.fixture(scope="module")
def regressed(frame):
    return FittedOnce(KNeighborsRegressor, frame)


def column(df, name):
    values = [row[0] for row in df.orderBy("i").select(name).collect()]
    return np.array([v.toArray() if hasattr(v, "toArray") else v for v in values])


# --- votes, without Spark -------------------------------------------------------------------------


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(1)
    A, y, w = rng.integers(0, 3, (60, 2)) * 1.0, rng.integers(0, 4, 60) * 1.0, rng.random(60)
    Q = rng.integers(0, 3, (9, 2)) * 1.0
    settings = Settings(5, metric("euclidean"), True)
    first = LabelledRows.of(A, y, w).votes(Q, settings)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(60)
        other = LabelledRows.of(A[order], y[order], w[order]).votes(Q, settings)
        for one, same in zip(first, other, strict=True):
            np.testing.assert_array_equal(one, same)


def test_ties_go_to_the_lowest_class_and_to_the_smallest_label():
    rows = LabelledRows.of(np.array([[1.0], [-1.0], [1.0]]), np.array([2.0, 1.0, 0.0]), np.ones(3))
    labels, weights = rows.votes(np.zeros((1, 1)), Settings(2, metric("euclidean"), False))
    assert labels.tolist() == [[0.0, 1.0]]
    assert class_votes(labels, weights, 3).argmax(axis=1).tolist() == [0]


def test_rows_at_distance_0_outvote_all_others():
    distances = np.array([[0.0, 0.0, 1.0], [0.5, 1.0, 2.0], [5e-324, 1.0, 1.0]])
    assert inverse(distances).tolist() == [[1, 1, 0], [2, 1, 0.5], [1, 0, 0]]


def test_sparse_rows_vote_as_dense_ones():
    rng = np.random.default_rng(2)
    A = rng.random((40, 6)) * (rng.random((40, 6)) < 0.5)
    y, settings = rng.integers(0, 3, 40) * 1.0, Settings(4, metric("manhattan"), True)
    dense, sparse = (LabelledRows.of(M, y, np.ones(40)) for M in (A, sp.csr_array(A)))
    for one, other in zip(dense.votes(A, settings), sparse.votes(A, settings), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


# --- against scikit-learn -------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("name", ["euclidean", "manhattan", "cosine"])
def test_classes_and_probabilities_are_scikit_learns(classified, frame, weights, name):
    found = classified(featuresCol="dense", k=7, weights=weights, metric=name)
    predicted = found.transform(frame.withColumn("dense", shifted()))
    model = sklearn.KNeighborsClassifier(7, weights=weights, metric=name, algorithm="brute")
    model.fit(X, Y)
    theirs = model.predict_proba(X + 0.05)
    # Distances as scikit-learn has them, by products: 1e-8 of a small one.
    np.testing.assert_allclose(column(predicted, "probability"), theirs, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(column(predicted, "prediction"), theirs.argmax(axis=1))
    if weights == "uniform":
        np.testing.assert_array_equal(column(predicted, "rawPrediction"), np.round(7 * theirs))


def shifted():
    return array_to_vector(F.transform("array", lambda x: x + 0.05))


@pytest.mark.parametrize("weights", ["uniform", "distance"])
def test_averages_are_scikit_learns(regressed, frame, weights):
    model = regressed(featuresCol="array", labelCol="target", k=4, weights=weights)
    theirs = sklearn.KNeighborsRegressor(4, weights=weights, algorithm="brute").fit(X, TARGET)
    moved = frame.withColumn("array", F.transform("array", lambda x: x + 0.05))
    np.testing.assert_allclose(
        column(model.transform(moved), "prediction"), theirs.predict(X + 0.05), rtol=1e-6
    )
    if weights == "distance":  # every training row finds itself
        np.testing.assert_array_equal(column(model.transform(frame), "prediction"), TARGET)


@pytest.mark.parametrize("features", ["sparse", "array", COLUMNS], ids=str)
def test_every_kind_of_features_column_is_predicted_the_same(classified, frame, features):
    found = classified(featuresCol=features, k=3).transform(frame)
    expected = classified(featuresCol="dense", k=3).transform(frame)
    for name in ("rawPrediction", "probability", "prediction"):
        np.testing.assert_array_equal(column(found, name), column(expected, name))


def test_a_row_is_predicted_as_a_frame_of_it(classified, regressed, frame):
    model = classified(featuresCol="dense", k=3, weights="distance")
    row = model.transform(frame.where("i = 77")).head()
    assert model.predict(row.dense) == row.prediction
    assert model.predictRaw(row.dense) == row.rawPrediction
    assert model.predictProbability(row.dense) == row.probability
    average = regressed(featuresCol="dense", labelCol="target", k=3)
    assert average.predict(row.dense) == average.transform(frame.where("i = 77")).head().prediction
    assert (model.numClasses, model.numFeatures, model.numItems) == (3, 4, 150)
    assert "numItems=150, numFeatures=4" in repr(model)


# --- weights, k, thresholds -----------------------------------------------------------------------


def test_weight_0_is_absence_and_a_weight_multiplies_the_vote(classified, frame):
    found = KNeighborsClassifier(featuresCol="dense", weightCol="w", k=200).fit(frame)
    assert found.numItems == 100
    # With all rows as neighbours, a weight of w is w copies.
    copies = frame.withColumn("n", F.col("w").cast("int")).where("n > 0")
    copies = copies.withColumn("copy", F.explode(F.sequence(F.lit(1), F.col("n"))))
    expected = KNeighborsClassifier(featuresCol="dense", k=200).fit(copies)
    assert expected.numItems == 150
    for name in ("rawPrediction", "prediction"):
        np.testing.assert_array_equal(
            *(column(model.transform(frame), name) for model in (found, expected))
        )
    with pytest.raises(ValueError, match="expected a weight above 0"):
        KNeighborsClassifier(featuresCol="dense", weightCol="w").fit(frame.where("w = 0"))


def test_more_neighbours_than_rows_are_all_rows(frame):
    model = KNeighborsRegressor(featuresCol="dense", labelCol="target", k=1000).fit(frame)
    found = column(model.transform(frame), "prediction")
    np.testing.assert_allclose(found, np.full(150, TARGET.mean()), rtol=1e-12)


def test_thresholds_move_the_class_and_leave_the_probabilities(classified, frame):
    plain = classified(featuresCol="dense", k=15)
    moved = classified(featuresCol="dense", k=15, thresholds=[1.0, 1.0, 0.01])
    both = [model.transform(frame) for model in (plain, moved)]
    np.testing.assert_array_equal(*(column(df, "probability") for df in both))
    probability = column(both[0], "probability")
    expected = (probability / [1.0, 1.0, 0.01]).argmax(axis=1)
    np.testing.assert_array_equal(column(both[1], "prediction"), expected)
    assert (expected != probability.argmax(axis=1)).any()


@pytest.mark.parametrize("partitions", [1, 2, 7])
def test_partitions_do_not_change_a_prediction(classified, frame, partitions):
    rounded = frame.withColumn("array", F.transform("array", lambda x: F.round(x)))  # many ties
    expected = KNeighborsClassifier(featuresCol="array", k=4).fit(rounded).transform(rounded)
    again = rounded.repartition(partitions).where("i >= 0")
    found = KNeighborsClassifier(featuresCol="array", k=4).fit(again).transform(again)
    for name in ("rawPrediction", "prediction"):
        np.testing.assert_array_equal(column(found, name), column(expected, name))


# --- pyspark.ml's tools ---------------------------------------------------------------------------


def test_a_cross_validator_chooses_k_in_a_pipeline(frame):
    scaled = StandardScaler(inputCol="dense", outputCol="scaled")
    classifier = KNeighborsClassifier(featuresCol="scaled")
    grid = ParamGridBuilder().addGrid(classifier.k, [5, 100]).build()
    validator = CrossValidator(
        estimator=Pipeline(stages=[scaled, classifier]),
        estimatorParamMaps=grid,
        evaluator=MulticlassClassificationEvaluator(metricName="accuracy"),
        numFolds=2,
        seed=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the tuner leaves its thread pool open
        found = validator.fit(frame)
        gc.collect()
    best: Any = found.bestModel
    assert best.stages[1].getK() == 5
    assert found.avgMetrics[0] > 0.9 > found.avgMetrics[1]


def test_models_of_sparse_and_float_rows_are_saved_and_loaded(classified, frame, tmp_path):
    for features in ("sparse", "float"):
        model = classified(featuresCol=features, k=3)
        model.save(str(tmp_path / features))
        loaded = KNeighborsClassificationModel.load(str(tmp_path / features))
        assert loaded.features.dtype == model.features.dtype
        np.testing.assert_array_equal(
            *(column(m.transform(frame), "rawPrediction") for m in (model, loaded))
        )
    with pytest.raises(ValueError, match=r"expected a saved .*KNeighborsRegressionModel, found"):
        KNeighborsRegressionModel.load(str(tmp_path / "float"))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"k": 0}, "param k: expected 1 or more, found 0"),
        ({"metric": "l3"}, "param metric: expected one of"),
        ({"weights": "dist"}, "param weights: expected one of .*found 'dist'"),
        ({"weights": "distance", "metric": "inner_product"}, "param weights: expected uniform"),
        ({"labelCol": "target"}, r"label column 'target': expected class labels 0, 1, \.\.\., k-1"),
        ({"thresholds": [0.5, 0.5]}, "param thresholds: expected 3 values, .* found 2"),
    ],
)
def test_bad_params_are_refused(frame, params, message):
    with pytest.raises(ValueError, match=message):
        KNeighborsClassifier(**{"featuresCol": "dense", **params}).fit(frame)


def test_bad_rows_are_refused_in_training_and_in_prediction(classified, frame):
    for value, found in ((float("nan"), "nan"), (float("inf"), "inf")):
        broken = frame.withColumn("array", F.array(F.lit(value), *map(F.lit, [1.0, 1.0, 1.0])))
        whole = f"features column 'array', element 0: expected finite numbers, found {found}"
        with pytest.raises(ValueError, match=whole):
            KNeighborsClassifier(featuresCol="array").fit(broken)
        with pytest.raises(Exception, match=whole):
            classified(featuresCol="array").transform(broken).collect()
    zeros = frame.withColumn("array", F.array(*map(F.lit, [0.0] * 4)))
    whole = "features column 'array': expected a direction .*found a row of zeros"
    with pytest.raises(ValueError, match=whole):
        KNeighborsClassifier(featuresCol="array", metric="cosine").fit(zeros)
    with pytest.raises(Exception, match=whole):
        classified(featuresCol="array", metric="cosine").transform(zeros).collect()
    with pytest.raises(ValueError, match="expected a vector of length 4"):
        classified(featuresCol="dense").predict(Vectors.dense([1.0]))
