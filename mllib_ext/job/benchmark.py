"""How contenders at a task are measured side by side, and the report of it.

Every contender gets the same cached DataFrame in one Spark session (scikit-learn the same numbers
as an array), and contenders take turns, so that a machine that slows down slows all of them. What
is compared is the time to reach the same objective, not the same number of iterations: each
contender is first asked how many iterations it needs, then timed with just so many.

Only ratios carry over to another machine.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from mllib_ext import __version__

logger = logging.getLogger(__name__)

# --- measuring -----------------------------------------------------------------------------------


@dataclass
class Line:
    """One contender in one comparison: seconds of every run, and what else is told of it."""

    name: str
    seconds: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Comparison:
    """Contenders at one task; the first line is this package."""

    task: str
    lines: list[Line]

    def ratio(self, line: Line) -> float:
        """How many times as long as this package a contender took."""
        return line.median / self.lines[0].median


def alternate(runs: dict[str, Callable[[], Any]], repeats: int, warm_up: bool = True) -> list[Line]:
    """Time the contenders in turn, ``repeats`` times each, after one run that does not count."""
    lines = [Line(name) for name in runs]
    for i in range(0 if warm_up else 1, repeats + 1):
        for line, run in zip(lines, runs.values(), strict=True):
            with peak_memory() as peaks:
                began = time.perf_counter()
                run()
                seconds = time.perf_counter() - began
            logger.info("%s: %.3f s%s", line.name, seconds, "" if i else ", to warm up")
            if i:
                line.seconds.append(seconds)
            for process, megabytes in peaks.items():
                key = f"peak {process} MB"
                line.notes[key] = max(megabytes, line.notes.get(key, 0))
    return lines


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Largest resident sizes, by kind of process, of this process and those below it, in MB."""
    peaks: dict[str, int] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            for kind, megabytes in _resident().items():
                peaks[kind] = max(peaks.get(kind, 0), megabytes)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


def _resident() -> dict[str, int]:
    """Resident MB of the driver, the JVM and all Python workers together."""
    import psutil  # of the extra [test]

    driver = psutil.Process()
    above = driver.parent()  # under spark-submit the JVM started us, otherwise we started it
    top = above if above is not None and above.name() == "java" else driver
    total: dict[str, int] = {}
    for process in (top, *top.children(recursive=True)):
        try:
            kind = "jvm" if process.name() == "java" else "workers"
            kind = "driver" if process == driver else kind
            total[kind] = total.get(kind, 0) + process.memory_info().rss // (1 << 20)
        except psutil.NoSuchProcess:
            continue
    return total


# --- the report ----------------------------------------------------------------------------------


def machine(spark: SparkSession) -> dict[str, Any]:
    """What the figures were measured on."""
    packages = ("pyspark", "numpy", "scipy", "pyarrow", "scikit-learn")
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    java = spark.sparkContext._jvm.java.lang.System.getProperty("java.version")  # type: ignore[union-attr]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "master": spark.sparkContext.master,
        "python": platform.python_version(),
        "java": java,
        "mllib_ext": __version__,
        **{name: version(name) for name in packages},
    }


def table(comparisons: list[Comparison]) -> str:
    """The comparisons for a terminal, ratios first."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title="mllib_ext and others; ratios above 1: mllib_ext is faster")
    for heading in ("task", "contender", "ratio", "median s", "min s", "notes"):
        shown.add_column(heading, overflow="fold")
    for comparison in comparisons:
        for i, line in enumerate(comparison.lines):
            notes = ", ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in line.notes.items()
            )
            shown.add_row(
                comparison.task if i == 0 else "",
                line.name,
                f"{comparison.ratio(line):.2f}",
                f"{line.median:.3f}",
                f"{min(line.seconds):.3f}",
                notes,
            )
    console = Console(width=140)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def as_json(spark: SparkSession, data: dict[str, Any], comparisons: list[Comparison]) -> str:
    """Everything that was measured."""
    return json.dumps(
        {
            "machine": machine(spark),
            "data": data,
            "comparisons": [
                {
                    "task": c.task,
                    "lines": [
                        {**asdict(line), "median": line.median, "ratio": c.ratio(line)}
                        for line in c.lines
                    ],
                }
                for c in comparisons
            ],
        },
        indent=2,
    )
