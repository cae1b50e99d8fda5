"""What TensorBoard and MLflow are told of a fit, read back by their own readers."""

from __future__ import annotations

import logging
import warnings
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from sklearn.datasets import load_iris

from mllib_ext.classification import LogisticRegression, LogisticRegressionModel
from mllib_ext.clustering import KMeans
from mllib_ext.monitor import MLflow, TensorBoard, read_run
from mllib_ext.monitor.trackers import scalars

X, Y = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def frame(spark):
    rows = pd.DataFrame({"features": list(X), "label": Y.astype(float)})
    df = spark.createDataFrame(rows).coalesce(2).cache()
    yield df
    df.unpersist()


@pytest.fixture
def store(tmp_path, monkeypatch):
    """MLflow's store of files, which needs no server."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield (tmp_path / "mlruns").as_uri()


def test_tensorboard_reads_every_round_and_the_parameters(frame, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    estimator = KMeans(k=3, nInit=2).setCallbacks([TensorBoard(str(tmp_path / "logs"))])
    estimator.setRunDir(str(tmp_path / "run")).fit(frame)
    estimator.fit(frame)
    logs = sorted((tmp_path / "logs").iterdir())
    assert len(logs) == 2
    found = EventAccumulator(str(logs[0]))
    found.Reload()
    rounds = read_run(str(tmp_path / "run")).rounds
    assert {"loss", "seconds/compute", "state/shift", "settings/tol"} <= set(
        found.Tags()["scalars"]
    )
    read = found.Scalars("loss")
    assert [scalar.step for scalar in read] == list(range(len(rounds)))
    assert [scalar.value for scalar in read] == pytest.approx(rounds.loss.tolist(), rel=1e-6)
    (text,) = found.Tensors("params/text_summary")
    assert b"| k | 3 |" in text.tensor_proto.string_val[0]


def test_mlflow_has_params_metrics_and_the_model(frame, tmp_path, store):
    import mlflow

    tracker = MLflow(experiment="iris", tracking_uri=store)
    model = LogisticRegression(regParam=0.1).setCallbacks([tracker]).fit(frame)
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("iris")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["regParam"] == "0.1"
    metrics = sorted(client.get_metric_history(run.info.run_id, "loss"), key=lambda m: m.step)
    assert [metric.value for metric in metrics] == [record.loss for record in model.history]
    place = unquote(urlsplit(run.info.artifact_uri).path)
    loaded = LogisticRegressionModel.load(f"{place}/model")
    assert loaded.interceptVector == model.interceptVector


def test_a_fit_that_fails_is_a_failed_run_and_fails_as_it_would(frame, store):
    import mlflow

    tracker = MLflow(experiment="steep", tracking_uri=store)
    estimator = LogisticRegression(solver="gd", lineSearch="none", stepSize=1e9)
    with pytest.raises(ArithmeticError, match="diverged"):
        estimator.setCallbacks([tracker]).fit(frame)
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("steep")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]


def test_a_tracking_server_that_is_gone_does_not_fail_a_fit(frame, monkeypatch, caplog):
    for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "1")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    tracker = MLflow(tracking_uri="http://127.0.0.1:9", log_model=False, experiment="nowhere")
    with caplog.at_level(logging.WARNING, "mllib_ext"):
        assert KMeans(k=2).setCallbacks([tracker]).fit(frame).cost > 0
    told = [record.getMessage() for record in caplog.records if record.name.startswith("mllib_ext")]
    assert len(told) == 1
    assert "the run is not recorded any more" in told[0]


def test_metrics_are_the_numbers_of_an_event():
    event = {
        "loss": 1.0, "gradient_norm": None, "latency": 0.1, "compute": 0.2, "driver": 0.0,
        "settings": {"tol": 0.1, "mode": "plain"}, "state": {"gap": 2, "sizes": [1.0], "ok": True},
    }  # fmt: skip
    assert scalars(event) == {
        "loss": 1.0, "seconds/latency": 0.1, "seconds/compute": 0.2, "seconds/driver": 0.0,
        "settings/tol": 0.1, "state/gap": 2.0,
    }  # fmt: skip
