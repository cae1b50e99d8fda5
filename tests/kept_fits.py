"""Fits that a test interrupts: as a script, run side by side and killed in their third round.

python kept_fits.py DIRECTORY

The script ends by signal 9. Each fit has then left checkpoints in DIRECTORY/NAME.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from mllib_ext import fitting
from mllib_ext.classification import (
    KernelSVC,
    LogisticRegression,
    MultilayerPerceptronClassifier,
)
from mllib_ext.clustering import KMeans, MiniBatchKMeans

SGD: dict[str, Any] = {"regParam": 0.01, "miniBatchFraction": 0.5, "tol": 0.0, "maxIter": 4}
KILLED_AT = 3  # calls of the callback: the start and two iterations


def estimators() -> dict[str, Any]:
    """One of every family, with all that partitions may remember."""
    return {
        "l-bfgs": LogisticRegression(solver="l-bfgs", tol=0.0, maxIter=4, regParam=1e-3),
        "top-k": LogisticRegression(
            solver="sgd", momentum=0.5, compression="top-k", compressionShare=0.5, **SGD
        ),
        "network": MultilayerPerceptronClassifier(
            layers=[3, 6, 2],
            solver="adam",
            stepSize=0.01,
            updates="local",
            dropout=0.2,
            validationFraction=0.2,
            **SGD,
        ),
        "k-means": KMeans(k=7, tol=0.0, maxIter=4, nInit=2),
        "samples": MiniBatchKMeans(k=4, tol=0.0, maxIter=4, miniBatchFraction=0.3),
        "kernel": KernelSVC(tol=1e-4, gamma=2.0),
    }


def rows(spark: SparkSession) -> DataFrame:
    """Three columns and a noisy label, in three partitions."""
    columns = "array(sin(id * 1.7), cos(id * 0.9) * 2, sin(id * id * 0.31))"
    df = spark.range(0, 2400, 1, 3).selectExpr("id", f"{columns} AS features")
    noisy = "features[0] * features[1] + 0.5 * features[2] + 0.6 * sin(id * 7.3) > 0.1"
    return df.selectExpr("id", "features", f"CAST({noisy} AS double) AS label")


def prepared(estimator: Any, path: str, callback: Any) -> Any:
    """The estimator, to be kept after every iteration."""
    estimator.setCheckpointDir(path).setCheckpointInterval(1)
    return estimator.setCallbacks([callback])


def main(directory: str) -> None:
    fitting.DRIVER_BYTES = 0  # partitions have states on the executors alone
    builder: Any = SparkSession.builder
    spark = (
        builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.local.dir", directory)
        .config("spark.python.unix.domain.socket.enabled", "true")
        .getOrCreate()
    )
    df = rows(spark)
    waiting = threading.Barrier(len(estimators()), lambda: os.kill(os.getpid(), signal.SIGKILL))

    def fit(name: str, estimator: Any) -> None:
        calls = []

        def kill(state: Any, record: Any) -> None:
            calls.append(record.iteration)
            if len(calls) == KILLED_AT:
                waiting.wait()

        try:
            prepared(estimator, f"{directory}/{name}", kill).fit(df)
        finally:  # killed before, unless it went wrong
            print(name, calls, file=sys.stderr)
            waiting.abort()

    threads = [threading.Thread(target=fit, args=item) for item in estimators().items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(sys.argv[1])
