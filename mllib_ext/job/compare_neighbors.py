"""Exact nearest neighbours against scikit-learn's brute force and Spark's ``nearestByJoin``."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from threadpoolctl import threadpool_limits

from mllib_ext.job.benchmark import Comparison, alternate
from mllib_ext.job.benchmark_data import Problem, as_arrays, generate
from mllib_ext.knn import NearestNeighbors

K = 10
ITEMS, QUERIES, FEATURES = 100_000, 10_000, 64
# What nearestByJoin is asked for: every pair goes through the JVM, one after the other.
FEW = 5_000


def compare_neighbors(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Items and queries of its own: 100,000 and 10,000 rows of 64 independent features."""
    data = generate(spark, Problem(ITEMS + QUERIES, FEATURES, correlation=0.0), 2)
    X, _ = as_arrays(data)
    items, queries = frame(spark, X[:ITEMS]), frame(spark, X[ITEMS:])
    found = [exact(items, queries, X[:ITEMS], X[ITEMS:], repeats, f"{ITEMS:,} x {QUERIES:,}")]
    if hasattr(DataFrame, "nearestByJoin"):
        found.append(joins(items.where(F.col("id") < FEW), queries.where(F.col("id") < FEW)))
    for side in (items, queries):
        side.unpersist()
    return found


def exact(
    items: DataFrame, queries: DataFrame, X: np.ndarray, Q: np.ndarray, repeats: int, task: str
) -> Comparison:
    """From cached rows to all neighbours on the driver, against arrays in memory."""
    from sklearn.neighbors import NearestNeighbors as Sklearn

    fitted = NearestNeighbors(k=K, inputCol="features", idCol="id").fit(items)

    def sklearn() -> Any:
        with threadpool_limits(os.cpu_count() or 1):
            return Sklearn(n_neighbors=K, algorithm="brute").fit(X).kneighbors(Q)

    runs: dict[str, Callable[[], Any]] = {
        "mllib_ext": lambda: neighbors(items, queries),
        "mllib_ext, fitted": lambda: fitted.kneighbors(queries)[2].toArrow(),
        "scikit-learn brute": sklearn,
    }
    lines = alternate(runs, repeats)
    lines[0].notes["rows as scikit-learn's"] = float(
        (indices(neighbors(items, queries)) == sklearn()[1]).all(axis=1).mean()
    )
    return Comparison(f"exact {K} nearest neighbours, {task}", lines)


def joins(items: DataFrame, queries: DataFrame) -> Comparison:
    """Every query with its neighbours, by Spark's own join and by this package."""
    left = queries.select(F.col("id").alias("q"), F.col("features").alias("a")).cache()
    right = items.select("id", F.col("features").alias("b")).cache()
    n = left.count() * right.count()
    squares = F.zip_with("a", "b", lambda a, b: (a - b) * (a - b))
    distance = F.aggregate(squares, F.lit(0.0), lambda total, square: total + square)

    def theirs() -> Any:
        return left.nearestByJoin(right, distance, K, "exact", "distance").select("q", "id").count()

    runs = {"mllib_ext": lambda: neighbors(items, queries), "nearestByJoin": theirs}
    lines = alternate(runs, 1)
    for side in (left, right):
        side.unpersist()
    return Comparison(f"exact {K} nearest neighbours, {n:,} pairs", lines)


def compare_fashion_mnist(spark: SparkSession, directory: Path, repeats: int) -> list[Comparison]:
    """10,000 queries among 60,000 images: time, recall of the true neighbours, 1-NN accuracy.

    ``directory`` holds the four IDX files and ``groundtruth-l2-top100.npz``, whose ``neighbors``
    (10,000, 100) are in the order of (distance, row).
    """
    X, Q = (idx(directory / f"{part}-images-idx3-ubyte.gz") for part in ("train", "t10k"))
    X, Q = (images.reshape(len(images), -1).astype(np.float32) for images in (X, Q))
    y, truth = (idx(directory / f"{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k"))
    items, queries = frame(spark, X), frame(spark, Q)
    comparison = exact(items, queries, X, Q, repeats, "Fashion-MNIST")
    found = indices(neighbors(items, queries))
    known = np.load(directory / "groundtruth-l2-top100.npz")["neighbors"][:, :K]
    hits = [len(np.intersect1d(*pair)) for pair in zip(found, known, strict=True)]
    comparison.lines[0].notes |= {
        "recall": sum(hits) / known.size,
        "1-NN accuracy": float((y[found[:, 0]] == truth).mean()),
    }
    for side in (items, queries):
        side.unpersist()
    return [comparison]


def neighbors(items: DataFrame, queries: DataFrame) -> pa.Table:
    """All neighbours on the driver, the model made on the way."""
    model = NearestNeighbors(k=K, inputCol="features", idCol="id").fit(items)
    return model.kneighbors(queries)[2].toArrow()


def indices(answer: pa.Table) -> np.ndarray:
    """Item ids (m, k) in the order of the queries."""
    flat = answer["indices"].combine_chunks().flatten().to_numpy()
    return flat.reshape(answer.num_rows, -1)


def frame(spark: SparkSession, X: np.ndarray) -> DataFrame:
    """Rows as a cached DataFrame of ``id`` and ``features`` (an array), in two partitions."""
    offsets = np.arange(0, X.size + 1, X.shape[1], dtype=np.int32)
    features = pa.ListArray.from_arrays(offsets, pa.array(X.ravel()))
    table = pa.table({"id": np.arange(len(X)), "features": features})
    df = spark.createDataFrame(table).repartition(2).cache()
    df.count()
    return df


def idx(path: Path) -> np.ndarray:
    """The array in a gzipped IDX file of unsigned bytes: magic number, shape, values."""
    content = gzip.decompress(path.read_bytes())
    n_axes = content[3]
    shape = np.frombuffer(content, ">i4", n_axes, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes).reshape(shape)
