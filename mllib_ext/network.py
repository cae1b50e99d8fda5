r"""A fully connected network (multilayer perceptron): its margins, and the gradient of a loss.

.. math::

    a_0 = x, \qquad z_l = a_{l-1} W_l + b_l, \qquad a_l = f(z_l), \qquad l = 1, \dots, L

The margins of a row are :math:`z_L`: the last layer has no activation, and the loss of
:mod:`mllib_ext.losses` takes the margins as they are (softmax is part of the deviance). The
gradient is by backpropagation (Rumelhart, Hinton & Williams 1986).

Flat weights have the layout of pyspark.ml's ``weights``: layer by layer :math:`W_l`
``(n_in, n_out)``, row by row, then :math:`b_l`. All products are in the precision of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from mllib_ext.losses import Loss

# Rows that pass through all layers together: the activations of a few hundred units stay in a
# core's second-level cache, and the products are large enough for the full rate of a GEMM.
ROWS = 128
# Rows that make one product of the first layer's gradient.
SPAN = 1024

Parts = Sequence[tuple[np.ndarray, np.ndarray]]  # of every layer: W (n_in, n_out), b (n_out,)


# --- activations ---------------------------------------------------------------------------------


class Activation(NamedTuple):
    """An elementwise function of the margins of a hidden layer.

    Attributes
    ----------
    value : callable
        ``value(z, out)`` writes ``f(z)`` to ``out``, which is another array.
    chain : callable
        ``chain(delta, z, a)`` multiplies ``delta`` by ``f'(z)`` in place; ``a`` is ``f(z)``, and
        ``z`` may be overwritten.
    he : bool
        Initial weights by He et al.: see :meth:`Network.initial`.
    """

    value: Callable[[np.ndarray, np.ndarray], Any]
    chain: Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
    he: bool


def _sigmoid(z: np.ndarray, out: np.ndarray) -> None:
    np.negative(z, out=out)
    with np.errstate(over="ignore"):  # exp(-z) = inf gives the right 0
        np.exp(out, out=out)
    out += 1
    np.reciprocal(out, out=out)


def _sigmoid_chain(delta: np.ndarray, z: np.ndarray, a: np.ndarray) -> None:
    np.subtract(1, a, out=z)
    z *= a
    delta *= z


def _tanh(z: np.ndarray, out: np.ndarray) -> None:
    np.tanh(z, out=out)


def _tanh_chain(delta: np.ndarray, z: np.ndarray, a: np.ndarray) -> None:
    np.multiply(a, a, out=z)
    np.subtract(1, z, out=z)
    delta *= z


def _relu(z: np.ndarray, out: np.ndarray) -> None:
    np.maximum(z, 0, out=out)


def _relu_chain(delta: np.ndarray, z: np.ndarray, a: np.ndarray) -> None:
    delta *= a > 0


# Hendrycks & Gimpel (2016), section 2: within 5e-4 of z times the normal distribution function,
# of which SciPy takes a hundred times as long as of a hyperbolic tangent.
_GELU_SCALE, _GELU_CUBE = float(np.sqrt(2 / np.pi)), 0.044715


def _gelu_tanh(z: np.ndarray, out: np.ndarray) -> None:
    np.multiply(z, z, out=out)
    out *= _GELU_SCALE * _GELU_CUBE
    out += _GELU_SCALE
    out *= z
    np.tanh(out, out=out)


def _gelu(z: np.ndarray, out: np.ndarray) -> None:
    _gelu_tanh(z, out)
    out += 1
    out *= z
    out *= 0.5


def _gelu_chain(delta: np.ndarray, z: np.ndarray, a: np.ndarray) -> None:
    t = np.empty_like(z)
    _gelu_tanh(z, t)
    slope = (1 - t * t) * (z * _GELU_SCALE * (1 + 3 * _GELU_CUBE * z * z))
    slope += t
    slope += 1
    slope *= 0.5
    delta *= slope


ACTIVATIONS = {
    "sigmoid": Activation(_sigmoid, _sigmoid_chain, he=False),
    "tanh": Activation(_tanh, _tanh_chain, he=False),
    "relu": Activation(_relu, _relu_chain, he=True),
    "gelu": Activation(_gelu, _gelu_chain, he=True),
}


# --- the network ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """The shape of a network.

    Attributes
    ----------
    layers : tuple of int
        Units of each layer: the features first, the margins last.
    activation : str
        Of the hidden layers: one of :data:`ACTIVATIONS`.
    """

    layers: tuple[int, ...]
    activation: str = "sigmoid"

    @property
    def n_weights(self) -> int:
        """Weights and biases of all layers."""
        return sum((p + 1) * q for p, q in pairwise(self.layers))

    def split(self, weights: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Views of flat weights: W (n_in, n_out) and b (n_out,) of every layer."""
        parts, place = [], 0
        for p, q in pairwise(self.layers):
            bias = place + p * q
            parts.append((weights[place:bias].reshape(p, q), weights[bias : bias + q]))
            place = bias + q
        return parts

    def initial(self, rng: np.random.Generator) -> np.ndarray:
        """Random flat weights for the activation; biases are 0.

        Uniform with variance ``2 / (n_in + n_out)`` for ``sigmoid`` and ``tanh`` (Glorot & Bengio
        2010, eq. 16); for ``relu`` and ``gelu``, which let half of their inputs pass, normal with
        variance ``2 / n_in`` (He, Zhang, Ren & Sun 2015, eq. 10).
        """
        weights = np.zeros(self.n_weights)
        for W, _ in self.split(weights):
            p, q = W.shape
            if ACTIVATIONS[self.activation].he:
                W[:] = rng.normal(0.0, np.sqrt(2 / p), (p, q))
            else:
                W[:] = rng.uniform(-1.0, 1.0, (p, q)) * np.sqrt(6 / (p + q))
        return weights


