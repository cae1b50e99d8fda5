from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.special import log_softmax
from sklearn.neural_network import MLPClassifier, MLPRegressor

from arrays import slopes
from mllib_ext import network as network_module
from mllib_ext.losses import Multinomial, SquaredError
from mllib_ext.network import ACTIVATIONS, Network, margins, value_and_gradient

N = 40
NAMES = {"sigmoid": "logistic", "tanh": "tanh", "relu": "relu"}  # what scikit-learn has

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def rows(d=4, k=3):
    rng = np.random.default_rng(5)
    X = rng.standard_normal((N, d))
    X[rng.random((N, d)) < 0.4] = 0.0
    return X, rng.integers(0, k, N).astype(float), rng.uniform(0, 2, N)


def flat(gradient):
    return np.concatenate([array.ravel() for part in gradient for array in part])


def evaluate(network, loss, v, X, y, w, **options):
    value, gradient = value_and_gradient(network, loss, network.split(v), X, y, w, **options)
    return value, flat(gradient)


def point(network, scale=0.7):
    return np.random.default_rng(1).normal(size=network.n_weights) * scale


@every_activation
@pytest.mark.parametrize("layers", [(4, 3), (4, 5, 3), (4, 5, 6, 3)], ids=str)
def test_the_gradient_is_that_of_finite_differences(activation, layers):
    network, loss, data = Network(layers, activation), Multinomial(3), rows()
    v = point(network)
    _, gradient = evaluate(network, loss, v, *data, rows=16)
    expected = slopes(lambda u: evaluate(network, loss, u, *data)[0], v)
    # Differences of a sum of 40 losses: 1e-9 of its size.
    np.testing.assert_allclose(gradient, expected, rtol=1e-7, atol=1e-6)


@every_activation
def test_a_dropout_thins_the_network_and_its_gradient_alike(activation):
    network, loss, data = Network((4, 30, 20, 1), activation), SquaredError(), rows()
    v = point(network, 0.3)

    def thinned(u, seed=0, rate=0.4):
        rng = np.random.default_rng(seed)  # the same masks for every point
        return evaluate(network, loss, u, *data, rows=16, dropout=rate, rng=rng)

    expected = slopes(lambda u: thinned(u)[0], v)
    np.testing.assert_allclose(thinned(v)[1], expected, rtol=1e-6, atol=1e-5)
    whole = evaluate(network, loss, v, *data)
    assert thinned(v)[0] != pytest.approx(whole[0], rel=1e-3)
    assert thinned(v)[0] != thinned(v, seed=1)[0]
    assert thinned(v, rate=0.0)[0] == pytest.approx(whole[0], rel=1e-12)


def test_what_is_left_by_a_dropout_is_as_much_on_average():
    # One linear output of one hidden layer: its mean over masks is that of the whole network.
    network = Network((4, 200, 1), "relu")
    parts = network.split(point(network, 0.1))
    X, y, w = rows()
    rng = np.random.default_rng(0)
    loss = SquaredError()

    def bias_gradient(**options):  # the sum of w (z - y), linear in z
        return value_and_gradient(network, loss, parts, X, y, w, **options)[1][-1][1][0]

    drawn = [bias_gradient(dropout=0.5, rng=rng) for _ in range(400)]
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert np.mean(drawn) == pytest.approx(bias_gradient(), abs=4 * error)
    assert error < 0.05 * abs(bias_gradient())


