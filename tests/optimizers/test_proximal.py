"""Proximal quasi-Newton against scikit-learn, scipy and the conditions of optimality."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import ElasticNet, LogisticRegression

import mllib_ext.objective as objectives
from composites import (
    ROWS,
    UNBOUNDED,
    centred,
    coin,
    composite,
    features,
    lasso,
    linear,
    logistic_lasso,
    logistic_net,
    run,
    standardised,
    three_classes,
    value,
)
from mllib_ext.losses import Logistic, Multinomial
from mllib_ext.optimizers import lbfgs, proximal
from mllib_ext.optimizers.loop import Change
from mllib_ext.optimizers.quadratic import Dense, LowRank, metric, minimize_model
from mllib_ext.penalties import L1Box


@pytest.fixture(params=["sampled Hessian", "pairs alone"])
def curvature(request, monkeypatch):
    """With the Hessian, and as with too many parameters for one."""
    if request.param == "pairs alone":
        monkeypatch.setattr(objectives, "CURVATURE_PARAMETERS", 0)


def non_negative():
    return composite(features(), coin(features()), Logistic(), reg=0.01, alpha=0.0, lower=0.0)


def boxed():
    """Bounds of all kinds, of several classes, and an L1 penalty."""
    rng = np.random.default_rng(3)
    lower, upper = rng.uniform(-0.3, 0, 12), rng.uniform(0, 0.3, 12)
    lower[:3], upper[3:6] = -np.inf, np.inf
    lower[7] = upper[7] = 0.1
    X = features(4)
    return composite(
        X, three_classes(X), Multinomial(3), reg=0.01, alpha=0.7, lower=lower, upper=upper
    )


def dependent():
    """Twice the same columns, a constant one, and bounds that hold some of them."""
    X = features(3)
    X = np.hstack([X, X, np.full((ROWS, 1), 7.0)])
    return composite(X, linear(X[:, :3]), reg=0.0, lower=-0.4, upper=0.4)


BOUNDED = {f.__name__: f for f in (non_negative, boxed, dependent)}


def split_lbfgsb(problem):
    """The optimum by scipy: v = p - q with p, q >= 0 makes the L1 penalty smooth."""
    h, n = problem.nonsmooth, len(problem.nonsmooth.weight)

    def split(pq):
        f, g = problem.value_and_gradient(pq[:n] - pq[n:])
        return f + h.threshold @ (pq[:n] + pq[n:]), np.append(g + h.threshold, h.threshold - g)

    above = np.stack([np.maximum(h.lower, 0), np.maximum(h.upper, 0)], axis=1)
    below = np.stack([np.maximum(-h.upper, 0), np.maximum(-h.lower, 0)], axis=1)
    found = scipy.optimize.minimize(
        split, np.zeros(2 * n), jac=True, method="L-BFGS-B", bounds=np.concatenate([above, below]),
        options={"ftol": 0, "gtol": 1e-10, "maxiter": 20000, "maxfun": 40000, "maxcor": 30},
    )  # fmt: skip
    return found.x[:n] - found.x[n:]


# --- the optimum --------------------------------------------------------------------------------


@pytest.mark.usefixtures("curvature")
@pytest.mark.parametrize("name", [*UNBOUNDED, *BOUNDED])
def test_the_optimum_is_scipys_and_meets_its_conditions(name):
    problem = (UNBOUNDED | BOUNDED)[name]()
    result = run(proximal, problem)
    v, h = result.state.v, problem.nonsmooth
    assert result.converged
    # scipy ends where values are flat to 1e-16 of themselves: to about the root of it in v.
    expected = split_lbfgsb(problem)
    assert result.state.loss <= value(problem, h.project(expected)) * (1 + 1e-10)
    if name != "dependent":  # the minimum of the others is one point
        both = centred(problem, v), centred(problem, expected)
        np.testing.assert_allclose(*both, atol=2e-6)
        # Zeros are zeros and bounds are bounds, to the bit and where scipy has them.
        for kink in (0.0, h.lower, h.upper):
            np.testing.assert_array_equal(v == kink, expected == kink)
    # Values flat to 1e-12: gradients to its root, but for the change of one iteration.
    gradient = problem.value_and_gradient(v)[1]
    assert np.abs(h.subgradient(v, gradient)).max() < 1e-6
    assert h.value(v) < np.inf


@pytest.mark.parametrize(("name", "alpha", "reg"), [("lasso", 1.0, 0.1), ("elastic_net", 0.4, 0.2)])
def test_the_elastic_net_is_scikit_learns(name, alpha, reg):
    X, y = features(), linear(features())
    reference = ElasticNet(alpha=reg, l1_ratio=alpha, tol=1e-14, max_iter=100000)
    reference.fit(standardised(X), y)
    v = run(proximal, UNBOUNDED[name]()).state.v
    np.testing.assert_allclose(v, np.append(reference.coef_, reference.intercept_), atol=1e-7)
    np.testing.assert_array_equal(v[:-1] == 0, reference.coef_ == 0)
    assert 0 < (v == 0).sum() < len(v)


def test_logistic_regression_with_an_l1_penalty_is_scikit_learns():
    X, y = features(), coin(features())
    # 1/n sum(loss) + lambda |b|_1 is scikit-learn's with C = 1 / (n lambda).
    reference = LogisticRegression(
        l1_ratio=1.0, C=1 / (ROWS * 0.03), solver="saga", tol=1e-10, max_iter=100000
    ).fit(standardised(X), y)
    v = run(proximal, logistic_lasso()).state.v
    expected = np.append(reference.coef_[0], reference.intercept_)
    np.testing.assert_allclose(v, expected, atol=1e-7)
    np.testing.assert_array_equal(v == 0, expected == 0)


def test_without_a_penalty_or_bounds_it_finds_what_lbfgs_finds():
    problem = replace(logistic_net(), nonsmooth=None)
    smooth = run(lbfgs, problem)
    found = run(proximal, problem)
    np.testing.assert_allclose(found.state.v, smooth.state.v, atol=1e-7)


# --- rounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*UNBOUNDED, *BOUNDED])
def test_with_a_hessian_about_ten_rounds_do(name):
    problem = (UNBOUNDED | BOUNDED)[name]()
    rounds = problem.blocks.rounds
    result = run(proximal, problem)
    assert rounds["value_gradient_hessian"] + rounds["along"] == rounds.total()
    assert rounds.total() <= 15
    # A round a step, and two more where the unit step does not hold.
    cut = sum(record.step_size < 1 for record in result.history[1:])
    assert rounds.total() <= 1 + result.n_iter + 2 * cut


def test_a_unit_step_too_long_costs_two_more_rounds():
    X = np.array([[-1.0], [1.0], [1.2], [-1.1]])
    problem = composite(X, [0.0, 1.0, 0.0, 1.0], Logistic(), reg=1e-3)
    spent = []
    # The curvature is almost gone out here: the model's minimum is far on the other side.
    result = run(proximal, problem, [lambda *_: spent.append(problem.blocks.rounds.total())],
                 start=np.array([8.0, 0.0]))  # fmt: skip
    assert result.history[1].step_size < 1
    assert spent[:2] == [1, 4]  # the start; the unit step, the others along, the one taken
    assert (np.diff([record.loss for record in result.history]) <= 0).all()


def test_the_step_is_the_longest_power_of_a_half_at_which_the_whole_falls_enough():
    v = np.zeros(9)
    gradient = lasso().value_and_gradient(v)[1]
    # The penalty rises nine tenths as steeply as the squares fall.
    problem = lasso().regularized(0.9 * gradient @ gradient / np.abs(gradient[:-1]).sum())
    h = problem.nonsmooth
    state = proximal.start(problem, v, proximal.SETTINGS())
    u = -5 * state.gradient  # the right way, too far
    found = proximal.search(problem, h, state, u)
    fall = state.gradient @ (u - v) + h.value(u) - h.value(v)
    for t in 2.0 ** -np.arange(12):
        there = value(problem, v + t * (u - v))
        assert (there <= state.loss + proximal.ARMIJO * t * fall) == (t <= found.step)
    assert found.step < 0.5


def test_a_sample_of_the_rows_will_do(monkeypatch):
    X = np.vstack([features(seed=s) for s in range(20)])
    whole = composite(X, coin(X), Logistic(), reg=0.01)
    monkeypatch.setattr(objectives, "SAMPLED_ROWS", 40)
    assert objectives.sampling(whole.blocks, 9) > 10
    result = run(proximal, whole)
    monkeypatch.setattr(objectives, "SAMPLED_ROWS", 10**9)
    exact = run(proximal, composite(X, coin(X), Logistic(), reg=0.01))
    np.testing.assert_allclose(result.state.v, exact.state.v, atol=1e-7)
    assert whole.blocks.rounds.total() < 30


def test_a_sample_that_misses_curvature_still_ends_on_zeros(monkeypatch):
    X = features(60) + 3.0 * features(1, seed=9)
    problem = composite(X, coin(X), Logistic(), reg=3e-3)
    expected = run(proximal, problem).state
    monkeypatch.setattr(objectives, "SAMPLED_ROWS", 1)  # 80 rows for 61 parameters
    result = run(proximal, problem)
    np.testing.assert_array_equal(result.state.v == 0, expected.v == 0)
    assert result.state.loss == pytest.approx(expected.loss, rel=1e-9)
    assert (expected.v == 0).any()


# --- starts, degenerate data, changes -----------------------------------------------------------


@pytest.mark.usefixtures("curvature")
def test_a_start_outside_the_bounds_is_projected():
    problem = boxed()
    states = []
    result = run(proximal, problem, [lambda state, _: states.append(state)], start=np.full(15, 9.0))
    np.testing.assert_array_equal(states[0].v, problem.nonsmooth.project(np.full(15, 9.0)))
    assert all(problem.nonsmooth.value(state.v) < np.inf for state in states)
    inside = run(proximal, problem).state.v
    both = centred(problem, result.state.v), centred(problem, inside)
    np.testing.assert_allclose(*both, atol=1e-6)


@pytest.mark.usefixtures("curvature")
def test_a_strong_l1_penalty_leaves_the_intercept_alone():
    problem = lasso()
    y = np.concatenate([b.y for b in problem.blocks.blocks])
    v = run(proximal, problem, start=np.full(9, 0.5), reg_param=50.0).state.v
    np.testing.assert_array_equal(v[:-1], 0.0)
    assert v[-1] == pytest.approx(y.mean(), rel=1e-7)


@pytest.mark.usefixtures("curvature")
def test_everything_fixed_ends_at_the_start():
    problem = composite(features(2), linear(features(2)), reg=0.0, lower=0.3, upper=0.3)
    h = problem.nonsmooth
    fixed = replace(h, lower=np.full(3, 0.3), upper=np.full(3, 0.3))
    result = run(proximal, replace(problem, nonsmooth=fixed))
    assert (result.n_iter, result.state.gradient_norm) == (0, 0.0)
    np.testing.assert_array_equal(result.state.v, 0.3)


def test_indefinite_curvature_of_float32_rows_is_done_without():
    X = np.hstack([features(3), features(3)]) + 300.0
    problem = composite(X.astype(np.float32), coin(features(3)), Logistic(), reg=1e-3)
    problem = replace(problem, precision=1e-6)
    exact = composite(X, coin(features(3)), Logistic(), reg=1e-3)
    result = run(proximal, problem, tol=1e-6)
    least = run(proximal, exact).state.loss
    assert result.converged
    assert result.state.loss == pytest.approx(least, abs=1e-4)  # 1e-7 of margins of 1e3


@pytest.mark.usefixtures("curvature")
def test_a_separable_problem_is_held_by_bounds():
    X = features(3)
    problem = composite(
        X, (X[:, 0] > X[:, 0].mean()).astype(float), Logistic(), reg=0.0, lower=-5, upper=5
    )
    result = run(proximal, problem)
    assert result.converged
    assert result.state.v[0] == 5.0
    assert result.state.loss < 0.3


@pytest.mark.usefixtures("curvature")
def test_a_change_of_strength_starts_afresh_with_both_penalties():
    problem = logistic_net()
    steer = [lambda state, record: Change(reg_param=0.1) if record.iteration == 3 else None]
    result = run(proximal, problem, steer)
    fresh = run(proximal, problem.regularized(0.1))
    assert result.state.loss == pytest.approx(fresh.state.loss, rel=1e-10)
    np.testing.assert_allclose(result.state.v, fresh.state.v, atol=1e-6)
    assert problem.regularized(0.1).nonsmooth.strength == 0.1
    assert problem.regularized(0.1).penalty.strength == 0.1


def test_a_state_tells_of_its_own_point():
    problem = logistic_lasso()
    state = run(proximal, problem, tol=1e-3).state
    h = problem.nonsmooth
    _, gradient = problem.value_and_gradient(state.v)
    assert state.loss == value(problem, state.v)
    np.testing.assert_array_equal(state.gradient, gradient)
    assert state.gradient_norm == np.linalg.norm(h.residual(state.v, gradient))
    again = run(proximal, problem, start=run(proximal, problem).state.v, tol=1e-8)
    assert (again.n_iter, again.reason) == (0, "gradient")


# --- the model on the driver --------------------------------------------------------------------


def covariance(d, seed=0):
    A = np.random.default_rng(seed).standard_normal((2 * d, d)) + 1.0  # one strong direction
    return A.T @ A / (2 * d)


@pytest.mark.parametrize("units", [1.0, 1e-5])
@pytest.mark.parametrize("low_rank", [False, True])
def test_the_model_is_solved_to_its_tolerance(low_rank, units):
    d = 120
    rng = np.random.default_rng(1)
    H = covariance(d)
    pairs = tuple((s, H @ s) for s in rng.standard_normal((5, d)))
    B = metric(d, 1.0, pairs, None if low_rank else H)
    g = units * 3 * rng.standard_normal(d)
    h = L1Box(1.0, rng.choice([0.0, 1.0, 2.0], d), rng.choice([-np.inf, -0.2], d),
              rng.choice([np.inf, 0.1, 0.0], d))  # fmt: skip
    v = h.project(rng.standard_normal(d) * rng.integers(0, 2, d))
    h, v = replace(h, strength=units, lower=units * h.lower, upper=units * h.upper), units * v
    u = minimize_model(B, g, h, v, units * 1e-9)
    assert np.linalg.norm(h.residual(u, g + B.product(u - v))) <= units * 1e-9
    assert h.value(u) < np.inf
    assert {0.0, -0.2 * units, 0.1 * units} <= set(u)


def test_the_low_rank_metric_is_the_dense_one_and_maps_the_last_move_right():
    d, scale = 7, 0.7
    rng = np.random.default_rng(0)
    H = covariance(d)
    pairs = tuple((s, H @ s) for s in rng.standard_normal((3, d)))
    low = metric(d, scale, pairs, None)
    matrix = np.stack([low.product(e) for e in np.eye(d)])
    assert isinstance(low, LowRank)
    s, y = pairs[-1]
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    assert 0 < np.linalg.eigvalsh(matrix)[-1] <= low.bound
    assert np.linalg.eigvalsh(matrix)[0] > 0
    np.testing.assert_allclose(low.product(s), y, rtol=1e-10)  # the secant equation
    np.testing.assert_allclose(metric(d, 9.0, pairs, H).product(s), y, rtol=1e-10)
    # Over the multiple of I that the last pair makes, the two are one.
    same = metric(d, 9.0, pairs, np.eye(d) * (y @ y) / (s @ y))
    np.testing.assert_allclose(same.product(np.eye(d)[1]), matrix[1], rtol=1e-10)
    r, some = rng.standard_normal(d), np.array([0, 3, 4])
    dense = Dense(matrix)
    assert dense.bound >= np.linalg.eigvalsh(matrix)[-1]
    for mine, other in ((low, dense), (low.take(some), dense.take(some))):
        x = r[: len(mine.W.T)]
        np.testing.assert_allclose(mine.solve(x), other.solve(x), rtol=1e-8)
        np.testing.assert_allclose(mine.product(x), other.product(x), rtol=1e-10)


# --- pyspark.ml ---------------------------------------------------------------------------------


def test_the_conventions_of_the_elastic_net_and_of_bounds_are_pyspark_mls(spark):
    from pyspark.ml import classification, regression
    from pyspark.ml.linalg import DenseMatrix, Vectors

    X = features(4)
    y, labels = linear(X), coin(X)
    rows = [(Vectors.dense(x), float(a), float(b)) for x, a, b in zip(X, y, labels, strict=True)]
    df = spark.createDataFrame(rows, ["features", "y", "labels"]).coalesce(1).cache()
    net, reg = 0.6, 0.05
    deviation = X.std(axis=0, ddof=1)  # Spark's are unbiased

    def ours(y, loss, factor, alpha, lower):
        """Both penalties on the coefficients of the features as they are."""
        problem = composite(X, y, loss, reg=reg, lower=lower * deviation)
        problem = replace(
            problem,
            coordinates=replace(problem.coordinates, scale=deviation),
            penalty=replace(problem.penalty, scale=(1 - alpha) * factor / deviation**2),
            nonsmooth=replace(problem.nonsmooth, weight=np.append(alpha / deviation, 0.0)),
        )
        coef, intercept = problem.coordinates.to_data(run(proximal, problem).state.v)
        return np.append(coef, intercept)

    options: Any = {"regParam": reg, "tol": 1e-14, "maxIter": 1000, "standardization": False}
    least_squares = regression.LinearRegression(
        labelCol="y", solver="l-bfgs", elasticNetParam=net, **options
    )
    logistic = classification.LogisticRegression(labelCol="labels", **options)
    bounds = {logistic.lowerBoundsOnCoefficients: DenseMatrix(1, 4, [0.05] * 4)}
    for estimator, expected in (
        (least_squares, ours(y, None, 1 / y.std(ddof=1), net, -np.inf)),
        (logistic.copy({logistic.elasticNetParam: net}), ours(labels, Logistic(), 1, net, -np.inf)),
        (logistic.copy(bounds), ours(labels, Logistic(), 1, 0.0, 0.05)),
    ):
        model = estimator.fit(df)
        # Its L-BFGS-B ends a little early.
        np.testing.assert_allclose(
            np.append(model.coefficients.toArray(), model.intercept), expected, rtol=5e-5, atol=1e-7
        )
