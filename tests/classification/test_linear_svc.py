from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pyspark.ml import classification as mllib
from pyspark.ml.linalg import Vectors
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.svm import LinearSVC as ScikitLinearSVC

from data_frames import FittedOnce
from mllib_ext import fitting
from mllib_ext.classification import LinearSVC, LinearSVCModel
from mllib_ext.optimizers.loop import ConvergenceWarning

CANCER, IRIS = (load(return_X_y=True) for load in (load_breast_cancer, load_iris))
W = np.random.default_rng(0).integers(0, 3, 569).astype(float)
TIGHT: dict[str, Any] = {"tol": 1e-10, "maxIter": 300}


def frame(spark, X, y, parts=2):
    rows = [
        (Vectors.dense(x), float(t), float(w))
        for x, t, w in zip(X, y, np.resize(W, len(y)), strict=True)
    ]
    return spark.createDataFrame(rows, ["features", "label", "w"]).repartition(parts)


@pytest.fixture(scope="module")
def patients(spark):
    return frame(spark, *CANCER).cache()


@pytest.fixture(scope="module")
def flowers(spark):
    return frame(spark, *IRIS).cache()


@pytest.fixture(scope="module")
def fitted(patients):
    return FittedOnce(LinearSVC, patients)


def hinge(X, y, coef, intercept, reg, w=None, power=1):
    """The objective, with the penalty on standardised coefficients."""
    lack = np.maximum(0, 1 - (2 * y - 1) * (X @ coef + intercept))
    scaled = coef * X.std(axis=0, ddof=1)
    return np.average(lack**power, weights=w) + 0.5 * reg * scaled @ scaled


@pytest.mark.parametrize("reg", [0.01, 0.0])
def test_the_gap_is_proved_and_the_objective_is_below_pyspark_mls(fitted, patients, reg):
    X, y = CANCER
    ours, theirs = fitted(regParam=reg), mllib.LinearSVC(regParam=reg).fit(patients)
    found, expected = (
        hinge(X, y, model.coefficients.toArray(), model.intercept, reg) for model in (ours, theirs)
    )
    assert (ours.converged, ours.reason) == (True, "gap")
    assert 0 < ours.gap <= 1e-6 * max(found, 0.01)
    assert ours.history[-1].values["gap"] == ours.gap < ours.history[0].values["gap"]
    # The ridge in place of no penalty is in the history, and not in what is counted here.
    assert found <= ours.history[-1].loss * (1 + 1e-9)
    assert found < expected


@pytest.mark.parametrize("params", [{"regParam": 0.1, "fitIntercept": False}, {"regParam": 0.1}])
def test_a_squared_hinge_is_liblinears_where_nothing_is_regularised_but_coefficients(
    fitted, params
):
    X, y = CANCER
    fit_intercept = params.get("fitIntercept", True)
    model = fitted(loss="squared_hinge", **TIGHT, **params)
    Z = X / X.std(axis=0, ddof=1)
    # LIBLINEAR regularises its intercept too: a large scale makes that little.
    reference = ScikitLinearSVC(
        C=1 / (len(y) * 0.1), dual=False, tol=1e-10, max_iter=100_000,
        fit_intercept=fit_intercept, intercept_scaling=1e3,
    ).fit(Z, y)  # fmt: skip
    coef = reference.coef_.ravel()
    expected = hinge(Z, y, coef, reference.intercept_, 0.1, power=2)
    found = hinge(X, y, model.coefficients.toArray(), model.intercept, 0.1, power=2)
    assert found == pytest.approx(expected, rel=1e-5)
    assert found <= expected * (1 + 1e-9)


def test_solvers_of_the_squared_hinge_meet(fitted):
    params = {"loss": "squared_hinge", "regParam": 0.01, **TIGHT}
    models = [fitted(solver=solver, **params) for solver in ("newton", "l-bfgs", "tron")]
    for model in models[1:]:
        # Of the largest coefficient: the tolerance is on the gradient.
        largest = np.abs(models[0].coefficients).max()
        np.testing.assert_allclose(model.coefficients, models[0].coefficients, atol=1e-6 * largest)
    assert np.isnan(models[0].gap)


def test_the_bundle_has_a_certificate_too_and_more_rounds(fitted):
    bundle, interior = fitted(regParam=0.05, solver="bundle", tol=1e-3), fitted(regParam=0.05)
    assert bundle.reason == interior.reason == "gap"
    assert bundle.gap <= 1e-3 * bundle.history[-1].loss
    assert bundle.history[-1].loss - bundle.gap <= interior.history[-1].loss
    assert bundle.n_iter > interior.n_iter


def test_weights_count_as_repetitions(spark, fitted):
    X, y = CANCER
    weighted = fitted(regParam=0.01, weightCol="w", tol=1e-9, standardization=False)
    i = np.repeat(np.arange(len(y)), W.astype(int))
    repeated = LinearSVC(regParam=0.01, tol=1e-9, standardization=False)
    other = repeated.fit(frame(spark, X[i], y[i]).drop("w"))
    assert other.history[-1].loss == pytest.approx(weighted.history[-1].loss, rel=2e-9)


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_partitions_an_empty_one_among_them_do_not_change_the_model(
    spark, fitted, parts, monkeypatch
):
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    df = frame(spark, CANCER[0], CANCER[1], parts)
    df = df.union(df.limit(0)) if parts == 1 else df
    model, whole = LinearSVC(regParam=0.01).fit(df), fitted(regParam=0.01)
    # Sums in another order, amplified by the last Newton systems.
    assert model.history[-1].loss == pytest.approx(whole.history[-1].loss, rel=1e-7)
    assert model.n_iter == whole.n_iter


