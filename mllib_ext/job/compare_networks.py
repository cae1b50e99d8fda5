"""Networks against pyspark.ml's and scikit-learn's: iterations over all rows, and by samples."""

from __future__ import annotations

import os
import tempfile
import time
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
from mllib_ext.figures import COSTS
from mllib_ext.fitting import training_blocks
from mllib_ext.job.benchmark import Comparison, Line, alternate
from mllib_ext.job.benchmark_data import as_arrays
from mllib_ext.job.idx import read_idx
from mllib_ext.losses import Multinomial
from mllib_ext.network import Network, value_and_gradient

HIDDEN = 64
# Networks have many minima: what is compared is the cost of an iteration, and where it has led to.
ITERATIONS = 20
# Fashion-MNIST: by mini-batches, against pyspark.ml's full batches of as many iterations as it
# takes by default.
LAYERS, FULL_BATCHES, PASSES = [784, 256, 128, 10], 100, 16
GRADIENT_ROWS = 8192
# What is sent late takes more passes to the same loss, with far fewer bytes: as many as it needs.
COMPRESSED: dict[str, Any] = {
    "activation": "relu", "solver": "sgd", "momentum": 0.9, "stepSize": 0.03, "batchSize": 128,
    "updates": "local", "localSteps": 12, "maxIter": 5, "tol": 0.0,
}  # fmt: skip
TOP_K: dict[str, Any] = {"compression": "top-k", "compressionShare": 0.01, "maxIter": 12}


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
    """Fashion-MNIST from Parquet; see :func:`compare_images`."""
    with tempfile.TemporaryDirectory() as copies:
        # A DataFrame of rows that the driver has takes them along with every task made from it.
        train, test = (_images(spark, directory, part, copies) for part in ("train", "t10k"))
        return compare_images(train, test, repeats)


def compare_images(train: DataFrame, test: DataFrame, repeats: int) -> list[Comparison]:
    """60,000 images, a network with two hidden layers: time, and accuracy on 10,000 others.

    scikit-learn's network takes as many passes as ours, by its own mini-batches of 200 rows;
    pyspark.ml's takes full batches, and is fitted once.
    """
    from sklearn.neural_network import MLPClassifier

    vectors = train.withColumn("features", array_to_vector(F.col("features"))).cache()
    vectors.count()
    (X, y), (Q, truth) = (as_arrays(df) for df in (train, test))
    X, Q = X.astype(np.float32), Q.astype(np.float32)
    ours = MultilayerPerceptronClassifier(
        layers=LAYERS, activation="relu", solver="adam", stepSize=0.002, maxIter=PASSES,
        batchSize=128, updates="local", tol=0.0,
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
    theirs.copy({theirs.maxIter: 1}).fit(vectors)  # what comes before is not counted either
    began = time.perf_counter()
    fit("pyspark.ml", lambda: theirs.fit(vectors))
    lines.append(Line("pyspark.ml", [time.perf_counter() - began]))
    asked = test.withColumn("features", array_to_vector(F.col("features")))
    for line in lines:
        if line.name == "scikit-learn":
            found = models[line.name].predict(Q)
        else:
            predictions = models[line.name].transform(asked).select("prediction").toArrow()
            found = predictions["prediction"].to_numpy()
        line.notes["accuracy"] = float((found == truth).mean())
    compressed = compare_compressed(train)
    for df in (train, test, vectors):
        df.unpersist()
    name = f"network {'-'.join(map(str, LAYERS))}"
    return [
        Comparison(f"{name}, Fashion-MNIST", lines),
        Comparison(f"{name}, Fashion-MNIST, a gradient in one thread", gradient_rate(X, y)),
        Comparison(f"{name}, Fashion-MNIST, bytes", compressed),
    ]


def compare_compressed(train: DataFrame) -> list[Line]:
    """Local updates with all of every move sent, and with the largest 1% of its entries."""
    lines, histories = [], []
    contenders: dict[str, dict[str, Any]] = {"top-k 1%": TOP_K, "dense": {}}
    for name, params in contenders.items():
        estimator = MultilayerPerceptronClassifier(layers=LAYERS, **COMPRESSED)
        began = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = estimator._set(**params).fit(train)
        histories.append(model.history)
        notes: dict[str, Any] = {"start": model.history[0].loss, "loss": model.history[-1].loss}
        for cost in ("rounds", "bytes"):
            notes[cost] = sum(map(COSTS[cost], model.history))
        lines.append(Line(name, [time.perf_counter() - began], notes))
    sparse, dense = histories
    arrived = next((i for i, r in enumerate(sparse) if r.loss <= dense[-1].loss), None)
    if arrived is not None:
        spent = sum(map(COSTS["bytes"], sparse[: arrived + 1]))
        lines[0].notes |= {
            "passes to the loss of dense": arrived,
            "fewer bytes until then": lines[1].notes["bytes"] / spent,
        }
    return lines


def gradient_rate(X: np.ndarray, y: np.ndarray, repeats: int = 7) -> list[Line]:
    """A network's gradient, and its matrix products alone, by one thread.

    The ratio is the share of NumPy's rate for the products that the whole gradient comes to.
    """
    network = Network(tuple(LAYERS), "relu")
    parts = [
        (W.astype(np.float32), b.astype(np.float32))
        for W, b in network.split(network.initial(np.random.default_rng(0)))
    ]
    X, y = X[:GRADIENT_ROWS], y[:GRADIENT_ROWS]
    rng = np.random.default_rng(1)
    inputs = [X, *(rng.random((len(X), q), np.float32) for q in LAYERS[1:-1])]
    deltas = [rng.random((len(X), q), np.float32) for q in LAYERS[1:]]
    outs = [(np.empty_like(d), np.empty_like(a), np.empty_like(W))
            for d, a, (W, _) in zip(deltas, inputs, parts, strict=True)]  # fmt: skip

    def products() -> None:
        layers = zip(inputs, deltas, parts, outs, strict=True)
        for layer, (a, delta, (W, _), (forward, back, by_weights)) in enumerate(layers):
            np.matmul(a, W, out=forward)
            np.matmul(a.T, delta, out=by_weights)
            if layer:  # no derivative by the features is asked for
                np.matmul(delta, W.T, out=back)

    def gradient() -> None:
        value_and_gradient(network, Multinomial(LAYERS[-1]), parts, X, y, np.ones(len(X)))

    with threadpool_limits(1):
        return alternate({"mllib_ext": gradient, "NumPy, the products alone": products}, repeats)


def _images(spark: SparkSession, directory: Path, part: str, copies: str) -> DataFrame:
    """Grey values from 0 to 1 and labels of a part, from a Parquet copy of its files; cached."""
    files = (directory / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    images, labels = (str(file.absolute()) for file in files)
    copy = f"{copies}/{part}"
    read_idx(spark, images, labels, "--fashion-mnist").selectExpr(
        "transform(features, x -> cast(x / 255 as float)) as features", "label"
    ).write.parquet(copy)
    # A partition a core: the fewer walk by themselves, the fewer passes their mean takes.
    df = spark.read.parquet(copy).coalesce(spark.sparkContext.defaultParallelism).cache()
    df.count()
    return df


def _loss(model: Any) -> float:
    """The mean loss at the end of the training."""
    if hasattr(model, "loss_"):
        return float(model.loss_)
    if isinstance(model, pyspark_classification.MultilayerPerceptronClassificationModel):
        return float(model.summary().objectiveHistory[-1])
    return float(model.history[-1].loss)
