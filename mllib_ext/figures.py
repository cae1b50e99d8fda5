"""Figures as data: what is drawn, apart from how it is drawn.

A figure is made once, of plain arrays. :mod:`mllib_ext.plots` draws it with matplotlib in a
notebook, :mod:`mllib_ext.report` as SVG in a job's report; both show the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from mllib_ext.curves import Residuals, ScoreBins
from mllib_ext.monitor.events import compute_seconds, partitions
from mllib_ext.neighbors.ivf import Recall
from mllib_ext.optimizers.loop import Record

# Cells of a larger matrix are narrower than the numbers in them.
NUMBERED_CLASSES = 30
# Bars beside each other that can be told apart; of more, neighbours are put together.
BARS = 100
# Calibrations of more classes cross each other until nothing is to be seen.
CALIBRATED = 3


# --- what a figure is made of --------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """An axis: of numbers, or of the places 0, 1, ... where these have names."""

    label: str = ""
    log: bool = False
    limits: tuple[float, float] | None = None
    integer: bool = False
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Line:
    """A line through points (x, y), each (n,); with ``low`` and ``high`` a band beside it.

    A ``reference`` is what the other lines are compared with.
    """

    x: np.ndarray
    y: np.ndarray
    label: str | None = None
    dots: bool = False
    reference: bool = False
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Bars:
    """Bars (s, n), s of them stacked: at places 0, ..., n-1, or between n + 1 ``edges``."""

    heights: np.ndarray
    labels: tuple[str, ...] = ()
    edges: np.ndarray | None = None
    horizontal: bool = False


@dataclass(frozen=True)
class Matrix:
    """Colours of cells (r, c), from 0 to ``limit``, or from -``limit`` where ``signed``.

    Cells are at places, the first row on top; or within ``extent`` = (left, right, bottom, top),
    the first row at the bottom.
    """

    values: np.ndarray
    label: str
    limit: float = 1.0
    signed: bool = False
    texts: tuple[tuple[str, ...], ...] | None = None
    extent: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Mark:
    """Where on the horizontal axis something happened, in words."""

    x: float
    text: str


@dataclass(frozen=True)
class Point:
    """A point that is named."""

    x: float
    y: float
    text: str


Part: TypeAlias = Line | Bars | Matrix | Mark | Point


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes
    ----------
    title : str
    x, y : Axis
    parts : tuple
        What is drawn, in that order.
    text : str
        What there is to see, for a reader who cannot see it too.
    """

    title: str
    x: Axis
    y: Axis
    parts: tuple[Part, ...]
    text: str = ""


# --- a fit ---------------------------------------------------------------------------------------

# What an iteration adds to, by the name of the axis.
COSTS: dict[str, Callable[[Record], float]] = {
    "iteration": lambda record: 1 if record.iteration else 0,
    "rounds": lambda record: len(record.rounds),
    "seconds": lambda record: record.seconds,
    "bytes": lambda record: sum(r.bytes_up + r.bytes_down for r in record.rounds),
}


def loss_curve(
    history: Sequence[Record],
    label: str | None = None,
    against: str = "iteration",
    optimum: float | None = None,
) -> Figure:
    """:func:`mllib_ext.plots.loss_curve`."""
    _refuse_empty(history)
    if against not in COSTS:
        raise ValueError(f"against: expected one of {sorted(COSTS)}, found {against!r}")
    spent = np.array(list(accumulate(map(COSTS[against], history))), dtype=np.float64)
    losses = np.array([record.loss for record in history])
    if optimum is not None:
        losses = (losses - optimum) / abs(optimum)
    validation = np.array([record.validation_loss for record in history])
    held_out = optimum is None and bool(np.isfinite(validation).any())
    own = "training rows" if held_out and label is None else label
    parts: list[Part] = [Line(spent, losses, own, dots=True), *_marks(spent, history)]
    if held_out:
        name = "rows held out" if label is None else f"{label}, rows held out"
        parts.append(Line(spent, validation, name, dots=True))
    return Figure(
        "Loss",
        Axis(against, integer=against in ("iteration", "rounds")),
        Axis("objective" if optimum is None else "relative gap", log=optimum is not None),
        tuple(parts),
        f"From {history[0].loss:.6g} to {history[-1].loss:.6g}.",
    )


