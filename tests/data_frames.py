"""The same rows as every kind of features column, and models that are fitted on them once."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F


@contextmanager
def every_kind_of_features(
    spark: SparkSession, X: np.ndarray, **others: np.ndarray
) -> Iterator[DataFrame]:
    """Rows ``X`` (n, d), cached in two partitions for the time of a ``with`` statement.

    The columns: the row's number ``i``; the features as ``dense`` and ``sparse`` vectors, as an
    ``array`` of doubles and a ``float`` one, and one by one as ``x0``, ``x1``, ...; the others,
    as doubles.
    """
    n, d = X.shape
    columns = [others[name] for name in others]
    rows = [
        (
            i, Vectors.dense(X[i]), Vectors.sparse(d, np.flatnonzero(X[i]), X[i][X[i] != 0]),
            X[i].tolist(), *X[i].tolist(), *(float(column[i]) for column in columns),
        )
        for i in range(n)
    ]  # fmt: skip
    names = ["i", "dense", "sparse", "array", *(f"x{j}" for j in range(d)), *others]
    df = spark.createDataFrame(rows, names).withColumn("float", F.col("array").cast("array<float>"))
    df = df.repartition(2, "i").cache()
    try:
        df.count()
        yield df
    finally:
        df.unpersist()


class FittedOnce:
    """Models of an estimator on one DataFrame, by their parameters."""

    def __init__(self, estimator: Any, frame: DataFrame) -> None:
        self._estimator, self._frame = estimator, frame
        self._known: dict[bytes, Any] = {}

    def __call__(self, **params: Any) -> Any:
        key = pickle.dumps(sorted(params.items()))
        if key not in self._known:
            self._known[key] = self._estimator(**params).fit(self._frame)
        return self._known[key]
