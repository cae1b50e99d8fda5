from __future__ import annotations

import gc
import math
import os
import threading
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext as quiet
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from py4j.finalizer import ThreadSafeFinalizer
from pyspark import StorageLevel
from pyspark.errors import PythonException
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from mllib_ext import executors
from mllib_ext.blockfile import WIDE, Handle
from mllib_ext.blocks import Blocks, DataChangedWarning
from mllib_ext.executors import CLOSURE_BYTES
from mllib_ext.partials import Partial

LARGE = np.ones(CLOSURE_BYTES // 4)  # a parameter that travels as a broadcast


# --- stages -----------------------------------------------------------------------------------


def moments(block, *parameters):
    """Sums that depend on every value: X'X, X'y, the weights, the count."""
    X = block.X
    return (
        X.T @ X if isinstance(X, np.ndarray) else (X.T @ X).toarray(),
        X.T @ block.y,
        (block.w.sum()),
        block.n,
    )


def count(block, *parameters):
    return (block.n,)


def total(block, *parameters):
    return block.X.sum(axis=0), block.n


def rows(block):
    """Everything that a block holds, as lists: what reduce can join in order."""
    X = block.X if isinstance(block.X, np.ndarray) else block.X.toarray()
    where = [(block.partition, block.start, block.n)]
    kinds = {(type(block.X).__name__, str(block.X.dtype))}
    return [X], [block.y], [block.w], list(block.id), where, kinds


def concatenate(left, right):
    return tuple(a | b if isinstance(a, set) else a + b for a, b in zip(left, right, strict=True))


def collected(blocks):
    X, y, w, id, where, kinds = blocks.reduce(rows, concatenate)
    return np.concatenate(X), np.concatenate(y), np.concatenate(w), id, where, kinds


def add_columns(left, right):
    return tuple(a + b for a, b in zip(left, right, strict=True))


def failing(block, *parameters):
    raise ZeroDivisionError("in a stage")


# --- data -------------------------------------------------------------------------------------


def frame(spark, n, partitions, d=4, empty=0):
    """``n`` rows of features x (d), label y and weight w; the last partitions are empty."""
    per_partition = math.ceil(n / (partitions - empty))
    x = [f"1.5D + sin(id * {j + 1.37}D + {j}D)" for j in range(d)]  # positive: no cancellation
    return (
        spark.range(0, per_partition * partitions, 1, partitions)
        .filter(f"id < {n}")
        .selectExpr("id", f"array({', '.join(x)}) x", "1.5D + cos(id * 0.7D) y", "1D + sin(id) w")
    )


def numpy_frame(n, d=4):
    id = np.arange(n)
    X = 1.5 + np.sin(id[:, None] * (np.arange(d) + 1.37) + np.arange(d))
    return X, 1.5 + np.cos(id * 0.7), 1 + np.sin(id)


def vector_frame(spark, vectors, partitions=1):
    schema = StructType().add("features", VectorUDT())
    context = spark.sparkContext
    return spark.createDataFrame(context.parallelize([(v,) for v in vectors], partitions), schema)


def lose_handles(spark, blocks, partition=None):
    """As the end of an executor does: forget one partition's cached handle and file, or all."""
    handles = blocks._executors._handles
    for handle in blocks.handles:
        if handle.path and partition in (None, handle.partition):
            Path(handle.path).unlink(missing_ok=True)
    if partition is None:
        handles.unpersist(blocking=True)
        handles.persist(StorageLevel.MEMORY_AND_DISK)
        return
    context = spark.sparkContext
    # py4j cannot look at SparkEnv's methods: their types name a class that pip leaves out.
    env = context._jvm.java.lang.Class.forName("org.apache.spark.SparkEnv")
    field = env.getDeclaredField("blockManager")
    field.setAccessible(True)
    block = context._jvm.org.apache.spark.storage.RDDBlockId(handles.id(), partition)
    field.get(context._jsc.sc().env()).removeBlock(block, True)


# --- nothing is left --------------------------------------------------------------------------


def local_directories(_):
    return os.environ["SPARK_LOCAL_DIRS"].split(",")


class Leftovers:
    """What lives on disk, in threads and in Spark's cache."""

    def __init__(self, spark):
        self.context = spark.sparkContext
        disks = self.context.parallelize([0], 1).map(local_directories).first()
        self.places = [*map(Path, disks), Path(self.context._temp_dir)]

    def now(self):
        files = {p for place in self.places for p in place.rglob("*") if p.is_file()}
        directories = {p for place in self.places for p in place.rglob("mllib_ext*")}
        files = {p for p in files if not p.name.startswith(("shuffle_", "temp_shuffle_"))}
        rdds = {f"RDD {key}" for key in self.context._jsc.getPersistentRDDs()}
        threads = {thread.name for thread in threading.enumerate()}
        return threads | rdds | {str(p) for p in files | directories}

    def block_files(self):
        return [p for p in self.now() if p.endswith((".arrow", ".tmp"))]


@pytest.fixture(scope="module")
def leftovers(spark):
    return Leftovers(spark)


@pytest.fixture(autouse=True)
def nothing_left(leftovers):
    """No test of this file leaves a file, a thread or a cached RDD."""
    before = leftovers.now()
    yield
    deadline = time.monotonic() + 20  # Spark deletes the executors' copies in the background
    while (left := leftovers.now() - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


# --- the same sum -----------------------------------------------------------------------------


def expected_moments(n):
    X, y, w = numpy_frame(n)
    return X.T @ X, X.T @ y, w.sum(), n


@pytest.mark.parametrize(("partitions", "empty"), [(1, 0), (2, 1), (2, 0), (7, 1), (7, 3)])
def test_sums_are_the_same_whatever_the_partitions(spark, partitions, empty):
    df = frame(spark, 30_000, partitions, empty=empty)
    with Blocks.of(df, "x", label="y", weight="w") as blocks:
        found = blocks.sum(moments)
        assert len(blocks.handles) == partitions
        assert [h.n_rows for h in blocks.handles].count(0) == empty
        assert (blocks.n_rows, blocks.n_features, blocks.sparse) == (30_000, 4, False)
        assert blocks.weight_sum == pytest.approx(expected_moments(30_000)[2], rel=1e-12)
    for value, expected in zip(found, expected_moments(30_000), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_sums_are_the_same_to_the_bit_under_load(spark):
    df = frame(spark, 20_000, 7, empty=1)
    stop = threading.Event()

    def load():
        while not stop.is_set():
            spark.range(0, 1_000, 1, 3).selectExpr("sum(sin(id))").collect()

    def bits(result):
        return [np.asarray(value).tobytes() for value in result]

    with (
        Blocks.of(df, "x", label="y", weight="w") as blocks,
        Blocks.of(df, "x", label="y", weight="w") as again,
        ThreadPoolExecutor(3) as threads,
    ):
        first = bits(blocks.sum(moments))
        busy = threads.submit(load)
        try:
            both = threads.map(lambda b: [bits(b.sum(moments)) for _ in range(6)], [blocks, again])
            results = [result for found in both for result in found]
        finally:
            stop.set()
        busy.result()
        assert results == [first] * 12
        lose_handles(spark, blocks)
        assert bits(blocks.sum(moments)) == first


def test_partials_are_added_in_float64_and_counts_as_integers(spark):
    df = spark.range(0, 60_000, 1, 3).selectExpr("array(cast(16777216 as float)) x")

    def in_single(block):
        return block.X.sum(axis=0, dtype=np.float32) / np.float32(block.n) + np.float32(1), 2**40

    with Blocks.of(df, "x") as blocks:
        X, n = blocks.sum(in_single)
    n_blocks = 3  # 20,000 rows of one float are one block
    assert X.dtype == np.float64
    assert np.float64(np.float32(16777216 + 1)) * n_blocks == X
    assert isinstance(n, np.integer)
    assert n == 2**40 * n_blocks


def test_two_hundred_partitions_cost_at_most_twice_two(spark):
    few, many = (frame(spark, 20_000, n, d=1) for n in (2, 200))
    ratios = []
    with Blocks.of(few, "x") as two, Blocks.of(many, "x") as two_hundred:
        for blocks in (two, two_hundred) * 3:  # warm
            blocks.sum(count)
            blocks.drain()
        # Load from elsewhere only ever adds: the first quiet moment of five tells.
        while len(ratios) < 5 and min(ratios, default=np.inf) > 2:
            seconds = {two: [], two_hundred: []}
            for _ in range(8):  # alternating, so that load meets both
                for blocks, taken in seconds.items():
                    assert blocks.sum(count) == (20_000,)
                    taken.append(blocks.drain()[0].seconds)
            ratios += [np.median(seconds[two_hundred]) / np.median(seconds[two])]
    assert min(ratios) <= 2, ratios


# --- what is lost -----------------------------------------------------------------------------


def hide(path):
    os.rename(path, f"{path}.hidden")


def hide_directory(path):
    hide(Path(path).parent)


@pytest.mark.parametrize("lose", [os.unlink, hide, hide_directory])
@pytest.mark.parametrize("partition", [0, 4])
def test_a_block_file_removed_between_rounds_is_rebuilt(spark, leftovers, lose, partition):
    df = frame(spark, 1_000, 5)
    with Blocks.of(df, "x", label="y") as blocks:
        first = blocks.sum(moments)
        path = blocks.handles[partition].path
        lose(path)
        again = blocks.sum(moments)
        assert all(np.array_equal(a, b) for a, b in zip(again, first, strict=True))
        assert os.path.exists(blocks.handles[partition].path)
        blocks.drain()
        assert blocks.sum(count) == (1_000,)
        assert [p.rows for p in blocks.drain()[0].partitions] == [200] * 5
        for hidden in leftovers.now():
            if lose is hide_directory and hidden.endswith(".hidden"):
                for file in Path(hidden).iterdir():
                    file.unlink()
                os.rmdir(hidden)


@pytest.mark.parametrize("partition", [None, 0, 1, 6])
def test_a_lost_handle_is_written_again_under_its_own_number(spark, partition):
    with Blocks.of(frame(spark, 1_000, 7, empty=1), "x", label="y", id="id") as blocks:
        first, known = blocks.sum(moments), blocks.handles
        lose_handles(spark, blocks, partition)
        again = blocks.sum(moments)
        assert all(np.array_equal(a, b) for a, b in zip(again, first, strict=True))
        assert [h.partition for h in blocks.handles] == list(range(7))
        assert [(h.ordered, h.n_rows) for h in blocks.handles] == [
            (h.ordered, h.n_rows) for h in known
        ]
        _, _, _, ids, where, _ = collected(blocks)
        assert ids == list(range(1_000))
        assert [p for p, _, _ in where] == list(range(6))


@pytest.mark.parametrize(("depth", "partitions"), [(3, 7), (4, 12)])
def test_a_deeper_aggregation_joins_neighbours_in_their_order(spark, depth, partitions):
    with (
        Blocks.of(frame(spark, 600, partitions, empty=1), "x", label="y", id="id") as flat,
        Blocks.of(
            frame(spark, 600, partitions, empty=1), "x", label="y", id="id", depth=depth
        ) as deep,
    ):
        assert collected(deep)[3] == collected(flat)[3] == list(range(600))
        first = deep.sum(moments)
        for ours, theirs in zip(first, flat.sum(moments), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)  # brackets set otherwise
        assert deep.drain()[-1].bytes_up < 0.8 * flat.drain()[-1].bytes_up
        os.unlink(deep.handles[2].path)
        for ours, theirs in zip(deep.sum(moments), first, strict=True):
            assert np.array_equal(ours, theirs)
        assert [p.rows for p in deep.drain()[-1].partitions] == [h.n_rows for h in flat.handles]


def all_missing(stage, merge, shipment, rows):
    for row in list(rows):
        yield Partial(Handle.of(row), False, None, 0.0)


def test_files_that_stay_away_are_an_error_and_never_a_part_of_the_sum(spark, monkeypatch):
    with Blocks.of(frame(spark, 100, 3), "x") as blocks:
        monkeypatch.setattr(executors, "run_stage", all_missing)
        with pytest.raises(RuntimeError, match="block files went missing or changed under"):
            blocks.sum(count)
        assert blocks.drain() == ()


# --- what changes -----------------------------------------------------------------------------


def changing(batches, path):
    """A source whose rows are told by a file: as they were, reversed, or others."""
    state = Path(path).read_text()
    for batch in batches:
        id = batch["id"].to_numpy()
        id = {"same": id, "reversed": id[::-1], "other": id + 1_000, "short": id[1:]}[state]
        offsets = np.arange(len(id) + 1, dtype=np.int32)
        X = pa.ListArray.from_arrays(offsets, pa.array(np.sqrt(id)))
        yield pa.RecordBatch.from_arrays([pa.array(id), X], ["id", "x"])


@pytest.fixture
def source(spark, tmp_path):
    state = tmp_path / "state"
    state.write_text("same")
    df = spark.range(0, 400, 1, 4).mapInArrow(
        partial(changing, path=str(state)), "id long, x array<double>"
    )
    return df, state


def roots(ids):
    return pytest.approx(np.sqrt(ids).sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "expected"),
    [("other", range(1_000, 1_400)), ("short", [i for i in range(400) if i % 100])],
)
@pytest.mark.parametrize("partition", [None, 2])
def test_rows_that_change_when_recomputed_rebuild_all_blocks(
    spark, source, change, expected, partition
):
    df, state = source
    with Blocks.of(df, "x") as blocks:
        assert blocks.sum(total) == (roots(range(400)), 400)
        state.write_text(change)
        lose_handles(spark, blocks, partition)
        with pytest.warns(DataChangedWarning, match="holds other rows") as told:
            found = blocks.sum(total)
        assert len(told) == 1
        assert found == (roots(list(expected)), len(expected)), "one consistent set of rows"
        assert blocks.n_rows == len(expected)
        assert blocks.sum(total) == found


def test_rows_that_change_with_a_lost_file_are_told(spark, source):
    df, state = source
    with Blocks.of(df, "x") as blocks:
        state.write_text("other")
        os.unlink(blocks.handles[1].path)
        with pytest.warns(DataChangedWarning, match="gave other rows") as told:
            assert blocks.sum(total) == (roots(range(1_000, 1_400)), 400)
        assert len(told) == 1


def test_ids_that_change_with_equal_features_are_told(spark, tmp_path):
    state = tmp_path / "state"
    state.write_text("same")
    df = spark.range(0, 400, 1, 4).mapInArrow(
        partial(changing, path=str(state)), "id long, x array<double>"
    )
    df = df.select(F.array(F.lit(1.0)).alias("x"), F.col("id").cast("string").alias("id"))
    with Blocks.of(df, "x", id="id") as blocks:
        state.write_text("other")
        lose_handles(spark, blocks, 3)
        with pytest.warns(DataChangedWarning):
            blocks.sum(count)


def test_another_order_of_the_same_rows_is_one_warning_and_the_right_sum(spark, source):
    df, state = source
    with Blocks.of(df, "x", id="id") as blocks:
        for order, partition in (("reversed", None), ("same", None), ("reversed", 1)):
            state.write_text(order)
            lose_handles(spark, blocks, partition)
            first = order == "reversed" and partition is None
            with pytest.warns(DataChangedWarning, match="in another order") if first else quiet():
                found = blocks.sum(total)
            assert found == (roots(range(400)), 400)


def test_a_source_that_turns_bad_is_an_error_after_the_rebuild(spark, tmp_path):
    state = tmp_path / "state"
    state.write_text("same")
    df = spark.range(0, 400, 1, 4).mapInArrow(
        partial(changing, path=str(state)), "id long, x array<double>"
    )
    df = df.selectExpr("if(id = 1399, array('nan'), x) x")
    with Blocks.of(df, "x") as blocks:
        state.write_text("other")
        lose_handles(spark, blocks, 3)
        with (
            pytest.warns(DataChangedWarning),
            pytest.raises(ValueError, match="expected finite numbers, found nan"),
        ):
            blocks.sum(count)


# --- lifetimes --------------------------------------------------------------------------------


def test_rounds_with_broadcast_parameters_leave_nothing(spark, leftovers):
    before = leftovers.now()
    with Blocks.of(frame(spark, 100, 3), "x") as blocks:
        assert len(leftovers.block_files()) == 3
        for _ in range(3):
            assert blocks.sum(count, LARGE) == (100,)
        new = leftovers.now() - before
        temporary = spark.sparkContext._temp_dir
        assert not [p for p in new if p.startswith(temporary)], "gone after each round"


@pytest.mark.parametrize("parameters", [(), (LARGE,)])
def test_an_exception_inside_with_leaves_nothing(spark, leftovers, parameters):
    def interrupted():
        with Blocks.of(frame(spark, 100, 3), "x") as blocks:
            blocks.sum(count, *parameters)
            assert leftovers.block_files()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not leftovers.block_files()


def test_an_exception_in_a_stage_is_told_and_leaves_nothing(spark, leftovers):
    with Blocks.of(frame(spark, 100, 3), "x") as blocks:
        with pytest.raises(PythonException, match="ZeroDivisionError: in a stage"):
            blocks.sum(failing, LARGE)
        assert blocks.sum(count, LARGE) == (100,)
    assert not leftovers.block_files()


@pytest.mark.parametrize("driver_bytes", [0, 1 << 30])
def test_a_file_that_a_stage_misses_is_told_and_leaves_no_rows_out(spark, driver_bytes):
    def missing(block):
        if block.partition == 1:
            raise FileNotFoundError("weights.bin")
        return (block.n,)

    df = frame(spark, 100, 3)
    with (
        Blocks.of(df, "x", driver_bytes=driver_bytes) as blocks,
        pytest.raises(Exception, match=r"weights\.bin"),
    ):
        blocks.sum(missing)


def test_a_build_that_is_cancelled_leaves_nothing(spark, leftovers):
    df = spark.range(0, 1_000_000, 1, 4).select(F.array(*[F.rand(i) for i in range(40)]).alias("x"))

    def cancel():
        deadline = time.monotonic() + 60
        while not leftovers.block_files() and time.monotonic() < deadline:
            time.sleep(0.02)
        spark.sparkContext.cancelAllJobs()  # as PySpark's handler of SIGINT does

    watcher = threading.Thread(target=cancel)
    watcher.start()
    with pytest.raises(Exception, match="cancelled"):
        Blocks.of(df, "x")
    watcher.join()
    assert not leftovers.block_files()
    time.sleep(1)  # nor what a worker may have written since
    assert not leftovers.block_files()


def test_an_exception_in_the_source_leaves_nothing(spark, leftovers):
    df = frame(spark, 1_000, 4).selectExpr("if(id < 999, x, array(raise_error('no'))) x")
    with pytest.raises(Exception, match="no"):
        Blocks.of(df, "x")
    assert not leftovers.block_files()


def test_blocks_can_be_closed_twice_and_hold_nothing_then(spark, leftovers):
    blocks = Blocks.of(frame(spark, 100, 2), "x")
    blocks.close()
    blocks.close()
    assert not leftovers.block_files()
    with pytest.raises(RuntimeError, match="closed"):
        blocks.sum(count)


def test_two_data_sets_at_once_do_not_touch_each_other(spark):
    with Blocks.of(frame(spark, 100, 2), "x") as outer:
        with Blocks.of(frame(spark, 50, 2), "x") as inner:
            assert (outer.sum(count), inner.sum(count)) == ((100,), (50,))
        path = outer.handles[0].path
        assert os.path.exists(path)
        assert outer.sum(count) == (100,)
        assert outer.handles[0].path == path, "nothing was built again"


def storage_memory_left(spark):
    spark.sparkContext._jvm.System.gc()
    status = spark.sparkContext._jsc.sc().getExecutorMemoryStatus()
    return status.head()._2()._2()


def test_a_hundred_rounds_leak_no_memory_and_no_disk(spark, leftovers):
    with Blocks.of(frame(spark, 100, 2), "x") as blocks:

        def rounds(n):
            for i in range(n):
                blocks.sum(count, *([LARGE] if i % 4 == 0 else [i]))
                blocks.drain()
            gc.collect()

        rounds(20)
        files, objects = leftovers.now(), len(ThreadSafeFinalizer.finalizers)
        jvm = storage_memory_left(spark)
        tracemalloc.start()
        try:
            # What replaces an object from before is counted, and the old one's end is not: caches
            # that stay as large as they are have grown by 300 bytes a round after the first 100.
            rounds(100)
            before = tracemalloc.get_traced_memory()[0]
            rounds(100)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < 100 * 200, f"{grown / 100} bytes a round stay with the driver"
        assert len(ThreadSafeFinalizer.finalizers) <= objects + 20, "Java objects held by Python"
        # 25 broadcasts of 512 kB, and the tasks of 100 jobs, which go with a garbage collection.
        deadline = time.monotonic() + 20
        while storage_memory_left(spark) < jvm - (1 << 20) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert storage_memory_left(spark) >= jvm - (1 << 20)
        assert not leftovers.now() - files


# --- the columns that go in -------------------------------------------------------------------


def test_the_three_kinds_of_features_give_equal_rows(spark):
    df = frame(spark, 500, 3)
    columns = df.select("id", *[F.col("x")[j].alias(f"c{j}") for j in range(4)])
    names = [f"c{j}" for j in range(4)]
    assembled = VectorAssembler(inputCols=names, outputCol="v").transform(columns)
    expected = numpy_frame(500)[0]
    for data, features in ((df, "x"), (columns, names), (assembled, "v")):
        with Blocks.of(data, features, id="id") as blocks:
            X, _, w, ids, _, kinds = collected(blocks)
        np.testing.assert_allclose(X, expected, rtol=1e-14)
        assert kinds == {("ndarray", "float64")}
        assert ids == list(range(500))
        assert (w == 1).all()


def sparse_rows(n, d, rng, dense_every=0):
    X = sp.random_array((n, d), density=0.1, format="csr", rng=rng)
    vectors = [
        Vectors.dense(X[[i]].toarray()[0])
        if dense_every and i % dense_every == dense_every - 1
        else Vectors.sparse(d, X.indices[a:b], X.data[a:b])
        for i, (a, b) in enumerate(zip(X.indptr[:-1], X.indptr[1:], strict=True))
    ]
    return X.toarray(), vectors


@pytest.mark.parametrize("dense_every", [0, 7])
def test_dense_and_sparse_rows_give_the_same_sums(spark, dense_every):
    X, vectors = sparse_rows(300, 12, np.random.default_rng(1), dense_every)
    sparse = vector_frame(spark, vectors, 3).withColumn("y", F.lit(1.0))
    # A struct with its dense twin: the same rows in the same partitions.
    dense = spark.createDataFrame(
        sparse.rdd.map(lambda r: (Vectors.dense(r.features.toArray()), r.y)), sparse.schema
    )
    with (
        Blocks.of(sparse, "features", label="y") as csr,
        Blocks.of(dense, "features", label="y") as full,
    ):
        assert csr.sparse
        assert not full.sparse
        for value, other, expected in zip(
            csr.sum(moments), full.sum(moments), (X.T @ X, X.sum(axis=0), 300, 300), strict=True
        ):
            np.testing.assert_allclose(value, other, rtol=1e-12)
            np.testing.assert_allclose(value, expected, rtol=1e-12)
        assert collected(csr)[-1] == {("csr_array", "float64")}
        np.testing.assert_array_equal(collected(csr)[0], X)


def test_rows_that_turn_sparse_after_the_first_hundred_stay_dense(spark):
    rows = [Vectors.dense([1.0, 2.0])] * 150 + [Vectors.sparse(2, [1], [5.0])] * 50
    with Blocks.of(vector_frame(spark, rows, 2), "features") as blocks:
        assert not blocks.sparse
        assert blocks.sum(total)[0].tolist() == [150, 300 + 250]


@pytest.mark.parametrize(
    ("expression", "dtype"),
    [("array(cast(id as float))", "float32"), ("array(cast(id as double))", "float64")],
)
def test_precision_follows_an_array_column(spark, expression, dtype):
    with Blocks.of(spark.range(10).selectExpr(f"{expression} x"), "x") as blocks:
        assert collected(blocks)[-1] == {("ndarray", dtype)}


@pytest.mark.parametrize(
    ("kinds", "dtype"),
    [
        (["float", "float"], "float32"),
        (["float", "double"], "float64"),
        (["byte", "short", "int", "bigint", "boolean", "decimal(9,2)", "float"], "float64"),
    ],
)
def test_precision_follows_numeric_columns(spark, kinds, dtype):
    df = spark.range(2).select([F.col("id").cast(k).alias(f"c{i}") for i, k in enumerate(kinds)])
    with Blocks.of(df, [f"c{i}" for i in range(len(kinds))]) as blocks:
        X, *_, found = collected(blocks)
    assert found == {("ndarray", dtype)}
    assert X.tolist() == [[0] * len(kinds), [1] * len(kinds)]


@pytest.mark.parametrize("kind", ["tinyint", "int", "bigint", "boolean", "decimal(9,2)", "float"])
def test_labels_and_weights_of_any_numeric_type_are_doubles(spark, kind):
    df = spark.range(2).selectExpr("array(1D) x", f"cast(id as {kind}) y")
    with Blocks.of(df, "x", label="y", weight="y") as blocks:
        _, y, w, *_ = collected(blocks)
    assert y.dtype == w.dtype == np.float64
    assert y.tolist() == w.tolist() == [0, 1]


def test_without_a_weight_column_weights_are_ones(spark):
    with Blocks.of(frame(spark, 30, 2), "x") as blocks:
        _, y, w, ids, _, _ = collected(blocks)
        assert blocks.weight_sum == 30
    assert w.tolist() == [1] * 30
    assert len(y) == 0
    assert ids == []


@pytest.mark.parametrize("kind", ["bigint", "int", "string"])
def test_ids_arrive_in_the_order_of_the_rows(spark, kind):
    df = frame(spark, 25_000, 3).withColumn("id", F.col("id").cast(kind))
    with Blocks.of(df, "x", id="id") as blocks:
        ids = collected(blocks)[3]
    as_kind = str if kind == "string" else int
    assert ids == [as_kind(i) for i in range(25_000)]


@pytest.mark.parametrize("names", [["a.b", "a b", "a`b"], ["x0", "y", "w"], ["Ä", "'", '"']])
def test_columns_with_any_name_are_found(spark, names):
    df = spark.range(10).selectExpr("array(cast(id as double))", "id", "id + 1").toDF(*names)
    x, y, w = names
    with Blocks.of(df, x, label=y, weight=w, id=y) as blocks:
        X, labels, weights, ids, _, _ = collected(blocks)
    assert X[:, 0].tolist() == labels.tolist() == ids == list(range(10))
    assert weights.tolist() == list(range(1, 11))
    with Blocks.of(df, [y, w]) as blocks:
        assert collected(blocks)[0].tolist() == [[i, i + 1] for i in range(10)]


# --- sizes ------------------------------------------------------------------------------------


def test_blocks_of_a_partition_come_in_row_order_with_their_start(spark):
    df = frame(spark, 150_000, 2, d=20)  # 75,000 rows a partition: 8 Arrow batches, 3 blocks
    with Blocks.of(df, "x", id="id") as blocks:
        _, _, _, ids, where, _ = collected(blocks)
        assert [h.n_rows for h in blocks.handles] == [75_000, 75_000]
    assert ids == list(range(150_000))
    assert {p for p, _, _ in where} == {0, 1}
    assert len(where) > 4
    for p in (0, 1):
        sizes = [n for q, _, n in where if q == p]
        assert [start for q, start, _ in where if q == p] == [0, *np.cumsum(sizes)[:-1]]


@pytest.mark.parametrize(("n", "d"), [(50_000, 1), (300, 5_000)])
def test_one_feature_and_five_thousand(spark, n, d):
    df = spark.range(0, n, 1, 2).selectExpr(
        f"transform(sequence(1, {d}), j -> cast((id + j) % 7 as double)) x", "id"
    )
    expected = ((np.arange(n)[:, None] + np.arange(1, d + 1)) % 7).sum(axis=0)
    with Blocks.of(df, "x") as blocks:
        found, rows = blocks.sum(total)
        assert blocks.n_features == d
        assert rows == n
    np.testing.assert_array_equal(found, expected)


def peak_memory(block):
    import resource

    assert not isinstance(block.X, np.ndarray)
    columns = np.asarray(block.X.sum(axis=0))
    return columns, block.X.nnz, [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]


def test_a_million_sparse_features_never_become_dense(spark):
    """2,000 rows would be 16 GB as doubles."""
    d = 1_000_000
    vectors = [Vectors.sparse(d, [i, i + 1, d - 1], [1.0, 2.0, 3.0]) for i in range(2_000)]
    with Blocks.of(vector_frame(spark, vectors, 2), "features") as blocks:
        assert blocks.sparse
        assert blocks.n_features == d
        columns, nnz, peaks = blocks.reduce(peak_memory, add_columns)
    assert nnz == 6_000
    assert columns[d - 1] == 6_000
    assert columns[0] == 1
    assert columns[1:2_000].tolist() == [3] * 1_999
    assert max(peaks) < 1 << 20, "kilobytes"


def columns_of_one(block):
    return block.widened(np.asarray(block.narrow.sum(axis=0))), block.n


@pytest.mark.parametrize("merge", [None, add_columns])
def test_a_partition_sends_no_zeros_of_columns_that_it_does_not_have(spark, merge):
    d = 100_000
    vectors = [Vectors.sparse(d, [i, d - 1], [1.0, -2.0]) for i in range(40)]
    with Blocks.of(vector_frame(spark, vectors, 4), "features") as blocks:
        sums, n = blocks._round(columns_of_one, merge, ())
        assert blocks.drain()[0].bytes_up < 4_000
    assert n == 40
    assert sums.shape == (d,)
    assert sums[:40].tolist() == [1.0] * 40
    assert sums[d - 1] == -80.0
    assert np.count_nonzero(sums) == 41


def own_columns(block):
    narrow = block.X[:, block.columns]
    assert (block.narrow != narrow).nnz == 0
    return (np.unique(block.X.indices),), [(block.columns, block.X.shape[1])]


def concatenated(left, right):
    return left[0] + right[0], left[1] + right[1]


def test_wide_sparse_blocks_know_the_columns_that_they_store(spark):
    d = WIDE
    vectors = [Vectors.sparse(d, [i, i + 50, d - 1], [1.0, 2.0, 3.0]) for i in range(40)]
    with Blocks.of(vector_frame(spark, vectors, 3), "features") as blocks:
        expected, found = blocks.reduce(own_columns, concatenated)
    assert len(found) == 3
    for columns, (own, width) in zip(expected, found, strict=True):
        assert own.tolist() == columns.tolist()
        assert width == d
        assert len(own) < 100
    narrower = [Vectors.sparse(d - 1, [i], [1.0]) for i in range(4)]
    with Blocks.of(vector_frame(spark, narrower, 1), "features") as blocks:
        assert blocks.reduce(stored_columns, concatenated)[0] == [None]


def stored_columns(block):
    return [block.columns], []


@pytest.mark.parametrize("limit", [1, 7])
def test_small_arrow_batches_give_the_same_blocks(spark, limit):
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", limit)
    try:
        with Blocks.of(frame(spark, 200, 2), "x", label="y", id="id") as blocks:
            X, y, _, ids, where, _ = collected(blocks)
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    expected = numpy_frame(200)
    np.testing.assert_allclose(X, expected[0], rtol=1e-14)
    np.testing.assert_allclose(y, expected[1], rtol=1e-14)
    assert ids == list(range(200))
    assert where == [(0, 0, 100), (1, 0, 100)]


def test_data_behind_a_shuffle_under_adaptive_execution(spark):
    assert spark.conf.get("spark.sql.adaptive.enabled") == "true"
    left = frame(spark, 2_000, 3).withColumn("key", F.col("id") % 10)
    grouped = left.groupBy("key").agg(F.sum("y").alias("total"), F.count("y").alias("n"))
    joined = left.join(F.broadcast(grouped), "key").repartition(5, "key")
    with Blocks.of(grouped, ["total", "n"]) as blocks:
        assert blocks.sum(total)[0] == pytest.approx([numpy_frame(2_000)[1].sum(), 2_000])
    with Blocks.of(joined, ["y", "n"]) as blocks:
        first = blocks.sum(total)
        assert first[0] == pytest.approx([numpy_frame(2_000)[1].sum(), 2_000 * 200])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataChangedWarning)  # another order is allowed here
            lose_handles(spark, blocks)
            again = blocks.sum(total)
        assert again[0] == pytest.approx(first[0])
        assert again[1] == first[1] == 2_000


# --- small data on the driver, and the round that runs ahead ------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
def test_small_data_give_the_same_bits_on_the_driver(spark, sparse):
    if sparse:
        _, vectors = sparse_rows(900, 12, np.random.default_rng(1))
        df = vector_frame(spark, vectors, 3).selectExpr("features x", "1.5D y", "2D w", "7L id")
    else:
        df = frame(spark, 1_000, 5, empty=1)
    given: Any = {"label": "y", "weight": "w", "id": "id"}
    with (
        Blocks.of(df, "x", **given) as there,
        Blocks.of(df, "x", **given, driver_bytes=1 << 20) as here,
    ):
        assert (there.on_driver, here.on_driver) == (False, True)
        assert not any(os.path.exists(handle.path) for handle in here.handles if handle.path)
        assert here.drain() == (), "no round of the user's"
        for ours, theirs in zip(collected(here), collected(there), strict=True):
            np.testing.assert_equal(ours, theirs)
        for ours, theirs in zip(here.sum(moments), there.sum(moments), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        _, here_round = here.drain()
        _, there_round = there.drain()
        assert [p.rows for p in here_round.partitions] == [p.rows for p in there_round.partitions]
        assert (here_round.bytes_down, here_round.bytes_up) == (0, 0)
        with pytest.raises(ValueError, match="read-only"):
            here.sum(overwriting)
    with pytest.raises(RuntimeError, match="the blocks are closed"):
        here.sum(count)


def overwriting(block):
    (block.X if isinstance(block.X, np.ndarray) else block.X.data)[:] = 0.0
    return (0,)


def test_data_above_the_limit_stay_on_the_executors(spark):
    df = frame(spark, 1_000, 2)
    with Blocks.of(df, "x") as blocks:
        n_bytes = sum(handle.n_bytes for handle in blocks.handles)
    for limit, expected in ((n_bytes - 1, False), (n_bytes, True)):
        with Blocks.of(df, "x", driver_bytes=limit) as blocks:
            assert blocks.on_driver is expected
            assert blocks.sum(count) == (1_000,)


@pytest.mark.parametrize("driver_bytes", [0, 1 << 20])
def test_the_round_that_ran_ahead_costs_no_job_and_gives_the_same(spark, driver_bytes):
    df = frame(spark, 100_000, 5, empty=1)
    given: Any = {"label": "y", "weight": "w"}
    with (
        Blocks.of(df, "x", **given) as later,
        Blocks.of(
            df, "x", **given, driver_bytes=driver_bytes, ahead=(moments, add_columns)
        ) as ahead,
    ):
        first = ahead.reduce(moments, add_columns)
        assert ahead.drain() == ()
        for ours, theirs in zip(first, later.reduce(moments, add_columns), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert ahead.sum(count) == (100_000,), "other rounds are as ever"
        assert len(ahead.drain()) == 1


def wide(block):
    return (np.full(100_000, block.n),)


def test_an_answer_too_long_to_ride_with_a_handle_takes_a_round(spark):
    with Blocks.of(frame(spark, 100, 2), "x", ahead=(wide, None)) as blocks:
        assert blocks.sum(wide)[0].tolist() == [100] * 100_000
        assert len(blocks.drain()) == 1


def test_what_ran_ahead_is_that_of_the_rows_after_a_rebuild(spark, source):
    df, state = source
    with Blocks.of(df, "x", ahead=(count, None)) as blocks:
        assert blocks.sum(count) == (400,)
        state.write_text("short")
        lose_handles(spark, blocks)
        with pytest.warns(DataChangedWarning):
            blocks.sum(total)
        blocks.drain()
        assert blocks.sum(count) == (396,)
        assert blocks.drain() == ()


# --- reports and reduce -----------------------------------------------------------------------


def slow_in_the_first(block, *parameters):
    if block.partition == 0:
        time.sleep(0.3)
    return (block.n,)


def test_rows_bytes_and_seconds_of_every_partition_come_back(spark):
    df = spark.range(0, 1_000, 1, 4).selectExpr("id", "array(1D, 2D) x")
    df = df.filter("id < 700 or id % 10 = 0").filter("id < 500 or id >= 750")  # 250, 250, 0, 25
    with Blocks.of(df, "x") as blocks:
        assert blocks.drain() == ()
        for _ in range(2):
            blocks.sum(slow_in_the_first, LARGE)
        first, second = blocks.drain()
        assert blocks.drain() == ()
        assert blocks.sum(count) == (525,)
        (third,) = blocks.drain()
        blocks.sum(count, np.eye(1, 10_000)[0])  # all zeros but one
        (of_zeros,) = blocks.drain()
        sizes = [os.path.getsize(h.path) if h.path else 0 for h in blocks.handles]
    assert [p.partition for p in first.partitions] == [0, 1, 2, 3]
    assert [p.rows for p in first.partitions] == [250, 250, 0, 25], "skew is visible"
    assert [p.bytes for p in first.partitions] == sizes
    seconds = [p.seconds for p in second.partitions]
    assert 0.3 <= seconds[0] < second.seconds
    assert 0 <= max(seconds[1:]) < 0.3
    assert all(p.host for p in first.partitions)
    assert first.bytes_down >= 2 * LARGE.nbytes
    assert third.bytes_down < of_zeros.bytes_down < 1_000
    assert third.bytes_up == 3 * 8


def test_reduce_joins_in_the_order_of_the_rows(spark):
    with Blocks.of(frame(spark, 20_000, 7, empty=2), "x", id="id") as blocks:
        for _ in range(3):
            assert collected(blocks)[3] == list(range(20_000))


def test_reduce_of_one_block_is_the_stage_alone(spark):
    with Blocks.of(frame(spark, 5, 1), "x", id="id") as blocks:
        assert blocks.reduce(count, failing) == (5,)


def test_parameters_arrive_as_they_were_sent(spark):
    def echo(block, *parameters):
        return parameters

    zeros = np.zeros(3, np.float32), np.zeros((2, 3)), np.zeros(0), np.full(9, None)
    few = np.zeros(40, np.float32), np.zeros(40, np.int64)
    few[0][[3, 39]] = np.float32(1) / 3, np.nan
    few[1][0] = -(1 << 60)
    parameters = (np.arange(3.0), {"a": (1, "b")}, None, np.float32(2), *zeros, *few, LARGE)
    with Blocks.of(frame(spark, 5, 1), "x") as blocks:
        for sent in (parameters, parameters[:-1], ()):
            found = blocks.reduce(echo, concatenate, *sent)
            assert str(found) == str(sent)
            assert [type(value) for value in found] == [type(value) for value in sent]
            for one, other in zip(found, sent, strict=True):
                np.testing.assert_array_equal(one, other)
                assert getattr(one, "dtype", None) == getattr(other, "dtype", None)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (ValueError, {"features": "X"}, "features column 'X': expected one of .* mean 'x'"),
        (ValueError, {"label": "yy"}, "label column 'yy': .*found no such.*mean 'y'"),
        (ValueError, {"weight": "weigth"}, "weight column 'weigth'.* mean 'weight'"),
        (ValueError, {"id": "idd"}, "id column 'idd': .* mean 'id'"),
        (ValueError, {"features": []}, "at least one column name, found none"),
        (TypeError, {"features": "s"}, "features column 's': expected a vector.* found string"),
        (TypeError, {"features": ["y", "s"]}, "features column 's': .*numeric.* found string"),
        (TypeError, {"label": "s"}, "label column 's': expected a numeric type, found string"),
        (TypeError, {"weight": "x"}, "weight column 'x': .* found array<double>"),
    ],
)
def test_a_wrong_column_is_refused_before_any_job(spark, error, arguments, message):
    df = frame(spark, 10, 2).withColumn("s", F.lit("text")).withColumn("weight", F.lit(1))
    tracker = spark.sparkContext.statusTracker()
    jobs = len(tracker.getJobIdsForGroup())
    with pytest.raises(error, match=message):
        Blocks.of(df, **{"features": "x", **arguments})
    assert len(tracker.getJobIdsForGroup()) == jobs


NAN, INF = "double('nan')", "double('inf')"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("x", f"array(1, {NAN})", "features column 'x', element 1: .*finite.* found nan"),
        ("x", f"array(-{INF}, 1)", "features column 'x', element 0: .*finite.* found -inf"),
        ("x", "null", "features column 'x': expected a vector in every row, found null"),
        ("x", "array(1, null)", "features column 'x', element 1: .* found null"),
        ("x", "array(1)", "features column 'x': expected vectors of length 2, found length 1"),
        ("x", "array()", "features column 'x': expected vectors of length 2, found length 0"),
        ("y", NAN, "label column 'y': expected finite numbers, found nan"),
        ("y", INF, "label column 'y': expected finite numbers, found inf"),
        ("y", "null", "label column 'y': expected finite numbers, found null"),
        ("w", "-1", "weight column 'w': expected finite numbers of 0 or more, found -1"),
        ("w", NAN, "weight column 'w': expected finite numbers of 0 or more, found nan"),
        ("w", "null", "weight column 'w': expected finite numbers of 0 or more, found null"),
        ("id", "null", "id column 'id': expected an id in every row, found null"),
    ],
)
def test_a_bad_row_is_refused_with_its_column_and_place(spark, leftovers, column, value, message):
    df = spark.range(0, 40_000, 1, 2).selectExpr("id", "array(1D, 2D) x", "1D y", "1D w")
    changed = F.expr(f"if(id = 35007, {value}, {column})")
    if column == "x":
        changed = changed.cast("array<double>")
    with pytest.raises(ValueError, match=message) as error:
        Blocks.of(df.withColumn(column, changed), "x", label="y", weight="w", id="id")
    assert "(partition 1, row 15007)" in str(error.value)
    assert not leftovers.block_files()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "features column 'features': .* found null"),
        (Vectors.dense([1.0, np.nan, 3.0]), "element 1: expected finite numbers, found nan"),
        (Vectors.sparse(3, [2], [np.inf]), "element 2: expected finite numbers, found inf"),
        (Vectors.sparse(4, [2], [1.0]), "vectors of length 3, found length 4"),
        (Vectors.dense([1.0]), "vectors of length 3, found length 1"),
    ],
)
@pytest.mark.parametrize("good", [Vectors.dense([1.0, 2.0, 3.0]), Vectors.sparse(3, [0], [1.0])])
def test_a_bad_vector_is_refused_among_dense_and_sparse_rows(spark, good, bad, message):
    with pytest.raises(ValueError, match=message):
        Blocks.of(vector_frame(spark, [good, good, bad]), "features")


