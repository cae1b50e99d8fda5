"""How a job is watched and steered while it trains: its page, and what Ctrl-C does to it."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from mllib_ext.monitor.controls import Command
from mllib_ext.monitor.fits import Monitor

logger = logging.getLogger(__name__)

Page = bool | Literal["auto"]


@contextmanager
def page(asked: Page, sources: Callable[[], dict[str, Any]]) -> Iterator[str | None]:
    """The address of a page that shows runs while the block lasts, or None.

    Parameters
    ----------
    asked : bool or "auto"
        ``auto``: where standard error is a terminal, and what serves it is installed.
    sources : callable
        Returns the runs by name, as :class:`mllib_ext.monitor.server.Server` takes them.

    Raises
    ------
    ImportError
        It is asked for, and the extra ``[live]`` is missing.
    """
    server: Any = None
    if asked is True or (asked == "auto" and sys.stderr.isatty()):
        try:
            from mllib_ext.monitor.server import Server

            server = Server(sources)
        except (ImportError, OSError) as error:  # no port is free
            if asked is True:
                raise
            logger.info("no page of the fit: %s", error)
    if server is None:
        yield None
        return
    with server:
        yield server.url


@contextmanager
def stopped_by_interrupt(monitor: Monitor) -> Iterator[None]:
    """Ctrl-C ends the fit of a monitor after its round, and keeps the model; again, it aborts.

    Before the first round there is no model to keep: it aborts at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.getsignal(signal.SIGINT)
    controls = monitor.controls

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)  # for the second time
        if controls.state not in ("running", "paused"):
            if callable(before):
                before(number, frame)
            return
        # In another thread: a handler may interrupt one that holds the lock of a log.
        threading.Thread(target=stop, daemon=True).start()

    def stop() -> None:
        logger.warning("stopping after this round and keeping the model; Ctrl-C again aborts")
        command = Command("stop", {"reason": "stopped by Ctrl-C"}, origin="terminal")
        with contextlib.suppress(ValueError):  # it has just ended
            controls.send(command)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)
