"""What the scripts in ``jobs/`` share: command line, logging, session, errors as exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyspark import SparkContext
from pyspark.errors import (
    AnalysisException,
    IllegalArgumentException,
    ParseException,
    PySparkRuntimeError,
)
from pyspark.logger import PySparkLogger
from pyspark.sql import SparkSession

from mllib_ext.job import yamlfile
from mllib_ext.job.config import JobConfig, load
from mllib_ext.job.problems import ConfigError
from mllib_ext.optimizers.loop import DivergenceError

logger = logging.getLogger(__name__)

FAILED, MISUSED, INTERRUPTED, TERMINATED = 1, 2, 130, 143
# Lines of a Java stack trace.
JAVA_FRAME = re.compile(r"^\s+at [\w.$/<>]+\(.*\)\s*$|^\s*\.\.\. \d+ more\s*$|^Driver stacktrace:")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of a job that is described by a config file."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", required=True, help="the job's YAML file")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change a value, as in estimator.params.maxIter=50; may be repeated",
    )
    parser.add_argument("--output", metavar="DIR", help="where the result goes (output.path)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier result (output.overwrite)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check the config, print it with all defaults, and start nothing",
    )
    return parser


def run(
    job: Callable[[SparkSession, JobConfig], str],
    argv: Sequence[str] | None = None,
    *,
    description: str | None = None,
) -> int:
    """Run a job from its command line. Its exit code: 0, 1 (failed), 2 (misused), 130 (Ctrl-C).

    Parameters
    ----------
    job : callable
        ``job(spark, config) -> str``: what it returns is printed.
    argv : sequence of str or None
        The arguments; None takes those of the process.
    description : str or None
        For ``--help``.
    """
    with _logging():
        try:
            options = parser(description).parse_args(argv)
            output: dict[str, Any] = {} if options.output is None else {"path": options.output}
            if options.overwrite:
                output["overwrite"] = True
            config = load(options.config, options.overrides, output)
            if options.dry_run:
                print(yamlfile.dump(config.resolved()), end="")
                return 0
            with session(config) as spark, _interruptible(spark):
                print(job(spark, config))
            return 0
        except SystemExit as exit:  # argparse: --help, or arguments that it does not know
            return exit.code if isinstance(exit.code, int) else FAILED
        except KeyboardInterrupt as interrupt:
            return _interrupted(interrupt)
        except Exception as error:
            if (cause := _interruption(error)) is not None:
                return _interrupted(cause)
            message = explanation(error)
            print(f"error: {message}" if message else backtrace(error), file=sys.stderr)
            return MISUSED if isinstance(error, ConfigError) else FAILED


def _interrupted(interrupt: KeyboardInterrupt) -> int:
    terminated = isinstance(interrupt, Terminated)
    print("terminated" if terminated else "interrupted", file=sys.stderr)
    return TERMINATED if terminated else INTERRUPTED


def _interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that an error came from: PySpark's own clean-up may fail on its way out."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def session(config: JobConfig) -> Iterator[SparkSession]:
    """The session of a job: the one that runs, else a new one that ends with the block.

    Outside of spark-submit a new one runs in this process's own ``local[*]``.
    """
    settings = {
        key: str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in config.spark.items()
    }
    builder: Any = SparkSession.builder
    if SparkContext._active_spark_context is not None:  # a notebook's, or a test's
        running = builder.getOrCreate()
        _apply(running, settings)
        yield running
        return
    builder = builder.appName(config.name)
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


def _apply(spark: SparkSession, settings: dict[str, str]) -> None:
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


def explanation(error: Exception) -> str | None:
    """What an expected error says, without a trace; None for one that nobody expected.

    A ValueError or TypeError is expected where it says what was expected and what was found, as
    all errors of this library about input do.
    """
    text = str(error).strip()
    match error:
        case ConfigError() | DivergenceError() | OSError():
            return text
        case AnalysisException() | ParseException() | IllegalArgumentException():
            line = next((line for line in text.splitlines() if line.strip()), "")
            return re.sub(r"^\[[A-Z_.0-9]+\] | SQLSTATE: \w+", "", line)
        case PySparkRuntimeError() if "JAVA_GATEWAY_EXITED" in text:
            return "Spark did not start: it needs Java 17 or later, which ./spark-submit.sh finds"
        case ValueError() | TypeError() if "expected" in text and "found" in text:
            return text
    return None


def backtrace(error: Exception) -> str:
    """The Python traceback of an error; of Java's part only what it says."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(line for line in lines if not JAVA_FRAME.match(line) and line.strip())


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
def _logging() -> Iterator[None]:
    """The library's log and Python's warnings as lines on standard error, while a job runs."""
    root, package = logging.getLogger(), logging.getLogger("mllib_ext")
    # A notebook that has its own handlers must not see each line twice from the root.
    target, handler = (package if root.handlers else root), _Stderr()
    # PySpark logs each AnalysisException, as a line of JSON, before the job can say it in words.
    echo = PySparkLogger.getLogger("DataFrameQueryContextLogger")
    level, echo_level = package.level, echo.level
    target.addHandler(handler)
    root.addFilter(_no_py4j)
    package.setLevel(logging.INFO)
    echo.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: logger.warning("%s", message)
            yield
    finally:
        target.removeHandler(handler)
        root.removeFilter(_no_py4j)
        package.setLevel(level)
        echo.setLevel(echo_level)


def _no_py4j(record: logging.LogRecord) -> bool:
    """Py4j logs a traceback for each Ctrl-C and lost connection, and raises them as well."""
    return "py4j" not in record.pathname


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which schedulers and spark-submit.sh end a job: it unwinds like Ctrl-C."""


@contextmanager
def _interruptible(spark: SparkSession) -> Iterator[None]:
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
