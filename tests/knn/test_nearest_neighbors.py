"""Nearest neighbours as DataFrames: every plan, every kind of input, against scikit-learn."""

from __future__ import annotations

import gc
import logging
import math

import numpy as np
import pyarrow as pa
import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F
from sklearn.neighbors import NearestNeighbors as Sklearn

from data_frames import every_kind_of_features
from mllib_ext.knn import NearestNeighbors, NearestNeighborsModel, nearest_neighbors

PLANS = ["broadcast_items", "broadcast_queries", "exchange"]
N, M, D, K = 120, 30, 4, 5
RNG = np.random.default_rng(0)
X = np.where(RNG.random((N, D)) < 0.4, 0.0, RNG.normal(size=(N, D)).round(3)) + 1e-3
Q = np.where(RNG.random((M, D)) < 0.4, 0.0, RNG.normal(size=(M, D)).round(3)) + 1e-3
COLUMNS = [f"x{j}" for j in range(D)]
EACH_PLAN = pytest.mark.parametrize("plan", PLANS)


@pytest.fixture(scope="module")
def items(spark):
    with every_kind_of_features(spark, X) as df:
        yield df


@pytest.fixture(scope="module")
def queries(spark):
    with every_kind_of_features(spark, Q) as df:
        yield df


def frame(spark, X, ids=None, partitions=1):
    ids = np.arange(len(X)) if ids is None else ids
    table = pa.table({"i": pa.array(ids), "array": pa.array([row.tolist() for row in X])})
    return spark.createDataFrame(table).repartition(partitions)


def estimator(**params):
    return NearestNeighbors(**{"k": K, "inputCol": "array", "idCol": "i", **params})


def answer(model, queries):
    """``{query: [(item, distance), ...]}``."""
    rows = model.kneighbors(queries)[2].collect()
    found = {row[0]: list(zip(row["indices"], row["distances"], strict=True)) for row in rows}
    assert len(found) == len(rows)
    return found


def expected(X, Q, k=K, metric="euclidean"):
    model = Sklearn(n_neighbors=k, algorithm="brute", metric=metric).fit(X)
    D, places = model.kneighbors(Q)
    return {i: list(zip(places[i].tolist(), D[i], strict=True)) for i in range(len(Q))}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for query, pairs in expected.items():
        assert [item for item, _ in found[query]] == [item for item, _ in pairs]
        # scikit-learn subtracts products from norms: 1e-16 under the root.
        theirs = [distance for _, distance in pairs]
        assert [d for _, d in found[query]] == pytest.approx(theirs, rel=1e-9, abs=1e-7)


# --- the answer ---------------------------------------------------------------------------------


@EACH_PLAN
@pytest.mark.parametrize(
    "features", ["dense", "sparse", "array", "float", [f"x{j}" for j in range(D)]], ids=str
)
def test_neighbours_are_scikit_learns_for_every_kind_of_features(items, queries, plan, features):
    model = estimator(plan=plan, inputCol=features).fit(items)
    single = features == "float"
    A, B = (Z.astype(np.float32).astype(np.float64) if single else Z for Z in (X, Q))
    assert_same(answer(model, queries), expected(A, B))


@EACH_PLAN
@pytest.mark.parametrize("metric", ["cosine", "manhattan"])
def test_other_metrics_are_scikit_learns(items, queries, plan, metric):
    model = estimator(plan=plan, metric=metric, inputCol="dense").fit(items)
    assert_same(answer(model, queries), expected(X, Q, metric=metric))


@EACH_PLAN
def test_the_largest_inner_products_come_first(items, queries, plan):
    found = answer(estimator(plan=plan, metric="inner_product").fit(items), queries)
    products = Q @ X.T
    for i, row in enumerate(products):
        order = np.argsort(-row, kind="stable")[:K]
        assert [item for item, _ in found[i]] == order.tolist()
        assert [product for _, product in found[i]] == pytest.approx(row[order], rel=1e-12)


