"""Elastic nets, bounds and Huber's loss end to end, against pyspark.ml and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyspark.ml.classification as mllib_classification
import pyspark.ml.regression as mllib_regression
import pytest
from pyspark.ml.linalg import Matrices, Vectors
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import ElasticNet, HuberRegressor
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression

from data_frames import FittedOnce
from mllib_ext import fitting
from mllib_ext.classification import LogisticRegression
from mllib_ext.optimizers.loop import Change
from mllib_ext.regression import LinearRegression, LinearRegressionModel

TIGHT: dict[str, Any] = {"tol": 1e-12, "maxIter": 2000}
IRIS, DIABETES = load_iris(), load_diabetes(scaled=False)
W = np.random.default_rng(0).random(len(DIABETES.target)) + 0.5
# OWL-QN's stop leaves pyspark.ml's coefficients this far from the optimum (of the largest one),
# where features are correlated; scikit-learn's coordinate descent, below, ends nearer.
RELATIVE = 1e-5


def rows(spark, X, y):
    names = ["features", "sparse", "label", "w"]
    data = [
        (Vectors.dense(x), Vectors.sparse(len(x), list(enumerate(x))), float(t), float(w))
        for x, t, w in zip(X, y, W, strict=False)
    ]
    return spark.createDataFrame(data, names).repartition(2)


@pytest.fixture(scope="module")
def flowers(spark):
    df = rows(spark, IRIS.data, IRIS.target).persist()
    yield df
    df.unpersist()


@pytest.fixture(scope="module")
def two_flowers(spark):
    df = rows(spark, IRIS.data[50:], IRIS.target[50:] - 1).persist()
    yield df
    df.unpersist()


@pytest.fixture(scope="module")
def patients(spark):
    df = rows(spark, DIABETES.data, DIABETES.target).persist()
    yield df
    df.unpersist()


@pytest.fixture(scope="module")
def theirs_fitted(patients):
    return FittedOnce(mllib_regression.LinearRegression, patients)


def logistic(model):
    return np.append(model.coefficientMatrix.toArray(), model.interceptVector.toArray())


def linear(model):
    return np.append(model.coefficients.toArray(), [model.intercept, model.scale])


def assert_not_above(ours, theirs):
    found, expected = (m.summary.objectiveHistory[-1] for m in (ours, theirs))
    assert found <= expected * (1 + 1e-9)


# --- L1 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {"elasticNetParam": 1.0},
        {"elasticNetParam": 0.5, "weightCol": "w", "featuresCol": "sparse"},
        {"elasticNetParam": 0.3, "standardization": False},
        {"elasticNetParam": 0.5, "solver": "owl-qn"},
        # Without an intercept pyspark.ml takes 2,000 iterations: scikit-learn is asked, below.
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_logistic_elastic_net_is_pyspark_mls(flowers, two_flowers, classes, params):
    df = flowers if classes == 3 else two_flowers
    ours = LogisticRegression(regParam=0.05, **TIGHT, **params).fit(df)
    shared = {name: value for name, value in params.items() if name != "solver"}
    theirs = mllib_classification.LogisticRegression(regParam=0.05, **TIGHT, **shared).fit(df)
    found, expected = logistic(ours), logistic(theirs)
    np.testing.assert_allclose(found, expected, atol=RELATIVE * np.abs(expected).max())
    assert_not_above(ours, theirs)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_logistic_elastic_net_without_an_intercept_is_scikit_learns(
    flowers, two_flowers, classes
):
    first = 0 if classes == 3 else 50
    X, y, df = IRIS.data[first:], IRIS.target[first:], (flowers if classes == 3 else two_flowers)
    deviation = X.std(axis=0, ddof=1)
    reference = SklearnLogisticRegression(
        solver="saga", l1_ratio=0.5, C=1 / (0.05 * len(y)), fit_intercept=False, tol=1e-12,
        max_iter=100_000,
    ).fit(X / deviation, y)  # fmt: skip
    model = LogisticRegression(
        regParam=0.05, elasticNetParam=0.5, fitIntercept=False, solver="l-bfgs", **TIGHT
    ).fit(df)
    expected = reference.coef_ / deviation
    found = model.coefficientMatrix.toArray()
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())
    assert not model.interceptVector.toArray().any()


@pytest.mark.parametrize(
    "params",
    [
        {"elasticNetParam": 1.0},
        {"elasticNetParam": 0.5, "weightCol": "w", "featuresCol": "sparse"},
        {"elasticNetParam": 0.5, "solver": "l-bfgs"},
        {"elasticNetParam": 0.5, "solver": "owl-qn"},
        # Without standardisation pyspark.ml takes 352 iterations: scikit-learn is asked, below.
    ],
    ids=str,
)
def test_a_linear_elastic_net_is_pyspark_mls(patients, theirs_fitted, params):
    ours = LinearRegression(regParam=2.0, **TIGHT, **params).fit(patients)
    shared = {**params, "solver": "l-bfgs" if "solver" in params else "auto"}
    theirs = theirs_fitted(regParam=2.0, **TIGHT, **shared)
    found, expected = linear(ours), linear(theirs)
    np.testing.assert_allclose(found, expected, atol=RELATIVE * np.abs(expected).max())
    assert_not_above(ours, theirs)


@pytest.mark.parametrize("share", [0.5, 1.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_a_linear_elastic_net_is_scikit_learns(patients, share, fit_intercept):
    X, y = DIABETES.data, DIABETES.target
    # pyspark.ml's ridge is in units of the label's deviation, scikit-learn's is not.
    l1, l2 = 2.0 * share, 2.0 * (1 - share) / y.std()
    reference = ElasticNet(
        alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), tol=1e-13, max_iter=1_000_000,
        fit_intercept=fit_intercept,
    ).fit(X, y)  # fmt: skip
    model = LinearRegression(
        regParam=2.0, elasticNetParam=share, standardization=False, fitIntercept=fit_intercept,
        **TIGHT,
    ).fit(patients)  # fmt: skip
    scale = np.abs(reference.coef_).max()
    np.testing.assert_allclose(model.coefficients.toArray(), reference.coef_, atol=1e-6 * scale)
    assert model.intercept == pytest.approx(reference.intercept_, rel=1e-6)


def test_least_squares_with_an_l1_penalty_need_no_round_after_the_first(patients, monkeypatch):
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    model = LinearRegression(regParam=2.0, elasticNetParam=0.5).fit(patients)
    assert model.n_iter > 0
    assert [record.rounds for record in model.history] == [()] * len(model.history)


def test_a_run_may_change_the_strength_of_an_elastic_net(two_flowers):
    def stronger(state, record):
        return Change(reg_param=0.1) if record.iteration == 2 else None

    params: dict[str, Any] = {"elasticNetParam": 0.5, **TIGHT}
    changed = LogisticRegression(regParam=0.01, **params).setCallbacks([stronger])
    expected = LogisticRegression(regParam=0.1, **params).fit(two_flowers)
    np.testing.assert_allclose(logistic(changed.fit(two_flowers)), logistic(expected), atol=1e-7)


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {"lowerBoundsOnCoefficients": 0.0},
        {"upperBoundsOnCoefficients": 0.3, "lowerBoundsOnIntercepts": 0.1},
        {"lowerBoundsOnCoefficients": -0.2, "upperBoundsOnIntercepts": 0.1,
         "standardization": False, "weightCol": "w"},
        {"lowerBoundsOnCoefficients": -0.1, "upperBoundsOnCoefficients": 0.1},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("classes", [2, 3])
def test_bounds_hold_and_the_objective_is_never_above_pyspark_mls(
    flowers, two_flowers, classes, params
):
    df, k = (flowers, 3) if classes == 3 else (two_flowers, 1)
    given: dict[str, Any] = {"regParam": 0.02, **TIGHT, **params}
    for name in params:
        if name.endswith("Coefficients"):
            given[name] = Matrices.dense(k, 4, [params[name]] * (4 * k))
        elif name.endswith("Intercepts"):
            given[name] = Vectors.dense([params[name]] * k)
    ours = LogisticRegression(**given).fit(df)
    theirs = mllib_classification.LogisticRegression(**given).fit(df)
    coef, intercepts = ours.coefficientMatrix.toArray(), ours.interceptVector.toArray()
    assert (coef >= params.get("lowerBoundsOnCoefficients", -np.inf) - 1e-15).all()
    assert (coef <= params.get("upperBoundsOnCoefficients", np.inf) + 1e-15).all()
    assert (intercepts >= params.get("lowerBoundsOnIntercepts", -np.inf)).all()
    assert (intercepts <= params.get("upperBoundsOnIntercepts", np.inf)).all()
    assert ours.converged
    # Spark's L-BFGS-B stops up to 1e-7 above the optimum: coefficients tell little.
    assert_not_above(ours, theirs)
    assert ours.summary.objectiveHistory[-1] == pytest.approx(
        theirs.summary.objectiveHistory[-1], rel=1e-5
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"lowerBoundsOnCoefficients": Matrices.dense(1, 3, [0.0] * 3)}, r"shape \(3, 4\).*\(1, 3"),
        ({"lowerBoundsOnIntercepts": Vectors.dense([0.0])}, r"expected the shape \(3,\)"),
        ({"lowerBoundsOnIntercepts": Vectors.dense([np.nan] * 3)}, "numbers or infinities"),
        ({"lowerBoundsOnIntercepts": Vectors.dense([2.0] * 3),
          "upperBoundsOnIntercepts": Vectors.dense([1.0] * 3)}, "lower bounds up to the upper"),
        ({"lowerBoundsOnIntercepts": Vectors.dense([0.0] * 3), "fitIntercept": False},
         "no bounds without an intercept"),
        ({"lowerBoundsOnIntercepts": Vectors.dense([0.0] * 3), "elasticNetParam": 0.5},
         "param elasticNetParam: expected 0"),
        ({"lowerBoundsOnIntercepts": Vectors.dense([0.0] * 3), "solver": "newton"},
         "param solver: expected auto, l-bfgs or owl-qn with bounds"),
        ({"elasticNetParam": 0.5, "solver": "gd"}, "param solver: expected auto, l-bfgs or owl-qn"),
        ({"elasticNetParam": 1.5}, r"param elasticNetParam: expected a number in \[0, 1\]"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(flowers, params, message):
    with pytest.raises(ValueError, match=message):
        LogisticRegression(**params).fit(flowers)


# --- Huber's loss -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"regParam": 0.1, "weightCol": "w", "featuresCol": "sparse"},
        {"regParam": 0.1, "fitIntercept": False, "epsilon": 2.0},
        {"regParam": 0.1, "standardization": False},
    ],
    ids=str,
)
def test_a_robust_regression_is_pyspark_mls(patients, params):
    ours = LinearRegression(loss="huber", **TIGHT, **params).fit(patients)
    theirs = mllib_regression.LinearRegression(loss="huber", **TIGHT, **params).fit(patients)
    found, expected = linear(ours), linear(theirs)
    # Spark's stop again: its objective is 1e-11 above ours, its coefficients are off by 2e-5.
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert_not_above(ours, theirs)


def test_a_robust_regression_is_scikit_learns(patients, tmp_path):
    X, y = DIABETES.data, DIABETES.target
    scaled = (X - X.mean(axis=0)) / X.std(axis=0)
    reference = HuberRegressor(alpha=0.0, tol=1e-12, max_iter=100_000).fit(scaled, y)
    model = LinearRegression(loss="huber", **TIGHT).fit(patients)
    scale = np.abs(reference.coef_).max()
    np.testing.assert_allclose(
        model.coefficients.toArray() * X.std(axis=0), reference.coef_, atol=1e-4 * scale
    )  # its stop leaves scikit-learn's objective 1e-10 above the optimum
    assert model.scale == pytest.approx(reference.scale_, rel=1e-5)
    path = str(tmp_path / "model")
    model.save(path)
    assert LinearRegressionModel.load(path).scale == model.scale


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"loss": "absolute"}, "loss"),
        ({"epsilon": 1.0}, "epsilon"),
        ({"loss": "huber", "elasticNetParam": 0.5}, "elasticNetParam"),
        ({"loss": "huber", "solver": "normal"}, "solver"),
        ({"elasticNetParam": 0.5, "solver": "newton"}, "solver"),
    ],
)
def test_what_no_solver_can_do_is_refused(patients, params, name):
    with pytest.raises(ValueError, match=f"param {name}: expected .*found"):
        LinearRegression(**params).fit(patients)