def gradient_norm(history: Sequence[Record]) -> Figure:
    """:func:`mllib_ext.plots.gradient_norm`."""
    _refuse_empty(history)
    norms = np.array([record.gradient_norm for record in history])
    if not (np.isfinite(norms) & (norms > 0)).any():
        raise ValueError(
            "history: expected the records of an algorithm with a gradient, found no norm of one"
        )
    spent = np.array(list(accumulate(map(COSTS["iteration"], history))), dtype=np.float64)
    norms = np.where(norms > 0, norms, np.nan)  # no place for 0 on a log scale
    last = norms[np.isfinite(norms)][-1]
    return Figure(
        "Gradient norm",
        Axis("iteration", integer=True),
        Axis("norm of the gradient", log=True),
        (Line(spent, norms, dots=True), *_marks(spent, history)),
        f"{last:.3g} at the end.",
    )


def _marks(spent: np.ndarray, history: Sequence[Record]) -> list[Part]:
    """Where callbacks changed the run."""
    marks: list[Part] = []
    for at, record in zip(spent, history, strict=True):
        # A checkpoint leaves the run as it is, and may be asked for after every iteration.
        actions = [action for action in record.actions if not action.startswith("checkpoint ")]
        if actions:
            marks.append(Mark(float(at), ", ".join(actions)))
    return marks


def round_times(history: Sequence[Record]) -> Figure:
    """:func:`mllib_ext.plots.round_times`."""
    _refuse_empty(history)
    spent = np.array([_time_split(record) for record in history]).T  # (3, n)
    total = spent.sum()
    # Latency, compute and driver of an iteration, as in the record of a run.
    shares = spent.sum(axis=1) / (total or 1.0)
    return _by_iteration(
        "Time of an iteration",
        "milliseconds",
        spent * 1e3,
        ("compute", "latency of Spark", "driver"),
        f"{total:.3g} s in all: {shares[0]:.0%} compute, {shares[1]:.0%} latency of Spark, "
        f"{shares[2]:.0%} driver.",
    )


def _time_split(record: Record) -> tuple[float, float, float]:
    spent = sum(r.seconds for r in record.rounds)
    compute = sum(map(compute_seconds, record.rounds))
    return compute, spent - compute, max(record.seconds - spent, 0.0)


def round_bytes(history: Sequence[Record]) -> Figure:
    """:func:`mllib_ext.plots.round_bytes`."""
    _refuse_empty(history)
    down = np.array([sum(r.bytes_down for r in record.rounds) for record in history])
    up = np.array([sum(r.bytes_up for r in record.rounds) for record in history])
    if not (down.any() or up.any()):
        raise ValueError(
            "history: expected rounds that sent something, found none: they ran on the driver"
        )
    return _by_iteration(
        "Bytes of an iteration",
        "kB",
        np.array([down, up]) / 1e3,
        ("to the tasks", "back to the driver"),
        f"{in_bytes(down.sum())} to the tasks, {in_bytes(up.sum())} back.",
    )


