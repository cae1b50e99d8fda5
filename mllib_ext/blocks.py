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
import pickle
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pyspark.sql import DataFrame

from mllib_ext import kept as keeping
from mllib_ext import partials
from mllib_ext.blas import one_thread
from mllib_ext.blockfile import Block, Handle, Layout, read_blocks
from mllib_ext.columns import Features, data_type, number, quoted
from mllib_ext.executors import Executors, Shipment
from mllib_ext.flights import Flights, Simulated, Threaded
from mllib_ext.kept import Kept, KeptStage
from mllib_ext.partials import Merge, Partial, Stage, Walk
from mllib_ext.scan import plain_scan

logger = logging.getLogger(__name__)

# A missing file is looked for twice more (the task may have run on a machine that never had it);
# data that changes under every rebuild is an error in its source.
RETRIES = 2
MAX_REBUILDS = 3
# Groups of partitions that may be under way at once: what is as many on every cluster.
GROUPS = 8


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
    ``n_tasks`` shared the partitions among them.
    """

    seconds: float
    bytes_down: int
    bytes_up: int
    partitions: tuple[PartitionReport, ...]
    n_tasks: int = 1


class _Rounds(threading.local):
    """Fits of a grid may share blocks, each in a thread of its own."""

    def __init__(self) -> None:
        self.reports: list[Round] = []


class Blocks:
    """A data set converted once to blocks on executor-local disk. Use it in a ``with``.

    Attributes
    ----------
    n_rows, n_features : int
    weight_sum : float
        The sum of the weights; the number of rows without a weight column.
    sparse : bool
        ``block.X`` is CSR in every block, or dense in every block.
    on_driver : bool
        The driver holds the blocks, and rounds run there.
    handles : tuple of Handle
        One a partition, in partition order.
    label_metadata : dict
        What the DataFrame's schema says of the label column.
    """

    handles: tuple[Handle, ...] = ()

    def __init__(
        self,
        executors: Executors,
        layout: Layout,
        driver_bytes: int = 0,
        label_metadata: dict[str, Any] | None = None,
        depth: int = 2,
    ) -> None:
        self._executors, self._layout, self._depth = executors, layout, depth
        self.label_metadata = label_metadata or {}
        self._lock = threading.RLock()
        self._held: dict[int, list[Block]] | None = None
        self._first: tuple[Any, ...] | None = None  # the answer to the round that ran ahead
        self._rounds = _Rounds()
        self._warned_of_order = self._closed = False
        self._generation = 0  # builds after the first
        try:
            self._build()
            if sum(h.n_bytes for h in self.handles) <= driver_bytes:
                self._hold()
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
        block_bytes: int | None = None,
        driver_bytes: int = 0,
        ahead: tuple[Stage, Merge | None] | None = None,
        depth: int = 2,
    ) -> Blocks:
        """Convert a DataFrame: one pass over its rows.

        Parameters
        ----------
        df : DataFrame
        features : str or sequence of str
            A vector column, an ``array<float>`` or ``array<double>`` column, or numeric columns.
        label, weight, id : str, optional
            Columns to carry along. Weights are 0 or more.
        block_bytes : int, optional
            The size of a block; a few megabytes unless given, which suit the processor's cache.
        driver_bytes : int
            Blocks of so many bytes together, or fewer, are moved to the driver: a Spark job costs
            more than a pass over a few megabytes. Rounds and results are the same.
        ahead : tuple of (callable, callable or None)
            The stage and merge of a round without parameters that is known to come first: it is
            computed while the blocks are written, and its answer remembered.
        depth : int
            Levels on which partials are joined: 2 are a partition's task and the driver; each one
            more is a shuffle between them, which pays where many partitions send large partials.

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
        name = f"mllib_ext-{uuid.uuid4().hex}"
        layout = Layout(resolved, None, label, weight, id, name, block_bytes, ahead)
        metadata = df.schema[label].metadata if label is not None else {}
        source = df.select(*columns)
        names = [*resolved.names, *(name for name in (label, weight, id) if name is not None)]
        executors = Executors(spark, source, layout.directory, plain_scan(df, names))
        return cls(executors, layout, driver_bytes, metadata, depth)

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
        return bool(self._layout.sparse)

    @property
    def on_driver(self) -> bool:
        return self._held is not None

    @property
    def n_tasks(self) -> int:
        """Tasks of a round: as many as run at once, or the number of partitions if less."""
        if self.on_driver:
            return 1
        return self._executors.n_tasks([handle.partition for handle in self.handles])

    @property
    def features(self) -> Features:
        """The feature columns as they were resolved."""
        return self._layout.features

    def drain(self) -> tuple[Round, ...]:
        """The reports of the rounds that this thread ran since its last call."""
        rounds, self._rounds.reports = tuple(self._rounds.reports), []
        return rounds

    # --- rounds ---

    def sum(self, stage: Stage, *parameters: Any) -> tuple[Any, ...]:
        """Add up ``stage(block, *parameters)`` over all blocks: one Spark job.

        Parameters
        ----------
        stage : callable
            A module-level function (or a ``functools.partial`` of one) that returns a tuple of
            arrays or numbers, of the same shapes for every block. Within a
            :class:`~mllib_ext.partials.Walk` one that goes through a partition's blocks itself.
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

    def update(
        self, stage: KeptStage, merge: Merge, kept: Kept | None, *parameters: Any
    ) -> tuple[tuple[Any, ...], Kept]:
        """One round in which every partition has a state of its own (:mod:`mllib_ext.kept`).

        Parameters
        ----------
        stage : callable
            ``stage(handle, blocks, state, *parameters) -> (values, state)``, the blocks an iterator
            over a partition's; the state is None where ``kept`` is.
        merge : callable
            As in :meth:`reduce`, for the values of two partitions.
        kept : Kept or None
            The states after an earlier round.

        Returns
        -------
        values : tuple
        kept : Kept
            The states after this round. Those before may be deleted from the next one on.

        Raises
        ------
        StateLost
            A partition's blocks had to be made again elsewhere, without its state.
        """
        run, number = (kept.run, kept.number + 1) if kept else (uuid.uuid4().hex[:8], 0)
        where = None if self.on_driver else (run, number)
        walk = Walk(partial(keeping.updated, stage, where))
        address = None if kept is None else kept.address()
        merge = partial(keeping.join_updates, merge)
        states, values = self._round(walk, merge, (address, *parameters))
        keeping.refuse_lost(states)
        return values, Kept(run, number, states, self.on_driver)

    def recall(self, kept: Kept) -> Kept:
        """The states themselves, on the driver: they outlive every executor. One round."""
        if kept.inline:
            return kept
        (states,) = self.reduce(Walk(keeping.recalled), keeping.join_states, kept.address())
        keeping.refuse_lost(states)
        return replace(kept, states=states, inline=True)

    @property
    def groups(self) -> list[list[int]]:
        """Partitions with rows, dealt out to up to :data:`GROUPS` groups."""
        filled = [handle.partition for handle in self.handles if handle.n_rows]
        return [filled[i::GROUPS] for i in range(min(GROUPS, len(filled)))]

    @contextmanager
    def flights(self) -> Iterator[Flights]:
        """Sums over one group of partitions each, several at a time; in a ``with``.

        On the driver they run one by one and arrive in the order they were sent.
        """
        groups, reports = self.groups, self._rounds.reports

        def run(group: int, stage: Stage, *parameters: Any) -> tuple[Any, ...]:
            values = self._round(stage, None, parameters, groups[group])
            if self._rounds.reports is not reports:  # those of a thread that ends now
                reports.extend(self.drain())
            return values

        if self.on_driver:
            yield Simulated(run, [1.0] * len(groups))
            return
        threaded = Threaded(run)
        try:
            yield threaded
        finally:
            threaded.land()

    def collect(self) -> list[Block]:
        """All blocks, in the order of the rows, in the driver's memory."""
        if self._held is None and self._executors.local:  # no need to ask for its own files
            try:
                return [block for handle in self.handles for block in read_blocks(handle)]
            except FileNotFoundError:
                logger.info("a block file is missing: a round writes it again")
        blocks: list[Block] = self.reduce(_whole, _both)[0]
        return blocks

    def _round(
        self,
        stage: Stage,
        merge: Merge | None,
        parameters: tuple[Any, ...],
        only: Sequence[int] | None = None,  # these partitions
    ) -> tuple[Any, ...]:
        if self._closed:
            raise RuntimeError("the blocks are closed: rounds run inside their with statement")
        if self._first is not None and not parameters and (stage, merge) == self._layout.ahead:
            return self._first
        began = time.perf_counter()
        if self._held is not None:
            parts, bytes_down = self._here(stage, merge, parameters, only), 0
        else:
            with self._executors.shipped(parameters) as shipment:
                parts, bytes_down = self._gather(stage, merge, shipment, only)
        result = partials.total([p.values for p in parts], merge)
        self._rounds.reports.append(
            Round(
                seconds=time.perf_counter() - began,
                bytes_down=bytes_down,
                bytes_up=0 if self.on_driver else sum(partials.nbytes(p.values) for p in parts),
                partitions=tuple(
                    PartitionReport(
                        p.handle.partition,
                        p.handle.host,
                        p.handle.n_rows,
                        p.handle.n_bytes,
                        p.seconds,
                    )
                    for p in parts
                ),
                n_tasks=self.n_tasks,
            )
        )
        return result

    def _here(
        self,
        stage: Stage,
        merge: Merge | None,
        parameters: tuple[Any, ...],
        only: Sequence[int] | None,
    ) -> list[Partial]:
        """One partial of every partition from the blocks that the driver holds."""
        assert self._held is not None
        with one_thread():
            return [
                partials.of_partition(h, self._held.get(h.partition, ()), stage, merge, parameters)
                for h in self.handles
                if only is None or h.partition in only
            ]

    def _gather(
        self, stage: Stage, merge: Merge | None, shipment: Shipment, only: Sequence[int] | None
    ) -> tuple[list[Partial], int]:
        """One partial of every partition, in partition order, and the bytes sent for them."""
        bytes_down = 0
        depth = self._depth if only is None else 2
        told, generation = False, 0  # that the rows changed; which blocks were looked at
        for rebuilds in range(MAX_REBUILDS + 1):
            if rebuilds:
                with self._lock:
                    if self._generation == generation:  # no other thread has done it
                        self._rebuild(told)
            generation = self._generation
            found: dict[int, Partial] = {}
            for attempt in range(1 + RETRIES):
                if depth > 2:  # one that is missing leaves the sum of its neighbours short
                    found.clear()
                wanted = range(len(self.handles)) if only is None else only
                missing = [partition for partition in wanted if partition not in found]
                bytes_down += shipment.n_bytes * self._executors.n_tasks(missing)
                for answer in self._executors.run(
                    stage, merge, shipment, missing if attempt or only else None, depth
                ):
                    if answer.found:
                        found[answer.handle.partition] = answer
                with self._lock:
                    if told := self._other_rows(found.values()):
                        break
                    if len(found) == len(wanted):
                        self._executors.group(self.handles, again=attempt > 0)
                        return [found[partition] for partition in wanted], bytes_down
                logger.info("no block file for %d partitions", len(wanted) - len(found))
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
        handles = self._write()
        # Each partition was judged by its first rows; a stage meets one kind of block.
        csr = sum(handle.n_rows for handle in handles if handle.sparse)
        if self._layout.sparse is None:
            self._layout = replace(self._layout, sparse=2 * csr > sum(h.n_rows for h in handles))
            if any(h.n_rows and h.sparse != self._layout.sparse for h in handles):
                handles = self._write()
        if not any(handle.n_rows for handle in handles):
            where = self._layout.features.label
            raise ValueError(f"{where}: expected at least one row to train on, found no rows")
        if not sum(handle.weight_sum for handle in handles) > 0:
            raise ValueError(
                f"weight column {self._layout.weight!r}: expected a weight above 0, found none"
            )
        self.handles = tuple(handles)

    def _write(self) -> list[Handle]:
        found = self._executors.build(self._layout)
        handles = [handle for handle, _ in found]
        fault = next((handle.fault for handle in handles if handle.fault), "")
        if fault:
            raise ValueError(fault)
        values = [pickle.loads(packed) if packed else None for _, packed in found]
        complete = all(v is not None for h, v in zip(handles, values, strict=True) if h.n_rows)
        self._first = None
        self._refuse_lengths(handles)
        if self._layout.ahead is not None and complete and any(h.n_rows for h in handles):
            self._first = partials.total(values, self._layout.ahead[1])
        return handles

    def _refuse_lengths(self, handles: Sequence[Handle]) -> None:
        """ValueError for partitions whose vectors have other lengths than the first one's."""
        filled = [handle for handle in handles if handle.n_rows]
        for handle in filled:
            if handle.n_features != filled[0].n_features:
                raise ValueError(
                    f"{self._layout.features.label}: expected vectors of one length, found length "
                    f"{filled[0].n_features} in partition {filled[0].partition} and "
                    f"{handle.n_features} in {handle.partition}"
                )

    def _hold(self) -> None:
        """Move the blocks to the driver: one round; their files are deleted."""
        blocks = self.collect()
        self.drain()
        self._held = {}
        for block in blocks:
            block.freeze()  # as in a file that was read
            self._held.setdefault(block.partition, []).append(block)
        self._executors.close()

    def _rebuild(self, told: bool) -> None:
        logger.warning("block files were lost: building all blocks again")
        before = self.handles
        self._build()
        self._generation += 1
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
            if self._held is None:
                self._executors.close()
            self._held = None

    def __enter__(self) -> Blocks:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _whole(block: Block) -> tuple[list[Block]]:
    return ([block],)


def _both(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    return (left[0] + right[0],)