def test_the_frames_are_spark_rapids_mls(items, queries):
    model = estimator().fit(items)
    with_ids, asked, knn = model.kneighbors(queries)
    assert with_ids.columns == items.columns
    assert asked.columns == queries.columns
    assert knn.columns == ["query_i", "indices", "distances"]
    kinds = [f.dataType.simpleString() for f in knn.schema]
    assert kinds == ["bigint", "array<bigint>", "array<double>"]
    assert [row.query_i for row in knn.collect()] == list(range(M))
    unsorted = model.kneighbors(queries, sort_knn_df_by_query_id=False)[2]
    assert sorted(unsorted.collect()) == sorted(knn.collect())


def test_ids_are_made_where_none_are_named(items, queries):
    model = NearestNeighbors(k=K, inputCol="array").fit(items)
    with_ids, asked, knn = model.kneighbors(queries)
    assert with_ids.columns[0] == asked.columns[0] == "unique_id"
    item, query = ({r.unique_id: r.i for r in df.collect()} for df in (with_ids, asked))
    found = {
        query[r.query_unique_id]: [
            (item[i], d) for i, d in zip(r.indices, r.distances, strict=True)
        ]
        for r in knn.collect()
    }
    assert_same(found, expected(X, Q))
    with pytest.raises(ValueError, match="column 'unique_id': expected a name that is free"):
        model.kneighbors(asked)


@EACH_PLAN
@pytest.mark.parametrize("partitions", [1, 2, 7])
def test_the_answer_does_not_depend_on_partitions(spark, plan, partitions):
    # Integers: many ties. Some of seven partitions are empty on either side.
    A, B = np.round(X[:40]), np.round(Q[:5])
    found = answer(
        estimator(plan=plan, k=7).fit(frame(spark, A, partitions=partitions).where("i != 3")),
        frame(spark, B, partitions=partitions).union(frame(spark, B[:0])),
    )
    keep = np.delete(np.arange(40), 3)
    for i, q in enumerate(B):
        D = np.sqrt(((A[keep] - q) ** 2).sum(axis=1))
        order = np.lexsort((keep, D))[:7]
        assert found[i] == list(zip(keep[order].tolist(), D[order], strict=True))


@EACH_PLAN
def test_string_ids_are_ordered_as_strings(spark, plan):
    A = np.array([[1.0], [1.0], [1.0], [0.0], [1.0]])
    items = frame(spark, A, ["b", "ä", "B", "z", "a"], 2)
    found = answer(estimator(plan=plan, k=4, excludeSelf=True).fit(items), items.where("i = 'z'"))
    # By code points, as Spark sorts them.
    assert found == {"z": [("B", 1.0), ("a", 1.0), ("b", 1.0), ("ä", 1.0)]}
    numbers = estimator(plan=plan, k=1).fit(items)
    assert answer(numbers, frame(spark, A[:1], [7])) == {7: [("B", 0.0)]}


@EACH_PLAN
def test_every_row_counts_where_ids_are_not_unique(spark, plan):
    items = frame(spark, np.array([[1.0], [2.0], [3.0]]), [5, 5, 6])
    queries = frame(spark, np.array([[0.0], [4.0]]), [1, 1])
    rows = estimator(plan=plan, k=2).fit(items).kneighbors(queries)[2].collect()
    assert sorted((r.query_i, r.indices, r.distances) for r in rows) == [
        (1, [5, 5], [1.0, 2.0]),
        (1, [6, 5], [1.0, 2.0]),
    ]


@EACH_PLAN
def test_queries_without_neighbours_are_kept(spark, items, queries, plan):
    model = estimator(plan=plan, radius=1e-9).fit(items)
    found = answer(model, queries)
    assert found == {i: [] for i in range(M)}
    joined = model.exactNearestNeighborsJoin(queries).collect()
    assert sorted(row.query_df.i for row in joined) == list(range(M))
    assert all(row.item_df is None and row.distCol is None for row in joined)
    alone = estimator(plan=plan, excludeSelf=True).fit(queries.where("i = 3"))
    assert answer(alone, queries.where("i = 3")) == {3: []}
    assert answer(estimator(plan=plan).fit(items), queries.where("i < 0")) == {}


@EACH_PLAN
def test_a_row_is_not_its_own_neighbour_where_it_is_excluded(items, plan):
    model = estimator(plan=plan, excludeSelf=True).fit(items)
    others = {
        i: [pair for pair in pairs if pair[0] != i][:K]
        for i, pairs in expected(X, X, K + 1).items()
    }
    assert_same(answer(model, items), others)


