"""Update rules and schedules by themselves: the published recurrences, and scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from mllib_ext.optimizers import updates
from mllib_ext.optimizers.schedules import SCHEDULES, Schedule
from mllib_ext.optimizers.updates import RULES, own, rule

A = np.diag([1.0, 4.0, 25.0])
B = np.array([1.0, -2.0, 3.0])
START = np.array([2.0, 1.0, -1.0])


def gradient(v):
    return A @ v - B


def path(name, n, eta, momentum=0.0, ridge=0.0):
    """Points of a run on the quadratic with gradient ``A v - B``, the start left out."""
    method, v, points = rule(name, momentum), START.copy(), []
    memory = method.start(len(v))
    for _ in range(n):
        memory = method.move(v, gradient(v), ridge * v, memory, eta)
        points.append(v.copy())
    return np.array(points)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("sgd", lambda v: SGDOptimizer(v, 0.02, momentum=0.8, nesterov=False)),
        ("nesterov", lambda v: SGDOptimizer(v, 0.02, momentum=0.8, nesterov=True)),
        ("adam", lambda v: AdamOptimizer(v, 0.02)),
    ],
)
def test_a_rule_takes_the_steps_of_scikit_learns_networks(name, theirs):
    v = [START.copy()]
    optimizer, expected = theirs(v), []
    for _ in range(30):
        optimizer.update_params(v, [gradient(v[0])])
        expected.append(v[0].copy())
    # Adam's epsilon of 1e-8 stands there beside a root that is not yet freed of its bias.
    np.testing.assert_allclose(path(name, 30, 0.02, 0.8), expected, rtol=1e-6)


def test_adagrad_divides_by_the_root_of_all_squares_so_far():
    points = np.vstack([START, path("adagrad", 20, 0.3)])
    squares = np.cumsum([gradient(v) ** 2 for v in points[:-1]], axis=0)
    steps = [-0.3 * gradient(v) / np.sqrt(s) for v, s in zip(points, squares, strict=False)]
    np.testing.assert_allclose(np.diff(points, axis=0), steps, rtol=1e-8)


def test_adamw_is_adam_by_the_loss_alone_and_a_decay_beside_it():
    method, v = rule("adamw"), START.copy()
    adam = rule("adam")
    ours, theirs = method.start(3), adam.start(3)
    for _ in range(20):
        step = np.zeros(3)
        theirs = adam.move(step, gradient(v), np.zeros(3), theirs, 0.05)
        expected = v + step - 0.05 * 0.3 * v
        ours = method.move(v, gradient(v), 0.3 * v, ours, 0.05)
        np.testing.assert_allclose(v, expected, rtol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_but_adamw_finds_the_minimum_of_the_penalised_quadratic(name):
    ridge = 0.5
    eta = {"adagrad": 0.5, "adam": 0.05, "adamw": 0.05}.get(name, 0.02)
    found = path(name, 2000, eta, 0.5, ridge)[-1]
    optimum = np.linalg.solve(A + ridge * np.eye(3), B)
    if name == "adamw":  # what it finds is another point: its two steps balance there
        assert np.abs(found - optimum).max() > 0.01
    else:
        np.testing.assert_allclose(found, optimum, rtol=1e-4)


@pytest.mark.parametrize("name", RULES)
def test_a_step_by_gradients_changes_neither_them_nor_copies(name):
    method, v, g = rule(name, 0.9), START.copy(), gradient(START)
    r, memory = 0.1 * START, method.start(3)
    memory = method.move(v, g, r, memory, 0.1)
    copied = own(memory)
    kept = [np.copy(part) for part in copied]
    method.move(v, g, r, memory, 0.1)
    np.testing.assert_array_equal(g, gradient(START))
    np.testing.assert_array_equal(r, 0.1 * START)
    for old, new in zip(kept, copied, strict=True):
        np.testing.assert_array_equal(old, new)
    assert own(memory, np.float32)[0].dtype == np.float32


@pytest.mark.parametrize("name", RULES)
def test_many_parameters_move_as_few_do(name, monkeypatch):
    rng = np.random.default_rng(0)
    v, g, r = rng.normal(size=(3, 1000))
    whole, parts, method = v.copy(), v.copy(), rule(name, 0.9)
    memories = method.start(1000), method.start(1000)
    for _ in range(3):
        monkeypatch.setattr(updates, "CHUNK", 1 << 14)
        first = method.move(whole, g, r, memories[0], 0.1)
        monkeypatch.setattr(updates, "CHUNK", 7)
        memories = first, method.move(parts, g, r, memories[1], 0.1)
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(memories[0][0], memories[1][0])


def test_a_rule_that_is_not_known():
    with pytest.raises(ValueError, match=r"expected one of .*'adamw'.*, found 'rmsprop'"):
        rule("rmsprop")


def test_schedules_are_their_formulas():
    def rates(name, **more):
        schedule = Schedule(name, 0.5, n_passes=10, **more)
        return [schedule.rate(100 * p, p) for p in (0.5, 3.5, 9.5)]

    assert rates("constant") == [0.5, 0.5, 0.5]
    assert rates("inverse", decay=0.1) == pytest.approx(
        [0.5 / (1 + 0.05 * t) for t in (50, 350, 950)]
    )
    assert rates("cosine") == pytest.approx(
        [0.25 * (1 + math.cos(math.pi * x)) for x in (0.05, 0.35, 0.95)]
    )
    assert rates("step") == pytest.approx([0.5, 0.05, 0.005])
    for name in SCHEDULES:
        plain = rates(name)
        assert rates(name, warm_up=5.0) == pytest.approx([0.1 * plain[0], 0.7 * plain[1], plain[2]])
