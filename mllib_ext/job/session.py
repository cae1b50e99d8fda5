"""The Spark session of a job, and what interrupts it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyspark import SparkContext
from pyspark.sql import SparkSession

logger = logging.getLogger(__name__)


@contextmanager
def session(name: str, settings: Mapping[str, Any]) -> Iterator[SparkSession]:
    """The session of a job: the one that runs, else a new one that ends with the block.

    Outside of spark-submit a new one runs in this process's own ``local[*]``.

    Parameters
    ----------
    name : str
        The application's name.
    settings : mapping of str to object
        Spark's settings, ``spark.`` included; they win over those of spark-submit.
    """
    settings = {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in settings.items()
    }
    builder: Any = SparkSession.builder
    if SparkContext._active_spark_context is not None:  # a notebook's, or a test's
        running = builder.getOrCreate()
        _apply(running, settings)
        yield running
        return
    builder = builder.appName(name)
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # not under spark-submit
        builder = builder.master("local[*]")
        builder = builder.config("spark.python.unix.domain.socket.enabled", "true")
        builder = builder.config("spark.ui.showConsoleProgress", "false")
        _quiet_spark()
    # Workers otherwise run the PATH's python3, which may lack this package's dependencies.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    for key, value in settings.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()


def _apply(spark: SparkSession, settings: Mapping[str, str]) -> None:
    for key, value in settings.items():
        if spark.conf.isModifiable(key):
            spark.conf.set(key, value)
        elif spark.conf.get(key, None) != value:
            logger.warning("%s is left as it is: the Spark session runs already", key)


def _quiet_spark() -> None:
    """The repository's ``conf/``, as spark-submit.sh uses it, where the script runs out of one."""
    conf = Path(sys.argv[0]).resolve().parent.parent / "conf"
    if (conf / "log4j2.properties").is_file():
        os.environ.setdefault("SPARK_CONF_DIR", str(conf))


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which schedulers and spark-submit.sh end a job: it unwinds like Ctrl-C."""


@contextmanager
def interruptible(spark: SparkSession) -> Iterator[None]:
    """Ctrl-C and SIGTERM cancel Spark's jobs, then unwind the block.

    PySpark's own handler calls the JVM over the connection that the interrupted thread is
    reading from: the jobs go on, and Py4j fails with a reentrant call. Here another thread, with
    a connection of its own, cancels them first, so that none still writes what the unwinding
    removes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        cancel = threading.Thread(target=spark.sparkContext.cancelAllJobs, daemon=True)
        cancel.start()
        cancel.join(timeout=5)  # a JVM that hangs must not keep us
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
