from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import ElasticNet

from composites import (
    UNBOUNDED,
    composite,
    elastic_net,
    features,
    lasso,
    linear,
    run,
    standardised,
    value,
)
from mllib_ext.optimizers import owlqn, proximal
from mllib_ext.optimizers.loop import Change
from mllib_ext.penalties import L1Box


@pytest.mark.parametrize("name", list(UNBOUNDED))
def test_it_ends_where_the_proximal_method_ends(name):
    problem = UNBOUNDED[name]()
    expected = run(proximal, problem).state
    result = run(owlqn, problem)
    assert result.converged
    assert result.state.loss == pytest.approx(expected.loss, rel=1e-10)
    # Its last ten losses lie within 1e-12: parameters within the root of that, times some tens.
    np.testing.assert_allclose(result.state.v, expected.v, atol=2e-5)
    np.testing.assert_array_equal(result.state.v == 0, expected.v == 0)
    assert result.state.loss == value(problem, result.state.v)


def test_the_elastic_net_is_scikit_learns():
    reference = ElasticNet(alpha=0.2, l1_ratio=0.4, tol=1e-14, max_iter=100000)
    reference.fit(standardised(features()), linear(features()))
    v = run(owlqn, elastic_net(), tol=1e-14).state.v
    np.testing.assert_allclose(v, np.append(reference.coef_, reference.intercept_), atol=1e-6)


def test_without_a_penalty_the_iterates_are_those_of_lbfgs_with_backtracking():
    # Least squares of one column: the first pair is exact, and so is the second step.
    X = features(1)
    problem = composite(X, linear(X) - linear(X).mean(), reg=0.0)
    result = run(owlqn, problem, tol=1e-10)
    z = standardised(X)[:, 0]
    assert result.n_iter == 2
    assert result.state.v[0] == pytest.approx(z @ linear(X) / len(z), rel=1e-8)


def test_a_step_stays_in_the_orthant_of_its_point():
    h = L1Box.unbounded(1.0, np.array([1.0, 1.0, 1.0, 1.0, 0.0]))
    v = np.array([1.0, -1.0, 0.0, 0.0, 1.0])
    steepest = np.array([0.3, 0.3, -0.3, 0.0, 5.0])
    u = np.array([-0.1, -3.0, -0.2, 0.4, -9.0])
    # Crossed; not crossed; 0 and sent the wrong way; 0 and content; without a penalty to change.
    np.testing.assert_array_equal(
        owlqn.within_orthant(h, v, steepest, u), [0.0, -3.0, 0.0, 0.0, -9.0]
    )


def strongly_correlated():
    X = features(8) @ (np.eye(8) + 3.0)
    return composite(X, linear(X), reg=0.02)


def test_each_halving_of_a_step_is_one_more_round_and_losses_fall():
    problem = strongly_correlated()
    result = run(owlqn, problem, tol=1e-4)
    spent = problem.blocks.rounds["value_and_gradient"]
    assert spent == problem.blocks.rounds.total()
    steps = [record.step_size for record in result.history[1:]]
    v = problem.coordinates.zeros()
    steepest = problem.nonsmooth.subgradient(v, problem.value_and_gradient(v)[1])
    steps[0] *= np.linalg.norm(steepest)  # the first one tried is of length 1
    halvings = -np.log2(steps)
    assert halvings.max() >= 1
    assert spent - 1 == pytest.approx(result.n_iter + halvings.sum(), abs=1e-9)
    assert (np.diff([record.loss for record in result.history]) <= 1e-14).all()


def test_no_penalised_parameter_moves_against_its_steepest_descent():
    problem = strongly_correlated()
    states = []
    run(owlqn, problem, [lambda state, _: states.append(state)], tol=1e-4)
    h = problem.nonsmooth
    for before, after in pairwise(states):
        steepest = h.subgradient(before.v, before.gradient)
        assert ((after.v - before.v) * steepest <= 0)[h.weight > 0].all()


def test_a_change_of_strength_forgets_the_pairs():
    seen = []

    def steer(state, record):
        seen.append(len(state.pairs))
        return Change(reg_param=0.3) if record.iteration == 4 else None

    result = run(owlqn, lasso(), [steer])
    assert seen[:6] == [0, 1, 2, 3, 4, 1]
    fresh = run(owlqn, lasso(), reg_param=0.3)
    assert result.state.loss == pytest.approx(fresh.state.loss, rel=1e-10)


def test_bounds_are_refused():
    problem = composite(features(2), linear(features(2)), reg=0.1, lower=0.0)
    with pytest.raises(ValueError, match="solver owl-qn: expected no bounds"):
        run(owlqn, problem)
