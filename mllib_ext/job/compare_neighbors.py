"""Nearest neighbours against scikit-learn's brute force and Spark's ``nearestByJoin``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from threadpoolctl import threadpool_limits

from mllib_ext.job.benchmark import Comparison, Line, alternate
from mllib_ext.job.benchmark_data import Problem, as_arrays, generate
from mllib_ext.job.idx import decode_idx
from mllib_ext.knn import ApproximateNearestNeighbors, NearestNeighbors

K = 10
ITEMS, QUERIES, FEATURES = 100_000, 10_000, 64
# Rows for an index: clusters of a hundred, in which a query's neighbours are.
CLUSTERED, ASKED, CLUSTERS, TARGET = 500_000, 20_000, 5_000, 0.95
PROBES = (1, 2, 4, 8, 16, 64)
# What nearestByJoin is asked for: every pair goes through the JVM, one after the other.
FEW = 5_000


def compare_neighbors(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Exact ones, on rows of its own: 64 independent features."""
    X = _rows(spark, ITEMS + QUERIES)
    with framed(spark, X[:ITEMS], X[ITEMS:]) as (items, queries):
        task = f"{ITEMS:,} x {QUERIES:,}"
        return [exact(items, queries, X[:ITEMS], X[ITEMS:], repeats, task)]