@EACH_PLAN
def test_more_neighbours_than_items_are_all_items(spark, plan):
    items = frame(spark, X[:3], partitions=2)
    assert_same(answer(estimator(plan=plan).fit(items), frame(spark, Q)), expected(X[:3], Q, 3))


@EACH_PLAN
def test_the_join_has_all_columns_of_both_sides(items, queries, plan):
    model = estimator(plan=plan, k=2).fit(items.withColumn("color", F.lit("red")))
    rows = model.exactNearestNeighborsJoin(queries, distCol="far").collect()
    assert rows[0].item_df.color == "red"
    found: dict = {}
    for row in sorted(rows, key=lambda row: row.far):
        found.setdefault(row.query_df.i, []).append((row.item_df.i, row.far))
        assert math.dist(row.item_df.array, row.query_df.array) == pytest.approx(row.far)
        assert isinstance(row.query_df.dense, type(Vectors.dense([])))
    assert_same(found, expected(X, Q, 2))


def test_a_join_by_ids_that_are_not_unique_is_refused(spark, queries):
    twice = frame(spark, X[:3], [1, 2, 2])
    for plan in PLANS:
        model = estimator(plan=plan).fit(twice)
        with pytest.raises(ValueError, match=r"expected each item to have an id .*found 2 more"):
            model.exactNearestNeighborsJoin(queries)
    model = estimator(plan="exchange").fit(queries)
    with pytest.raises(ValueError, match=r"expected each query to have an id .*found 2 more"):
        model.exactNearestNeighborsJoin(twice)
    # Under a broadcast a query is never looked up by its id.
    rows = estimator(k=1).fit(queries).exactNearestNeighborsJoin(twice).collect()
    assert sorted(row.query_df.i for row in rows) == [1, 2, 2]


# --- plans --------------------------------------------------------------------------------------


def test_the_plan_follows_from_sizes_and_can_be_read(items, queries, caplog, monkeypatch):
    model = estimator().fit(items)
    told = model.explain(queries)
    assert "plan broadcast_items: the items fit" in told
    assert f"items: {N} x {D}" in told
    assert f"queries: {M}" in told
    assert "estimate: " in told
    few = queries.where("i < 3")
    small = estimator(broadcastThresholdInMB=100 / 2**20).fit(items)
    assert "plan broadcast_queries: the queries fit" in small.explain(few)
    assert "plan exchange: neither side" in small.explain(queries)
    assert "groups: 2 of queries x 1 of items" in small.explain(queries)
    assert_same(answer(small, queries), expected(X, Q))
    assert "the param plan says so" in estimator(plan="exchange").fit(items).explain(queries)
    assert not caplog.records
    monkeypatch.setattr(nearest_neighbors, "PAIR_SECONDS", 10.0)
    with caplog.at_level(logging.WARNING):
        model.kneighbors(queries)
    assert f"{M} queries among {N} items of {D} features will take about 5.0 hours" in caplog.text


def test_an_exchange_of_many_groups_has_the_same_answer(items, queries, monkeypatch):
    monkeypatch.setattr(nearest_neighbors, "GROUP_BYTES", 400)
    model = estimator(plan="exchange").fit(items.repartition(5))
    assert "groups: 3 of queries x 19 of items, 57 tasks" in model.explain(queries)
    assert_same(answer(model, queries.repartition(3)), expected(X, Q))


def test_streaming_queries_have_the_same_neighbours(spark, items, queries, tmp_path):
    source = str(tmp_path / "in")
    queries.select("i", "dense", "array").write.parquet(source)
    stream = spark.readStream.schema("i long, array array<double>").parquet(source)
    model = estimator().fit(items)
    query = (
        model.kneighbors(stream)[2].writeStream.format("memory").queryName("neighbours")
        .trigger(availableNow=True).option("checkpointLocation", str(tmp_path / "log")).start()
    )  # fmt: skip
    assert query.awaitTermination(120)
    rows = spark.table("neighbours").collect()
    found = {r.query_i: list(zip(r.indices, r.distances, strict=True)) for r in rows}
    assert found == answer(model, queries)
    with pytest.raises(ValueError, match="expected broadcast_items for streaming queries"):
        estimator(plan="exchange").fit(items).kneighbors(stream)
    # A table of vectors, which Spark hands past a function only by rows.
    table = spark.read.parquet(source)
    assert answer(estimator(inputCol="dense").fit(items), table) == found


