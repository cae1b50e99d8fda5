from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml import classification as mllib
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F
from sklearn.datasets import load_iris
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier

from data_frames import every_kind_of_features
from mllib_ext import fitting
from mllib_ext.classification import MultilayerPerceptronClassifier
from mllib_ext.feature import ClassBalancer
from mllib_ext.losses import softmax
from mllib_ext.network import Network, margins
from mllib_ext.optimizers.loop import ConvergenceWarning, Stop
from mllib_ext.sampling import held_out

DATA = load_iris()
CHOSEN = np.random.default_rng(0).permutation(150)[:90]
X = (DATA.data - DATA.data.mean(axis=0))[CHOSEN]
Y = DATA.target[CHOSEN].astype(float)
LAYERS = [4, 5, 3]
START = np.random.default_rng(6).normal(size=Network(tuple(LAYERS)).n_weights)
GIVEN: dict[str, Any] = {
    "layers": LAYERS,
    "initialWeights": Vectors.dense(START),
    "featuresCol": "dense",
}


@pytest.fixture(scope="module")
def frame(spark):
    others = {"label": Y, "w": 1 + np.arange(len(Y)) % 3, "many": Y + 1}
    with every_kind_of_features(spark, X, **others) as df:
        yield df


def new(**params: Any) -> MultilayerPerceptronClassifier:
    return MultilayerPerceptronClassifier(**{**GIVEN, **params})


def weights(model):
    return model.weights.toArray()


def stopped(*arguments, **params):
    """Fitted to the largest number of iterations, without the warning that says so."""
    with pytest.warns(ConvergenceWarning):
        return new(**params).fit(*arguments)


