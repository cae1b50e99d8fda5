"""OneClassSVM in memory and on Spark, against scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM as Oracle

from arrays import Arrays
from data_frames import every_kind_of_features
from mllib_ext import cascade, fitting
from mllib_ext.anomaly import OneClassSVM, OneClassSVMModel
from mllib_ext.cascade import CascadeSettings
from mllib_ext.kernels import Kernel
from mllib_ext.one_class import OneClassProblem

CANCER = load_breast_cancer()
X = StandardScaler().fit_transform(CANCER.data)
N, D = X.shape
GAMMA = 1 / (D * X.var())
ORDERS = {
    "shuffled": np.random.default_rng(0).permutation(N),
    "by distance": np.argsort((X**2).sum(axis=1)),  # anomalies stand together
}
# Two solutions to 1e-9 or less, by kernels in single precision.
CLOSE: Any = {"rtol": 0.0, "atol": 1e-5}
TINY = X[:120, :5] * (np.abs(X[:120, :5]) > 0.3)
W = 0.5 + np.arange(len(TINY)) % 3


def solved(data, nu, total=N, sample=20, **params):
    problem = OneClassProblem(Kernel("rbf", GAMMA), nu * total, 10_000, sample=sample)
    return problem, cascade.fit(data, problem, CascadeSettings(**{"tol": 1e-9, **params}))


@pytest.mark.parametrize("nodes", [1, 2, 5])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("nu", [0.05, 0.3, 0.9])
def test_decision_values_and_support_vectors_are_scikit_learns(nodes, order, nu):
    problem, result = solved(Arrays.of(X[ORDERS[order]], parts=nodes), nu)
    oracle = Oracle(nu=nu, gamma=GAMMA, tol=1e-10).fit(X)
    machine = result.state.machine
    assert result.reason == "kkt"
    assert result.n_iter > 0
    np.testing.assert_allclose(
        machine.decisions(problem.kernel, X), oracle.decision_function(X), **CLOSE
    )
    assert machine.alpha.sum() == pytest.approx(nu * N, rel=1e-12)
    assert len(machine) == len(oracle.support_)
    coef = oracle.dual_coef_[0]
    dual = -0.5 * coef @ problem.kernel(oracle.support_vectors_, oracle.support_vectors_) @ coef
    assert result.state.dual_objective == pytest.approx(dual, rel=1e-6)


def test_every_pass_raises_the_dual_objective_and_one_is_not_exact():
    _, result = solved(Arrays.of(X[ORDERS["by distance"]], parts=5), 0.1)
    losses = [record.loss for record in result.history]
    assert (np.diff(losses) < 0).all()
    worst = [record.gradient_norm for record in result.history]
    assert worst[1] > 1e-3
    assert worst[-1] <= 1e-9


def test_the_first_machine_is_of_rows_enough_for_its_coefficients_by_weight():
    w = np.random.default_rng(1).random(N) + 0.01
    data = Arrays.of(X, w=w, parts=3)
    problem, result = solved(data, 0.4, w.sum())
    oracle = Oracle(nu=0.4, gamma=GAMMA, tol=1e-10).fit(X, sample_weight=w)
    found = result.state.machine.decisions(problem.kernel, X)
    np.testing.assert_allclose(found, oracle.decision_function(X), **CLOSE)


def test_sparse_rows_have_the_machine_of_dense_ones():
    few = X * (np.abs(X) > 1.5)
    problem, dense = solved(Arrays.of(few, parts=2), 0.2)
    _, sparse = solved(Arrays.of(sp.csr_array(few), parts=2), 0.2)
    np.testing.assert_allclose(
        sparse.state.machine.decisions(problem.kernel, sp.csr_array(few)),
        dense.state.machine.decisions(problem.kernel, few),
        **CLOSE,
    )


@pytest.fixture(scope="module")
def frame(spark):
    with every_kind_of_features(spark, TINY, w=W) as df:
        yield df


def raw(model, df):
    rows = model.transform(df).orderBy("i").select("rawPrediction", "prediction").collect()
    return np.array(rows).T


@pytest.mark.parametrize("params", [
    {"nu": 0.1}, {"gamma": 0.7}, {"gamma": "auto", "nu": 0.9},
], ids=str)  # fmt: skip
def test_predictions_are_scikit_learns(frame, params, tmp_path):
    oracle = Oracle(tol=1e-10, **params).fit(TINY)
    model = OneClassSVM(featuresCol="dense", tol=1e-8, **params).fit(frame)
    values, predictions = raw(model, frame)
    np.testing.assert_allclose(values, oracle.decision_function(TINY), **CLOSE)
    sure = np.abs(values) > CLOSE["atol"]  # on the boundary the last bits decide
    np.testing.assert_array_equal(predictions[sure], oracle.predict(TINY)[sure])
    assert set(predictions) == {1.0, -1.0}
    assert model.offset == pytest.approx(oracle.offset_[0], abs=1e-5)
    row = Vectors.dense(TINY[3])
    assert model.predictRaw(row) == pytest.approx(values[3], rel=1e-12)
    assert model.predict(row) == predictions[3]


@pytest.mark.parametrize("partitions", [1, 2, 7])
def test_partitions_on_executors_give_the_same_weighted_model_also_sparse_and_saved(
    frame, partitions, monkeypatch, tmp_path
):
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    df = frame.repartitionByRange(partitions, F.least("i", F.lit(partitions - 2)))
    model = OneClassSVM(featuresCol="sparse", weightCol="w", nu=0.3, tol=1e-8).fit(df)
    oracle = Oracle(nu=0.3, tol=1e-10).fit(TINY, sample_weight=W)
    np.testing.assert_allclose(raw(model, frame)[0], oracle.decision_function(TINY), **CLOSE)
    assert model.converged
    model.save(str(tmp_path / "model"))
    loaded = OneClassSVMModel.load(str(tmp_path / "model"))
    assert loaded.supportVectors.shape == model.supportVectors.shape
    assert (loaded.offset, loaded.dualObjective) == (model.offset, model.dualObjective)
    np.testing.assert_array_equal(raw(loaded, frame), raw(model, frame))


def test_sparks_evaluator_reads_the_decision_values(frame):
    model = OneClassSVM(featuresCol="dense", nu=0.1).fit(frame)
    df = model.transform(frame).withColumn("label", (F.col("prediction") > 0).cast("double"))
    assert BinaryClassificationEvaluator().evaluate(df) == 1.0


@pytest.mark.parametrize(("params", "match"), [
    ({"nu": 0.0}, "param nu: expected a number above 0 and below 1, found 0.0"),
    ({"nu": 1.0}, "param nu: .* found 1.0"),
    ({"nu": float("nan")}, "param nu: .* found nan"),
    ({"kernel": "cosine"}, "param kernel: expected one of .* found 'cosine'"),
    ({"maxSupportVectors": 20}, "expected up to 20 .* nu = 0.5 of 120 rows .* least 60"),
    ({"weightCol": "none"}, "weight column 'none'"),
], ids=str)  # fmt: skip
def test_what_no_fit_could_use_is_refused(frame, params, match):
    with pytest.raises(ValueError, match=match):
        OneClassSVM(**{"featuresCol": "dense", **params}).fit(frame)
