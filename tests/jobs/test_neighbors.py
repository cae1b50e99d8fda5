"""Jobs on nearest neighbours, from their config to what they leave."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from scripts import ROOT, load_job
from sklearn.datasets import load_digits

from mllib_ext.job.config import NeighborsConfig, load
from mllib_ext.job.problems import ConfigError

DIGITS = {
    "format": "sklearn",
    "dataset": "digits",
    "derive": {"id": "monotonically_increasing_id()"},
}


@pytest.fixture(scope="module")
def table(spark, tmp_path_factory):
    """The first 300 digits, an id and the parity of the label, as Parquet."""
    path = str(tmp_path_factory.mktemp("data") / "digits")
    X, y = load_digits(return_X_y=True)
    rows = [(i, X[i].tolist(), int(y[i]) % 2) for i in range(300)]
    spark.createDataFrame(rows, "id long, features array<double>, odd int").write.parquet(path)
    return {"format": "parquet", "path": path}


def config(table, **keys):
    return {"input": table, "id": "id", "k": 4, **keys}


def neighbours(spark, result):
    """``{query: items}`` in the order of their ranks."""
    rows = spark.read.parquet(f"{result.path}/neighbors").orderBy("query", "rank").collect()
    found: dict = {}
    for row in rows:
        found.setdefault(row["query"], []).append(row["item"])
    return found


def true_neighbours(k):
    """Of whole numbers: exact squares, ties to the smaller id, none its own."""
    X = load_digits().data[:300].astype(np.int64)
    D = ((X[:, None] - X[None]) ** 2).sum(axis=2)
    np.fill_diagonal(D, D.max() + 1)
    return dict(enumerate(np.argsort(D, axis=1, kind="stable")[:, :k].tolist()))


def test_an_index_is_built_and_joined_with(run, spark, table, tmp_path):
    index = run("neighbors", config(table, task="index", cells={"targetRecall": 0.9}))
    assert index.code == 0, index.err
    report = index.report
    assert (report["rows"], report["features"], report["task"]) == (300, 64, "index")
    assert report["recall"] >= 0.9
    assert 0 < report["compared"] < 1
    assert f"a query looks at {report['nprobe']} of them" in index.out
    out = str(tmp_path / "joined")
    join = config(table, task="join", index=str(index.path), filter="odd = 1")
    job = run("neighbors", {**join, "output": {"path": out}})
    assert job.code == 0, job.err
    rows = spark.read.parquet(f"{out}/neighbors").collect()
    assert len(rows) == 300 * 4
    odd = np.flatnonzero(load_digits().target[:300] % 2).tolist()
    assert {row["item"] for row in rows} <= set(odd)
    nearest = {row["query"]: row["item"] for row in rows if row["rank"] == 1}
    assert sum(nearest[i] == i for i in odd) == len(odd)


def test_an_exact_join_has_the_true_neighbours_and_leaves_out_the_row_itself(run, spark, table):
    job = run("neighbors", config(table, task="join"))
    assert job.code == 0, job.err
    assert job.report["rows"] == 1200
    assert job.report["plan"][0].startswith("plan broadcast_items")
    assert neighbours(spark, job) == true_neighbours(4)


def test_a_join_has_items_of_its_own_and_a_radius(run, spark, table):
    others = {**table, "derive": {"id": "id + 1000"}}
    job = run("neighbors", config(table, task="join", items=others, radius=0.0, filter="odd = 0"))
    assert job.code == 0, job.err
    even = np.flatnonzero(load_digits().target[:300] % 2 == 0).tolist()
    assert neighbours(spark, job) == {i: [i + 1000] for i in even}


def test_a_graph_has_an_edge_for_every_pair(run, spark, table):
    job = run("neighbors", config(table, task="graph", mutual=True))
    assert job.code == 0, job.err
    edges = spark.read.parquet(f"{job.path}/neighbors").collect()
    true = true_neighbours(4)
    both = {(i, j) for i, near in true.items() for j in near if i in true[j]}
    assert {(edge.src, edge.dst) for edge in edges} == both
    assert job.report["rows"] == len(edges)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"task": "graph", "items": DIGITS}, "items: expected no such key with task: graph"),
        ({"task": "join", "mutual": True}, "mutual: expected no such key with task: join"),
        ({"task": "join", "items": DIGITS, "index": "a"}, "index: expected nothing beside items"),
        ({"task": "index", "radius": 1.0}, "radius: expected nothing with an index, found 1.0"),
        ({"task": "index", "metric": "manhattan"}, "metric: expected one of euclidean"),
        (
            {"task": "index", "cells": {"targetRecall": 0.9, "nprobe": 2}},
            "cells.nprobe: expected nothing beside targetRecall, found 2",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tmp_path, keys, problem):
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps({"input": DIGITS, "id": "id", **keys}))
    with pytest.raises(ConfigError) as caught:
        load(NeighborsConfig, str(file))
    assert any(line.startswith(problem) for line in caught.value.problems)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"index": "nowhere"}, "index: expected the result of a job with task: index"),
        ({"filter": "od = 1"}, "filter: expected SQL over the columns of the items"),
        ({"id": "key"}, "id column 'key': expected one of"),
        ({"features": "feature"}, "features column 'feature': .*did you mean 'features'"),
    ],
)
def test_what_is_not_there_is_an_error_that_names_it(run, table, keys, message):
    job = run("neighbors", config(table, task="join", **keys))
    assert job.code == 1
    assert re.search(message, job.err)
    assert not job.path.exists()


def test_the_ready_config_finds_the_digits_neighbours(spark, tmp_path):
    out = tmp_path / "out"
    argv = ["--config", f"{ROOT}/conf/jobs/digits-neighbors.yaml", "--output", str(out)]
    assert load_job("neighbors").main(argv) == 0
    report = json.loads((out / "metrics.json").read_text())
    assert (report["rows"], report["task"]) == (1797 * 10, "join")
