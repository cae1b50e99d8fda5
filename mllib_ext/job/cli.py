"""What the scripts in ``jobs/`` share: their command line, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pyspark.sql import SparkSession

from mllib_ext.job import yamlfile
from mllib_ext.job.config import load
from mllib_ext.job.config.job import Config
from mllib_ext.job.errors import backtrace, explanation
from mllib_ext.job.log import logged
from mllib_ext.job.problems import ConfigError
from mllib_ext.job.session import Terminated, interruptible, session

FAILED, MISUSED, INTERRUPTED, TERMINATED = 1, 2, 130, 143


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
    job: Callable[[SparkSession, Config], str],
    config: type[Config],
    argv: Sequence[str] | None = None,
    *,
    description: str | None = None,
) -> int:
    """Run a job that a config file describes, from its command line.

    Parameters
    ----------
    job : callable
        ``job(spark, config) -> str``: what it returns is printed.
    config : type
        The model of its config file.
    argv : sequence of str or None
        The arguments; None takes those of the process.
    description : str or None
        For ``--help``.

    Returns
    -------
    int
        The exit code: 0, 1 (failed), 2 (misused), 130 (Ctrl-C), 143 (SIGTERM).
    """

    def work() -> None:
        options = parser(description).parse_args(argv)
        output: dict[str, Any] = {} if options.output is None else {"path": options.output}
        if options.overwrite:
            output["overwrite"] = True
        values = load(config, options.config, options.overrides, output)
        if options.dry_run:
            print(yamlfile.dump(values.resolved()), end="")
            return
        with session(values.name, values.spark) as spark, interruptible(spark):
            print(job(spark, values))

    return _exit_code(work)


def run_without_config(
    job: Callable[[SparkSession, argparse.Namespace], str],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    *,
    name: str,
    refuse: Callable[[argparse.Namespace], None],
) -> int:
    """Run a job that has its own command line and no config file; otherwise as :func:`run`.

    Parameters
    ----------
    job : callable
        ``job(spark, options) -> str``: what it returns is printed.
    parser : argparse.ArgumentParser
        Makes the options.
    argv : sequence of str or None
        The arguments; None takes those of the process.
    name : str
        The Spark application's name.
    refuse : callable
        Calls ``parser.error`` for options that do not go together, before Spark starts.
    """

    def work() -> None:
        options = parser.parse_args(argv)
        refuse(options)
        with session(name, {}) as spark, interruptible(spark):
            print(job(spark, options))

    return _exit_code(work)


def _exit_code(work: Callable[[], None]) -> int:
    """Do the work with a log on standard error; errors become lines and exit codes."""
    with logged():
        try:
            work()
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
