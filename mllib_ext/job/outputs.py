"""What jobs leave: a report, the resolved config and, by job, a model, its history, data."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
                f"output.path: expected a new directory, found {path}; replace it with "
                "--overwrite, or write elsewhere with --output DIR"
            )
        # A mistyped path must not cost somebody a directory of other things.
        names = storage.names(path)
        if names is None or (names and not {METRICS, CONFIG} <= set(names)):
            raise FileExistsError(
                f"output.path: expected the result of an earlier job to overwrite, found {path}, "
                f"which has no {METRICS} and {CONFIG}"
            )
    with storage.atomic_directory(path, overwrite=output.overwrite) as directory:
        yield directory


def run_directory(output: Output) -> str:
    """Where the fits of a job are recorded, from the first round on: ``OUTPUT.run``.

    What an earlier attempt recorded there is deleted.
    """
    path = recorded(output)
    names = storage.names(path)
    if names and all(map(of_a_run, names)):
        storage.delete(path)
    logger.info("watch the fit: python -m mllib_ext.monitor show %s", path)
    return path


def recorded(output: Output) -> str:
    """Where :func:`run_directory` is."""
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
