"""The seam to Spark: everything about a data set's blocks that needs a SparkContext.

Block files are written by a DataFrame's tasks, their handles cached as an RDD on the executors
that hold the files, and a round is a job over the handles. Another way to run a round (Spark
Connect: the same stage through ``mapInArrow``, parameters by closure) is another class with the
methods of :class:`Executors`.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pyspark import RDD, SparkContext, StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from mllib_ext.blockfile import (
    HANDLE_SCHEMA,
    Handle,
    Layout,
    read_blocks,
    spare_collector,
    write_partition,
)
from mllib_ext.partials import Merge, Partial, Stage, joined, of_partition
from mllib_ext.scan import UNFIT, Scan

logger = logging.getLogger(__name__)

# Up to here parameters ride in the task itself, which saves a broadcast's 10 ms a round.
CLOSURE_BYTES = 1 << 18
# Spark gives a worker 2 s to end by itself (spark.python.task.killTimeout).
SETTLING_SECONDS = 4.0

Task = Callable[[Iterable[Any]], Iterable[Partial]]


def run_stage(
    stage: Stage, merge: Merge | None, shipment: Shipment, rows: Iterator[Any]
) -> Iterator[Partial]:
    """The work of one task: a partial for every handle that landed in it."""
    spare_collector()
    parameters = shipment.open()
    for handle in [
        Handle.of(row) for row in rows
    ]:  # all input first: an unread one kills the worker
        yield of_partition(handle, read_blocks(handle), stage, merge, parameters)


class MostlyZeros:
    """An array (n,) of zeros but for a few, where most fits start: pickled as those few."""

    def __init__(self, x: np.ndarray) -> None:
        self._x = x

    @staticmethod
    def are(x: Any) -> bool:
        plain = isinstance(x, np.ndarray) and x.ndim == 1 and x.dtype.kind in "fiu"
        return plain and 8 * np.count_nonzero(x) <= x.size

    def __reduce__(self) -> tuple[Any, ...]:
        places = np.flatnonzero(self._x)
        return _filled, (
            self._x.size, self._x.dtype.str, places.tolist(), self._x[places].tolist(),
        )  # fmt: skip


def _filled(size: int, dtype: str, places: list[int], values: list[Any]) -> np.ndarray:
    x = np.zeros(size, dtype)
    x[places] = values
    return x


class Shipment:
    """Parameters on their way: in the task itself while small, as a broadcast otherwise."""

    def __init__(self, context: SparkContext, parameters: tuple[Any, ...]) -> None:
        sparing = tuple(MostlyZeros(x) if MostlyZeros.are(x) else x for x in parameters)
        packed = pickle.dumps(sparing, protocol=5)
        self.n_bytes = len(packed)
        self._broadcast = context.broadcast(packed) if self.n_bytes > CLOSURE_BYTES else None
        self._packed = packed if self._broadcast is None else None

    def open(self) -> tuple[Any, ...]:
        packed = self._packed if self._broadcast is None else self._broadcast.value
        parameters: tuple[Any, ...] = pickle.loads(packed)  # type: ignore[arg-type]
        return parameters

    def __enter__(self) -> Shipment:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._broadcast is not None:
            self._broadcast.destroy()  # unpersist would leave the driver's file


class Executors:
    """Block files by RDD: handles cached where their files are, a round a job over them."""

    def __init__(
        self,
        spark: SparkSession,
        source: DataFrame,
        directory: str,
        scan: Scan | None = None,  # what the source reads, if it is a plain Parquet scan
    ) -> None:
        self._context = spark.sparkContext
        self._source, self._directory, self._scan = source, directory, scan
        self._handles: RDD[Any] | None = None
        self._grouped: RDD[Any] | None = None
        self._placed: list[str] = []  # where the files stood when the handles were grouped
        self._known: set[Path] = set()  # directories of all files that were told of
        self._n_tasks = 1
        _ship_package(self._context)

    def build(self, layout: Layout) -> list[tuple[Handle, bytes | None]]:
        """Write all files (again): their handles and what ran ahead, in partition order."""
        self._known.add(Path())  # a failure leaves files that nobody told of
        handles = self._written(layout).persist(StorageLevel.MEMORY_AND_DISK)
        try:
            rows = sorted(handles.collect(), key=lambda row: row.partition)
        except BaseException:
            handles.unpersist()
            raise
        if self._scan and any(row.fault.startswith(UNFIT) for row in rows):
            logger.info("rows come through Spark: %s", max(row.fault for row in rows))
            self._scan = None
            handles.unpersist()
            return self.build(layout)
        self._known.discard(Path())
        found = [(Handle.of(row), row.ahead) for row in rows]
        # Rounds of other threads go by the old ones until the new ones are there.
        before, self._handles = self._handles, handles
        self.group([handle for handle, _ in found], again=True)
        if before is not None:
            before.unpersist()
        return found

    def _written(self, layout: Layout) -> RDD[Any]:
        """The job that writes the files: handles of :data:`HANDLE_SCHEMA`, one a partition."""
        if self._scan is None:
            written = self._source.mapInArrow(partial(write_partition, layout), HANDLE_SCHEMA)
            # The writer sees its task's number, which is another one where lineage writes a lost
            # partition again inside the task of a round.
            return written.withColumn("partition", F.spark_partition_id()).rdd
        from mllib_ext.parquet import write_splits  # 70 ms of imports, which no round needs

        partitions = list(enumerate(self._scan.partitions))
        write = partial(write_splits, layout, replace(self._scan, partitions=()))
        return self._context.parallelize(partitions, len(partitions)).mapPartitions(write)

    def group(self, handles: Sequence[Handle], again: bool = False) -> None:
        """Share the handles among the slots, each with others of its executor.

        A task costs milliseconds: as many as run at once, whatever the number of partitions. On a
        cluster each group is cached as one partition, since to fetch a hundred of them costs 10 ms
        a round.
        """
        paths = [handle.path for handle in handles]
        if self._grouped is not None and paths == self._placed and not again:
            return
        assert self._handles is not None
        self._placed = paths
        self._known.update(Path(path).parent for path in paths if path)
        if self.local:
            # Here every task reads every file. A source of rows that the driver has (a DataFrame of
            # a pandas one) would go along with each task of what is derived from it: 92 MB a round
            # for 60,000 images.
            self._n_tasks = max(1, min(_slots(self._context), len(handles)))
            bare = [astuple(handle) for handle in handles]
            self._regroup(self._context.parallelize(bare, self._n_tasks))
            return
        # By executor first: coalesce alone evens out the groups, and to that end moves handles
        # away from their files; below ten partitions it hardly looks where they are.
        partitions: dict[Path | None, list[int]] = {}
        for handle in handles:
            executor = Path(handle.path).parent.parent if handle.path else None
            partitions.setdefault(executor, []).append(handle.partition)
        without_rows = partitions.pop(None, [])
        if len(partitions) > 1:
            next(iter(partitions.values())).extend(without_rows)
            share = -(-_slots(self._context) // len(partitions))
            parts = [self._pruned(p).coalesce(share) for p in partitions.values()]
            grouped = self._context.union(parts)
        else:
            grouped = self._handles.coalesce(_slots(self._context))
        grouped = grouped.map(_bare).persist(StorageLevel.MEMORY_AND_DISK)
        self._n_tasks = grouped.getNumPartitions()
        self._regroup(grouped)

    def _regroup(self, grouped: RDD[Any]) -> None:
        before, self._grouped = self._grouped, grouped
        if before is not None:
            before.unpersist()

    def _pruned(self, partitions: list[int]) -> RDD[Any]:
        """Some partitions of the handles, where they are (PySpark has no name for it)."""
        assert self._handles is not None
        jvm: Any = self._context._jvm
        wanted = jvm.PythonUtils.toSeq(partitions).toSet()  # in Scala a set is a predicate
        jrdd = jvm.org.apache.spark.rdd.PartitionPruningRDD.create(
            self._handles._jrdd.rdd(), wanted
        )
        return RDD(jrdd.toJavaRDD(), self._context, self._handles._jrdd_deserializer)

    @property
    def local(self) -> bool:
        """The driver is the one executor, and the files stand on its disk."""
        return bool(self._context._jsc.sc().isLocal())

    def shipped(self, parameters: tuple[Any, ...]) -> Shipment:
        return Shipment(self._context, parameters)

    def n_tasks(self, partitions: Sequence[int]) -> int:
        return min(len(partitions), self._n_tasks)

    def run(
        self,
        stage: Stage,
        merge: Merge | None,
        shipment: Shipment,
        partitions: Sequence[int] | None,
        depth: int,
    ) -> list[Partial]:
        """Run a stage over the handles, or over those of some partitions.

        ``depth`` above 2 joins neighbouring partitions on the executors: the first of them brings
        the values of all.
        """
        task: Task = partial(run_stage, stage, merge, shipment)
        handles, grouped = self._handles, self._grouped  # another thread may build anew
        assert handles is not None
        assert grouped is not None
        if depth > 2:
            found = (handles if partitions else grouped).mapPartitions(task)
            return _tree(found, handles.getNumPartitions(), depth, merge).collect()
        if partitions is None:
            return grouped.mapPartitions(task).collect()
        return self._context.runJob(handles, task, list(partitions))

    def close(self) -> None:
        """Delete the block files, after the tasks of a build that failed have ended, too."""
        if self._context._jsc is None:  # stopped: Spark has deleted its local directories
            return
        if self.local and Path() not in self._known:
            for directory in self._known:  # on this machine: no job is needed
                shutil.rmtree(directory, ignore_errors=True)
            self._unpersist()
            return
        if Path() in self._known:
            self._await_tasks()
        delete = partial(_delete, self._directory)
        if self.local:
            self._context.parallelize([0], 1).mapPartitions(delete).collect()
        else:
            wanted = {str(Path(path).parent.parent) for path in self._placed if path}
            for _ in range(3):  # an executor may be busy; one that is gone took its files along
                done: set[str] = set()
                if self._grouped is not None and self._all_cached():
                    # Over the handles, so that the tasks land where the files are.
                    done.update(self._grouped.mapPartitions(delete).collect())
                # Files whose handle is lost stand on any executor.
                n = 4 * _slots(self._context)
                done.update(self._context.parallelize(range(n), n).mapPartitions(delete).collect())
                if wanted <= done:
                    break
        self._unpersist()

    def _await_tasks(self) -> None:
        """Wait for tasks that were cancelled: their workers write on for up to two seconds."""
        tracker = self._context._jsc.sc().statusTracker()
        deadline = time.monotonic() + SETTLING_SECONDS
        while any(executor.numRunningTasks() for executor in tracker.getExecutorInfos()):
            if time.monotonic() > deadline:  # those of others, perhaps
                return
            time.sleep(0.05)

    def _all_cached(self) -> bool:
        """Whether a job over the handles would run without writing a file again."""
        assert self._handles is not None
        wanted = self._handles.id()
        for info in self._context._jsc.sc().getRDDStorageInfo():
            if info.id() == wanted:
                return bool(info.numCachedPartitions() == self._handles.getNumPartitions())
        return False

    def _unpersist(self) -> None:
        for cached in (self._grouped, self._handles):
            if cached is not None:
                cached.unpersist()
        self._grouped = self._handles = None


def _tree(parts: RDD[Any], n: int, depth: int, merge: Merge | None) -> RDD[Any]:
    """Partials joined with their neighbours on ``depth - 2`` levels between tasks and driver."""
    fan_in = math.ceil(n ** (1 / (depth - 1)))
    width = 1
    for _ in range(depth - 2):
        width *= fan_in
        # A partition of the shuffle for every group: what it joins is a matter of numbers alone.
        keyed = parts.keyBy(partial(_group_of, width)).partitionBy(-(-n // width), int)
        parts = keyed.mapPartitions(partial(_join_group, merge))
    return parts


def _group_of(width: int, part: Partial) -> int:
    return part.handle.partition // width


def _join_group(merge: Merge | None, keyed: Iterable[tuple[int, Partial]]) -> Iterator[Partial]:
    parts = sorted((part for _, part in keyed), key=lambda part: part.handle.partition)
    values: tuple[Any, ...] | None = None
    for part in parts:
        if part.values is not None:
            values = joined(values, part.values, merge)
    for i, part in enumerate(parts):
        yield replace(part, values=None if i else values)


def _bare(row: Any) -> tuple[Any, ...]:
    """A handle's row without what ran ahead."""
    return astuple(Handle.of(row))


