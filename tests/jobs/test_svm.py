"""The ready configs of support vector machines, on digits and on rows made up in their schema."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from scripts import ROOT, load_job

main = load_job("train").main


@pytest.fixture
def train(spark, tmp_path):
    """``train(name, path)``: the report of a config whose input is at the path."""

    def run(name, path=None):
        out = tmp_path / "out"
        argv = ["--config", f"{ROOT}/conf/jobs/{name}.yaml", "--output", str(out)]
        assert main([*argv, *(["--set", f"input.path={path}"] if path else [])]) == 0
        PipelineModel.load(str(out / "model"))
        return json.loads((out / "metrics.json").read_text())

    return run


def adult(rng):
    """A line of the data set Adult: who studied longer earns more, with noise."""
    years, hours = int(rng.integers(1, 17)), int(rng.integers(20, 60))
    rich = years + 0.1 * hours + rng.normal() > 14
    job, sex = rng.choice(["Sales", "Tech-support", "?"]), rng.choice(["Male", "Female"])
    values = [
        int(rng.integers(18, 80)), "Private", 1000, "HS-grad", years, "Divorced", job, "Own-child",
        "White", sex, 0, 0, hours, "United-States", ">50K" if rich else "<=50K",
    ]  # fmt: skip
    return ", ".join(map(str, values))


def test_adult_svm_learns_what_the_columns_say(train, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "adult.data").write_text("\n".join(adult(rng) for _ in range(600)) + "\n")
    report = train("adult-svm", tmp_path / "adult.data")
    # scikit-learn's LinearSVC on years and hours: 0.96, and an area of 0.998.
    assert report["metrics"]["test"]["accuracy"] > 0.85
    assert report["metrics"]["test"]["areaUnderROC"] > 0.93
    assert report["fit"]["converged"] is True


def test_20newsgroups_svm_tells_groups_by_their_words(train, tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for i in range(300):
        group = i % 3
        own = rng.choice([f"topic{group}x{j}" for j in range(30)], 4)
        others = rng.choice([f"word{j}" for j in range(100)], 12)
        text = " ".join([*own, *others])
        lines.append(json.dumps({"group": f"group{group}", "text": text}))
    (tmp_path / "news.jsonl").write_text("\n".join(lines) + "\n")
    report = train("20newsgroups-svm", tmp_path / "news.jsonl")
    assert report["metrics"]["test"]["accuracy"] > 0.9
    assert report["fit"]["converged"] is True


def test_digits_svm_reads_digits(train):
    # scikit-learn's SVC with these parameters: 0.978 to 0.992 by the split (four of them).
    report = train("digits-svm")
    assert report["metrics"]["test"]["accuracy"] > 0.965
    assert report["fit"]["converged"] is True
