from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from mllib_ext import blockfile
from mllib_ext.blockfile import BLOCK_BYTES, Handle, Layout, _Writer, read_blocks, write_partition
from mllib_ext.columns import Features

SINGLES = Features("array", ("x",), "float32")
DOUBLES = Features("array", ("x",), "float64")
VECTORS = Features("vector", ("x",), "float64")


def layout(features=DOUBLES, sparse=False, label=None, weight=None, id=None):
    return Layout(features, sparse, label, weight, id, "mllib_ext-test")


def arrow(X, *others):
    """The rows of a dense or CSR matrix, and further columns, as Spark's Arrow carries them."""
    if isinstance(X, np.ndarray):
        offsets = np.arange(0, X.size + 1, X.shape[1], dtype=np.int32)
        columns = [pa.ListArray.from_arrays(offsets, X.ravel())]
    else:
        sizes = pa.array(np.full(X.shape[0], X.shape[1], dtype=np.int32))
        offsets = X.indptr.astype(np.int32)
        columns = [sizes] + [pa.ListArray.from_arrays(offsets, v) for v in (X.indices, X.data)]
    columns += [pa.array(column) for column in others]
    return pa.RecordBatch.from_arrays(columns, [f"c{i}" for i in range(len(columns))])


def batches(batch, size):
    return [batch.slice(i, size) for i in range(0, batch.num_rows, size)]


def written(tmp_path, layout, *parts):
    writer = _Writer(layout, tmp_path / "blocks.arrow")
    for part in parts:
        writer.add(part)
    writer.close()
    return writer


def handle(path):
    return Handle(3, "", str(path), 0, 0, 0.0, 0, 0.0, 0, 0, False, "")


def blocks_of(tmp_path, layout, *parts):
    written(tmp_path, layout, *parts)
    return list(read_blocks(handle(tmp_path / "blocks.arrow")))


def test_a_block_knows_its_file_and_what_is_made_of_it_has_none(tmp_path):
    (block,) = blocks_of(tmp_path, layout(), arrow(np.ones((3, 2))))
    assert (block.file, block.start) == (str(tmp_path / "blocks.arrow"), 0)
    assert replace(block, X=block.X[:2]).file == ""


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# --- what comes back --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1_000, 9_999, 10_000, 100_000])
@pytest.mark.parametrize("features", [SINGLES, DOUBLES])
def test_dense_rows_come_back_in_their_order_whatever_the_batches(tmp_path, rng, features, size):
    X = rng.standard_normal((45_000, 30)).astype(features.dtype)
    y, w, id = rng.random(45_000), rng.random(45_000), np.arange(45_000)
    full = layout(features, label="y", weight="w", id="id")
    found = blocks_of(tmp_path, full, *batches(arrow(X, y, w, id), size))
    assert len(found) > 1
    assert {block.X.dtype for block in found} == {np.dtype(features.dtype)}
    assert {block.partition for block in found} == {3}
    starts = np.cumsum([0] + [block.n for block in found])
    assert [block.start for block in found] == starts[:-1].tolist()
    for name, expected in (("X", X), ("y", y), ("w", w), ("id", id)):
        np.testing.assert_array_equal(
            np.concatenate([getattr(block, name) for block in found]), expected
        )


@pytest.mark.parametrize("size", [700, 10_000, 400_000])
def test_sparse_rows_come_back_in_their_order_whatever_the_batches(tmp_path, rng, size):
    X = sp.random_array((300_000, 50), density=0.05, format="csr", rng=rng)
    full = layout(VECTORS, sparse=True, label="y")
    found = blocks_of(tmp_path, full, *batches(arrow(X, np.arange(300_000.0)), size))
    assert len(found) > 1
    assert all(isinstance(block.X, sp.csr_array) for block in found)
    assert (sp.vstack([block.X for block in found]) != X).nnz == 0
    np.testing.assert_array_equal(np.concatenate([block.y for block in found]), range(300_000))
    np.testing.assert_array_equal(np.concatenate([block.w for block in found]), 1.0)


# For 1,000 columns as many rows as make the Gram matrix of a block small beside it.
@pytest.mark.parametrize(
    ("d", "most"), [(1, 32_768), (100, 2_621), (1_000, 4_000), (5_000, 64), (100_000, 64)]
)
def test_a_dense_block_holds_a_few_megabytes(tmp_path, d, most):
    X = np.ones((3 * most, d))
    found = blocks_of(tmp_path, layout(), *batches(arrow(X), 10_000))
    assert sum(block.n for block in found) == len(X)
    assert all(most / 2 <= block.n <= most for block in found[:-1])
    assert most in (64, 4 * d) or found[0].X.nbytes <= BLOCK_BYTES


