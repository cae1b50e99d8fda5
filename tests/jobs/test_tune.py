"""A search: what it tries, what it finds, what it leaves out, what it may not look at."""

import csv
import json
from typing import Any

import numpy as np
import pytest
import yaml
from pyspark.ml import PipelineModel
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.regression import LinearRegression

from mllib_ext.job.candidates import Candidates
from mllib_ext.job.config.tune import Search
from mllib_ext.monitor import find_runs, read_run

# CrossValidator leaves its pool of threads to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool")

SEARCH = {"params": {"regParam": [1e-4, 30.0]}, "folds": 2, "metric": "rmse"}


@pytest.fixture
def config():
    return {
        "input": {"format": "sklearn", "dataset": "diabetes"},
        "estimator": {"class": "mllib_ext.regression.LinearRegression"},
        "search": SEARCH,
    }


def test_a_grid_is_tried_in_folds_and_the_best_pipeline_is_saved(run, spark, config, tmp_path):
    result = run("tune", config)
    assert result.code == 0, result.err
    rows = list(csv.DictReader((result.path / "candidates.csv").read_text().splitlines()))
    assert [row["regParam"] for row in rows] == ["0.0001", "30.0"]  # the best first
    assert float(rows[0]["mean"]) < float(rows[1]["mean"])
    search = result.report["search"]
    assert (search["candidates"], search["folds"]) == (2, 2)
    assert search["best"] == {"params": {"regParam": 1e-4}, "mean": float(rows[0]["mean"])}

    # the model is what training with best.yaml gives, on the same rows
    model: Any = PipelineModel.load(str(result.path / "model"))
    again = yaml.safe_load((result.path / "best.yaml").read_text())
    trained = run("train", {**again, "output": {"path": str(tmp_path / "train-out")}})
    assert trained.code == 0, trained.err
    twin: Any = PipelineModel.load(str(trained.path / "model"))
    assert np.allclose(
        model.stages[-1].coefficients.toArray(), twin.stages[-1].coefficients.toArray(), rtol=1e-9
    )
    assert trained.report["metrics"]["test"] == pytest.approx(result.report["metrics"]["test"])


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_learning_rate_that_diverges_is_the_last_of_the_table(run, config):
    config["estimator"]["params"] = {"solver": "gd", "lineSearch": "none", "maxIter": 60}
    config["search"] = {"params": {"stepSize": [1e6, 0.3, 0.01]}, "folds": 2, "parallelism": 2}
    result = run("tune", config)
    assert result.code == 0, result.err
    rows = list(csv.DictReader((result.path / "candidates.csv").read_text().splitlines()))
    assert [row["stepSize"] for row in rows] == ["0.3", "0.01", "1000000.0"]
    assert rows[-1]["mean"] == ""
    assert "a candidate is left out: " in result.err
    runs = find_runs(f"{result.path}.run")
    points = [f"/fold-{fold}/point-{point}" for fold in (1, 2) for point in (1, 2, 3)]
    assert runs == [f"{result.path}.run{name}" for name in ["", *points]]
    states = {run: read_run(run).state for run in runs}
    assert [run for run in runs if states[run] == "failed"] == [
        f"{result.path}.run/fold-{fold}/point-1" for fold in (1, 2)
    ]


def test_where_all_candidates_diverge_nothing_is_written(run, config):
    config["estimator"]["params"] = {"solver": "gd", "lineSearch": "none"}
    config["search"] = {"params": {"stepSize": [1e6]}, "folds": 2}
    result = run("tune", config)
    assert result.code == 1
    assert "diverged" in result.err.splitlines()[-1]
    assert not result.path.exists()


