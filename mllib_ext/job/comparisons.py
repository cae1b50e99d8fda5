"""What jobs/benchmark.py compares: one task each for this package, pyspark.ml, scikit-learn."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from pyspark.ml import classification as pyspark_classification
from pyspark.ml import regression as pyspark_regression
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from threadpoolctl import threadpool_limits

from mllib_ext.blockfile import Block
from mllib_ext.blocks import Blocks
from mllib_ext.classification import LogisticRegression
from mllib_ext.columns import Features
from mllib_ext.fitting import training_blocks
from mllib_ext.job.benchmark import Comparison, Line, alternate
from mllib_ext.job.benchmark_data import as_arrays
from mllib_ext.job.compare_k_means import compare_k_means
from mllib_ext.job.compare_neighbors import compare_neighbors
from mllib_ext.job.compare_networks import compare_networks
from mllib_ext.job.compare_sgd import compare_sgd
from mllib_ext.job.compare_svm import compare_kernel_svm, compare_svm
from mllib_ext.losses import Logistic
from mllib_ext.objective import value_and_gradient
from mllib_ext.regression import LinearRegression

GAP = 1e-6  # (objective - optimum) / optimum that every contender has to reach


def deviance(X: Any, y: np.ndarray, coef: np.ndarray, intercept: Any) -> float:
    """The mean logistic loss of a binomial model, from outside of all contenders."""
    block = Block(X, y, np.ones(len(y)), np.empty(0))
    value, _, _ = value_and_gradient(Logistic(), block, np.asarray(coef).ravel(), float(intercept))
    return float(value) / len(y)


@dataclass(frozen=True)
class Goal:
    """Logistic regression without a penalty to :data:`GAP`, and what it takes.

    Attributes
    ----------
    gap : callable
        ``gap(coef, intercept)``: how far from the optimum a model is, relative to it.
    ours : dict of str to int
        Iterations of this package's solvers.
    solver : str
        The one that this package takes by default.
    theirs : int
        Iterations of pyspark.ml.
    """

    gap: Callable[[Any, Any], float]
    ours: dict[str, int]
    solver: str
    theirs: int

    @classmethod
    def of(cls, df: DataFrame, blocks: Blocks, X: Any, y: np.ndarray) -> Goal:
        tight = LogisticRegression(tol=1e-12)._fit_blocks(blocks)
        optimum = deviance(X, y, tight.coefficients.toArray(), tight.intercept)

        def gap(coef: Any, intercept: Any) -> float:
            return (deviance(X, y, coef, intercept) - optimum) / optimum

        ours: dict[str, int] = {}
        for solver in ("newton", "l-bfgs"):
            losses = [r.loss for r in _ours(solver, 100, 1e-12)._fit_blocks(blocks).history]
            ours[solver] = _iterations(losses, optimum)
        losses = _theirs(200, 1e-12).fit(df).summary.objectiveHistory
        theirs = _iterations(list(losses), optimum)
        return cls(gap, ours, LogisticRegression()._solver(blocks, 1), theirs)

    def estimator(self, solver: str) -> LogisticRegression:
        """Ours, to stop at the goal."""
        return _ours(solver, self.ours[solver])

    def note(self, line: Line, model: Any, iterations: int) -> None:
        """Write on a line how far a model of its contender came."""
        if line.name.startswith("mllib_ext"):
            line.notes["rounds"] = sum(len(r.rounds) for r in model.history)
        line.notes["iterations"] = iterations
        line.notes["gap"] = self.gap(model.coefficients.toArray(), model.intercept)


def compare_logistic(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Logistic regression without a penalty to a relative objective gap of :data:`GAP`."""
    X, y = as_arrays(df)
    with training_blocks(LogisticRegression(), df) as blocks:
        goal = Goal.of(df, blocks, X, y)
        solver = goal.solver
        best = {"mllib_ext": lambda: goal.estimator(solver).fit(df)}
        best["pyspark.ml"] = lambda: _theirs(goal.theirs).fit(df)
        whole = alternate(best, repeats)
        # Apart: idle for a minute, PySpark ends its workers, and the next run would start new ones.
        whole += alternate(_sklearn_logistic(X, y, goal.gap), repeats)
        runs: dict[str, Callable[[], Any]] = {
            f"mllib_ext {s}": partial(_fit_blocks, goal.estimator(s), blocks)
            for s in (solver, *(s for s in goal.ours if s != solver))
        }
        runs["pyspark.ml"] = best["pyspark.ml"]
        fitting = alternate(runs, repeats)
        building = alternate({"mllib_ext": partial(_build, df)}, repeats)
    for line in (*whole, *fitting):
        name = line.name.removeprefix("mllib_ext").strip() or solver
        if line.name.startswith("mllib_ext"):
            goal.note(line, goal.estimator(name).fit(df), goal.ours[name])
        elif line.name == "pyspark.ml":
            goal.note(line, best["pyspark.ml"](), goal.theirs)
    return [
        Comparison(f"logistic regression to a gap of {GAP:g}, blocks built", whole),
        Comparison(f"logistic regression to a gap of {GAP:g}, blocks there", fitting),
        Comparison("building blocks", building),
    ]


