"""What jobs leave: a report, the resolved config and, by job, a model, its history, data."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from typing import Any

from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from mllib_ext import storage
from mllib_ext.job import yamlfile
from mllib_ext.job.config import JobConfig, Output
from mllib_ext.monitor.directory import of_a_run
from mllib_ext.optimizers.loop import Record
from mllib_ext.plain import plain

logger = logging.getLogger(__name__)

MODEL, METRICS, CONFIG, HISTORY = "model", "metrics.json", "config.yaml", "history.jsonl"
REPORT = "report.html"
# Of jobs that write rows: below the result, whose other files a reader would take for data.
PREDICTIONS, DATA, QUARANTINE, NEIGHBORS = "predictions", "data", "quarantine", "neighbors"


@contextmanager
def output_directory(output: Output) -> Iterator[str]:
    """A temporary directory that becomes ``output.path`` when the block ends well.

    Raises
    ------
    FileExistsError
        There is something: an earlier result without ``overwrite``, or what no job wrote.
    """
    with ExitStack() as stack:
        try:
            _refuse(output)
            made = storage.atomic_directory(output.path, overwrite=output.overwrite)
            directory = stack.enter_context(made)
        except OSError as error:
            raise type(error)(f"output.path: {error}") from None
        yield directory


def _refuse(output: Output) -> None:
    """FileExistsError for what must not be replaced; warnings of what may surprise."""
    path = storage.qualified(output.path)
    master = str(SparkSession.active().conf.get("spark.master"))
    if path.startswith("file:") and not master.startswith("local"):
        logger.warning(
            "output.path is on a local disk, %s: executors on other machines write their part of "
            "the result to theirs; choose a file system that all of them share",
            path,
        )
    if storage.exists(path):
        if not output.overwrite:
            raise FileExistsError(
                f"expected a new directory, found {path}; replace it with "
                "--overwrite, or write elsewhere with --output DIR"
            )
        # A mistyped path must not cost somebody a directory of other things.
        names = storage.names(path)
        if names is None or (names and not {METRICS, CONFIG} <= set(names)):
            raise FileExistsError(
                f"expected the result of an earlier job to overwrite, found {path}, "
                f"which has no {METRICS} and {CONFIG}"
            )
    parent, _, name = path.rstrip("/").rpartition("/")
    with suppress(OSError):  # a directory that may be written to and not be listed
        for other in storage.names(f"{parent}/") or ():
            if other.startswith(f".{name}.") and other.endswith((".tmp", ".old")):
                logger.warning(
                    "%s/%s is of a job that was killed, which leaves what it had written, or of "
                    "one that writes to the same output now",
                    parent,
                    other,
                )


@contextmanager
def recording(output: Output, checkpoints: str | None) -> Iterator[str]:
    """Where the fits of a job are recorded, from the first round on: ``OUTPUT.run``.

    An earlier record goes once there is a new one, and stays where the job fails before its first
    round. Where there are checkpoints to go on from, it is the first part of the new one.
    """
    path = recorded(output)
    logger.info("watch the fit: ./spark-submit.sh --python -m mllib_ext.monitor show %s", path)
    names = storage.names(path)
    former = names and all(map(of_a_run, names))
    goes_on = checkpoints is not None and storage.names(checkpoints)
    with storage.put_aside(path) if former and not goes_on else nullcontext():
        yield path


def recorded(output: Output) -> str:
    """Where :func:`recording` is."""
    return storage.qualified(output.path).rstrip("/") + ".run"


def write_report(directory: str, config: JobConfig, report: dict[str, Any]) -> None:
    """Write what marks a result of a job: its report and its resolved config."""
    text = json.dumps(plain(report), indent=2, ensure_ascii=False)
    storage.write_text(f"{directory}/{METRICS}", text + "\n")
    storage.write_text(f"{directory}/{CONFIG}", yamlfile.dump(config.resolved()))


def write_model(directory: str, model: PipelineModel, history: Iterable[Record] = ()) -> None:
    """Write a fitted pipeline and, where there is one, the history of its training."""
    model.save(f"{directory}/{MODEL}")
    lines = [json.dumps(plain(line(record))) + "\n" for record in history]
    if lines:
        storage.write_text(f"{directory}/{HISTORY}", "".join(lines))


def line(record: Record) -> dict[str, Any]:
    """A record of the history as a line of ``history.jsonl``."""
    return {
        "iteration": record.iteration,
        "loss": record.loss,
        "validation_loss": record.validation_loss,
        "gradient_norm": record.gradient_norm,
        "step_size": record.step_size,
        **record.values,
        "seconds": record.seconds,
        "rounds": [asdict(one) for one in record.rounds],
        "settings": asdict(record.settings),
        "actions": list(record.actions),
    }