def _by_iteration(
    title: str, unit: str, values: np.ndarray, labels: tuple[str, ...], text: str
) -> Figure:
    """Stacked bars (s, n), one an iteration or, of very many, the mean of some."""
    n = values.shape[1]
    width = -(-n // BARS)
    starts = np.arange(0, n, width)
    counts = np.diff([*starts, n])
    heights = np.add.reduceat(values, starts, axis=1) / counts
    if width > 1:
        text += f" Each bar is the mean of {width} iterations."
    edges = np.append(starts, n) - 0.5
    return Figure(
        title, Axis("iteration", integer=True), Axis(unit), (Bars(heights, labels, edges),), text
    )


def partition_skew(history: Sequence[Record], of: str = "seconds") -> Figure:
    """:func:`mllib_ext.plots.partition_skew`."""
    _refuse_empty(history)
    if of not in ("seconds", "rows"):
        raise ValueError(f"of: expected 'seconds' or 'rows', found {of!r}")
    last = {p.partition: p for record in history for r in record.rounds for p in r.partitions}
    if not last:
        raise ValueError("history: expected rounds over partitions, found none")
    if of == "seconds":
        values = dict.fromkeys(last, 0.0)
        for record in history:
            for r in record.rounds:
                for p in r.partitions:
                    values[p.partition] += p.seconds
    else:
        values = {i: float(p.rows) for i, p in last.items()}
    ranked = sorted(values, key=lambda i: (-values[i], i))
    heights = np.array([values[i] for i in ranked])
    most, median = float(heights[0]), float(np.median(heights))

    def words(value: float) -> str:
        return f"{value:.3g} s" if of == "seconds" else f"{value:,.0f} rows"

    text = f"Median {words(median)}, most {words(most)}"
    if len(ranked) > 1:
        text += f": skew {words(most - median)}, partition {ranked[0]} on {last[ranked[0]].host}"
    kept = heights
    if len(heights) > BARS:
        kept = heights[np.linspace(0, len(heights) - 1, BARS).round().astype(int)]
        text += f"; {BARS} of {len(heights)} partitions are drawn"
    names = tuple(str(i) for i in ranked) if len(kept) == len(ranked) else None
    first = "slowest" if of == "seconds" else "largest"
    reference = Line(
        np.array([-0.5, len(kept) - 0.5]), np.full(2, median), "median", reference=True
    )
    return Figure(
        f"{of.capitalize()} of partitions",
        Axis(f"partition, {first} first", names=names, integer=True),
        Axis(of),
        (Bars(kept[None, :]), reference),
        f"{text}.",
    )


def totals(history: Sequence[Record]) -> dict[str, Any]:
    """What a fit cost: ``rounds``, ``bytes_down``, ``bytes_up``, and of its partitions ``skew``."""
    rounds = [r for record in history for r in record.rounds]
    return {
        "rounds": len(rounds),
        "bytes_down": sum(r.bytes_down for r in rounds),
        "bytes_up": sum(r.bytes_up for r in rounds),
        **partitions(rounds),
    }


def in_bytes(count: float) -> str:
    """A number of bytes in a unit that reads."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _refuse_empty(history: Sequence[Record]) -> None:
    if not history:
        raise ValueError(
            "history: expected the records of a fit, found none: "
            "a loaded model has none, nor has a closed-form solution"
        )


# --- a model -------------------------------------------------------------------------------------


def coefficients(
    model: Any,
    names: Sequence[str] | None = None,
    deviation: ArrayLike | None = None,
    largest: int = 20,
) -> Figure:
    """:func:`mllib_ext.plots.coefficients`."""
    values = _coefficients(model)
    n_features = values.shape[1]
    if names is None:
        several = model.hasParam("featuresCols") and model.isSet("featuresCols")
        names = model.getFeaturesCols() if several else [str(j) for j in range(n_features)]
    scale = np.ones(n_features) if deviation is None else np.asarray(deviation, dtype=np.float64)
    for name, shape in (("names", (len(names),)), ("deviation", scale.shape)):
        if shape != (n_features,):
            raise ValueError(
                f"{name}: expected one for each of {n_features} features, found shape {shape}"
            )
    if largest < 1:
        raise ValueError(f"largest: expected 1 or more, found {largest!r}")
    values = values * scale
    order = np.argsort(-np.abs(values).max(axis=0), kind="stable")[:largest]
    values, kept = values[:, order], tuple(names[j] for j in order)
    what = "coefficient" if deviation is None else "coefficient × standard deviation"
    text = (
        f"The {len(kept)} of {n_features} features whose coefficients are largest: blue above 0, "
        "red below."
    )
    if len(values) == 1:
        bars = Bars(values, horizontal=True)
        return Figure("Coefficients", Axis(what), Axis(names=kept), (bars,), text)
    limit = float(np.abs(values).max()) or 1.0  # white is 0, in a map of zeros too
    places = tuple(str(i) for i in range(len(values)))
    cells = Matrix(values, what, limit, signed=True)
    return Figure("Coefficients", Axis(names=kept), Axis("class", names=places), (cells,), text)


def _coefficients(model: Any) -> np.ndarray:
    """Coefficients (k, d), k being 1 for a single output."""
    # Logistic regressions alone have a matrix, and refuse to give a vector for several classes.
    matrix = getattr(model, "coefficientMatrix", None)
    values = model.coefficients if matrix is None else matrix
    return np.atleast_2d(values.toArray())


def recall_curve(curve: Recall, probes: int, cells: int, label: str | None = None) -> Figure:
    """:func:`mllib_ext.plots.recall_curve`."""
    share, recall = curve.at(probes)
    return Figure(
        "Recall",
        Axis("share of the items", log=True),
        Axis(f"recall of {curve.k} neighbours"),
        (
            Line(curve.compared, curve.recall, label, low=curve.lower, high=curve.recall),
            Point(share, recall, f"{probes} of {cells} cells: {recall:.3f}"),
        ),
        f"A query looks at {share:.2%} of the items and finds {recall:.1%} of its {curve.k} "
        "neighbours. The band ends at what the recall of other queries is at least.",
    )


def distances(means: Sequence[float | None], metric: str) -> Figure:
    """The mean distance of the first, second, ... neighbour; None where nothing has so many."""
    ranks = np.arange(1, len(means) + 1, dtype=np.float64)
    values = np.array(means, dtype=np.float64)
    known = values[np.isfinite(values)]
    return Figure(
        "Distance of neighbours",
        Axis("rank", integer=True),
        Axis(metric),
        (Line(ranks, values, dots=True),),
        f"On average {known[0]:.4g} to the nearest, {known[-1]:.4g} to the last.",
    )


# --- predictions ---------------------------------------------------------------------------------


def confusion_matrix(counts: ArrayLike, classes: Sequence[str] | None = None) -> Figure:
    """:func:`mllib_ext.plots.confusion_matrix` of counts (k, k)."""
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ValueError(f"predictions: expected counts (k, k), found shape {counts.shape}")
    k = len(counts)
    if classes is not None and len(classes) != k:
        raise ValueError(f"classes: expected {k} names, found {len(classes)}")
    sums = counts.sum(axis=1, keepdims=True)
    shares = counts / np.where(sums > 0, sums, 1)
    names = tuple(str(i) for i in range(k)) if classes is None else tuple(classes)
    shown = names if classes is not None or k <= NUMBERED_CLASSES else None
    texts = None
    if k <= NUMBERED_CLASSES:
        texts = tuple(tuple(f"{value:g}" for value in row) for row in counts)
    right, total = float(np.trace(counts)), float(counts.sum())
    text = f"{right:g} of {total:g} right. Colours are shares of a row, a true class."
    wrong = counts * (1 - np.eye(k))
    if wrong.any():
        i, j = np.unravel_index(np.argmax(wrong), wrong.shape)
        text += f" Most often wrong: {names[i]}, taken for {names[j]} ({wrong[i, j]:g})."
    return Figure(
        "Confusion matrix",
        Axis("prediction", names=shown),
        Axis("label", names=shown),
        (Matrix(shares, "share of the class", texts=texts),),
        text,
    )


def roc_curve(scores: Sequence[ScoreBins]) -> Figure:
    """:func:`mllib_ext.plots.roc_curve`."""
    chance = Line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "chance", reference=True)
    lines = [Line(*one.roc(), f"{one.name}: area {one.area_under_roc:.4f}") for one in scores]
    return Figure(
        "ROC curve",
        Axis("false positive rate", limits=(0.0, 1.0)),
        Axis("true positive rate", limits=(0.0, 1.0)),
        (chance, *lines),
        _against("Each class against the rest.", scores),
    )


def precision_recall_curve(scores: Sequence[ScoreBins]) -> Figure:
    """:func:`mllib_ext.plots.precision_recall_curve`."""
    lines = [
        Line(*one.precision_recall(), f"{one.name}: area {one.area_under_pr:.4f}") for one in scores
    ]
    chance: list[Part] = []
    if len(scores) == 1:
        share = np.full(2, scores[0].positives)
        chance = [Line(np.array([0.0, 1.0]), share, "chance", reference=True)]
    return Figure(
        "Precision and recall",
        Axis("recall", limits=(0.0, 1.0)),
        Axis("precision", limits=(0.0, 1.0)),
        (*chance, *lines),
        _against("Each class against the rest.", scores),
    )


def calibration_curve(scores: Sequence[ScoreBins]) -> Figure:
    """:func:`mllib_ext.plots.calibration_curve`."""
    text = _against("Each class against the rest.", scores)
    if len(scores) > CALIBRATED and all(one.believed is not None for one in scores):
        text = "The probabilities of all classes together, each against the rest."
        total = np.sum([np.asarray(one.believed) for one in scores], axis=0)
        scores = [replace(scores[0], name="all classes", believed=total)]
    ideal = Line(np.array([0.0, 1.0]), np.array([0.0, 1.0]), "calibrated", reference=True)
    lines = [
        Line(*one.calibration(), f"{one.name}: error {one.calibration_error:.4f}", dots=True)
        for one in scores
    ]
    return Figure(
        "Calibration",
        Axis("mean predicted probability", limits=(0.0, 1.0)),
        Axis("share that is of the class", limits=(0.0, 1.0)),
        (ideal, *lines),
        text + " The error is the mean distance from the diagonal, each bin by its rows.",
    )


def _against(text: str, scores: Sequence[ScoreBins]) -> str:
    return text if len(scores) > 1 else f"Class {scores[0].name}."


def residuals(bins: Residuals) -> tuple[Figure, Figure]:
    """:func:`mllib_ext.plots.residuals`: against the predictions, and their distribution."""
    left, right = bins.predictions[[0, -1]]
    low, high = bins.residuals[[0, -1]]
    shade = np.sqrt(bins.counts / (bins.counts.max() or 1.0))  # few rows are to be seen too
    zero = Line(np.array([left, right]), np.zeros(2), "no error", reference=True)
    text = f"Label less prediction: mean {bins.mean:.4g}, standard deviation {bins.deviation:.4g}."
    clipped = " The outermost bins hold what is beyond them, a thousandth on each side."
    return (
        Figure(
            "Residuals by prediction",
            Axis("prediction", limits=(left, right)),
            Axis("residual", limits=(low, high)),
            (Matrix(shade, "root of the share of the rows", extent=(left, right, low, high)), zero),
            text,
        ),
        Figure(
            "Distribution of residuals",
            Axis("residual"),
            Axis("weight" if bins.weighted else "rows"),
            (Bars(bins.counts.sum(axis=1)[None, :], edges=bins.residuals),),
            f"{text}{clipped}",
        ),
    )


def sizes(title: str, labels: Sequence[Any], counts: ArrayLike, what: str, unit: str) -> Figure:
    """How many there are of each: of clusters, of classes."""
    heights = np.asarray(counts, dtype=np.float64)
    if heights.ndim != 1 or len(heights) != len(labels) or not len(heights):
        raise ValueError(
            f"sizes: expected one for each of {len(labels)} {what}s, found shape {heights.shape}"
        )
    text = f"{len(heights)} of {heights.min():,.6g} to {heights.max():,.6g} {unit}."
    return Figure(
        title,
        Axis(what, names=tuple(str(label) for label in labels)),
        Axis(unit),
        (Bars(heights[None, :]),),
        text,
    )


def candidates(table: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """The means of a search's candidates over the folds, within a standard deviation."""
    known = [row for row in table if row["mean"] is not None]
    means = np.array([row["mean"] for row in known])
    deviations = np.array([row["deviation"] for row in known])
    ranks = np.array([row["rank"] for row in known], dtype=np.float64)
    line = Line(ranks, means, dots=True, low=means - deviations, high=means + deviations)
    return Figure(
        "Candidates",
        Axis("rank", integer=True),
        Axis(metric),
        (line,),
        f"The mean of the folds, and a standard deviation to each side: {metric} "
        f"{means[0]:.6g} ± {deviations[0]:.2g} for the best.",
    )
