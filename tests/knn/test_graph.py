"""The graph of nearest neighbours, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sklearn.neighbors import kneighbors_graph

from mllib_ext.knn import kneighborsGraph

X = np.random.default_rng(0).normal(size=(60, 3))


@pytest.fixture(scope="module")
def frame(spark):
    table = pa.table({"i": np.arange(60), "x": pa.array([row.tolist() for row in X])})
    df = spark.createDataFrame(table).repartition(2).cache()
    yield df
    df.unpersist()


def edges(df):
    found = {(row.src, row.dst): row.distance for row in df.collect()}
    assert len(found) == df.count()
    return found


@pytest.fixture(scope="module")
def theirs():
    graph = kneighbors_graph(X, 4, mode="distance").tocoo()
    pairs = zip(graph.row.tolist(), graph.col.tolist(), strict=True)
    return dict(zip(pairs, graph.data, strict=True))


@pytest.mark.parametrize("plan", ["auto", "exchange"])
def test_edges_are_scikit_learns(frame, theirs, plan):
    df = kneighborsGraph(frame, 4, inputCol="x", idCol="i", plan=plan)
    assert [f.simpleString() for f in df.schema] == [
        "src:bigint", "dst:bigint", "distance:double"
    ]  # fmt: skip
    # Two orders of addition of three squares.
    assert edges(df) == pytest.approx(theirs, rel=1e-12)


def test_mutual_edges_go_both_ways(frame, theirs):
    found = edges(kneighborsGraph(frame, 4, inputCol="x", idCol="i", mutual=True))
    expected = {(i, j): d for (i, j), d in theirs.items() if (j, i) in theirs}
    assert 0 < len(expected) < len(theirs)
    assert found == pytest.approx(expected, rel=1e-12)


def test_ids_that_are_not_unique_are_refused(frame):
    with pytest.raises(ValueError, match="expected each item to have an id of its own"):
        kneighborsGraph(frame.union(frame), 4, inputCol="x", idCol="i")
