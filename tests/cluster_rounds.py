"""A driver for test_cluster.py: lives through losses on a cluster, and prints what it saw.

Usage: cluster_rounds.py MASTER losses|speculation|neighbors WORKER_PID WORKER_PID
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import psutil
from pyspark import TaskContext
from pyspark.sql import SparkSession

from mllib_ext import executors as seam
from mllib_ext.blockfile import Handle
from mllib_ext.blocks import Blocks
from mllib_ext.executors import CLOSURE_BYTES
from mllib_ext.knn import ApproximateNearestNeighbors, NearestNeighbors

N, D, PARTITIONS = 6_000, 3, 6
LARGE = np.ones(CLOSURE_BYTES // 4)
run_anywhere = seam.run_stage


def run_here(stage, merge, shipment, rows):
    """A round in which an executor finds its own files alone, as on a machine of its own."""
    mine = os.environ["SPARK_LOCAL_DIRS"].split(",")
    found = []
    for handle in [Handle.of(row) for row in rows]:
        elsewhere = handle.path and not handle.path.startswith(tuple(mine))
        path = f"{handle.path}.elsewhere" if elsewhere else handle.path
        found.append(astuple(replace(handle, path=path)))
    return run_anywhere(stage, merge, shipment, iter(found))


def moments(block, *parameters):
    return block.X.T @ block.X, block.X.T @ block.y, block.n


def place(block, *parameters):
    return [(block.partition, os.environ["SPARK_LOCAL_DIRS"], block.n)], list(block.id)


def join(left, right):
    return tuple(a + b for a, b in zip(left, right, strict=True))


def slow_at_first(block, *parameters):
    """The first attempt at partition 5 takes so long that Spark starts a second one."""
    context = TaskContext.get()
    if block.partition == PARTITIONS - 1 and context.attemptNumber() == 0:
        time.sleep(2)
    return block.X.T @ block.X, block.X.T @ block.y, block.n


def slow_source(batches):
    context = TaskContext.get()
    for batch in batches:
        if context.partitionId() == PARTITIONS - 1 and context.attemptNumber() == 0:
            time.sleep(2)
        yield batch


def frame(spark):
    x = ", ".join(f"1.5D + sin(id * {j + 1.37}D)" for j in range(D))
    data = spark.range(0, N, 1, PARTITIONS)
    return data.selectExpr("id", f"array({x}) x", "1.5D + cos(id * 0.7D) y")


def bits(values):
    return [np.asarray(value).tobytes().hex() for value in values]


def executors(worker):
    """The process ids of a worker's executors."""
    alive = [c for c in psutil.Process(worker).children() if c.status() != psutil.STATUS_ZOMBIE]
    return [c.pid for c in alive if "CoarseGrainedExecutorBackend" in " ".join(c.cmdline())]


def wait_for_executors(spark, n):
    deadline = time.monotonic() + 60
    while spark.sparkContext._jsc.sc().getExecutorMemoryStatus().size() != n + 1:
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited for {n} executors in vain")
        time.sleep(0.05)


def jobs(spark):
    return len(spark.sparkContext.statusTracker().getJobIdsForGroup())


def rounds(spark, blocks):
    """One round after another: what it gave, where it ran, and how many jobs it took."""
    before = jobs(spark)
    values = bits(blocks.sum(moments, LARGE))
    took = jobs(spark) - before
    places, ids = blocks.reduce(place, join)
    return {
        "bits": values,
        "jobs": took,
        "places": sorted({(partition, directory) for partition, directory, _ in places}),
        "paths": [handle.path for handle in blocks.handles],
        "rows": sum(n for _, _, n in places),
        "in_order": ids == list(range(N)),
    }


