"""An index of cells as a model: its answers, its recall, its files."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import functions as F
from sklearn.metrics import pairwise_distances

from data_frames import every_kind_of_features
from mllib_ext.knn import ApproximateNearestNeighbors, ApproximateNearestNeighborsModel

N, M, D, K = 400, 50, 4, 5
RNG = np.random.default_rng(0)
MEANS = 4 * RNG.normal(size=(12, D))
X = (MEANS[RNG.integers(0, 12, N)] + RNG.normal(size=(N, D))).round(3)
Q = (MEANS[RNG.integers(0, 12, M)] + RNG.normal(size=(M, D))).round(3)
for Z in (X, Q):
    Z[:, 2:][RNG.random((len(Z), 2)) < 0.5] = 0.0
COLUMNS = [f"x{j}" for j in range(D)]
ALL = {"nlist": 8, "nprobe": 8}


@pytest.fixture(scope="module")
def items(spark):
    with every_kind_of_features(spark, X) as df:
        yield df


@pytest.fixture(scope="module")
def queries(spark):
    with every_kind_of_features(spark, Q) as df:
        yield df


@pytest.fixture(scope="module")
def model(items):
    """One that looks at two of twenty cells."""
    return estimator(algoParams={"nlist": 20, "nprobe": 2}).fit(items)


def frame(spark, X, ids=None, partitions=1):
    ids = np.arange(len(X)) if ids is None else ids
    table = pa.table({"i": pa.array(ids), "array": pa.array([row.tolist() for row in X])})
    return spark.createDataFrame(table).repartition(partitions)


def estimator(**params):
    return ApproximateNearestNeighbors(**{"k": K, "inputCol": "array", "idCol": "i", **params})


def answer(model, queries):
    """``{query: [(item, distance), ...]}``."""
    rows = model.kneighbors(queries)[2].collect()
    found = {row[0]: list(zip(row["indices"], row["distances"], strict=True)) for row in rows}
    assert len(found) == len(rows)
    return found


def expected(X, Q, k=K, metric="euclidean", ids=None):
    """The nearest of all by scikit-learn's distances."""
    if metric == "inner_product":
        distances = Q @ X.T
        keys = -distances
    else:
        keys = distances = pairwise_distances(Q, X, metric=metric)
    ids = np.arange(len(X)) if ids is None else ids
    found = {}
    for i in range(len(Q)):
        order = np.argsort(keys[i])[:k]
        found[i] = [(int(ids[j]), float(distances[i, j])) for j in order]
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for query, pairs in expected.items():
        assert [item for item, _ in found[query]] == [item for item, _ in pairs]
        theirs = [distance for _, distance in pairs]
        # scikit-learn subtracts products from norms: 1e-16 under the root.
        assert [d for _, d in found[query]] == pytest.approx(theirs, rel=1e-9, abs=1e-7)


def recall_of(model, queries, true):
    found = answer(model, queries)
    hits = [len({i for i, _ in found[q]} & {i for i, _ in pairs}) for q, pairs in true.items()]
    return sum(hits) / sum(len(pairs) for pairs in true.values())


# --- the answer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["dense", "sparse", "array", "float", COLUMNS], ids=str)
def test_all_cells_together_give_the_exact_neighbours_of_every_kind_of_features(
    items, queries, features
):
    model = estimator(algoParams=ALL, inputCol=features).fit(items)
    single = features == "float"
    A, B = (Z.astype(np.float32).astype(np.float64) if single else Z for Z in (X, Q))
    assert_same(answer(model, queries), expected(A, B))


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine", "inner_product"])
def test_other_metrics_have_their_exact_neighbours_in_all_cells(items, queries, metric):
    model = estimator(algoParams=ALL, metric=metric).fit(items)
    assert_same(answer(model, queries), expected(X, Q, metric=metric))


def test_few_cells_give_true_distances_and_fewer_of_the_neighbours(model, queries):
    true = expected(X, Q)
    found = answer(model, queries)
    for q, pairs in found.items():
        assert len(pairs) == K
        for item, distance in pairs:
            assert distance == pytest.approx(math.dist(X[item], Q[q]), rel=1e-12)
    assert 0.5 < recall_of(model, queries, true) < 1
    assert (model.nlist, model.nprobe) == (20, 2)


