"""What estimators and models share, by the example of the linear ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from pyspark.ml.linalg import SparseVector, Vectors, VectorUDT
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, StructField, StructType

from mllib_ext.base import as_row, dense, frozen
from mllib_ext.classification import LogisticRegression, LogisticRegressionModel
from mllib_ext.columns import BadRow, Features
from mllib_ext.feature import Nystroem
from mllib_ext.knn import NearestNeighbors
from mllib_ext.prediction import _column, _predict_batch
from mllib_ext.regression import LinearRegression, LinearRegressionModel

FLOATS = StructType([StructField(name, DoubleType()) for name in "ab"])


def total(X):
    return {"total": np.asarray(X.sum(axis=1)).ravel(), "rows": X @ np.eye(X.shape[1])}


@pytest.fixture
def model():
    return LinearRegressionModel([1.0, 2.0], 0.5).setFeaturesCol(["a", "b"])


@pytest.fixture(scope="module")
def frame(spark):
    df = spark.createDataFrame([(1.0, 2.0, 0.0), (3.0, -1.0, 1.0)], ["a", "b", "label"])
    return df.coalesce(1)


# --- features, callbacks and parameters ---------------------------------------------------------


def test_the_features_are_one_column_or_several_and_the_last_setter_wins():
    estimator = LogisticRegression()
    assert estimator._features() == "features"
    estimator.setFeaturesCol(["a", "b"])
    assert estimator._features() == estimator.getFeaturesCols() == ["a", "b"]
    assert estimator.setFeaturesCol("x")._features() == estimator.getFeaturesCol() == "x"
    assert estimator.setFeaturesCols(("b", "c"))._features() == ["b", "c"]
    assert estimator.setParams(featuresCol="y")._features() == "y"
    assert LogisticRegression(featuresCol=["a"])._features() == ["a"]
    assert LogisticRegression(featuresCols=["a"])._features() == ["a"]
    assert LogisticRegressionModel(np.ones((1, 1)), [0.0], 2).setFeaturesCol(["a"])._features() == [
        "a"
    ]


def test_an_unknown_parameter_is_an_error_with_the_nearest_name():
    with pytest.raises(TypeError, match=r"no parameter 'regParm' \(did you mean 'regParam'\?\)"):
        LogisticRegression().setParams(regParm=0.1)
    wrong: dict[str, Any] = {"regParm": 0.1}
    with pytest.raises(TypeError, match="regParm"):
        LogisticRegression(**wrong)


def test_setting_one_parameter_keeps_the_others():
    estimator = LogisticRegression(regParam=0.5).setParams(maxIter=3)
    assert (estimator.getRegParam(), estimator.getMaxIter()) == (0.5, 3)


def test_a_copy_has_the_callbacks_and_parameters_of_its_own():
    callbacks: list[Any] = [print, repr]
    estimator = LinearRegression(regParam=0.5).setCallbacks(callbacks)
    copy = estimator.copy({estimator.regParam: 0.25})
    assert copy.getCallbacks() == tuple(callbacks)
    assert (copy.getRegParam(), estimator.getRegParam()) == (0.25, 0.5)
    assert copy.uid == estimator.uid
    assert copy.setCallbacks([]).getCallbacks() == ()
    assert estimator.getCallbacks() == tuple(callbacks)


def test_a_model_has_the_estimators_uid_and_parameters_and_keeps_them_in_a_copy(frame):
    estimator = LinearRegression(featuresCol=["a", "b"], regParam=0.5, predictionCol="guess")
    model = estimator.fit(frame, {estimator.regParam: 0.25})
    assert model.uid == estimator.uid
    assert (model.getRegParam(), model.getPredictionCol()) == (0.25, "guess")
    copy = model.copy({model.predictionCol: "other"})
    assert copy.transform(frame).columns[-1] == "other"
    assert model.transform(frame, {model.predictionCol: "third"}).columns[-1] == "third"
    np.testing.assert_array_equal(copy.coefficients, model.coefficients)
    assert copy.reason == model.reason == "closed_form"


def test_an_empty_weight_column_is_none(frame):
    weighted = LinearRegression(featuresCol=["a", "b"], weightCol="", regParam=1.0).fit(frame)
    plain = LinearRegression(featuresCol=["a", "b"], regParam=1.0).fit(frame)
    np.testing.assert_array_equal(weighted.coefficients, plain.coefficients)


# --- prediction ---------------------------------------------------------------------------------


def test_a_batch_is_predicted_whole_and_as_float64():
    X = np.array([[1.0, 2.5], [3.0, -4.0]], dtype=np.float32)
    lists = pa.ListArray.from_arrays([0, 2, 4], X.ravel())
    features = Features("array", ("x",), "float32")
    found = _predict_batch(features, 2, ("rows", "total"), total, lists)
    assert found.type.field("c0").type == pa.list_(pa.float64())
    assert found.field("c0").to_pylist() == X.tolist()
    assert found.field("c1").to_pylist() == [3.5, -1.0]


def test_sparse_rows_reach_the_predictor_as_csr():
    rows = sp.csr_array(np.array([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]))
    arrays = [
        pa.array([3, 3], pa.int32()),
        *(pa.ListArray.from_arrays(rows.indptr.astype(np.int32), v)
          for v in (rows.indices.astype(np.int32), rows.data)),
    ]  # fmt: skip
    kinds = []

    def predict(X):
        kinds.append(type(X))
        return total(X)

    found = _predict_batch(Features("vector", ("x",), "float64"), 3, ("total",), predict, *arrays)
    assert kinds == [sp.csr_array]
    assert found.field("c0").to_pylist() == [2.0, 1.0]


def test_a_row_of_another_length_or_a_null_is_named():
    features = Features("array", ("x",), "float64")
    for value, message in (([1.0], "expected vectors of length 2, found length 1"), (None, "null")):
        with pytest.raises(BadRow, match=message):
            _predict_batch(features, 2, ("total",), total, pa.array([[1.0, 2.0], value]))


def test_no_rows_are_predicted_as_no_rows(model, frame):
    assert model.transform(frame.where("a > 100")).collect() == []
    assert _column(np.empty((0, 3))).to_pylist() == []


def test_predictions_are_appended_to_the_columns_that_are_there(model, frame):
    found = model.transform(frame.withColumn("with.dot", F.lit(1)))
    assert found.columns == ["a", "b", "label", "with.dot", "prediction"]
    assert [row.prediction for row in found.collect()] == [5.5, 1.5]


def test_a_prediction_column_that_exists_is_refused_before_any_job(model, frame):
    with pytest.raises(ValueError, match="output column 'label': expected a name that is free"):
        model.setPredictionCol("label").transform(frame)


def test_missing_feature_columns_are_named_with_the_nearest(model, frame):
    with pytest.raises(ValueError, match=r"features column 'lable': .*did you mean 'label'\?"):
        model.setFeaturesCol(["a", "lable"]).transform(frame)


def test_a_prediction_outlives_its_model(frame):
    predicted = LinearRegressionModel([1.0, 2.0], 0.5).setFeaturesCol(["a", "b"]).transform(frame)
    assert [row.prediction for row in predicted.collect()] == [5.5, 1.5]


def test_one_vector_is_a_row_if_it_has_the_right_length():
    vectors = Vectors.dense(1, 2), SparseVector(2, [0, 1], [1, 2])
    for value in ([1, 2], np.array([1.0, 2.0]), *vectors):
        np.testing.assert_array_equal(as_row(value, 2), [[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"expected a vector of length 3, found shape \(2,\)"):
        as_row([1.0, 2.0], 3)


def test_models_hold_read_only_copies():
    given = np.array([1, 2])
    kept = frozen(given)
    given[0] = 9
    assert kept.tolist() == [1.0, 2.0]
    assert kept.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 3.0
    vector = dense(kept)
    vector.array[0] = 7.0  # of a copy
    assert kept[0] == 1.0
    assert type(vector.__UDT__) is VectorUDT


# --- save and load ------------------------------------------------------------------------------


def test_a_model_of_any_shape_is_read_back_to_the_last_bit(spark, tmp_path):
    coef = np.random.default_rng(0).standard_normal((3, 7)) * 1e-300
    model = LogisticRegressionModel(coef, [np.inf, -0.0, np.pi], 3).setThresholds([0.2, 0.3, 0.5])
    model.converged, model.reason, model.n_iter = False, "stopped by hand", 4
    model.save(str(tmp_path / "model"))
    loaded = LogisticRegressionModel.load(str(tmp_path / "model"))
    for name in model._arrays:
        found, expected = getattr(loaded, f"_{name}"), getattr(model, f"_{name}")
        assert found.tobytes() == expected.tobytes()
        assert found.shape == expected.shape
        assert not found.flags.writeable
    assert (loaded.converged, loaded.reason, loaded.n_iter) == (False, "stopped by hand", 4)
    assert loaded.history == ()
    assert loaded.getThresholds() == [0.2, 0.3, 0.5]


def test_a_model_of_another_class_is_refused_by_name(spark, model, tmp_path):
    model.write().save(str(tmp_path / "linear"))
    expected = r"expected a saved .*\.LogisticRegressionModel, found .*\.LinearRegressionModel"
    with pytest.raises(ValueError, match=expected):
        LogisticRegressionModel.load(str(tmp_path / "linear"))


def test_what_is_saved_is_metadata_and_one_parquet_file(spark, model, tmp_path):
    model.save(str(tmp_path / "model"))
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"metadata", "data"}
    assert len(list((tmp_path / "model" / "data").glob("part-*.parquet"))) == 1
    (part,) = (tmp_path / "model" / "metadata").glob("part-*")
    metadata = json.loads(part.read_text())
    assert metadata["class"] == "mllib_ext.regression.LinearRegressionModel"
    assert metadata["uid"] == model.uid


def test_a_param_map_of_one_column_takes_the_place_of_several_and_the_other_way_round(frame):
    several = LogisticRegression(featuresCol=["a", "b"], labelCol="y")
    one = several.copy({several.featuresCol: "v"})
    assert one._features() == "v"
    assert several._features() == ["a", "b"]
    assert one.copy({one.featuresCols: ["b"]})._features() == ["b"]
    feature_map = Nystroem(inputCols=["a", "b"])
    assert feature_map.copy({feature_map.inputCol: "v"})._features() == "v"
    search = NearestNeighbors(inputCols=["a", "b"])
    assert search.copy({search.inputCol: "v"})._input() == "v"


def test_two_output_columns_of_one_name_are_refused(frame):
    model = LogisticRegressionModel(np.ones((1, 2)), np.zeros(1), 2).setFeaturesCol(["a", "b"])
    for name in ("probability", "prediction"):
        both = model.copy({model.rawPredictionCol: name})
        with pytest.raises(ValueError, match=f"output column '{name}': expected a name of its own"):
            both.transform(frame)


def test_vectors_of_one_name_twice_stand_beside_the_predictions(spark):
    vectors = [(Vectors.dense(float(i), 1.0), float(i > 2)) for i in range(6)]
    df = spark.createDataFrame(vectors, ["features", "label"])
    model = LogisticRegression(regParam=0.1).fit(df)
    twice = df.select(F.col("features").alias("v"), F.col("features").alias("v"), "features")
    assert model.transform(twice).select("prediction").count() == 6