def losses(spark, workers):
    seen = {}
    with Blocks.of(frame(spark), "x", label="y", id="id") as blocks:
        seen["first"] = rounds(spark, blocks)
        seen["second"] = rounds(spark, blocks)

        (victim,) = executors(workers[1])
        os.kill(victim, signal.SIGKILL)
        seen["killed"] = rounds(spark, blocks)
        wait_for_executors(spark, 2)
        seen["after the kill"] = rounds(spark, blocks)
        seen["later"] = rounds(spark, blocks)

        os.unlink(blocks.handles[3].path)
        seen["file removed"] = rounds(spark, blocks)

        for pid in (workers[1], *executors(workers[1])):  # the machine: nothing comes back
            os.kill(pid, signal.SIGKILL)
        wait_for_executors(spark, 1)
        seen["machine lost"] = rounds(spark, blocks)
        seen["one machine"] = rounds(spark, blocks)
    return seen


def speculation(spark, workers):
    seen: dict[str, Any] = {}
    source = frame(spark).mapInArrow(slow_source, "id long, x array<double>, y double")
    began = time.monotonic()
    with Blocks.of(source, "x", label="y", id="id") as blocks:
        seen["build"] = time.monotonic() - began
        seen["first"] = rounds(spark, blocks)
        for i in range(3):
            seen[f"slow {i}"] = {"bits": bits(blocks.sum(slow_at_first, LARGE))}
        seen["rounds"] = [[p.rows for p in r.partitions] for r in blocks.drain()]
        seen["last"] = rounds(spark, blocks)
    return seen


def neighbors(spark, workers):
    items = frame(spark)
    queries = frame(spark).where("id % 10 = 0").selectExpr("id", "x")
    answers = {}
    for plan in ("broadcast_items", "broadcast_queries", "exchange"):
        model = NearestNeighbors(k=4, inputCol="x", idCol="id", plan=plan).fit(items)
        answers[plan] = model.kneighbors(queries)[2]
    # All cells: what it finds is exact.
    cells = {"nlist": 20, "nprobe": 20}
    index = ApproximateNearestNeighbors(k=4, inputCol="x", idCol="id", algoParams=cells).fit(items)
    answers["index"] = index.kneighbors(queries)[2]
    (victim,) = executors(workers[1])
    seen = {"first": {plan: rows_of(df) for plan, df in answers.items()}}
    os.kill(victim, signal.SIGKILL)
    seen["killed"] = {plan: rows_of(df) for plan, df in answers.items()}
    return seen


def rows_of(df):
    return [[row.query_id, row.indices, row.distances] for row in df.collect()]


def main(master, scenario, *workers):
    warnings.simplefilter("error")
    seam.run_stage = run_here
    builder = SparkSession.builder.master(master).appName(f"mllib_ext {scenario}")
    conf = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.executor.memory": "512m",
        "spark.python.unix.domain.socket.enabled": "true",
        "spark.log.level": "OFF",
    }
    if scenario == "speculation":
        conf |= {
            "spark.speculation": "true",
            "spark.speculation.interval": "20ms",
            "spark.speculation.multiplier": "1.01",
            "spark.speculation.quantile": "0.1",
            "spark.speculation.minTaskRuntime": "10ms",
        }
    for key, value in conf.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    try:
        wait_for_executors(spark, 2)
        result = globals()[scenario](spark, [int(pid) for pid in workers])
        result["persisted"] = len(spark.sparkContext._jsc.getPersistentRDDs())
        result["driver files"] = [
            name
            for directory, _, names in os.walk(spark.sparkContext._temp_dir)
            for name in names
            if name != "mllib_ext.zip"
        ]
        time.sleep(0.5)
        result["left"] = spark.sparkContext.parallelize(range(8), 8).mapPartitions(left).collect()
    finally:
        spark.stop()
    print(json.dumps(result))


def left(rows):
    list(rows)
    disks = os.environ["SPARK_LOCAL_DIRS"].split(",")
    return [n for disk in disks for _, ds, fs in os.walk(disk) for n in ds + fs if is_ours(n)]


def is_ours(name):
    return name.startswith(("mllib_ext-", "part-")) or name.endswith("_python")


if __name__ == "__main__":
    main(*sys.argv[1:])
