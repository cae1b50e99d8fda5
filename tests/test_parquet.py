from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark import StorageLevel
from pyspark.errors import PythonException
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import functions as F

from mllib_ext import blocks as blocks_module
from mllib_ext.blockfile import Layout
from mllib_ext.blocks import Blocks
from mllib_ext.columns import Features, number
from mllib_ext.parquet import read_splits
from mllib_ext.scan import plain_scan

# --- stages -----------------------------------------------------------------------------------


def sums(block):
    """A round whose last bits depend on where blocks begin and end."""
    X = block.X
    gram = X.T @ X
    return gram if isinstance(gram, np.ndarray) else gram.toarray(), X.sum(axis=0)


def everything(block):
    """All bits of a block."""
    X = block.X
    parts = (X,) if isinstance(X, np.ndarray) else (X.data, X.indices, X.indptr)
    arrays = [(a.dtype.str, a.shape, a.tobytes()) for a in (*parts, block.y, block.w)]
    return ([(block.partition, block.start, arrays, block.id.tolist())],)


def both(left, right):
    return (left[0] + right[0],)


# --- data -------------------------------------------------------------------------------------

ROWS = 2400


def vector(i, kind):
    values = [np.sin(i + 1.0), np.cos(3.0 * i), i / 7, 0.1 * i]
    if kind == "sparse" or (kind == "mixed" and i % 3):
        return Vectors.sparse(40, [i % 11, 11 + i % 13, 39], values[:3])
    return Vectors.dense(values * 10)


@pytest.fixture(scope="module")
def saved(spark, tmp_path_factory):
    """A directory of four files with several row groups each, in two directories ``p=0, 1``."""
    path = str(tmp_path_factory.mktemp("data") / "a b#c%20é")
    vectors = [F.udf(lambda i, k=k: vector(i, k), VectorUDT())("id").alias(k) for k in KINDS]
    spark.range(0, ROWS, 1, 4).select(
        "id",
        *vectors,
        F.expr("transform(sequence(0, 29), j -> cast(sin(id + j) as float)) floats"),
        F.expr("transform(sequence(0, 29), j -> sin(id * j)) doubles"),
        F.expr("cast(id % 100 as tinyint) a"),
        F.expr("id * 1801439850948197 b"),  # not exact as a double
        F.expr("id % 3 = 0 c"),
        F.expr("cast(sin(id) as float) f"),
        F.expr("cast(cos(id) as float) g"),
        F.expr("cast(id % 2 as int) label"),
        F.expr("1 + sin(id) weight"),
        F.expr("if(id % 5 = 0, null, id % 10) holes"),
        F.expr("concat('n', id % 20) name"),
        F.expr("date_add(date'2000-01-01', cast(id as int)) day"),
        F.expr("cast(id as decimal(10, 2)) exact"),
        F.expr("timestamp_seconds(id) time"),
        F.expr("id div 1200 p"),
    ).write.option("parquet.block.size", 60_000).partitionBy("p").parquet(path)
    return path


KINDS = ["dense", "sparse", "mixed"]


@pytest.fixture(autouse=True)
def small_batches(spark):
    """Partitions of one or a few row groups, and batches that fit to none of them."""
    settings = {
        "spark.sql.files.maxPartitionBytes": "90k",
        "spark.sql.files.openCostInBytes": "0",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "130",
    }
    for name, value in settings.items():
        spark.conf.set(name, value)
    yield
    for name in settings:
        spark.conf.unset(name)


def built(df, features, **columns):
    """What blocks hold and say, and whether pyarrow read them."""
    with Blocks.of(df, features, **columns, ahead=(sums, None)) as blocks:
        first = [array.tobytes() for array in blocks.sum(sums)]
        handles = [astuple(h)[3:] for h in blocks.handles]
        handles = [(*h[:4], *h[5:]) for h in handles]  # without the seconds
        content = blocks.reduce(everything, both)[0]
        return (first, handles, content), blocks._executors._scan is not None


