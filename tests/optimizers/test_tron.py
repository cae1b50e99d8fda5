"""Trust-region Newton by itself: systems that are solved together; no Spark."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from arrays import Arrays
from mllib_ext.hinges import SquaredHinge
from mllib_ext.losses import Multinomial
from mllib_ext.objective import Coordinates, Objective
from mllib_ext.optimizers import lbfgs, tron
from mllib_ext.optimizers.smooth import minimize
from mllib_ext.optimizers.tron import conjugate_gradients
from mllib_ext.penalties import L2

RNG = np.random.default_rng(3)
SIZE, SYSTEMS = 30, 4
GROUPS = np.arange(SIZE * SYSTEMS) % SYSTEMS


def curved(system):
    """A positive definite matrix: eigenvalues of 1, and some far from them and from all others."""
    Q, _ = np.linalg.qr(np.random.default_rng(system).normal(size=(SIZE, SIZE)))
    values = np.ones(SIZE)
    values[: system + 1] = 10.0 + 7.0 * system + 13.0 * np.arange(system + 1)
    return (Q * values) @ Q.T


BLOCKS = [curved(system) for system in range(SYSTEMS)]


class Product:
    """``H @ d`` of all systems, counted."""

    def __init__(self, blocks=BLOCKS):
        self.blocks, self.count = blocks, 0

    def __call__(self, d):
        self.count += 1
        out = np.empty_like(d)
        for system, H in enumerate(self.blocks):
            out[system == GROUPS] = H @ d[system == GROUPS]
        return out


def alone(system, gradient, tolerance, radius=np.inf):
    count = 0

    def product(d):
        nonlocal count
        count += 1
        return BLOCKS[system] @ d

    return *conjugate_gradients(product, gradient[system == GROUPS], tolerance, radius), count


def test_systems_that_go_on_together_are_solved_as_each_by_itself():
    gradient, product = RNG.normal(size=SIZE * SYSTEMS), Product()
    p, r = conjugate_gradients(product, gradient, 1e-3, groups=GROUPS)
    counts = []
    for system in range(SYSTEMS):
        ours = system == GROUPS
        expected, _, count = alone(system, gradient, 1e-3)
        # Conjugate gradients make much of the order in which products are added up.
        np.testing.assert_allclose(p[ours], expected, atol=1e-5)
        np.testing.assert_allclose(r[ours], -gradient[ours] - BLOCKS[system] @ p[ours], atol=1e-8)
        assert np.linalg.norm(r[ours]) <= 1e-3 * np.linalg.norm(gradient[ours])
        counts.append(count)
    assert len(set(counts)) > 1
    assert product.count == max(counts), "no more products than the slowest needs"
    together = Product()
    conjugate_gradients(together, gradient, 1e-3)
    assert together.count > product.count


def test_every_system_stays_within_its_share_of_the_radius():
    gradient = RNG.normal(size=SIZE * SYSTEMS)
    gradient[GROUPS == 2] = 0.0  # one that is solved
    norms = np.array([np.linalg.norm(gradient[s == GROUPS]) for s in range(SYSTEMS)])
    for radius in (1e-3, 0.3, 1.0, 3.0):
        p, r = conjugate_gradients(Product(), gradient, 1e-6, radius, GROUPS)
        lengths = np.array([np.linalg.norm(p[s == GROUPS]) for s in range(SYSTEMS)])
        share = radius * norms / np.linalg.norm(norms)
        assert (lengths <= share * (1 + 1e-12)).all()
        assert np.linalg.norm(p) <= radius * (1 + 1e-12)
        for system in range(SYSTEMS):
            ours = system == GROUPS
            expected, residual, _ = alone(system, gradient, 1e-6, share[system])
            np.testing.assert_allclose(p[ours], expected, rtol=1e-7, atol=1e-12)
            np.testing.assert_allclose(r[ours], residual, rtol=1e-5, atol=1e-9)


def test_a_direction_without_curvature_goes_to_the_border_or_nowhere():
    flat = [np.zeros((SIZE, SIZE)), *BLOCKS[1:]]
    gradient, ours = RNG.normal(size=SIZE * SYSTEMS), GROUPS == 0
    p, _ = conjugate_gradients(Product(flat), gradient, 1e-6, 2.0, GROUPS)
    share = 2.0 * np.linalg.norm(gradient[ours]) / np.linalg.norm(gradient)
    expected = -share * gradient[ours] / np.linalg.norm(gradient[ours])
    np.testing.assert_allclose(p[ours], expected, rtol=1e-12)
    p, _ = conjugate_gradients(Product(flat), gradient, 1e-6, groups=GROUPS)
    assert not p[ours].any()
    for system in range(1, SYSTEMS):
        solution = -np.linalg.solve(BLOCKS[system], gradient[system == GROUPS])
        np.testing.assert_allclose(p[system == GROUPS], solution, atol=1e-4)
    assert not conjugate_gradients(Product(), 0 * gradient, 0.1, 1.0, GROUPS)[0].any()


def rare_words(k=3, n=600, d=400, seed=0):
    """Rows (n, d) of length 1, most of whose columns are in few rows, and labels 0 .. k-1."""
    rng = np.random.default_rng(seed)
    chance = np.minimum(0.5, 3.0 / np.arange(1, d + 1))
    X = (rng.random((n, d)) < chance) * rng.uniform(1, 3, d)
    X[:, 0] = 1.0
    y = (X @ rng.normal(size=(d, k))).argmax(axis=1).astype(float)
    return sp.csr_array(X / np.linalg.norm(X, axis=1)[:, None]), y


def penalised(loss, scale, strength=1e-3):
    """The loss with a penalty on the coefficients as they are, by parameters scaled so."""
    X, y = rare_words()
    mean = np.asarray(X.mean(axis=0)).ravel()
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    seen = Coordinates(mean, scale, loss.n_outputs, True)
    return Objective(Arrays.of(X, y), loss, seen, L2(strength, inverse**2))


def deviations():
    X, _ = rare_words()
    mean = np.asarray(X.mean(axis=0)).ravel()
    return np.sqrt(np.maximum(np.asarray(X.multiply(X).mean(axis=0)).ravel() - mean**2, 0))


def test_the_outputs_of_a_sum_of_losses_do_not_meet_in_the_hessian():
    problem = penalised(SquaredHinge(3), np.ones(400))
    groups = problem.groups
    assert groups is not None
    size = len(problem.coordinates.zeros())
    assert groups.shape == (size,)
    for output in range(3):
        p = np.where(groups == output, RNG.normal(size=size), 0.0)
        product = problem.hvp(problem.coordinates.zeros(), p)
        assert product[groups == output].all()
        assert not product[groups != output].any()
    assert penalised(Multinomial(3), np.ones(400)).groups is None
    assert penalised(SquaredHinge(1), np.ones(400)).groups is None


@pytest.mark.parametrize("method", [tron, lbfgs], ids=["tron", "l-bfgs"])
def test_rare_columns_cost_few_rounds_where_the_penalty_counts_in_the_scale(method):
    s, strength = deviations(), 1e-3
    rounds, losses = {}, {}
    scales = {"both": np.where(s > 0, np.hypot(s, np.sqrt(strength)), 0), "deviations": s}
    for name, scale in scales.items():
        problem = penalised(SquaredHinge(3), scale, strength)
        settings = method.SETTINGS(reg_param=strength, max_iter=500, tol=1e-8)
        result = minimize(method, problem.regularized, problem.coordinates.zeros(), settings)
        losses[name], rounds[name] = result.state.loss, problem.blocks.rounds.total()
    assert losses["both"] == pytest.approx(losses["deviations"], rel=1e-6)
    assert rounds["both"] < 0.7 * rounds["deviations"]
