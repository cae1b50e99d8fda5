"""The events of a run while it runs: made, numbered and written by a thread beside the fit."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

from pyspark import InheritableThread

logger = logging.getLogger(__name__)

# One for all: json.dumps makes an encoder a call where it is asked for more than its default.
ENCODER = json.JSONEncoder(allow_nan=False)
# How long an event may wait to be written, and a command to be found.
TICK = 0.1
# Events that stay in memory, as text, for the handle of a fit: the newest, and those of STAYING.
KEPT = 50_000
STAYING = ("tunables", "state", "command", "end")
# What the end of a fit waits for the last events to reach a file system that hangs.
PATIENCE = 10.0


class Destination(Protocol):
    """Where events go, and where commands come from: as in
    :class:`~mllib_ext.monitor.directory.RunDirectory`."""

    path: str
    look_seconds: float

    def append(self, lines: str) -> None: ...

    def pause(self, age: float) -> float: ...

    def take(self) -> list[str]: ...


class Log:
    """Events in their order. A fit leaves what it knows here and goes on; the thread does the rest.

    Parameters
    ----------
    begin : callable or None
        Makes their destination when the first round is done; None keeps events in memory alone.
    keep : bool
        Whether events stay in memory.
    arrived : callable
        Takes the text of each command that is found in the run directory.
    """

    def __init__(
        self,
        begin: Callable[[], Destination] | None,
        keep: bool,
        arrived: Callable[[str], None],
    ) -> None:
        self._begin, self._arrived = begin, arrived
        self.directory: Destination | None = None
        self._waiting: deque[tuple[float, Callable[[], dict[str, Any]]]] = deque()
        self._keep = keep
        self._newest: deque[tuple[int, str]] = deque(maxlen=KEPT)
        self._staying: list[tuple[int, str]] = []
        self._lines: list[str] = []
        self._last = 0  # id
        self._began = self._wrote = self._looked = time.monotonic()
        self._lock = threading.RLock()
        self._wake, self._closing = threading.Event(), False
        # Its connection to the JVM is closed with it.
        self._thread: Any = InheritableThread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to write and to look for commands, until :meth:`close`."""
        self._thread.start()

    def add(self, make: Callable[[], dict[str, Any]]) -> None:
        """Take an event that is made later, by another thread, of values that do not change."""
        self._waiting.append((time.time(), make))

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """The events in memory with an id above ``after``."""
        self._drain()
        with self._lock:
            skip = max(0, after - self._last + len(self._newest))
            found = [*islice(self._newest, skip, None), *self._staying]
        return [json.loads(line) for id, line in sorted(found) if id > after]

    def close(self) -> None:
        """Write what there is; a file system that hangs is not waited for longer than seconds."""
        self._closing = True
        self._wake.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            logger.warning("the record of the run is not complete: its file system does not answer")

    def _drain(self) -> None:
        """Make events of what waits."""
        with self._lock:
            while self._waiting:
                now, make = self._waiting.popleft()
                self._last += 1
                try:
                    event = {"id": self._last, "time": round(now, 3), **make()}
                    line = ENCODER.encode(event)
                except Exception as error:  # a state that cannot be shown must not end a fit
                    logger.warning("a round is not recorded: %s: %s", type(error).__name__, error)
                    self._last -= 1
                    continue
                if self._keep:
                    stays = event["event"] in STAYING
                    (self._staying if stays else self._newest).append((self._last, line))
                if self._begin is not None:
                    self._lines.append(line + "\n")

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(TICK)
            self._drain()
            self._guarded(self._work)
        self._drain()
        self._guarded(self._write)

    def _work(self) -> None:
        now, directory = time.monotonic(), self.directory
        if directory is None or now - self._wrote >= directory.pause(now - self._began):
            self._write()
            self._wrote = now
        if directory is not None and now - self._looked >= directory.look_seconds:
            for text in directory.take():
                try:
                    self._arrived(text)
                except Exception as error:  # what somebody sends must not end the record
                    logger.warning("a command is lost: %s: %s", type(error).__name__, error)
            self._looked = now

    def _write(self) -> None:
        if self._begin is None or not self._lines:
            return
        if self.directory is None:
            if not any('"event": "round"' in line for line in self._lines):
                return  # a fit that is refused before its first round leaves nothing
            self.directory = self._begin()
        with self._lock:
            lines, self._lines = self._lines, []
        self.directory.append("".join(lines))

    def _guarded(self, work: Callable[[], None]) -> None:
        """Work on files: the first failure is one warning, and the last work on files."""
        if self._begin is None:
            return
        try:
            work()
        except Exception as error:
            self._begin, self._lines = None, []
            message = "the run is not recorded any more: %s: %s"
            logger.warning(message, type(error).__name__, error)