def outcome(df, features, **columns):
    try:
        return built(df, features, **columns)[0]
    except Exception as error:
        return str(error).partition("\n\tat ")[0]  # no two stack traces are the same


@pytest.fixture
def by_spark(monkeypatch):
    """Run a function while no plan counts as a plain scan."""

    def run(function, *args, **columns):
        with monkeypatch.context() as patch:
            patch.setattr(blocks_module, "plain_scan", lambda df, names: None)
            return function(*args, **columns)

    return run


# --- the same blocks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "columns", "rows"),
    [
        ("dense", {"label": "label"}, {}),
        ("sparse", {"label": "label", "weight": "weight", "id": "name"}, {}),
        ("mixed", {"label": "label", "id": "id"}, {}),
        ("floats", {"label": "b", "weight": "c", "id": "c"}, {}),
        ("doubles", {"label": "label", "weight": "label"}, {"p": 1}),
        (["a", "b", "c", "f", "label"], {"label": "label", "id": "f"}, {}),
        (["f", "g"], {}, {}),
    ],
    ids=str,
)
def test_blocks_are_the_same_to_the_bit(spark, saved, by_spark, features, columns, rows):
    df = spark.read.parquet(saved).filter(
        " and ".join(f"{k} = {v}" for k, v in rows.items()) or "true"
    )
    found, by_pyarrow = built(df, features, **columns)
    expected, neither = by_spark(built, df, features, **columns)
    assert found == expected
    assert (by_pyarrow, neither) == (True, False)
    partitions = [partition for partition, *_ in found[2]]
    assert len(set(partitions)) > 3  # or nothing is shown of the splits' order


@pytest.mark.parametrize(
    "condition",
    [
        "id > 500 and id <= 1800 and label = 0",
        "name = 'n7' or false",
        "name in ('n1', 'n2', null)",
        f"id in ({', '.join(map(str, range(0, 3000, 7)))})",
        "c and not (id < 300)",
        "not c",
        "holes is not null and holes < 8",
        "holes >= 0",
        "day > date'2003-01-01' and day < date'2003-02-01'",  # most row groups hold none
        "dense is not null and weight is not null",
        "p = 1 and id >= 1300",
        "id < 0",
    ],
)
def test_filters_keep_the_same_rows(spark, saved, by_spark, condition):
    df = spark.read.parquet(saved).filter(condition)
    df = df.select(F.col("floats").alias("x"), "label").withColumnRenamed("label", "y`")
    assert plain_scan(df, ["x", "y`"]) is not None
    found = outcome(df, "x", label="y`")
    assert found == by_spark(outcome, df, "x", label="y`")


@pytest.mark.parametrize(("rows", "most"), [(130, "64m"), (600, "20k"), (10_000, "1k")])
@pytest.mark.parametrize("features", ["mixed", "floats"])
def test_batches_end_where_spark_ends_them(spark, saved, features, rows, most):
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", rows)
    spark.conf.set("spark.sql.execution.arrow.maxBytesPerBatch", most)
    spark.conf.set("spark.sql.files.maxPartitionBytes", "1m")
    try:
        df = spark.read.parquet(saved).filter("id % 1 = 0 or true")
        names = [features, "weight", "name", "c"]
        scan = plain_scan(df, names)
        assert scan is not None
        resolved = Features.of(df.schema, features)
        layout = Layout(resolved, None, "weight", "c", "name", "")
        sent = [
            *(c.alias(f"x{i}") for i, c in enumerate(resolved.expressions())),
            number(df.schema, "weight", "label"),
            number(df.schema, "c", "weight").alias("w"),
            "name",
        ]
        expected = df.select(*sent).mapInArrow(lengths, "n array<long>").collect()
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxBytesPerBatch")
    found = [[b.num_rows for b in read_splits(layout, scan, s)] for s in scan.partitions]
    assert found == [row.n for row in expected]


