"""Inputs of jobs: what is read, how several become one, which side of the split a row is on."""

import pytest
from chispa import assert_df_equality
from pyspark.sql import functions as F

from mllib_ext.job import inputs
from mllib_ext.job.config import Source, Split
from mllib_ext.job.split import fold, is_test


def source(**keys):
    return Source.model_validate(keys)


@pytest.mark.parametrize(
    ("dataset", "rows", "features", "labels"),
    [
        ("digits", 1797, 64, 10),
        ("breast_cancer", 569, 30, 2),
        ("diabetes", 442, 10, 214),
        ("iris", 150, 4, 3),
        ("wine", 178, 13, 3),
    ],
)
def test_data_sets_of_scikit_learn_need_no_download(spark, dataset, rows, features, labels):
    df = inputs.read(spark, [source(format="sklearn", dataset=dataset)])
    assert df.columns == ["features", "label"]
    assert df.count() == rows
    assert df.first().features.size == features
    assert df.select("label").distinct().count() == labels


def test_inputs_are_united_by_name(spark, tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text("y,x\n4.5,3.5\n")
    options = {"header": True, "inferSchema": True}
    df = inputs.read(
        spark,
        [source(format="csv", path=f"{tmp_path}/{name}.csv", options=options) for name in "ab"],
    )
    # integers here and doubles there are the same column
    expected = spark.createDataFrame([(1.0, 2.0), (3.5, 4.5)], "x double, y double")
    assert_df_equality(df, expected, ignore_row_order=True, ignore_nullable=True)


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("x,yy", "1,2", r"input\.1: expected a column 'y' as in input\.0, found none.*'yy'"),
        ("x,y,z", "1,2,3", r"input\.1: expected the columns of input\.0, found also 'z'"),
        ("x,y", "1,a", r"input\.1: column 'y': expected int as in input\.0, found string"),
    ],
)
def test_an_input_with_other_columns_is_named(spark, tmp_path, header, row, message):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv").write_text(f"{header}\n{row}\n")
    options = {"header": True, "inferSchema": True}
    sources = [source(format="csv", path=f"{tmp_path}/{n}.csv", options=options) for n in "ab"]
    with pytest.raises(ValueError, match=message):
        inputs.read(spark, sources)


def test_one_input_may_have_several_paths_and_wildcards(spark, tmp_path):
    for name in ("a1", "a2", "b1"):
        (tmp_path / f"{name}.csv").write_text("1\n")
    paths = [f"{tmp_path}/a*.csv", f"{tmp_path}/b1.csv"]
    assert inputs.read(spark, [source(format="csv", path=paths, schema="x int")]).count() == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"schema": "x int y"}, "input: expected input that can be read as csv, found: .*yntax"),
        ({"format": "parket"}, "input.format: expected a format .*, found 'parket'.*'parquet'"),
    ],
)
def test_an_input_that_spark_cannot_read_is_one_line(spark, tmp_path, keys, message):
    (tmp_path / "a.csv").write_text("1\n")
    with pytest.raises(ValueError, match=message) as caught:
        inputs.read(spark, [source(**{"format": "csv", "path": f"{tmp_path}/a.csv", **keys})])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["{}/none.csv", "{}/none*.csv"])
def test_a_missing_file_is_named(spark, tmp_path, path):
    path = path.format(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"input\.path: expected csv files, found nothing"):
        inputs.read(spark, [source(format="csv", path=path)])


# --- the split -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(spark):
    return spark.range(10_000).select("id", (F.col("id") % 50).alias("user"))


def kept_for_testing(df, **split):
    return {row.id for row in df.filter(is_test(df.schema, Split(**split))).collect()}


def test_the_split_does_not_depend_on_partitions(rows):
    assert (
        kept_for_testing(rows.repartition(1))
        == kept_for_testing(rows.repartition(7))
        == kept_for_testing(rows.coalesce(2))
    )


def test_the_split_keeps_its_share_and_another_seed_gives_another(rows):
    first, second = (
        kept_for_testing(rows, test=0.3, seed=1),
        kept_for_testing(rows, test=0.3, seed=2),
    )
    # 5 standard deviations of a binomial count
    assert len(first) == pytest.approx(3000, abs=230)
    assert len(first & second) == pytest.approx(900, abs=150)


