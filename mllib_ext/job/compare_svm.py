"""Support vector machines: linear ones against pyspark.ml's, kernel maps against scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from pyspark.ml import classification as pyspark_classification
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mllib_ext.classification import LinearSVC
from mllib_ext.feature import Nystroem
from mllib_ext.fitting import training_blocks
from mllib_ext.job.benchmark import Comparison, alternate
from mllib_ext.job.benchmark_data import as_arrays

GAP = 1e-6  # of the squared hinge, relative to its optimum
HINGE_GAP = 1e-3  # of the hinge, as it is certified
THEIR_ITERATIONS = 100
STRENGTH = 1e-4

# Of the rbf kernel. An exact machine takes time by the square of its rows: no more, and no repeats.
KERNEL_ROWS = 20_000
LANDMARKS = 1_000
C = 1.0


def compare_svm(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """The squared hinge to :data:`GAP`, and the hinge to a certified :data:`HINGE_GAP`."""
    X, y = as_arrays(df)
    tight = LinearSVC(loss="squared_hinge", regParam=STRENGTH, tol=1e-12, maxIter=300)
    squared = LinearSVC(loss="squared_hinge", regParam=STRENGTH, tol=0.0)
    hinge = LinearSVC(regParam=STRENGTH, tol=HINGE_GAP)
    theirs = pyspark_classification.LinearSVC(maxIter=THEIR_ITERATIONS, regParam=STRENGTH, tol=0.0)
    with training_blocks(squared, df) as blocks:
        losses = [record.loss for record in tight._fit_blocks(blocks).history]
        optimum = min(losses)
        needed = next(i for i, loss in enumerate(losses) if (loss - optimum) / optimum <= GAP)
        squared.setMaxIter(needed)
        there = alternate(
            {
                "mllib_ext squared hinge": partial(squared._fit_blocks, blocks),
                "mllib_ext hinge": partial(hinge._fit_blocks, blocks),
            },
            repeats,
        )
    models: dict[str, Any] = {}

    def fit(name: str, estimator: Any) -> None:
        models[name] = estimator.fit(df)

    contenders = {
        "mllib_ext squared hinge": squared,
        "mllib_ext hinge": hinge,
        "pyspark.ml hinge": theirs,
    }
    runs: dict[str, Callable[[], Any]] = {
        name: partial(fit, name, estimator) for name, estimator in contenders.items()
    }
    built = alternate(runs, repeats)
    for line in built:
        model = models[line.name]
        line.notes["mean hinge"] = mean_hinge(X, y, model.coefficients.toArray(), model.intercept)
        line.notes["objective"] = model.summary().objectiveHistory[-1]
    built[0].notes["iterations"] = needed
    built[1].notes["gap"] = models["mllib_ext hinge"].gap
    return [
        Comparison(f"linear SVM, regParam {STRENGTH:g}, blocks built", built),
        Comparison(f"linear SVM, regParam {STRENGTH:g}, blocks there", there),
    ]


def mean_hinge(X: Any, y: np.ndarray, coef: np.ndarray, intercept: float) -> float:
    """Of a binary model, from outside of all contenders."""
    return float(np.maximum(0.0, 1.0 - (2 * y - 1) * (X @ coef + intercept)).mean())


def compare_kernel_map(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """An rbf kernel on :data:`KERNEL_ROWS` rows: a linear machine of a Nystroem map against SVC."""
    from sklearn.svm import SVC

    share = min(0.8, KERNEL_ROWS / df.count())
    parts = df.randomSplit([share, 1 - share], seed=0)
    # One file is one partition, which one core alone would work on.
    train, test = (part.repartition(spark.sparkContext.defaultParallelism) for part in parts)
    train = train.cache()
    test = test.limit(KERNEL_ROWS).cache()
    (X, y), (X_test, y_test) = as_arrays(train), as_arrays(test)
    nystroem = Nystroem(nComponents=LANDMARKS, outputCol="map", outputType="array<float>")
    linear = LinearSVC(
        featuresCol="map", standardization=False, regParam=1 / (C * len(y)), tol=HINGE_GAP
    )
    models: dict[str, Any] = {}

    def mapped(landmarks: str) -> None:
        map = nystroem.copy({nystroem.landmarks: landmarks}).fit(train)
        models[landmarks] = map, linear.fit(map.transform(train))

    def exact() -> None:
        models["SVC"] = SVC(C=C, cache_size=1000).fit(X, y)

    lines = alternate(
        {
            "mllib_ext Nystroem + LinearSVC": partial(mapped, "uniform"),
            "mllib_ext by k-means": partial(mapped, "k-means"),
            "scikit-learn SVC": exact,
        },
        min(repeats, 1),
    )
    for line, landmarks in zip(lines, ("uniform", "k-means"), strict=False):
        map, machine = models[landmarks]
        right = (F.col("label") == F.col("prediction")).cast("double")
        predicted = machine.transform(map.transform(test)).agg(F.mean(right))
        line.notes["test accuracy"] = float(predicted.first()[0])  # type: ignore[index]
        line.notes["gap"] = machine.gap
    lines[-1].notes["test accuracy"] = float(models["SVC"].score(X_test, y_test))
    lines[-1].notes["support vectors"] = len(models["SVC"].support_)
    return [Comparison(f"rbf kernel, {len(y)} rows, {LANDMARKS} landmarks", lines)]