def test_the_frames_are_spark_rapids_mls(model, items, queries):
    with_ids, asked, knn = model.kneighbors(queries)
    assert (with_ids.columns, asked.columns) == (items.columns, queries.columns)
    assert knn.columns == ["query_i", "indices", "distances"]
    assert [row.query_i for row in knn.collect()] == list(range(M))
    unsorted = model.kneighbors(queries, sort_knn_df_by_query_id=False)[2]
    assert sorted(unsorted.collect()) == sorted(knn.collect())


def test_the_join_has_all_columns_of_both_sides(model, queries):
    rows = model.approxSimilarityJoin(queries.withColumn("color", F.lit("red")), "far").collect()
    assert rows[0].query_df.color == "red"
    found: dict = {}
    for row in sorted(rows, key=lambda row: (row.far, row.item_df.i)):
        found.setdefault(row.query_df.i, []).append((row.item_df.i, row.far))
        assert math.dist(row.item_df.array, row.query_df.array) == pytest.approx(row.far)
    assert found == answer(model, queries)


@pytest.mark.parametrize("partitions", [1, 2, 7])
def test_the_answer_does_not_depend_on_partitions(spark, model, queries, partitions):
    # Of seven partitions of queries some are empty.
    params = {"nlist": 20, "nprobe": 2}
    fitted = estimator(algoParams=params).fit(frame(spark, X, partitions=partitions))
    assert answer(fitted, frame(spark, Q, partitions=partitions)) == answer(model, queries)
    few = frame(spark, Q[:3], partitions=partitions)
    assert answer(model, few) == {i: answer(model, queries)[i] for i in range(3)}


def test_string_ids_are_ordered_as_strings_and_made_ids_are_told(spark, items, queries):
    rows = np.array([[1.0], [1.0], [1.0], [0.0], [1.0]])
    texts = frame(spark, rows, ["b", "ä", "B", "z", "a"], 2)
    found = answer(estimator(k=5, algoParams={"nlist": 2, "nprobe": 2}).fit(texts), texts)
    assert [item for item, _ in found["z"]] == ["z", "B", "a", "b", "ä"]
    made = ApproximateNearestNeighbors(k=1, inputCol="array", algoParams=ALL)
    with_ids, asked, knn = made.fit(items).kneighbors(queries)
    item, query = ({r.unique_id: r.i for r in df.collect()} for df in (with_ids, asked))
    nearest = {query[r.query_unique_id]: item[r.indices[0]] for r in knn.collect()}
    assert nearest == {q: pairs[0][0] for q, pairs in expected(X, Q, 1).items()}


def test_more_neighbours_than_items_are_all_items_from_whatever_cell(spark, queries):
    few = estimator(algoParams={"nlist": 3, "nprobe": 1}).fit(frame(spark, X[:3], partitions=2))
    assert_same(answer(few, queries), expected(X[:3], Q, 3))


def test_equal_items_have_one_cell_and_their_ids_decide(spark):
    same = frame(spark, np.ones((20, 2)), np.arange(20)[::-1].copy(), 3)
    model = estimator(k=3, algoParams={"nlist": 4, "nprobe": 1}).fit(same)
    assert model.nlist == 1
    assert answer(model, same.where("i = 7")) == {7: [(0, 0.0), (1, 0.0), (2, 0.0)]}
    alone = estimator(k=3).fit(same.where("i = 4"))
    assert answer(alone, same.where("i = 7")) == {7: [(4, 0.0)]}


def test_streaming_queries_have_the_same_neighbours(spark, model, queries, tmp_path):
    source = str(tmp_path / "in")
    queries.select("i", "array").write.parquet(source)
    stream = spark.readStream.schema("i long, array array<double>").parquet(source)
    query = (
        model.kneighbors(stream)[2].writeStream.format("memory").queryName("near")
        .trigger(availableNow=True).option("checkpointLocation", str(tmp_path / "log")).start()
    )  # fmt: skip
    assert query.awaitTermination(120)
    rows = spark.table("near").collect()
    found = {r.query_i: list(zip(r.indices, r.distances, strict=True)) for r in rows}
    assert found == answer(model, queries)


# --- recall -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.8, 0.99])
def test_the_target_chooses_the_probes_and_unseen_queries_reach_it(items, queries, target):
    model = estimator(targetRecall=target).fit(items)
    curve = model.recallCurve
    assert model.nlist == 40  # twice the square root of 400
    assert model.nprobe == curve.probes_for(target)
    assert model.nprobe < 40
    # 50 queries with 5 neighbours: two standard errors of the mean.
    assert recall_of(model, queries, expected(X, Q)) >= target - 0.04


