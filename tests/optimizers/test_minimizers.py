"""Every minimizer on every kind of problem; no Spark."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import LogisticRegression

import mllib_ext.objective as objectives
from arrays import Arrays
from mllib_ext.losses import Logistic, Multinomial, SquaredError
from mllib_ext.objective import Coordinates, Objective
from mllib_ext.optimizers import gd, lbfgs, newton
from mllib_ext.optimizers.loop import Change, ConvergenceWarning, DivergenceError, Stop
from mllib_ext.optimizers.smooth import minimize
from mllib_ext.penalties import L2

ROWS = 240


def objective(X, y, loss=None, w=None, *, standardise=True, reg=0.0, parts=3) -> Any:
    mean, scale = X.mean(axis=0), X.std(axis=0) if standardise else np.ones(X.shape[1])
    scale[np.ptp(X, axis=0) == 0] = 0.0
    loss = loss or SquaredError()
    return Objective(
        Arrays.of(X, y, w, parts),
        loss,
        Coordinates(mean, scale, loss.n_outputs, True),
        L2(reg, np.ones(X.shape[1])),
    )


def features(d=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((ROWS, d)) @ (np.eye(d) + 0.3 * rng.standard_normal((d, d)))


def coin(z, seed=1):
    """Labels 0 and 1 with log odds z."""
    return (np.random.default_rng(seed).random(len(z)) < 1 / (1 + np.exp(-z))).astype(float)


def linear(X):
    return X @ np.arange(1.0, X.shape[1] + 1) + 3 + np.random.default_rng(2).standard_normal(len(X))


def least_squares():
    return objective(features(), linear(features()))


def ill_conditioned():
    """Unscaled columns from 1 to 300, almost dependent: the Hessian's condition number is 1e7."""
    X = features(4) * [1.0, 10.0, 100.0, 300.0]
    return objective(X, linear(features(4)), standardise=False)


def logistic():
    X = features()
    return objective(X, coin(X @ [1.0, -1.0, 0.5, 0.0, 0.2, -0.3]), Logistic(), reg=0.01)


def rare_class():
    X = features()
    y = np.zeros(ROWS)
    y[[7, 70, 170]] = 1.0
    return objective(X, y, Logistic(), reg=1e-3)


def weighted():
    X = features()
    w = np.random.default_rng(5).uniform(0, 3, ROWS)
    return objective(X, coin(X[:, 0]), Logistic(), w, reg=0.1)


def multinomial():
    """Without a penalty, the margins of a row may be shifted: the Hessian is singular."""
    X = features(3)
    z = X @ np.array([[1.0, 0.0, -0.5], [0.0, 1.0, 0.5], [0.5, -0.5, 0.0]])
    z += np.random.default_rng(4).gumbel(size=z.shape)
    return objective(X, z.argmax(axis=1).astype(float), Multinomial(3))


def duplicate_columns():
    X = features(3)
    return objective(np.hstack([X, X[:, :2], -2 * X[:, 2:]]), coin(X.sum(axis=1)), Logistic())


def constant_columns():
    X = np.insert(features(3), [0, 2], [[7.0, 0.0]], axis=1)
    return objective(X, linear(features(3)))


def one_column():
    X = features(1)
    return objective(X, coin(X[:, 0]), Logistic())


@dataclass(frozen=True)
class Solver:
    method: Any
    options: dict[str, Any]
    max_iter: int

    def __call__(self, objective, callbacks=(), start=None, **settings):
        options = {"max_iter": self.max_iter, "reg_param": objective.penalty.strength}
        if "step_size" in self.options:
            options["step_size"] = self.options["step_size"] / steepest(objective)
        options |= {k: v for k, v in self.options.items() if k != "step_size"} | settings
        start = objective.coordinates.zeros() if start is None else start
        chosen = self.method.SETTINGS(**options)
        return minimize(self.method, objective.regularized, start, chosen, callbacks)


def steepest(objective):
    """A bound of the curvature: that of the squares, which a deviance has at most half of."""
    bound = 1.0 if isinstance(objective.loss, SquaredError) else 0.5
    squares = Objective(
        Arrays(objective.blocks.blocks),  # rounds of its own
        SquaredError(),
        Coordinates(objective.coordinates.mean, objective.coordinates.scale, 1, True),
        objective.penalty,
    )
    H = squares.hessian(squares.coordinates.zeros())
    return bound * float(np.linalg.eigvalsh(H)[-1]) + objective.penalty.strength


