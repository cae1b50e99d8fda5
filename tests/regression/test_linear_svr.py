from __future__ import annotations

import numpy as np
import pytest
from pyspark.ml.linalg import Vectors
from sklearn.datasets import load_diabetes
from sklearn.svm import LinearSVR as ScikitLinearSVR

from data_frames import FittedOnce
from mllib_ext.regression import LinearSVR, LinearSVRModel

X, Y = load_diabetes(return_X_y=True, scaled=False)
SCALE = X.std(axis=0, ddof=1)
REG = 0.1


@pytest.fixture(scope="module")
def fitted(spark):
    rows = [(Vectors.dense(x), float(t), float(i % 3)) for i, (x, t) in enumerate(zip(X, Y))]  # noqa: B905
    return FittedOnce(LinearSVR, spark.createDataFrame(rows, ["features", "label", "w"]).cache())


def objective(coef, intercept, epsilon, power, w=None):
    excess = np.maximum(0, np.abs(X @ coef + intercept - Y) - epsilon)
    return np.average(excess**power, weights=w) + 0.5 * REG * np.sum((coef * SCALE) ** 2)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(
    ("loss", "power"), [("epsilon_insensitive", 1), ("squared_epsilon_insensitive", 2)]
)
def test_the_objective_is_at_scikit_learns_optimum(fitted, loss, power, fit_intercept):
    params = {"loss": loss, "epsilon": 5.0, "fitIntercept": fit_intercept}
    model = fitted(regParam=REG, tol=1e-9, **params)
    reference = ScikitLinearSVR(
        C=1 / (len(Y) * REG), loss=loss, epsilon=5.0, fit_intercept=fit_intercept,
        intercept_scaling=1e3, dual=power == 1, tol=1e-8, max_iter=1_000_000, random_state=0,
    )  # fmt: skip
    if power == 1 and fit_intercept:
        reference.set_params(intercept_scaling=100.0)  # more, and its coordinate descent crawls
    reference.fit(X / SCALE, Y)
    found = objective(model.coefficients.toArray(), model.intercept, 5.0, power)
    expected = objective(reference.coef_ / SCALE, reference.intercept_, 5.0, power)
    assert found <= expected * (1 + 1e-9)
    # LIBLINEAR regularises its intercept: free ones are a little lower.
    assert found == pytest.approx(expected, rel=1e-3 if fit_intercept else 1e-5)
    assert model.converged


def test_the_gap_is_proved_for_the_loss_without_a_gradient_alone(fitted, tmp_path):
    model = fitted(regParam=REG)
    assert model.reason == "gap"
    assert 0 < model.gap <= 1e-6 * model.history[-1].loss
    assert np.isnan(fitted(loss="squared_epsilon_insensitive").gap)
    path = str(tmp_path / "model")
    model.save(path)
    assert LinearSVRModel.load(path).gap == model.gap


def test_weights_take_part(fitted):
    w = np.arange(len(Y)) % 3
    model, plain = fitted(regParam=REG, weightCol="w", standardization=False), fitted(regParam=REG)
    lack = np.abs(X @ model.coefficients.toArray() + model.intercept - Y)
    penalty = 0.5 * REG * model.coefficients.toArray() @ model.coefficients.toArray()
    assert model.history[-1].loss == pytest.approx(np.average(lack, weights=w) + penalty, rel=1e-9)
    assert model.intercept != plain.intercept


def test_the_bundle_ends_at_the_same_objective(fitted):
    bundle = fitted(regParam=10.0, solver="bundle", tol=1e-4)
    interior = fitted(regParam=10.0)
    assert bundle.converged
    assert bundle.history[-1].loss == pytest.approx(interior.history[-1].loss, rel=2e-4)


@pytest.mark.parametrize(
    ("params", "name"),
    [({"loss": "huber"}, "loss"), ({"epsilon": -1.0}, "epsilon"), ({"solver": "tron"}, "solver")],
)
def test_what_no_fit_could_use_is_refused(fitted, params, name):
    with pytest.raises(ValueError, match=f"param {name}: expected .*found"):
        fitted(**params)
