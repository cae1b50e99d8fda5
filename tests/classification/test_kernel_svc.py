"""KernelSVC on Spark, against scikit-learn's SVC."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from pyspark.ml.feature import StringIndexer
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from data_frames import FittedOnce, every_kind_of_features
from mllib_ext import fitting, kernel_estimator
from mllib_ext.cascade import Problem
from mllib_ext.classification import KernelSVC, KernelSVCModel, kernel_svc
from mllib_ext.optimizers.loop import Stop

WINE = load_wine()
X = StandardScaler().fit_transform(WINE.data)[:, :5]
X[np.abs(X) < 0.3] = 0.0
THREE = WINE.target.astype(float)
TWO = (THREE > 0).astype(float)
W = 0.5 + np.arange(len(X)) % 3
TOL = 1e-8
# Two solutions to 1e-8, by kernels in single precision.
CLOSE: Any = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(scope="module")
def frame(spark):
    with every_kind_of_features(spark, X, three=THREE, two=TWO, w=W) as df:
        yield df


@pytest.fixture(scope="module")
def fitted(frame):
    return FittedOnce(lambda **p: KernelSVC(**{"featuresCol": "dense", "tol": TOL, **p}), frame)


@pytest.fixture
def from_few(monkeypatch):
    """The first machine is of a few rows, so that these data take passes."""
    monkeypatch.setattr(kernel_svc, "Problem", partial(Problem, sample=10))


@pytest.fixture
def on_executors(monkeypatch, from_few):
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)


def raw(model, df):
    rows = model.transform(df).orderBy("i").select("rawPrediction", "prediction").collect()
    return np.array([row[0].toArray() for row in rows]), np.array([row[1] for row in rows])


def oracle(y, w=None, **params):
    return SVC(tol=1e-10, **params).fit(X, y, sample_weight=w)


@pytest.mark.parametrize("params", [
    {"C": 3.0}, {"gamma": "auto"}, {"gamma": 0.7},
    {"kernel": "linear"}, {"kernel": "poly", "degree": 2, "coef0": 1.0},
    {"class_weight": "balanced"}, {"class_weight": {1: 5.0}},
    {"kernel": "sigmoid", "coef0": 0.1, "gamma": 0.05},
], ids=str)  # fmt: skip
def test_two_classes_have_scikit_learns_decision_values_and_predictions(fitted, frame, params):
    svc = oracle(TWO, **params)
    weight = {"classWeight": params["class_weight"]} if "class_weight" in params else {}
    ours = {name: value for name, value in params.items() if name != "class_weight"}
    model = fitted(labelCol="two", **ours, **weight)
    values, predictions = raw(model, frame)
    expected = svc.decision_function(X)
    np.testing.assert_allclose(values, np.column_stack([-expected, expected]), **CLOSE)
    np.testing.assert_array_equal(predictions, svc.predict(X))
    assert model.nSupport.tolist() == svc.n_support_.tolist()
    np.testing.assert_allclose(model.intercepts, svc.intercept_, **CLOSE)
    if params.get("kernel") != "linear":
        assert model.gammaValue == pytest.approx(svc._gamma, rel=1e-12)


def test_three_classes_vote_as_scikit_learns_machines_do(fitted, frame):
    model, svc = fitted(labelCol="three"), oracle(THREE, break_ties=True)
    values, predictions = raw(model, frame)
    np.testing.assert_allclose(values, svc.decision_function(X), **CLOSE)
    np.testing.assert_array_equal(predictions, svc.predict(X))
    np.testing.assert_allclose(
        np.abs(model.dualCoef).sum(), np.abs(svc.dual_coef_).sum(), rtol=1e-5
    )
    assert model.supportVectors.shape == svc.support_vectors_.shape
    assert (model.numClasses, model.numFeatures) == (3, 5)
    assert model.converged
    row = Vectors.dense(X[3])
    np.testing.assert_allclose(model.predictRaw(row).toArray(), values[3], rtol=1e-12)
    assert model.predict(row) == predictions[3]


@pytest.mark.parametrize("partitions", [1, 2, 7])
@pytest.mark.parametrize("depth", [2, 3])
def test_partitions_on_executors_give_the_same_model_also_where_some_are_empty(
    fitted, frame, on_executors, partitions, depth
):
    expected, _ = raw(fitted(labelCol="three", weightCol="w"), frame)
    column = F.least(F.col("three") * 2, F.lit(partitions - 1)).cast("int")
    df = frame.repartitionByRange(partitions, column)  # by class: seven ranges, four are empty
    model = KernelSVC(
        featuresCol="dense", labelCol="three", weightCol="w", tol=TOL, aggregationDepth=depth
    ).fit(df)
    assert model.n_iter > 0
    np.testing.assert_allclose(raw(model, frame)[0], expected, **CLOSE)
    svc = oracle(THREE, W)
    np.testing.assert_allclose(expected, svc.decision_function(X), **CLOSE)


@pytest.mark.parametrize("features", ["sparse", "array", [f"x{j}" for j in range(5)]], ids=str)
def test_every_kind_of_features_column_trains_the_same_model(fitted, frame, features):
    expected, _ = raw(fitted(labelCol="two"), frame)
    model = fitted(labelCol="two", featuresCol=features)
    np.testing.assert_allclose(raw(model, frame)[0], expected, **CLOSE)


def test_a_model_of_sparse_rows_keeps_them_sparse_and_is_loaded_so(spark, tmp_path):
    rows = [
        (i, float(y), Vectors.sparse(50, [int(y) * 9 + i % 7], [1.0 + i % 3]))
        for i, y in enumerate(THREE)
    ]
    df = spark.createDataFrame(rows, ["i", "label", "features"])
    model = KernelSVC(classWeight={1: 2.0}).fit(df)
    path = str(tmp_path / "model")
    model.save(path)
    loaded = KernelSVCModel.load(path)
    assert loaded.getClassWeight() == {1: 2.0}
    for one in (model, loaded):
        assert one.supportVectors.format == "csr"
        assert one.supportVectors.shape == (model.numSupportVectors, 50)
    np.testing.assert_array_equal(raw(loaded, df)[0], raw(model, df)[0])
    assert (loaded.n_iter, loaded.dualObjective) == (model.n_iter, model.dualObjective)
    assert (raw(model, df)[1] == THREE).all()


def test_classes_that_are_declared_without_rows_are_never_predicted(frame):
    names = frame.withColumn("name", F.col("two").cast("string"))
    extra = names.limit(1).withColumn("name", F.lit("zz"))
    indexer = StringIndexer(inputCol="name", outputCol="label", stringOrderType="alphabetAsc")
    df = indexer.fit(names.union(extra)).transform(names)
    model = KernelSVC(featuresCol="dense", tol=TOL).fit(df)
    values, predictions = raw(model, frame)
    assert model.numClasses == 3
    assert (values[:, 2] == -np.inf).all()
    np.testing.assert_array_equal(predictions, oracle(TWO).predict(X))
    assert model.nSupport[2] == 0


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_alone_is_a_constant_model_and_a_warning(frame, label, tmp_path):
    df = frame.where(F.col("two") == label)
    with pytest.warns(UserWarning, match=f"'two' holds {label:.0f} alone: the model predicts it"):
        model = KernelSVC(featuresCol="dense", labelCol="two").fit(df)
    model.save(str(tmp_path / "model"))
    for one in (model, KernelSVCModel.load(str(tmp_path / "model"))):
        assert (one.reason, one.numSupportVectors) == ("constant_label", 0)
        assert set(raw(one, frame)[1]) == {label}


def test_a_callback_sees_each_pass_and_stops_it(frame, from_few):
    seen = []

    def watch(state, record):
        seen.append((state.dual_objective, state.n_support_vectors, state.n_violators))
        return Stop("enough") if record.iteration == 1 else None

    model = KernelSVC(featuresCol="dense", labelCol="two").setCallbacks([watch]).fit(frame)
    assert len(seen) == len(model.history) == 2
    assert (model.reason, model.dualObjective) == ("enough", seen[1][0])
    assert model.numSupportVectors == seen[1][1]
    assert seen[0][2] > 0
    told = [record.values for record in model.history]
    assert [(t["n_support_vectors"], t["n_violators"]) for t in told] == [s[1:] for s in seen]


def test_many_support_vectors_are_a_warning_and_more_than_allowed_an_error(frame, monkeypatch):
    monkeypatch.setattr(kernel_estimator, "MANY_SUPPORT_VECTORS", 10)
    svc = KernelSVC(featuresCol="dense", labelCol="two", C=0.01)
    with pytest.warns(UserWarning, match="of 178 rows are support vectors"):
        svc.fit(frame)
    with pytest.raises(ValueError, match=r"maxSupportVectors: expected up to 20 .* approximation"):
        svc.setMaxSupportVectors(20).fit(frame)


@pytest.mark.parametrize(("params", "match"), [
    ({"kernel": "cosine"}, "param kernel: expected one of .* found 'cosine'"),
    ({"gamma": "wide"}, "param gamma: expected scale, auto or a number above 0, found 'wide'"),
    ({"gamma": 0.0}, "param gamma: .* found 0.0"),
    ({"C": 0.0}, "param C: expected a number above 0, found 0.0"),
    ({"C": float("nan")}, "param C: expected a number above 0, found nan"),
    ({"tol": 0.0}, "param tol: expected a number above 0, found 0.0"),
    ({"degree": 0}, "param degree: expected 1 or more, found 0"),
    ({"coef0": float("inf")}, "param coef0: expected a finite number, found inf"),
    ({"maxIter": -1}, "param maxIter: expected 0 or more, found -1"),
    ({"aggregationDepth": 1}, "param aggregationDepth: expected 2 or more, found 1"),
    ({"classWeight": "even"}, "param classWeight: expected balanced or numbers .* found 'even'"),
    ({"classWeight": {1: 0.0}}, "param classWeight: expected numbers above 0, found {1: 0.0}"),
    ({"classWeight": {2: 1.0}}, r"classWeight: expected labels of .* 'two', 0 to 1, found \[2\]"),
    ({"labelCol": "none"}, "label column 'none'"),
    ({"weightCol": "none"}, "weight column 'none'"),
    ({"labelCol": "w"}, "label column 'w': expected class labels 0, 1, ..., k-1, found 0.5"),
], ids=str)  # fmt: skip
def test_what_no_fit_could_use_is_refused(frame, params, match):
    with pytest.raises(ValueError, match=match):
        KernelSVC(**{"featuresCol": "dense", "labelCol": "two", **params}).fit(frame)
