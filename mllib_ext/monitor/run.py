"""A recorded run, read back."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from typing import Any

import pandas as pd

from mllib_ext.monitor.directory import run_directory, run_paths


class Run:
    """What a run directory holds: :func:`read_run`. Its fields: :mod:`mllib_ext.monitor.events`.

    Attributes
    ----------
    path : str
    estimator : str
        The class.
    params : dict
        As they were at the start.
    seed : int or None
    versions : dict
    description : dict
        All of ``run.json``.
    """

    def __init__(
        self, path: str, description: dict[str, Any], events: list[dict[str, Any]]
    ) -> None:
        self.path, self.description, self._events = path, description, events
        self.estimator: str = description["estimator"]
        self.params: dict[str, Any] = description["params"]
        self.seed: int | None = description["seed"]
        self.versions: dict[str, str] = description["versions"]

    @property
    def events(self) -> pd.DataFrame:
        """All events, one a row; those of a run that goes on are those at the time of reading."""
        return pd.DataFrame(self._events)

    @property
    def rounds(self) -> pd.DataFrame:
        """One row a round: its event, the algorithm's own state, ``settings.NAME``."""
        return rounds_of(self._events)

    @property
    def actions(self) -> pd.DataFrame:
        """One row for every command and every change of settings by a callback."""
        kinds = ("command", "change")
        return pd.DataFrame([event for event in self._events if event["event"] in kinds])

    @property
    def state(self) -> str:
        """``running``, ``paused``, ``finished``, ``stopped``, ``failed`` or, killed, ``lost``."""
        return state_of(self.description, self._events)

    @property
    def end(self) -> dict[str, Any]:
        """The event that ended it; empty before."""
        return next((e for e in reversed(self._events) if e["event"] == "end"), {})

    def __repr__(self) -> str:
        n = sum(event["event"] == "round" for event in self._events)
        return f"Run({self.path!r}: {self.estimator}, {n} rounds, {self.state})"


def rounds_of(events: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The round events as a table."""
    rows = []
    for event in events:
        if event["event"] == "round":
            row = {k: v for k, v in event.items() if k not in ("event", "settings", "state")}
            row |= {name: v for name, v in event["state"].items() if name not in row}
            row |= {f"settings.{name}": v for name, v in event["settings"].items()}
            rows.append(row)
    return pd.DataFrame(rows)


def state_of(description: dict[str, Any], events: Iterable[dict[str, Any]]) -> str:
    """The state that the last event of a run tells of."""
    state = "starting"
    for event in events:
        if event["event"] in ("state", "end"):
            state = event["state"]
    if state in ("starting", "running", "paused") and not _alive(description):
        return "lost"
    return state


def _alive(description: dict[str, Any]) -> bool:
    """Whether the driver may still run; True where this machine cannot know."""
    if description.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(description["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def parsed(text: str) -> list[dict[str, Any]]:
    """Events from their lines; one that a full disk cut off is left out."""
    events = []
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("id"), int) and "event" in event:
            events.append(event)
    return events


def read_run(path: str) -> Run:
    """Read a run directory, also while it is written.

    Parameters
    ----------
    path : str
        On any Hadoop file system; without a scheme as ``setRunDir`` takes it.

    Raises
    ------
    FileNotFoundError
        There is no run.
    """
    directory = run_directory(path)
    try:
        found = directory.description()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path}: expected a run directory, found no run.json") from None
    return Run(directory.path, found, parsed(directory.read(0)[0]))


def find_runs(path: str) -> list[str]:
    """The run directories at a path and below it: folds, points of a grid, later fits."""
    return list(run_paths(path))
