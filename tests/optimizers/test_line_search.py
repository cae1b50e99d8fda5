from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from mllib_ext.optimizers.line_search import ARMIJO, CURVATURE, search


class Curve:
    """A function of one variable as an objective; counts what is asked of it."""

    def __init__(self, f, df, precision=1e-14):
        self.f, self.df, self.precision = f, df, precision
        self.asked: Counter[str] = Counter()

    def value_and_gradient(self, v):
        self.asked["value_and_gradient"] += 1
        return float(self.f(v[0])), np.array([self.df(v[0])])

    def value_gradient_hessian(self, v):
        self.asked["value_gradient_hessian"] += 1
        return float(self.f(v[0])), np.array([self.df(v[0])]), np.array([[4.0]])

    def along(self, v, p, steps):
        self.asked["along"] += 1
        x = v[0] + steps * p[0]
        return self.f(x), self.df(x) * p[0]

    def search(self, x, p, trial, **options):
        value, gradient = float(self.f(x)), np.array([self.df(x)])
        objective: Any = self  # the parts that a search uses
        return search(objective, np.array([x]), value, gradient, np.array([p]), trial, **options)


def parabola(curvature=1.0):
    return Curve(lambda x: curvature * x * x / 2, lambda x: curvature * x)


def falls_enough(curve, x, p, step):
    return curve.f(x + step * p) <= curve.f(x) + ARMIJO * step * curve.df(x) * p


def test_a_first_trial_that_holds_is_one_evaluation():
    curve = parabola()
    found = curve.search(3.0, -3.0, 1.0)
    assert found.step == 1.0
    assert found.evaluation == (0.0, np.array([0.0]))
    assert curve.asked == {"value_and_gradient": 1}


@pytest.mark.parametrize("longer", [False, True])
@pytest.mark.parametrize("trial", [3.0, 50.0, 900.0])
def test_a_step_too_long_is_shortened_with_all_trials_in_one_round(trial, longer):
    curve = parabola()
    found = curve.search(3.0, -3.0, trial, longer=longer)
    assert falls_enough(curve, 3.0, -3.0, found.step)
    assert found.evaluation[0] == curve.f(3.0 - 3.0 * found.step)
    assert curve.asked == {"value_and_gradient": 2, "along": 1}
    assert np.log2(trial / found.step) in range(1, 11)


def test_backtracking_takes_the_longest_step_that_holds_and_a_wolfe_search_the_lowest():
    # From 3 along -3 the parabola falls for steps below 2, and is lowest at 1.
    assert parabola().search(3.0, -3.0, 3.6).step == 1.8
    assert parabola().search(3.0, -3.0, 3.6, longer=True).step == 0.9


def test_a_wolfe_search_takes_a_longer_step_where_the_slope_has_hardly_changed():
    curve = parabola()
    found = curve.search(3.0, -3.0, 1e-2, longer=True)
    assert falls_enough(curve, 3.0, -3.0, found.step)
    assert abs(curve.df(3.0 - 3.0 * found.step)) <= CURVATURE * 3.0
    assert curve.asked == {"value_and_gradient": 2, "along": 1}
    assert parabola().search(3.0, -3.0, 1e-2).step == 1e-2  # backtracking alone is content


def test_a_first_trial_that_holds_stands_where_no_longer_step_is_lower():
    # It falls evenly to 1.01 below 0, where a wall stands: twice the step is far up the wall.
    curve = Curve(
        lambda x: np.where(np.asarray(x) > -1.01, x, -1.01 - 1e9 * (np.asarray(x) + 1.01)),
        lambda x: np.where(np.asarray(x) > -1.01, 1.0, -1e9),
    )
    found = curve.search(0.0, -1.0, 1.0, longer=True)
    assert found.step == 1.0
    assert curve.asked == {"value_and_gradient": 1, "along": 1}


@pytest.mark.parametrize("beyond", [np.inf, np.nan])
def test_a_step_into_a_region_without_finite_values_is_shortened(beyond):
    curve = Curve(
        lambda x: np.where(np.abs(x) < 5, np.square(x) / 2, beyond),
        lambda x: np.where(np.abs(x) < 5, x, beyond),
    )
    found = curve.search(3.0, -3.0, 64.0)
    assert falls_enough(curve, 3.0, -3.0, found.step)
    assert np.isfinite(found.evaluation[0])


