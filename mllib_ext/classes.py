"""Labels of classes: 0, 1, ..., k-1."""

from __future__ import annotations

from typing import Any

import numpy as np

# Class labels index arrays: a larger label is an id or a target that came here by mistake.
MAX_CLASSES = 100_000


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