@pytest.mark.parametrize("sparse", [False, True])
def test_blocks_are_as_large_as_asked_for(tmp_path, rng, sparse):
    X = sp.random_array((20_000, 50), density=0.2, format="csr", rng=rng)
    whole = layout(VECTORS, sparse=True) if sparse else layout()
    asked = replace(whole, block_bytes=100_000)
    found = blocks_of(tmp_path, asked, *batches(arrow(X if sparse else X.toarray()), 3_000))
    assert sum(block.n for block in found) == 20_000
    sizes = [12 * block.X.nnz if sparse else block.X.nbytes for block in found[:-1]]
    assert min(sizes) > 40_000
    assert max(sizes) < 110_000


def test_a_wide_csr_block_has_as_many_values_as_its_sums(tmp_path, rng):
    X = sp.random_array((60_000, 1_000_000), density=2e-5, format="csr", rng=rng)  # 20 a row
    found = blocks_of(tmp_path, layout(VECTORS, sparse=True), *batches(arrow(X), 10_000))
    # 16 MB of values and indices, 32 MB of sums a block
    assert [block.X.shape for block in found] == [X.shape]
    assert os.path.getsize(tmp_path / "blocks.arrow") < 16 * X.nnz


def test_rows_without_label_weight_and_id_have_unit_weights_and_empty_arrays(tmp_path):
    (block,) = blocks_of(tmp_path, layout(), arrow(np.ones((5, 2))))
    assert block.w.tolist() == [1] * 5
    assert block.y.shape == block.id.shape == (0,)


def test_a_string_id_comes_back(tmp_path):
    batch = arrow(np.ones((4, 2)), ["a", "ß", "", "d"])
    (block,) = blocks_of(tmp_path, layout(id="id"), batch.slice(0, 1), batch.slice(1))
    assert block.id.tolist() == ["a", "ß", "", "d"]


def test_no_stage_can_write_into_a_block(tmp_path):
    dense = blocks_of(tmp_path, layout(label="y"), arrow(np.ones((5, 2)), np.ones(5)))[0]
    X = sp.csr_array(np.eye(5))
    sparse = blocks_of(tmp_path, layout(VECTORS, sparse=True), arrow(X))[0]
    for array in (dense.X, dense.y, dense.w, sparse.X.data, sparse.X.indices, sparse.w):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2


def test_a_block_outlives_the_file_it_came_from(tmp_path):
    (block,) = blocks_of(tmp_path, layout(), arrow(np.arange(10.0).reshape(5, 2)))
    (tmp_path / "blocks.arrow").unlink()
    assert block.X.sum() == 45


def test_a_missing_file_is_told_as_such(tmp_path):
    with pytest.raises(FileNotFoundError):
        next(read_blocks(handle(tmp_path / "nowhere.arrow")))


def test_a_partition_without_rows_has_no_blocks():
    assert list(read_blocks(handle(""))) == []


def test_a_file_larger_than_the_address_space_left_is_read(tmp_path):
    """spark.executor.pyspark.memory limits the address space of a worker, maps included."""
    X = np.ones((40_000, 500))  # 160 MB
    written(tmp_path, layout(), *batches(arrow(X), 10_000))
    code = """if True:
        import resource, sys
        import pyarrow as pa
        from mllib_ext.blockfile import Handle, read_blocks
        path = sys.argv[1]
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + (100 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            pa.memory_map(path)
        except OSError:
            handle = Handle(0, "", path, 0, 0, 0.0, 0, 0.0, 0, 0, False, "")
            print(sum(block.X.sum() for block in read_blocks(handle)))
    """
    path = str(tmp_path / "blocks.arrow")
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (out.stdout.strip(), out.stderr) == ("20000000.0", "")


# --- checksums --------------------------------------------------------------------------------


def sums(tmp_path, layout, *parts):
    writer = written(tmp_path, layout, *parts)
    return writer.ordered, writer.unordered