@pytest.mark.parametrize("p", [3.0, 0.0, np.nan])
def test_a_direction_that_does_not_lead_down_has_no_step(p):
    curve = parabola()
    assert curve.search(3.0, p, 1.0) is None
    assert not curve.asked


def test_a_trial_a_million_times_too_long_is_shortened_a_thousandfold_a_round():
    curve = parabola()
    found = curve.search(3.0, -3.0, 1e7)
    assert falls_enough(curve, 3.0, -3.0, found.step)
    assert curve.asked == {"value_and_gradient": 2, "along": 3}


def test_there_is_no_step_where_the_slope_promises_a_fall_and_every_step_rises():
    curve = Curve(lambda x: 1.0 + np.abs(x - 3.0), lambda x: 1.0 + 0 * x)  # a kink at 3
    assert curve.search(3.0, -1.0, 1.0) is None
    # 2**-50 is below the rounding of a value of 1: there it ends, after five grids of ten.
    assert curve.asked == {"value_and_gradient": 1, "along": 5}


def test_a_fall_below_rounding_is_looked_for_in_one_round():
    curve = Curve(lambda x: 1.0 + 3e-14 * (x < 3.0), lambda x: 1e-13 + 0 * x)
    assert curve.search(3.0, -1.0, 1.0) is None
    assert curve.asked == {"value_and_gradient": 1, "along": 1}


def test_a_ceiling_allows_a_rise_up_to_it():
    assert parabola().search(1.0, -1.0, 3.0).step == 1.5
    assert parabola().search(1.0, -1.0, 3.0, ceiling=2.1).step == 3.0
    assert parabola().search(1.0, -1.0, 3.0, ceiling=1.9).step == 1.5


def test_a_rise_within_rounding_is_accepted_where_the_slope_says_down():
    noisy = Curve(lambda x: 1.0 + x * x / 2 + (x < 2.999e-9) * 3e-15, lambda x: x)
    assert noisy.search(3e-9, -3e-9, 1.0).step == 1.0
    exact = Curve(noisy.f, noisy.df, precision=1e-16)
    assert exact.search(3e-9, -3e-9, 1.0) is None


def test_what_is_evaluated_at_the_step_is_the_callers_choice():
    for trial in (1.0, 3.0):
        curve = parabola(1.0)
        found = curve.search(3.0, -3.0, trial, evaluate=curve.value_gradient_hessian)
        assert found.evaluation[2] == 4.0
        assert set(curve.asked) <= {"value_gradient_hessian", "along"}


# --- objectives of which a trial costs a gradient -------------------------------------------------


def alone(curve):
    """The same function without many steps in one round."""
    curve.along = None
    return curve


@pytest.mark.parametrize("trial", [3.0, 50.0, 900.0, 1e-2, 1e-4])
def test_a_wolfe_search_without_grids_bisects_and_doubles(trial):
    curve = alone(parabola())
    found = curve.search(3.0, -3.0, trial, longer=True)
    assert falls_enough(curve, 3.0, -3.0, found.step)
    assert abs(curve.df(3.0 - 3.0 * found.step)) <= CURVATURE * 3.0
    assert found.evaluation[0] == curve.f(3.0 - 3.0 * found.step)
    # One trial for every factor of two, at most, from the first step to one that holds.
    assert curve.asked["value_and_gradient"] <= 2 + abs(np.log2(trial))


def test_between_a_step_too_short_and_one_too_long_bisection_finds_one_that_holds():
    # It falls evenly up to 1, and then a wall stands: 0.7 is too short, 1.4 too long.
    curve = alone(
        Curve(lambda x: -x + 1e3 * max(x - 1, 0) ** 2, lambda x: -1 + 2e3 * max(x - 1, 0))
    )
    found = curve.search(0.0, 1.0, 0.7, longer=True)
    assert 0.7 < found.step < 1.4
    assert curve.df(found.step) >= CURVATURE * curve.df(0.0)
    assert falls_enough(curve, 0.0, 1.0, found.step)


def test_without_grids_there_is_no_step_where_every_one_rises_and_none_is_tried_below_rounding():
    curve = alone(Curve(lambda x: 1.0 + np.abs(x - 3.0), lambda x: 1.0 + 0 * x))
    assert curve.search(3.0, -1.0, 1.0) is None
    assert curve.asked == {"value_and_gradient": 20}
    coarse = alone(Curve(curve.f, curve.df, precision=1e-3))
    assert coarse.search(3.0, -1.0, 1.0) is None
    assert coarse.asked == {"value_and_gradient": 10}  # 2**-10 < 1e-3
