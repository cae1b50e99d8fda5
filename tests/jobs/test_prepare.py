"""Preparation: dirty rows are counted and kept aside, never dropped in silence."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.functions import vector_to_array
from pyspark.sql import functions as F

DIRTY = """a,b,when
1,2.5,2020-01-01 00:00:00
2,x,2020-01-02 00:00:00
3,7
4,5,2020-01-03 00:00:00,9
,6,2020-01-04 00:00:00
-1,y,2020-01-05 00:00:00
5,7,2020-01-06 00:00:00
6,,2020-01-07 00:00:00
"""


@pytest.fixture
def dirty(tmp_path):
    (tmp_path / "dirty.csv").write_text(DIRTY)
    return {
        "input": {
            "format": "csv",
            "path": str(tmp_path / "dirty.csv"),
            "schema": "a int NOT NULL, b double, `when` timestamp",
            "options": {"header": True},
            "derive": {"day": "dayofmonth(`when`)"},
        },
        "checks": {"a is positive": "a > 0"},
    }


def test_rows_that_break_the_schema_or_a_check_are_counted_and_kept_aside(run, spark, dirty):
    result = run("prepare", dirty)
    assert result.code == 0, result.err
    side = result.report["inputs"]["input"]
    assert (side["rows"], side["broken"], result.report["rows"]) == (8, 5, 3)
    assert side["reasons"] == {
        "b: not double": 2,
        "the line: not the declared columns": 2,
        "a is positive": 1,
        "a: missing": 1,
    }
    assert "5 of 8 rows are broken: b: not double (2)" in result.err
    data = spark.read.parquet(str(result.path / "data"))
    assert data.dtypes == [("a", "int"), ("b", "double"), ("when", "timestamp"), ("day", "int")]
    assert sorted((r.a, r.b, r.day) for r in data.collect() if r.b) == [(1, 2.5, 1), (5, 7.0, 6)]
    (file,) = (result.path / "quarantine").glob("*.json")
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    both = next(row for row in kept if len(row["reasons"]) == 2)
    assert sorted(both["reasons"]) == ["a is positive", "b: not double"]
    assert json.loads(both["row"])["b"] == "y"  # as it stood in the file
    assert any('"4,5,2020-01-03 00:00:00,9"' in row["row"] for row in kept)


def test_a_sample_may_be_small_and_too_many_broken_rows_are_an_error(run, dirty):
    result = run("prepare", dirty, "--set", "quarantine.sample=2")
    assert result.code == 0, result.err
    (file,) = (result.path / "quarantine").glob("*.json")
    assert len(file.read_text().splitlines()) == 2
    assert result.report["inputs"]["input"]["broken"] == 5

    result = run("prepare", dirty, "--overwrite", "--set", "quarantine.most=0.5")
    assert result.code == 1
    assert "input: expected at most 0.5 of the rows, found 5 of 8 rows are broken" in result.err


def test_inputs_are_united_and_joined_and_clashes_are_refused(run, spark, dirty, tmp_path):
    dirty["input"] = [dirty["input"], dirty["input"]]
    (tmp_path / "names.csv").write_text("b,name\n2.5,two\n7,seven\nzzz,none\n")
    join: dict[str, Any] = {
        "input": {
            "format": "csv",
            "path": str(tmp_path / "names.csv"),
            "schema": "b double, name string",
            "options": {"header": True},
        },
        "by": "b",
        "how": "left",
    }
    result = run("prepare", {**dirty, "join": join})
    assert result.code == 0, result.err
    rows = spark.read.parquet(str(result.path / "data")).collect()
    assert Counter(row["name"] for row in rows) == {"two": 2, "seven": 2, None: 2}
    assert result.report["inputs"]["join.0.input"]["reasons"] == {"b: not double": 1}

    join["input"]["derive"] = {"a": "1"}
    result = run("prepare", {**dirty, "join": join}, "--overwrite")
    assert result.code == 1
    assert "join.0: expected no column but its keys to be there already, found 'a'" in result.err


@pytest.fixture(scope="module")
def people(spark, tmp_path_factory):
    """60 rows: a town for 40 of them, others rare; an age that every sixth lacks."""
    path = str(tmp_path_factory.mktemp("data") / "people.parquet")
    rows = spark.range(60).selectExpr(
        "id",
        "case when id < 40 then 'big' when id < 50 then 'mid' when id < 58 then 'low' "
        "else concat('t', id) end as town",
        "case when id % 6 = 0 then null else cast(id as double) end as age",
        "case when id % 6 = 1 then null else 'x' end as letter",
        "cast(id % 5 = 0 as int) as label",
    )
    rows.coalesce(1).write.parquet(path)
    return {"input": {"format": "parquet", "path": path}}


def test_columns_are_imputed_indexed_and_encoded_and_the_stages_are_saved(run, spark, people):
    encode = {
        "numeric": ["label"],
        "impute": {"age": "median"},
        "categorical": ["town", "letter"],
        "index": ["letter"],
    }
    result = run("prepare", {**people, "encode": encode})
    assert result.code == 2  # a column cannot be one-hot and a label
    assert "encode.index: expected each column once in all of encode" in result.err

    encode["index"] = []
    result = run("prepare", {**people, "encode": encode})
    assert result.code == 0, result.err
    data = spark.read.parquet(str(result.path / "data"))
    rows = {
        r.id: r for r in data.select("*", vector_to_array(F.col("features")).alias("x")).collect()
    }
    ages = [i for i in range(60) if i % 6]
    assert rows[0].x[1] == pytest.approx(np.median(ages), abs=1)  # Spark's median is a row's
    assert rows[1].x[:2] == [0.0, 1.0]
    # five towns and one letter, no column for what is missing
    assert len(rows[0].x) == 1 + 1 + 5 + 1
    assert rows[0].x[2:] == [1, 0, 0, 0, 0, 1]
    assert rows[1].x[2:] == [1, 0, 0, 0, 0, 0]

    stranger = spark.createDataFrame(
        [(99, "nowhere", None, "x", 0)],
        "id long, town string, age double, letter string, label int",
    )
    model = PipelineModel.load(str(result.path / "model"))
    x = model.transform(stranger).first().features.toArray()
    assert list(x[2:]) == [0, 0, 0, 0, 0, 1]

    # later rows are made ready by the same stages
    later = run("predict", {**people, "model": str(result.path)})
    assert later.code == 0, later.err
    again = spark.read.parquet(str(later.path / "predictions"))
    assert {r.id: r.features for r in again.collect()} == {i: list(r.x) for i, r in rows.items()}


@pytest.mark.parametrize(
    ("partition", "fullest"),
    # 60 rows in 4 partitions: balanced does as well as a group of 40 allows
    [
        ({"method": "round-robin", "count": 4}, 15),
        ({"method": "range", "count": 4, "columns": ["id"]}, 25),
        ({"method": "balanced", "count": 4, "columns": ["town"]}, 40),
        ({"method": "balanced", "count": 4, "columns": ["id"]}, 15),
        ({"method": "hash", "count": 4, "columns": ["town"]}, 60),
    ],
)
def test_partitioning_reports_the_skew_before_and_after(run, spark, people, partition, fullest):
    result = run("prepare", {**people, "partition": partition})
    assert result.code == 0, result.err
    before, after = (result.report["partitions"][when] for when in ("before", "after"))
    assert (before["partitions"], before["most"], before["skew"]) == (1, 60, 1.0)
    assert (after["partitions"], after["rows"]) == (4, 60)
    assert after["most"] <= fullest
    assert after["skew"] == pytest.approx(after["most"] * 4 / 60)
    files = [
        {row.town for row in spark.read.parquet(str(file)).collect()}
        for file in (result.path / "data").glob("*.parquet")
    ]
    if partition.get("columns") == ["town"]:  # a town is in one file
        assert sum(map(len, files)) == len(set().union(*files))


@pytest.mark.parametrize(("method", "sizes"), [("over", (48, 48)), ("under", (12, 12))])
def test_classes_are_balanced_by_sampling(run, people, method, sizes):
    result = run("prepare", {**people, "balance": {"column": "label", "method": method}})
    assert result.code == 0, result.err
    classes = result.report["classes"]
    assert classes["before"] == {"0": 48, "1": 12}
    # 48 is 4 times 12: over-sampling draws nothing; under-sampling has a deviation of 3
    tolerance = 0 if method == "over" else 12
    assert [classes["after"][c] for c in "01"] == pytest.approx(sizes, abs=tolerance)
    assert classes["after"]["1"] == sizes[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"checks": {"c": "agee > 0"}},
            "checks.c: expected SQL over the columns, found 'agee > 0'",
        ),
        ({"checks": {"c": "age + 1"}}, "checks.c: expected a condition, found 'age + 1'"),
        ({"checks": {"c": "id < 0"}}, "input: expected whole rows, found 60 of 60 rows are broken"),
        (
            {"encode": {"numeric": ["age"]}},
            "encode.numeric column 'age': expected a number in every",
        ),
        ({"encode": {"numeric": ["town"]}}, "found string; encode.categorical is for text"),
        ({"balance": {"column": "twn", "method": "over"}}, "balance.column column 'twn': expected"),
        ({"columns": ["idd"]}, "columns column 'idd': expected one of"),
        (
            {"partition": {"method": "hash", "count": 2, "columns": ["x"]}},
            "partition.columns column 'x': expected one of",
        ),
    ],
)
def test_what_cannot_be_prepared_is_refused_by_name(run, people, change, message):
    result = run("prepare", {**people, **change})
    assert result.code == 1
    assert message in result.err.splitlines()[-1]
    assert not result.path.exists()


def test_a_header_that_is_not_the_declared_columns_is_refused(run, dirty):
    dirty["input"]["schema"] = "b double, a int NOT NULL, `when` timestamp"
    result = run("prepare", dirty)
    assert result.code == 1
    said = result.err.splitlines()[-1]
    assert said.startswith("error: CSV header does not conform to the schema. Header: a, b, when")