def compare_neighbor_joins(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Exact ones, against Spark's own join, which every Spark from 4.2 on has."""
    if not hasattr(DataFrame, "nearestByJoin"):
        return []
    X = _rows(spark, 2 * FEW)
    with framed(spark, X[:FEW], X[FEW:]) as (items, queries):
        return [joins(items, queries, repeats)]


def _rows(spark: SparkSession, n: int) -> np.ndarray:
    X, _ = as_arrays(generate(spark, Problem(n, FEATURES, correlation=0.0), 2))
    return np.asarray(X)


def compare_approximate_neighbors(
    spark: SparkSession, df: DataFrame, repeats: int, plot: Path | None = None
) -> list[Comparison]:
    """An index that is there already, at several numbers of probes, against exact search.

    On rows of its own, in clusters. Notes say the recall of queries that it has not seen, and
    queries a second.
    """
    rng = np.random.default_rng(3)
    means = rng.normal(size=(CLUSTERS, FEATURES))

    def drawn(n: int) -> np.ndarray:
        X = means[rng.integers(0, CLUSTERS, n)] + 0.5 * rng.normal(size=(n, FEATURES))
        return X.astype(np.float32)

    columns: dict[str, Any] = {"k": K, "inputCol": "features", "idCol": "id"}
    found: dict[str, pa.Table] = {}

    def answer(name: str, model: Any, queries: DataFrame) -> None:
        found[name] = _answered(model, queries)

    with framed(spark, drawn(CLUSTERED), drawn(ASKED)) as (items, queries):
        began = time.perf_counter()
        index = ApproximateNearestNeighbors(targetRecall=TARGET, **columns).fit(items)
        seconds = time.perf_counter() - began
        _answered(index, queries)  # the copies share what was sent out for it
        models: dict[str, Any] = {f"mllib_ext, target {TARGET}": index}
        for n in PROBES:
            fixed = index.copy({index.algoParams: {"nprobe": n}})
            fixed.clear(fixed.targetRecall)
            models[f"mllib_ext, nprobe {n}"] = fixed
        models["mllib_ext exact"] = NearestNeighbors(**columns).fit(items)
        lines = alternate(
            {name: partial(answer, name, model, queries) for name, model in models.items()},
            repeats,
        )
    true = indices(found["mllib_ext exact"])
    for line in lines:
        line.notes["recall"] = recall(indices(found[line.name]), true)
        line.notes["queries/s"] = round(ASKED / line.median)
    lines[0].notes |= {"nprobe": index.nprobe, "nlist": index.nlist, "seconds to build": seconds}
    if plot is not None:
        _draw(lines, plot)
    return [Comparison(f"{K} near neighbours, {CLUSTERED:,} x {ASKED:,}, clustered", lines)]


def _draw(lines: list[Line], path: Path) -> None:
    """Recall against queries a second: the target's point and the exact search beside the curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    target, *curve, exact = (
        (
            line.notes["recall"],
            line.notes["queries/s"],
            line.name.removeprefix("mllib_ext").strip(", "),
        )
        for line in lines
    )
    ax.plot([recall for recall, _, _ in curve], [rate for _, rate, _ in curve], marker=".")
    for recall, rate, name in (target, exact):
        ax.plot([recall], [rate], "o", label=name)
    for recall, rate, name in curve:
        ax.annotate(name, (recall, rate), xytext=(4, 4), textcoords="offset points")
    ax.set(yscale="log", xlabel=f"recall of {K} neighbours", ylabel="queries a second")
    ax.legend()
    figure.savefig(path, dpi=90)


def _answered(model: Any, queries: DataFrame) -> pa.Table:
    return model.kneighbors(queries)[2].toArrow()


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """The share of true neighbours (m, k) that are among those found (m, k)."""
    hits = [len(np.intersect1d(*pair)) for pair in zip(found, true, strict=True)]
    return sum(hits) / true.size


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
        "mllib_ext, fitted": partial(_answered, fitted, queries),
        "scikit-learn brute": sklearn,
    }
    lines = alternate(runs, repeats)
    lines[0].notes["rows as scikit-learn's"] = float(
        (indices(neighbors(items, queries)) == sklearn()[1]).all(axis=1).mean()
    )
    return Comparison(f"exact {K} nearest neighbours, {task}", lines)


def joins(items: DataFrame, queries: DataFrame, repeats: int) -> Comparison:
    """Every query with its neighbours, by Spark's own join and by this package."""
    left = queries.select(F.col("id").alias("q"), F.col("features").alias("a"))
    right = items.select("id", F.col("features").alias("b"))
    n = left.count() * right.count()
    squares = F.zip_with("a", "b", lambda a, b: (a - b) * (a - b))
    distance = F.aggregate(squares, F.lit(0.0), lambda total, square: total + square)

    def theirs() -> Any:
        return left.nearestByJoin(right, distance, K, "exact", "distance").select("q", "id").count()

    (ours,) = alternate({"mllib_ext": lambda: neighbors(items, queries)}, repeats)
    began = time.perf_counter()
    theirs()  # once, as it takes minutes
    spark = Line("nearestByJoin", [time.perf_counter() - began])
    return Comparison(f"exact {K} nearest neighbours, {n:,} pairs", [ours, spark])


def compare_fashion_mnist(spark: SparkSession, directory: Path, repeats: int) -> list[Comparison]:
    """10,000 queries among 60,000 images: time, recall of the true neighbours, 1-NN accuracy.

    ``directory`` holds the four IDX files and ``groundtruth-l2-top100.npz``, whose ``neighbors``
    (10,000, 100) are in the order of (distance, row).
    """
    X, Q = (_array(directory / f"{part}-images-idx3-ubyte.gz") for part in ("train", "t10k"))
    X, Q = (images.reshape(len(images), -1).astype(np.float32) for images in (X, Q))
    y, truth = (_array(directory / f"{part}-labels-idx1-ubyte.gz") for part in ("train", "t10k"))
    known = np.load(directory / "groundtruth-l2-top100.npz")["neighbors"][:, :K]
    with framed(spark, X, Q) as (items, queries):
        comparison = exact(items, queries, X, Q, repeats, "Fashion-MNIST")
        found = indices(neighbors(items, queries))
    comparison.lines[0].notes |= {
        "recall": recall(found, known),
        "1-NN accuracy": float((y[found[:, 0]] == truth).mean()),
    }
    return [comparison]


def _array(path: Path) -> np.ndarray:
    return decode_idx(path.read_bytes())


def neighbors(items: DataFrame, queries: DataFrame) -> pa.Table:
    """All neighbours on the driver, the model made on the way."""
    model = NearestNeighbors(k=K, inputCol="features", idCol="id").fit(items)
    return _answered(model, queries)


def indices(answer: pa.Table) -> np.ndarray:
    """Item ids (m, k) in the order of the queries."""
    flat = answer["indices"].combine_chunks().flatten().to_numpy()
    return flat.reshape(answer.num_rows, -1)


@contextmanager
def framed(
    spark: SparkSession, X: np.ndarray, Q: np.ndarray
) -> Iterator[tuple[DataFrame, DataFrame]]:
    """Items and queries as DataFrames, for a while."""
    sides = frame(spark, X), frame(spark, Q)
    try:
        yield sides
    finally:
        for side in sides:
            side.unpersist()


def frame(spark: SparkSession, X: np.ndarray) -> DataFrame:
    """Rows as a cached DataFrame of ``id`` and ``features`` (an array), in two partitions."""
    offsets = np.arange(0, X.size + 1, X.shape[1], dtype=np.int32)
    features = pa.ListArray.from_arrays(offsets, pa.array(X.ravel()))
    table = pa.table({"id": np.arange(len(X)), "features": features})
    df = spark.createDataFrame(table).repartition(2).cache()
    df.count()
    return df