def test_weights_interchange_with_pyspark_ml_and_mean_the_same(frame):
    theirs = mllib.MultilayerPerceptronClassifier(**GIVEN, maxIter=0).fit(frame)
    ours = new(maxIter=0).fit(frame)
    np.testing.assert_array_equal(weights(ours), START)
    np.testing.assert_array_equal(weights(theirs), START)
    rows = ours.transform(frame.select("i", "dense")).withColumnsRenamed({
        "rawPrediction": "raw", "probability": "p", "prediction": "class"
    })  # fmt: skip
    for row in theirs.transform(rows).collect():
        # Sums of five products, in another order.
        np.testing.assert_allclose(row["raw"], row["rawPrediction"], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(row["p"], row["probability"], rtol=1e-12, atol=1e-15)
        assert row["class"] == row["prediction"]
    first = Vectors.dense(X[0])
    np.testing.assert_allclose(ours.predictRaw(first), theirs.predictRaw(first), rtol=1e-12)
    np.testing.assert_allclose(
        ours.predictProbability(first), theirs.predictProbability(first), rtol=1e-12
    )
    assert ours.predict(first) == theirs.predict(first)


def test_both_solvers_walk_as_pyspark_mls_do(frame):
    # In one partition and one block, of which pyspark.ml's objective is the mean as well.
    df = frame.coalesce(1)
    solvers: tuple[dict[str, Any], ...] = ({"solver": "gd", "stepSize": 0.5}, {"solver": "l-bfgs"})
    for solver in solvers:
        params = {**solver, "maxIter": 5, "tol": 0.0}
        ours = stopped(df, **params)
        theirs = mllib.MultilayerPerceptronClassifier(**GIVEN, **params).fit(df)
        history = theirs.summary().objectiveHistory
        assert ours.summary().objectiveHistory == pytest.approx(history, rel=1e-9)
        np.testing.assert_allclose(weights(ours), weights(theirs), rtol=1e-6, atol=1e-8)
        assert ours.summary().accuracy == theirs.summary().accuracy
        assert ours.evaluate(df).weightedFMeasure() == theirs.evaluate(df).weightedFMeasure()


def test_its_optimum_is_as_low_as_scikit_learns_with_the_same_penalty(frame):
    strength = 0.01
    model = new(regParam=strength, tol=1e-9, maxIter=1000).fit(frame)
    theirs = MLPClassifier(
        (5,), activation="logistic", solver="lbfgs", alpha=strength * len(Y), tol=1e-9,
        max_iter=2000, max_fun=50_000, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(X, Y)
    assert model.converged
    # Both are at a local minimum; of this problem they have the same value.
    assert model.history[-1].loss == pytest.approx(theirs.loss_, rel=1e-4)


def test_weights_of_rows_count_as_so_many_rows(frame):
    repeated = frame.selectExpr("dense", "label", "explode(sequence(1, cast(w as int))) as n")
    found = stopped(frame, weightCol="w", maxIter=10, tol=0.0)
    expected = stopped(repeated, maxIter=10, tol=0.0)
    np.testing.assert_allclose(weights(found), weights(expected), rtol=1e-7)


def test_balanced_classes_count_as_if_they_had_as_many_rows(frame):
    kept = np.concatenate([np.flatnonzero(k == Y)[:n] for k, n in enumerate((24, 12, 6))])
    rare = frame.where(F.col("i").isin(kept.tolist()))
    params = {"maxIter": 10, "tol": 0.0}
    weighted = Pipeline(stages=[ClassBalancer(), new(weightCol="class_weight", **params)])
    with pytest.warns(ConvergenceWarning):
        found = weighted.fit(rare).stages[-1]
    copies = "explode(sequence(1, cast(pow(2, label) as int))) as n"
    expected = stopped(rare.selectExpr("dense", "label", copies), **params)
    np.testing.assert_allclose(weights(found), weights(expected), rtol=1e-7)
    assert np.abs(weights(stopped(rare, **params)) - weights(found)).max() > 1e-2


def test_every_kind_of_features_trains_the_same_on_executors_and_on_the_driver(frame, monkeypatch):
    params = {"maxIter": 5, "tol": 0.0, "activation": "relu"}
    expected = weights(stopped(frame, **params))
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    # Single precision keeps 1e-7 of a number, and less of a difference.
    kinds = {"sparse": 1e-9, "array": 1e-9, "float": 1e-3}
    for kind, tolerance in kinds.items():
        found = weights(stopped(frame, featuresCol=kind, **params))
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_the_seed_decides_where_it_starts_and_a_callback_may_end_it(frame):
    params: dict[str, Any] = {"layers": LAYERS, "featuresCol": "dense", "maxIter": 0}
    start = [
        weights(MultilayerPerceptronClassifier(**params, seed=seed).fit(frame))
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(start[0], start[1])
    assert not np.allclose(start[0], start[2])
    seen = []

    def watch(state, record):
        seen.append(record.loss)
        return Stop("enough") if record.iteration == 3 else None

    model = new().setCallbacks([watch]).fit(frame)
    assert (model.reason, model.n_iter, len(seen)) == ("enough", 3, 4)
    assert seen[-1] < seen[0]


def test_thresholds_move_the_class_as_in_pyspark_ml(frame):
    def classes(model):
        return [row.prediction for row in model.transform(frame).select("prediction").collect()]

    ours = new(maxIter=0).fit(frame)
    theirs = mllib.MultilayerPerceptronClassifier(**GIVEN, maxIter=0).fit(frame)
    plain = classes(ours)
    for model in (ours, theirs):
        model.setThresholds([1.0, 1.0, 0.01])
    assert classes(ours) == classes(theirs) != plain


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layers": [4]}, "param layers: expected two numbers or more"),
        ({"layers": [4, 0, 3]}, r"param layers: .* found \[4, 0, 3\]"),
        (
            {"layers": [5, 4, 3], "initialWeights": Vectors.dense(np.zeros(39))},
            "param layers: expected the first to be 4",
        ),
        ({"labelCol": "many"}, "label column 'many': expected labels below 3, .* found 3"),
        ({"initialWeights": Vectors.dense(1.0)}, "param initialWeights: expected 43 .* found 1"),
        ({"initialWeights": Vectors.dense([np.nan] * 43)}, "param initialWeights: expected finite"),
        ({"activation": "rleu"}, "param activation: expected one of .*'relu'.* found 'rleu'"),
        ({"solver": "newton"}, r"param solver: expected one of \('l-bfgs', 'gd', 'sgd', 'adam'\)"),
        ({"solver": "adam", "dropout": 1.0}, r"param dropout: .* in \[0, 1\), found 1.0"),
        ({"dropout": 0.5}, "param dropout: expected 0 with l-bfgs, found 0.5"),
        (
            {"batchSize": 9, "solver": "sgd", "miniBatchFraction": 0.5},
            "param batchSize: expected 0",
        ),
        ({"solver": "sgd", "validationFraction": 1e-9}, "param validationFraction: .* of 0$"),
        ({"validationFraction": 1.0}, r"param validationFraction: .* in \[0, 1\), found 1.0"),
        ({"patience": 0}, "param patience: expected 1 or more, found 0"),
        ({"stepSize": 0.0}, "param stepSize: expected a number above 0, found 0.0"),
        ({"blockSize": 0}, "param blockSize: expected 1 or more, found 0"),
        ({"regParam": -1.0}, "param regParam: expected a number of 0 or more, found -1.0"),
        ({"thresholds": [0.5, 0.5]}, "param thresholds: expected 3 values, .* found 2"),
        ({"thresholds": [0.5, 0.0, 0.0]}, "param thresholds: .* at most one of them 0"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_before_any_round(frame, params, message):
    params = {**GIVEN, **params}
    with pytest.raises(ValueError, match=message):
        MultilayerPerceptronClassifier(**params).fit(frame)


def test_layers_have_no_default(frame):
    with pytest.raises(ValueError, match="param layers: expected the units of each layer"):
        MultilayerPerceptronClassifier(featuresCol="dense").fit(frame)


# --- solvers sgd and adam -----------------------------------------------------------------------

STOCHASTIC: dict[str, dict[str, Any]] = {
    "adam": {"solver": "adam", "stepSize": 0.05},
    "sgd": {"solver": "sgd", "momentum": 0.9, "stepSize": 0.1},
    "adam local": {"solver": "adam", "stepSize": 0.05, "updates": "local", "localSteps": 3},
    "sgd powersgd": {"solver": "sgd", "stepSize": 0.5, "compression": "powersgd"},
}


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
@pytest.mark.parametrize("way", STOCHASTIC)
def test_steps_by_samples_tell_the_classes_apart_as_well_as_l_bfgs(frame, way):
    params = {"maxIter": 40, "tol": 0.0, "batchSize": 10, "seed": 3, "regParam": 1e-3}
    model = new(**params, **STOCHASTIC[way]).fit(frame)
    best = stopped(frame, maxIter=60, regParam=1e-3, tol=0.0)
    losses = [record.loss for record in model.history]
    fall = losses[0] - best.history[-1].loss
    assert losses[-1] <= losses[0] - 0.93 * fall  # a local minimum of its own
    assert losses[0] == pytest.approx(best.history[0].loss, rel=1e-12)
    predicted = [row["prediction"] for row in model.transform(frame).orderBy("i").collect()]
    assert np.mean(np.array(predicted) == Y) >= 0.93


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
@pytest.mark.parametrize("updates", ["synchronous", "local"])
def test_dropout_is_the_same_on_executors_and_on_the_driver_and_another_by_the_seed(
    frame, monkeypatch, updates
):
    params = {
        "solver": "adam", "dropout": 0.4, "maxIter": 2, "batchSize": 20, "updates": updates,
        "validationFraction": 0.2,
    }  # fmt: skip
    here = new(**params, seed=1).fit(frame)
    assert np.abs(weights(new(**params, seed=2).fit(frame)) - weights(here)).max() > 1e-4
    whole = new(**{**params, "dropout": 0.0}, seed=1).fit(frame)
    assert np.abs(weights(whole) - weights(here)).max() > 1e-4
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    there = new(**params, seed=1).fit(frame)
    np.testing.assert_array_equal(weights(there), weights(here))
    # The loss of the start is that of the whole network, over the rows that train.
    assert here.history[0].loss == whole.history[0].loss


def test_early_stopping_keeps_the_weights_that_did_best_on_rows_held_out(frame):
    seen = []
    model = (
        new(
            solver="adam", stepSize=0.3, schedule="constant", batchSize=5, maxIter=100,
            validationFraction=0.3, patience=4, tol=0.0, seed=1,
        )
        .setCallbacks([lambda state, record: seen.append(state.v)])
        .fit(frame)
    )  # fmt: skip
    losses = [record.validation_loss for record in model.history]
    best = int(np.argmin(losses))
    assert (model.converged, model.reason) == (True, "validation")
    assert model.n_iter == best + 4 < 100
    np.testing.assert_array_equal(weights(model), seen[best])
    assert np.abs(seen[-1] - seen[best]).max() > 1e-3
    # About 0.3 of the rows; the loss of those alone.
    out = held_out(X, 0.3, 1)
    assert 12 <= out.sum() <= 42
    z = margins(Network(tuple(LAYERS)), Network(tuple(LAYERS)).split(seen[best]), X[out])
    expected = log_loss(Y[out], softmax(z), labels=range(3))
    assert losses[best] == pytest.approx(expected, rel=1e-9)
