from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from arrays import slopes
from mllib_ext.penalties import L2


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
