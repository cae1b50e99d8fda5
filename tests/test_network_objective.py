from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp

from arrays import Arrays, slopes
from mllib_ext.blockfile import Block
from mllib_ext.losses import Multinomial, SquaredError
from mllib_ext.network import Network
from mllib_ext.network_objective import NetworkObjective, value_and_gradient
from mllib_ext.optimizers import lbfgs
from mllib_ext.optimizers.smooth import minimize

N, LAYERS = 60, (4, 5, 3)


def rows():
    rng = np.random.default_rng(2)
    X = rng.standard_normal((N, 4))
    X[rng.random((N, 4)) < 0.5] = 0.0
    w = rng.uniform(0, 2, N)
    w[:5] = 0.0
    return X, rng.integers(0, 3, N).astype(float), w


def make(parts=3, strength=0.1, kind=np.asarray, activation="tanh"):
    X, y, w = rows()
    data = Arrays.of(kind(X), y, w, parts)
    return NetworkObjective(data, Network(LAYERS, activation), Multinomial(3), strength, rows=16)


def point(objective):
    return np.random.default_rng(0).normal(size=objective.network.n_weights)


def test_the_gradient_is_that_of_finite_differences_and_biases_are_free():
    objective = make()
    v = point(objective)
    _, gradient = objective.value_and_gradient(v)
    expected = slopes(lambda u: objective.value_and_gradient(u)[0], v)
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-8)
    free = make(strength=0.0)
    penalty = objective.value_and_gradient(v)[0] - free.value_and_gradient(v)[0]
    weights = sum(np.square(W).sum() for W, _ in objective.network.split(v))
    assert penalty == pytest.approx(0.05 * weights, rel=1e-12)


@pytest.mark.parametrize("parts", [2, 7])
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array])
def test_partitions_and_the_kind_of_rows_do_not_matter(parts, kind):
    objective, one = make(parts, kind=kind), make(1)
    v = point(one)
    found, expected = objective.value_and_gradient(v), one.value_and_gradient(v)
    assert found[0] == pytest.approx(expected[0], rel=1e-13)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-11, atol=1e-14)
    assert objective.blocks.rounds == {"value_and_gradient": 1}


def test_a_wide_sparse_block_computes_with_the_columns_that_it_stores():
    rng = np.random.default_rng(4)
    X = sp.random_array((20, 10_000), density=1e-3, format="csr", rng=rng)
    columns, places = np.unique(X.indices, return_inverse=True)
    y, w = rng.normal(size=20), rng.uniform(size=20)
    plain = Block(X, y, w, np.empty(0))
    wide = Block(X, y, w, np.empty(0), columns=columns, places=places.astype(np.int32))
    network = Network((10_000, 3, 1))
    v = rng.normal(size=network.n_weights)
    found, expected = (value_and_gradient(network, SquaredError(), 8, b, v) for b in (wide, plain))
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    assert found[1].values.shape == (len(columns), 3)
    np.testing.assert_allclose(found[1].toarray(), expected[1], rtol=1e-12)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-12)


def test_l_bfgs_gets_as_low_as_scipys_in_as_many_rounds():
    objective = make(strength=0.1, parts=1)
    v = 0.5 * point(objective)
    settings = lbfgs.SETTINGS(tol=1e-10, max_iter=500, reg_param=0.1)
    result = minimize(lbfgs, objective.regularized, v, settings)
    rounds = objective.blocks.rounds["value_and_gradient"]
    options = {"maxiter": 500, "maxfun": 1000, "ftol": 1e-12, "gtol": 1e-8}
    theirs = scipy.optimize.minimize(
        objective.value_and_gradient, v, jac=True, method="L-BFGS-B", options=options
    )
    assert result.converged
    # Of a loss as flat as this one both stop where it falls by little: they agree to 2e-5.
    assert result.state.loss <= theirs.fun * (1 + 1e-4)
    assert rounds < 1.5 * theirs.nfev
