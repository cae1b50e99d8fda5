"""Linear support vector machines against pyspark.ml's and LIBLINEAR's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from pyspark.ml import classification as pyspark_classification
from pyspark.sql import DataFrame, SparkSession

from mllib_ext.classification import LinearSVC
from mllib_ext.fitting import training_blocks
from mllib_ext.job.benchmark import Comparison, alternate
from mllib_ext.job.benchmark_data import as_arrays

GAP = 1e-6  # of the squared hinge, relative to its optimum
HINGE_GAP = 1e-3  # of the hinge, as it is certified
THEIR_ITERATIONS = 100
STRENGTH = 1e-4


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