def test_stages_are_searched_too_and_the_label_and_weights_are_made_in_every_fold(run, config):
    config["input"]["dataset"] = "wine"
    config["input"]["derive"] = {"kind": "concat('k', cast(label as int))"}
    config["encode"] = {"index": ["kind"], "output": "unused"}
    config["features"] = "x"
    config["label"] = "kind_index"
    config["weight"] = "balanced"
    pca = {"inputCol": "features", "outputCol": "x"}
    config["stages"] = [{"class": "pyspark.ml.feature.PCA", "params": pca}]
    config["estimator"] = {
        "class": "mllib_ext.classification.LogisticRegression",
        "params": {"regParam": 0.01},
    }
    config["search"] = {"params": {"stages.0.k": [1, 6]}, "folds": 2, "metric": "logLoss"}
    result = run("tune", config)
    assert result.code == 0, result.err
    assert result.report["search"]["best"]["params"] == {"stages.0.k": 6}
    assert result.report["classes"]["test"]["labels"] == ["k1", "k0", "k2"]  # by frequency
    model = PipelineModel.load(str(result.path / "model"))
    # weights are for training alone
    assert [type(stage).__name__ for stage in model.stages] == [
        "StringIndexerModel", "PCAModel", "LogisticRegressionModel",
    ]  # fmt: skip
    best = yaml.safe_load((result.path / "best.yaml").read_text())
    assert best["stages"][0]["params"] == {**pca, "k": 6}


def test_the_pipeline_fits_the_stages_before_the_estimator_once_a_fold(spark):
    from pyspark.ml.feature import StandardScaler, VectorAssembler

    fits = []

    class Counted(StandardScaler):
        def _fit(self, dataset):
            fits.append(dataset.columns)
            return super()._fit(dataset)

    df = spark.range(30).selectExpr("cast(id as double) as x", "3.0 * id as label", "id % 2 as f")
    assembler = VectorAssembler(inputCols=["x"], outputCol="raw")
    line = LinearRegression()
    pipeline = Candidates(
        stages=[assembler, Counted(inputCol="raw", outputCol="features"), line]
    ).setFold("f")
    grid = [{line.regParam: r} for r in (0.0, 1.0, 10.0)]
    models = dict(pipeline.fitMultiple(df, grid))
    assert len(fits) == 1
    assert "f" not in fits[0]  # no stage sees the fold
    errors = [RegressionEvaluator().evaluate(models[i].transform(df)) for i in range(3)]
    assert errors == sorted(errors)  # each index has the model of its own strength


def test_a_candidate_is_tried_once(run, config):
    config["search"] = {"params": {"regParam": [0.1, 0.1]}, "folds": 2}
    result = run("tune", config)
    assert result.code == 0, result.err
    assert result.report["search"]["candidates"] == 1
    drawn = Search.model_validate({"method": "random", "params": {"regParam": [0.1, 0.2]}}).drawn()
    assert sorted(one["regParam"] for one in drawn) == [0.1, 0.2]


def test_folds_without_rows_are_refused(run, config):
    config["search"] = {"params": {"regParam": [0.1]}, "folds": 1000}
    result = run("tune", config)
    assert result.code == 1
    assert "search.folds: expected a training row in each of them, found 1000 folds" in result.err


def test_random_draws_are_in_range_and_more_begin_with_those_of_fewer():
    space = {
        "stepSize": {"from": 0.001, "to": 10.0, "scale": "log"},
        "maxIter": {"from": 5, "to": 7},
        "solver": ["gd", "l-bfgs"],
    }
    search = Search.model_validate({"method": "random", "candidates": 400, "params": space})
    drawn = search.drawn()
    assert search.model_copy(update={"candidates": 3}).drawn() == drawn[:3]
    steps = np.array([draw["stepSize"] for draw in drawn])
    assert 0.001 <= steps.min() < steps.max() <= 10
    # half of the draws lie below the middle magnitude: 5 standard deviations of a binomial count
    assert (steps < 0.1).sum() == pytest.approx(200, abs=50)
    assert {draw["maxIter"] for draw in drawn} == {5, 6, 7}
    assert {draw["solver"] for draw in drawn} == {"gd", "l-bfgs"}
    json.dumps(drawn)  # plain numbers, as Params have to be
