"""Rounds over parts of a data set, several of them under way at once.

What asynchronous updates need: :meth:`Flights.send` starts a round over one group of partitions,
:meth:`Flights.receive` waits for the next one to arrive, whichever it is.
"""

from __future__ import annotations

import heapq
import itertools
import queue
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from pyspark import InheritableThread


class Flights(Protocol):
    """Rounds under way; at most one of each group."""

    def send(self, group: int, stage: Any, *parameters: Any) -> None: ...

    def receive(self) -> tuple[int, tuple[Any, ...]]: ...


# run(group, stage, *parameters) -> values
Run = Callable[..., tuple[Any, ...]]


class Simulated:
    """Flights of known duration, one after the other: the same arrivals in every run.

    A round computes when it is sent and arrives when its time has come, so that its answer is as
    old as it would be.

    Parameters
    ----------
    run : callable
        ``run(group, stage, *parameters)``.
    durations : sequence of float
        Of a round of each group.
    """

    def __init__(self, run: Run, durations: Sequence[float]) -> None:
        self._run, self._durations = run, durations
        self._order = itertools.count()
        self._under_way: list[tuple[float, int, int, tuple[Any, ...]]] = []
        self.now = 0.0

    def send(self, group: int, stage: Any, *parameters: Any) -> None:
        values = self._run(group, stage, *parameters)
        arrival = self.now + self._durations[group]
        heapq.heappush(self._under_way, (arrival, next(self._order), group, values))

    def receive(self) -> tuple[int, tuple[Any, ...]]:
        self.now, _, group, values = heapq.heappop(self._under_way)
        return group, values


class Threaded:
    """Flights that are Spark jobs, each in a thread of its own.

    Parameters
    ----------
    run : callable
        ``run(group, stage, *parameters)``, from any thread.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._arrived: queue.SimpleQueue[tuple[int, Any, BaseException | None]]
        self._arrived = queue.SimpleQueue()
        self._threads: list[InheritableThread] = []

    def send(self, group: int, stage: Any, *parameters: Any) -> None:
        def fly() -> None:
            try:
                self._arrived.put((group, self._run(group, stage, *parameters), None))
            except BaseException as error:  # to be raised where it is waited for
                self._arrived.put((group, None, error))

        thread = InheritableThread(target=fly)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def receive(self) -> tuple[int, tuple[Any, ...]]:
        group, values, error = self._arrived.get()
        if error is not None:
            raise error
        return group, values

    def land(self) -> None:
        """Wait for all that are under way."""
        for thread in self._threads:
            thread.join()
