"""Progress: lines in a log, a bar on a terminal, and never the reason that a fit stops."""

import io
import logging

import pytest
from rich.console import Console

from mllib_ext.blocks import PartitionReport, Round
from mllib_ext.job import progress as module
from mllib_ext.job.progress import progress
from mllib_ext.optimizers.loop import Record, Settings, State, iterate


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


PASS = Round(
    seconds=0.25,
    bytes_down=8,
    bytes_up=8,
    partitions=tuple(PartitionReport(i, "here", 5, 40, s) for i, s in enumerate((0.1, 0.1, 0.15))),
)


def record(iteration, loss=0.5, rounds=1):
    return Record(
        iteration=iteration,
        loss=loss,
        gradient_norm=1e-3,
        step_size=1.0,
        seconds=0.25,
        rounds=(PASS,) * rounds,
        settings=Settings(max_iter=9),
    )


def test_lines_come_first_last_and_once_a_second(clock, caplog):
    caplog.set_level(logging.INFO, "mllib_ext.job")
    with progress("plain", "a model") as callback:
        for iteration in range(10):
            callback(None, record(iteration))
            clock.now += 0.3
    lines = [r.getMessage() for r in caplog.records]
    assert lines[0] == "training a model"
    assert [line.split()[1] for line in lines[1:]] == ["0/9", "4/9", "8/9", "9/9"]
    assert lines[-1] == "iteration 9/9  loss 0.5  gradient 1.00e-03  4.0 rounds/s  skew 50 ms"


def test_an_interrupted_fit_still_says_where_it_was(clock, caplog):
    caplog.set_level(logging.INFO, "mllib_ext.job")

    def fit():
        with progress("plain", "a model") as callback:
            callback(None, record(0))
            callback(None, record(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit()
    assert "iteration 1/9" in caplog.messages[-1]


def test_auto_is_plain_where_standard_error_is_no_terminal(caplog, capsys):
    caplog.set_level(logging.INFO, "mllib_ext.job")
    with progress("auto", "a model") as callback:
        callback(None, record(0))
    assert "iteration 0/9" in caplog.messages[-1]
    assert capsys.readouterr().out == ""


def test_none_says_nothing(caplog, capsys):
    caplog.set_level(logging.INFO, "mllib_ext.job")
    with progress("none", "a model") as callback:
        callback(None, record(0))
    assert caplog.messages == []
    assert capsys.readouterr() == ("", "")


def test_a_bar_shows_iteration_loss_gradient_pace_skew_and_address_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(module, "Console", lambda **_: terminal)
    with progress("rich", "a model", "http://127.0.0.1:1/?key=abc") as callback:
        for iteration in range(4):
            callback(None, record(iteration))
    assert "3/9  loss 0.5  gradient 1.0e-03  4.0 rounds/s  skew 50 ms" in screen.getvalue()
    assert "http://127.0.0.1:1/?key=abc" in screen.getvalue()


def test_a_broken_terminal_does_not_stop_the_fit(monkeypatch, caplog):
    class Broken(io.StringIO):
        def write(self, text):
            raise OSError("the terminal is gone")

    terminal = Console(file=Broken(), force_terminal=True, width=120)
    monkeypatch.setattr(module, "Console", lambda **_: terminal)
    with progress("rich", "a model") as callback:
        result = iterate(
            lambda state, settings: State(loss=state.loss / 2),
            State(loss=1.0),
            Settings(max_iter=5, tol=0.0),
            [callback, lambda state, record: None],
            stopping={"done": lambda losses, state, settings: len(losses) == 5},
        )
    assert result.n_iter == 4
    warned = [m for m in caplog.messages if "progress is not shown any more" in m]
    assert len(warned) == 1
