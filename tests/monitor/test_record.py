"""What a fit leaves in its run directory, and how it is read back."""

from __future__ import annotations

import json
import logging
import stat
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris

from mllib_ext.blocks import PartitionReport, Round
from mllib_ext.classification import KernelSVC, LogisticRegression
from mllib_ext.clustering import BisectingKMeans, KMeans, MiniBatchKMeans
from mllib_ext.monitor import events, find_runs, read_run
from mllib_ext.monitor.__main__ import main
from mllib_ext.monitor.controls import Command
from mllib_ext.monitor.directory import HadoopDirectory, LocalDirectory, run_directory
from mllib_ext.monitor.events import Plane, camel, snake
from mllib_ext.optimizers.loop import Change, Record, Settings, State, Stop
from mllib_ext.regression import LinearRegression, LinearSVR

X, Y = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def frame(spark):
    rows = pd.DataFrame({"features": list(X), "label": Y.astype(float)})
    df = spark.createDataFrame(rows).repartition(3).cache()
    yield df
    df.unpersist()


def losses(run):
    return run.rounds.loss.tolist()


# --- an event ------------------------------------------------------------------------------------


def a_round(seconds, spent, n_tasks):
    parts = tuple(PartitionReport(i, f"h{i}", 10 * i, 80, s) for i, s in enumerate(spent))
    return Round(seconds, 100, 7, parts, n_tasks)


def a_record(rounds, seconds=1.0, iteration=3):
    return Record(iteration, 2.0, float("nan"), 0.5, seconds, rounds, Settings())


@dataclass(frozen=True)
class Own(State):
    shown: ClassVar[tuple[str, ...]] = ("sizes", "centers")

    sizes: np.ndarray = field(default_factory=lambda: np.array([1.0, np.inf]))
    centers: np.ndarray = field(default_factory=lambda: np.eye(2))
    weights: np.ndarray = field(default_factory=lambda: np.zeros(5))
    stale: int = 4

    @property
    def gap(self) -> float:
        return 0.25

    @property
    def model(self) -> list[int]:
        raise AssertionError("only what says that it is a number is asked for")


def test_the_seconds_of_a_round_are_latency_compute_and_driver():
    rounds = (a_round(0.4, [0.1, 0.3], 2), a_round(0.5, [0.1, 0.2], 1))
    event = events.round_event(State(2.0), a_record(rounds), 1, {})
    # The longest partition where there is a task for each, the sum of both in one task.
    assert event["compute"] == pytest.approx(0.3 + 0.3)
    assert event["latency"] == pytest.approx(0.1 + 0.2)
    assert event["driver"] == pytest.approx(0.1)
    assert (event["bytes_down"], event["bytes_up"], event["passes"]) == (200, 14, 2)
    assert event["partitions"] == {"partition": [0, 1], "rows": [0, 10], "seconds": [0.2, 0.5]}
    assert event["skew"] == pytest.approx(0.15)
    assert event["slowest"] == {"partition": 1, "host": "h1", "seconds": 0.5}
    assert event["gradient_norm"] is None
    json.dumps(event, allow_nan=False)


def test_of_very_many_partitions_the_slowest_are_kept():
    spent = np.random.default_rng(0).random(3000)
    parts = events.partitions([a_round(2.0, spent, 3000)])["partitions"]
    assert parts["partition"] == np.sort(np.argsort(-spent)[: events.MOST]).tolist()
    assert parts["rows"] == [10 * i for i in parts["partition"]]


def test_a_state_shows_its_numbers_and_the_arrays_that_it_names_and_nothing_else():
    found = events.shown(Own(1.0), {})
    assert set(found) == {"stale", "gap", "sizes", "centers"}
    assert (found["stale"], found["gap"], found["sizes"]) == (4, 0.25, [1.0, None])


@pytest.mark.parametrize("shape", [(9, 4), (3, 50), (4, 1), (1, 3)])
def test_a_matrix_is_seen_on_its_two_principal_axes_and_later_ones_on_the_same(shape):
    X = np.random.default_rng(1).normal(size=shape) * np.arange(1, shape[1] + 1)
    plane = Plane()
    points = plane(X)
    C = X - X.mean(axis=0)
    _, s, _ = np.linalg.svd(C, full_matrices=False)
    expected = np.zeros(2)
    expected[: min(len(s), 2)] = s[:2]
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), expected, atol=1e-9)
    np.testing.assert_allclose(
        plane(X + 1.0) - points, np.tile(plane(X + 1)[0] - points[0], (len(X), 1)), atol=1e-9
    )


def test_names_of_settings_and_of_params_are_each_others():
    for name in ("step_size", "tol", "mini_batch_fraction"):
        assert snake(camel(name)) == snake(name) == name
    assert camel("step_size") == "stepSize"


# --- a run directory -----------------------------------------------------------------------------


