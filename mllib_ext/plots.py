"""Pictures of a fitted model: its fit, its coefficients, what its predictions are worth.

Each function draws on the Axes that it is given, or on those of a new figure, and returns them:
``plots.loss_curve(model.history).figure.savefig("loss.png")``. Matplotlib is the extra ``plots``
of this package and is imported when the first picture is drawn. What is drawn is made in
:mod:`mllib_ext.figures`, from which the reports of jobs are drawn too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from pyspark.sql import DataFrame

from mllib_ext import curves, figures
from mllib_ext.columns import number
from mllib_ext.curves import ScoreBins
from mllib_ext.figures import Axis, Bars, Figure, Line, Mark, Matrix, Point
from mllib_ext.optimizers.loop import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "calibration_curve",
    "cluster_sizes",
    "coefficients",
    "confusion_matrix",
    "gradient_norm",
    "loss_curve",
    "partition_skew",
    "precision_recall_curve",
    "recall_curve",
    "residuals",
    "roc_curve",
    "round_bytes",
    "round_times",
]

# More classes than this cannot be told apart in a picture, and are most often a regression's label.
MAX_CLASSES = 500


def loss_curve(
    history: Sequence[Record],
    *,
    label: str | None = None,
    ax: Axes | None = None,
    against: str = "iteration",
    optimum: float | None = None,
) -> Axes:
    """Draw the objective after each iteration, and where a callback changed the run.

    Parameters
    ----------
    history : sequence of Record
        A model's ``history``, or the records that a callback has been given so far.
    label : str, optional
        The curve's name in a legend, to tell several on the same Axes apart.
    ax : matplotlib Axes, optional
    against : {"iteration", "rounds", "seconds", "bytes"}
        What the horizontal axis counts: bytes are those that went up and down.
    optimum : float, optional
        Draw how far the objective is above it, in units of it and by powers of 10.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        The history is empty: that of a loaded model, or of a closed form. Another ``against``.
    ImportError
        Matplotlib is not installed.
    """
    return _drawn(figures.loss_curve(history, label, against, optimum), ax)


def gradient_norm(history: Sequence[Record], *, ax: Axes | None = None) -> Axes:
    """Draw the norm of the gradient after each iteration, by powers of 10.

    Parameters
    ----------
    history : sequence of Record
        A model's ``history``.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        The history is empty, or of an algorithm without a gradient.
    ImportError
        Matplotlib is not installed.
    """
    return _drawn(figures.gradient_norm(history), ax)


def round_times(history: Sequence[Record], *, ax: Axes | None = None) -> Axes:
    """Draw where the time of each iteration went: compute, latency of Spark, driver.

    Compute is the least time in which the tasks could have done what their partitions did;
    latency is the rest of the rounds' wall-clock time, driver that of the iteration outside of
    rounds. Very many iterations are drawn as means of some.

    Parameters
    ----------
    history : sequence of Record
        A model's ``history``.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        The history is empty.
    ImportError
        Matplotlib is not installed.
    """
    return _drawn(figures.round_times(history), ax)


def round_bytes(history: Sequence[Record], *, ax: Axes | None = None) -> Axes:
    """Draw the bytes that each iteration sent: parameters to the tasks, partial results back.

    Parameters and errors are those of :func:`round_times`; rounds on the driver send nothing, which
    is a ValueError too.
    """
    return _drawn(figures.round_bytes(history), ax)


def partition_skew(
    history: Sequence[Record], *, of: str = "seconds", ax: Axes | None = None
) -> Axes:
    """Draw how evenly the partitions share the work, the largest first.

    Parameters
    ----------
    history : sequence of Record
        A model's ``history``.
    of : {"seconds", "rows"}
        Seconds of all rounds together, or rows.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        The history is empty or without rounds; another ``of``.
    ImportError
        Matplotlib is not installed.
    """
    return _drawn(figures.partition_skew(history, of), ax)


def coefficients(
    model: Any,
    names: Sequence[str] | None = None,
    *,
    deviation: ArrayLike | None = None,
    largest: int = 20,
    ax: Axes | None = None,
) -> Axes:
    """Draw a linear model's coefficients, those of largest magnitude first.

    One output gives a bar for each feature; several give a map with a row for each class.

    Parameters
    ----------
    model : Model
        A linear model of this package or of pyspark.ml, with ``coefficients`` (d,) or a
        ``coefficientMatrix`` (k, d).
    names : sequence of str, optional
        Names of the d features. By default the model's ``featuresCols`` where they are set, else
        the features' numbers.
    deviation : array-like, shape (d,), optional
        Standard deviations of the features. Coefficients are multiplied by them, since those of
        features in different units do not compare.
    largest : int
        How many features to draw.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        ``names`` or ``deviation`` are not one for each feature, or ``largest`` is below 1.
    ImportError
        Matplotlib is not installed.
    """
    return _drawn(figures.coefficients(model, names, deviation, largest), ax)


def confusion_matrix(
    predictions: DataFrame | ArrayLike,
    classes: Sequence[str] | None = None,
    *,
    labelCol: str = "label",
    predictionCol: str = "prediction",
    ax: Axes | None = None,
) -> Axes:
    """Draw how many rows of each class were predicted as each class.

    Colours are shares of a row, so that a rare class reads as well as a frequent one.

    Parameters
    ----------
    predictions : DataFrame or array-like, shape (k, k)
        What a classifier's ``transform`` gave, counted in one Spark job; or counts, a row for each
        true class and a column for each predicted one.
    classes : sequence of str, optional
        What the classes 0, 1, ..., k-1 are called.
    labelCol, predictionCol : str
        The columns of a DataFrame.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        There are no rows, labels that are not class indices, or another number of ``classes``.
    TypeError
        A column that is not numeric.
    ImportError
        Matplotlib is not installed.
    """
    if isinstance(predictions, DataFrame):
        predictions = _count(predictions, labelCol, predictionCol, len(classes or ()))
    return _drawn(figures.confusion_matrix(predictions, classes), ax)


def roc_curve(
    predictions: DataFrame | Sequence[ScoreBins],
    classes: Sequence[str] | None = None,
    *,
    labelCol: str = "label",
    rawPredictionCol: str = "rawPrediction",
    probabilityCol: str = "probability",
    weightCol: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the receiver operating characteristic: of class 1 of two, or of each class of a few.

    Parameters
    ----------
    predictions : DataFrame or sequence of ScoreBins
        What a classifier's ``transform`` gave, binned in three Spark jobs whatever its size; or
        what :func:`mllib_ext.curves.score_bins` made of it, for several pictures of the same.
    classes : sequence of str, optional
        What the classes 0, 1, ..., k-1 are called.
    labelCol, rawPredictionCol, probabilityCol, weightCol : str
        The columns of a DataFrame, as :func:`mllib_ext.curves.score_bins` takes them.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No rows, more than :data:`mllib_ext.curves.MAX_CLASSES` classes, or a missing column.
    TypeError
        A column of another type.
    ImportError
        Matplotlib is not installed.
    """
    columns = (labelCol, rawPredictionCol, probabilityCol, weightCol)
    return _drawn(figures.roc_curve(_scores(predictions, classes, *columns)), ax)


