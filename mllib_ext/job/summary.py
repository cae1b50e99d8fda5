"""The last words of a job: what was done, how good it is, how to go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mllib_ext import storage
from mllib_ext.job.config import JobConfig, TrainConfig, TuneConfig
from mllib_ext.job.outputs import MODEL

# Of the candidates of a search: as many as are taken in at a glance, of all that are in the file.
CANDIDATES_SHOWN = 10


def training_summary(config: TrainConfig, result: dict[str, Any]) -> str:
    """A few lines for the user of a training job.

    Parameters
    ----------
    config : TrainConfig
    result : dict
        What goes into ``metrics.json``.
    """
    name = config.estimator.class_.rpartition(".")[2]
    rows = result["rows"]["train"]
    return "\n".join(
        [
            f"{config.name}: {name} trained on {rows:,} rows {_fit(result['fit'])}",
            "",
            *metrics_table(result["metrics"], result["rows"]),
            "",
            *_how_to_load(config),
        ]
    )


def tuning_summary(
    config: TuneConfig, result: dict[str, Any], table: Sequence[dict[str, Any]]
) -> str:
    """The best candidates, and what :func:`training_summary` says of the best one."""
    name = config.estimator.class_.rpartition(".")[2]
    search = result["search"]
    return "\n".join(
        [
            f"{config.name}: {search['candidates']} candidates of {name}, {search['folds']} folds "
            f"of {result['rows']['train']:,} rows, in {search['seconds']:.1f} s",
            "",
            *_candidates_table(table, search["metric"]),
            "",
            *metrics_table(result["metrics"], result["rows"]),
            "",
            *_how_to_load(config),
        ]
    )


def output_line(config: JobConfig) -> str:
    """Where the result is."""
    return f"output  {storage.qualified(config.output.path)}"


def metrics_table(sides: dict[str, dict[str, float | None]], rows: dict[str, int]) -> list[str]:
    """Metrics as lines, a column for each side of the data."""
    names = list(next(iter(sides.values())))
    if not names:
        return ["no metrics were asked for"]
    heads = [f"{side} ({rows[side]:,} rows)" for side in sides]
    cells = [[name, *(_number(values[name]) for values in sides.values())] for name in names]
    return aligned([["metric", *heads], *cells], 20)


def aligned(rows: Sequence[Sequence[str]], width: int = 0) -> list[str]:
    """Rows of a table as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        f"{row[0]:{widths[0]}}"
        + "".join(
            f"  {cell:>{max(width, wide)}}" for cell, wide in zip(row[1:], widths[1:], strict=True)
        )
        for row in rows
    ]


def _candidates_table(table: Sequence[dict[str, Any]], metric: str) -> list[str]:
    keys = list(table[0]["params"])
    cells = [
        [
            str(row["rank"]),
            _number(row["mean"]),
            _number(row["deviation"]),
            *(_value(row["params"][key]) for key in keys),
        ]
        for row in table[:CANDIDATES_SHOWN]
    ]
    lines = aligned([["rank", metric, "deviation", *keys], *cells])
    more = len(table) - CANDIDATES_SHOWN
    return [*lines, f"and {more} more"] if more > 0 else lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _fit(report: dict[str, Any]) -> str:
    text = f"in {report['seconds']:.1f} s"
    if report.get("n_iter"):  # a closed form takes none
        count = report["n_iter"]
        how = "converged" if report.get("converged") else f"not converged: {report.get('reason')}"
        text += f", {count} iteration{'s' if count != 1 else ''}, {how}"
    return text


def _how_to_load(config: JobConfig) -> list[str]:
    return [output_line(config), "", *loading(config)]


def loading(config: JobConfig) -> list[str]:
    """The lines that load the model."""
    path = storage.qualified(config.output.path)
    return [
        "from pyspark.ml import PipelineModel",
        f'model = PipelineModel.load("{path}/{MODEL}")',
    ]