def test_a_lazy_answer_outlives_its_model(items, queries):
    knn = estimator().fit(items).kneighbors(queries)[2]
    gc.collect()
    assert knn.count() == M
    assert len(knn.collect()) == M


# --- params and files ---------------------------------------------------------------------------


def test_what_is_saved_is_loaded(spark, items, queries, tmp_path):
    one = estimator(metric="l1", radius=2.0, excludeSelf=True, plan="auto")
    one.save(str(tmp_path / "estimator"))
    loaded = NearestNeighbors.load(str(tmp_path / "estimator"))
    assert (loaded.uid, loaded.extractParamMap()) == (one.uid, one.extractParamMap())
    model = one.fit(items)
    path = str(tmp_path / "model")
    model.save(path)
    with pytest.raises(FileExistsError, match="found one that exists"):
        model.save(path)
    again = NearestNeighborsModel.load(path)
    assert again.uid == model.uid == one.uid
    assert again.extractParamMap() == model.extractParamMap()
    assert answer(again, queries) == answer(model, queries)
    made = NearestNeighbors(k=1, inputCol="dense").fit(items)
    made.write().overwrite().save(path)
    again = NearestNeighborsModel.load(path)
    assert again.kneighbors(queries)[2].count() == M
    with pytest.raises(ValueError, match=r"expected a saved .*NearestNeighbors, found"):
        NearestNeighbors.load(path)


def test_params_have_setters_and_getters(items, queries):
    one = (
        NearestNeighbors().setK(2).setInputCol("array").setIdCol("i").setMetric("cosine")
        .setRadius(1.0).setExcludeSelf(True).setPlan("exchange").setBroadcastThresholdInMB(1.0)
    )  # fmt: skip
    assert (one.getK(), one.getInputCol(), one.getIdCol()) == (2, "array", "i")
    assert (one.getMetric(), one.getRadius(), one.getExcludeSelf()) == ("cosine", 1.0, True)
    assert (one.getPlan(), one.getBroadcastThresholdInMB()) == ("exchange", 1.0)
    assert one.setInputCols(["x0", "x1"]).getInputCols() == ["x0", "x1"]
    assert not one.isSet("inputCol")
    model = estimator().fit(items)
    fewer = model.copy({model.k: 1, model.inputCol: "dense"})
    assert_same(answer(fewer, queries), expected(X, Q, 1))
    assert_same(answer(model, queries), expected(X, Q))
    again = model.copy({model.k: 1})
    assert again._shipped(queries) is model._shipped(queries)  # the items were sent once


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"k": 0}, "param k: expected 1 or more, found 0"),
        ({"metric": "euclidian"}, r"param metric: .*did you mean 'euclidean'"),
        ({"plan": "best"}, "param plan: expected one of .*found 'best'"),
        ({"radius": -1.0}, r"param radius: expected a distance of 0 or more, found -1\.0"),
        ({"radius": math.nan}, "param radius: .*found nan"),
        ({"inputCol": None}, "param inputCol: expected a features column or a list, found none"),
        ({"inputCol": "aray"}, r"features column 'aray': .*did you mean 'array'"),
        ({"idCol": "j"}, "id column 'j': expected one of .*no such column"),
        ({"idCol": None, "excludeSelf": True}, "param excludeSelf: expected an idCol"),
    ],
)
def test_bad_params_are_refused_before_any_work(items, params, message):
    with pytest.raises(ValueError, match=message):
        estimator(**params).fit(items)


def test_ids_of_another_type_are_refused(items, queries):
    with pytest.raises(
        TypeError, match="id column 'x0': expected integers or strings, found double"
    ):
        estimator(idCol="x0").fit(items)
    model = estimator(excludeSelf=True).fit(items)
    strings = queries.withColumn("i", F.col("i").cast("string"))
    with pytest.raises(TypeError, match=r"id column 'i': expected long as in the items .*string"):
        model.kneighbors(strings)


