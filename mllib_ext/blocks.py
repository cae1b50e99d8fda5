"""A data set as blocks on the executors' disks, and the rounds over it.

The one module that runs Spark jobs over training data. A round sends parameters out, runs a stage
function on every block, and brings back one partial result a partition::

    with Blocks.of(df, "features", label="label") as blocks:
        loss, gradient = blocks.sum(stage, coef)      # stage(block, coef) -> (loss, gradient)

Partials are added inside a partition block by block and on the driver in partition order, in
float64: the same partitions give the same bits, whatever the cluster does meanwhile.

Fault tolerance is Spark's. A handle is cached on the executor that wrote the file, so a lost
executor loses both and lineage writes them again elsewhere. A round that meets no file reports
it; nothing is ever added up without every partition.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import tempfile
import time
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
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
from mllib_ext.columns import Features, data_type, mostly_zero, number, quoted

logger = logging.getLogger(__name__)

Stage = Callable[..., tuple[Any, ...]]
Merge = Callable[[tuple[Any, ...], tuple[Any, ...]], tuple[Any, ...]]

# A missing file is looked for twice more (the task may have run on a machine that never had it);
# data that changes under every rebuild is an error in its source.
RETRIES = 2
MAX_REBUILDS = 3
# Up to here parameters ride in the task itself, which saves a broadcast's 10 ms a round.
CLOSURE_BYTES = 1 << 18


class DataChangedWarning(UserWarning):
    """Spark recomputed lost rows, and they came out otherwise than the first time."""


@dataclass(frozen=True)
class PartitionReport:
    """What one partition did in a round."""

    partition: int
    host: str
    rows: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Round:
    """What a round cost: wall-clock seconds on the driver, bytes, and each partition's share.

    ``bytes_down`` counts the parameters once for every task, ``bytes_up`` the partial results.
    """

    seconds: float
    bytes_down: int
    bytes_up: int
    partitions: tuple[PartitionReport, ...]


class Blocks:
    """A data set converted once to blocks on executor-local disk. Use it in a ``with``.

    Attributes
    ----------
    n_rows, n_features : int
    weight_sum : float
        The sum of the weights; the number of rows without a weight column.
    sparse : bool
        ``block.X`` is CSR in every block, or dense in every block.
    handles : tuple of Handle
        One a partition, in partition order.
    """

    def __init__(self, executors: _Executors, layout: Layout) -> None:
        self._executors, self._layout = executors, layout
        self._rounds: list[Round] = []
        self._warned_of_order = self._closed = False
        self.handles: tuple[Handle, ...] = ()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(
        cls,
        df: DataFrame,
        features: str | Sequence[str],
        *,
        label: str | None = None,
        weight: str | None = None,
        id: str | None = None,
    ) -> Blocks:
        """Convert a DataFrame: one pass over its rows.

        Parameters
        ----------
        df : DataFrame
        features : str or sequence of str
            A vector column, an ``array<float>`` or ``array<double>`` column, or numeric columns.
        label, weight, id : str, optional
            Columns to carry along. Weights are 0 or more.

        Raises
        ------
        ValueError
            A column that is missing; no rows; a null, NaN or infinite value; vectors of different
            lengths; a negative weight, or none above 0.
        TypeError
            A column of an unsuitable type.
        RuntimeError
            ``spark.io.encryption.enabled`` is set: block files are not encrypted. A Spark Connect
            session.
        """
        spark = df.sparkSession
        if type(df).__module__.startswith("pyspark.sql.connect"):
            raise RuntimeError(
                "expected a classic Spark session to train in, found Spark Connect: "
                "not supported yet"
            )
        if str(spark.conf.get("spark.io.encryption.enabled", "false")).lower() == "true":
            raise RuntimeError(
                "spark.io.encryption.enabled: expected false, found true: "
                "mllib_ext keeps training data on local disks unencrypted"
            )
        if df.isStreaming:
            raise ValueError("expected a batch DataFrame to train on, found a streaming one")
        resolved = Features.of(df.schema, features)
        columns = [c.alias(f"x{i}") for i, c in enumerate(resolved.expressions())]
        if label is not None:
            columns.append(number(df.schema, label, "label").alias("y"))
        if weight is not None:
            columns.append(number(df.schema, weight, "weight").alias("w"))
        if id is not None:
            data_type(df.schema, id, "id")
            columns.append(quoted(id).alias("id"))
        sparse = mostly_zero(df, resolved)
        layout = Layout(resolved, sparse, label, weight, id, f"mllib_ext-{uuid.uuid4().hex}")
        return cls(_Executors(spark, df.select(*columns), layout), layout)

    # --- what is known ---

    @property
    def n_rows(self) -> int:
        return sum(handle.n_rows for handle in self.handles)

    @property
    def n_features(self) -> int:
        return max(handle.n_features for handle in self.handles)

    @property
    def weight_sum(self) -> float:
        return sum(handle.weight_sum for handle in self.handles)

    @property
    def sparse(self) -> bool:
        return self._layout.sparse

    @property
    def n_tasks(self) -> int:
        """Tasks of a round: as many as run at once, or the number of partitions if less."""
        return self._executors.n_tasks([handle.partition for handle in self.handles])

    @property
    def features(self) -> Features:
        """The feature columns as they were resolved."""
        return self._layout.features

    def drain(self) -> tuple[Round, ...]:
        """The reports of the rounds since the last call."""
        rounds, self._rounds = tuple(self._rounds), []
        return rounds

    # --- rounds ---

    def sum(self, stage: Stage, *parameters: Any) -> tuple[Any, ...]:
        """Add up ``stage(block, *parameters)`` over all blocks: one Spark job.

        Parameters
        ----------
        stage : callable
            A module-level function (or a ``functools.partial`` of one) that returns a tuple of
            arrays or numbers, of the same shapes for every block.
        *parameters
            Arrays and plain values, sent to the executors once.

        Returns
        -------
        tuple
            The sums; floats are accumulated in float64.
        """
        return self._round(stage, None, parameters)

    def reduce(self, stage: Stage, merge: Merge, *parameters: Any) -> tuple[Any, ...]:
        """As :meth:`sum`, for partials that do not add: ``merge(left, right)`` joins two of them.

        ``merge`` is applied to neighbours in the order of the rows, so it need be associative
        only.
        """
        return self._round(stage, merge, parameters)

    def _round(
        self, stage: Stage, merge: Merge | None, parameters: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        if self._closed:
            raise RuntimeError("the blocks are closed: rounds run inside their with statement")
        began = time.perf_counter()
        with self._executors.shipped(parameters) as shipment:
            partials, bytes_down = self._gather(partial(_run, stage, merge, shipment), shipment)
        values = [p.values for p in partials if p.values is not None]
        join: Merge = merge or _add
        total = reduce(join, values)
        self._rounds.append(
            Round(
                seconds=time.perf_counter() - began,
                bytes_down=bytes_down,
                bytes_up=sum(_nbytes(v) for v in values),
                partitions=tuple(
                    PartitionReport(
                        p.handle.partition,
                        p.handle.host,
                        p.handle.n_rows,
                        p.handle.n_bytes,
                        p.seconds,
                    )
                    for p in partials
                ),
            )
        )
        return tuple(v[()] if isinstance(v, np.ndarray) and v.ndim == 0 else v for v in total)

    def _gather(self, task: _Task, shipment: _Shipment) -> tuple[list[_Partial], int]:
        """One partial of every partition, in partition order, and the bytes sent for them."""
        bytes_down = 0
        told = False  # that the rows changed
        for rebuilds in range(MAX_REBUILDS + 1):
            if rebuilds:
                self._rebuild(told)
            found: dict[int, _Partial] = {}
            for attempt in range(1 + RETRIES):
                missing = [h.partition for h in self.handles if h.partition not in found]
                whole = len(missing) == len(self.handles)
                bytes_down += shipment.n_bytes * self._executors.n_tasks(missing)
                for answer in self._executors.run(task, None if whole else missing):
                    if answer.found:
                        found[answer.handle.partition] = answer
                if told := self._other_rows(found.values()):
                    break
                if len(found) == len(self.handles):
                    self._executors.group(self.handles, again=attempt > 0)
                    return [found[handle.partition] for handle in self.handles], bytes_down
                logger.info("no block file for %d partitions", len(self.handles) - len(found))
        raise RuntimeError(
            f"block files went missing or changed under {MAX_REBUILDS} rebuilds in one round: "
            "is the source of the DataFrame stable, and is the local disk full?"
        )

    def _other_rows(self, answers: Any) -> bool:
        """Whether lineage wrote other rows than are known; another order is told and accepted."""
        known = list(self.handles)
        for answer in answers:
            old, new = known[answer.handle.partition], answer.handle
            if not old.same_rows(new):
                warnings.warn(
                    f"partition {new.partition} was recomputed after a loss and holds other rows "
                    f"({new.n_rows} rows, before {old.n_rows}): all blocks are built again and "
                    "training goes on from the current parameters; cache or checkpoint the "
                    "DataFrame if its plan is not deterministic",
                    DataChangedWarning,
                    stacklevel=2,
                )
                return True
            if old.ordered != new.ordered and not self._warned_of_order:
                self._warned_of_order = True
                warnings.warn(
                    f"partition {new.partition} was recomputed after a loss and holds its rows in "
                    "another order: results stay right, but may differ in the last bits",
                    DataChangedWarning,
                    stacklevel=2,
                )
            known[new.partition] = new
        self.handles = tuple(known)
        return False

    # --- lifetime ---

    def _build(self) -> None:
        handles = self._executors.build()
        fault = next((handle.fault for handle in handles if handle.fault), "")
        if fault:
            raise ValueError(fault)
        handles.sort(key=lambda handle: handle.partition)
        filled = [handle for handle in handles if handle.n_rows]
        where = self._layout.features.label
        if not filled:
            raise ValueError(f"{where}: expected at least one row to train on, found no rows")
        first = filled[0]
        for handle in filled:
            if handle.n_features != first.n_features:
                raise ValueError(
                    f"{where}: expected vectors of one length, found length {first.n_features} in "
                    f"partition {first.partition} and {handle.n_features} in {handle.partition}"
                )
        if not sum(handle.weight_sum for handle in filled) > 0:
            raise ValueError(
                f"weight column {self._layout.weight!r}: expected a weight above 0, found none"
            )
        self.handles = tuple(handles)

    def _rebuild(self, told: bool) -> None:
        logger.warning("block files were lost: building all blocks again")
        before = self.handles
        self._build()
        same = len(before) == len(self.handles) and all(map(Handle.same_rows, before, self.handles))
        if not same and not told:
            warnings.warn(
                "the source of the DataFrame gave other rows when the blocks were built again: "
                "training goes on with them from the current parameters",
                DataChangedWarning,
                stacklevel=2,
            )

    def close(self) -> None:
        """Delete the block files and let go of the cached handles."""
        if not self._closed:
            self._closed = True
            self._executors.close()

    def __enter__(self) -> Blocks:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


# --- on the executors ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Partial:
    handle: Handle
    found: bool  # the file was there
    values: tuple[Any, ...] | None  # None for a partition without rows
    seconds: float


def _run(
    stage: Stage, merge: Merge | None, shipment: _Shipment, rows: Iterator[Any]
) -> Iterator[_Partial]:
    """The work of one task: a partial for every handle that landed in it."""
    spare_collector()
    parameters = shipment.open()
    for handle in [Handle(*row) for row in rows]:  # all input first: an unread one kills the worker
        began = time.perf_counter()
        values: tuple[Any, ...] | None = None
        try:
            for block in read_blocks(handle):
                values = _joined(values, stage(block, *parameters), merge)
        except FileNotFoundError:
            yield _Partial(handle, False, None, 0.0)
        else:
            yield _Partial(handle, True, values, time.perf_counter() - began)


def _joined(
    total: tuple[Any, ...] | None, part: tuple[Any, ...], merge: Merge | None
) -> tuple[Any, ...]:
    if merge is not None:
        return part if total is None else merge(total, part)
    if total is None:
        return tuple(_accumulator(value) for value in part)
    for into, value in zip(total, part, strict=True):
        np.add(into, value, out=into)
    return total


def _accumulator(value: Any) -> np.ndarray:
    """A copy to add to: float64 whatever the precision of the block, integers as int64."""
    array = np.asarray(value)
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def _add(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def _nbytes(value: Any) -> int:
    if isinstance(value, tuple | list):
        return sum(map(_nbytes, value))
    return int(getattr(value, "nbytes", 8))


# --- the seam to Spark ---------------------------------------------------------------------------
# Everything that needs a SparkContext. Another way to run a round (Spark Connect: the same stage
# through mapInArrow, parameters by closure) is another class with these methods.

_Task = Callable[[Iterable[Any]], Iterable[_Partial]]


class _Shipment:
    """Parameters on their way: in the task itself while small, as a broadcast otherwise."""

    def __init__(self, context: SparkContext, parameters: tuple[Any, ...]) -> None:
        packed = pickle.dumps(parameters, protocol=5)
        self.n_bytes = len(packed)
        self._broadcast = context.broadcast(packed) if self.n_bytes > CLOSURE_BYTES else None
        self._packed = packed if self._broadcast is None else None

    def open(self) -> tuple[Any, ...]:
        packed = self._packed if self._broadcast is None else self._broadcast.value
        parameters: tuple[Any, ...] = pickle.loads(packed)  # type: ignore[arg-type]
        return parameters

    def __enter__(self) -> _Shipment:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._broadcast is not None:
            self._broadcast.destroy()  # unpersist would leave the driver's file


class _Executors:
    """Block files by RDD: handles cached where their files are, a round a job over them."""

    def __init__(self, spark: SparkSession, source: DataFrame, layout: Layout) -> None:
        self._context = spark.sparkContext
        self._source, self._layout = source, layout
        self._handles: RDD[Any] | None = None
        self._grouped: RDD[Any] | None = None
        self._placed: list[str] = []  # where the files stood when the handles were grouped
        self._n_tasks = 1
        _ship_package(self._context)

    def build(self) -> list[Handle]:
        """Write all files (again) and return their handles."""
        self._unpersist()
        written = self._source.mapInArrow(partial(write_partition, self._layout), HANDLE_SCHEMA)
        # The writer sees its task's number, which is another one where lineage writes a lost
        # partition again inside the task of a round.
        numbered = written.withColumn("partition", F.spark_partition_id())
        self._handles = numbered.rdd.persist(StorageLevel.MEMORY_AND_DISK)
        handles = [Handle(*row) for row in self._handles.collect()]
        self.group(handles)
        return handles

    def group(self, handles: Sequence[Handle], again: bool = False) -> None:
        """Share the handles among the slots, each with others of its executor.

        A task costs milliseconds: as many as run at once, whatever the number of partitions. Each
        group is cached as one partition, since to fetch a hundred of them costs 10 ms a round.
        """
        paths = [handle.path for handle in handles]
        if self._grouped is not None and paths == self._placed and not again:
            return
        assert self._handles is not None
        self._ungroup()
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
        self._grouped = grouped.persist(StorageLevel.MEMORY_AND_DISK)
        self._placed = paths
        self._n_tasks = self._grouped.getNumPartitions()

    def _pruned(self, partitions: list[int]) -> RDD[Any]:
        """Some partitions of the handles, where they are (PySpark has no name for it)."""
        assert self._handles is not None
        jvm: Any = self._context._jvm
        wanted = jvm.PythonUtils.toSeq(partitions).toSet()  # in Scala a set is a predicate
        jrdd = jvm.org.apache.spark.rdd.PartitionPruningRDD.create(
            self._handles._jrdd.rdd(), wanted
        )
        return RDD(jrdd.toJavaRDD(), self._context, self._handles._jrdd_deserializer)

    def shipped(self, parameters: tuple[Any, ...]) -> _Shipment:
        return _Shipment(self._context, parameters)

    def n_tasks(self, partitions: Sequence[int]) -> int:
        return min(len(partitions), self._n_tasks)

    def run(self, task: _Task, partitions: Sequence[int] | None) -> list[_Partial]:
        """Run a task over the handles, or over those of some partitions."""
        assert self._handles is not None
        assert self._grouped is not None
        if partitions is None:
            return self._grouped.mapPartitions(task).collect()
        return self._context.runJob(self._handles, task, list(partitions))

    def close(self) -> None:
        if self._context._jsc is None:  # stopped: Spark has deleted its local directories
            return
        delete = partial(_delete, self._layout.directory)
        if self._context._jsc.sc().isLocal():
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

    def _all_cached(self) -> bool:
        """Whether a job over the handles would run without writing a file again."""
        assert self._handles is not None
        wanted = self._handles.id()
        for info in self._context._jsc.sc().getRDDStorageInfo():
            if info.id() == wanted:
                return bool(info.numCachedPartitions() == self._handles.getNumPartitions())
        return False

    def _ungroup(self) -> None:
        if self._grouped is not None:
            self._grouped.unpersist()
        self._grouped = None

    def _unpersist(self) -> None:
        self._ungroup()
        if self._handles is not None:
            self._handles.unpersist()
        self._handles = None


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
