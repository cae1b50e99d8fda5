"""A model from its training to others' rows: what is written, and what is refused before."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from pyspark.ml import PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.regression import LinearRegression
from scripts import load_job
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

SCHEMA = "id int, a double, b double, colour string, verdict string"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two columns of a real data set, one of them with holes, a colour, and a verdict as text."""
    X, y = load_breast_cancer(return_X_y=True)
    rows = pd.DataFrame(
        {
            "id": np.arange(len(y)),
            "a": X[:, 0],
            "b": np.where(np.arange(len(y)) % 10 == 0, np.nan, X[:, 1]),
            "colour": np.where(X[:, 2] > 90, "red", "blue"),
            "verdict": np.where(y == 1, "benign", "malignant"),
        }
    )
    path = tmp_path_factory.mktemp("data") / "cells.csv"
    rows.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def source(table):
    return {"format": "csv", "path": str(table), "schema": SCHEMA, "options": {"header": True}}


@pytest.fixture(scope="module")
def trained(spark, source, tmp_path_factory):
    """What one training job left, for all tests, which only read it."""
    path = tmp_path_factory.mktemp("trained") / "out"
    config = {
        "input": source,
        "encode": {
            "numeric": ["a"],
            "impute": {"b": "median"},
            "categorical": ["colour"],
            "index": ["verdict"],
        },
        "label": "verdict_index",
        "estimator": {
            "class": "mllib_ext.classification.LogisticRegression",
            "params": {"regParam": 0.01},
        },
        "output": {"path": str(path)},
    }
    file = path.parent / "train.yaml"
    file.write_text(yaml.safe_dump(config))
    assert load_job("train").main(["--config", str(file)]) == 0
    return SimpleNamespace(path=path, report=json.loads((path / "metrics.json").read_text()))


def test_training_reports_every_class_by_its_name(trained):
    test = trained.report["classes"]["test"]
    assert test["labels"] == ["benign", "malignant"]
    assert sum(test["support"]) == trained.report["rows"]["test"]
    right = test["confusion"][0][0] + test["confusion"][1][1]
    accuracy = trained.report["metrics"]["test"]["accuracy"]
    assert right / sum(test["support"]) == pytest.approx(accuracy, rel=1e-12)


def test_predictions_carry_the_input_and_the_names_of_the_classes(
    run, spark, trained, source, table
):
    unlabelled = {**source, "schema": SCHEMA.replace(", verdict string", "")}
    rows = pd.read_csv(table)
    path = table.parent / "unlabelled.csv"
    rows.drop(columns="verdict").to_csv(path, index=False)
    result = run(
        "predict", {"model": str(trained.path), "input": {**unlabelled, "path": str(path)}}
    )
    assert result.code == 0, result.err
    assert result.report["rows"] == len(rows)
    written = spark.read.parquet(str(result.path / "predictions"))
    assert written.columns == [
        "id", "a", "b", "colour", "prediction", "probability", "predicted_verdict",
    ]  # fmt: skip
    found: Any = written.toPandas()
    model = PipelineModel.load(str(trained.path / "model"))
    predicted = model.transform(spark.read.csv(str(path), header=True, inferSchema=True))
    expected = {row.id: row.prediction for row in predicted.collect()}
    assert dict(zip(found.id, found.prediction, strict=True)) == expected
    assert np.array_equal(
        found.predicted_verdict, np.where(found.prediction == 0, "benign", "malignant")
    )
    assert np.allclose([sum(p) for p in found.probability], 1)


def test_an_evaluation_agrees_with_scikit_learn_on_the_written_predictions(
    run, trained, source, tmp_path
):
    predicted = run(
        "predict",
        {
            "model": str(trained.path),
            "input": source,
            "columns": ["verdict", "predicted_verdict"],
            "output": {
                "path": str(tmp_path / "predict-out"),
                "format": "csv",
                "files": 1,
                "options": {"header": True},
            },
        },
    )
    assert predicted.code == 0, predicted.err
    (file,) = (predicted.path / "predictions").glob("*.csv")
    rows = pd.read_csv(file)
    y, p = rows.verdict, rows.predicted_verdict

    result = run("evaluate", {"model": str(trained.path), "input": source})
    assert result.code == 0, result.err
    metrics, classes = result.report["metrics"], result.report["classes"]
    assert set(metrics) == {"areaUnderROC", "areaUnderPR", "accuracy", "f1", "logLoss"}
    # the same counts in other sums
    assert metrics["accuracy"] == pytest.approx(accuracy_score(y, p), rel=1e-12)
    assert metrics["f1"] == pytest.approx(f1_score(y, p, average="weighted"), rel=1e-12)
    expected = precision_recall_fscore_support(y, p, labels=["benign", "malignant"])
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert classes[name] == pytest.approx(values, rel=1e-12)


def test_any_saved_model_can_be_evaluated_even_one_outside_a_pipeline(run, spark, tmp_path):
    df = spark.range(40).selectExpr("cast(id as double) as x", "cast(2 * id as double) as label")
    rows = VectorAssembler(inputCols=["x"], outputCol="features").transform(df)
    LinearRegression().fit(rows).save(str(tmp_path / "line"))
    rows.write.parquet(str(tmp_path / "rows"))
    source = {"format": "parquet", "path": str(tmp_path / "rows")}
    result = run("evaluate", {"model": str(tmp_path / "line"), "input": source})
    assert result.code == 0, result.err
    assert result.report["metrics"]["rmse"] == pytest.approx(0, abs=1e-8)
    assert "classes" not in result.report


def test_what_cannot_be_predicted_is_refused_by_name(run, trained, source, tmp_path):
    model = {"model": str(trained.path), "input": source}
    (tmp_path / "empty").mkdir()

    def refused(job, *argv, **changes):
        result = run(job, {**model, **changes}, *argv)
        assert result.code == 1
        assert not result.path.exists()
        return result.err.splitlines()[-1]

    assert "model: expected the result of a training job, found nothing at" in refused(
        "predict", model=str(tmp_path / "none")
    )
    assert "model: expected a saved model, found" in refused(
        "predict", model=str(tmp_path / "empty")
    )
    # what the indexer skips, the stage that needs its outcome lacks
    lacking = {**source, "schema": SCHEMA.replace("colour", "color")}
    assert "expected a column 'colour', which the model's OneHotEncoderModel needs" in refused(
        "predict", input=lacking
    )
    assert "columns column 'predicton': expected one of" in refused(
        "predict", columns=["predicton"]
    )
    csv = {"path": str(tmp_path / "predict-out"), "format": "csv"}
    assert "found column 'probability' of type array<double>" in refused("predict", output=csv)
    unlabelled = {**source, "schema": SCHEMA.replace("verdict", "word")}
    assert "label column 'verdict': expected one of" in refused("evaluate", input=unlabelled)
    assert "evaluation: expected a metric of classification" in refused(
        "evaluate", evaluation=["rmse"]
    )
    numbered = {**source, "derive": {"n": "id + 0.5", "w": "-1.0"}}
    assert "label column 'n': expected a class 0, 1, ... in every row, found another" in refused(
        "evaluate", input=numbered, label="n"
    )
    assert "weight column 'w': expected a finite number of 0 or more in every row" in refused(
        "evaluate", input=numbered, weight="w"
    )
    # only the rows can tell
    strange = {**source, "derive": {"verdict": "'unclear'"}}
    assert refused("evaluate", input=strange).startswith("error: Unseen label: unclear.")
