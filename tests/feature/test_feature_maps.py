"""The Nystroem map and random Fourier features, against scikit-learn's and the kernel itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from pyspark.ml.linalg import DenseVector, SparseVector, VectorUDT
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.datasets import load_wine
from sklearn.kernel_approximation import Nystroem as SklearnNystroem
from sklearn.metrics.pairwise import pairwise_kernels
from sklearn.preprocessing import StandardScaler

from data_frames import FittedOnce, every_kind_of_features
from mllib_ext import fitting
from mllib_ext.blocks import Blocks
from mllib_ext.classification import KernelSVC, LinearSVC
from mllib_ext.distances import dense_rows
from mllib_ext.feature import Nystroem, RandomFourierFeatures
from mllib_ext.feature.nystroem import inverse_square_root
from mllib_ext.seeding import drawn_rows

WINE = load_wine()
X = StandardScaler().fit_transform(WINE.data)[:, :5]
X[np.abs(X) < 0.3] = 0.0
N = len(X)
TWO = (WINE.target > 0).astype(float)


@pytest.fixture(scope="module")
def frame(spark):
    with every_kind_of_features(spark, X, two=TWO) as df:
        yield df


@pytest.fixture(scope="module")
def fitted(frame):
    return FittedOnce(lambda **p: Nystroem(**{"inputCol": "dense", "nComponents": 40, **p}), frame)


def mapped(model, df, **params):
    rows = model.transform(df).orderBy("i").select("mapped_features").collect()
    return np.array([row[0].toArray() if hasattr(row[0], "toArray") else row[0] for row in rows])


class GivenLandmarks(np.random.RandomState):
    """Draws rows for scikit-learn that this package drew."""

    def permutation(self, n: Any) -> Any:
        return places_of_landmarks

    def __init__(self) -> None:
        super().__init__(0)


places_of_landmarks: Any = None


def places(landmarks):
    """Of each landmark the row that it is; all different."""
    found = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in landmarks]
    assert len(set(found)) == len(found)
    return np.array(found)


# --- Nystroem ---------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [
    {}, {"gamma": 0.7}, {"kernel": "linear", "nComponents": 4},
    {"kernel": "poly", "degree": 2, "gamma": 0.5, "coef0": 1.0, "nComponents": 15},
    {"kernel": "sigmoid", "gamma": 0.05, "coef0": 0.1, "nComponents": 5},
], ids=str)  # fmt: skip
def test_the_map_is_scikit_learns_of_the_same_landmarks(fitted, frame, params, monkeypatch):
    model = fitted(**params)
    monkeypatch.setitem(globals(), "places_of_landmarks", places(model.landmarkRows))
    numbers = {"gamma": model.gammaValue, "degree": model.getDegree(), "coef0": model.getCoef0()}
    if model.getKernel() == "rbf":
        numbers = {"gamma": model.gammaValue}
    elif model.getKernel() == "linear":
        numbers = {}
    m = model.numComponents
    theirs = SklearnNystroem(
        kernel=model.getKernel(), n_components=m, random_state=GivenLandmarks(), **numbers
    ).fit(X)
    np.testing.assert_array_equal(theirs.components_, model.landmarkRows)
    # An inverse square root of condition 1e6 or less: ten digits are left.
    np.testing.assert_allclose(mapped(model, frame), theirs.transform(X), rtol=0, atol=1e-8)
    if "gamma" not in params and "kernel" not in params:
        assert model.gammaValue == pytest.approx(1 / (5 * X.var()), rel=1e-12)


def test_of_landmarks_the_products_are_the_kernel(fitted, frame):
    model = fitted()
    L = places(model.landmarkRows)
    Z = mapped(model, frame)
    K = pairwise_kernels(X, X[L], metric="rbf", gamma=model.gammaValue)
    np.testing.assert_allclose(Z @ Z[L].T, K, rtol=0, atol=1e-9)


def test_equal_landmarks_are_left_out_of_the_inverse():
    A = np.random.default_rng(0).normal(size=(6, 3))
    K = A @ A.T  # of rank 3
    root = inverse_square_root(K)
    np.testing.assert_allclose(root @ root, np.linalg.pinv(K), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(inverse_square_root(np.zeros((2, 2))), np.zeros((2, 2)))


def test_k_means_landmarks_approximate_better_than_uniform_ones(fitted, frame):
    def error(model):
        Z = mapped(model, frame)
        return np.linalg.norm(Z @ Z.T - pairwise_kernels(X, metric="rbf", gamma=model.gammaValue))

    found = fitted(landmarks="k-means", nComponents=20)
    drawn = [error(fitted(nComponents=20, seed=seed)) for seed in range(3)]
    assert error(found) < min(drawn)
    inertia = ((X[:, None] - found.landmarkRows) ** 2).sum(axis=2).min(axis=1).sum()
    best = SklearnKMeans(20, n_init=10, random_state=0).fit(X).inertia_
    assert inertia < 1.1 * best  # a few rounds from k-means|| come so close


def test_every_row_may_be_drawn_and_none_twice(frame):
    counts = np.zeros(N)
    with Blocks.of(frame, "dense", driver_bytes=1 << 20) as blocks:
        for seed in range(40):
            counts[places(drawn_rows(blocks, 30, [seed]))] += 1
    # 40 draws of 30 from 178: 6.7 a row, with a standard deviation of 2.4.
    assert counts.max() <= 6.7 + 5 * 2.4
    halves = counts[: N // 2].sum(), counts[N // 2 :].sum()
    assert abs(halves[0] - halves[1]) < 5 * np.sqrt(40 * 30)


@pytest.mark.parametrize("landmarks", ["uniform", "k-means"])
def test_the_landmarks_are_the_same_again_and_on_the_executors(frame, monkeypatch, landmarks):
    nystroem = Nystroem(inputCol="dense", nComponents=7, landmarks=landmarks)
    here, again = nystroem.fit(frame), nystroem.fit(frame)
    monkeypatch.setattr(fitting, "DRIVER_BYTES", -1)
    there = nystroem.fit(frame)
    for other in (again, there):
        np.testing.assert_array_equal(other.landmarkRows, here.landmarkRows)
        np.testing.assert_array_equal(other.normalization, here.normalization)
    other_seed = nystroem.copy({nystroem.seed: 1}).fit(frame)
    assert (other_seed.landmarkRows != here.landmarkRows).any()


@pytest.mark.parametrize("kind", ["sparse", "array", "float", ["x0", "x1", "x2", "x3", "x4"]])
def test_every_kind_of_column_gives_the_same_map(fitted, frame, kind):
    column = {"inputCols": kind} if isinstance(kind, list) else {"inputCol": kind}
    model = Nystroem(nComponents=40, **column).fit(frame)
    np.testing.assert_allclose(
        mapped(model, frame), mapped(fitted(), frame), atol=2e-5 if kind == "float" else 1e-9
    )


@pytest.mark.parametrize("landmarks", ["uniform", "k-means"])
def test_landmarks_drawn_from_sparse_rows_stay_sparse(spark, landmarks):
    S = sp.random_array((60, 40), density=0.1, rng=np.random.default_rng(1), format="csr")
    parts = [S[[i]] for i in range(60)]
    rows = [(i, SparseVector(40, r.indices, r.data)) for i, r in enumerate(parts)]
    df = spark.createDataFrame(rows, ["i", "x"])
    model = Nystroem(inputCol="x", nComponents=20, landmarks=landmarks).fit(df)
    assert sp.issparse(model.landmarkRows) == (landmarks == "uniform")
    kernel = model._kernel(model.gammaValue)
    expected = kernel(S.toarray(), dense_rows(model.landmarkRows)) @ model.normalization
    np.testing.assert_allclose(mapped(model, df), expected, rtol=0, atol=1e-9)


def test_fewer_rows_than_components_are_a_warning(frame):
    few = frame.where("i < 5")
    for landmarks in ("uniform", "k-means"):
        nystroem = Nystroem(inputCol="dense", nComponents=9, landmarks=landmarks)
        with pytest.warns(UserWarning, match="fewer than nComponents = 9: the model has 5"):
            model = nystroem.fit(few)
        assert mapped(model, few).shape == (5, 5)


def test_a_linear_machine_of_all_rows_as_landmarks_is_the_kernel_machine(frame):
    kernel = KernelSVC(featuresCol="dense", labelCol="two", C=2.0, tol=1e-8).fit(frame)
    nystroem = Nystroem(inputCol="dense", nComponents=N, gamma=kernel.gammaValue)
    rows = nystroem.fit(frame).transform(frame)
    linear = LinearSVC(
        featuresCol="mapped_features",
        labelCol="two",
        standardization=False,
        regParam=1 / (2.0 * N),
        tol=1e-7,
    ).fit(rows)

    def raw(model, df):
        rows = model.transform(df).orderBy("i").select("rawPrediction").collect()
        return np.array([row[0][1] for row in rows])

    # The objectives agree to 1e-7, their minimizers to its square root.
    np.testing.assert_allclose(raw(linear, rows), raw(kernel, frame), rtol=0, atol=5e-3)


# --- random Fourier features ------------------------------------------------------------------


def test_products_of_random_features_are_the_kernel_in_expectation(frame):
    m, seeds = 500, 20
    estimates = []
    with Blocks.of(frame, "array", driver_bytes=1 << 20) as blocks:
        for seed in range(seeds):
            features = RandomFourierFeatures(gamma=0.1, nComponents=m, seed=seed)
            Z = features._fit_blocks(blocks)._predictor(X)
            estimates.append(Z @ Z.T)
    K = pairwise_kernels(X, metric="rbf", gamma=0.1)
    errors = np.array(estimates) - K
    # Each product has a standard deviation of at most 1 / sqrt(m) (Rahimi & Recht, claim 1: bounded
    # terms); the mean of 31,684 dependent ones over 20 seeds lies well within it.
    assert 0.2 / np.sqrt(m) < errors.std() < 1.0 / np.sqrt(m)
    assert np.abs(errors.mean(axis=0)).max() < 5.0 / np.sqrt(m * seeds)
    assert abs(errors.mean()) < 0.2 / np.sqrt(m)


def test_the_random_map_depends_on_the_seed_gamma_and_the_number_of_features(frame):
    features = RandomFourierFeatures(inputCol="dense", nComponents=6)
    one, other = features.fit(frame), features.fit(frame.where("i < 90").repartition(3))
    np.testing.assert_allclose(
        one.weights / np.sqrt(one.gammaValue), other.weights / np.sqrt(other.gammaValue)
    )
    np.testing.assert_array_equal(one.offsets, other.offsets)
    assert one.gammaValue == pytest.approx(1 / (5 * X.var()), rel=1e-12)
    expected = np.sqrt(2 / 6) * np.cos(X @ one.weights + one.offsets)
    for column in ("dense", "sparse"):
        one.setInputCol(column)
        np.testing.assert_allclose(mapped(one, frame), expected, rtol=0, atol=1e-12)


# --- output and bad input ---------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [Nystroem, RandomFourierFeatures])
def test_output_types_hold_the_same_numbers(frame, estimator):
    model = estimator(inputCol="dense", nComponents=8).fit(frame)
    vectors = mapped(model, frame)
    schema = model.transform(frame).schema["mapped_features"]
    assert isinstance(schema.dataType, VectorUDT)
    assert schema.metadata == {"ml_attr": {"num_attrs": 8}}
    for kind, tolerance in (("array<double>", 0.0), ("array<float>", 1e-7)):
        model.setOutputType(kind)
        assert model.transform(frame).schema["mapped_features"].dataType.simpleString() == kind
        np.testing.assert_allclose(mapped(model, frame), vectors, rtol=tolerance)
    row = SparseVector(5, np.flatnonzero(X[3]), X[3][X[3] != 0])
    for vector in (DenseVector(X[3]), row):
        np.testing.assert_allclose(model.apply(vector).toArray(), vectors[3], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("params", "message"), [
    ({"nComponents": 0}, "param nComponents: expected 1 or more, found 0"),
    ({"outputType": "list"}, "param outputType: expected one of .*, found 'list'"),
    ({"gamma": -1.0}, "param gamma: expected scale, auto or a number above 0, found -1.0"),
    ({"kernel": "cosine"}, "param kernel: expected one of .*, found 'cosine'"),
    ({"landmarks": "random"}, "param landmarks: expected one of .*, found 'random'"),
    ({"inputCol": "dens"}, "features column 'dens': .*did you mean 'dense'"),
])  # fmt: skip
def test_bad_input_is_named(frame, params, message):
    with pytest.raises(ValueError, match=message):
        Nystroem(**{"inputCol": "dense", **params}).fit(frame)


def test_rows_of_another_length_are_refused(fitted, frame):
    with pytest.raises(Exception, match="expected 5 columns as in training, found 2"):
        fitted().copy().setInputCols(["x0", "x1"]).transform(frame)
