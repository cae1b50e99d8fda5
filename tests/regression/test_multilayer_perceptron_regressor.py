from __future__ import annotations

import warnings

import numpy as np
import pytest
from pyspark.ml.linalg import Vectors
from sklearn.neural_network import MLPRegressor

from data_frames import every_kind_of_features
from mllib_ext.network import Network
from mllib_ext.regression import LinearRegression, MultilayerPerceptronRegressor

RNG = np.random.default_rng(3)
X = RNG.uniform(-2, 2, (120, 2))
Y = np.sin(2 * X[:, 0]) + X[:, 1] ** 2 + 30


@pytest.fixture(scope="module")
def frame(spark):
    with every_kind_of_features(spark, X, label=Y) as df:
        yield df


def new(**params):
    given = {"layers": [2, 8, 1], "featuresCol": "dense", "activation": "tanh"}
    return MultilayerPerceptronRegressor(**{**given, **params})


def test_its_optimum_is_as_low_as_scikit_learns_and_its_predictions_are_what_it_says(frame):
    strength = 1e-3
    model = new(regParam=strength, tol=1e-4, maxIter=500).fit(frame)
    losses = []
    for seed in range(2):
        theirs = MLPRegressor(
            hidden_layer_sizes=(8,), activation="tanh", solver="lbfgs", alpha=strength * len(Y),
            tol=1e-5, max_iter=300, random_state=seed,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses.append(theirs.fit(X, Y).loss_)
    # One of several local minima, which lie within a few parts of ten.
    assert model.history[-1].loss <= 1.5 * min(losses)
    found = np.array([row.prediction for row in model.transform(frame).orderBy("i").collect()])
    weights = model.weights.toArray()
    penalty = sum(np.square(W).sum() for W, _ in Network((2, 8, 1)).split(weights))
    value = 0.5 * np.mean((found - Y) ** 2) + 0.5 * strength * penalty
    assert model.history[-1].loss == pytest.approx(value, rel=1e-9)
    assert model.predict(Vectors.dense(X[0])) == pytest.approx(found[0], rel=1e-12)


def test_without_hidden_layers_it_is_linear_regression(frame):
    model = new(layers=[2, 1], tol=1e-14).fit(frame)
    expected = LinearRegression(featuresCol="dense").fit(frame)
    *coefficients, intercept = model.weights.toArray()
    # A loss that is flat to 1e-14 leaves 1e-7 of its parameters.
    assert coefficients == pytest.approx(expected.coefficients.toArray(), abs=1e-5)
    assert intercept == pytest.approx(expected.intercept, abs=1e-5)


def test_the_output_starts_at_the_mean_label_and_has_to_be_one(frame):
    assert new(maxIter=0).fit(frame).weights.toArray()[-1] == pytest.approx(Y.mean(), rel=1e-12)
    with pytest.raises(
        ValueError, match=r"param layers: expected the last to be 1, found \[2, 3\]"
    ):
        new(layers=[2, 3]).fit(frame)