def test_a_run_is_read_back_as_the_history_of_the_model(frame, tmp_path):
    estimator = LogisticRegression(regParam=0.1).setRunDir(str(tmp_path / "run"))
    model = estimator.fit(frame)
    run = read_run(str(tmp_path / "run"))
    assert losses(run) == [record.loss for record in model.history]
    assert run.rounds.gradient_norm.tolist() == [r.gradient_norm for r in model.history]
    assert run.rounds.iteration.tolist() == list(range(model.n_iter + 1))
    assert (run.rounds["settings.reg_param"] == 0.1).all()
    spent = run.rounds[["latency", "compute", "driver"]].sum(axis=1)
    np.testing.assert_allclose(run.rounds.seconds, spent, atol=2e-6)  # each rounded to 1e-6
    assert run.rounds.partitions[0]["rows"] == [
        p.rows for p in model.history[0].rounds[0].partitions
    ]
    assert run.params["regParam"] == 0.1
    assert run.estimator == "mllib_ext.classification.LogisticRegression"
    assert set(run.versions) >= {"mllib_ext", "pyspark", "python"}
    assert run.state == "finished"
    assert (run.end["reason"], run.end["n_iter"]) == (model.reason, model.n_iter)
    assert run.events.id.tolist() == list(range(1, len(run.events) + 1))


def test_nobody_else_can_read_or_steer_a_local_run(frame, tmp_path):
    KMeans(k=2).setRunDir(str(tmp_path / "run")).fit(frame)
    modes = {
        p.name: stat.S_IMODE(p.stat().st_mode)
        for p in [tmp_path / "run", *(tmp_path / "run").iterdir()]
    }
    assert modes == {"run": 0o700, "control": 0o700, "events.jsonl": 0o600, "run.json": 0o600}


def test_an_estimator_carries_its_run_directory_in_copies_and_does_not_save_it(tmp_path):
    estimator = KMeans().setRunDir("runs/a")
    assert estimator.copy().getRunDir() == "runs/a"
    estimator.save(str(tmp_path / "saved"))
    assert KMeans.load(str(tmp_path / "saved")).getRunDir() is None


def test_what_an_algorithm_has_of_its_own_is_in_the_record(frame, tmp_path):
    estimators: dict[str, tuple[Any, set[str]]] = {
        "lloyd": (KMeans(k=3, nInit=2), {"sizes", "centers", "shift"}),
        "mini": (MiniBatchKMeans(k=3, maxIter=3, tol=9.0), {"sizes", "centers", "shift"}),
        "tree": (BisectingKMeans(k=3), {"sizes", "centers", "shift"}),
        "cascade": (KernelSVC(), {"n_support_vectors", "n_violators", "worst_violation"}),
        "certified": (LinearSVR(loss="epsilon_insensitive", regParam=0.1), {"gap"}),
    }
    for name, (estimator, own) in estimators.items():
        model = estimator.setRunDir(f"{tmp_path}/{name}").fit(frame)
        run = read_run(f"{tmp_path}/{name}")
        assert own <= set(run.rounds), name
        assert run.state == "finished"
    run = read_run(f"{tmp_path}/lloyd")
    assert run.rounds.start.nunique() == 2  # nInit
    assert all(sum(sizes) == len(X) for sizes in run.rounds.sizes)
    assert {np.shape(points) for points in run.rounds.centers} == {(3, 2)}
    model = KernelSVC().fit(frame)
    assert (
        read_run(f"{tmp_path}/cascade").rounds.n_support_vectors.iloc[-1] == model.numSupportVectors
    )


def test_folds_points_of_a_grid_and_later_fits_have_directories_of_their_own(frame, tmp_path):
    path = str(tmp_path / "run")
    estimator = LinearRegression(solver="l-bfgs").setRunDir(path)
    grid = [{estimator.regParam: value} for value in (0.0, 1.0)]
    for _ in range(2):  # as CrossValidator asks for its folds
        for number, model in estimator.fitMultiple(frame, grid):
            assert model.getRegParam() == number
    for _ in range(2):
        estimator.fit(frame)
    names = ["", *(f"/fold-{f}/point-{p}" for f in (1, 2) for p in (1, 2)), "/fit-2"]
    assert sorted(find_runs(path)) == sorted(path + name for name in names)
    for name in names[1:-1]:
        assert read_run(path + name).params["regParam"] == float(name.endswith("2"))


def test_a_fit_that_is_refused_before_its_first_round_leaves_nothing(spark, tmp_path):
    nan = spark.createDataFrame([(float("nan"), 1.0)], ["a", "label"])
    for df in (nan, nan.drop("label")):
        with pytest.raises(ValueError, match="column"):
            LinearRegression(featuresCol=["a"]).setRunDir(f"{tmp_path}/run").fit(df)
    assert not list(tmp_path.iterdir())


