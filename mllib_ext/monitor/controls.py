"""Commands to a run: one queue, whatever way they came, checked twice and applied between rounds.

A command is refused where it arrives if it is known to be wrong, and again where it would take
effect, should the run have changed meanwhile. What is refused never reaches the algorithm.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mllib_ext.monitor.events import camel, snake
from mllib_ext.names import did_you_mean
from mllib_ext.optimizers.loop import Action, Change, Checkpoint, Record, Restore, Settings, Stop
from mllib_ext.plain import plain

# What each command takes: the names of its values, and what they are unless given.
COMMANDS: dict[str, dict[str, Any]] = {
    "set": {},
    "pause": {},
    "resume": {},
    "stop": {"reason": "stopped by a command"},
    "checkpoint": {"name": "checkpoint"},
    "restore": {"name": "checkpoint"},
    "note": {"text": ""},
}
LONGEST = 1_000  # characters of a text


@dataclass(frozen=True)
class Command:
    """What somebody asks of a run.

    Attributes
    ----------
    command : str
        One of :data:`COMMANDS`.
    values : dict
        Of ``set`` by the names of settings; of the others as in :data:`COMMANDS`.
    origin : str
        Where it came from: ``handle``, ``page`` or ``ctl``, and who.
    key : str
        Names it in the events.
    sent : float
        Unix seconds.
    """

    command: str
    values: dict[str, Any] = field(default_factory=dict)
    origin: str = "handle"
    key: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    sent: float = field(default_factory=lambda: round(time.time(), 3))

    def __post_init__(self) -> None:
        if self.command not in COMMANDS:
            hint = did_you_mean(str(self.command), COMMANDS)
            raise ValueError(
                f"command: expected one of {list(COMMANDS)}, found {self.command!r}{hint}"
            )
        if not isinstance(self.values, dict):
            raise ValueError(f"{self.command}: expected values by name, found {self.values!r}")
        if self.command == "set":
            if not self.values:
                raise ValueError("set: expected a setting, as in stepSize=0.01, found none")
            values = {snake(str(name)): value for name, value in self.values.items()}
        else:
            known = COMMANDS[self.command]
            for name, value in self.values.items():
                if name not in known:
                    raise ValueError(f"{self.command}: expected {list(known)}, found {name!r}")
                if not isinstance(value, str) or not 0 < len(value) <= LONGEST:
                    raise ValueError(
                        f"{self.command} {name}: expected a text of 1 to {LONGEST} characters, "
                        f"found {str(value)[:40]!r}"
                    )
            values = {**known, **self.values}
            if self.command == "note" and not values["text"]:
                raise ValueError("note: expected a text, found none")
        try:
            json.dumps(values, ensure_ascii=False, default=str).encode()
        except (UnicodeEncodeError, RecursionError):
            raise ValueError(f"{self.command}: expected text, found what is none") from None
        object.__setattr__(self, "values", values)

    @classmethod
    def parse(cls, text: str, origin: str | None = None) -> Command:
        """A command from JSON: ``command`` and ``values`` and, of a file, the other attributes."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("command"), str):
            raise ValueError(f"expected a command as JSON, found {text[:80]!r}")
        if origin is not None:
            return cls(found["command"], found.get("values", {}), origin)
        more: dict[str, Any] = {"origin": str(found.get("origin", "file"))[:80]}
        key, sent = found.get("key"), found.get("sent")
        if isinstance(key, str) and re.fullmatch(r"[\w-]{1,80}", key):
            more["key"] = key
        if isinstance(sent, int | float) and abs(sent) < 1e12:  # neither infinite nor NaN
            more["sent"] = sent
        return cls(found["command"], found.get("values", {}), **more)

    def event(self, **more: Any) -> dict[str, Any]:
        """The event that says what became of it."""
        names = {camel(n): plain(v) for n, v in self.values.items()}
        own = {"command": self.command, "values": names, "origin": self.origin}
        return {"event": "command", **own, "key": self.key, "sent": self.sent, **more}

    def text(self) -> str:
        """As JSON, for :meth:`parse`."""
        return json.dumps(vars(self))