@pytest.mark.parametrize("activation", NAMES)
@pytest.mark.parametrize("task", ["classes", "number"])
def test_loss_and_gradient_are_scikit_learns_at_the_same_weights(activation, task):
    X, y, w = rows()
    y = y if task == "classes" else X @ [1.0, -2.0, 0.5, 3.0] + y
    estimator = MLPClassifier if task == "classes" else MLPRegressor
    k = 3 if task == "classes" else 1
    theirs = estimator(
        hidden_layer_sizes=(5, 6), activation=NAMES[activation], alpha=0.0, max_iter=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one iteration, which sets its shapes
        theirs.fit(X, y)
    network = Network((4, 5, 6, k), activation)
    v = point(network)
    theirs.coefs_ = [W for W, _ in network.split(v)]
    theirs.intercepts_ = [b for _, b in network.split(v)]
    targets = np.eye(3)[y.astype(int)] if task == "classes" else y[:, None]
    shapes = [(N, q) for q in network.layers]
    value, coefs, intercepts = theirs._backprop(
        X, targets, w, [X, *map(np.empty, shapes[1:])], [np.empty(s) for s in shapes[1:]],
        [np.empty_like(c) for c in theirs.coefs_], [np.empty_like(b) for b in theirs.intercepts_],
    )  # fmt: skip
    loss = Multinomial(3) if task == "classes" else SquaredError()
    found, gradient = evaluate(network, loss, v, X, y, w)
    # scikit-learn divides gradients by the weights, losses by the rows or by the weights.
    expected = flat(list(zip(coefs, intercepts, strict=True))) * w.sum()
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-12)
    assert found == pytest.approx(value * w.sum(), rel=1e-10)
    z = margins(network, network.split(v), X)
    if task == "classes":
        np.testing.assert_allclose(log_softmax(z, axis=1), theirs.predict_log_proba(X), rtol=1e-10)
    else:
        np.testing.assert_allclose(z[:, 0], theirs.predict(X), rtol=1e-10)


@every_activation
def test_tiles_precisions_and_sparse_rows_agree(activation, monkeypatch):
    network, loss, (X, y, w) = Network((4, 7, 5, 3), activation), Multinomial(3), rows()
    v = point(network)
    value, gradient = evaluate(network, loss, v, X, y, w, rows=N)
    monkeypatch.setattr(network_module, "SPAN", 15)  # several, and one that is not full
    for other, tile, tolerance in (
        (X, 1, 1e-12),
        (X, 7, 1e-12),
        (sp.csr_array(X), 16, 1e-12),
        (X.astype(np.float32), 7, 2e-5),  # 1e-7 a product, several of them
        (sp.csr_array(X.astype(np.float32)), 7, 2e-5),
    ):
        parts = [(W.astype(other.dtype), b.astype(other.dtype)) for W, b in network.split(v)]
        one, by_parts = value_and_gradient(network, loss, parts, other, y, w, rows=tile)
        assert one == pytest.approx(value, rel=tolerance)
        assert {a.dtype for part in by_parts for a in part} == {other.dtype}
        np.testing.assert_allclose(flat(by_parts), gradient, rtol=tolerance, atol=10 * tolerance)
        z = margins(network, parts, other, tile)
        assert z.dtype == other.dtype
        np.testing.assert_allclose(
            z, margins(network, network.split(v), X), rtol=tolerance, atol=10 * tolerance
        )


@every_activation
def test_activations_stay_finite_far_out(activation):
    network = Network((1, 1, 3), activation)
    v = np.array([1.0, 0.0, 1.0, -1.0, 0.5, 0.0, 0.0, 0.0])
    X = np.array([[-1000.0], [1000.0], [0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, gradient = evaluate(network, Multinomial(3), v, X, np.zeros(3), np.ones(3))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_gelu_is_a_normal_distribution_function_to_5e_4():
    from scipy.special import ndtr

    z = np.linspace(-8, 8, 4001)
    out = np.empty_like(z)
    ACTIVATIONS["gelu"].value(z, out)
    assert np.abs(out - z * ndtr(z)).max() < 5e-4


@pytest.mark.parametrize(("activation", "variance"), [("tanh", 2 / 700), ("relu", 2 / 400)])
def test_initial_weights_have_the_variance_of_their_activation(activation, variance):
    network = Network((400, 300, 2), activation)
    v = network.initial(np.random.default_rng(3))
    (W, b), (_, other) = network.split(v)
    # 120,000 numbers: their variance is known to about 0.4 %.
    assert W.var() == pytest.approx(variance, rel=0.02)
    assert np.abs(W.mean()) < 4 * np.sqrt(variance / W.size)
    assert not b.any()
    assert not other.any()
    assert np.array_equal(v, network.initial(np.random.default_rng(3)))
