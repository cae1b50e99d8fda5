"""Labels of classes: 0, 1, ..., k-1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mllib_ext.moments import merge, moments

if TYPE_CHECKING:
    from mllib_ext.blockfile import Block

# Class labels index arrays: a larger label is an id or a target that came here by mistake.
MAX_CLASSES = 100_000


def weight_of_labels(y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different labels, ascending, and the summed weight of each; a wrong one alone."""
    wrong = (y < 0) | (y != np.floor(y))
    if wrong.any():  # one is enough to refuse them all
        return y[wrong][:1], np.zeros(1)
    if y.max() < MAX_CLASSES:  # without the sort
        index = y.astype(np.intp)
        labels = np.flatnonzero(np.bincount(index))
        return labels.astype(np.float64), np.bincount(index, weights=w)[labels]
    labels, index = np.unique(y, return_inverse=True)
    return labels, np.bincount(index, weights=w)


def labels_of(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """One block's labels and the weight of each."""
    return weight_of_labels(block.y, block.w)


def merge_labels(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    """Labels and their weights of two sets of rows together, for ``Blocks.reduce``."""
    labels, index = np.unique(np.concatenate([left[0], right[0]]), return_inverse=True)
    return labels, np.bincount(index, weights=np.concatenate([left[1], right[1]]))


def class_moments(block: Block) -> tuple[Any, ...]:
    """One block's labels, the weight of each, and the moments of its features."""
    return *labels_of(block), *moments(block)


def merge_class_moments(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    """Labels, their weights and the moments of two sets of rows together, for ``Blocks.reduce``."""
    return *merge_labels(left, right), *merge(left[2:], right[2:])  # type: ignore[arg-type]


def class_weights(
    column: str, labels: np.ndarray, by_label: np.ndarray, declared: int | None
) -> np.ndarray:
    """Summed weights (k,) of the classes 0 .. k-1; ValueError for any other label.

    Parameters
    ----------
    column : str
        The label column, for messages.
    labels, by_label : ndarray, shape (n_labels,)
        The different labels, and the weight of the rows of each.
    declared : int or None
        The number of classes where it is known from elsewhere.
    """
    name = f"label column {column!r}"
    wrong = labels[(labels < 0) | (labels != np.floor(labels))]
    if len(wrong):
        raise ValueError(
            f"{name}: expected class labels 0, 1, ..., k-1, found {wrong[0]:g}: "
            "index labels with pyspark.ml.feature.StringIndexer"
        )
    labels, by_label = labels[by_label > 0], by_label[by_label > 0]  # as if they were not there
    k = int(labels.max()) + 1
    if k > MAX_CLASSES:
        raise ValueError(
            f"{name}: expected fewer than {MAX_CLASSES} classes, found label {labels.max():g}"
        )
    if declared is not None and declared < k:
        raise ValueError(
            f"{name}: expected labels below {declared}, the number of classes in the "
            f"column's metadata, found {k - 1}"
        )
    counts = np.zeros(declared or k)
    counts[labels.astype(int)] = by_label
    return counts


def declared_classes(metadata: dict[str, Any]) -> int | None:
    """The number of classes in a label column's metadata, where a StringIndexer left it."""
    attribute = metadata.get("ml_attr", {})
    if "vals" in attribute:
        return len(attribute["vals"])
    return int(attribute["num_vals"]) if "num_vals" in attribute else None


def chosen(probability: np.ndarray, thresholds: np.ndarray | None) -> np.ndarray:
    """The class of each row (n,): of the largest probability / threshold, the lowest of several.

    Parameters
    ----------
    probability : ndarray, shape (n, k)
    thresholds : ndarray, shape (k,), or None
        None for the largest probability alone.
    """
    scores = probability
    if thresholds is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = probability / thresholds
        scores[np.isnan(scores)] = -np.inf  # 0 / 0: not a class to choose, as in pyspark.ml
    prediction: np.ndarray = scores.argmax(axis=1).astype(np.float64)
    return prediction


def refuse_thresholds(values: list[float]) -> None:
    """ValueError for thresholds of classes out of pyspark.ml's ranges."""
    found = np.array(values)
    if not (found >= 0).all() or np.count_nonzero(found == 0) > 1:
        raise ValueError(
            "param thresholds: expected numbers of 0 or more, at most one of them 0, "
            f"found {found.tolist()}"
        )


def refuse_number_of_thresholds(values: list[float], n_classes: int) -> None:
    """ValueError for more or fewer thresholds than classes."""
    if len(values) != n_classes:
        raise ValueError(
            f"param thresholds: expected {n_classes} values, one for each class, "
            f"found {len(values)}"
        )