class Controls:
    """The queue of a run's commands, as a callback: it answers with their actions.

    Parameters
    ----------
    tell : callable
        Takes the events of what was applied or refused, and of the state.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._condition = threading.Condition()
        self._waiting: deque[Command] = deque()
        self._checkpoints: set[str] = set()
        self._settings: Settings | None = None
        self._iteration = 0
        self._stop: Stop | None = None
        self._cancelled = False
        self._changes: dict[str, Any] = {}
        self.state = "starting"

    def send(self, command: Command) -> Command:
        """Leave a command for the next time between two rounds.

        Raises
        ------
        ValueError
            It is wrong, or the run has ended.
        """
        try:
            with self._condition:
                self._refuse(command)
                self._waiting.append(command)
                self._condition.notify_all()
        except ValueError as error:
            self._tell(
                command.event(status="refused", reason=str(error), iteration=self._iteration)
            )
            raise
        return command

    def cancel(self) -> None:
        """End the fit with an error between two rounds, and while it is paused."""
        with self._condition:
            self._cancelled = True
            self._condition.notify_all()

    def __call__(self, state: Any, record: Record) -> list[Action]:
        with self._condition:
            self._settings, self._iteration = record.settings, record.iteration
            self._checkpoints = set(record.checkpoints)
            if self.state == "starting":
                self._become("running")
            actions: list[Action] = []
            if record.iteration == 0 and self._changes:
                # What was set, and the end, hold for every start of the fit.
                self._settings = self._settings.change(**self._changes)
                actions.append(Change(**self._changes))
            if self._stop is not None:
                actions.append(self._stop)
            while True:
                while self._waiting:
                    actions += self._applied(self._waiting.popleft())
                if self._cancelled:
                    raise RuntimeError("the fit was cancelled")
                if self.state != "paused":
                    return actions
                self._condition.wait()

    def end(self, state: str) -> None:
        """Refuse commands from here on, those that wait included."""
        with self._condition:
            self.state = state
            while self._waiting:
                command = self._waiting.popleft()
                reason = "the run ended before it"
                self._tell(
                    command.event(status="refused", reason=reason, iteration=self._iteration)
                )

    def _applied(self, command: Command) -> list[Action]:
        try:
            self._refuse(command)
        except ValueError as error:
            self._tell(
                command.event(status="refused", reason=str(error), iteration=self._iteration)
            )
            return []
        self._tell(command.event(status="applied", iteration=self._iteration))
        match command.command:
            case "set":
                assert self._settings is not None
                self._settings = self._settings.change(**command.values)
                self._changes |= command.values
                return [Change(**command.values)]
            case "pause":
                if self._stop is None:
                    self._become("paused")
            case "resume":
                if self.state == "paused":
                    self._become("running")
            case "stop":
                self._stop = Stop(command.values["reason"])
                if self.state == "paused":
                    self._become("running")
                return [self._stop]
            case "checkpoint":
                self._checkpoints.add(command.values["name"])
                return [Checkpoint(command.values["name"])]
            case "restore":
                return [Restore(command.values["name"])]
        return []

    def _refuse(self, command: Command) -> None:
        """ValueError for a command that the run cannot follow."""
        if self.state not in ("starting", "running", "paused"):
            raise ValueError(f"expected a run that goes on, found one that is {self.state}")
        if command.command == "set" and self._settings is not None:
            self._settings.change(**command.values)
        if command.command == "restore" and self.state != "starting":
            name = command.values["name"]
            waiting = {c.values["name"] for c in self._waiting if c.command == "checkpoint"}
            if name not in self._checkpoints | waiting:
                raise ValueError(
                    f"restore: expected one of the checkpoints {sorted(self._checkpoints)}, "
                    f"found {name!r}"
                )

    def _become(self, state: str) -> None:
        self.state = state
        self._tell({"event": "state", "state": state})