def test_a_fit_that_fails_and_one_that_a_callback_ends_say_so(frame, tmp_path):
    steep = LogisticRegression(solver="gd", lineSearch="none", stepSize=1e9)
    with pytest.raises(ArithmeticError):
        steep.setRunDir(f"{tmp_path}/steep").fit(frame)
    failed = read_run(f"{tmp_path}/steep")
    assert failed.state == "failed"
    assert "DivergenceError: training diverged" in failed.end["error"]

    def steer(state, record):
        answers = {1: Change(reg_param=0.5), 3: Stop("enough")}
        return answers.get(record.iteration)

    estimator = LogisticRegression(solver="gd").setCallbacks([steer])
    estimator.setRunDir(f"{tmp_path}/ended").fit(frame)
    ended = read_run(f"{tmp_path}/ended")
    assert (ended.state, ended.end["reason"]) == ("stopped", "enough")
    assert ended.actions["values"].tolist() == [{"regParam": 0.5}]
    assert ended.actions.iteration.tolist() == [1]


@pytest.mark.parametrize("break_it", ["lost", "refused", "unwritable"])
def test_a_directory_that_is_lost_or_cannot_be_made_is_one_warning_and_no_failure(
    frame, tmp_path, caplog, monkeypatch, break_it
):
    path = tmp_path / "run"
    if break_it == "refused":
        path.write_text("a file")

    def watch(state, record):
        if record.iteration == 2:
            while not (path / "events.jsonl").exists():
                pass
            if break_it == "lost":
                path.rename(tmp_path / "away")  # at once, whatever is being written there
            else:
                monkeypatch.setattr(LocalDirectory, "append", full)

    def full(self, lines):
        raise OSError(28, "No space left on device")

    estimator = LogisticRegression(solver="l-bfgs", regParam=0.01)
    estimator.setCallbacks([] if break_it == "refused" else [watch]).setRunDir(str(path))
    with caplog.at_level(logging.WARNING, "mllib_ext"):
        assert estimator.fit(frame).n_iter > 3
    told = [r for r in caplog.records if "the run is not recorded" in r.getMessage()]
    assert len(told) == len(caplog.records) == 1


def test_a_run_whose_driver_was_killed_is_lost_and_a_line_cut_off_is_left_out(frame, tmp_path):
    path = tmp_path / "run"
    model = KMeans(k=2).setRunDir(str(path)).fit(frame)
    *lines, end = (path / "events.jsonl").read_text().splitlines()
    assert json.loads(end)["event"] == "end"
    (path / "events.jsonl").write_text("\n".join(lines) + '\n{"id": 99, "eve')
    # This process lives on: the driver was another one.
    description = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**description, "pid": 2**22 + 1}))
    run = read_run(str(path))
    assert run.state == "lost"
    assert losses(run) == [record.loss for record in model.history]


def test_a_file_system_without_append_gets_segments_and_commands_as_files(
    frame, tmp_path, monkeypatch
):
    path = f"file://{tmp_path}/far"
    monkeypatch.setattr(HadoopDirectory, "pause", lambda self, age: 0.0)
    monkeypatch.setattr(HadoopDirectory, "look_seconds", 0.0)
    monkeypatch.setattr("mllib_ext.monitor.directory.LocalDirectory", _never)
    monkeypatch.setattr("mllib_ext.monitor.directory.run_directory", HadoopDirectory)
    monkeypatch.setattr("mllib_ext.monitor.run.run_directory", HadoopDirectory)
    control = tmp_path / "far" / "control"

    def slow(state, record):
        if record.iteration == 1:
            HadoopDirectory(path).send("1", Command("note", {"text": "from afar"}).text())
            while list(control.iterdir()):
                time.sleep(0.01)
        time.sleep(0.15)

    estimator = KMeans(k=3, maxIter=4, tol=0.0, seed=1).setCallbacks([slow]).setRunDir(path)
    model = estimator.fit(frame)
    run = read_run(path)
    assert losses(run) == [record.loss for record in model.history]
    assert run.state == "finished"
    assert run.actions["values"].tolist() == [{"text": "from afar"}]
    segments = sorted(p.name for p in (tmp_path / "far" / "events").iterdir())
    assert len(segments) > 1
    assert segments == [f"{i:06d}.jsonl" for i in range(1, len(segments) + 1)]


def _never(path):
    raise AssertionError("the local disk is not asked for")


def test_a_path_without_a_run_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a run directory, found no run\.json"):
        read_run(str(tmp_path))


@pytest.mark.parametrize("path", ["{}/a b", "file:{}/a b", "file://{}/a b"])
def test_a_local_path_may_have_a_scheme(tmp_path, path):
    assert run_directory(path.format(tmp_path)).path == f"{tmp_path}/a b"


# --- on a terminal -------------------------------------------------------------------------------


def test_show_prints_a_run_and_the_list_of_several(frame, tmp_path, capsys):
    path = str(tmp_path / "run")
    estimator = KMeans(k=2).setRunDir(path)
    model = estimator.fit(frame)
    assert main(["show", path]) == 0
    said = capsys.readouterr().out
    assert "mllib_ext.clustering.KMeans  finished" in said
    assert f"{model.cost:.6g}" in said.replace("\n", " ")
    assert f"finished: shift after {model.n_iter} iterations" in said
    estimator.fit(frame)
    assert main(["show", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", path, f"{path}/fit-2"]
    assert main(["show", str(tmp_path / "nothing")]) == 1
    assert "expected a run directory" in capsys.readouterr().err
