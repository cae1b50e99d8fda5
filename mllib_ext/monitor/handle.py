"""A fit in another thread, and the handle to watch and steer it by."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from pyspark import InheritableThread
from pyspark.sql import DataFrame

from mllib_ext.monitor.controls import Command
from mllib_ext.monitor.events import description
from mllib_ext.monitor.fits import Monitor, Served
from mllib_ext.monitor.picture import picture
from mllib_ext.monitor.run import rounds_of

if TYPE_CHECKING:
    from mllib_ext.monitor.server import Server

logger = logging.getLogger(__name__)


class LiveRun:
    """A fit that runs in a thread of its own: what ``estimator.fitAsync(df)`` returns.

    Commands take effect between two rounds. One that is wrong is refused with a ValueError, and
    nothing of it reaches the algorithm. ``events`` tell when each was applied.

    Attributes
    ----------
    job_group : str
        Spark's group of the fit's jobs.
    """

    def __init__(self, estimator: Any, dataset: DataFrame) -> None:
        self._monitor = Monitor.at(estimator.getRunDir(), keep=True)
        self._monitor.description.update(description(estimator))
        estimator._monitor = self._monitor
        self._estimator, self._dataset = estimator, dataset
        self._context = dataset.sparkSession.sparkContext
        self.job_group = f"{estimator.uid}-{id(self):x}"
        self._model: Any = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._thread: Any = InheritableThread(target=self._fit, daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        try:
            self._context.setJobGroup(
                self.job_group, f"fit of {type(self._estimator).__name__}", True
            )
            self._model = self._estimator.fit(self._dataset)
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    # --- watch ---

    @property
    def state(self) -> str:
        """``starting`` (blocks are built), ``running``, ``paused``, ``finished``, ``stopped`` or
        ``failed``."""
        state = self._monitor.controls.state
        return "failed" if self._error is not None else state

    @property
    def run_dir(self) -> str | None:
        """The run directory; None without one, and before the first round."""
        directory = self._monitor.log.directory
        return None if directory is None else directory.path

    @property
    def events(self) -> pd.DataFrame:
        """All events so far, one a row: :mod:`mllib_ext.monitor.events`."""
        return pd.DataFrame(self._monitor.log.events())

    @property
    def rounds(self) -> pd.DataFrame:
        """One row a round, as in :attr:`mllib_ext.monitor.Run.rounds`."""
        return rounds_of(self._monitor.log.events())

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the fit to end, and return its model or raise its error.

        Raises
        ------
        TimeoutError
            It has not ended within so many seconds; it goes on.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"expected the fit to end within {timeout:g} s, found it going on")
        if self._error is not None:
            raise self._error
        return self._model

    # --- steer ---

    def set(self, **values: Any) -> Command:
        """Change settings: ``run.set(stepSize=0.01)``. What may be set, ``events`` tell."""
        return self.send(Command("set", values))

    def pause(self) -> Command:
        """Wait after the round that runs."""
        return self.send(Command("pause"))

    def resume(self) -> Command:
        """Go on after a pause."""
        return self.send(Command("resume"))

    def stop(self, reason: str = "stopped by a command") -> Command:
        """End after the round that runs and keep the model as it is then."""
        return self.send(Command("stop", {"reason": reason}))

    def checkpoint(self, name: str = "checkpoint") -> Command:
        """Remember the state under a name."""
        return self.send(Command("checkpoint", {"name": name}))

    def restore(self, name: str = "checkpoint") -> Command:
        """Go back to the state of a checkpoint; settings stay as they are now."""
        return self.send(Command("restore", {"name": name}))

    def note(self, text: str) -> Command:
        """Add a note to the events."""
        return self.send(Command("note", {"text": text}))

    def send(self, command: Command) -> Command:
        """Send a command; ValueError if it is wrong or the run has ended."""
        return self._monitor.controls.send(command)

    def serve(self, *, host: str = "127.0.0.1", port: int = 0, hosts: Sequence[str] = ()) -> Server:
        """Serve a page that watches and steers this fit: its address is the answer's ``url``.

        Parameters
        ----------
        host, port, hosts
            As in :class:`mllib_ext.monitor.server.Server`.

        Raises
        ------
        ImportError
            Without the extra ``[live]``.
        """
        from mllib_ext.monitor.server import Server

        source = Served(self._monitor, lambda: self.state)
        return Server(lambda: {".": source}, host=host, port=port, hosts=hosts)

    def widget(self) -> Any:
        """The same view and controls in a notebook, while the fit goes on.

        Without the extra ``[widget]`` a picture of the fit as it is now: with ``display``, or as
        the last line of a cell.
        """
        source = Served(self._monitor, lambda: self.state)
        try:
            from mllib_ext.monitor.widget import RunWidget
        except ImportError:
            logger.warning("a picture stands in for the widget: pip install 'mllib_ext[widget]'")
            return Still(picture(source.description(), source.events(0)))
        return RunWidget(source)

    def cancel(self) -> None:
        """Give the fit up at once, its Spark jobs included: ``result`` raises."""
        self._monitor.controls.cancel()
        self._context.cancelJobGroup(self.job_group)

    def __repr__(self) -> str:
        return f"LiveRun({type(self._estimator).__name__}, {self.state})"


class Still:
    """A picture that notebooks show.

    Attributes
    ----------
    svg : str
    """

    def __init__(self, svg: str) -> None:
        self.svg = svg

    def _repr_svg_(self) -> str:
        return self.svg
