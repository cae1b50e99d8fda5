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


def class_moments(block: Block) -> tuple[Any, ...]:
    """One block's labels, the weight of each, and the moments of its features."""
    return *weight_of_labels(block.y, block.w), *moments(block)


def merge_class_moments(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    """Labels, their weights and the moments of two sets of rows together, for ``Blocks.reduce``."""
    labels, index = np.unique(np.concatenate([left[0], right[0]]), return_inverse=True)
    by_label = np.bincount(index, weights=np.concatenate([left[1], right[1]]))
    return labels, by_label, *merge(left[2:], right[2:])  # type: ignore[arg-type]


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