def precision_recall_curve(
    predictions: DataFrame | Sequence[ScoreBins],
    classes: Sequence[str] | None = None,
    *,
    labelCol: str = "label",
    rawPredictionCol: str = "rawPrediction",
    probabilityCol: str = "probability",
    weightCol: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw precision against recall; parameters and errors are those of :func:`roc_curve`."""
    columns = (labelCol, rawPredictionCol, probabilityCol, weightCol)
    return _drawn(figures.precision_recall_curve(_scores(predictions, classes, *columns)), ax)


def calibration_curve(
    predictions: DataFrame | Sequence[ScoreBins],
    classes: Sequence[str] | None = None,
    *,
    labelCol: str = "label",
    probabilityCol: str = "probability",
    weightCol: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often the class came, against the probability that was predicted, in ten bins.

    Of more than three classes those of all together are drawn.
    Parameters and errors are those of :func:`roc_curve`; a classifier without probabilities is a
    ValueError.
    """
    columns = (labelCol, probabilityCol, probabilityCol, weightCol)
    return _drawn(figures.calibration_curve(_scores(predictions, classes, *columns)), ax)


def residuals(
    predictions: DataFrame,
    *,
    labelCol: str = "label",
    predictionCol: str = "prediction",
    weightCol: str | None = None,
    against: str = "prediction",
    ax: Axes | None = None,
) -> Axes:
    """Draw labels less predictions, counted in bins by two Spark jobs.

    Parameters
    ----------
    predictions : DataFrame
        What a regression's ``transform`` gave.
    labelCol, predictionCol, weightCol : str
    against : {"prediction", "rows"}
        Colours by residual and prediction, or how many rows have which residual.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No rows, a missing column, or another ``against``.
    TypeError
        A column that is not numeric.
    ImportError
        Matplotlib is not installed.
    """
    if against not in ("prediction", "rows"):
        raise ValueError(f"against: expected 'prediction' or 'rows', found {against!r}")
    bins = curves.residual_bins(
        predictions, labelCol=labelCol, predictionCol=predictionCol, weightCol=weightCol
    )
    return _drawn(figures.residuals(bins)[against == "rows"], ax)


def cluster_sizes(sizes: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw how many rows each cluster has.

    Parameters
    ----------
    sizes : array-like, shape (k,)
        As ``model.summary.clusterSizes``.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        No sizes, or not one for each cluster.
    ImportError
        Matplotlib is not installed.
    """
    counts = np.asarray(sizes)
    labels = range(counts.size)
    return _drawn(figures.sizes("Cluster sizes", labels, counts, "cluster", "rows"), ax)


def recall_curve(model: Any, *, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw how many of the true neighbours an index finds, by the share of items it looks at.

    The band ends at the lower bound of the recall, which ``targetRecall`` goes by; the dot is the
    number of cells that the model looks at.

    Parameters
    ----------
    model : ApproximateNearestNeighborsModel
    label : str, optional
        The curve's name in a legend, to tell several on the same Axes apart.
    ax : matplotlib Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ImportError
        Matplotlib is not installed.
    """
    return _drawn(figures.recall_curve(model.recallCurve, model.nprobe, model.nlist, label), ax)


def _scores(
    predictions: DataFrame | Sequence[ScoreBins],
    classes: Sequence[str] | None,
    label: str,
    raw: str,
    probability: str,
    weight: str | None,
) -> Sequence[ScoreBins]:
    scores: Sequence[ScoreBins]
    if isinstance(predictions, DataFrame):
        scores = curves.score_bins(
            predictions,
            labelCol=label,
            rawPredictionCol=raw,
            probabilityCol=probability,
            weightCol=weight,
            classes=classes,
        )
    else:
        scores = predictions
    if not scores:
        raise ValueError(
            f"predictions: expected rows of 2 to {curves.MAX_CLASSES} classes, found none or more"
        )
    return scores


def _count(predictions: DataFrame, label: str, prediction: str, least: int) -> np.ndarray:
    """Rows by true class and predicted class (k, k), k at least ``least``."""
    schema = predictions.schema
    cells = (
        predictions.select(
            number(schema, label, "label").alias("label"),
            number(schema, prediction, "prediction").alias("prediction"),
        )
        .groupBy("label", "prediction")
        .count()
        .limit(MAX_CLASSES**2 + 1)  # labels that are no classes must not fill the driver
        .toArrow()
    )
    if not cells.num_rows:
        raise ValueError("predictions: expected rows, found none")
    ends = []
    for column, role in ((label, "label"), (prediction, "prediction")):
        values = cells[role].to_numpy()  # null becomes NaN
        wrong = ~((values >= 0) & (values < MAX_CLASSES) & (values == np.floor(values)))
        if wrong.any():
            raise ValueError(
                f"{role} column {column!r}: expected classes 0, 1, ... below {MAX_CLASSES}, "
                f"found {values[wrong][0]:g}"
            )
        ends.append(values.astype(np.intp))
    k = max(least, 1 + int(max(values.max() for values in ends)))
    counts = np.zeros((k, k), dtype=np.int64)
    counts[ends[0], ends[1]] = cells["count"].to_numpy()
    return counts


# --- drawing -------------------------------------------------------------------------------------


def _drawn(figure: Figure, ax: Axes | None) -> Axes:
    """The Axes with a figure on them."""
    ax = _axes(ax)
    for axis, at in (("x", figure.x), ("y", figure.y)):
        if at.log:
            getattr(ax, f"set_{axis}scale")("log")
    color: Any = "C0"
    legend = False
    for part in figure.parts:
        match part:
            case Line():
                color = _line(part, ax)
                legend = legend or part.label is not None
            case Bars():
                _bars(part, ax)
                legend = legend or bool(part.labels)
            case Matrix():
                _matrix(part, ax)
            case Mark():
                _mark(part, ax, color)
            case Point():
                _point(part, ax, color)
    for axis, at in (("x", figure.x), ("y", figure.y)):
        _set_axis(ax, axis, at, upright=any(isinstance(p, Matrix) for p in figure.parts))
    if any(isinstance(p, Bars) and p.horizontal for p in figure.parts):
        ax.invert_yaxis()  # the first on top
    if legend:
        ax.legend()
    return ax


def _set_axis(ax: Any, axis: str, at: Axis, upright: bool) -> None:
    if at.label:
        ax.set(**{f"{axis}label": at.label})
    if at.limits is not None:
        ax.margins(**{axis: 0.02})
    if at.names is not None:
        turned = axis == "x" and (not upright or max(map(len, at.names)) > 2)
        # Names below bars that would touch are left out.
        step = -(-len(at.names) // figures.NUMBERED_CLASSES) if axis == "x" and not upright else 1
        ticks = getattr(ax, f"set_{axis}ticks")
        ticks(range(0, len(at.names), step), at.names[::step], rotation=90 if turned else 0)
    elif at.integer:
        ax.locator_params(axis=axis, integer=True)


def _line(line: Line, ax: Any) -> Any:
    if line.reference:
        ax.plot(line.x, line.y, label=line.label, color="grey", linestyle="--", linewidth=1.0)
        return "grey"
    marker = "." if line.dots else None
    (drawn,) = ax.plot(line.x, line.y, marker=marker, label=line.label)
    color = drawn.get_color()  # text, or numbers: as the style has it
    if line.low is not None and line.high is not None:
        ax.fill_between(line.x, line.low, line.high, color=color, alpha=0.2)
    return color


def _bars(bars: Bars, ax: Any) -> None:
    n = bars.heights.shape[1]
    edges = bars.edges
    centers = np.arange(n) if edges is None else (edges[:-1] + edges[1:]) / 2
    widths = np.full(n, 0.8) if edges is None else np.diff(edges)
    base = np.zeros(n)
    for i, heights in enumerate(bars.heights):
        label = bars.labels[i] if bars.labels else None
        color = [f"C{i}" if height >= 0 else "tab:red" for height in heights]
        if bars.horizontal:
            ax.barh(centers, heights, widths, left=base, color=color, label=label)
        else:
            ax.bar(centers, heights, widths, bottom=base, color=color, label=label)
        base = base + heights
    if bars.horizontal:
        ax.axvline(0.0, color="black", linewidth=0.8)


def _matrix(cells: Matrix, ax: Any) -> None:
    square = cells.extent is None and not cells.signed
    image = ax.imshow(
        cells.values,
        cmap="RdBu" if cells.signed else "Blues",
        vmin=-cells.limit if cells.signed else 0.0,
        vmax=cells.limit,
        aspect="equal" if square else "auto",
        extent=cells.extent,
        origin="upper" if cells.extent is None else "lower",
    )
    ax.figure.colorbar(image, ax=ax, label=cells.label)
    for i, row in enumerate(cells.texts or ()):
        for j, text in enumerate(row):
            ax.text(
                j,
                i,
                text,
                horizontalalignment="center",
                verticalalignment="center",
                color="white" if cells.values[i, j] > 0.5 * cells.limit else "black",
            )


def _mark(mark: Mark, ax: Any, color: Any) -> None:
    ax.axvline(mark.x, color=color, linestyle=":", linewidth=1.0)
    ax.annotate(
        mark.text,
        (mark.x, 0.97),
        xycoords=ax.get_xaxis_transform(),  # y in shares of the Axes' height
        xytext=(-2, 0),
        textcoords="offset points",
        rotation=90,
        fontsize="small",
        color=color,
        horizontalalignment="right",
        verticalalignment="top",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
    )


def _point(point: Point, ax: Any, color: Any) -> None:
    ax.plot([point.x], [point.y], marker="o", color=color)
    ax.annotate(
        point.text,
        (point.x, point.y),
        xytext=(8, -4),
        textcoords="offset points",
        verticalalignment="top",
    )


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ImportError(
            "mllib_ext.plots draws with matplotlib, which is not installed: "
            "pip install 'mllib_ext[plots]'"
        ) from error
    return plt.subplots(layout="constrained")[1]