def compare_grid(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Ten settings at once, as a cross-validation asks for on each fold, against ten fits."""
    strengths = [10.0**-i for i in range(1, 11)]
    ours, theirs = LogisticRegression(), pyspark_classification.LogisticRegression()

    def grid(estimator: Any) -> None:
        maps = [{estimator.regParam: strength} for strength in strengths]
        for _ in estimator.fitMultiple(df, maps):
            pass

    def single(estimator: Any) -> None:
        estimator.copy({estimator.regParam: strengths[4]}).fit(df)

    runs: dict[str, Callable[[], Any]] = {
        "mllib_ext, grid of 10": partial(grid, ours),
        "pyspark.ml, grid of 10": partial(grid, theirs),
        "mllib_ext, one fit": partial(single, ours),
        "pyspark.ml, one fit": partial(single, theirs),
    }
    return [
        Comparison("logistic regression, tol 1e-6, grid of 10 regParams", alternate(runs, repeats))
    ]


def compare_elastic_net(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Logistic regression with half of its penalty L1, to the gap, blocks built."""
    params: dict[str, Any] = {"regParam": 0.01, "elasticNetParam": 0.5}

    def ours(iterations: int, tol: float = 0.0) -> Any:
        return LogisticRegression(maxIter=iterations, tol=tol, **params).fit(df)

    def theirs(iterations: int, tol: float = 0.0) -> Any:
        model = pyspark_classification.LogisticRegression(maxIter=iterations, tol=tol, **params)
        return model.fit(df)

    histories = {
        name: list(fit(1000, 1e-12).summary.objectiveHistory)
        for name, fit in (("mllib_ext", ours), ("pyspark.ml", theirs))
    }
    optimum = min(min(history) for history in histories.values())
    needed = {name: _iterations(history, optimum) for name, history in histories.items()}
    lines = alternate(
        {
            "mllib_ext": lambda: ours(needed["mllib_ext"]),
            "pyspark.ml": lambda: theirs(needed["pyspark.ml"]),
        },
        repeats,
    )
    for line in lines:
        line.notes["iterations"] = needed[line.name]
    return [Comparison(f"logistic elastic net to a gap of {GAP:g}, blocks built", lines)]


def compare_huber(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Huber's loss on the label as a number, tol 1e-9, blocks built."""
    params: dict[str, Any] = {"loss": "huber", "maxIter": 1000, "tol": 1e-9}
    objectives: dict[str, float] = {}

    def fit(name: str, estimator: Any) -> None:
        objectives[name] = estimator.fit(df).summary.objectiveHistory[-1]

    lines = alternate(
        {
            "mllib_ext": partial(fit, "mllib_ext", LinearRegression(**params)),
            "pyspark.ml": partial(fit, "pyspark.ml", pyspark_regression.LinearRegression(**params)),
        },
        repeats,
    )
    for line in lines:
        line.notes["objective"] = objectives[line.name]
    return [Comparison("linear regression, Huber's loss", lines)]


def compare_parquet(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """From Parquet files to a logistic regression as in :func:`compare_logistic`."""
    X, y = as_arrays(df)
    with training_blocks(LogisticRegression(), df) as blocks:
        goal = Goal.of(df, blocks, X, y)
    ours, theirs = goal.estimator(goal.solver), _theirs(goal.theirs)
    with tempfile.TemporaryDirectory() as directory:
        path = (Path(directory) / "data").as_uri()
        df.write.parquet(path)
        runs: dict[str, Callable[[], Any]] = {
            "mllib_ext": lambda: ours.fit(spark.read.parquet(path)),
            "pyspark.ml": lambda: theirs.fit(spark.read.parquet(path)),
        }
        lines = alternate(runs, repeats)
        goal.note(lines[0], runs["mllib_ext"](), goal.ours[goal.solver])
        goal.note(lines[1], runs["pyspark.ml"](), goal.theirs)
    return [Comparison(f"Parquet to a logistic regression to a gap of {GAP:g}", lines)]


def _ours(solver: str, iterations: int, tol: float = 0.0) -> LogisticRegression:
    return LogisticRegression(solver=solver, maxIter=iterations, tol=tol)


def _theirs(iterations: int, tol: float = 0.0) -> Any:
    return pyspark_classification.LogisticRegression(maxIter=iterations, tol=tol)


def _build(df: DataFrame) -> None:
    training_blocks(LogisticRegression(), df).close()


def _fit_blocks(estimator: LogisticRegression, blocks: Blocks) -> Any:
    return estimator._fit_blocks(blocks)


def _iterations(losses: list[float], optimum: float) -> int:
    """The first iteration whose loss lies within the gap."""
    return next(i for i, loss in enumerate(losses) if (loss - optimum) / optimum <= GAP)


def _sklearn_logistic(
    X: Any, y: np.ndarray, gap: Callable[[Any, Any], float]
) -> dict[str, Callable[[], Any]]:
    """scikit-learn's solvers, each with the loosest tolerance that reaches the gap.

    On standardised features, as the others do it inside; the time for that does not count.
    """
    from sklearn.linear_model import LogisticRegression as Sklearn
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(with_mean=not sp.issparse(X))
    X = scaler.fit_transform(X)

    runs: dict[str, Callable[[], Any]] = {}
    cores = os.cpu_count() or 1
    for solver in ("lbfgs", "newton-cholesky"):
        if solver == "newton-cholesky" and X.shape[1] > 5000:
            continue

        def fit(tol: float, solver: str = solver) -> Any:
            with threadpool_limits(cores), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = Sklearn(C=np.inf, solver=solver, tol=tol, max_iter=1000)
                return model.fit(X, y)

        for tol in 10.0 ** -np.arange(2, 11):
            model = fit(tol)
            coef = model.coef_.ravel() / scaler.scale_
            shift = 0.0 if scaler.mean_ is None or sp.issparse(X) else scaler.mean_ @ coef
            if gap(coef, model.intercept_[0] - shift) <= GAP:
                runs[f"scikit-learn {solver}"] = partial(fit, tol)
                break
    return runs


def compare_linear(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Least squares to the optimum."""
    from sklearn.linear_model import LinearRegression as Sklearn

    X, y = as_arrays(df)
    runs: dict[str, Callable[[], Any]] = {
        "mllib_ext": lambda: LinearRegression().fit(df),
        "pyspark.ml": lambda: pyspark_regression.LinearRegression().fit(df),
        "scikit-learn": lambda: Sklearn().fit(X, y),
    }
    return [Comparison("least squares, blocks built", alternate(runs, repeats))]


def compare_round(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """A gradient round against an empty Python job and NumPy's own time for the arithmetic."""
    with Blocks.of(df, "features", label="label") as blocks:
        coef = np.zeros(blocks.n_features)
        stage = partial(value_and_gradient, Logistic())
        # An empty job over cached partitions, as small as Spark has them: the floor of a round.
        cached = spark.sparkContext.parallelize(range(2), len(blocks.handles)).persist()
        cached.count()
        grouped = cached.coalesce(blocks.n_tasks)
        X, y = as_arrays(df)
        halves = [
            _as_blocks(X[i :: blocks.n_tasks], y[i :: blocks.n_tasks])
            for i in range(blocks.n_tasks)
        ]

        def numpy_alone() -> None:
            with threadpool_limits(1), ThreadPoolExecutor(blocks.n_tasks) as pool:
                list(pool.map(lambda part: [stage(b, coef, 0.0) for b in part], halves))

        runs = {
            "mllib_ext round": lambda: blocks.sum(stage, coef, 0.0),
            "empty Python job": lambda: grouped.mapPartitions(_drain).collect(),
            "NumPy alone": numpy_alone,
        }
        lines = alternate(runs, max(15, repeats))
        cached.unpersist()
    floor = lines[1].median + lines[2].median
    lines[0].notes["of empty job + NumPy"] = lines[0].median / floor
    return [Comparison("one gradient round", lines)]


def _drain(rows: Iterable[Any]) -> list[int]:
    return [sum(1 for _ in rows)]


def _as_blocks(X: Any, y: np.ndarray, rows: int = 5000) -> list[Block]:
    starts = range(0, len(y), rows)
    return [
        Block(X[i : i + rows], y[i : i + rows], np.ones(len(y[i : i + rows])), np.empty(0))
        for i in starts
    ]


def compare_predict(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Prediction columns against Arrow's own transfer of the same features."""
    ours = LogisticRegression(maxIter=5).fit(df)
    theirs = pyspark_classification.LogisticRegression(maxIter=5).fit(df)
    features = Features.of(df.schema, "features")

    def transfer(*arrays: pa.Array) -> pa.Array:
        return pa.array(np.zeros(len(arrays[0])))

    transfer.__annotations__ = {"arrays": pa.Array, "return": pa.Array}
    udf = F.arrow_udf(transfer, "double")  # type: ignore[call-overload]
    runs = {
        "mllib_ext": lambda: _sink(ours.transform(df)),
        "Arrow's transfer": lambda: _sink(df.withColumn("p", udf(*features.expressions()))),
        "pyspark.ml": lambda: _sink(theirs.transform(df)),
    }
    return [Comparison("prediction (raw, probability, class)", alternate(runs, repeats))]


def _sink(df: DataFrame) -> None:
    df.write.format("noop").mode("overwrite").save()


TASKS: dict[str, Callable[[SparkSession, DataFrame, int], list[Comparison]]] = {
    "logistic": compare_logistic,
    "parquet": compare_parquet,
    "linear": compare_linear,
    "grid": compare_grid,
    "elastic-net": compare_elastic_net,
    "huber": compare_huber,
    "round": compare_round,
    "predict": compare_predict,
    "neighbors": compare_neighbors,
    "kmeans": compare_k_means,
    "svm": compare_svm,
    "kernel-svm": compare_kernel_svm,
    "networks": compare_networks,
    "sgd": compare_sgd,
}