@pytest.mark.parametrize("features", [SINGLES, DOUBLES, VECTORS])
def test_checksums_tell_the_same_rows_from_another_order_and_from_other_rows(
    tmp_path, rng, features
):
    sparse = features is VECTORS
    full = layout(features, sparse, label="y", weight="w", id="id")

    def batch(X, y, w, id):
        return arrow(sp.csr_array(X) if sparse else X.astype(features.dtype), y, w, id)

    n = 300
    X, y, w = rng.integers(0, 2, (n, 8)), rng.random(n), rng.random(n)
    id = np.arange(n)
    X = X.astype(float)
    known = sums(tmp_path, full, batch(X, y, w, id))
    assert sums(tmp_path, full, *batches(batch(X, y, w, id), 7)) == known
    order = rng.permutation(n)
    ordered, unordered = sums(tmp_path, full, batch(X[order], y[order], w[order], id[order]))
    assert ordered != known[0]
    assert unordered == known[1]
    changed = [[a.copy() for a in (X, y, w, id)] for _ in range(5)]
    changed[0][0][17, 3] = 1 - X[17, 3]  # one feature of one row
    changed[1][1][17] = np.nextafter(y[17], 2)  # the last bit of a label
    changed[2][2][17] = 0.0
    changed[3][3][17] = 9_999
    changed[4][1][[17, 18]] = y[[18, 17]]  # labels change places
    for rows in changed:
        ordered, unordered = sums(tmp_path, full, batch(*rows))
        assert ordered != known[0]
        assert unordered != known[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_two_of_many_rows_of_zeros_and_ones_have_the_same_mark(dtype):
    """The bits of small integers end in zeros, and a product only carries bits upwards."""
    X = ((np.arange(1 << 11)[:, None] >> np.arange(11)) & 1).astype(dtype)  # all of 11 bits
    codes = blockfile._odd_codes(np.arange(11), X.dtype)
    dense = blockfile._row_marks(X, codes)
    # 2,048 marks of 32 bits: half a chance in a thousand that any two are equal, once and for all.
    assert len(np.unique(dense)) == len(X)
    np.testing.assert_array_equal(blockfile._row_marks(sp.csr_array(X), codes), dense)
    np.testing.assert_array_equal(blockfile._row_marks(sp.csr_array(X), None), dense)


# --- a partition ------------------------------------------------------------------------------


@pytest.fixture
def disks(tmp_path, monkeypatch):
    """Local directories like an executor's, and partition 5."""
    paths = [tmp_path / "disk0", tmp_path / "disk1"]
    monkeypatch.setenv("SPARK_LOCAL_DIRS", ",".join(map(str, paths)))
    task = SimpleNamespace(partitionId=lambda: 5)
    monkeypatch.setattr(blockfile, "TaskContext", SimpleNamespace(get=lambda: task))
    return paths


def files(disks):
    return [path for disk in disks for path in disk.rglob("*") if path.is_file()]


def the_handle(layout, parts):
    (batch,) = write_partition(layout, iter(parts))
    (row,) = batch.to_pylist()
    return Handle.of([*row.values()])


def test_a_handle_says_what_was_written(disks):
    X, w = np.arange(12.0).reshape(6, 2), np.arange(6.0)
    found = the_handle(layout(weight="w"), batches(arrow(X, w), 4))
    assert (found.partition, found.n_rows, found.n_features) == (5, 6, 2)
    assert (found.weight_sum, found.sparse, found.fault) == (15.0, False, "")
    assert [str(path) for path in files(disks)] == [found.path]
    assert found.path.startswith(str(disks[1])), "partition 5 of two disks"
    assert found.n_bytes == os.path.getsize(found.path)
    assert 0 < found.seconds < 60


def test_a_second_attempt_with_the_same_rows_leaves_one_file(disks):
    parts = batches(arrow(np.arange(12.0).reshape(6, 2)), 4)
    assert the_handle(layout(), parts).path == the_handle(layout(), parts).path
    assert len(files(disks)) == 1


def test_no_rows_give_a_handle_without_a_file(disks):
    for parts in ([], [arrow(np.empty((0, 2)))]):
        found = the_handle(layout(), parts)
        assert (found.path, found.n_rows, found.n_bytes, found.fault) == ("", 0, 0, "")
    assert files(disks) == []


def test_a_fault_is_told_with_its_row_after_all_input_is_read_and_leaves_no_file(disks):
    X = np.ones((40, 2))
    X[7, 1] = np.nan
    parts = iter(batches(arrow(X), 4))
    found = the_handle(layout(), parts)
    assert next(parts, None) is None
    expected = "features column 'x', element 1: expected finite numbers, found nan"
    assert found.fault == f"{expected} (partition 5, row 7)"
    assert files(disks) == []


def test_an_exception_in_the_source_leaves_no_file(disks):
    def source():
        yield arrow(np.ones((100_000, 10)))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        the_handle(layout(), source())
    assert files(disks) == []