SOLVERS = {
    # Step sizes in units of 1 / (largest curvature): what theory promises to converge.
    "gd none": Solver(gd, {"line_search": "none", "step_size": 1.0}, 4000),
    "gd armijo": Solver(gd, {"line_search": "armijo", "step_size": 8.0}, 4000),
    "gd barzilai-borwein": Solver(gd, {"line_search": "barzilai-borwein", "step_size": 1.0}, 2000),
    "gd nesterov": Solver(gd, {"line_search": "nesterov", "step_size": 1.0}, 2000),
    "l-bfgs": Solver(lbfgs, {}, 200),
    "newton": Solver(newton, {}, 25),
}
PROBLEMS: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (
        least_squares, ill_conditioned, logistic, rare_class, weighted, multinomial,
        duplicate_columns, constant_columns, one_column,
    )
}  # fmt: skip
# Gradient descent needs about as many steps as the condition number.
TOO_SLOW = [(s, "ill_conditioned") for s in SOLVERS if s.startswith("gd")]
TOO_SLOW += [("gd none", "rare_class")]
MATRIX = [(s, p) for s in SOLVERS for p in PROBLEMS if (s, p) not in TOO_SLOW]


@pytest.fixture(scope="module")
def optimum():
    """The least value of each problem by scipy, to a gradient of 1e-10 or to rounding."""
    known: dict[str, tuple[Objective, np.ndarray, float]] = {}

    def find(name):
        if name not in known:
            problem = PROBLEMS[name]()
            found = scipy.optimize.minimize(
                problem.value_and_gradient, problem.coordinates.zeros(), jac=True,
                hess=problem.hessian, method="trust-exact", options={"gtol": 1e-10},
            )  # fmt: skip
            assert np.linalg.norm(found.jac) < 1e-7
            known[name] = problem, found.x, found.fun
        return known[name]

    return find


# --- the matrix ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("solver", "problem"), MATRIX)
def test_every_minimizer_finds_the_optimum_of_every_problem(solver, problem, optimum):
    objective, v, least = optimum(problem)
    result = SOLVERS[solver](objective, tol=1e-9)
    assert result.converged
    # A slow method whose last ten losses lie within 1e-9 has some tens of such tens to go.
    assert result.state.loss - least <= 1e-8 * max(1.0, result.history[0].loss)
    assert result.state.loss >= least - 1e-10
    # Margins are unique where parameters are not. About the optimum the loss is a parabola: one
    # within 1e-8 leaves them within the root of that, over the root of the curvature.
    expected, found = (margins(objective, point) for point in (v, result.state.v))
    np.testing.assert_allclose(found, expected, atol=1e-3 * max(1.0, np.abs(expected).max()))


def margins(objective, v):
    coef, intercept = objective.coordinates.to_data(v)
    z = np.concatenate([b.X for b in objective.blocks.blocks]) @ coef + intercept
    return z - z.mean(axis=1, keepdims=True) if z.ndim == 2 else z


