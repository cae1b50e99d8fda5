"""Methods with a certificate on piecewise linear risks; no Spark."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.svm import SVC, SVR

from arrays import Arrays
from mllib_ext.hinges import CrammerSinger, EpsilonInsensitive, Hinge
from mllib_ext.interior import Risk, central, replay
from mllib_ext.objective import Coordinates
from mllib_ext.optimizers import bundle, interior_point
from mllib_ext.optimizers.cuts import largest
from mllib_ext.optimizers.loop import Change
from mllib_ext.optimizers.smooth import minimize
from mllib_ext.penalties import L2

CANCER, IRIS, DIABETES = (
    load(return_X_y=True) for load in (load_breast_cancer, load_iris, load_diabetes)
)


def risk(X, y, loss, far, w=None, *, parts=3, fit_intercept=True, scale=1.0):
    mean = X.mean(axis=0) if fit_intercept else np.zeros(X.shape[1])
    coordinates = Coordinates(mean, X.std(axis=0), loss.n_outputs, fit_intercept)
    penalty = L2(0.0, np.ones(X.shape[1]))
    return Risk(Arrays.of(X, y, w, parts), loss, coordinates, penalty, np.array(far), scale)


def hinge(X, y, **options):
    return risk(X, y.astype(float), Hinge(), [[3.0], [-3.0]], **options)


def solve(method, objective, reg, tol=1e-8, max_iter=100, callbacks=()):
    settings = method.SETTINGS(reg_param=reg, tol=tol, max_iter=max_iter)
    v = objective.coordinates.zeros()
    return minimize(method, objective.regularized, v, settings, callbacks)


# --- the quadratic program of the cuts ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("q", [0, 1, 2])
def test_the_bound_of_cuts_is_the_maximum_that_scipy_finds(q, seed):
    rng = np.random.default_rng([seed, q])
    m = 9
    A, o, C = rng.standard_normal((m, 5)), rng.standard_normal(m), rng.standard_normal((m, q))
    Q = A @ A.T  # of rank 5: singular
    value, t, _ = largest(Q, o, C)
    E = np.column_stack([np.ones(m), C])
    if value == -np.inf:
        found = scipy.optimize.linprog(np.zeros(m), A_eq=E.T, b_eq=np.eye(1 + q)[0])
        assert not found.success
        return
    np.testing.assert_allclose(t @ E, np.eye(1 + q)[0], atol=1e-9)
    assert (t >= 0).all()
    reference = scipy.optimize.minimize(
        lambda t: 0.5 * t @ Q @ t - o @ t, t * 0 + 1 / m, jac=lambda t: Q @ t - o,
        bounds=[(0, None)] * m, method="SLSQP", options={"ftol": 1e-14, "maxiter": 1000},
        constraints={"type": "eq", "fun": lambda t: t @ E - np.eye(1 + q)[0], "jac": lambda t: E.T},
    )  # fmt: skip
    assert value == pytest.approx(-reference.fun, abs=1e-7)  # SLSQP's own accuracy


# --- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [1e-6, 1.0, 100.0])
def test_the_central_path_has_weights_on_the_simplex_and_equal_products(mu):
    u = np.random.default_rng(0).uniform(-50, 50, (4, 30))
    a, t = central(u, mu)
    np.testing.assert_allclose(a.sum(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(a * t, mu, rtol=1e-9)  # Newton's method, to rounding
    np.testing.assert_allclose(t - t[0], u[0] - u, atol=1e-10)


def test_replayed_rows_stay_inside_whatever_the_path():
    rng = np.random.default_rng(1)
    Z, y = rng.uniform(-100, 100, (50, 8)), rng.integers(0, 2, 50).astype(float)
    a, t = replay(Hinge(), y, Z, np.array([1.0, 0.5, 0.1, 1e-3, 1e-6, 1e-9, 1e-3, 1.0]))
    assert (a > 0).all()
    assert (t > 0).all()
    np.testing.assert_allclose(a.sum(axis=0), 1, rtol=1e-12)
    u = Hinge().lines(y, Z[:, -1])
    np.testing.assert_allclose(t[1] - t[0], u[0] - u[1], atol=1e-9)


# --- against other solvers ----------------------------------------------------------------------


@pytest.mark.parametrize("reg", [0.1, 0.001])
def test_the_interior_point_finds_the_optimum_of_libsvm_with_its_free_intercept(reg):
    X, y = CANCER
    result = solve(interior_point, hinge(X, y), reg)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    reference = SVC(kernel="linear", C=1 / (len(y) * reg), tol=1e-8).fit(Z, y)
    coef = reference.coef_.ravel()
    margins = (2 * y - 1) * (Z @ coef + reference.intercept_)
    expected = np.maximum(0, 1 - margins).mean() + 0.5 * reg * coef @ coef
    assert (result.converged, result.reason) == (True, "gap")
    assert result.state.loss == pytest.approx(expected, rel=1e-6)  # libsvm's stop leaves 5e-7
    assert result.state.lower <= expected
    # Strongly convex: this far at most from an objective that is within 1e-6 of the minimum.
    np.testing.assert_allclose(result.state.v[:-1], coef, atol=np.sqrt(2e-6 * expected / reg))


def test_the_interior_point_finds_the_optimum_of_support_vector_regression():
    X, y = DIABETES
    loss = EpsilonInsensitive(5.0)
    far = [[y.max() + 100], [y.min() - 100]]
    result = solve(interior_point, risk(X, y, loss, far, scale=y.std()), 0.1)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    reference = SVR(kernel="linear", C=1 / (len(y) * 0.1), epsilon=5.0, tol=1e-8).fit(Z, y)
    coef = reference.coef_.ravel()
    residuals = np.abs(y - reference.predict(Z))
    expected = np.maximum(0, residuals - 5.0).mean() + 0.05 * coef @ coef
    assert result.state.loss == pytest.approx(expected, rel=1e-7)
    np.testing.assert_allclose(result.state.v[:-1], coef, atol=1e-2)


def test_a_bundle_and_the_interior_point_bracket_the_same_optimum():
    X, y = CANCER
    one, other = (
        solve(method, hinge(X, y), 0.05, 1e-4, 300) for method in (bundle, interior_point)
    )
    assert one.converged
    assert other.converged
    for left, right in ((one, other), (other, one)):
        assert left.state.lower <= right.state.loss
    assert one.state.loss == pytest.approx(other.state.loss, rel=2e-4)
    assert other.n_iter < one.n_iter


@pytest.mark.parametrize("method", [interior_point, bundle], ids=["interior", "bundle"])
def test_classes_together_reach_what_each_reaches_alone(method):
    X, y = IRIS[0], IRIS[1].astype(float)
    together = solve(method, risk(X, y, Hinge(3), [[3.0] * 3, [-3.0] * 3]), 0.1, 1e-5, 300)
    alone = [solve(interior_point, hinge(X, y == j), 0.1, 1e-8).state.loss for j in range(3)]
    assert together.converged
    assert together.state.loss == pytest.approx(sum(alone), rel=2e-5)  # the gap, twice


@pytest.mark.parametrize("method", [interior_point, bundle], ids=["interior", "bundle"])
def test_crammer_and_singers_optimum_is_the_linear_programs_limit(method):
    X, y = IRIS[0], IRIS[1].astype(float)
    result = solve(method, risk(X, y, CrammerSinger(3), 3 * np.eye(3)), 0.1, 1e-4, 300)
    assert result.converged

    def objective(v):
        Z = (X - X.mean(axis=0)) / X.std(axis=0) @ v[:12].reshape(4, 3) + v[12:]
        return CrammerSinger(3).value(y, Z).mean() + 0.05 * v[:12] @ v[:12]

    assert result.state.loss == pytest.approx(objective(result.state.v), rel=1e-12)
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-2, 0.1):  # convex: no neighbour is lower than the gap allows
        for _ in range(50):
            near = result.state.v + scale * rng.standard_normal(15)
            assert objective(near) >= result.state.lower


# --- what a run may meet ------------------------------------------------------------------------


def test_blocks_weights_and_repeated_rows_give_the_same_optimum():
    X, y = CANCER[0][:150], CANCER[1][:150]
    w = np.random.default_rng(0).integers(0, 3, len(y)).astype(float)
    whole = solve(interior_point, hinge(X, y, w=w, parts=1), 0.01)
    parts = solve(interior_point, hinge(X, y, w=w, parts=7), 0.01)
    assert parts.state.loss == pytest.approx(whole.state.loss, rel=1e-10)
    i = np.repeat(np.arange(len(y)), w.astype(int))
    one = hinge(X, y, w=w)
    repeated = risk(X[i], y[i].astype(float), Hinge(), [[3.0], [-3.0]])
    repeated = type(repeated)(
        repeated.blocks, repeated.loss, one.coordinates, repeated.penalty, repeated.intercepts
    )
    again = solve(interior_point, repeated, 0.01)
    assert again.state.loss == pytest.approx(whole.state.loss, rel=1e-8)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_rows_that_can_be_told_apart_end_with_a_loss_near_0(fit_intercept):
    X = np.array([[1.0, 1.0], [2.0, 1.5], [-1.0, -1.0], [-2.0, -3.0]])
    y = np.array([1, 1, 0, 0])
    result = solve(interior_point, hinge(X, y, fit_intercept=fit_intercept), 0.0, 1e-6)
    assert result.converged
    assert result.state.loss < 1e-6


def test_a_long_path_begins_afresh_and_still_ends(monkeypatch):
    monkeypatch.setattr(interior_point, "MEMORY", 4)
    found = solve(interior_point, hinge(*CANCER), 0.01)
    monkeypatch.undo()
    assert found.converged
    expected = solve(interior_point, hinge(*CANCER), 0.01)
    assert found.state.loss == pytest.approx(expected.state.loss, rel=1e-7)


def test_a_callback_may_change_the_penalty_and_sees_the_gap():
    gaps = []

    def watch(state, record):
        gaps.append(state.gap)
        return Change(reg_param=0.1) if record.iteration == 5 else None

    result = solve(interior_point, hinge(*CANCER), 0.001, callbacks=[watch])
    expected = solve(interior_point, hinge(*CANCER), 0.1)
    assert result.state.loss == pytest.approx(expected.state.loss, rel=1e-7)
    assert gaps[-1] <= 1e-8 * result.state.loss
