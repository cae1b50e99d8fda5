"""Losses of support vector machines, row by row; no Spark."""

from __future__ import annotations

import numpy as np
import pytest

from arrays import slopes
from mllib_ext.hinges import (
    CrammerSinger,
    EpsilonInsensitive,
    Hinge,
    SquaredEpsilonInsensitive,
    SquaredHinge,
)

SQUARED = [SquaredHinge(), SquaredHinge(3), SquaredEpsilonInsensitive(0.3)]
LARGEST = [Hinge(), Hinge(3), CrammerSinger(3), EpsilonInsensitive(0.3)]


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def draw(loss, rng, n=40):
    """Labels and margins, a few of them far out."""
    k = loss.n_outputs
    z = rng.uniform(-3, 3, (n, k) if k > 1 else n)
    z[:2] *= 1000.0
    y = rng.integers(0, max(k, 2), n).astype(float)
    return y, z


@pytest.mark.parametrize("loss", SQUARED, ids=str)
def test_derivatives_of_squared_losses_are_those_of_the_value(loss, rng):
    y, z = draw(loss, rng)
    for i in range(2, len(y)):  # far out the value's rounding hides its differences
        label, margin = y[i : i + 1], np.atleast_1d(z[i])

        def value(m, label=label):
            return loss.value_and_gradient(label, m.reshape(1, -1) if len(m) > 1 else m)[0][0]

        def gradient(m, label=label):
            return loss.value_and_gradient(label, m.reshape(1, -1) if len(m) > 1 else m)[1].ravel()

        # Central differences with h = 1e-6, of values up to 16: 1e-9 of rounding.
        np.testing.assert_allclose(gradient(margin), slopes(value, margin), atol=1e-8)
        curvature = loss.curvature(label, z[i : i + 1]).ravel()
        np.testing.assert_allclose(np.diag(curvature), slopes(gradient, margin), atol=1e-8)


@pytest.mark.parametrize(
    ("loss", "squared"), [(Hinge(), SquaredHinge()), (Hinge(3), SquaredHinge(3))]
)
def test_hinges_are_those_of_the_definition(loss, squared, rng):
    y, z = draw(loss, rng)
    k = loss.n_outputs
    s = 2 * y - 1 if k == 1 else np.where(y[:, None] == np.arange(k), 1, -1)
    lack = np.maximum(0, 1 - s * z)
    expected, expected_squares = (a if k == 1 else a.sum(axis=1) for a in (lack, lack**2))
    np.testing.assert_allclose(loss.value(y, z), expected)
    np.testing.assert_allclose(squared.value_and_gradient(y, z)[0], expected_squares)


def test_the_loss_of_crammer_and_singer_is_that_of_the_definition(rng):
    y, z = draw(CrammerSinger(3), rng)
    for value, label, margins in zip(CrammerSinger(3).value(y, z), y, z, strict=True):
        beaten_by = [margins[j] + (j != label) - margins[int(label)] for j in range(3)]
        assert value == pytest.approx(max(beaten_by), abs=1e-12)


@pytest.mark.parametrize("loss", LARGEST, ids=str)
def test_weights_of_lines_make_a_line_below_the_loss_with_the_slope_that_is_told(loss, rng):
    y, z = draw(loss, rng)
    lines = loss.lines(y, z)
    a = rng.random(lines.shape)
    a /= a.sum(axis=0)

    def line(at):
        below = (a * loss.lines(y, at)).sum(axis=0)
        return below if below.ndim == 1 else below.sum(axis=1)

    assert (line(z) <= loss.value(y, z) + 1e-9).all()
    move = rng.uniform(-1, 1, z.shape)
    product = loss.slope(y, a) * move
    change = product if z.ndim == 1 else product.sum(axis=1)
    # A line: its slope tells any move, up to the rounding of margins of 3,000.
    np.testing.assert_allclose(line(z + move) - line(z), change, atol=1e-10)


@pytest.mark.parametrize("loss", [Hinge(), EpsilonInsensitive(0.3), CrammerSinger(3)], ids=str)
def test_the_curvature_is_that_of_the_lines_in_the_margins(loss, rng):
    y, z = draw(loss, rng, 6)
    moves = np.eye(loss.n_outputs)[:, None, :] if loss.n_outputs > 1 else [1.0]
    U = np.stack([loss.lines(y, z + move) - loss.lines(y, z) for move in moves])  # (k, J, n)
    D = rng.random(U.shape[1:])
    found = loss.curvature(D).reshape(len(y), len(U), len(U))
    for i, d in enumerate(D.T):
        expected = U[..., i] @ (np.diag(d) - np.outer(d, d) / d.sum()) @ U[..., i].T
        np.testing.assert_allclose(found[i], expected, atol=1e-9)  # margins of 3,000 round


def test_hinges_that_are_apart_curve_as_each_alone(rng):
    D = rng.random((2, 6, 3))
    for j in range(3):
        np.testing.assert_array_equal(Hinge(3).curvature(D)[:, j], Hinge().curvature(D[..., j]))