def test_the_curve_is_of_the_neighbours_that_are_asked_for(items):
    model = estimator(k=2).fit(items)
    assert model.recallCurve.k == 2
    model.setK(9)
    assert model.recallCurve.k == 9


# --- other items --------------------------------------------------------------------------------


def test_a_condition_restricts_the_items_before_the_search(model, queries):
    kept = np.flatnonzero(X[:, 1] > 2)
    for condition in ("x1 > 2", F.col("x1") > 2):
        some = model.where(condition)
        found = answer(some, queries)
        assert {item for pairs in found.values() for item, _ in pairs} <= set(kept.tolist())
        assert all(len(pairs) == K for pairs in found.values())
    everything = model.copy({model.algoParams: {"nprobe": 20}}).where("x1 > 2")
    assert_same(answer(everything, queries), expected(X[kept], Q, ids=kept))
    rare = model.where("i in (3, 5)")
    assert_same(answer(rare, queries), expected(X[[3, 5]], Q, 2, ids=np.array([3, 5])))
    assert len(answer(model, queries)[0]) == K
    with pytest.raises(ValueError, match="expected at least one row"):
        model.where("i < 0")


def test_appended_items_are_found_and_the_model_before_is_as_it_was(spark, items, queries):
    half = estimator(algoParams={"nlist": 8, "nprobe": 8}).fit(items.where("i < 200"))
    before = answer(half, queries)
    whole = half.append(items.where("i >= 200"))
    assert whole.numItems == N
    assert_same(answer(whole, queries), expected(X, Q))
    assert answer(half, queries) == before
    joined = whole.approxSimilarityJoin(queries).where("query_df.i = 0").collect()
    assert sorted(r.item_df.i for r in joined) == sorted(i for i, _ in expected(X, Q)[0])
    with pytest.raises(ValueError, match=r"items: expected the columns .* as in the index"):
        half.append(items.drop("x1"))
    strings = items.withColumn("i", F.col("i").cast("string"))
    with pytest.raises(TypeError, match="id column 'i': expected long as in the index, found str"):
        half.append(strings)
    vectors = items.withColumn("array", F.col("dense"))
    with pytest.raises(TypeError, match=r"features 'array': expected array as in the .* vector"):
        half.append(vectors)
    short = items.withColumn("array", F.slice("array", 1, 2))
    with pytest.raises(ValueError, match=r"'array': expected vectors of length 4 .* length 2"):
        half.append(short)
    made = ApproximateNearestNeighbors(k=1, inputCol="array", algoParams=ALL)
    more = made.fit(items.where("i < 200")).append(items.where("i >= 200"))
    ids = [row.unique_id for row in more.kneighbors(queries)[0].collect()]
    assert len(set(ids)) == N


# --- files --------------------------------------------------------------------------------------


def test_an_index_is_saved_loaded_extended_and_replaced(spark, items, queries, tmp_path):
    path = str(tmp_path / "index")
    one = estimator(targetRecall=0.9).fit(items.where("i < 300"))
    one.save(path)
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert (manifest["n_items"], manifest["nlist"], manifest["nprobe"]) == (300, 35, one.nprobe)
    assert manifest["recall"]["recall"][-1] == 1.0
    cells = spark.read.parquet(f"{path}/items").groupBy("mllib_ext_cell").count().collect()
    sizes = spark.read.parquet(f"{path}/centroids").select("cell", "items").collect()
    assert {row[0]: row[1] for row in cells} == {row[0]: row[1] for row in sizes if row[1]}
    with pytest.raises(FileExistsError):
        one.save(path)
    loaded = ApproximateNearestNeighborsModel.load(path)
    assert loaded.extractParamMap() == one.extractParamMap()
    assert (loaded.uid, loaded.nlist, loaded.nprobe) == (one.uid, one.nlist, one.nprobe)
    assert loaded.recallCurve.recall.tolist() == one.recallCurve.recall.tolist()
    assert answer(loaded, queries) == answer(one, queries)
    assert answer(loaded.where("x1 > 2"), queries) == answer(one.where("x1 > 2"), queries)
    # The model that is saved reads what it replaces.
    longer = loaded.append(items.where("i >= 300"))
    longer.write().overwrite().save(path)
    pairs = longer.approxSimilarityJoin(queries)
    again = ApproximateNearestNeighborsModel.load(path)
    assert again.numItems == N
    assert answer(again, queries) == answer(longer, queries)
    assert pairs.count() == M * K
    assert again.kneighbors(queries)[0].columns == items.columns
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index"]


