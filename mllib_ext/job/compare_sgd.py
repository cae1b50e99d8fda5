"""Stochastic gradient descent against itself and L-BFGS: bytes, rounds and seconds to a gap.

The baseline sends every gradient whole, and is the best of a grid of steps, momenta, batches and
budgets of rounds: the one that reaches the gap in the fewest. Its grid is searched on the driver,
where rounds cost no Spark job and take the same steps.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from mllib_ext import plots
from mllib_ext.blocks import Blocks
from mllib_ext.classification import LogisticRegression
from mllib_ext.figures import COSTS
from mllib_ext.job.benchmark import Comparison, Line

GAP = 1e-3  # (objective - optimum) / optimum

# The grid of the baseline. A share of the rows comes with the passes that make up the budgets.
STEPS = (0.3, 0.5, 1.0)
MOMENTA = (0.0, 0.9)
FRACTIONS = (0.01, 0.05, 0.2)
BUDGETS = (100, 200, 400)  # rounds, over which the rate falls

LOCAL: dict[str, Any] = {
    "updates": "local",
    "stepSize": 0.025,
    "momentum": 0.9,
    "miniBatchFraction": 0.0015,
    "maxIter": 2,
}
# Groups of partitions have a job for every share of a pass: fewer shares.
FLIGHTS = {"updates": "asynchronous", "miniBatchFraction": 0.05, "maxIter": 5}
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
        plain, best = _best_of_grid(here, optimum)
    contenders: dict[str, dict[str, Any]] = {
        "local": LOCAL,
        "local, qsgd": {**LOCAL, "compression": "qsgd", "maxIter": 3},
        "synchronous": best,
        "without momentum": plain,
        "the same, top-k 5%": {**plain, **TOP_K},
        "asynchronous": {**best, **FLIGHTS},
    }
    histories = {}
    with Blocks.of(df, "features", label="label", ahead=ahead) as blocks:
        for name, params in contenders.items():
            histories[name] = _descent(params)._fit_blocks(blocks).history
        quasi_newton = LogisticRegression(solver="l-bfgs", tol=1e-9)
        histories["l-bfgs"] = quasi_newton._fit_blocks(blocks).history
    lines = []
    for name, history in histories.items():
        gaps = [(record.loss - optimum) / optimum for record in history]
        reached = next((i for i, gap in enumerate(gaps) if gap <= GAP), None)
        part = history if reached is None else history[: reached + 1]
        notes: dict[str, Any] = {"reached": reached is not None, "final gap": gaps[-1]}
        for cost in ("rounds", "bytes"):
            notes[cost] = sum(map(COSTS[cost], part))
        notes["all bytes"] = sum(map(COSTS["bytes"], history))
        notes |= {k: v for k, v in contenders.get(name, {}).items() if k in best}
        lines.append(Line(name, [sum(record.seconds for record in part)], notes))
    baseline = next(line for line in lines if line.name == "synchronous")
    for line in lines:
        line.notes["fewer bytes"] = baseline.notes["bytes"] / line.notes["bytes"]
    if plot is not None:
        _draw(histories, optimum, plot)
    return [Comparison(f"logistic regression to a gap of {GAP:g}", lines)]


def _descent(params: dict[str, Any]) -> LogisticRegression:
    return LogisticRegression(solver="sgd", tol=0.0, schedule="cosine")._set(**params)


def _best_of_grid(blocks: Blocks, optimum: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """What comes nearest within the fewest rounds that reach the gap: without momentum, and all."""
    found: list[tuple[float, float, dict[str, Any]]] = []
    for budget in BUDGETS:
        for fraction, momentum, step in product(FRACTIONS, MOMENTA, STEPS):
            passes = round(budget * fraction)
            if passes < 1 or round(passes / fraction) != budget:
                continue
            params = {
                "stepSize": step,
                "momentum": momentum,
                "miniBatchFraction": fraction,
                "maxIter": passes,
            }
            history = _descent(params)._fit_blocks(blocks).history
            reached = [i for i, r in enumerate(history) if r.loss <= (1 + GAP) * optimum]
            rounds = reached[0] / fraction if reached else float("inf")
            found.append((rounds, history[-1].loss, params))
    found.sort(key=lambda each: each[:2])
    plain = next(params for _, _, params in found if params["momentum"] == 0)
    return plain, found[0][2]


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