def _delete(name: str, rows: Iterable[Any]) -> list[str]:
    """Delete this executor's directories of that name, and say where they would have been."""
    for _ in rows:
        pass
    disks = os.environ["SPARK_LOCAL_DIRS"].split(",")
    for disk in disks:
        shutil.rmtree(Path(disk) / name, ignore_errors=True)
    return disks


def _slots(context: SparkContext) -> int:
    """How many tasks run at once on the executors there are now."""
    jvm = context._jsc.sc()
    profile = jvm.resourceProfileManager().defaultResourceProfile()
    return max(1, int(jvm.maxNumConcurrentTasks(profile)))


def _ship_package(context: SparkContext) -> None:
    """Give executors on other machines this package, unless spark-submit has sent it already."""
    if context._jsc.sc().isLocal() or getattr(context, "_mllib_ext_shipped", False):
        return
    root = Path(__file__).parent
    if root.is_dir():  # not inside a zip or PEX that was shipped with the job
        archive = (
            Path(tempfile.mkdtemp(prefix="mllib_ext-", dir=context._temp_dir)) / "mllib_ext.zip"
        )
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
            for path in sorted(root.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    z.write(path, path.relative_to(root.parent))
        context.addPyFile(str(archive))
    context._mllib_ext_shipped = True  # type: ignore[attr-defined]