def test_an_index_that_lost_items_is_refused(spark, model, tmp_path):
    path = tmp_path / "index"
    model.save(str(path))
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"n_items": {N}', '"n_items": 401'))
    with pytest.raises(ValueError, match="expected 401 items as its manifest says, found 400"):
        ApproximateNearestNeighborsModel.load(str(path))
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="expected an index of version 1, found 2"):
        ApproximateNearestNeighborsModel.load(str(path))


def test_params_have_setters_and_getters_and_are_saved(tmp_path):
    one = (
        ApproximateNearestNeighbors().setK(2).setInputCols(["a", "b"]).setIdCol("i")
        .setMetric("cosine").setAlgorithm("ivfflat").setAlgoParams({"nlist": 7})
        .setTargetRecall(0.5).setSeed(3)
    )  # fmt: skip
    assert (one.getK(), one.getInputCols(), one.getIdCol()) == (2, ["a", "b"], "i")
    assert (one.getMetric(), one.getAlgorithm(), one.getSeed()) == ("cosine", "ivfflat", 3)
    assert (one.getAlgoParams(), one.getTargetRecall()) == ({"nlist": 7}, 0.5)
    one.save(str(tmp_path / "estimator"))
    loaded = ApproximateNearestNeighbors.load(str(tmp_path / "estimator"))
    assert (loaded.uid, loaded.extractParamMap()) == (one.uid, one.extractParamMap())
    assert ApproximateNearestNeighbors().getSeed() == 0


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"k": 0}, "param k: expected 1 or more, found 0"),
        ({"metric": "manhattan"}, "param metric: expected one of .* for an index of cells"),
        ({"algorithm": "ivfpq"}, r"param algorithm: expected one of \('ivfflat',\), found 'ivfpq'"),
        ({"algoParams": {"nprob": 1}}, "param algoParams: .*'nprob'.*did you mean 'nprobe'"),
        ({"algoParams": {"nlist": 0}}, "param algoParams: expected a whole number of 1 or more"),
        ({"algoParams": {"nlist": 2.5}}, r"as 'nlist', found 2\.5"),
        ({"targetRecall": 0.0}, "param targetRecall: expected a number above 0"),
        ({"targetRecall": math.nan}, "param targetRecall: .*found nan"),
        (
            {"targetRecall": 0.9, "algoParams": {"nprobe": 3}},
            "param targetRecall: expected nothing",
        ),
        ({"inputCol": "aray"}, r"features column 'aray': .*did you mean 'array'"),
        ({"idCol": "j"}, "id column 'j': expected one of .*no such column"),
    ],
)
def test_bad_params_are_refused_before_any_work(items, params, message):
    with pytest.raises(ValueError, match=message):
        estimator(**params).fit(items)


def test_bad_rows_other_lengths_and_other_metrics_are_refused(spark, items, queries, model):
    zeros = frame(spark, np.zeros((2, D)))
    with pytest.raises(ValueError, match="expected a direction in every row"):
        estimator(metric="cosine").fit(zeros)
    with pytest.raises(Exception, match="expected vectors of length 4, found length 3"):
        model.kneighbors(frame(spark, Q[:, :3]))[2].collect()
    broken = queries.withColumn("array", F.when(F.col("i") != 3, F.col("array")))
    with pytest.raises(Exception, match="expected a vector in every row, found null"):
        model.kneighbors(broken)[2].collect()
    with pytest.raises(ValueError, match="expected 'euclidean', by which the index was made"):
        model.copy({model.metric: "cosine"}).kneighbors(queries)
    with pytest.raises(TypeError, match="expected kneighbors to be called"):
        model.transform(queries)
    twice = estimator(algoParams=ALL).fit(frame(spark, X[:3], [1, 2, 2]))
    with pytest.raises(ValueError, match=r"expected each item to have an id .*found 2 more"):
        twice.approxSimilarityJoin(queries)