BAD = [
    ("array(1D, double('nan'), 0D, 0D)", "element 1: expected finite numbers, found nan"),
    ("array(1D, null, 0D, 0D)", "element 1: expected a number in every row, found null"),
    ("null", "expected a vector in every row, found null"),
    ("array(1D, 2D)", "expected vectors of length 4, found length 2"),
]


@pytest.mark.parametrize(("value", "message"), BAD)
def test_bad_rows_are_refused_on_either_side_with_their_place(
    spark, items, queries, value, message
):
    def broken(df):
        changed = F.when(F.col("i") == 7, F.expr(value).cast("array<double>"))
        return df.coalesce(1).orderBy("i").withColumn("array", changed.otherwise(F.col("array")))

    whole = rf"features column 'array'.*{message} \(partition \d+, row 7\)"
    with pytest.raises(ValueError, match=whole):
        estimator().fit(broken(items))
    for plan in PLANS:
        model = estimator(plan=plan).fit(items)
        with pytest.raises(Exception, match=whole):
            model.kneighbors(broken(queries))[2].collect()


def test_rows_of_zeros_and_null_ids_are_refused_with_their_place(spark, items, queries):
    zeros = frame(spark, np.zeros((2, D)))
    whole = r"features column 'array': expected a direction .* a row of zeros "
    with pytest.raises(Exception, match=whole + r"\(partition 0, row 0\)"):
        estimator(metric="cosine").fit(zeros)
    # Queries are sorted first, and which range of them is searched first is not said.
    with pytest.raises(Exception, match=whole + r"\(partition [01], row 0\)"):
        estimator(metric="cosine").fit(items).kneighbors(zeros)[2].collect()
    missing = queries.withColumn("i", F.when(F.col("i") != 2, F.col("i")))
    no_id = "id column 'i': expected an id in every row, found null"
    for plan in PLANS:
        model = estimator(plan=plan).fit(items)
        with pytest.raises(Exception, match=no_id):
            model.kneighbors(missing)[2].collect()
    with pytest.raises(ValueError, match=no_id):
        estimator().fit(missing)


def test_no_items_and_another_number_of_columns_are_refused(items, queries):
    with pytest.raises(ValueError, match="expected at least one row"):
        estimator().fit(items.where("i < 0"))
    model = estimator(inputCol=["x0", "x1"]).fit(items)
    model.setInputCols(["x0", "x1", "x2"])
    with pytest.raises(ValueError, match="expected 2 columns as in the items, found 3"):
        model.kneighbors(queries)
    with pytest.raises(TypeError, match="expected kneighbors to be called"):
        model.transform(queries)


def test_a_loaded_model_may_take_its_own_place(items, queries, tmp_path):
    path = str(tmp_path / "model")
    estimator().fit(items).save(path)
    model = NearestNeighborsModel.load(path)
    before = answer(model, queries)
    model.write().overwrite().save(path)
    assert model.exactNearestNeighborsJoin(queries).count() == M * K
    assert answer(NearestNeighborsModel.load(path), queries) == before


@EACH_PLAN
def test_a_k_beyond_all_items_takes_no_more_room_than_they(items, queries, plan):
    model = estimator(k=2**31 - 1, plan=plan).fit(items)
    assert {len(row.indices) for row in model.kneighbors(queries)[2].collect()} == {N}


def test_other_ids_than_those_of_the_items_are_refused(items, queries):
    model = estimator().fit(items).setIdCol("x0")
    with pytest.raises(ValueError, match=r"param idCol: expected 'i', .* found 'x0'"):
        model.kneighbors(queries.withColumn("x0", F.col("i") + 100))


def test_the_distance_of_a_join_may_have_any_name_but_those_of_its_sides(items, queries):
    model = estimator().fit(items)
    for name in ("id", "col", "distances", "a.b"):
        joined = model.exactNearestNeighborsJoin(queries, name)
        assert joined.columns == ["item_df", "query_df", name]
        assert joined.count() == M * K
    with pytest.raises(
        ValueError, match=r"param distCol: expected a name other than .* 'query_df'"
    ):
        model.exactNearestNeighborsJoin(queries, "query_df")
