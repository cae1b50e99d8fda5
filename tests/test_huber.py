from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import HuberRegressor

from arrays import Arrays, slopes
from mllib_ext.huber import SMALLEST, Huber
from mllib_ext.objective import Coordinates
from mllib_ext.optimizers import proximal
from mllib_ext.optimizers.smooth import minimize
from mllib_ext.penalties import L2

N, D = 200, 4


def rows():
    """Features off centre and on several scales, a constant one, a tenth of outliers, weights."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((N, D)) * [1.0, 3.0, 0.2, 0.0] + [0.0, 2.0, -1.0, 5.0]
    X[rng.random((N, D)) < 0.5] = 0.0  # few enough for CSR
    X[:, 3] = 5.0
    y = X @ [1.0, -0.5, 2.0, 0.0] + 4.0 + rng.standard_normal(N)
    y[::10] += 30.0
    return X, y, rng.uniform(0, 2, N)


def make(kind="dense", *, intercept=True, reg=0.1, weighted=True, parts=3) -> Any:
    X, y, w = rows()
    scale = X.std(axis=0)
    scale[3] = 0.0
    coordinates = Coordinates(X.mean(axis=0) if intercept else np.zeros(D), scale, 1, intercept)
    data = sp.csr_array(X) if kind == "sparse" else X
    return Huber(
        Arrays.of(data, y, w if weighted else None, parts), coordinates, L2(reg, np.ones(D))
    )


def fit(objective, start=None, **settings):
    y = np.concatenate([b.y for b in objective.blocks.blocks])
    start = objective.start(y.mean(), y.std()) if start is None else start
    settings = {"tol": 1e-13, "reg_param": objective.penalty.strength} | settings
    return minimize(proximal, objective.regularized, start, proximal.SETTINGS(**settings))


def point(objective, seed=0):
    v = np.random.default_rng(seed).uniform(-1, 1, len(objective.nonsmooth.weight))
    v[-1] = 2.0
    return v


kinds = pytest.mark.parametrize("kind", ["dense", "sparse"])
with_and_without_intercept = pytest.mark.parametrize("intercept", [True, False])


@kinds
def test_the_objective_is_its_formula(kind):
    objective = make(kind)
    X, y, w = rows()
    v = point(objective)
    coef = np.append(v[:3] / objective.coordinates.scale[:3], 0.0)
    z = ((X - X.mean(axis=0)) @ coef + v[4] - y) / 2.0
    huber = np.where(np.abs(z) < 1.35, z**2, 2 * 1.35 * np.abs(z) - 1.35**2)
    expected = w @ (2.0 + huber * 2.0) / 2 / w.sum() + 0.05 * v[:4] @ v[:4]
    assert objective.value_and_gradient(v)[0] == pytest.approx(expected, rel=1e-13)
    assert 0 < (np.abs(z) < 1.35).mean() < 1  # both branches


@kinds
@with_and_without_intercept
def test_derivatives_are_those_of_the_value(kind, intercept):
    objective = make(kind, intercept=intercept)
    v, p = point(objective), point(objective, 1)
    value, gradient, H = objective.value_gradient_hessian(v)
    # Central differences, h = 1e-6, of values below 100: eps * 100 / h = 2e-8. No row changes its
    # branch on so short a way.
    expected = slopes(lambda u: objective.value_and_gradient(u)[0], v)
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-7)
    expected = slopes(lambda u: objective.value_and_gradient(u)[1], v)
    np.testing.assert_allclose(H, expected, rtol=1e-7, atol=1e-7)
    assert np.linalg.eigvalsh(H).min() > -1e-12  # convex

    again, gradient_again = objective.value_and_gradient(v)
    assert again == pytest.approx(value, rel=1e-13)
    np.testing.assert_allclose(gradient_again, gradient, atol=1e-13)
    steps = np.array([0.0, 0.5, 8.0, -0.5])
    values, along = objective.along(v, p, steps)
    for t, f, slope in zip(steps, values, along, strict=True):
        there, turned = objective.value_and_gradient(v + t * p)
        assert f == pytest.approx(there, rel=1e-12)
        assert slope == pytest.approx(turned @ p, rel=1e-11, abs=1e-11)


def test_a_sampled_hessian_is_near_the_whole(monkeypatch):
    monkeypatch.setattr("mllib_ext.objective.SAMPLED_ROWS", 10)
    objective = make(weighted=False)
    v = fit(objective).state.v
    value, gradient, H = objective.value_gradient_curvature(v)
    whole = objective.value_gradient_hessian(v)
    assert value == whole[0]
    np.testing.assert_array_equal(gradient, whole[1])
    live = [0, 1, 2, 4, 5]  # the constant column counts as an average one in the sample
    assert not np.array_equal(H[0], whole[2][0])
    np.testing.assert_allclose(H[live, live], whole[2][live, live], rtol=0.5)


@pytest.mark.parametrize("alpha", [0.0, 20.0])
def test_the_optimum_is_scikit_learns(alpha):
    X, y, w = rows()
    X = ((X - X.mean(axis=0)) / np.where(X.std(axis=0) > 0, X.std(axis=0), 1))[:, :3]
    reference = HuberRegressor(alpha=alpha, tol=1e-9, max_iter=10000).fit(X, y, w)
    data = Arrays.of(X, y, w, 3)
    coordinates = Coordinates(np.zeros(3), np.ones(3), 1, True)
    objective = Huber(data, coordinates, L2(alpha / w.sum(), np.ones(3)))
    result = fit(objective)
    coef, intercept, sigma = objective.to_data(result.state.v)
    # Its L-BFGS-B ends a loss of 1e-11 above the minimum: parameters are good to the root of it.
    expected = np.append(reference.coef_, [reference.intercept_, reference.scale_])
    np.testing.assert_allclose([*coef, intercept, sigma], expected, atol=5e-6)
    theirs = objective.value_and_gradient(expected)[0]
    assert result.state.loss <= theirs
    assert theirs == pytest.approx(result.state.loss, rel=1e-10)
    assert result.state.gradient_norm < 1e-9
    assert data.rounds.total() <= 25


def test_outliers_do_not_move_it_further_when_they_move():
    X, y, _ = rows()
    near, far = (
        fit(Huber(Arrays.of(X[:, :3], y + (np.arange(N) % 10 == 0) * more),
                  Coordinates(X[:, :3].mean(axis=0), X[:, :3].std(axis=0), 1, True),
                  L2(0.0, np.ones(3)))).state
        for more in (0.0, 1e4)
    )  # fmt: skip
    np.testing.assert_allclose(near.v, far.v, rtol=1e-6)


def test_units_of_the_label_scale_the_optimum():
    objective = make(reg=0.0)
    expected = fit(objective).state.v
    for units in (1e-6, 1e6):
        X, y, w = rows()
        scaled = Huber(Arrays.of(X, units * y, w, 3), objective.coordinates, objective.penalty)
        np.testing.assert_allclose(fit(scaled).state.v / units, expected, rtol=1e-6, atol=1e-8)


def test_rows_that_are_all_fitted_take_the_scale_to_its_bound():
    X = rows()[0]
    objective = Huber(Arrays.of(X, X @ np.arange(4.0)), make().coordinates, L2(0.0, np.ones(D)))
    start = objective.start(0.0, 0.0)
    assert objective.nonsmooth.project(start)[-1] == SMALLEST
    result = fit(objective)
    coef, _, sigma = objective.to_data(result.state.v)
    assert SMALLEST <= sigma < 1e-9
    np.testing.assert_allclose(coef[:3], [0.0, 1.0, 2.0], atol=1e-8)


def test_the_convention_is_pyspark_mls(spark):
    from pyspark.ml.linalg import Vectors
    from pyspark.ml.regression import LinearRegression

    X, y, w = rows()
    table = [(Vectors.dense(x), float(a), float(b)) for x, a, b in zip(X, y, w, strict=True)]
    df = spark.createDataFrame(table, ["features", "label", "w"]).coalesce(1).cache()
    mean = np.average(X, axis=0, weights=w)
    # Spark's variances are unbiased under reliability weights.
    degrees = w.sum() - (w @ w) / w.sum()
    scale = np.sqrt(w @ (X - mean) ** 2 / degrees)
    scale[3] = 0.0
    coordinates = Coordinates(mean, scale, 1, True)
    for standardization in (True, False):
        model = LinearRegression(
            loss="huber", weightCol="w", regParam=0.3, tol=1e-13, maxIter=1000,
            standardization=standardization,
        ).fit(df)  # fmt: skip
        weights = np.ones(D) if standardization else coordinates.inverse**2
        objective = Huber(Arrays.of(X, y, w, 3), coordinates, L2(0.3, weights))
        coef, intercept, sigma = objective.to_data(fit(objective).state.v)
        theirs = [*model.coefficients, model.intercept, model.scale]
        # Its L-BFGS-B ends a little early.
        np.testing.assert_allclose([*coef, intercept, sigma], theirs, rtol=2e-5, atol=1e-6)
