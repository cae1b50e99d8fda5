"""A search for the best Params: cross-validated on the training rows, then fitted on all of them.

Every fold fits the whole pipeline anew, the encoding of columns included: no stage sees a row
that its candidate is judged by. Test rows take no part in the search.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel
from pyspark.sql import DataFrame, SparkSession

from mllib_ext import storage
from mllib_ext.job import inputs, metrics, outputs, pipelines, report, yamlfile
from mllib_ext.job.candidates import Candidates, Score
from mllib_ext.job.config import TuneConfig
from mllib_ext.job.rows import divided, free_name
from mllib_ext.job.split import fold
from mllib_ext.job.summary import tuning_summary
from mllib_ext.job.training import measured, refuse, refuse_metrics
from mllib_ext.job.watching import page
from mllib_ext.report import Page

logger = logging.getLogger(__name__)

# The table of candidates, and a config for jobs/train.py with the best of them.
TABLE, BEST = "candidates.csv", "best.yaml"


def tune(spark: SparkSession, config: TuneConfig) -> str:
    """Run a search. The summary for its user.

    Parameters
    ----------
    spark : SparkSession
    config : TuneConfig

    Raises
    ------
    FileExistsError
        The output exists: before anything is read.
    ValueError, TypeError
        Bad input, before training; or no candidate has a metric.
    """
    estimator, between = pipelines.training(config, config.estimator.find())
    stages = pipelines.preparation(None, config.stages)
    encoding = pipelines.preparation(config.encode, [])
    tried = config.search.drawn()
    grid = [{_param(key, estimator, stages): v for key, v in one.items()} for one in tried]

    watched = hasattr(estimator, "setRunDir")
    runs: list[Any] = []  # where the page finds them
    with (
        outputs.output_directory(config.output) as directory,
        page(watched and config.page, lambda: runs[0]() if runs else {}) as url,
    ):
        data = inputs.read(spark, config.input)
        refuse(data, config)
        name = free_name("fold", data)
        part = fold(data.schema, config.split, config.search.folds, config.search.seed)
        with divided(data, config, {name: part}) as rows:
            refuse_metrics(config, rows.classes)
            _refuse_empty_folds(rows.train, name, config.search.folds)
            before = [*encoding, *stages]
            # Not used again: it finds columns that are not there before hours of search.
            first = [stage.copy(grid[0]) for stage in before]
            _, prepared = pipelines.prepare(first, rows.train.drop(name))
            pipelines.refuse_columns(prepared.schema, config)
            pipeline = Candidates(stages=[*before, *between, estimator]).setFold(name)
            recording = outputs.recording(config.output, config.checkpointDir)
            began = time.perf_counter()
            with recording if watched else nullcontext("") as run:
                if watched:
                    estimator.setRunDir(run).setCheckpointDir(config.checkpointDir, shared=True)
                    if url:
                        from mllib_ext.monitor.server import Directory

                        runs.append(Directory(run))
                        logger.info("the page of the fits: %s", url)
                found: Any = _search(pipeline, rows.train, grid, config)
            seconds = time.perf_counter() - began
            table = ranked(tried, found.avgMetrics, found.stdMetrics, config.metric)
            if table[0]["mean"] is None:
                raise ValueError(
                    f"search: expected a candidate with a finite {config.metric}, found none "
                    f"among {len(tried)}"
                )
            best = pipelines.for_prediction(found.bestModel.stages)
            measures = measured(best, rows, estimator, config)
            result = {
                "name": config.name,
                "estimator": config.estimator.class_,
                "rows": rows.counts,
                "search": {
                    "metric": config.metric,
                    "candidates": len(tried),
                    "folds": config.search.folds,
                    "seconds": seconds,
                    "best": {"params": table[0]["params"], "mean": table[0]["mean"]},
                },
                **measures.report,
            }
        outputs.write_model(directory, best, getattr(best.stages[-1], "history", ()))
        storage.write_text(f"{directory}/{TABLE}", as_csv(table))
        chosen = best_config(config, table[0]["params"])
        storage.write_text(f"{directory}/{BEST}", yamlfile.dump(chosen))
        outputs.write_report(directory, config, result)

        def drawn() -> Page:
            chosen = estimator.copy(grid[tried.index(table[0]["params"])])
            run = outputs.recorded(config.output) if hasattr(estimator, "setRunDir") else None
            return report.tuning(
                spark, config, result, measures, table, chosen, best.stages[-1],
                best.transform(rows.train).schema, run,
            )  # fmt: skip

        report.write(directory, drawn)
    return tuning_summary(config, result, table)


def _refuse_empty_folds(rows: DataFrame, fold: str, folds: int) -> None:
    found = rows.select(fold).distinct().count()
    if found < folds:
        raise ValueError(
            f"search.folds: expected a training row in each of them, found {folds} folds of which "
            f"{folds - found} have none"
        )


def _search(
    pipeline: Candidates, rows: DataFrame, grid: list[dict[Any, Any]], config: TuneConfig
) -> CrossValidatorModel:
    estimator = pipeline.getStages()[-1]
    columns = pipelines.columns(estimator, config)
    search = config.search
    logger.info(
        "searching: %d candidates of %s in %d folds", len(grid), type(estimator).__name__,
        search.folds,
    )  # fmt: skip
    validator: Any = CrossValidator(
        estimator=pipeline,
        estimatorParamMaps=grid,
        evaluator=Score(
            metrics.evaluator(config.metric, columns),
            columns["predictionCol"],
            search.folds * len(grid),
        ),
        numFolds=search.folds,
        foldCol=pipeline.fold,
        parallelism=search.parallelism,
    )
    with np.errstate(invalid="ignore"):  # the deviation of infinite metrics
        return validator.fit(rows)


def _param(key: str, estimator: Any, stages: Sequence[Any]) -> Any:
    """The Param of a key of ``search.params``: of the estimator, or of ``stages.INDEX``."""
    if not key.startswith("stages."):
        return estimator.getParam(key)
    _, index, name = key.split(".", 2)
    return stages[int(index)].getParam(name)


def ranked(
    tried: Sequence[dict[str, Any]],
    means: Sequence[float],
    deviations: Sequence[float],
    metric: str,
) -> list[dict[str, Any]]:
    """The candidates from the best to the worst; those that diverged, without a mean, last."""
    sign = -1 if metrics.evaluator(metric, {}).isLargerBetter() else 1
    order = sorted(range(len(tried)), key=lambda i: (sign * means[i], i))
    return [
        {
            "rank": rank,
            "params": tried[i],
            "mean": float(means[i]) if math.isfinite(means[i]) else None,
            "deviation": float(deviations[i]) if math.isfinite(means[i]) else None,
        }
        for rank, i in enumerate(order, start=1)
    ]


def as_csv(table: Sequence[dict[str, Any]]) -> str:
    """The table as CSV: rank, mean and standard deviation over the folds, a column a Param."""
    text = io.StringIO()
    keys = list(table[0]["params"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "mean", "deviation", *keys])
    for row in table:
        params = [row["params"][key] for key in keys]
        writer.writerow([row["rank"], row["mean"], row["deviation"], *params])
    return text.getvalue()


def best_config(config: TuneConfig, params: dict[str, Any]) -> dict[str, Any]:
    """The config of a training job with these Params."""
    values = config.resolved()
    del values["search"], values["output"]
    for key, value in params.items():
        if key.startswith("stages."):
            _, index, name = key.split(".", 2)
            values["stages"][int(index)]["params"][name] = value
        else:
            values["estimator"]["params"][key] = value
    values["name"] = f"{config.name}-best"
    return values
