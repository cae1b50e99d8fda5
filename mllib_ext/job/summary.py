"""The last words of a training job: what was trained, how good it is, how to use it."""

from __future__ import annotations

from typing import Any

from mllib_ext import storage
from mllib_ext.job.config import JobConfig
from mllib_ext.job.outputs import MODEL


def summary(config: JobConfig, result: dict[str, Any]) -> str:
    """A few lines for the user of a job.

    Parameters
    ----------
    config : JobConfig
    result : dict
        What goes into ``metrics.json``.
    """
    path = storage.qualified(config.output.path)
    name = config.estimator.class_.rpartition(".")[2]
    lines = [
        f"{config.name}: {name} trained on {result['rows']['train']:,} rows {_fit(result['fit'])}",
        "",
        *_table(result),
        "",
        f"output  {path}",
        "",
        "from pyspark.ml import PipelineModel",
        f'model = PipelineModel.load("{path}/{MODEL}")',
    ]
    return "\n".join(lines)


def _fit(report: dict[str, Any]) -> str:
    text = f"in {report['seconds']:.1f} s"
    if report.get("n_iter"):  # a closed form takes none
        count = report["n_iter"]
        how = "converged" if report.get("converged") else f"not converged: {report.get('reason')}"
        text += f", {count} iteration{'s' if count != 1 else ''}, {how}"
    return text


def _table(result: dict[str, Any]) -> list[str]:
    sides = result["metrics"]
    metrics = list(next(iter(sides.values())))
    if not metrics:
        return ["no metrics were asked for"]
    width = max(len("metric"), *map(len, metrics))
    heads = [f"{side} ({result['rows'][side]:,} rows)" for side in sides]
    lines = [f"{'metric':{width}}" + "".join(f"  {head:>20}" for head in heads)]
    for metric in metrics:
        values = [sides[side][metric] for side in sides]
        cells = ["-" if value is None else f"{value:.6g}" for value in values]
        lines.append(f"{metric:{width}}" + "".join(f"  {cell:>20}" for cell in cells))
    return lines