def test_a_bad_value_in_a_list_of_columns_names_its_column(spark):
    df = spark.range(10).selectExpr("double(id) a", "if(id = 5, null, id) b", "ln(id) + 1D c")
    with pytest.raises(ValueError, match=r"features column 'b': .* found null"):
        Blocks.of(df, ["a", "b"])
    df = df.selectExpr("a", f"if(a = 5, {NAN}, a) c")
    with pytest.raises(ValueError, match=r"features column 'c': .* found nan"):
        Blocks.of(df, ["a", "c"])


def test_vectors_of_another_length_in_another_partition_are_refused(spark):
    df = spark.range(0, 10, 1, 2).selectExpr("if(id < 5, array(1D, 2D), array(1D)) x")
    message = "'x': .*one length, found length 2 in partition 0 and 1 in"
    three = spark.range(0, 10, 1, 2).selectExpr("if(id < 5, array(1D, 2D, 3D), array(1D, 2D)) x")
    with pytest.raises(ValueError, match=r"'x': .*one length, found length 3 in partition 0 and 2"):
        Blocks.of(three, "x", ahead=(total, None))
    with pytest.raises(ValueError, match=message):
        Blocks.of(df, "x")


def test_weights_that_are_all_zero_are_refused(spark):
    df = frame(spark, 10, 2).withColumn("w", F.lit(0.0))
    with pytest.raises(ValueError, match="'w': expected a weight above 0, found none"):
        Blocks.of(df, "x", weight="w")


