"""Networks against pyspark.ml's and scikit-learn's: so many iterations of L-BFGS over all rows."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from pyspark.ml import classification as pyspark_classification
from pyspark.ml.feature import StandardScaler
from pyspark.ml.linalg import DenseVector, Vectors
from pyspark.sql import DataFrame, SparkSession
from threadpoolctl import threadpool_limits

from mllib_ext.classification import MultilayerPerceptronClassifier
from mllib_ext.fitting import training_blocks
from mllib_ext.job.benchmark import Comparison, Line, alternate
from mllib_ext.job.benchmark_data import as_arrays
from mllib_ext.network import Network

HIDDEN = 64
# Networks have many minima: what is compared is the cost of an iteration, and where it has led to.
ITERATIONS = 20


def compare_networks(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """A network with one hidden layer, :data:`ITERATIONS` iterations from the same weights.

    On standardised features (sparse ones divided only), which count for no contender. scikit-learn
    starts from random weights of its own.
    """
    first = df.select("features").head()
    assert first is not None
    scaler = StandardScaler(
        inputCol="features",
        outputCol="scaled",
        withMean=isinstance(first.features, DenseVector),
    )
    scaled = scaler.fit(df).transform(df).selectExpr("scaled as features", "label").cache()
    X, y = as_arrays(scaled)
    layers = [X.shape[1], HIDDEN, max(2, int(y.max()) + 1)]
    start = Network(tuple(layers)).initial(np.random.default_rng(0))
    params: dict[str, Any] = {
        "layers": layers,
        "initialWeights": Vectors.dense(start.tolist()),
        "maxIter": ITERATIONS,
        "tol": 0.0,
    }
    ours = MultilayerPerceptronClassifier(**params)
    theirs = pyspark_classification.MultilayerPerceptronClassifier(**params)
    models: dict[str, Any] = {}

    def fit(name: str, train: Callable[[], Any]) -> None:
        models[name] = train()

    def noted(runs: dict[str, Callable[[], Any]]) -> list[Line]:
        lines = alternate({name: partial(fit, name, run) for name, run in runs.items()}, repeats)
        for line in lines:
            line.notes["loss"] = _loss(models[line.name])
            line.notes["s an iteration"] = line.median / ITERATIONS
        return lines

    built = noted({
        "mllib_ext": lambda: ours.fit(scaled),
        "pyspark.ml": lambda: theirs.fit(scaled),
        "scikit-learn": partial(_sklearn, X, y),
    })  # fmt: skip
    with training_blocks(ours, scaled) as blocks:
        there = noted({"mllib_ext": lambda: ours._fit_blocks(blocks)})
    scaled.unpersist()
    task = f"network {'-'.join(map(str, layers))}, {ITERATIONS} iterations"
    return [Comparison(f"{task}, blocks built", built), Comparison(f"{task}, blocks there", there)]


def _sklearn(X: Any, y: np.ndarray) -> Any:
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(
        (HIDDEN,), activation="logistic", solver="lbfgs", alpha=0.0, tol=0.0,
        max_iter=ITERATIONS, random_state=0,
    )  # fmt: skip
    with threadpool_limits(os.cpu_count() or 1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y)


def _loss(model: Any) -> float:
    """The mean loss at the end of the training."""
    if hasattr(model, "loss_"):
        return float(model.loss_)
    if isinstance(model, pyspark_classification.MultilayerPerceptronClassificationModel):
        return float(model.summary().objectiveHistory[-1])
    return float(model.history[-1].loss)
