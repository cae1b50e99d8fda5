"""Stochastic gradient descent against itself and L-BFGS: bytes, rounds and seconds to a gap.

The baseline sends every gradient whole, and is the best of a grid of steps, batches and budgets
of rounds: the one that reaches the gap in the fewest, within the least budget that does.
Local updates have the best of a grid of their own. Grids are searched on the driver, where rounds
cost no Spark job and take the same steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from mllib_ext import plots
from mllib_ext.blocks import Blocks
from mllib_ext.classification import LogisticRegression
from mllib_ext.figures import COSTS
from mllib_ext.job.benchmark import Comparison, Line
from mllib_ext.optimizers.loop import DivergenceError, Record

logger = logging.getLogger(__name__)

GAP = 1e-3  # (objective - optimum) / optimum

# The grid of the baseline, with momentum 0.9: rates, shares of the rows in a step, and budgets of
# rounds, over which the rate falls.
STEPS = (0.5, 1.0, 2.0, 4.0)
FRACTIONS = (0.01, 0.05, 0.2)
BUDGETS = (40, 60, 80, 100, 200)
# Without momentum, in company with top-k: more rounds, each of a smaller share.
PLAIN = {"stepSize": 1.0, "momentum": 0.0, "miniBatchFraction": 0.01, "maxIter": 3}

# That of local updates, and budgets of passes. They are one round, and one for the objective: as
# many bytes whatever their number.
LOCAL_STEPS = (0.0125, 0.025, 0.05)
LOCAL_FRACTIONS = (0.0005, 0.0015)  # of a partition's rows in a step
PASSES = (4, 6)
# Groups of partitions have a job for every share of a pass, and are behind: smaller steps.
FLIGHTS = {
    "updates": "asynchronous", "stepSize": 0.1, "momentum": 0.9, "miniBatchFraction": 0.05,
    "maxIter": 10,
}  # fmt: skip
TOP_K = {"compression": "top-k", "compressionShare": 0.05}


def compare_sgd(
    spark: SparkSession, df: DataFrame, repeats: int, plot: Path | None = None
) -> list[Comparison]:
    """Logistic regression without a penalty: what it takes to reach :data:`GAP`.

    Runs are long and nothing but their seconds varies: each is made once, whatever ``repeats``.
    """
    # The rounds that count begin where every contender has the moments of the features.
    ahead = LogisticRegression()._first_round()
    with Blocks.of(df, "features", label="label", driver_bytes=1 << 40, ahead=ahead) as here:
        tight = LogisticRegression(solver="newton", tol=1e-12)._fit_blocks(here)
        optimum = min(record.loss for record in tight.history)
        best = _soonest(here, optimum, map(_synchronous, BUDGETS))
        local = _soonest(here, optimum, map(_local, PASSES))
    contenders: dict[str, dict[str, Any]] = {
        "local": local,
        "local, float16": {**local, "compression": "float16"},
        "local, qsgd": {**local, "compression": "qsgd"},
        "synchronous": best,
        "without momentum": PLAIN,
        "the same, top-k 5%": {**PLAIN, **TOP_K},
        "asynchronous": FLIGHTS,
    }
    histories = {}
    with Blocks.of(df, "features", label="label", ahead=ahead) as blocks:
        for name, params in contenders.items():
            histories[name] = _descent(params)._fit_blocks(blocks).history
            logger.info("%s: done", name)
        quasi_newton = LogisticRegression(solver="l-bfgs", tol=1e-9)
        histories["l-bfgs"] = quasi_newton._fit_blocks(blocks).history
    lines = []
    for name, history in histories.items():
        gaps = [(record.loss - optimum) / optimum for record in history]
        reached = _reached(history, optimum)
        part = history if reached is None else history[: reached + 1]
        notes: dict[str, Any] = {"reached": reached is not None, "final gap": gaps[-1]}
        for cost in ("rounds", "bytes"):
            notes[cost] = sum(map(COSTS[cost], part))
        notes["all bytes"] = sum(map(COSTS["bytes"], history))
        notes |= {k: v for k, v in contenders.get(name, {}).items() if k in best}
        lines.append(Line(name, [sum(record.seconds for record in part)], notes))
    by_name = {line.name: line for line in lines}
    for line in lines:
        line.notes["fewer bytes"] = by_name["synchronous"].notes["bytes"] / line.notes["bytes"]
    dense, sparse = (by_name[n].notes for n in ("without momentum", "the same, top-k 5%"))
    sparse["fewer bytes than dense"] = dense["all bytes"] / sparse["all bytes"]
    if plot is not None:
        _draw(histories, optimum, plot)
    return [Comparison(f"logistic regression to a gap of {GAP:g}", lines)]


def _descent(params: dict[str, Any]) -> LogisticRegression:
    return LogisticRegression(solver="sgd", tol=0.0, schedule="cosine")._set(**params)


def _synchronous(budget: int) -> Iterator[dict[str, Any]]:
    """The params that come to a budget of rounds."""
    for fraction, step in product(FRACTIONS, STEPS):
        passes = round(budget * fraction)
        if passes and round(passes / fraction) == budget:
            yield {
                "stepSize": step,
                "momentum": 0.9,
                "miniBatchFraction": fraction,
                "maxIter": passes,
            }


def _local(passes: int) -> Iterator[dict[str, Any]]:
    """The params of one round of so many passes."""
    for fraction, step in product(LOCAL_FRACTIONS, LOCAL_STEPS):
        yield {
            "updates": "local",
            "stepSize": step,
            "momentum": 0.9,
            "miniBatchFraction": fraction,
            "localSteps": round(passes / fraction),
            "maxIter": passes,
        }


def _soonest(
    blocks: Blocks, optimum: float, budgets: Iterable[Iterator[dict[str, Any]]]
) -> dict[str, Any]:
    """Of the least budget with which some params reach the gap, those that do in fewest rounds.

    Where none does, what comes nearest with the last budget.
    """
    for tried in budgets:
        found: list[tuple[bool, int, float, dict[str, Any]]] = []
        for params in tried:
            try:
                history = _descent(params)._fit_blocks(blocks).history
            except DivergenceError:
                continue
            reached = _reached(history, optimum)
            part = history if reached is None else history[: reached + 1]
            rounds = sum(map(COSTS["rounds"], part))
            found.append((reached is None, int(rounds), history[-1].loss, params))
            gap = (history[-1].loss - optimum) / optimum
            what = "are left at" if reached is None else "come to the gap, and end at"
            logger.info("%d rounds %s %.1e: %s", rounds, what, gap, params)
        if not all(missed for missed, *_ in found):
            break
    return min(found, key=lambda each: each[:3])[3]


def _reached(history: Sequence[Record], optimum: float) -> int | None:
    """The first iteration within the gap."""
    return next((i for i, r in enumerate(history) if r.loss <= (1 + GAP) * optimum), None)


def _draw(histories: dict[str, Any], optimum: float, path: Path) -> None:
    """The gap against rounds, seconds and bytes, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    for ax, against in zip(figure.subplots(1, 3), ("rounds", "seconds", "bytes"), strict=True):
        for name, history in histories.items():
            plots.loss_curve(history, label=name, ax=ax, against=against, optimum=optimum)
        ax.set(xscale="log", ylim=(1e-5, None))
        if against == "seconds":  # the start costs none
            ax.set_xlim(left=0.1)
        if against != "rounds":
            ax.get_legend().remove()
    figure.savefig(path, dpi=70)