def test_folds_are_even_keep_groups_together_and_do_not_follow_from_the_split(rows):
    split = Split(test=0.5)
    part = fold(rows.schema, split, 3, seed=1).alias("fold")
    both = rows.select(part, is_test(rows.schema, split).alias("test")).groupBy("fold", "test")
    counts = [row["count"] for row in both.count().collect()]
    # 5 standard deviations of a binomial count
    assert counts == pytest.approx([10_000 / 6] * 6, abs=190)

    part = fold(rows.schema, Split(by=["user"]), 3, seed=1).alias("fold")
    assert rows.select("user", part).distinct().count() == 50
    other = fold(rows.schema, split, 3, seed=2)
    assert 0 < rows.filter(other != fold(rows.schema, split, 3, seed=1)).count() < 10_000


def test_derived_columns_see_those_before_them_and_name_what_they_cannot_see(spark, tmp_path):
    (tmp_path / "a.csv").write_text("1\n")
    keys = {"format": "csv", "path": f"{tmp_path}/a.csv", "schema": "x int"}
    df = inputs.read(spark, [source(**keys, derive={"x": "x + 1", "y": "x * 10"})])
    assert df.first().asDict() == {"x": 2, "y": 20}
    with pytest.raises(ValueError, match=r"input\.derive\.z: expected SQL over the columns, .*`y`"):
        inputs.read(spark, [source(**keys, derive={"z": "y + 1"})])


def test_no_share_tests_no_row(rows):
    assert kept_for_testing(rows, test=0.0) == set()


def test_rows_that_are_equal_in_the_given_columns_stay_together(rows):
    test = kept_for_testing(rows, test=0.5, by=["user"])
    assert {i % 50 for i in test}.isdisjoint(i % 50 for i in set(range(10_000)) - test)
    assert 0 < len(test) < 10_000


def test_columns_without_a_hash_are_left_out_or_refused_by_name(spark):
    df = spark.createDataFrame([(1, {"a": 1})], "id int, m map<string,int>")
    assert kept_for_testing(df) <= {1}
    with pytest.raises(ValueError, match=r"split\.by column 'm': .*found map<string,int>"):
        is_test(df.schema, Split(by=["m"]))
    with pytest.raises(ValueError, match=r"split\.by column 'idd'.*did you mean 'id'"):
        is_test(df.schema, Split(by=["idd"]))


# --- a declared schema -----------------------------------------------------------------------


def test_columns_in_another_order_than_declared_are_an_error(spark, tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    options = {"header": True}
    declared = source(
        format="csv", path=f"{tmp_path}/a.csv", schema="y double, x double", options=options
    )
    with pytest.raises(Exception, match="CSV header does not conform to the schema"):
        inputs.read(spark, [declared]).collect()
    as_asked = declared.model_copy(update={"options": {**options, "EnforceSchema": True}})
    assert inputs.read(spark, [as_asked]).first().y == 1.0


@pytest.mark.parametrize(("kind", "text"), [("csv", "x\n1\nabc\n"), ("json", '{"x": "abc"}\n')])
def test_text_that_is_not_of_its_declared_type_is_an_error(spark, tmp_path, kind, text):
    (tmp_path / "a").write_text(text)
    options = {"header": True} if kind == "csv" else {}
    declared = source(format=kind, path=f"{tmp_path}/a", schema="x double", options=options)
    with pytest.raises(Exception, match="MALFORMED_RECORD_IN_PARSING"):
        inputs.read(spark, [declared]).collect()
    as_asked = declared.model_copy(update={"options": {**options, "mode": "PERMISSIVE"}})
    assert inputs.read(spark, [as_asked]).where("x is null").count() == 1


def test_an_option_that_the_reader_does_not_take_is_one_line(spark, tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n")
    options = {"inferSchema": "maybe"}
    with pytest.raises(ValueError, match="input: expected what Spark's reader of csv takes"):
        inputs.read(spark, [source(format="csv", path=f"{tmp_path}/a.csv", options=options)])
