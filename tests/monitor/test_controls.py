"""Commands to a run that goes on: checked, applied between rounds, and told of."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris

from mllib_ext.classification import LogisticRegression
from mllib_ext.clustering import KMeans
from mllib_ext.monitor import log, read_run
from mllib_ext.monitor.__main__ import main
from mllib_ext.monitor.controls import Command, Controls
from mllib_ext.optimizers.loop import Checkpoint, Settings, State, Stop, iterate, setting

X, Y = load_iris(return_X_y=True)
# Gradient descent that never ends by itself.
ENDLESS: dict[str, Any] = {
    "solver": "gd",
    "lineSearch": "none",
    "stepSize": 0.001,
    "tol": 0.0,
    "maxIter": 10**9,
}


@pytest.fixture(scope="module")
def frame(spark):
    rows = pd.DataFrame({"features": list(X), "label": Y.astype(float)})
    df = spark.createDataFrame(rows).repartition(3).cache()
    yield df
    df.unpersist()


def until(holds, seconds=60.0):
    """Wait for what another thread does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


# --- without Spark -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates(Settings):
    step_size: float = setting(0.1, low=0, low_open=True)
    mode: str = setting("plain", choices=("plain", "fancy"))
    depth: int = setting(3, low=1, high=9, tunable=False)


@dataclass(frozen=True)
class At(State):
    x: float = 0.0


def descend(state, settings):
    x = state.x * (1 - settings.step_size)
    return At(loss=1 + x * x, gradient_norm=abs(x), step_size=settings.step_size, x=x)


def run(controls, *more, max_iter=12):
    return iterate(
        descend, At(loss=101.0, x=10.0), Rates(tol=0.0, max_iter=max_iter), (*more, controls),
        stopping={}, warn=False,
    )  # fmt: skip


@pytest.fixture
def told():
    return []


@pytest.fixture
def controls(told):
    return Controls(told.append)


def sending(controls, **commands):
    """A callback that sends a command in the round of its number."""

    def send(state, record):
        if command := commands.get(f"at{record.iteration}"):
            controls.send(command)

    return send


