"""Networks against pyspark.ml's and scikit-learn's: iterations over all rows, and by samples."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.ml import classification as pyspark_classification
from pyspark.ml.feature import StandardScaler
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import DenseVector, Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from threadpoolctl import threadpool_limits

from mllib_ext.classification import MultilayerPerceptronClassifier
from mllib_ext.fitting import training_blocks
from mllib_ext.job.benchmark import Comparison, Line, alternate
from mllib_ext.job.benchmark_data import as_arrays
from mllib_ext.job.idx import read_idx
from mllib_ext.network import Network

HIDDEN = 64
# Networks have many minima: what is compared is the cost of an iteration, and where it has led to.
ITERATIONS = 20
# Fashion-MNIST: by mini-batches, against pyspark.ml's full batches of as many iterations as it
# takes by default.
LAYERS, FULL_BATCHES, PASSES = [784, 256, 128, 10], 100, 12


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


def compare_fashion_mnist(spark: SparkSession, directory: Path, repeats: int) -> list[Comparison]:
    """60,000 images, a network with two hidden layers: time, and accuracy on 10,000 others.

    ``directory`` holds the four IDX files. scikit-learn's network takes as many passes as ours, by
    its own mini-batches of 200 rows; pyspark.ml's takes full batches, and is fitted once.
    """
    from sklearn.neural_network import MLPClassifier

    train, test = (_images(spark, directory, part) for part in ("train", "t10k"))
    vectors = train.withColumn("features", array_to_vector(F.col("features"))).cache()
    vectors.count()
    (X, y), (Q, truth) = (as_arrays(df) for df in (train, test))
    X, Q = X.astype(np.float32), Q.astype(np.float32)
    ours = MultilayerPerceptronClassifier(
        layers=LAYERS, activation="relu", solver="adam", stepSize=0.002, maxIter=PASSES,
        batchSize=128, updates="local", localSteps=40, tol=0.0,
    )  # fmt: skip
    theirs = pyspark_classification.MultilayerPerceptronClassifier(
        layers=LAYERS, maxIter=FULL_BATCHES, tol=0.0
    )
    models: dict[str, Any] = {}

    def sklearn() -> Any:
        model = MLPClassifier(tuple(LAYERS[1:-1]), max_iter=PASSES, tol=0.0, random_state=0)
        with threadpool_limits(os.cpu_count() or 1):
            return model.fit(X, y)

    def fit(name: str, train: Callable[[], Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the passes are over before a stopping rule holds
            models[name] = train()

    runs = {"mllib_ext": lambda: ours.fit(train), "scikit-learn": sklearn}
    lines = alternate({name: partial(fit, name, run) for name, run in runs.items()}, repeats)
    lines += alternate({"pyspark.ml": partial(fit, "pyspark.ml", lambda: theirs.fit(vectors))}, 1)
    asked = test.withColumn("features", array_to_vector(F.col("features")))
    for line in lines:
        if line.name == "scikit-learn":
            found = models[line.name].predict(Q)
        else:
            predictions = models[line.name].transform(asked).select("prediction").toArrow()
            found = predictions["prediction"].to_numpy()
        line.notes["accuracy"] = float((found == truth).mean())
    for df in (train, test, vectors):
        df.unpersist()
    return [Comparison(f"network {'-'.join(map(str, LAYERS))}, Fashion-MNIST", lines)]


def _images(spark: SparkSession, directory: Path, part: str) -> DataFrame:
    """Grey values from 0 to 1 and labels, cached."""
    files = (directory / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    images, labels = (str(file.absolute()) for file in files)
    df = read_idx(spark, images, labels, "--fashion-mnist").selectExpr(
        "transform(features, x -> cast(x / 255 as float)) as features", "label"
    )
    # A partition a core: the fewer walk by themselves, the fewer passes their mean takes.
    df = df.coalesce(spark.sparkContext.defaultParallelism).cache()
    df.count()
    return df


def _loss(model: Any) -> float:
    """The mean loss at the end of the training."""
    if hasattr(model, "loss_"):
        return float(model.loss_)
    if isinstance(model, pyspark_classification.MultilayerPerceptronClassificationModel):
        return float(model.summary().objectiveHistory[-1])
    return float(model.history[-1].loss)
