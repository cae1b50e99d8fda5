"""A fit that is recorded and steered: the callback, and the time around it."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import re
from collections.abc import Callable
from typing import Any

from mllib_ext.monitor import directory
from mllib_ext.monitor.controls import Command, Controls
from mllib_ext.monitor.events import Plane, camel, description, round_event, tunables
from mllib_ext.monitor.log import Destination, Log
from mllib_ext.optimizers.loop import Action, Change, Record
from mllib_ext.plain import plain

logger = logging.getLogger(__name__)


class Fold:
    """The directory of a grid: ``fold-1``, ``fold-2``, ..., the first one that is free."""

    def __init__(self, path: str) -> None:
        taken = directory.names_below(path) or []
        numbers = [int(name[5:]) for name in taken if re.fullmatch("fold-[0-9]+", name)]
        for n in itertools.count(max(numbers, default=0) + 1):
            self._path = f"{path.rstrip('/')}/fold-{n}"
            if directory.run_directory(self._path).reserve():
                break

    def point(self, number: int) -> str:
        """The directory of a point of the grid, from 1."""
        return f"{self._path}/point-{number}"


class Monitor:
    """A callback that records a fit and answers with what its commands ask for.

    Parameters
    ----------
    begin : callable or None
        Makes of the run's description where its events go, when the first round is done; None
        records nowhere.
    keep : bool
        Whether events stay in memory.
    """

    def __init__(
        self, begin: Callable[[dict[str, Any]], Destination] | None, keep: bool = False
    ) -> None:
        self.description: dict[str, Any] = {}
        make = None if begin is None else lambda: begin(self.description)
        self.log = Log(make, keep, self._arrived)
        self.controls = Controls(self._tell)
        self._planes: dict[str, Plane] = {}
        self._start = -1
        self._settings: Any = None

    @classmethod
    def at(cls, path: str | None, place: Callable[[str], str] = str, keep: bool = False) -> Monitor:
        """A monitor that records at a path or, where ``place`` says so, below it."""
        if path is None:
            return cls(None, keep)
        whole = directory.resolved(path)  # here: the thread that writes asks the JVM for nothing
        return cls(lambda description: directory.claimed(place(whole), description), keep)

    def __call__(self, state: Any, record: Record) -> list[Action]:
        if record.iteration == 0 or self._settings is None:  # a fit may go on in the middle
            self._start += 1
            if self._start == 0:
                settings = record.settings
                self.log.add(lambda: {"event": "tunables", "tunables": tunables(settings)})
        elif record.settings != self._settings:
            self._tell(_changed(self._settings, record))
        start = self._start
        self.log.add(lambda: round_event(state, record, start, self._planes))
        actions = self.controls(state, record)
        self._settings = record.settings
        for action in actions:
            if isinstance(action, Change):
                self._settings = self._settings.change(**action.values)
        return actions

    def fit(self, estimator: Any, fit: Callable[[Any], Any]) -> Any:
        """What ``fit`` makes of the estimator, recorded and steered."""
        self.description.update(description(estimator))
        watched = estimator.copy()
        watched.setCallbacks((*estimator.getCallbacks(), self))
        self.log.start()
        end: dict[str, Any] = {"state": "failed", "reason": "interrupted"}
        try:
            model = fit(watched)
            told = {name: getattr(model, name, None) for name in ("reason", "converged", "n_iter")}
            history = getattr(model, "history", ())
            if history and math.isfinite(history[-1].loss):
                told["loss"] = history[-1].loss  # of the model: it may have gone back
            done = told["converged"] or told["reason"] == "max_iter"
            end = {"state": "finished" if done else "stopped", **told}
            return model
        except Exception as error:
            message = str(error).partition("\n")[0]
            end = {"state": "failed", "error": f"{type(error).__name__}: {message}"}
            raise
        finally:
            self.controls.end(end["state"])
            self._tell({"event": "end", **plain(end)})
            self.log.close()

    def _tell(self, event: dict[str, Any]) -> None:
        self.log.add(lambda: event)

    def _arrived(self, text: str) -> None:
        """A command from the run directory."""
        try:
            command = Command.parse(text)
        except ValueError as error:
            logger.warning("a command is refused: %s", error)
            return
        with contextlib.suppress(ValueError):  # the events say why it is refused
            self.controls.send(command)


class Served:
    """A fit of this process as :mod:`mllib_ext.monitor.server` and the widget ask for it.

    Parameters
    ----------
    monitor : Monitor
        One that keeps its events.
    state : callable, optional
        Who else knows in which state it is.
    """

    def __init__(self, monitor: Monitor, state: Callable[[], str] | None = None) -> None:
        self._monitor, self._state = monitor, state

    def description(self) -> dict[str, Any]:
        return self._monitor.description

    def events(self, after: int) -> list[dict[str, Any]]:
        return self._monitor.log.events(after)

    def state(self) -> str:
        return self._monitor.controls.state if self._state is None else self._state()

    def send(self, command: Command) -> None:
        self._monitor.controls.send(command)


def _changed(before: Any, record: Record) -> dict[str, Any]:
    old, new = vars(before), vars(record.settings)
    values = {camel(name): plain(new[name]) for name in new if new[name] != old.get(name)}
    return {"event": "change", "values": values, "iteration": record.iteration - 1}
