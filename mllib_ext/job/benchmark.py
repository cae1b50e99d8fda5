"""Measures this package side by side with pyspark.ml and scikit-learn on the same data and cores.

Every contender gets the same cached DataFrame in one Spark session (scikit-learn the same numbers
as an array), and contenders take turns, so that a machine that slows down slows all of them. What
is compared is the time to reach the same objective, not the same number of iterations: each
contender is first asked how many iterations it needs, then timed with just so many.

Only ratios carry over to another machine.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp
from pyspark.ml import classification as pyspark_classification
from pyspark.ml import regression as pyspark_regression
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from threadpoolctl import threadpool_limits

from mllib_ext import __version__
from mllib_ext.blockfile import Block
from mllib_ext.blocks import Blocks
from mllib_ext.classification import LogisticRegression
from mllib_ext.columns import Features
from mllib_ext.losses import Logistic
from mllib_ext.objective import value_and_gradient
from mllib_ext.regression import LinearRegression

ROWS_A_BATCH = 10_000
GAP = 1e-6  # (objective - optimum) / optimum that every contender has to reach


@dataclass(frozen=True)
class Problem:
    """Data to generate: ``n`` rows of ``d`` features for ``k`` classes, or a number (k = 0).

    Features are correlated (``correlation`` to the power of their distance) and their scales span
    two decades, as in raw data; a linear score with a standard deviation of 2 decides.
    """

    n: int = 500_000
    d: int = 100
    k: int = 2
    density: float = 1.0
    correlation: float = 0.9
    seed: int = 0


def generate(spark: SparkSession, problem: Problem, partitions: int) -> DataFrame:
    """A DataFrame of ``features`` (vectors) and ``label``, the same for the same problem."""
    n_batches = -(-problem.n // ROWS_A_BATCH)
    batches = spark.range(0, n_batches, 1, partitions)
    if problem.density < 1:
        rows = batches.mapInArrow(
            partial(_rows, problem), "indices array<int>, values array<double>, label double"
        )
        vector = F.udf(partial(Vectors.sparse, problem.d), VectorUDT())
        return rows.select(vector("indices", "values").alias("features"), "label")
    rows = batches.mapInArrow(partial(_rows, problem), "values array<double>, label double")
    return rows.select(array_to_vector(F.col("values")).alias("features"), "label")


def _rows(problem: Problem, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for number in batch.column(0).to_pylist():
            n = min(ROWS_A_BATCH, problem.n - number * ROWS_A_BATCH)
            yield _batch(problem, n, np.random.default_rng([problem.seed, number]))


def _batch(problem: Problem, n: int, rng: np.random.Generator) -> pa.RecordBatch:
    d, k = problem.d, problem.k
    truth = np.random.default_rng(problem.seed)
    scales = 10.0 ** truth.uniform(-1, 1, d)
    beta = truth.normal(size=(d, max(k, 1)))
    if problem.density < 1:
        X: Any = sp.random_array((n, d), density=problem.density, format="csr", rng=rng)
        X.sort_indices()
    else:
        X = rng.normal(size=(n, d))
        r = problem.correlation
        for j in range(1, d):  # an AR(1) process over the features
            X[:, j] = r * X[:, j - 1] + np.sqrt(1 - r * r) * X[:, j]
    scores = X @ beta
    scores *= 2.0 / max(scores.std(), 1e-12)
    if k == 0:
        y = scores[:, 0] + rng.normal(size=n)
    elif k == 2:
        y = (rng.random(n) < 1 / (1 + np.exp(-scores[:, 0]))).astype(float)
    else:
        y = (scores + rng.gumbel(size=(n, k))).argmax(axis=1).astype(float)
    if problem.density < 1:
        offsets = X.indptr.astype(np.int32)
        columns = [pa.ListArray.from_arrays(offsets, X.indices.astype(np.int32))]
        columns.append(pa.ListArray.from_arrays(offsets, X.data * scales[X.indices]))
        return pa.RecordBatch.from_arrays([*columns, pa.array(y)], ["indices", "values", "label"])
    offsets = np.arange(0, n * d + 1, d, dtype=np.int32)
    values = pa.ListArray.from_arrays(offsets, (X * scales).ravel())
    return pa.RecordBatch.from_arrays([values, pa.array(y)], ["values", "label"])


def as_arrays(df: DataFrame) -> tuple[Any, np.ndarray]:
    """The same rows as ``X`` (dense or CSR) and ``y``, for scikit-learn."""
    features = Features.of(df.schema, "features")
    columns = [c.alias(f"x{i}") for i, c in enumerate(features.expressions())]
    table = df.select(*columns, F.col("label").cast("double").alias("y")).toArrow()
    batches = table.combine_chunks().to_batches()
    parts = [features.decode(b.columns[:-1], None, None) for b in batches]
    X = sp.vstack(parts, format="csr") if sp.issparse(parts[0]) else np.vstack(parts)
    return X, table["y"].to_numpy()


# --- measuring -----------------------------------------------------------------------------------


@dataclass
class Line:
    """One contender in one comparison: seconds of every run, and what else is told of it."""

    name: str
    seconds: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Comparison:
    """Contenders at one task; the first line is this package."""

    task: str
    lines: list[Line]

    def ratio(self, line: Line) -> float:
        """How many times as long as this package a contender took."""
        return line.median / self.lines[0].median


def alternate(runs: dict[str, Callable[[], Any]], repeats: int) -> list[Line]:
    """Time the contenders in turn, ``repeats`` times each, after one run that does not count."""
    lines = [Line(name) for name in runs]
    for i in range(repeats + 1):
        for line, run in zip(lines, runs.values(), strict=True):
            with peak_memory() as peaks:
                began = time.perf_counter()
                run()
                seconds = time.perf_counter() - began
            if i:
                line.seconds.append(seconds)
            for process, megabytes in peaks.items():
                key = f"peak {process} MB"
                line.notes[key] = max(megabytes, line.notes.get(key, 0))
    return lines


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Largest resident sizes, by kind of process, of this process and those below it, in MB."""
    peaks: dict[str, int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            for kind, megabytes in _resident().items():
                peaks[kind] = max(peaks.get(kind, 0), megabytes)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


def _resident() -> dict[str, int]:
    """Resident MB of the driver, the JVM and all Python workers together."""
    import psutil  # of the extra [test]

    driver = psutil.Process()
    above = driver.parent()  # under spark-submit the JVM started us, otherwise we started it
    top = above if above is not None and above.name() == "java" else driver
    total: dict[str, int] = {}
    for process in (top, *top.children(recursive=True)):
        try:
            kind = "jvm" if process.name() == "java" else "workers"
            kind = "driver" if process == driver else kind
            total[kind] = total.get(kind, 0) + process.memory_info().rss // (1 << 20)
        except psutil.NoSuchProcess:
            continue
    return total


# --- tasks ---------------------------------------------------------------------------------------


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
    with Blocks.of(df, "features", label="label") as blocks:
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


def compare_parquet(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """From Parquet files to a logistic regression as in :func:`compare_logistic`."""
    X, y = as_arrays(df)
    with Blocks.of(df, "features", label="label") as blocks:
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
    Blocks.of(df, "features", label="label").close()


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
    "round": compare_round,
    "predict": compare_predict,
}


# --- the report ----------------------------------------------------------------------------------


def machine(spark: SparkSession) -> dict[str, Any]:
    """What the figures were measured on."""
    packages = ("pyspark", "numpy", "scipy", "pyarrow", "scikit-learn")
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    java = spark.sparkContext._jvm.java.lang.System.getProperty("java.version")  # type: ignore[union-attr]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "master": spark.sparkContext.master,
        "python": platform.python_version(),
        "java": java,
        "mllib_ext": __version__,
        **{name: version(name) for name in packages},
    }


def table(comparisons: list[Comparison]) -> Any:
    """The comparisons for a terminal, ratios first."""
    from rich.table import Table

    shown = Table(title="mllib_ext and others; ratios above 1: mllib_ext is faster")
    for heading in ("task", "contender", "ratio", "median s", "min s", "notes"):
        shown.add_column(heading, overflow="fold")
    for comparison in comparisons:
        for i, line in enumerate(comparison.lines):
            notes = ", ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in line.notes.items()
            )
            shown.add_row(
                comparison.task if i == 0 else "",
                line.name,
                f"{comparison.ratio(line):.2f}",
                f"{line.median:.3f}",
                f"{min(line.seconds):.3f}",
                notes,
            )
    return shown


def as_json(spark: SparkSession, data: dict[str, Any], comparisons: list[Comparison]) -> str:
    """Everything that was measured."""
    return json.dumps(
        {
            "machine": machine(spark),
            "data": data,
            "comparisons": [
                {
                    "task": c.task,
                    "lines": [
                        {**asdict(line), "median": line.median, "ratio": c.ratio(line)}
                        for line in c.lines
                    ],
                }
                for c in comparisons
            ],
        },
        indent=2,
    )
