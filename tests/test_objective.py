from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F

from arrays import Arrays, slopes
from mllib_ext.blocks import Blocks
from mllib_ext.losses import Logistic, Multinomial, SquaredError
from mllib_ext.objective import Coordinates, Objective, Shifted
from mllib_ext.penalties import L2

N, D = 60, 4
LOSSES = {"squared": SquaredError(), "logistic": Logistic(), "multinomial": Multinomial(3)}


def rows():
    """Features off centre and on several scales, a constant one, labels for any loss, weights."""
    rng = np.random.default_rng(11)
    X = rng.standard_normal((N, D)) * [1.0, 3.0, 0.2, 0.0] + [0.0, 2.0, -1.0, 5.0]
    X[rng.random((N, D)) < 0.6] = 0.0  # few enough for CSR
    X[:, 3] = 5.0
    w = rng.uniform(0, 2, N)
    w[:5] = 0.0
    return X, rng.integers(0, 3, N).astype(float), w


def make(name="logistic", *, intercept=True, kind="dense", standardised=True, parts=3, reg=0.1):
    X, y, w = rows()
    loss = LOSSES[name]
    if name == "logistic":
        y = np.minimum(y, 1.0)
    scale = X.std(axis=0)
    scale[3] = 0.0
    mean = X.mean(axis=0) if intercept else np.zeros(D)
    coordinates = Coordinates(mean, scale, loss.n_outputs, intercept)
    weights = np.ones(D) if standardised else coordinates.inverse**2
    if kind == "float32":
        X = X.astype(np.float32)
    data = Arrays.of(sp.csr_array(X) if kind == "sparse" else X, y, w, parts)
    return Objective(data, loss, coordinates, L2(reg, weights))


def point(objective, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, len(objective.coordinates.zeros()))


every_loss = pytest.mark.parametrize("name", list(LOSSES))
every_kind = pytest.mark.parametrize("kind", ["dense", "sparse"])
with_and_without_intercept = pytest.mark.parametrize("intercept", [True, False])
penalty_on_either_scale = pytest.mark.parametrize("standardised", [True, False])


# --- the value ----------------------------------------------------------------------------------


@every_kind
@penalty_on_either_scale
def test_the_objective_of_least_squares_is_its_formula(kind, standardised):
    objective = make("squared", kind=kind, standardised=standardised)
    X, y, w = rows()
    v = point(objective)
    s = objective.coordinates.scale[:3]
    coef = np.append(v[:3] / s, 0.0)  # the constant column has no part in it
    z = X @ coef + v[4] - X.mean(axis=0) @ coef
    penalised = np.append(v[:3], v[3]) if standardised else coef
    expected = w @ (z - y) ** 2 / 2 / w.sum() + 0.05 * penalised @ penalised
    assert objective.value_and_gradient(v)[0] == pytest.approx(expected, rel=1e-13)  # 60 roundings


@with_and_without_intercept
def test_the_multinomial_objective_is_its_formula(intercept):
    objective = make("multinomial", intercept=intercept)
    X, y, w = rows()
    v = point(objective)
    scaled = v[: D * 3].reshape(D, 3)
    coef = np.zeros((D, 3))
    coef[:3] = scaled[:3] / objective.coordinates.scale[:3, None]
    centred = X - X.mean(axis=0) if intercept else X
    z = centred @ coef + (v[D * 3 :] if intercept else 0.0)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    deviance = -np.log(p[np.arange(N), y.astype(int)])
    expected = w @ deviance / w.sum() + 0.05 * np.sum(scaled**2)
    assert objective.value_and_gradient(v)[0] == pytest.approx(expected, rel=1e-13)


def test_parameters_keep_their_meaning_in_the_datas_coordinates():
    objective = make("multinomial")
    X = rows()[0]
    v = point(objective)
    scaled, at_mean = objective.coordinates.split(v)
    coef, intercept = objective.coordinates.to_data(v)
    inverse = objective.coordinates.inverse
    assert inverse[3] == 0.0
    expected = ((X - X.mean(axis=0)) * inverse) @ scaled + at_mean
    np.testing.assert_allclose(X @ coef + intercept, expected, atol=1e-12)


# --- derivatives --------------------------------------------------------------------------------


