from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest

from arrays import slopes
from mllib_ext.losses import Logistic, Multinomial, SquaredError, sigmoid, softmax

MARGINS = [-1000.0, -40.0, -5.0, -1e-3, 0.0, 1e-9, 0.7, 5.0, 36.0, 40.0, 745.0, 1000.0]
# Fewer than ten roundings lie between a margin and each result.
ROUNDING = 1e-15


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def exact_logistic(y, z):
    """Loss, gradient and curvature with 1,000 digits, which outlast exp(1000)."""
    with localcontext() as context:
        context.prec = 1000
        margin, label = Decimal(z), Decimal(y)
        e = margin.exp()
        p = e / (1 + e)
        return float((1 + e).ln() - label * margin), float(p - label), float(p * (1 - p))


def exact_multinomial(y, z):
    with localcontext() as context:
        context.prec = 1000
        e = [Decimal(value).exp() for value in z]
        p = [value / sum(e) for value in e]
        gradient = [float(value - (i == y)) for i, value in enumerate(p)]
        return float(sum(e).ln() - Decimal(z[y])), gradient


# --- squared error ------------------------------------------------------------------------------


def test_the_squared_error_is_half_the_square_of_the_residual(rng):
    y, z = rng.standard_normal((2, 50))
    value, gradient = SquaredError().value_and_gradient(y, z)
    np.testing.assert_allclose(value, (y - z) ** 2 / 2, rtol=ROUNDING)
    np.testing.assert_array_equal(gradient, z - y)
    np.testing.assert_array_equal(SquaredError().curvature(y, z), np.ones(50))


# --- logistic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [0.0, 1.0])
@pytest.mark.parametrize("z", MARGINS)
def test_the_logistic_loss_keeps_all_its_digits_at_any_margin(y, z):
    value, gradient = Logistic().value_and_gradient(np.array([y]), np.array([z]))
    curvature = Logistic().curvature(np.array([y]), np.array([z]))
    expected_value, expected_gradient, expected_curvature = exact_logistic(y, z)
    assert value[0] == pytest.approx(expected_value, rel=ROUNDING, abs=5e-324)
    assert curvature[0] == pytest.approx(expected_curvature, rel=ROUNDING, abs=5e-324)
    # The gradient of a well-fitted row is a small difference from 1: absolute, not relative digits.
    assert gradient[0] == pytest.approx(expected_gradient, rel=ROUNDING, abs=ROUNDING)


def test_the_logistic_loss_is_linear_where_a_label_is_contradicted_and_zero_where_confirmed():
    y, z = np.array([0.0, 1.0, 0.0, 1.0]), np.array([1000.0, -1000.0, -1000.0, 1000.0])
    value, gradient = Logistic().value_and_gradient(y, z)
    assert value.tolist() == [1000.0, 1000.0, 0.0, 0.0]
    assert gradient.tolist() == [1.0, -1.0, 0.0, 0.0]
    assert Logistic().curvature(y, z).tolist() == [0.0, 0.0, 0.0, 0.0]


def test_the_logistic_loss_of_fractional_labels_is_the_cross_entropy():
    y, z = np.array([0.25, 0.9]), np.array([0.5, -2.0])
    value, gradient = Logistic().value_and_gradient(y, z)
    p = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(value, -y * np.log(p) - (1 - y) * np.log(1 - p), rtol=1e-14)
    np.testing.assert_allclose(gradient, p - y, rtol=1e-14)


def test_logistic_derivatives_are_those_of_the_value(rng):
    z, y = rng.uniform(-8, 8, 40), rng.integers(0, 2, 40).astype(float)
    h, loss = 1e-5, Logistic()
    value = (loss.value_and_gradient(y, z + h)[0] - loss.value_and_gradient(y, z - h)[0]) / (2 * h)
    turn = (loss.value_and_gradient(y, z + h)[1] - loss.value_and_gradient(y, z - h)[1]) / (2 * h)
    # Central differences with h = 1e-5: h**2 of truncation, eps * 8 / h = 2e-10 of rounding.
    np.testing.assert_allclose(loss.value_and_gradient(y, z)[1], value, atol=1e-9)
    np.testing.assert_allclose(loss.curvature(y, z), turn, atol=1e-9)


# --- multinomial --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "z",
    [
        [0.0, 0.0, 0.0],
        [0.3, -1.2, 2.5],
        [1000.0, -1000.0, 0.0],
        [-1000.0, -1000.0, -1000.0],
        [1000.0, 1000.0, 999.0],
        [1e-9, 0.0, -1e-9],
    ],
)
@pytest.mark.parametrize("y", [0, 1, 2])
def test_the_multinomial_loss_keeps_its_digits_at_any_margins(y, z):
    value, gradient = Multinomial(3).value_and_gradient(np.array([float(y)]), np.array([z]))
    expected_value, expected_gradient = exact_multinomial(y, z)
    # log(sum of e^z) rounds at 1: a small loss has absolute digits.
    assert value[0] == pytest.approx(expected_value, rel=ROUNDING, abs=ROUNDING)
    np.testing.assert_allclose(gradient[0], expected_gradient, rtol=ROUNDING, atol=ROUNDING)


