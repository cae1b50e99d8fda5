from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from arrays import slopes
from mllib_ext.penalties import L2, L1Box


@pytest.fixture
def penalty():
    return L2(0.3, np.array([1.0, 0.0, 4.0]))


def test_the_penalty_is_half_lambda_times_the_scaled_squares(penalty):
    # 0.3 / 2 * (1 * 4 + 0 * 9 + 4 * 1)
    assert penalty.value(np.array([2.0, 3.0, -1.0])) == pytest.approx(1.2, rel=1e-15)


def test_a_column_for_each_class_is_penalised_like_its_own_vector(penalty):
    coef = np.random.default_rng(0).standard_normal((3, 2))
    both = penalty.value(coef[:, 0]) + penalty.value(coef[:, 1])
    assert penalty.value(coef) == pytest.approx(both, rel=1e-14)  # a few roundings
    for k in range(2):
        np.testing.assert_array_equal(penalty.gradient(coef)[:, k], penalty.gradient(coef[:, k]))


def test_the_gradient_and_the_curvature_are_those_of_the_value(penalty):
    coef = np.array([0.5, -2.0, 1.5])
    # Central differences are exact for a quadratic but for rounding, eps * 10 / h.
    expected = slopes(penalty.value, coef, 1e-3)
    np.testing.assert_allclose(penalty.gradient(coef), expected, atol=1e-11)
    np.testing.assert_allclose(
        np.diag(penalty.curvature()), slopes(penalty.gradient, coef, 1e-3), atol=1e-11
    )


def test_without_strength_nothing_is_penalised():
    penalty = L2(0.0, np.ones(2))
    assert penalty.value(np.array([1e9, -1e9])) == 0.0
    assert not penalty.gradient(np.ones((2, 3))).any()
    assert not penalty.curvature().any()


def test_a_penalty_is_a_frozen_value(penalty):
    with pytest.raises(dataclasses.FrozenInstanceError):
        penalty.strength = 1.0


# --- L1 and bounds ------------------------------------------------------------------------------


def l1_box():
    """Free, penalised, bounded on either side, both at once, fixed."""
    return L1Box(
        0.5,
        np.array([0.0, 1.0, 0.0, 2.0, 1.0, 3.0]),
        np.array([-np.inf, -np.inf, -1.0, -0.3, 0.2, 0.7]),
        np.array([np.inf, np.inf, np.inf, 0.4, 0.9, 0.7]),
    )


def test_the_elastic_net_is_both_penalties_under_one_strength():
    coef, alpha, strength = np.array([0.5, -2.0, 0.0]), 0.3, 0.7
    ridge = L2(strength, (1 - alpha) * np.ones(3))
    lasso = L1Box.unbounded(strength, alpha * np.ones(3))
    # 0.7 * (0.7 / 2 * 4.25 + 0.3 * 2.5)
    assert ridge.value(coef) + lasso.value(coef) == pytest.approx(1.56625, rel=1e-14)
    assert not lasso.bounded
    assert l1_box().bounded


def test_outside_its_bounds_the_penalty_is_infinite_and_on_them_it_is_not():
    h = l1_box()
    v = np.array([9.0, -2.0, -1.0, 0.4, 0.9, 0.7])
    assert h.value(v) == pytest.approx(0.5 * (2.0 + 2 * 0.4 + 0.9 + 3 * 0.7), rel=1e-14)
    assert h.value(v - 1e-9 * np.eye(6)[2]) == np.inf
    inside = h.project(v + 5.0)
    assert h.rise(v, inside) == pytest.approx(h.value(inside) - h.value(v), rel=1e-14)


@pytest.mark.parametrize("step", [0.8, np.linspace(0.2, 2.0, 6)])
def test_the_proximal_operator_is_the_minimum_that_it_stands_for(step):
    h = l1_box()
    grid = np.linspace(-4, 4, 8001)  # 0.001 apart: it holds every bound
    for v in np.random.default_rng(0).uniform(-3, 3, (20, 6)):
        u = h.prox(v, step)
        for j in range(6):
            one = h.take(np.array([j]))
            penalty = np.where(
                (grid >= one.lower - 1e-12) & (grid <= one.upper + 1e-12),
                one.threshold * np.abs(grid), np.inf,
            )  # fmt: skip
            eta = np.broadcast_to(step, 6)[j]
            assert u[j] == pytest.approx(
                grid[np.argmin(penalty + (grid - v[j]) ** 2 / (2 * eta))], abs=1e-3
            )


def test_a_soft_threshold_ends_at_zero_itself_and_at_the_bound_itself():
    u = l1_box().prox(np.array([-0.1, -0.1, -5.0, 9.0, 0.1, 0.1]))
    np.testing.assert_array_equal(u, [-0.1, 0.0, -1.0, 0.4, 0.2, 0.7])
    assert not np.signbit(u[1])  # a coefficient of -0.0 would be printed as one


def test_the_subgradient_of_least_norm_is_the_steepest_descent():
    h = l1_box()
    rng = np.random.default_rng(1)
    for _ in range(50):
        v = h.project(rng.choice([-1.0, -0.3, 0.0, 0.4, 0.5], 6))
        gradient = rng.uniform(-2, 2, 6)
        found = h.subgradient(v, gradient)
        for j in range(6):
            e = 1e-6 * np.eye(6)[j]  # the penalty is linear about here
            right = gradient[j] + (h.value(v + e) - h.value(v)) / 1e-6
            left = gradient[j] - (h.value(v - e) - h.value(v)) / 1e-6
            # Down to the right, down to the left, or nowhere down.
            expected = right if right < 0 else left if left > 0 else 0.0
            assert found[j] == pytest.approx(expected, abs=1e-8)


def test_residual_and_subgradient_vanish_together():
    h = l1_box()
    v = np.array([1.0, 0.0, -1.0, 0.4, 0.5, 0.7])
    optimal = np.array([0.0, -0.4, 0.3, -2.0, -0.5, 99.0])
    assert not h.subgradient(v, optimal).any()
    np.testing.assert_allclose(h.residual(v, optimal), 0.0, atol=1e-15)
    for j in range(5):  # the last is fixed
        off = optimal + 5.0 * np.eye(6)[j] * np.sign(-optimal[j] or 1.0)
        assert h.subgradient(v, off)[j] != 0.0
        assert h.residual(v, off)[j] != 0.0
    np.testing.assert_array_equal(  # without weights or bounds it is the gradient
        L1Box.unbounded(1.0, np.zeros(6)).residual(np.zeros(6), optimal), optimal
    )


def test_weights_below_zero_and_crossed_bounds_are_refused():
    ones = np.ones(2)
    with pytest.raises(ValueError, match="L1 weights: expected 0 or more, found -1"):
        L1Box.unbounded(1.0, np.array([1.0, -1.0]))
    for lower in (2.0, np.nan):
        with pytest.raises(ValueError, match="bounds of parameter 1: expected lower <= upper"):
            L1Box(1.0, ones, np.array([0.0, lower]), ones)
