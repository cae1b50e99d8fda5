"""Support vector machines: linear ones against pyspark.ml's, those with a kernel against SVC."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from pyspark.ml import classification as pyspark_classification
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mllib_ext.classification import KernelSVC, LinearSVC
from mllib_ext.feature import Nystroem
from mllib_ext.fitting import training_blocks
from mllib_ext.job.benchmark import Comparison, Line, alternate
from mllib_ext.job.benchmark_data import as_arrays
from mllib_ext.optimizers.loop import ConvergenceWarning

GAP = 1e-6  # of the squared hinge, relative to its optimum
HINGE_GAP = 1e-3  # of the hinge, as it is certified
THEIR_ITERATIONS = 100
WARM_UP = 3  # iterations
STRENGTH = 1e-4

# Of the rbf kernel. An exact machine takes time by the square of its rows: no more, and once only.
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

    def timed(contenders: dict[str, Any]) -> list[Line]:
        def fit(name: str) -> None:
            models[name] = contenders[name].fit(df)

        for estimator in contenders.values():  # a few iterations warm up as well as a hundred
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                estimator.copy({estimator.maxIter: WARM_UP}).fit(df)
        runs: dict[str, Any] = {name: partial(fit, name) for name in contenders}
        lines = alternate(runs, repeats, warm_up=False)
        for line in lines:
            power = 2 if "squared" in line.name else 1
            line.notes["objective"] = objective(X, y, models[line.name], power)
        return lines

    certified = {"mllib_ext hinge": hinge}
    built = timed({
        "mllib_ext squared hinge": squared, **certified, "pyspark.ml hinge": theirs
    })  # fmt: skip
    built[0].notes["optimum"] = optimum
    built[0].notes["iterations"] = needed
    built[1].notes["gap"] = models["mllib_ext hinge"].gap
    # As many iterations of pyspark.ml as fit into our time, of the hinge: at least one.
    share = built[1].median / built[2].median
    few = theirs.copy({theirs.maxIter: max(1, round(share * THEIR_ITERATIONS))})
    as_long = timed({**certified, "pyspark.ml hinge, as long": few})
    as_long[1].notes["iterations"] = few.getMaxIter()
    task = f"linear SVM, regParam {STRENGTH:g}"
    return [
        Comparison(f"{task}, blocks built", built),
        Comparison(f"{task}, blocks there", there),
        Comparison(f"{task}, the hinge at equal time", as_long),
    ]


def objective(X: Any, y: np.ndarray, model: Any, power: int) -> float:
    """Of a binary model, from outside of all contenders."""
    coef = model.coefficients.toArray()
    lack = np.maximum(0.0, 1.0 - (2 * y - 1) * (X @ coef + model.intercept))
    n, mean = len(y), X.mean(axis=0)
    squares = X.multiply(X).mean(axis=0) if sp.issparse(X) else np.einsum("ij,ij->j", X, X) / n
    variance = (squares - mean**2) * n / (n - 1)
    return float((lack**power).mean() + 0.5 * STRENGTH * (coef * coef * variance).sum())


def compare_kernel_svm(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """An rbf kernel on :data:`KERNEL_ROWS` rows: by a Nystroem map, a cascade, and one SVC."""
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
        featuresCol="map", loss="squared_hinge", standardization=False, regParam=1 / (C * len(y)),
        tol=1e-3,
    )  # fmt: skip
    exact = KernelSVC(C=C)
    models: dict[str, Any] = {}

    def mapped(landmarks: str) -> None:
        map = nystroem.copy({nystroem.landmarks: landmarks}).fit(train)
        models[landmarks] = map, linear.fit(map.transform(train))

    def cascade() -> None:
        models["KernelSVC"] = exact.fit(train)

    def alone() -> None:
        models["SVC"] = SVC(C=C, cache_size=1000).fit(X, y)

    lines = alternate(
        {
            "mllib_ext Nystroem + LinearSVC": partial(mapped, "uniform"),
            "mllib_ext by k-means": partial(mapped, "k-means"),
        },
        repeats,
    )
    # The workers are warm by now.
    lines += alternate(
        {"mllib_ext KernelSVC": cascade, "scikit-learn SVC": alone}, 1, warm_up=False
    )
    for line, landmarks in zip(lines, ("uniform", "k-means"), strict=False):
        map, machine = models[landmarks]
        line.notes["test accuracy"] = accuracy(machine.transform(map.transform(test)))
    model, svc = models["KernelSVC"], models["SVC"]
    lines[2].notes |= {
        "test accuracy": accuracy(model.transform(test)),
        "support vectors": model.numSupportVectors,
        "passes": model.n_iter,
        "dual objective": model.dualObjective,
    }
    lines[3].notes |= {
        "test accuracy": float(svc.score(X_test, y_test)),
        "support vectors": len(svc.support_),
        "dual objective": dual_objective(svc),
    }
    return [Comparison(f"rbf kernel, {len(y)} rows, {LANDMARKS} landmarks", lines)]


def accuracy(predicted: DataFrame) -> float:
    """The share of rows whose label is predicted."""
    right = (F.col("label") == F.col("prediction")).cast("double")
    return float(predicted.agg(F.mean(right)).first()[0])  # type: ignore[index]


def dual_objective(svc: Any) -> float:
    """That of a binary machine, as it is maximised."""
    dual = np.asarray(svc.dual_coef_.todense() if sp.issparse(svc.dual_coef_) else svc.dual_coef_)
    f = svc.decision_function(svc.support_vectors_) - svc.intercept_
    return float(np.abs(dual).sum() - 0.5 * dual[0] @ f)