def test_multinomial_derivatives_are_those_of_the_value(rng):
    loss, z = Multinomial(4), rng.uniform(-4, 4, 4)
    for label in range(4):
        y = np.array([float(label)])

        def value(z, y=y):
            return loss.value_and_gradient(y, z[None])[0][0]

        def gradient(z, y=y):
            return loss.value_and_gradient(y, z[None])[1][0]

        # Central differences with h = 1e-5 are good to about 2e-10 (see above).
        np.testing.assert_allclose(gradient(z), slopes(value, z, 1e-5), atol=1e-9)
        np.testing.assert_allclose(
            loss.curvature(y, z[None])[0], slopes(gradient, z, 1e-5), atol=1e-9
        )


def test_multinomial_curvature_is_finite_and_never_of_the_wrong_sign(rng):
    z = np.vstack([rng.uniform(-9, 9, (50, 3)), [[1000.0, -1000.0, 0.0], [-1000.0] * 3]])
    C = Multinomial(3).curvature(np.zeros(52), z)
    assert np.isfinite(C).all()
    diagonal = np.eye(3, dtype=bool)
    assert (C[:, diagonal] >= 0).all()  # the Hessian takes square roots of these
    assert (C[:, ~diagonal] <= 0).all()
    np.testing.assert_allclose(C.sum(axis=2), 0, atol=ROUNDING)
    assert not C[50].any()


def test_two_classes_are_the_logistic_loss_of_their_difference(rng):
    z = np.vstack([rng.uniform(-9, 9, (60, 2)), [[500.0, -500.0], [-500.0, 500.0]]])
    y = np.append(rng.integers(0, 2, 60), [0.0, 0.0]).astype(float)
    margin = z[:, 1] - z[:, 0]
    value, gradient = Multinomial(2).value_and_gradient(y, z)
    expected_value, expected_gradient = Logistic().value_and_gradient(y, margin)
    np.testing.assert_allclose(value, expected_value, rtol=1e-14, atol=ROUNDING)
    np.testing.assert_allclose(gradient[:, 1], expected_gradient, rtol=1e-14, atol=ROUNDING)
    np.testing.assert_allclose(gradient[:, 0], -expected_gradient, rtol=1e-14, atol=ROUNDING)
    c = Logistic().curvature(y, margin)
    expected = c[:, None, None] * np.array([[1.0, -1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(Multinomial(2).curvature(y, z), expected, atol=ROUNDING)


def test_one_number_added_to_all_margins_of_a_row_changes_nothing(rng):
    z, y = rng.integers(-5, 5, (20, 3)).astype(float), rng.integers(0, 3, 20).astype(float)
    shifted = z + rng.integers(-900, 900, (20, 1))  # whole numbers: the shift rounds nothing
    for one, other in zip(
        Multinomial(3).value_and_gradient(y, z),
        Multinomial(3).value_and_gradient(y, shifted),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("loss", [SquaredError(), Logistic(), Multinomial(2)])
def test_no_loss_writes_to_its_arguments(loss, rng):
    z = rng.standard_normal((9, 2) if loss.n_outputs == 2 else 9)
    y = rng.integers(0, 2, 9).astype(float)
    z.flags.writeable = y.flags.writeable = False  # writing raises
    before = z.copy()
    loss.value_and_gradient(y, z)
    loss.curvature(y, z)
    np.testing.assert_array_equal(z, before)


# --- probabilities ------------------------------------------------------------------------------


@pytest.mark.parametrize("z", MARGINS)
def test_the_sigmoid_keeps_all_its_digits(z):
    with localcontext() as context:
        context.prec = 1000
        expected = float(1 / (1 + (-Decimal(z)).exp()))
    assert sigmoid(np.array([z]))[0] == pytest.approx(expected, rel=ROUNDING, abs=5e-324)


def test_probabilities_of_infinite_margins_are_0_and_1_and_of_nan_are_nan():
    assert sigmoid(np.array([-np.inf, np.inf])).tolist() == [0.0, 1.0]
    assert np.isnan(sigmoid(np.array([np.nan]))).all()
    assert softmax(np.array([[np.inf, 0.0], [-np.inf, 3.0]])).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert np.isnan(softmax(np.array([[np.nan, 0.0]]))).all()


def test_the_softmax_sums_to_1_and_is_that_of_the_definition(rng):
    z = rng.uniform(-20, 20, (30, 5))
    p = softmax(z)
    np.testing.assert_allclose(p, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), rtol=1e-13)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=ROUNDING)
    assert softmax(np.array([[1000.0, -1000.0]])).tolist() == [[1.0, 0.0]]
