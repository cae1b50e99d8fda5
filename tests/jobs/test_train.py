"""The main job, through its command line: what it writes, and what it says when it cannot."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from pyspark.ml import PipelineModel
from pyspark.sql import functions as F
from scripts import ROOT, load_job

from mllib_ext.monitor import find_runs, read_run

JOB = ROOT / "jobs" / "train.py"
main = load_job("train").main


@pytest.fixture(scope="module")
def table(spark, tmp_path_factory):
    """A hundred rows of a line with three columns, as Parquet."""
    path = str(tmp_path_factory.mktemp("data") / "line.parquet")
    rows = spark.range(100).select(
        F.col("id").cast("double").alias("a"),
        (F.col("id") % 7).alias("b"),
        (2.0 * F.col("id") - (F.col("id") % 7)).alias("target"),
        F.lit(1.0).alias("w"),
        F.lit(float("nan")).alias("nan"),
        F.when(F.col("id") % 2 == 0, "even").otherwise("odd").alias("parity"),
    )
    rows.coalesce(2).write.parquet(path)
    return path


@pytest.fixture
def config(tmp_path, table):
    """Write a config for the table, with changes, and return its path."""

    def write(**changes):
        values = {
            "input": {"format": "parquet", "path": table},
            "features": ["a", "b"],
            "label": "target",
            "estimator": {
                "class": "pyspark.ml.regression.LinearRegression",
                "params": {"solver": "normal"},
            },
            "output": {"path": str(tmp_path / "out")},
            **changes,
        }
        file = tmp_path / "line.yaml"
        file.write_text(yaml.safe_dump(values))
        return str(file)

    return write


@pytest.fixture
def refused(spark, tmp_path, capsys):
    """Run a job that has to fail: its code and what it says, having left nothing behind."""

    def run(*argv, code=1):
        before = sorted(path.name for path in tmp_path.iterdir())
        assert main(list(argv)) == code
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert "at org.apache" not in err
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        return err

    return run


# --- what a job writes -----------------------------------------------------------------------


def test_a_job_writes_model_metrics_config_and_says_how_to_go_on(spark, config, tmp_path, capsys):
    cached = spark.sparkContext._jsc.getPersistentRDDs().size()
    assert main(["--config", config()]) == 0

    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "config.yaml",
        "metrics.json",
        "model",
        "report.html",
    ]
    assert not list(tmp_path.rglob(".*"))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["rows"]["train"] + metrics["rows"]["test"] == 100
    assert metrics["metrics"]["test"]["r2"] == pytest.approx(1, abs=1e-9)  # a line, exactly
    assert set(metrics["metrics"]["train"]) == {"rmse", "mae", "r2"}

    said = capsys.readouterr().out
    assert "LinearRegression trained on" in said
    # the two lines that load the model, as they are printed
    namespace = {}
    exec("\n".join(said.splitlines()[-2:]), namespace)
    model = namespace["model"]
    assert isinstance(model, PipelineModel)
    row = model.transform(spark.createDataFrame([(10.0, 3)], "a double, b long")).first()
    assert row.prediction == pytest.approx(17, abs=1e-6)
    assert spark.sparkContext._jsc.getPersistentRDDs().size() == cached


def test_the_resolved_config_runs_again_to_the_same_metrics(spark, config, tmp_path):
    assert main(["--config", config(name="first"), "--set", "split.test=0.3"]) == 0
    again = ["--config", str(tmp_path / "out" / "config.yaml"), "--output", str(tmp_path / "b")]
    assert main(again) == 0
    first, second = (json.loads((tmp_path / d / "metrics.json").read_text()) for d in ("out", "b"))
    assert first["rows"] == second["rows"]
    assert first["metrics"]["test"] == pytest.approx(second["metrics"]["test"], rel=1e-9)


def test_stages_make_the_columns_that_the_estimator_sees(spark, config, tmp_path):
    stages = [
        {
            "class": "pyspark.ml.feature.StringIndexer",
            "params": {"inputCol": "parity", "outputCol": "y"},
        },
        {
            "class": "pyspark.ml.feature.VectorAssembler",
            "params": {"inputCols": ["a", "b"], "outputCol": "x"},
        },
    ]
    job = config(
        stages=stages,
        features="x",
        label="y",
        weight="w",
        estimator={
            "class": "pyspark.ml.classification.DecisionTreeClassifier",
            "params": {"maxDepth": 1},
        },
    )
    assert main(["--config", job]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]
    assert set(metrics["train"]) == {"areaUnderROC", "areaUnderPR", "accuracy", "f1", "logLoss"}
    assert len(PipelineModel.load(str(tmp_path / "out" / "model")).stages) == 3


def test_clusters_need_no_label(spark, config, tmp_path):
    job = yaml.safe_load(Path(config()).read_text())
    del job["label"]
    job["estimator"] = {"class": "pyspark.ml.clustering.KMeans", "params": {"k": 2, "seed": 1}}
    file = tmp_path / "clusters.yaml"
    file.write_text(yaml.safe_dump(job))
    assert main(["--config", str(file), "--set", "split.test=0"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["rows"] == {"train": 100, "test": 0}
    assert metrics["metrics"]["train"]["silhouette"] > 0.5
    assert set(metrics["metrics"]) == {"train"}
    assert sum(metrics["clusters"]["train"]["sizes"]) == 100


def test_clusters_of_this_package_report_cost_sizes_and_both_silhouettes(spark, config, tmp_path):
    job = yaml.safe_load(Path(config()).read_text())
    del job["label"]
    job["weight"] = "w"
    job["evaluation"] = ["silhouette", "cosineSilhouette"]
    job["estimator"] = {
        "class": "mllib_ext.clustering.KMeans",
        "params": {"k": 3, "maxIter": 100, "initialCenters": [[0, 3], [50, 3], [99, 3]]},
    }
    file = tmp_path / "clusters.yaml"
    file.write_text(yaml.safe_dump(job))
    assert main(["--config", str(file)]) == 0
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["fit"]["converged"]
    for side in ("train", "test"):
        clusters = report["clusters"][side]
        assert clusters["labels"] == [0, 1, 2]
        assert sum(clusters["sizes"]) == sum(clusters["weights"]) == report["rows"][side]
        assert set(report["metrics"][side]) == {"silhouette", "cosineSilhouette"}
        # The line's numbers 0 to 99 cut in three: near neighbours, all in about one direction.
        assert 0.6 < report["metrics"][side]["silhouette"] < 0.8
    history = (tmp_path / "out" / "history.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["loss"] == report["fit"]["cost"]
    assert len(PipelineModel.load(str(tmp_path / "out" / "model")).stages) == 2


def test_the_history_has_a_line_for_every_iteration(spark, config, tmp_path):
    job = config(
        estimator={
            "class": "mllib_ext.regression.LinearRegression",
            "params": {"solver": "l-bfgs", "regParam": 0.1},
        }
    )
    assert main(["--config", job]) == 0
    text = (tmp_path / "out" / "history.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert report["fit"]["converged"] is True
    assert [line["iteration"] for line in lines] == list(range(report["fit"]["n_iter"] + 1))
    assert lines[-1]["loss"] <= lines[0]["loss"]
    parts = lines[-1]["rounds"][0]["partitions"]
    assert sum(part["rows"] for part in parts) == report["rows"]["train"]
    assert {"seconds", "bytes", "host", "partition"} <= set(parts[0])

    record = tmp_path / "out.run"
    assert read_run(str(record)).rounds.loss.tolist() == [line["loss"] for line in lines]
    (record / "mark").write_text("not of a run: to be seen if the record is replaced")
    assert main(["--config", job, "--overwrite"]) == 0
    assert find_runs(str(record)) == [str(record), f"{record}/fit-2"]
    (record / "mark").unlink()
    assert main(["--config", job, "--overwrite"]) == 0
    assert find_runs(str(record)) == [str(record)]


@pytest.mark.parametrize(
    ("name", "metric", "low", "high"),
    # What these models reach on their test rows, with room for another BLAS: digits 0.96 of the
    # images, diabetes a root mean square error of 51 where the mean alone has 78.
    [("digits", "accuracy", 0.95, 1.0), ("diabetes", "rmse", 45, 62)],
)
def test_the_ready_configs_train_good_models(spark, tmp_path, name, metric, low, high):
    argv = ["--config", f"{ROOT}/conf/jobs/{name}.yaml", "--output", str(tmp_path / "out")]
    assert main(argv) == 0
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert low <= report["metrics"]["test"][metric] <= high
    assert report["fit"]["converged"] is True
    PipelineModel.load(str(tmp_path / "out" / "model"))


# --- the output that is there ----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
def test_a_job_goes_on_from_its_checkpoints_and_refuses_those_of_another(
    spark, config, tmp_path, capsys
):
    params = {"solver": "gd", "maxIter": 2, "tol": 0}
    estimator = "mllib_ext.regression.LinearRegression"
    output = {"path": str(tmp_path / "out"), "overwrite": True}
    kept = {"checkpointDir": str(tmp_path / "kept"), "output": output}

    def iterations(more):
        changed = {"class": estimator, "params": {**params, **more}}
        code = main(["--config", config(estimator=changed, **kept)])
        return code or json.loads((tmp_path / "out" / "metrics.json").read_text())["fit"]["n_iter"]

    assert iterations({}) == 2
    assert [path.name for path in (tmp_path / "kept" / "run-1").iterdir()] == ["00000002.zip"]
    assert iterations({"maxIter": 5}) == 5
    lines = [json.loads(x) for x in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    assert [line["settings"]["max_iter"] for line in lines] == [2, 2, 2, 5, 5, 5]
    # The record goes on, too: its first part is that of the job that left the checkpoints.
    runs = [read_run(str(tmp_path / "out.run" / name)) for name in (".", "fit-2")]
    assert [list(one.rounds["iteration"]) for one in runs] == [[0, 1, 2], [3, 4, 5]]
    assert iterations({"maxIter": 5}) == 5  # nothing is left to do
    assert "the report goes without" not in capsys.readouterr().err
    assert iterations({"regParam": 0.5, "maxIter": 5}) == 1
    assert "param regParam: 0.0 there, 0.5 here" in capsys.readouterr().err
    assert (tmp_path / "out.run" / "events.jsonl").exists()


def test_an_earlier_result_is_refused_and_replaced_only_when_told(spark, config, tmp_path, capsys):
    job = config()
    assert main(["--config", job]) == 0
    result = (tmp_path / "out" / "metrics.json").read_text()
    capsys.readouterr()
    assert main(["--config", job]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: output.path: expected a new directory, found file:{tmp_path}")
    assert "--overwrite" in err
    assert "reading" not in err  # refused before anything else was done
    assert (tmp_path / "out" / "metrics.json").read_text() == result

    assert main(["--config", job, "--overwrite", "--set", "split.test=0.5"]) == 0
    assert (tmp_path / "out" / "metrics.json").read_text() != result
    assert not list(tmp_path.glob(".*"))


def test_overwriting_is_refused_where_no_job_wrote(refused, config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    err = refused("--config", config(), "--overwrite")
    assert "expected the result of an earlier job to overwrite" in err
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_a_failed_job_keeps_the_earlier_result(spark, config, tmp_path):
    assert main(["--config", config()]) == 0
    before = (tmp_path / "out" / "metrics.json").read_text()
    assert main(["--config", config(label="b2"), "--overwrite"]) == 1
    assert (tmp_path / "out" / "metrics.json").read_text() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
def test_an_earlier_record_goes_once_there_is_a_new_one(spark, config, tmp_path):
    def train(x, **changes):
        params = {"solver": "gd", "maxIter": x, "tol": 0}
        estimator = {"class": "mllib_ext.regression.LinearRegression", "params": params}
        return main(["--config", config(estimator=estimator, **changes), "--overwrite"])

    assert train(2) == 0
    before = (tmp_path / "out.run" / "events.jsonl").read_text()
    assert train(3, weight="nan") == 1  # before the first round
    assert (tmp_path / "out.run" / "events.jsonl").read_text() == before
    assert train(3) == 0
    assert list(read_run(str(tmp_path / "out.run")).rounds["iteration"]) == [0, 1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line.yaml", "out", "out.run"]


def test_what_a_killed_job_left_is_named(spark, config, tmp_path, capsys):
    (tmp_path / ".out.0a1b2c3d.tmp").mkdir()
    assert main(["--config", config()]) == 0
    assert ".out.0a1b2c3d.tmp is of a job that was killed" in capsys.readouterr().err


# --- bad input -------------------------------------------------------------------------------


def test_an_unknown_key_is_named_with_the_nearest(refused, config):
    err = refused("--config", config(lable="x"), code=2)
    assert "lable: expected one of" in err
    assert "did you mean 'label'" in err


def test_checkpoints_of_what_has_no_iterations_are_refused(refused, config):
    message = refused("--config", config(checkpointDir="kept"), code=2)
    assert "checkpointDir: expected none with an estimator that does not train" in message


def test_a_missing_config_is_one_line(refused, tmp_path):
    err = refused("--config", str(tmp_path / "none.yaml"), code=2)
    assert err == f"error: {tmp_path}/none.yaml: expected a config file, found no such file\n"


def test_a_missing_input_is_named(refused, config, tmp_path):
    err = refused("--config", config(), "--set", f"input.path={tmp_path}/none.parquet")
    assert err == (
        "error: input.path: expected parquet files, found nothing at "
        f"file:{tmp_path}/none.parquet\n"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "targit"}, "label column 'targit': .*did you mean 'target'"),
        ({"features": ["a", "bb"]}, "features column 'bb': .*found no such column"),
        ({"features": "aa"}, "features column 'aa': .*did you mean 'a'"),
        ({"weight": "ww"}, "weight column 'ww': .*did you mean 'w'"),
        (
            {"label": "parity"},
            "label column 'parity': expected a numeric.*string; encode.index, or",
        ),
        ({"features": ["parity"]}, "features column 'parity': expected a numeric.*found string"),
        ({"features": "a"}, "features column 'a': expected a vector.*found double"),
        ({"split": {"by": ["c"]}}, "split.by column 'c': expected one of"),
    ],
)
def test_a_wrong_column_is_named_with_what_was_expected(refused, config, change, message):
    import re

    err = refused("--config", config(**change))
    assert err.startswith("error: ")
    assert re.search(message, err), err


def test_a_column_that_no_stage_made_is_named(refused, config):
    stage = {
        "class": "pyspark.ml.feature.VectorAssembler",
        "params": {"inputCols": ["a", "b"], "outputCol": "x"},
    }
    err = refused("--config", config(stages=[stage], features="xx"))
    assert "error: features column 'xx'" in err


def test_labels_that_are_not_finite_are_counted(refused, config, spark, tmp_path, table):
    rows = spark.read.parquet(table)
    y = F.when(F.col("a") < 3, None).when(F.col("a") < 5, float("nan")).otherwise(F.col("target"))
    rows.withColumn("target", y).write.parquet(f"{tmp_path}/nan.parquet")
    err = refused(
        "--config", config(input={"format": "parquet", "path": f"{tmp_path}/nan.parquet"})
    )
    assert "label column 'target': expected a finite number in every row" in err
    assert "in 5 of them" in err


def test_no_rows_are_an_error(refused, config, spark, tmp_path, table):
    spark.read.parquet(table).limit(0).write.parquet(f"{tmp_path}/empty.parquet")
    err = refused(
        "--config", config(input={"format": "parquet", "path": f"{tmp_path}/empty.parquet"})
    )
    assert "error: input: expected at least one row, found no rows" in err


def test_too_few_rows_to_test_with_are_an_error(refused, config):
    err = refused("--config", config(), "--set", "split.test=1e-7")
    assert "split.test: expected rows to train and to test with, found none to test with" in err


def test_a_param_out_of_its_range_is_one_line(refused, config):
    err = refused("--config", config(), "--set", "estimator.params.regParam=-1")
    assert "regParam" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"solver": "foo"}, "params.solver: expected one of ("),
        ({"maxIter": -3}, "params.maxIter: expected "),
        ({"regParam": float("nan")}, "params.regParam: expected "),
        ({"momentum": 0.5}, "params.momentum: expected "),
    ],
)
def test_values_that_the_estimator_would_refuse_are_told_before_spark_starts(
    refused, config, params, said
):
    estimator = {"class": "mllib_ext.regression.LinearRegression", "params": params}
    err = refused("--config", config(estimator=estimator), "--dry-run", code=2)
    assert f"estimator.{said}" in err
    assert f"found {next(iter(params.values()))!r}" in err


def test_roc_of_ten_classes_is_refused_before_training(refused, config):
    err = refused(
        "--config",
        config(
            input={"format": "sklearn", "dataset": "wine"},
            features="features",
            label="label",
            estimator={"class": "pyspark.ml.classification.NaiveBayes"},
            evaluation=["areaUnderROC"],
        ),
    )
    assert "evaluation: areaUnderROC: expected labels 0 and 1, found labels up to 2" in err
    assert "training" not in err


# --- as a process of its own -----------------------------------------------------------------


def environment():
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    spark = {"SPARK_LOCAL_IP": "127.0.0.1", "PYTHONPATH": os.pathsep.join(path)}
    inherited = {k: v for k, v in os.environ.items() if k != "PYSPARK_GATEWAY_PORT"}
    return {**inherited, **spark}


def start(*argv):
    return subprocess.Popen(
        [sys.executable, str(JOB), *argv, "--set", "spark.ui.enabled=false"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_missing_column_shows_no_trace_in_a_process_of_its_own(config, tmp_path):
    process = start("--config", config(label="targit"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: label column 'targit'" in err
    assert "Traceback" not in out + err
    assert "at org.apache" not in out + err
    assert [path.name for path in tmp_path.iterdir()] == ["line.yaml"]


ENDLESS = {
    "class": "mllib_ext.regression.LinearRegression",
    # a step so small that it would go on for hours
    "params": {
        "solver": "gd",
        "lineSearch": "none",
        "stepSize": 1e-9,
        "maxIter": 1000000,
        "tol": 0.0,
    },
}


def heard(process, text):
    """What a job has said until it says this, which is in the last line."""
    said = []
    for line in process.stderr:
        said.append(line)
        if text in line:
            return said
    raise AssertionError("".join(said))


def until_it_runs(process, record):
    """Wait for a record, which is written from another thread, a tenth of a second later."""
    while not (record / "run.json").exists() or read_run(str(record)).state == "starting":
        assert process.poll() is None
        time.sleep(0.05)
    assert read_run(str(record)).state == "running"


def test_ctrl_c_once_keeps_the_model_as_it_is_and_the_page_shows_the_fit(config, tmp_path):
    process = start("--config", config(estimator=ENDLESS, page=True))
    try:
        address = heard(process, "the page of the fit: ")[-1].split()[-1]
        until_it_runs(process, tmp_path / "out.run")
        with urllib.request.urlopen(address.replace("/?", "/api/runs?"), timeout=60) as answer:
            (shown,) = json.load(answer)
        assert (shown["run"], shown["state"]) == (".", "running")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "stopping after this round and keeping the model; Ctrl-C again aborts" in err
    fit = json.loads((tmp_path / "out" / "metrics.json").read_text())["fit"]
    assert (fit["reason"], fit["converged"]) == ("stopped by Ctrl-C", False)
    (stop,) = read_run(str(tmp_path / "out.run")).actions.to_dict("records")
    assert (stop["origin"], stop["iteration"]) == ("terminal", fit["n_iter"])


def test_ctrl_c_twice_aborts_and_leaves_the_record_alone(config, tmp_path):
    # A pass of a hundred thousand steps: the first Ctrl-C waits for its end.
    passes = {"solver": "sgd", "miniBatchFraction": 1e-5, "stepSize": 1e-9, "tol": 0.0}
    process = start("--config", config(estimator={**ENDLESS, "params": passes}))
    said = []
    try:
        said += heard(process, "iteration 0/")
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out.")]
        until_it_runs(process, tmp_path / "out.run")
        process.send_signal(signal.SIGINT)
        said += heard(process, "Ctrl-C again aborts")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, "".join(said) + err
    assert err.splitlines()[-1] == "interrupted"
    assert "py4j" not in err  # workers whose tasks were cancelled may still say so
    assert "at org.apache" not in out + err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line.yaml", "out.run"]
    assert read_run(str(tmp_path / "out.run")).end["reason"] == "interrupted"
