"""Pictures of a fitted model: its loss, its coefficients, its confusion matrix, its recall.

Each function draws on the Axes that it is given, or on those of a new figure, and returns them:
``plots.loss_curve(model.history).figure.savefig("loss.png")``. Matplotlib is the extra ``plots``
of this package and is imported when the first picture is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from pyspark.sql import DataFrame

from mllib_ext.columns import number
from mllib_ext.optimizers.loop import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["coefficients", "confusion_matrix", "loss_curve", "recall_curve"]

# Cells of a larger matrix are narrower than the numbers in them.
NUMBERED_CLASSES = 30
# More classes than this cannot be told apart in a picture, and are most often a regression's label.
MAX_CLASSES = 500


# What an iteration adds to, by the name of the axis.
COSTS: dict[str, Callable[[Record], float]] = {
    "iteration": lambda record: 1 if record.iteration else 0,
    "rounds": lambda record: len(record.rounds),
    "seconds": lambda record: record.seconds,
    "bytes": lambda record: sum(r.bytes_up + r.bytes_down for r in record.rounds),
}


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
    if not history:
        raise ValueError(
            "history: expected the records of a fit, found none: "
            "a loaded model has none, nor has a closed-form solution"
        )
    if against not in COSTS:
        raise ValueError(f"against: expected one of {sorted(COSTS)}, found {against!r}")
    ax = _axes(ax)
    spent = list(accumulate(map(COSTS[against], history)))
    losses = np.array([record.loss for record in history])
    if optimum is not None:
        losses = (losses - optimum) / abs(optimum)
        ax.set_yscale("log")
    (line,) = ax.plot(spent, losses, marker=".", label=label)
    for at, record in zip(spent, history, strict=True):
        # A checkpoint leaves the run as it is, and may be asked for after every iteration.
        actions = [action for action in record.actions if not action.startswith("checkpoint ")]
        if actions:
            ax.axvline(at, color=line.get_color(), linestyle=":", linewidth=1.0)
            ax.annotate(
                ", ".join(actions),
                (at, 0.97),
                xycoords=ax.get_xaxis_transform(),  # y in shares of the Axes' height
                xytext=(-2, 0),
                textcoords="offset points",
                rotation=90,
                fontsize="small",
                color=line.get_color(),
                horizontalalignment="right",
                verticalalignment="top",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
            )
    if against in ("iteration", "rounds"):
        ax.locator_params(axis="x", integer=True)
    ax.set(xlabel=against, ylabel="objective" if optimum is None else "relative gap")
    if label is not None:
        ax.legend()
    return ax


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
    values, names = values[:, order], [names[j] for j in order]

    ax = _axes(ax)
    what = "coefficient" if deviation is None else "coefficient × standard deviation"
    places = range(len(order))
    if len(values) == 1:
        ax.barh(places, values[0], color=np.where(values[0] < 0, "tab:red", "tab:blue").tolist())
        ax.axvline(0.0, color="black", linewidth=0.8)
        ax.set_yticks(places, names)
        ax.invert_yaxis()  # the largest on top
        ax.set_xlabel(what)
        return ax
    limit = float(np.abs(values).max()) or 1.0  # white is 0, in a map of zeros too
    image = ax.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    ax.figure.colorbar(image, ax=ax, label=what)
    ax.set_xticks(places, names, rotation=90)
    ax.set_yticks(range(len(values)))
    ax.set_ylabel("class")
    return ax


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
        counts = _count(predictions, labelCol, predictionCol, len(classes or ()))
    else:
        counts = np.asarray(predictions)
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
            raise ValueError(f"predictions: expected counts (k, k), found shape {counts.shape}")
    k = len(counts)
    if classes is not None and len(classes) != k:
        raise ValueError(f"classes: expected {k} names, found {len(classes)}")
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.where(totals > 0, totals, 1)

    ax = _axes(ax)
    image = ax.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    ax.figure.colorbar(image, ax=ax, label="share of the class")
    if classes is not None or k <= NUMBERED_CLASSES:
        names = [str(i) for i in range(k)] if classes is None else list(classes)
        ax.set_xticks(range(k), names)
        ax.set_yticks(range(k), names)
    if k <= NUMBERED_CLASSES:
        for (i, j), share in np.ndenumerate(shares):
            ax.text(
                j,
                i,
                f"{counts[i, j]:g}",
                horizontalalignment="center",
                verticalalignment="center",
                color="white" if share > 0.5 else "black",
            )
    ax.set(xlabel="prediction", ylabel="label")
    return ax


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
    curve, probes = model.recallCurve, model.nprobe
    ax = _axes(ax)
    (line,) = ax.plot(curve.compared, curve.recall, label=label)
    color = line.get_color()
    ax.fill_between(curve.compared, curve.lower, curve.recall, color=color, alpha=0.2)
    share, recall = curve.at(probes)
    ax.plot([share], [recall], marker="o", color=color)
    ax.annotate(
        f"{probes} of {model.nlist} cells: {recall:.3f}",
        (share, recall),
        xytext=(8, -4),
        textcoords="offset points",
        verticalalignment="top",
    )
    ax.set(xscale="log", xlabel="share of the items", ylabel=f"recall of {curve.k} neighbours")
    if label is not None:
        ax.legend()
    return ax


def _coefficients(model: Any) -> np.ndarray:
    """Coefficients (k, d), k being 1 for a single output."""
    # Logistic regressions alone have a matrix, and refuse to give a vector for several classes.
    matrix = getattr(model, "coefficientMatrix", None)
    values = model.coefficients if matrix is None else matrix
    return np.atleast_2d(values.toArray())


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
