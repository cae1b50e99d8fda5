"""Progress of a fit: a callback that draws, on a terminal, or logs a line now and then."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from mllib_ext.monitor.events import partitions
from mllib_ext.optimizers.loop import Callback, Record

logger = logging.getLogger(__name__)

Mode = Literal["auto", "rich", "plain", "none"]

# At most about one line a second: a log of a thousand rounds stays readable.
SECONDS_BETWEEN_LINES = 1.0


@contextmanager
def progress(mode: Mode, title: str, url: str | None = None) -> Iterator[Callback]:
    """A callback for ``setCallbacks`` that shows how training goes while the block lasts.

    Parameters
    ----------
    mode : {"auto", "rich", "plain", "none"}
        ``auto`` draws where standard error is a terminal and logs elsewhere.
    title : str
        What is being trained.
    url : str or None
        Of the page that shows more.
    """
    if mode == "auto":
        mode = "rich" if sys.stderr.isatty() else "plain"
    display: _Bar | _Lines | _Nothing = _Nothing()
    if mode != "none":
        display = _Bar(title, url) if mode == "rich" else _Lines(title, url)
    guard = _Guard()

    def callback(state: Any, record: Record) -> None:
        guard(display.show, record)

    guard(display.start)
    try:
        yield callback
    finally:
        guard(display.stop)


class _Guard:
    """Calls that must not stop a fit: the first that fails is the last."""

    def __init__(self) -> None:
        self.broken = False

    def __call__(self, draw: Callable[..., None], *arguments: Any) -> None:
        if self.broken:
            return
        try:
            draw(*arguments)
        except Exception as error:
            self.broken = True
            logger.warning("progress is not shown any more: %s: %s", type(error).__name__, error)


class _Pace:
    """Rounds per second since the start of training (building the blocks not counted)."""

    def __init__(self) -> None:
        self.rounds, self.seconds = 0, 0.0

    def add(self, record: Record) -> None:
        if record.iteration > 0:
            self.rounds += len(record.rounds)
            self.seconds += record.seconds

    def __str__(self) -> str:
        return f"{self.rounds / self.seconds:.1f} rounds/s" if self.rounds else ""


def _moved(record: Record, form: str) -> str:
    """The norm of the gradient or, of an algorithm without one, how far the last step led."""
    if math.isfinite(record.gradient_norm):
        return f"gradient {record.gradient_norm:{form}}"
    return f"step {record.step_size:{form}}" if math.isfinite(record.step_size) else ""


def _skew(record: Record) -> str:
    """The largest seconds of a partition less their median."""
    skew = partitions(record.rounds).get("skew")
    return "" if skew is None else f"skew {1000 * skew:.3g} ms"


class _Nothing:
    def start(self) -> None: ...
    def show(self, record: Record) -> None: ...
    def stop(self) -> None: ...


class _Lines:
    """Log lines: the first record, the last, and about one a second between them."""

    def __init__(self, title: str, url: str | None) -> None:
        self.title, self.url, self.pace = title, url, _Pace()
        self.logged, self.waiting = 0.0, ""

    def start(self) -> None:
        logger.info("training %s", self.title)
        if self.url:
            logger.info("the page of the fit: %s", self.url)

    def show(self, record: Record) -> None:
        self.pace.add(record)
        self.waiting = "  ".join(
            part
            for part in (
                f"iteration {record.iteration}/{record.settings.max_iter}",
                f"loss {record.loss:.6g}",
                _moved(record, ".2e"),
                str(self.pace),
                _skew(record),
            )
            if part
        )
        if time.monotonic() - self.logged >= SECONDS_BETWEEN_LINES:
            self._log()

    def stop(self) -> None:
        if self.waiting:
            self._log()

    def _log(self) -> None:
        logger.info(self.waiting)
        self.logged, self.waiting = time.monotonic(), ""


class _Bar:
    """A bar of iterations with loss, gradient norm, pace and skew, the page's address below.

    Redrawn by rich's own thread.
    """

    def __init__(self, title: str, url: str | None) -> None:
        self.pace = _Pace()
        self.bar = Progress(
            SpinnerColumn(),
            # With the text, within the 80 columns of the narrowest terminal.
            BarColumn(bar_width=8),
            TextColumn("{task.description}", markup=False),
        )
        address = [Text(url, style="dim", overflow="fold")] if url else []
        self.live = Live(Group(self.bar, *address), console=Console(stderr=True))
        self.title = title
        self.task = self.bar.add_task("building blocks", total=None)

    def start(self) -> None:
        logger.info("training %s", self.title)
        self.live.start()

    def show(self, record: Record) -> None:
        self.pace.add(record)
        total = record.settings.max_iter
        self.bar.update(
            self.task,
            completed=record.iteration,
            total=total,
            description=f"{record.iteration}/{total}  loss {record.loss:.6g}  "
            f"{_moved(record, '.1e')}  {self.pace}  {_skew(record)}",
        )

    def stop(self) -> None:
        self.live.stop()