@every_loss
@every_kind
@with_and_without_intercept
@penalty_on_either_scale
def test_derivatives_are_those_of_the_value(name, kind, intercept, standardised):
    objective = make(name, kind=kind, intercept=intercept, standardised=standardised)
    v, p = point(objective), point(objective, 1)
    value, gradient, H = objective.value_gradient_hessian(v)

    # Central differences, h = 1e-5, of values below 100: eps * 100 / h = 2e-9, h**2 below that.
    expected = slopes(lambda u: objective.value_and_gradient(u)[0], v, 1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-8)
    expected = slopes(lambda u: objective.value_and_gradient(u)[1], v, 1e-5)
    np.testing.assert_allclose(H, expected, rtol=1e-8, atol=1e-8)

    # The rest comes from other stages by other sums: equal but for rounding.
    again, gradient_again = objective.value_and_gradient(v)
    assert again == pytest.approx(value, rel=1e-13)
    np.testing.assert_allclose(gradient_again, gradient, atol=1e-13)
    np.testing.assert_array_equal(objective.hessian(v), H)
    np.testing.assert_allclose(objective.hvp(v, p), H @ p, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(H, H.T, atol=1e-12)
    assert np.linalg.eigvalsh(H).min() > -1e-12  # convex


@every_loss
@every_kind
@with_and_without_intercept
def test_values_and_slopes_along_a_direction_are_those_at_its_points(name, kind, intercept):
    objective = make(name, kind=kind, intercept=intercept, standardised=False)
    v, p = point(objective), point(objective, 1)
    steps = np.array([0.0, 0.5, -1.0, 8.0])
    values, along = objective.along(v, p, steps)
    for t, value, slope in zip(steps, values, along, strict=True):
        expected, gradient = objective.value_and_gradient(v + t * p)
        assert value == pytest.approx(expected, rel=1e-12)
        assert slope == pytest.approx(gradient @ p, rel=1e-11, abs=1e-11)


def test_many_steps_along_a_direction_are_one_round():
    objective = make()
    objective.along(point(objective), point(objective, 1), 2.0 ** -np.arange(20))
    assert objective.blocks.rounds == {"along": 1}


@pytest.mark.parametrize("call", ["value_and_gradient", "hessian", "value_gradient_hessian"])
def test_each_evaluation_is_one_round(call):
    objective = make("multinomial")
    getattr(objective, call)(point(objective))
    assert objective.blocks.rounds.total() == 1


def test_another_strength_of_the_penalty_leaves_the_first_objective_alone():
    objective = make()
    v = point(objective)
    before = objective.value_and_gradient(v)[0]
    stronger = objective.regularized(1.1)
    size = float(np.sum(v[:D] ** 2))
    assert stronger.value_and_gradient(v)[0] == pytest.approx(before + 0.5 * size, rel=1e-13)
    assert objective.value_and_gradient(v)[0] == before


@every_kind
def test_sampled_curvature_comes_with_the_exact_value_and_gradient_in_one_round(kind):
    rng = np.random.default_rng(2)
    X = rng.standard_normal((6000, 2)) + 3.0
    data = Arrays.of(sp.csr_array(X) if kind == "sparse" else X, rng.integers(0, 2, 6000), parts=3)
    coordinates = Coordinates(X.mean(axis=0), X.std(axis=0), 1, True)
    objective = Objective(data, Logistic(), coordinates, L2(0.01, np.ones(2)))
    v = np.array([0.5, -0.5, 0.2])
    value, gradient, H = objective.value_gradient_curvature(v)
    assert data.rounds.total() == 1
    exact, expected = objective.value_and_gradient(v)
    assert value == pytest.approx(exact, rel=1e-13)
    np.testing.assert_allclose(gradient, expected, atol=1e-13)
    difference = np.abs(H - objective.hessian(v)).max()
    assert 0 < difference < 0.05  # 600 of the rows: entries of 0.25, off by 0.25 / sqrt(600) * 4


@pytest.mark.parametrize("loss", [Logistic(), Multinomial(3)])
def test_sampled_curvature_knows_the_features_that_few_sparse_rows_have(loss):
    rng = np.random.default_rng(3)
    k, X = loss.n_outputs, rng.standard_normal((9000, 3))
    X[:, 2] = 0.0
    X[1::1500, 2] = 2.0  # six rows, between those of any sample
    data = Arrays.of(sp.csr_array(X), rng.integers(0, max(2, k), 9000), parts=1)
    coordinates = Coordinates(X.mean(axis=0), X.std(axis=0), k, True)
    objective = Objective(data, loss, coordinates, L2(0.0, np.ones(3)))
    v = 0.1 * rng.standard_normal(4 * k)
    sampled, exact = objective.value_gradient_curvature(v)[2].diagonal(), objective.hessian(v)
    rare = slice(2 * k, 3 * k)
    np.testing.assert_allclose(sampled[rare], exact.diagonal()[rare], rtol=1e-10)


def test_sampled_curvature_of_too_many_parameters_is_left_out():
    coordinates = Coordinates(np.zeros(1100), np.ones(1100), 1, True)
    data = Arrays.of(np.ones((3, 1100)))
    objective = Objective(data, Logistic(), coordinates, L2(0.0, np.ones(1100)))
    assert objective.value_gradient_curvature(np.zeros(1101))[2] is None
    assert data.rounds == {"value_and_gradient": 1}


# --- the same whatever holds the data -----------------------------------------------------------


def everything(objective):
    v, p = point(objective), point(objective, 1)
    values, along = objective.along(v, p, np.array([0.5, 2.0]))
    whole = objective.value_gradient_hessian(v)
    return [*objective.value_and_gradient(v), *whole, objective.hvp(v, p), values, along]


def assert_equal(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@every_loss
@every_kind
@pytest.mark.parametrize("parts", [2, 7])
def test_the_split_of_the_rows_does_not_matter(name, kind, parts):
    whole = everything(make(name, kind=kind, parts=1))
    # Sixty numbers of order 100 in another order of addition.
    assert_equal(everything(make(name, kind=kind, parts=parts)), whole, 1e-12)


@every_loss
def test_sparse_rows_give_what_dense_rows_give(name):
    assert_equal(everything(make(name, kind="sparse")), everything(make(name)), 1e-12)


@every_loss
def test_float32_rows_are_good_to_their_precision(name):
    # Products of 4 numbers of order 10 with an error of 6e-8 each, 60 rows.
    assert_equal(everything(make(name, kind="float32")), everything(make(name)), 2e-4)


@every_loss
def test_a_row_of_weight_2_counts_as_two_rows_and_one_of_weight_0_as_none(name):
    objective = make(name, parts=1)
    (rows,) = objective.blocks.blocks
    w = np.arange(N) % 3.0
    times = w.astype(int)
    weighted = Arrays([replace(rows, w=w)])
    repeated = Arrays.of(np.repeat(rows.X, times, axis=0), np.repeat(rows.y, times))
    found = everything(replace(objective, blocks=weighted))
    assert_equal(found, everything(replace(objective, blocks=repeated)), 1e-12)


@every_loss
def test_margins_of_1000_leave_every_result_finite(name):
    objective = make(name)
    v = 1e4 * point(objective)
    assert np.abs(rows()[0] @ objective.coordinates.to_data(v)[0]).max() > 1000
    for result in everything(replace(objective, penalty=L2(0.0, np.ones(D)))):
        assert np.isfinite(result).all()
    for result in (*objective.value_gradient_hessian(v), *objective.along(v, -v, np.ones(1))):
        assert np.isfinite(result).all()


# --- on Spark -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "partitions"), [("dense", 1), ("dense", 2), ("dense", 7), ("sparse", 2)]
)
def test_the_objective_on_spark_is_that_of_one_block_in_memory(spark, kind, partitions):
    X, y, w = rows()
    columns = np.arange(D)
    vectors = [
        Vectors.sparse(D, columns[x != 0], x[x != 0]) if kind == "sparse" else Vectors.dense(x)
        for x in X
    ]
    table = list(zip(range(N), vectors, y.tolist(), w.tolist(), strict=True))
    df = spark.createDataFrame(table, ["i", "x", "y", "w"])
    # Three values go to at most three partitions: of 7, some are empty.
    placed = df.repartition(partitions, F.floor(F.col("i") / 20))
    with Blocks.of(placed, "x", label="y", weight="w") as blocks:
        assert blocks.sparse == (kind == "sparse")
        assert len(blocks.handles) == partitions
        if partitions == 7:
            assert any(handle.n_rows == 0 for handle in blocks.handles)
        for name in ("squared", "multinomial"):
            expected = everything(make(name, kind=kind, parts=1))
            found = everything(replace(make(name, kind=kind), blocks=blocks))
            assert_equal(found, expected, 1e-12)  # the order of addition alone differs


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shifted_rows_keep_the_digits_that_an_offset_would_cancel(dtype):
    rng = np.random.default_rng(0)
    offset = 1e3 if dtype == np.float32 else 1e8
    X = (rng.standard_normal((200, 3)) + offset).astype(dtype)
    y = (rng.random(200) < 0.5).astype(float)
    mean, scale = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    origin = mean.astype(dtype)
    seen = Coordinates(mean - origin, scale, 1, True)
    far = Objective(Shifted(Arrays.of(X, y), origin), Logistic(), seen, L2(0.0, np.ones(3)))
    near_rows = X.astype(np.float64) - origin
    near = Objective(Arrays.of(near_rows, y), Logistic(), seen, L2(0.0, np.ones(3)))
    v = rng.standard_normal(4)
    pairs: Any = zip(far.value_gradient_hessian(v), near.value_gradient_hessian(v), strict=True)
    for mine, exact in pairs:
        # Subtraction of neighbours is exact; what is left is the precision of the products.
        np.testing.assert_allclose(mine, exact, rtol=100 * np.finfo(dtype).eps, atol=1e-6)
