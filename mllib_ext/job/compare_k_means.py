"""K-means in jobs/benchmark.py: against pyspark.ml, scikit-learn and the machine's own rate.

pyspark.ml cannot be given centers: it starts from random rows, and what that takes (a fit of no
iterations) is noted beside its time.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from mllib_ext.fitting import training_blocks
from mllib_ext.job.benchmark import Comparison, Line, alternate
from mllib_ext.job.benchmark_data import as_arrays
from mllib_ext.lloyd import statistics
from mllib_ext.space import Space

K, ITERATIONS = 100, 10
# Of the step's rate against the machine's: centers, and rows of a block.
MANY_CENTERS, BLOCK_ROWS = 1000, 8192


def compare_k_means(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Ten iterations from the same centers, on float arrays."""
    return _fits(df, "float32", "float arrays", repeats)


def compare_k_means_doubles(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Ten iterations from the same centers, on vectors."""
    return _fits(df, "float64", "vectors", repeats)


def compare_k_means_scaling(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """The same fit on fewer rows, and by one core."""
    with _as(df, "float32") as data:
        return [_rows(data, repeats), _cores(data, repeats)]


def compare_k_means_step(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """The step on one block, in both precisions, against the machine's own rate."""
    X = _dense(df.limit(BLOCK_ROWS))
    return [_rate(X.astype(dtype), repeats) for dtype in (np.float32, np.float64)]


@contextmanager
def _as(df: DataFrame, dtype: str) -> Iterator[DataFrame]:
    """The features alone, cached: arrays of floats, or the vectors as they are."""
    features = F.col("features")
    column = vector_to_array(features, "float32") if dtype == "float32" else features
    data = df.select(column.alias("features")).cache()
    data.count()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten iterations are not meant to converge
        yield data
    data.unpersist()


def _dense(df: DataFrame) -> np.ndarray:
    X, _ = as_arrays(df)
    return X if isinstance(X, np.ndarray) else X.toarray()


def _fits(df: DataFrame, dtype: str, kind: str, repeats: int) -> list[Comparison]:
    """Whole fits: blocks there, and blocks built."""
    from sklearn.cluster import KMeans as Sklearn

    X = _dense(df).astype(dtype)
    start = _start(X)
    ours = _ours(start)
    models: dict[str, Any] = {}

    def sklearn() -> None:
        with threadpool_limits(os.cpu_count() or 1):
            model = Sklearn(K, init=start.astype(dtype), n_init=1, max_iter=ITERATIONS, tol=0.0)
            models["theirs"] = model.fit(X)

    with _as(df, dtype) as data, training_blocks(ours, data) as blocks:

        def fit() -> None:
            models["ours"] = ours._fit_blocks(blocks)

        there, built, pyspark, theirs = alternate(
            {
                "mllib_ext, blocks there": fit,
                "mllib_ext, blocks built": lambda: ours.fit(data),
                "pyspark.ml": lambda: _pyspark(ITERATIONS).fit(data),
                "scikit-learn": sklearn,
            },
            repeats,
        )
        pyspark.notes["s without iterations"] = _seconds(lambda: _pyspark(0).fit(data))
    model = models["ours"]
    there.notes["s a round"] = float(np.median([r.seconds for r in model.history]))
    there.notes["cost against scikit-learn's"] = model.cost / models["theirs"].inertia_ - 1
    # The last one gives the labels.
    theirs.notes["s a pass"] = theirs.median / (models["theirs"].n_iter_ + 1)
    task = f"k-means, k = {K}, {ITERATIONS} iterations, {kind}"
    return [Comparison(task, [there, pyspark, theirs]), Comparison(task, [built, pyspark])]


def _pyspark(iterations: int) -> Any:
    return pyspark_clustering.KMeans(k=K, tol=0.0, initMode="random", seed=1, maxIter=iterations)


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
    """The same fit by as many tasks as there are slots, and by one, as local[1] has it."""
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
            "mllib_ext, one thread": lambda: statistics([block], space, centers),
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
