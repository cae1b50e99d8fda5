"""The view of a fit in a notebook: the page's, over the kernel's own connection.

Nothing listens at a port: it works wherever the notebook's kernel runs. Where a notebook is shown
without a kernel or without widgets, the picture of :mod:`mllib_ext.monitor.picture` stands in.
"""

from __future__ import annotations

import getpass
import threading
from importlib.resources import files
from typing import Any

import anywidget

from mllib_ext.monitor.controls import Command
from mllib_ext.monitor.picture import picture

# Between two looks for events, and the most of them in a message.
SECONDS, BATCH = 0.1, 250


def _static(*names: str) -> str:
    directory = files("mllib_ext.monitor").joinpath("static")
    return "\n".join(directory.joinpath(name).read_text("utf-8") for name in names)


class RunWidget(anywidget.AnyWidget):
    """Shows a fit and steers it: what ``run.widget()`` returns.

    Parameters
    ----------
    source : Source
        The fit, as :mod:`mllib_ext.monitor.server` sees it.

    Notes
    -----
    A kernel that is busy with a cell, as with ``run.result()``, shows rounds, and hears of commands
    when the cell has ended.
    """

    _esm = _static("uPlot.iife.min.js", "view.js", "widget.js")
    _css = _static("uPlot.min.css", "view.css")

    def __init__(self, source: Any) -> None:
        super().__init__()
        self._source = source
        self._told = 0  # id of the newest event that pages have
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self.on_msg(self._heard)

    def _heard(self, widget: Any, message: dict[str, Any], buffers: Any) -> None:
        if message.get("kind") == "begin":
            with self._lock:
                self._told = 0
                begin = {"kind": "begin", "word": message.get("word")}
                self.send({**begin, "description": self._source.description()})
                self._tell()
                if self._thread is None:
                    self._thread = threading.Thread(target=self._follow, daemon=True)
                    self._thread.start()
        elif message.get("kind") == "command":
            answer = {"kind": "answer", "number": message.get("number")}
            try:
                command = Command(
                    str(message.get("command")),
                    message.get("values", {}),
                    origin=f"widget: {getpass.getuser()}",
                )
                self._source.send(command)
                self.send({**answer, "key": command.key})
            except ValueError as error:
                self.send({**answer, "error": str(error)})

    def _follow(self) -> None:
        """Send events as they come, until the last one."""
        going_on = True
        while going_on and not self._closing.wait(SECONDS):
            going_on = self._source.state() in ("starting", "running", "paused")
            with self._lock:
                self._tell()
        with self._lock:
            self._thread = None

    def _tell(self) -> None:
        events = self._source.events(self._told)
        for start in range(0, len(events), BATCH):
            self.send({"kind": "events", "events": events[start : start + BATCH]})
            self._told = events[start : start + BATCH][-1]["id"]

    def close(self) -> None:
        """Show nothing more; the fit goes on."""
        self._closing.set()
        super().close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        still = picture(self._source.description(), self._source.events(0))
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        return {**data, "image/svg+xml": still, "text/plain": repr(self)}, metadata

    def __repr__(self) -> str:
        return f"RunWidget({self._source.description().get('estimator')}, {self._source.state()})"
