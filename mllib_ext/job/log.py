"""The log of a job: lines on standard error, while it runs."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyspark.logger import PySparkLogger

logger = logging.getLogger(__name__)


class _Stderr(logging.StreamHandler[Any]):
    """Writes to what ``sys.stderr`` is now: a progress bar puts itself in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return f"{self._clock(record)} {level}{super().format(record)}"

    @staticmethod
    def _clock(record: logging.LogRecord) -> str:
        return logging.Formatter("%(asctime)s", "%H:%M:%S").format(record)


@contextmanager
def logged() -> Iterator[None]:
    """The library's log and Python's warnings as lines on standard error, while a job runs."""
    root, package = logging.getLogger(), logging.getLogger("mllib_ext")
    # A notebook that has its own handlers must not see each line twice from the root.
    target, handler = (package if root.handlers else root), _Stderr()
    # PySpark logs each AnalysisException, as a line of JSON, before the job can say it in words.
    echoes = [PySparkLogger.getLogger(f"{kind}QueryContextLogger") for kind in ("DataFrame", "SQL")]
    level, echo_levels = package.level, [echo.level for echo in echoes]
    target.addHandler(handler)
    root.addFilter(_no_py4j)
    package.setLevel(logging.INFO)
    for echo in echoes:
        echo.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: logger.warning("%s", message)
            yield
    finally:
        target.removeHandler(handler)
        root.removeFilter(_no_py4j)
        package.setLevel(level)
        for echo, echo_level in zip(echoes, echo_levels, strict=True):
            echo.setLevel(echo_level)


def _no_py4j(record: logging.LogRecord) -> bool:
    """Py4j logs a traceback for each Ctrl-C and lost connection, and raises them as well."""
    return "py4j" not in record.pathname