def test_a_change_takes_effect_in_the_very_next_round_and_is_told_with_time_and_origin(
    controls, told
):
    began = time.time()
    command = Command("set", {"stepSize": 0.5, "mode": "fancy"}, origin="page")
    result = run(controls, sending(controls, at3=command))
    steps = [record.step_size for record in result.history]
    assert steps == [0.0, *[0.1] * 3, *[0.5] * 9]
    assert result.history[3].actions == ("change step_size=0.5, mode='fancy'",)
    assert result.history[0].settings.step_size == 0.1
    (event,) = [e for e in told if e["event"] == "command"]
    assert event.pop("sent") == pytest.approx(began, abs=5)
    assert event == {
        "event": "command", "command": "set", "values": {"stepSize": 0.5, "mode": "fancy"},
        "origin": "page", "key": command.key, "status": "applied", "iteration": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepSize": 0.0}, r"expected a number in \(0, inf\], found 0.0"),
        ({"stepSize": "big"}, "expected a number in .* found 'big'"),
        ({"mode": "fanci"}, r"expected one of \['plain', 'fancy'\], found 'fanci'"),
        ({"stepSiz": 0.1}, "found 'step_siz' .did you mean 'step_size'"),
        ({"depth": 4}, "expected one of .* found 'depth'"),
        ({"stepSize": 0.2, "maxIter": -1}, "'max_iter': expected an integer"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_reason_and_changes_nothing(
    controls, told, values, message
):
    def send(state, record):
        if record.iteration == 3:
            with pytest.raises(ValueError, match=message):
                controls.send(Command("set", values))

    result = run(controls, send)
    assert [record.step_size for record in result.history] == [0.0, *[0.1] * 12]
    (event,) = [e for e in told if e["event"] == "command"]
    assert event["status"] == "refused"
    assert not any(record.actions for record in result.history)


def test_a_command_before_the_first_round_is_checked_there(controls, told):
    controls.send(Command("set", {"stepSize": -1}))
    controls.send(Command("set", {"stepSize": 0.2}))
    controls.send(Command("restore", {"name": "nowhere"}))
    result = run(controls)
    assert result.history[1].step_size == 0.2
    found = [(e["command"], e["status"]) for e in told if e["event"] == "command"]
    assert found == [("set", "refused"), ("set", "applied"), ("restore", "refused")]


@pytest.mark.parametrize(
    "text",
    [
        "", "no json", "[1]", '{"command": 3}', '{"command": "sett"}', '{"command": "set"}',
        '{"command": "set", "values": [1]}', '{"command": "pause", "values": {"a": "b"}}',
        '{"command": "note"}', '{"command": "checkpoint", "values": {"name": 5}}',
        json.dumps({"command": "note", "values": {"text": "x" * 1001}}),
    ],
)  # fmt: skip
def test_what_is_no_command_is_refused(text):
    with pytest.raises(ValueError, match=r"expected"):
        Command.parse(text)


@pytest.mark.parametrize("name", ["self", "class", "__init__"])
def test_no_name_of_a_setting_reaches_the_algorithm_but_its_own(controls, name):
    controls.send(Command("set", {name: 1}))  # before the first round nobody knows the settings
    assert run(controls).n_iter == 12
    with pytest.raises(ValueError, match="expected one of"):
        Rates().change(**{name: 1})


def test_a_command_that_is_no_text_or_too_deep_is_refused():
    with pytest.raises(ValueError, match="note: expected text"):
        Command("note", {"text": "\ud800"})
    with pytest.raises(ValueError, match="expected a command as JSON"):
        Command.parse("[" * 5000)


def test_who_sends_a_command_to_a_page_does_not_name_it():
    text = '{"command": "pause", "key": "mine", "sent": NaN}'
    assert Command.parse(text, origin="page").key != "mine"
    assert abs(Command.parse(text, origin="page").sent - time.time()) < 60
    of_a_file = Command.parse(text)
    assert (of_a_file.key, np.isfinite(of_a_file.sent)) == ("mine", True)


def test_a_command_is_the_same_after_a_way_as_text():
    command = Command("set", {"stepSize": 0.5}, origin="ctl: me")
    assert Command.parse(command.text()) == command
    assert Command.parse(command.text(), origin="page").origin == "page"


def test_a_checkpoint_is_gone_back_to_and_one_that_is_not_there_is_refused(controls, told):
    commands = {
        "at2": Command("checkpoint", {"name": "a"}),
        "at5": Command("restore", {"name": "a"}),
    }

    def wrong(state, record):
        if record.iteration == 6:
            with pytest.raises(ValueError, match=r"expected one of the checkpoints \['a'\]"):
                controls.send(Command("restore", {"name": "b"}))

    result = run(controls, sending(controls, **commands), wrong)
    assert [r.gradient_norm for r in result.history[6:8]] == pytest.approx([7.29, 6.561])
    assert [e["status"] for e in told if e["event"] == "command"] == [
        "applied", "applied", "refused",
    ]  # fmt: skip


def test_a_checkpoint_of_a_callback_is_one_to_go_back_to(controls, told):
    def keep(state, record):
        return Checkpoint("mine") if record.iteration == 2 else None

    run(controls, keep, sending(controls, at5=Command("restore", {"name": "mine"})))
    assert [e["status"] for e in told if e["event"] == "command"] == ["applied"]


def test_an_end_after_a_restore_tells_of_the_state_that_is_kept(controls):
    commands = {"at2": Command("checkpoint"), "at5": Command("restore")}
    controls_at = sending(controls, **commands)
    result = run(controls, controls_at, lambda s, r: Stop("here") if r.iteration == 5 else None)
    assert (result.n_iter, result.reason) == (5, "here")
    kept, last = result.history[2], result.history[-1]
    assert result.state.loss == kept.loss
    assert (last.iteration, last.loss, last.gradient_norm) == (5, kept.loss, kept.gradient_norm)


def test_what_is_set_and_the_end_hold_for_later_starts_of_the_same_fit(controls):
    first = run(controls, sending(controls, at3=Command("set", {"stepSize": 0.5})))
    second = run(controls, sending(controls, at2=Command("stop", {"reason": "late"})))
    third = run(controls)
    assert first.n_iter == 12
    assert second.history[1].step_size == 0.5
    assert (second.n_iter, second.reason) == (2, "late")
    assert (third.n_iter, third.reason) == (0, "late")


def test_a_pause_waits_for_commands_and_a_stop_ends_it(controls, told):
    results = []
    controls.send(Command("pause"))
    thread = threading.Thread(target=lambda: results.append(run(controls)))
    thread.start()
    until(lambda: controls.state == "paused")
    controls.send(Command("set", {"stepSize": 0.5}))
    controls.send(Command("note", {"text": "looking"}))
    until(lambda: len([e for e in told if e["event"] == "command"]) == 3)
    assert thread.is_alive()
    controls.send(Command("stop"))
    thread.join(10)
    assert (results[0].n_iter, results[0].reason) == (0, "stopped by a command")


def test_a_command_that_comes_too_late_is_refused(controls, told):
    run(controls)
    controls.send(Command("pause"))
    controls.end("finished")
    with pytest.raises(ValueError, match="expected a run that goes on, found one that is finished"):
        controls.send(Command("pause"))
    reasons = [e["reason"] for e in told if e["event"] == "command"]
    assert reasons == [
        "the run ended before it", "expected a run that goes on, found one that is finished",
    ]  # fmt: skip


# --- fits ----------------------------------------------------------------------------------------


def test_a_handle_watches_and_steers_a_fit_and_has_its_model(frame, spark):
    run = LogisticRegression(**ENDLESS).fitAsync(frame)
    until(lambda: len(run.rounds) > 2)
    command = run.set(stepSize=0.002)
    run.pause()
    until(lambda: run.state == "paused")
    n = len(run.rounds)
    time.sleep(0.2)
    assert len(run.rounds) == n
    with pytest.raises(ValueError, match="expected a number"):
        run.set(stepSize=-1.0)
    with pytest.raises(TimeoutError):
        run.result(0.01)
    run.resume()
    until(lambda: len(run.rounds) > n)
    assert run.state == "running"
    run.stop("enough")
    model = run.result(60)
    assert (model.reason, run.state, model.getStepSize()) == ("enough", "stopped", 0.001)
    applied = {e["key"]: e for e in run.events.dropna(subset="key").to_dict("records")}[command.key]
    after = int(applied["iteration"])
    assert model.history[after].actions == ("change step_size=0.002",)
    assert [r.step_size for r in model.history[after : after + 2]] == [0.001, 0.002]
    assert run.rounds.loss.tolist() == [record.loss for record in model.history]
    assert model.uid == run._estimator.uid


def test_a_handle_raises_what_the_fit_raises_and_refuses_at_once_what_fit_refuses(frame):
    with pytest.raises(ValueError, match="param maxIter"):
        LogisticRegression(maxIter=-1).fitAsync(frame)
    run = LogisticRegression(solver="gd", lineSearch="none", stepSize=1e9).fitAsync(frame)
    with pytest.raises(ArithmeticError, match="training diverged"):
        run.result(60)
    assert run.state == "failed"


def test_the_jobs_of_a_handle_have_a_group_that_can_be_cancelled(spark):
    df = spark.range(4, numPartitions=2).selectExpr("double(id) a", "double(id) label")
    slow = df.mapInPandas(_slow, df.schema)
    run = LogisticRegression(featuresCol=["a"]).fitAsync(slow)
    tracker = spark.sparkContext.statusTracker()
    until(lambda: tracker.getJobIdsForGroup(run.job_group))
    run.cancel()
    with pytest.raises(Exception, match="cancelled"):
        run.result(60)


@pytest.mark.parametrize("paused", [False, True])
def test_a_fit_without_jobs_and_one_that_is_paused_can_be_cancelled(frame, paused):
    run = LogisticRegression(**ENDLESS).fitAsync(frame)
    until(lambda: len(run.rounds) > 2)
    if paused:
        run.pause()
        until(lambda: run.state == "paused")
    run.cancel()
    with pytest.raises(Exception, match="cancelled"):
        run.result(60)
    assert run.state == "failed"


def test_rounds_that_are_forgotten_take_nothing_else_along(frame, monkeypatch):
    monkeypatch.setattr(log, "KEPT", 10)
    run = LogisticRegression(**ENDLESS).fitAsync(frame)
    until(lambda: len(run.rounds) > 2)
    run.note("early")
    until(lambda: run.rounds["iteration"].iloc[0] > 5)
    run.stop()
    run.result(60)
    kinds = run.events["event"].tolist()
    assert kinds.count("round") == 10
    assert "tunables" in kinds
    assert "early" in str(run.events["values"].tolist())
    assert run.events["id"].is_monotonic_increasing


def _slow(batches):
    for batch in batches:
        time.sleep(30)
        yield batch


def test_the_parameters_and_the_callbacks_of_the_estimator_stay_what_they_were(frame):
    estimator = KMeans(k=2)
    estimator.fitAsync(frame).result(60)
    assert estimator.getCallbacks() == ()
    assert estimator._monitor is None
    assert np.isfinite(estimator.fit(frame).cost)


def test_a_run_is_steered_through_its_directory_from_another_process(frame, tmp_path, capsys):
    path = str(tmp_path / "run")
    models = []
    estimator = LogisticRegression(**ENDLESS).setRunDir(path)
    thread = threading.Thread(target=lambda: models.append(estimator.fit(frame)), daemon=True)
    thread.start()
    until(lambda: (tmp_path / "run" / "run.json").exists())

    # What nobody meant to send ends neither the record nor the fit.
    (tmp_path / "run" / "control" / "0.json").write_text("[" * 5000)
    assert main(["ctl", path, "set", "self=1"]) == 1
    assert "setting 'self': expected one of" in capsys.readouterr().err
    assert main(["ctl", path, "set", "stepSize=0.002"]) == 0
    assert "applied after round" in capsys.readouterr().out
    assert main(["ctl", path, "set", "stepSize=0"]) == 1
    assert "expected a number in (0, inf], found 0" in capsys.readouterr().err
    assert main(["ctl", path, "set", "stepSize"]) == 1
    assert "expected NAME=VALUE" in capsys.readouterr().err
    (tmp_path / "run" / "control" / "0.json").write_text("{")  # no command: nothing happens
    assert main(["ctl", path, "note", "half", "way"]) == 0
    assert main(["ctl", path, "pause"]) == 0
    assert read_run(path).state == "paused"
    assert main(["ctl", path, "stop", "from", "afar"]) == 0
    thread.join(60)
    assert models[0].reason == "from afar"
    run = read_run(path)
    assert run.state == "stopped"
    assert run.actions.command.tolist() == ["set", "set", "set", "note", "pause", "stop"]
    assert run.actions.status.tolist() == [
        "refused", "applied", "refused", "applied", "applied", "applied",
    ]  # fmt: skip
    assert run.actions.origin.str.startswith("ctl: ").all()
    assert set(run.rounds["settings.step_size"]) == {0.001, 0.002}
    assert run.params["stepSize"] == 0.001
    with pytest.raises(SystemExit):
        main(["ctl", path, "sett", "stepSize=1"])
    capsys.readouterr()
    assert main(["ctl", path, "pause"]) == 1
    assert "expected a run that goes on, found one stopped" in capsys.readouterr().err