def test_some_weights_of_zero_are_accepted(spark):
    df = frame(spark, 10, 2).withColumn("w", F.expr("if(id = 3, 2D, 0D)"))
    with Blocks.of(df, "x", weight="w") as blocks:
        assert (blocks.weight_sum, blocks.n_rows) == (2, 10)


@pytest.mark.parametrize(
    "empty",
    [
        lambda spark: spark.range(0, 0).selectExpr("array(1D) x"),
        lambda spark: spark.range(0, 10, 1, 3).filter("id < 0").selectExpr("array(1D) x"),
        lambda spark: spark.createDataFrame([], "x array<double>"),
        lambda spark: vector_frame(spark, []).withColumnRenamed("features", "x"),
    ],
)
def test_no_rows_are_refused(spark, empty):
    with pytest.raises(ValueError, match="features column 'x': expected at least one row"):
        Blocks.of(empty(spark), "x")


def test_vectors_without_elements_are_refused(spark):
    with pytest.raises(ValueError, match="at least one feature, found vectors of length 0"):
        Blocks.of(spark.range(3).selectExpr("cast(array() as array<double>) x"), "x")


def test_local_encryption_is_refused(spark):
    spark.conf.set("spark.sql.legacy.setCommandRejectsSparkCoreConfs", "false")
    try:
        spark.conf.set("spark.io.encryption.enabled", "true")
        with pytest.raises(RuntimeError, match=r"encryption.enabled: expected false, found true"):
            Blocks.of(frame(spark, 10, 2), "x")
    finally:
        spark.conf.unset("spark.io.encryption.enabled")
        spark.conf.unset("spark.sql.legacy.setCommandRejectsSparkCoreConfs")


def test_a_streaming_frame_is_refused(spark):
    stream = spark.readStream.format("rate").load().selectExpr("array(1D) x")
    with pytest.raises(ValueError, match=r"batch DataFrame .* found a streaming one"):
        Blocks.of(stream, "x")