@pytest.mark.parametrize("multi_class", ["ovr", "crammer_singer"])
def test_three_classes_are_scikit_learns_without_an_intercept(flowers, multi_class):
    X, y = IRIS
    model = LinearSVC(regParam=0.01, multiClass=multi_class, fitIntercept=False, tol=1e-9).fit(
        flowers
    )
    Z = X / X.std(axis=0, ddof=1)
    reference = ScikitLinearSVC(
        C=1 / (len(y) * 0.01), loss="hinge", dual=True, fit_intercept=False, tol=1e-8,
        max_iter=1_000_000, multi_class=multi_class,
    ).fit(Z, y)  # fmt: skip
    coef = model.coefficientMatrix.toArray() * X.std(axis=0, ddof=1)
    # Strongly convex (0.01): coefficients are this near at objectives that agree to 1e-7.
    np.testing.assert_allclose(coef, reference.coef_, atol=0.01)
    assert model.interceptVector.toArray().tolist() == [0.0, 0.0, 0.0]
    predicted = [row.prediction for row in model.transform(flowers).collect()]
    labels = [row.label for row in flowers.collect()]
    assert np.mean(np.equal(predicted, labels)) == pytest.approx(reference.score(Z, y), abs=0.01)


def test_columns_of_predictions_are_those_of_a_row(fitted, flowers, patients):
    row = patients.first()
    binary = fitted(regParam=0.01)
    margin = float(binary.coefficients.dot(row.features) + binary.intercept)
    out = binary.transform(patients.limit(1)).first()
    np.testing.assert_allclose(out.rawPrediction, [-margin, margin])
    assert binary.predictRaw(row.features) == out.rawPrediction
    for threshold, expected in ((margin - 1, 1.0), (margin, 0.0), (np.inf, 0.0)):
        assert binary.copy().setThreshold(threshold).predict(row.features) == expected
    three = LinearSVC(regParam=0.01).fit(flowers)
    out = three.transform(flowers.limit(1)).first()
    assert three.predict(out.features) == out.prediction == np.argmax(out.rawPrediction)
    with pytest.raises(ValueError, match=r"coefficients: expected .* found .* 3 classes"):
        _ = three.coefficients


def test_summaries_are_pyspark_mls(fitted, flowers, patients):
    model = fitted(regParam=0.01)
    summary, evaluated = model.summary(), model.evaluate(patients)
    assert isinstance(summary, mllib.LinearSVCTrainingSummary)
    assert summary.objectiveHistory == [record.loss for record in model.history]
    assert summary.areaUnderROC == evaluated.areaUnderROC > 0.99
    three = LinearSVC(regParam=0.01).fit(flowers)
    assert three.summary().accuracy == three.evaluate(flowers).accuracy > 0.9
    assert three.summary().totalIterations == three.n_iter


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_alone_makes_a_constant_model_and_one_warning(spark, label):
    df = frame(spark, CANCER[0][:20], np.full(20, label))
    with pytest.warns(UserWarning, match=f"holds {label:g} alone") as warned:
        model = LinearSVC().fit(df)
    assert len(warned) == 1
    assert (model.intercept, model.gap, model.reason) == (2 * label - 1, 0.0, "constant_label")
    assert not model.coefficients.toArray().any()
    assert {row.prediction for row in model.transform(df).collect()} == {label}


def test_a_run_that_ends_early_is_one_warning_and_keeps_its_gap(patients, tmp_path):
    with pytest.warns(ConvergenceWarning, match="raise maxIter or tol"):
        model = LinearSVC(maxIter=2, regParam=0.01).fit(patients)
    assert model.gap > 1e-3
    path = str(tmp_path / "model")
    model.save(path)
    loaded = LinearSVCModel.load(path)
    assert (loaded.gap, loaded.converged) == (model.gap, False)
    assert not loaded.hasSummary


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"loss": "logistic"}, "loss"),
        ({"multiClass": "ovo"}, "multiClass"),
        ({"multiClass": "crammer_singer", "loss": "squared_hinge"}, "multiClass"),
        ({"solver": "newton"}, "solver"),
        ({"solver": "bundle", "loss": "squared_hinge"}, "solver"),
        ({"regParam": -1.0}, "regParam"),
        ({"threshold": float("nan")}, "threshold"),
    ],
)
def test_what_no_fit_could_use_is_refused(patients, params, name):
    with pytest.raises(ValueError, match=f"param {name}: expected .*found"):
        LinearSVC(**params).fit(patients)


@pytest.mark.parametrize(("n", "d", "reg"), [(40, 2, 0.0), (200, 5, 0.0), (40, 2, 1e-6)])
def test_the_gap_is_proved_where_rows_can_be_told_apart(spark, n, d, reg):
    X = np.random.default_rng(3).normal(size=(n, d))
    y = X[:, 0] > 0
    model, other = (
        LinearSVC(solver=solver, regParam=reg).fit(frame(spark, X, y))
        for solver in ("interior-point", "bundle")
    )
    margins = (2 * y - 1) * (X @ model.coefficients.toArray() + model.intercept)
    assert margins.min() >= 1 - 1e-5
    assert (model.converged, model.reason) == (True, "gap")
    assert 0 < model.gap <= 1e-8
    assert model.history[-1].loss == pytest.approx(other.history[-1].loss, abs=2e-8)
    assert model.n_iter < 50