def lengths(batches):
    yield pa.RecordBatch.from_pydict({"n": pa.array([[b.num_rows for b in batches]])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doubles": "if(id = 777, array(1D, 2D), doubles)"}, "found length 2 (partition"),
        ({"doubles": "if(id = 777, null, doubles)"}, "found null (partition"),
        ({"doubles": "transform(doubles, v -> if(id = 777, null, v))"}, "found null (partition"),
        (
            {"doubles": "transform(doubles, v -> if(id = 777, double('NaN'), v))"},
            "found nan (partition",
        ),
        ({"label": "if(id = 777, null, label)"}, "label column 'label': expected finite"),
        ({"weight": "if(id = 777, -2D, weight)"}, "found -2.0 (partition"),
        ({"id": "nullif(id, 777)"}, "id column 'id': expected an id in every row"),
    ],
)
def test_a_bad_row_is_told_in_the_same_words(spark, saved, by_spark, tmp_path, change, message):
    changed = {name: F.expr(e) for name, e in change.items()}
    df = spark.read.parquet(saved).select("doubles", "label", "weight", "id").withColumns(changed)
    df.write.option("parquet.block.size", 60_000).parquet(f"{tmp_path}/bad")
    df = spark.read.parquet(f"{tmp_path}/bad")
    columns = {"label": "label", "weight": "weight", "id": "id"}
    found = outcome(df, "doubles", **columns)
    assert message in found
    assert found == by_spark(outcome, df, "doubles", **columns)


def test_a_null_among_columns_is_told_in_the_same_words(spark, saved, by_spark):
    df = spark.read.parquet(saved)
    found = outcome(df, ["f", "holes", "c"])
    assert "features column 'holes': expected a number in every row, found null" in found
    assert found == by_spark(outcome, df, ["f", "holes", "c"])


def test_files_that_pyarrow_wrote_are_read_alike(spark, by_spark, tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "x": pa.array(list(rng.integers(0, 9, (500, 7)).astype(float))),
            "y": pa.array(rng.integers(0, 2, 500).astype(bool)),
            "n": pa.array([f"é{i % 9}" for i in range(500)]),
        }
    )
    pq.write_table(table, tmp_path / "one.parquet", row_group_size=90, data_page_version="2.0")
    pq.write_table(table, tmp_path / "two.parquet", compression="zstd", version="1.0")
    df = spark.read.parquet(str(tmp_path)).filter("n > 'é2'")
    found, by_pyarrow = built(df, "x", label="y", id="n")
    assert by_pyarrow
    assert found == by_spark(built, df, "x", label="y", id="n")[0]


def test_lost_block_files_are_written_again_from_parquet(spark, saved):
    with Blocks.of(spark.read.parquet(saved), "mixed", label="label") as blocks:
        before = blocks.reduce(everything, both)
        jobs = blocks._executors
        for handles in (jobs._grouped, jobs._handles):  # as when an executor ends
            handles.unpersist(blocking=True)
            handles.persist(StorageLevel.MEMORY_AND_DISK)
        for handle in blocks.handles:
            Path(handle.path).unlink()
        assert blocks.reduce(everything, both) == before  # by lineage
        Path(blocks.handles[2].path).unlink()
        assert blocks.reduce(everything, both) == before  # by a rebuild
        assert jobs._scan is not None


# --- left to Spark ----------------------------------------------------------------------------


def joined(df):
    return df.join(df.select("id").filter("id < 100"), "id")


def bucketed(df):
    df.limit(50).write.bucketBy(2, "id").mode("overwrite").saveAsTable("mllib_ext_bucketed")
    return df.sparkSession.table("mllib_ext_bucketed")


def as_json(df):
    path = f"{df.sparkSession.conf.get('spark.sql.warehouse.dir')}/json"
    df.select("doubles", "label", "id").write.mode("overwrite").json(path)
    return df.sparkSession.read.schema("doubles array<double>, label int, id long").json(path)