def margins(network: Network, parts: Parts, X: Any, rows: int = ROWS) -> np.ndarray:
    """The outputs of the last layer.

    Parameters
    ----------
    network : Network
    parts : sequence of (ndarray, ndarray)
        As of :meth:`Network.split`, in the precision of ``X``.
    X : ndarray or scipy.sparse.csr_array, shape (n, d)
    rows : int
        Rows that pass through the layers together.

    Returns
    -------
    ndarray, shape (n, k)
    """
    n = X.shape[0]
    out = np.empty((n, network.layers[-1]), X.dtype)
    work = _Work(network, min(rows, n), X.dtype)
    for start in range(0, n, rows):
        X_tile = X[start : start + rows]
        out[start : start + rows] = work.forward(parts, X_tile)
    return out


def value_and_gradient(
    network: Network,
    loss: Loss,
    parts: Parts,
    X: Any,
    y: np.ndarray,
    w: np.ndarray,
    rows: int = ROWS,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
    out: Parts | None = None,
) -> tuple[float, Parts]:
    """The weighted sum of the rows' losses, and its gradient by the weights of every layer.

    Parameters
    ----------
    network : Network
    loss : Loss
        Of as many margins as the last layer has units.
    parts : sequence of (ndarray, ndarray)
        As of :meth:`Network.split`, in the precision of ``X``.
    X : ndarray or scipy.sparse.csr_array, shape (n, d)
    y, w : ndarray, shape (n,)
        Labels and weights.
    rows : int
        Rows that pass through the layers together.
    dropout : float
        The share of a hidden layer's activations that are left out of every row, in [0, 1); what
        is left is divided by ``1 - dropout``, so that prediction needs no correction (Srivastava
        et al. 2014, section 10). Above 0 the value is that of the thinned networks.
    rng : numpy.random.Generator, optional
        What draws the activations to leave out; for a dropout above 0.
    out : sequence of (ndarray, ndarray), optional
        Where to put the gradient, whatever is there.

    Returns
    -------
    value : float
    gradient : sequence of (ndarray, ndarray)
        Of the shapes and the precision of ``parts``; ``out`` if given.
    """
    n = X.shape[0]
    work = _Work(network, min(rows, n), X.dtype, dropout, rng)
    gradient = out or [(np.empty_like(W), np.empty_like(b)) for W, b in parts]
    for array in chain.from_iterable(gradient if n == 0 else ()):
        array[:] = 0
    value = 0.0
    # The gradient by the first weights is large: it is taken for several tiles together, and for
    # all sparse rows, whose product is as large however few they are.
    span = n if not isinstance(X, np.ndarray) else rows * max(1, SPAN // rows)
    by_first = np.empty((min(span, n), network.layers[1]), X.dtype)
    for first in range(0, n, span):
        X_span = X[first : first + span]
        for start in range(0, X_span.shape[0], rows):
            X_tile = X_span[start : start + rows]
            tile = slice(first + start, first + start + X_tile.shape[0])
            z = work.forward(parts, X_tile).astype(np.float64)
            if loss.n_outputs == 1:
                z = z[:, 0]
            losses, residual = loss.value_and_gradient(y[tile], z)
            value += float(losses @ w[tile])
            delta = (residual.T * w[tile]).T.astype(X.dtype).reshape(len(z), -1)
            by_first[start : start + len(z)] = work.backward(parts, delta, gradient)
        work.add(gradient, 0, X_span, by_first[: X_span.shape[0]])
    return value, gradient


class _Work:
    """The arrays of a few rows on their way through a network, used again for the next ones."""

    def __init__(
        self,
        network: Network,
        rows: int,
        dtype: Any,
        dropout: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._activation = ACTIVATIONS[network.activation]
        self._dropout, self._rng = dropout, rng
        hidden = network.layers[1:-1]
        self._z = [np.empty((rows, q), dtype) for q in network.layers[1:]]
        self._a = [np.empty((rows, q), dtype) for q in hidden]
        self._delta = [np.empty((rows, q), dtype) for q in hidden]
        self._products: dict[int, np.ndarray] = {}
        self._begun: set[int] = set()  # layers whose gradient holds something
        self._masks: list[np.ndarray] = []
        self._inputs: list[np.ndarray] = []  # of the second layer and those above
        self._margins: list[np.ndarray] = []  # of every layer

    def forward(self, parts: Parts, X: Any) -> np.ndarray:
        """Margins (m, k) of m rows; they last until the next call."""
        m = X.shape[0]
        self._masks, self._inputs, self._margins = [], [], []
        a = X
        for layer, (W, b) in enumerate(parts):
            z = _product(a, W, self._z[layer][:m])
            z += b
            self._margins.append(z)
            if layer == len(parts) - 1:
                return z
            a = self._a[layer][:m]
            self._activation.value(z, a)
            if self._dropout:
                assert self._rng is not None
                kept = self._rng.random(a.shape, np.float32) >= self._dropout
                self._masks.append(kept * a.dtype.type(1 / (1 - self._dropout)))
                a = a * self._masks[-1]
            self._inputs.append(a)
        raise AssertionError("a network has a layer above its features")

    def backward(self, parts: Parts, delta: np.ndarray, gradient: Parts) -> np.ndarray:
        """Add to the gradient of all layers but the first, of which it gives the derivative.

        ``delta`` is that of the loss by the margins of the last layer, (m, k); what comes back is
        that by the margins of the first, and lasts until the next call.
        """
        m = len(delta)
        for layer in range(len(parts) - 1, 0, -1):
            into = self._delta[layer - 1][:m]
            self.add(gradient, layer, self._inputs[layer - 1], delta)
            np.matmul(delta, parts[layer][0].T, out=into)
            if self._masks:
                into *= self._masks[layer - 1]
            self._activation.chain(into, self._margins[layer - 1], self._a[layer - 1][:m])
            delta = into
        return delta

    def add(self, gradient: Parts, layer: int, a: Any, delta: np.ndarray) -> None:
        """Add to the gradient of a layer, from its inputs (m, n_in) and that by its margins.

        The first rows find no zeros there: of a mini-batch they are all.
        """
        by_weights, by_biases = gradient[layer]
        if layer not in self._begun:
            self._begun.add(layer)
            _product(a.T, delta, by_weights)
            delta.sum(axis=0, out=by_biases)
            return
        if layer not in self._products:
            self._products[layer] = np.empty_like(by_weights)
        by_weights += _product(a.T, delta, self._products[layer])
        by_biases += delta.sum(axis=0)


def _product(a: Any, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """``a @ b`` in ``out``."""
    if isinstance(a, np.ndarray):
        return np.matmul(a, b, out=out)
    out[:] = a @ b
    return out
