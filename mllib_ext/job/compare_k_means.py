"""K-means in jobs/benchmark.py: against pyspark.ml, scikit-learn and the machine's own rate.

pyspark.ml cannot be given centers: it starts from random rows, and what that takes (a fit of no
iterations) is noted beside its time.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from pyspark.ml import clustering as pyspark_clustering
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from threadpoolctl import threadpool_limits

from mllib_ext.blockfile import Block
from mllib_ext.clustering import KMeans
from mllib_ext.clustering.lloyd import statistics
from mllib_ext.clustering.space import Space
from mllib_ext.fitting import training_blocks
from mllib_ext.job.benchmark import Comparison, Line, alternate
from mllib_ext.job.benchmark_data import as_arrays

K, ITERATIONS = 100, 10
# Of the step's rate against the machine's: centers, and rows of a block.
MANY_CENTERS, BLOCK_ROWS = 1000, 8192


def compare_k_means(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Ten iterations from the same centers, on float arrays and on vectors; rates and scaling."""
    X, _ = as_arrays(df)
    if not isinstance(X, np.ndarray):
        X = X.toarray()
    columns = {
        "float arrays": vector_to_array(F.col("features"), "float32"),
        "vectors": F.col("features"),
    }
    found: list[Comparison] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten iterations are not meant to converge
        for kind, column in columns.items():
            data = df.select(column.alias("features")).cache()
            data.count()
            rows = X.astype(np.float32 if kind == "float arrays" else np.float64)
            found += _fits(data, rows, kind, repeats)
            if kind == "float arrays":
                found += [_rows(data, repeats), _cores(data, repeats)]
            data.unpersist()
        found += [_rate(X.astype(dtype), repeats) for dtype in (np.float32, np.float64)]
    return found


def _fits(df: DataFrame, X: np.ndarray, kind: str, repeats: int) -> list[Comparison]:
    """Whole fits: blocks there, and blocks built."""
    from sklearn.cluster import KMeans as Sklearn

    start = _start(X)
    ours = _ours(start)
    theirs = partial(pyspark_clustering.KMeans, k=K, tol=0.0, initMode="random", seed=1)

    def sklearn() -> Any:
        with threadpool_limits(os.cpu_count() or 1):
            model = Sklearn(K, init=start.astype(X.dtype), n_init=1, max_iter=ITERATIONS, tol=0.0)
            return model.fit(X)

    with training_blocks(ours, df) as blocks:
        models: dict[str, Any] = {}

        def keep(name: str, fit: Callable[[], Any]) -> Callable[[], None]:
            def run() -> None:
                models[name] = fit()

            return run

        there = alternate(
            {
                "mllib_ext": keep("mllib_ext", lambda: ours._fit_blocks(blocks)),
                "pyspark.ml": lambda: theirs(maxIter=ITERATIONS).fit(df),
                "scikit-learn": keep("scikit-learn", sklearn),
            },
            repeats,
        )
    there[0].notes["s a round"] = float(np.median([r.seconds for r in models["mllib_ext"].history]))
    there[0].notes["cost against scikit-learn's"] = (
        models["mllib_ext"].cost / models["scikit-learn"].inertia_ - 1
    )
    there[1].notes["s without iterations"] = _seconds(lambda: theirs(maxIter=0).fit(df))
    there[2].notes["s an iteration"] = there[2].median / models["scikit-learn"].n_iter_
    built = alternate(
        {
            "mllib_ext": lambda: ours.fit(df),
            "pyspark.ml": lambda: theirs(maxIter=ITERATIONS).fit(df),
        },
        repeats,
    )
    task = f"k-means, k = {K}, {ITERATIONS} iterations, {kind}"
    return [Comparison(f"{task}, blocks there", there), Comparison(f"{task}, blocks built", built)]


def _rows(df: DataFrame, repeats: int) -> Comparison:
    """The same fit on all rows, half of them and a quarter."""
    numbered = df.withColumn("part", F.rand(seed=0))
    shares = {1.0: df} | {
        share: numbered.where(F.col("part") < share).drop("part") for share in (0.5, 0.25)
    }
    return _scaling(
        "k-means, rows", {f"{s:.0%} of the rows": d for s, d in shares.items()}, repeats
    )


def _cores(df: DataFrame, repeats: int) -> Comparison:
    """The same fit by as many tasks as there are slots, and by one."""
    frames = {"all cores": df, "one core": df.coalesce(1)}
    return _scaling("k-means, cores", frames, repeats)


def _scaling(task: str, frames: dict[str, DataFrame], repeats: int) -> Comparison:
    every = {name: training_blocks(_ours(None), frame) for name, frame in frames.items()}
    try:
        first = frames[next(iter(frames))].limit(K)
        estimator = _ours(np.array([row[0] for row in first.collect()], dtype=np.float64))
        runs: dict[str, Callable[[], Any]] = {
            name: partial(estimator._fit_blocks, blocks) for name, blocks in every.items()
        }
        lines = alternate(runs, repeats)
        for line, blocks in zip(lines, every.values(), strict=True):
            line.notes |= {"rows": blocks.n_rows, "tasks": blocks.n_tasks}
            line.notes["ns a row and round"] = 1e9 * line.median / blocks.n_rows / (ITERATIONS + 1)
    finally:
        for blocks in every.values():
            blocks.close()
    return Comparison(task, lines)


def _rate(X: np.ndarray, repeats: int) -> Comparison:
    """The step on one block against the time of its product at the machine's best rate."""
    X = np.ascontiguousarray(X[:BLOCK_ROWS])
    n, d = X.shape
    block = Block(X, np.empty(0), np.ones(n), np.empty(0))
    centers = X[np.arange(MANY_CENTERS) % n].astype(np.float64)
    centers += 0.1 * X.std() * np.random.default_rng(0).normal(size=centers.shape)
    space = Space(X.mean(axis=0, dtype=np.float64).astype(X.dtype).astype(np.float64))
    square = np.random.default_rng(1).normal(size=(2048, 2048)).astype(X.dtype)
    with threadpool_limits(1):
        runs = {
            "mllib_ext, one thread": lambda: statistics(block, space, centers),
            "square product": lambda: square @ square,
        }
        step, product = alternate(runs, max(15, repeats))
    flops = 2.0 * n * d * MANY_CENTERS
    ideal = Line("its product at the machine's rate")
    ideal.seconds = [s * flops / (2.0 * len(square) ** 3) for s in product.seconds]
    ideal.notes["GFLOP/s"] = flops / ideal.median / 1e9
    step.notes["of the machine's rate"] = ideal.median / step.median
    return Comparison(f"k-means step, k = {MANY_CENTERS}, {X.dtype}", [step, ideal])


def _start(X: np.ndarray) -> np.ndarray:
    """Rows of the data, the same for the same data."""
    rows: np.ndarray = X[np.random.default_rng(0).choice(len(X), K, replace=False)]
    return rows.astype(np.float64)


def _ours(start: np.ndarray | None) -> KMeans:
    return KMeans(k=K, maxIter=ITERATIONS, tol=0.0, initialCenters=start)


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