@pytest.mark.parametrize("problem", list(PROBLEMS))
@pytest.mark.parametrize("solver", ["l-bfgs", "newton"])
def test_second_order_methods_reach_the_precision_of_the_arithmetic(solver, problem, optimum):
    objective, v, least = optimum(problem)
    result = SOLVERS[solver](objective, tol=1e-14)
    assert result.converged
    assert result.state.loss - least <= 1e-13 * max(1.0, least)
    # Gradients tell where values are flat to rounding: margins are good to about 1e-10.
    expected, found = (margins(objective, point) for point in (v, result.state.v))
    np.testing.assert_allclose(found, expected, atol=1e-8 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
def test_newton_ends_with_a_full_step_that_promised_little_whatever_the_units(tol):
    X = features()
    y = coin(X @ [1.0, -1.0, 0.5, 0.0, 0.2, -0.3])
    # The gradient by columns of such units is large where nothing is left to win.
    problem = objective(1e4 * X, y, Logistic(), standardise=False)
    least = SOLVERS["newton"](problem, tol=1e-15).state.loss
    problem.blocks.rounds.clear()
    result = SOLVERS["newton"](problem, tol=tol)
    assert (result.converged, result.reason) == (True, "decrement")
    falls = -np.diff([record.loss for record in result.history])
    assert (falls[:-1] > tol * least).all(), "it went on because there was more to win"
    assert result.state.loss - least <= 0.1 * tol * least, "what is left is of second order"
    assert problem.blocks.rounds["value_gradient_hessian"] == len(falls), "each of use to a step"


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_a_separable_problem_without_penalty_ends_finite_and_right_in_every_row(solver):
    X = features(3)
    y = (X[:, 0] > 0.2).astype(float)
    problem = objective(X, y, Logistic())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # there is no optimum to reach
        result = SOLVERS[solver](problem, tol=1e-6)
    z = (
        np.concatenate([b.X for b in problem.blocks.blocks])
        @ problem.coordinates.to_data(result.state.v)[0]
    )
    assert np.isfinite(result.state.v).all()
    assert result.state.loss < 0.1 * result.history[0].loss
    if solver in ("l-bfgs", "newton"):
        assert ((z + problem.coordinates.to_data(result.state.v)[1] > 0) == y).all()
        assert result.state.loss < 1e-4


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_no_minimizer_ends_above_its_start_or_remembers_another_point(solver, optimum):
    problem = optimum("logistic")[0]
    result = SOLVERS[solver](problem, tol=1e-4)
    loss, gradient = problem.value_and_gradient(result.state.v)
    assert result.state.loss == loss < result.history[0].loss  # of this iterate, to the bit
    np.testing.assert_array_equal(result.state.gradient, gradient)
    assert result.state.gradient_norm == np.linalg.norm(gradient)
    assert result.history[-1].loss == loss


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_a_start_at_the_optimum_stays_there(solver, optimum):
    problem, v, _ = optimum("logistic")
    result = SOLVERS[solver](problem, start=v, tol=1e-6)
    assert (result.n_iter, result.reason) == (0, "gradient")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        still = SOLVERS[solver](problem, start=v, tol=0.0, max_iter=20)
    np.testing.assert_allclose(still.state.v, v, atol=1e-8)  # where values are flat to rounding
    assert np.isfinite(still.state.v).all()


def test_logistic_regression_is_scikit_learns():
    X = features()
    y = coin(X @ [1.0, -1.0, 0.5, 0.0, 0.2, -0.3])
    standardised = (X - X.mean(axis=0)) / X.std(axis=0)
    # 1/n sum(loss) + lambda / 2 |b|**2 is scikit-learn's with C = 1 / (n lambda).
    reference = LogisticRegression(C=1 / (ROWS * 0.01), solver="newton-cholesky", tol=1e-12)
    reference.fit(standardised, y)
    expected = np.append(reference.coef_[0], reference.intercept_)
    for solver in ("l-bfgs", "newton"):
        found = SOLVERS[solver](logistic(), tol=1e-14).state.v
        np.testing.assert_allclose(found, expected, rtol=1e-6)  # losses flat to 1e-14


# --- gradient descent ---------------------------------------------------------------------------


def test_plain_gradient_descent_is_the_update_formula_step_by_step():
    X = features(3)
    y = coin(X[:, 0])
    eta, n_steps = 0.7, 12
    data = Arrays.of(X, y, parts=5)
    coordinates = Coordinates(np.zeros(3), np.ones(3), 1, True)
    problem = Objective(data, Logistic(), coordinates, L2(0.0, np.ones(3)))
    points = []
    settings = gd.SETTINGS(line_search="none", step_size=eta, max_iter=n_steps, tol=0.0)
    with pytest.warns(ConvergenceWarning):
        minimize(gd, problem.regularized, np.zeros(4), settings,
                 [lambda state, record: points.append(state.v)])  # fmt: skip

    theta = np.zeros(4)
    sizes = [block.n for block in data.blocks]
    assert len(set(sizes)) > 1  # the weights matter
    for point in points:
        np.testing.assert_allclose(point, theta, atol=1e-14 * n_steps)  # a rounding a step
        gradients = []
        for block in data.blocks:
            A = np.column_stack([block.X, np.ones(block.n)])
            gradients.append(A.T @ (1 / (1 + np.exp(-A @ theta)) - block.y) / block.n)
        # theta <- theta - eta * 1/|S| sum |S_i| grad L_i(theta)
        mean = sum(n * g for n, g in zip(sizes, gradients, strict=True)) / sum(sizes)
        theta = theta - eta * mean
    assert len(points) == n_steps + 1


def test_plain_gradient_descent_is_one_round_a_step():
    problem = logistic()
    result = SOLVERS["gd none"](problem, tol=1e-3)
    assert problem.blocks.rounds == {"value_and_gradient": result.n_iter + 1}


def test_armijo_steps_halve_from_the_step_size_and_never_raise_the_loss():
    problem = logistic()
    result = SOLVERS["gd armijo"](problem, step_size=1e3, tol=1e-6)
    ratios = np.log2([1e3 / record.step_size for record in result.history[1:]])
    np.testing.assert_allclose(ratios, np.round(ratios), atol=1e-9)
    assert ratios.min() >= 1  # 1e3 is too long a step
    losses = [record.loss for record in result.history]
    assert (np.diff(losses) < 0).all()


def test_barzilai_borwein_starts_with_the_step_size_and_needs_far_fewer_steps():
    problem = rare_class()
    first = SOLVERS["gd barzilai-borwein"](problem, tol=1e-6, step_size=0.123)
    assert first.history[1].step_size == 0.123
    plain = SOLVERS["gd none"](problem, tol=1e-8)
    good = SOLVERS["gd barzilai-borwein"](problem, tol=1e-8)
    assert good.state.loss <= plain.state.loss * (1 + 1e-8)
    assert good.n_iter * 5 < plain.n_iter


def test_nesterov_needs_fewer_steps_than_plain_descent():
    problem = rare_class()
    plain = SOLVERS["gd none"](problem, tol=1e-8)
    fast = SOLVERS["gd nesterov"](problem, tol=1e-8)
    assert fast.state.loss <= plain.state.loss * (1 + 1e-7)
    assert fast.n_iter * 2 < plain.n_iter


def test_nesterov_restarts_where_momentum_leads_uphill():
    # Without restarts the momentum only grows, and the loss goes up and down.
    momenta = []
    SOLVERS["gd nesterov"](least_squares(), [lambda state, _: momenta.append(state.momentum)],
                           tol=1e-9)  # fmt: skip
    assert 1.0 in momenta[2:]


def test_too_large_a_step_is_divergence_that_names_the_step_and_the_round():
    with pytest.raises(DivergenceError, match=r"in round \d+ with step size 1000: the loss went"):
        SOLVERS["gd none"](least_squares(), step_size=1e3)
    with pytest.raises(DivergenceError, match=r"in round [3-9] with step size 1\.37"):
        # Each step doubles the error in the steepest direction: no jump, but a steady rise.
        SOLVERS["gd none"](least_squares(), step_size=3.0 / steepest(least_squares()), tol=1e-6)


@pytest.mark.parametrize("solver", ["gd armijo", "gd barzilai-borwein"])
def test_a_line_search_survives_any_step_size(solver, optimum):
    problem, _, least = optimum("logistic")
    result = SOLVERS[solver](problem, step_size=1e6, tol=1e-9)
    assert result.converged
    assert result.state.loss <= least + 1e-7


def test_a_callback_changes_the_step_size_and_the_line_search_of_a_run():
    problem = logistic()

    def steer(state, record):
        match record.iteration:
            case 3:
                return Change(step_size=0.25)
            case 5:
                return Change(line_search="nesterov")
            case 8:
                return Change(line_search="barzilai-borwein")
            case 12:
                return Stop("seen enough")

    result = SOLVERS["gd none"](problem, [steer], step_size=0.5, tol=0.0)
    steps = [record.step_size for record in result.history]
    assert steps[:9] == [0.0] + [0.5] * 3 + [0.25] * 5
    assert len(set(steps[10:])) == 3
    assert [r.settings.line_search for r in result.history][5:10] == [
        "none", "nesterov", "nesterov", "nesterov", "barzilai-borwein",
    ]  # fmt: skip
    assert (result.n_iter, result.reason) == (12, "seen enough")


@pytest.mark.parametrize("change", [{"step_size": 0.0}, {"line_search": "wolfe"}])
def test_gradient_descent_refuses_settings_out_of_range(change):
    with pytest.raises(ValueError, match=f"setting '{next(iter(change))}'"):
        SOLVERS["gd none"](logistic(), [lambda state, record: Change(**change)])


# --- L-BFGS -------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["logistic", "weighted", "multinomial", "one_column"])
def test_lbfgs_takes_about_one_round_an_iteration(problem):
    objective = PROBLEMS[problem]()
    result = SOLVERS["l-bfgs"](objective, tol=1e-10)
    rounds = objective.blocks.rounds
    # Each evaluation brings its sampled curvature along.
    assert rounds["value_gradient_hessian"] + rounds["along"] == rounds.total()
    # The start, a round a step, and two more where the unit step does not hold: mostly at first.
    assert rounds.total() <= 1 + 1.25 * result.n_iter + 3


def test_lbfgs_needs_tens_of_steps_where_descent_needs_thousands():
    assert SOLVERS["l-bfgs"](ill_conditioned(), tol=1e-12).n_iter < 60


@pytest.fixture
def no_curvature(monkeypatch):
    """As with too many parameters for a sampled Hessian: plain L-BFGS."""
    monkeypatch.setattr(objectives, "CURVATURE_PARAMETERS", 0)


def test_lbfgs_with_sampled_curvature_needs_fewer_rounds_than_without(monkeypatch):
    with_sample, without = logistic(), logistic()
    SOLVERS["l-bfgs"](with_sample, tol=1e-10)
    monkeypatch.setattr(objectives, "CURVATURE_PARAMETERS", 0)
    SOLVERS["l-bfgs"](without, tol=1e-10)
    assert with_sample.blocks.rounds.total() < without.blocks.rounds.total()


@pytest.mark.usefixtures("no_curvature")
def test_lbfgs_forgets_its_pairs_and_evaluates_anew_when_the_penalty_changes(optimum):
    problem = logistic()
    seen = []

    def steer(state, record):
        seen.append((state, record))
        return Change(reg_param=1.0) if record.iteration == 4 else None

    result = SOLVERS["l-bfgs"](problem, [steer], tol=1e-12)
    before, after = seen[4][0], seen[5]
    assert len(before.pairs) == 4
    assert len(after[0].pairs) == 1  # the pair of the first step under the new penalty
    assert after[1].settings.reg_param == 1.0
    # The first step from there is along the new gradient, of length 1 or a power of 2 of it.
    value, gradient = problem.regularized(1.0).value_and_gradient(before.v)
    moved = after[0].v - before.v
    np.testing.assert_allclose(
        moved / np.linalg.norm(moved), -gradient / np.linalg.norm(gradient), atol=1e-12
    )
    assert after[1].loss < value
    assert result.converged
    fresh = SOLVERS["l-bfgs"](problem.regularized(1.0), tol=1e-12)
    assert result.state.loss == pytest.approx(fresh.state.loss, rel=1e-11)
    np.testing.assert_allclose(result.state.v, fresh.state.v, atol=1e-5)


@pytest.mark.usefixtures("no_curvature")
def test_a_change_that_leaves_the_objective_keeps_the_pairs():
    sizes = []

    def steer(state, record):
        sizes.append(len(state.pairs))
        return Change(tol=1e-11) if record.iteration == 4 else None

    SOLVERS["l-bfgs"](logistic(), [steer], tol=1e-12)
    assert sizes[:7] == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("no_curvature")
def test_lbfgs_keeps_ten_pairs():
    sizes = []
    SOLVERS["l-bfgs"](ill_conditioned(), [lambda s, r: sizes.append(len(s.pairs))], tol=1e-13)
    assert max(sizes) == sizes[-1] == lbfgs.MEMORY == 10


@pytest.mark.parametrize("offset", [100.0, 1e6])
def test_lbfgs_goes_without_curvature_that_rounding_has_spoiled(offset):
    X = features(3)
    kind = np.float32 if offset == 100.0 else np.float64
    rows = (np.hstack([X, X]) + offset).astype(kind)  # dependent columns, far off centre
    problem = replace(objective(rows, coin(X[:, 0]), Logistic()), precision=1e-6)
    assert np.linalg.eigvalsh(problem.hessian(np.zeros(7)))[0] < -1e-8  # no Cholesky factor
    result = SOLVERS["l-bfgs"](problem, tol=1e-6)
    least = SOLVERS["newton"](objective(X, coin(X[:, 0]), Logistic()), tol=1e-12).state.loss
    assert result.converged
    assert result.state.loss == pytest.approx(least, abs=1e-5)  # float32: 1e-7 of margins of 100


def test_the_two_loops_are_the_inverse_hessian_of_a_quadratic():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((4, 4))
    H = A @ A.T + np.eye(4)
    # Directions conjugate by H: after as many as there are dimensions, BFGS has the exact inverse.
    basis = np.linalg.inv(np.linalg.cholesky(H)).T
    pairs = tuple((s, H @ s) for s in basis.T)
    g = rng.standard_normal(4)
    np.testing.assert_allclose(lbfgs.two_loops(g, pairs), np.linalg.solve(H, g), rtol=1e-10)
    np.testing.assert_array_equal(lbfgs.two_loops(g, ()), g)


# --- Newton -------------------------------------------------------------------------------------


def test_newton_solves_least_squares_in_one_step(optimum):
    for name in ("least_squares", "ill_conditioned", "constant_columns"):
        problem, _, least = optimum(name)
        path = SOLVERS["newton"](problem, tol=1e-10)
        assert path.history[1].loss == pytest.approx(least, rel=1e-12)
        assert path.n_iter <= 2  # the second finds nothing left to gain


@pytest.mark.parametrize("name", ["logistic", "weighted", "rare_class", "one_column"])
def test_newton_converges_quadratically(name):
    result = SOLVERS["newton"](PROBLEMS[name](), tol=1e-14)
    norms = np.array([record.gradient_norm for record in result.history])
    assert result.n_iter <= 12
    # Where it is near, each step squares the gradient, but for a factor and for rounding.
    near = (norms[:-1] < 1e-2) & (norms[1:] > 1e-15)
    assert near.any()
    assert (norms[1:][near] <= 1000 * norms[:-1][near] ** 2 + 1e-15).all()


@pytest.mark.parametrize("name", ["logistic", "multinomial", "duplicate_columns"])
def test_newton_is_one_round_an_iteration(name):
    problem = PROBLEMS[name]()
    result = SOLVERS["newton"](problem, tol=1e-10)
    assert result.n_iter <= 10
    rounds = problem.blocks.rounds
    assert rounds["along"] == 0
    assert rounds.total() == result.n_iter + 1
    assert rounds["value_and_gradient"] <= 1  # the last step, after which no Hessian is needed


def test_newton_is_damped_where_the_full_step_would_overshoot():
    X = np.array([[-1.0], [1.0], [1.2], [-1.1]])
    problem = objective(X, [0.0, 1.0, 0.0, 1.0], Logistic(), parts=1)
    start = np.array([8.0, 0.0])  # curvature is almost gone out here: the full step overshoots
    result = SOLVERS["newton"](problem, start=start, tol=1e-12)
    assert result.history[1].step_size < 1.0
    assert problem.blocks.rounds["along"] == sum(r.step_size < 1 for r in result.history[1:])
    assert result.converged
    assert (np.diff([record.loss for record in result.history]) <= 0).all()


def test_a_change_of_penalty_gives_newton_another_hessian():
    problem = logistic()
    steer = [lambda state, record: Change(reg_param=0.5) if record.iteration == 2 else None]
    result = SOLVERS["newton"](problem, steer, tol=1e-14)
    fresh = SOLVERS["newton"](problem.regularized(0.5), tol=1e-14)
    np.testing.assert_allclose(result.state.v, fresh.state.v, atol=1e-8)


@pytest.mark.parametrize("units", [1.0, 1e-9, 1e9])
def test_the_newton_system_is_solved_at_any_units(units):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((5, 5))
    D = np.diag([1.0, units, 1.0, units**0.5, 1.0])
    H, g = D @ (A @ A.T + np.eye(5)) @ D, D @ rng.standard_normal(5)
    scaled = np.linalg.solve(A @ A.T + np.eye(5), np.linalg.solve(D, g))
    np.testing.assert_allclose(D @ newton.solve(H, g), scaled, rtol=1e-10)


def test_the_newton_system_of_a_singular_hessian_has_the_step_of_least_norm():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((6, 3))
    A /= np.linalg.norm(A, axis=1, keepdims=True)  # a unit diagonal, so that norms are not scaled
    H = A @ A.T
    g = H @ rng.standard_normal(6)
    x = newton.solve(H, g)
    np.testing.assert_allclose(H @ x, g, atol=1e-12)
    np.testing.assert_allclose(x, np.linalg.pinv(H) @ g, atol=1e-11)


def test_a_hessian_of_zeros_moves_nothing_along_it():
    x = newton.solve(np.diag([2.0, 0.0]), np.array([4.0, 0.0]))
    np.testing.assert_allclose(x, [2.0, 0.0], rtol=1e-15)
