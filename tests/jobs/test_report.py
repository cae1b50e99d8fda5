"""``report.html`` of each job: it is there, it agrees with ``metrics.json``, and it may fail."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from pyspark.sql import functions as F

from mllib_ext.job import report
from mllib_ext.job.metrics import METRICS
from mllib_ext.report import shown

EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The tables, facts and drawings of a page."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.facts, self.cells, self.tags = [], {}, [], []
        self._in, self._name = "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._in = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td", "dt", "dd"):
            self._text = ""
        elif tag == "text" and "on" in dict(attrs)["class"].split():
            self._in = "cell"

    def handle_endtag(self, tag):
        if tag in ("th", "td") and self.rows:
            self.rows[-1].append(self._text.strip())
        elif tag == "dt":
            self._name = self._text.strip()
        elif tag == "dd":
            self.facts[self._name] = self._text.strip()
        self._in = ""

    def handle_data(self, data):
        if self._in in ("th", "td", "dt", "dd"):
            self._text += data
        elif self._in == "cell":
            self.cells.append(data)

    def table(self, head):
        """The rows under a head, by their first cell."""
        start = next(i for i, row in enumerate(self.rows) if row[: len(head)] == head)
        found = {}
        for row in self.rows[start + 1 :]:
            if len(row) != len(self.rows[start]):
                break
            found.setdefault(row[0], row[1:])
        return found


@pytest.fixture(scope="module")
def table(spark, tmp_path_factory):
    """Two hundred rows of two classes, one of which has an evil name."""
    path = str(tmp_path_factory.mktemp("data") / "evil")
    rows = spark.range(200).select(
        (F.col("id") % 40).cast("double").alias("a"),
        F.sin(F.col("id") * 1.0).alias("<b>"),
        F.when((F.col("id") % 40 > 25) | (F.col("id") % 7 == 0), EVIL).otherwise("no").alias("y"),
    )
    rows.coalesce(2).write.parquet(path)
    return {"format": "parquet", "path": path}


def classifier(table):
    return {
        "name": f"evil {EVIL}",
        "input": table,
        "encode": {"numeric": ["a", "<b>"], "index": ["y"]},
        "label": "y_index",
        "estimator": {
            "class": "mllib_ext.classification.LogisticRegression",
            "params": {"regParam": 0.01, "solver": "l-bfgs"},
        },
    }


def agrees(page, sides):
    """Every metric of ``metrics.json`` stands in the page, in six digits."""
    found = page.table(["metric"])
    for place, values in enumerate(sides.values()):
        assert {name: cells[place] for name, cells in found.items()} == {
            name: shown(value) for name, value in values.items()
        }


def test_training_and_what_comes_after_agree_with_their_metrics(run, spark, table):
    trained = run("train", classifier(table))
    assert trained.code == 0, trained.err
    text = (trained.path / "report.html").read_text()
    page, metrics = Page(text), trained.report
    assert "script" not in page.tags
    assert not re.search(r"(src|href)=|url\(|https?:", text)
    agrees(page, metrics["metrics"])
    test = metrics["classes"]["test"]
    assert [float(cell) for cell in page.cells] == np.ravel(test["confusion"]).tolist()
    assert page.table(["class"]) == {
        str(label): [shown(test[key][i]) for key in ("precision", "recall", "f1", "support")]
        for i, label in enumerate(test["labels"])
    }
    assert EVIL in page.table(["class"])
    area = float(re.findall(r"&lt;/script&gt;: area (\S+)</li>", text)[0])  # the first: ROC
    assert area == pytest.approx(metrics["metrics"]["test"]["areaUnderROC"], abs=5e-5)
    assert page.facts["iterations"] == str(metrics["fit"]["n_iter"])
    assert page.facts["rounds over the data"] == str(metrics["fit"]["rounds"])
    assert page.facts["train rows"] == str(metrics["rows"]["train"])
    assert page.table(["parameter"])["regParam"] == ["0.01", "set"]
    assert f'PipelineModel.load("file:{trained.path}/model")' in text.replace("&#34;", '"')

    data = {"model": str(trained.path), "input": table}
    evaluated = run("evaluate", data)
    page = Page((evaluated.path / "report.html").read_text())
    agrees(page, {"input": evaluated.report["metrics"]})

    predicted = run("predict", data)
    told = predicted.report["predicted"]
    rows = spark.read.parquet(f"{predicted.path}/predictions").groupBy("prediction").count()
    counts = {int(row["prediction"]): row["count"] for row in rows.collect()}
    assert dict(zip(told["labels"], told["rows"], strict=True)) == counts
    page = Page((predicted.path / "report.html").read_text())
    assert page.facts["rows"] == "200"
    assert page.table(["column"])["<b>"] == ["double"]


def test_interventions_are_listed_with_their_origin(run, table, monkeypatch):
    from mllib_ext.monitor.fits import Monitor
    from mllib_ext.optimizers.loop import Change

    called = Monitor.__call__

    def steered(self, state, record):
        answer = called(self, state, record)
        return [*answer, Change(reg_param=0.5)] if record.iteration == 2 else answer

    monkeypatch.setattr(Monitor, "__call__", steered)
    trained = run("train", classifier(table))
    assert trained.code == 0, trained.err
    text = (trained.path / "report.html").read_text()
    (what,) = [row for row in Page(text).rows if "callback" in row]
    assert what[2].startswith("change")
    assert "0.5" in what[2]
    assert "change reg_param=0.5" in text  # the mark on the loss


@pytest.mark.parametrize("broken", ["render", "page"])
def test_a_report_that_cannot_be_made_loses_nothing_else(run, table, monkeypatch, broken):
    def fails(*args):
        raise RuntimeError("no paper")

    monkeypatch.setattr(report, {"render": "render", "page": "_page"}[broken], fails)
    trained = run("train", classifier(table))
    assert trained.code == 0
    assert trained.err.count("no report.html: RuntimeError: no paper") == 1
    names = sorted(path.name for path in trained.path.iterdir())
    assert names == ["config.yaml", "history.jsonl", "metrics.json", "model"]


def test_a_regression_and_clusters_have_what_fits_them(run, table):
    both = {"input": table, "features": ["a", "<b>"], "split": {"test": 0}}
    line = run("train", {
        **both, "label": "a",
        "estimator": {"class": "pyspark.ml.regression.LinearRegression", "params": {"regParam": 1}},
    })  # fmt: skip
    assert line.code == 0, line.err
    text = (line.path / "report.html").read_text()
    agrees(Page(text), line.report["metrics"])
    assert "Residuals of the train rows" in text
    clusters = run("train", {
        **both,
        "estimator": {"class": "mllib_ext.clustering.KMeans", "params": {"k": 3, "seed": 1}},
    }, "--overwrite")  # fmt: skip
    assert clusters.code == 0, clusters.err
    page = Page((clusters.path / "report.html").read_text())
    values = clusters.report["metrics"]["train"]
    assert page.facts["silhouette"] == shown(values["silhouette"])
    assert set(values) <= set(METRICS["clustering"])