PLANS = {
    "cached": lambda df: df.cache(),
    "repartitioned": lambda df: df.repartition(3),
    "coalesced": lambda df: df.coalesce(1),
    "limited": lambda df: df.limit(100),
    "sampled": lambda df: df.sample(0.5, seed=1),
    "sorted": lambda df: df.orderBy("id"),
    "joined": joined,
    "two scans": lambda df: df.union(df),
    "another format": as_json,
    "buckets": bucketed,
    "a computed column": lambda df: df.withColumn("label", F.col("label") + 1),
    "a column of a directory's name": lambda df: df.withColumn("label", F.col("p")),
    "a decimal label": lambda df: df.withColumn("label", F.col("exact")),
    "a timestamp as id": lambda df: df.withColumn("id", F.col("time")),
    "a date as id": lambda df: df.withColumn("id", F.col("day")),
    "a filter of metadata": lambda df: df.filter("_metadata.row_index > 9"),
    "a filter of doubles": lambda df: df.filter("weight > 1"),
    "a filter with or": lambda df: df.filter("id < 9 or id > 99"),
    "a filter of two columns": lambda df: df.filter("id > label"),
    "a filter by a function": lambda df: df.filter("id % 2 = 0"),
    "a filter by a subquery": lambda df: df.filter("id < (select 9 * count(1) from range(9))"),
    "a filter by a collation": lambda df: df.filter("collate(name, 'UTF8_LCASE') = 'N1'"),
    "rows from the driver": lambda df: df.sparkSession.createDataFrame(df.take(9), df.schema),
}


@pytest.mark.parametrize("plan", PLANS)
def test_other_plans_are_read_by_spark(spark, saved, plan):
    df = PLANS[plan](spark.read.parquet(saved))
    assert plain_scan(df, ["doubles", "label", "id"]) is None
    df.unpersist()


def test_rows_of_other_plans_come_through_spark(spark, saved):
    limited = spark.read.parquet(saved).limit(321)
    (_, handles, _), by_pyarrow = built(limited, "doubles", label="label")
    assert not by_pyarrow
    assert sum(handle[0] for handle in handles) == 321


def column(n, **others):
    return pa.table({"x": [[float(i), 1.0] for i in range(n)], **others})


def rewritten(**others):
    return lambda path: pq.write_table(column(50, **others), path)


UNLIKE = {
    "label in capitals": rewritten(Y=list(range(50))),
    "label of another type": rewritten(y=pa.array(range(50), pa.int32())),
    "label twice": rewritten(y=list(range(50)), Y=list(range(50))),
    "no label": rewritten(z=list(range(50))),
    "gone": Path.unlink,
    "broken": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("unlike", UNLIKE)
def test_a_file_unlike_its_plan_is_left_to_spark(spark, by_spark, tmp_path, unlike):
    for name in ("a", "b"):
        pq.write_table(column(60, y=list(range(60))), tmp_path / f"{name}.parquet")
    if "label" in unlike:  # what the plan does not know: it has a schema
        UNLIKE[unlike](tmp_path / "b.parquet")
    df = spark.read.schema("x array<double>, y bigint").parquet(str(tmp_path))
    assert plain_scan(df, ["x", "y"]) is not None
    if "label" not in unlike:
        UNLIKE[unlike](tmp_path / "b.parquet")
    assert outcome(df, "x", label="y") == by_spark(outcome, df, "x", label="y")


def test_a_file_that_got_another_length_is_an_error(spark, tmp_path):
    pq.write_table(column(60), tmp_path / "a.parquet")
    df = spark.read.parquet(str(tmp_path))
    pq.write_table(column(5000), tmp_path / "a.parquet")
    assert df.count() == 0  # Spark looks for row groups where they were
    with pytest.raises(PythonException, match="bytes, as when the DataFrame was made"):
        Blocks.of(df, "x")


def test_a_flipped_bit_does_not_pass(spark, tmp_path):
    path = f"{tmp_path}/data"
    df = spark.range(0, 900, 1, 1).selectExpr("array(sin(id), cos(id)) x")
    df.write.option("compression", "none").parquet(path)
    (file,) = Path(path).glob("*.parquet")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert "FAILED_READ_FILE" in outcome(spark.read.parquet(path), "x")
