r"""How well each class is predicted, from the confusion matrix.

With :math:`C_{ij}` the weight of rows of class i that were predicted as class j:

.. math::

    \mathrm{precision}_j = \frac{C_{jj}}{\sum_i C_{ij}}, \quad
    \mathrm{recall}_i = \frac{C_{ii}}{\sum_j C_{ij}}, \quad
    F_1 = \frac{2\,C_{ii}}{\sum_j C_{ij} + \sum_j C_{ji}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mllib_ext.columns import quoted

# A larger matrix is data rather than a report: its classes are told, not the matrix.
LARGEST_MATRIX = 100


def class_report(
    predictions: DataFrame, columns: Mapping[str, str], names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Precision, recall, F1 and support of every class, and the confusion matrix: one Spark job.

    Parameters
    ----------
    predictions : DataFrame
        What a model's ``transform`` gave.
    columns : mapping of str to str
        ``labelCol``, ``predictionCol`` and, where there is one, ``weightCol``.
    names : sequence of str or None
        What the classes 0, 1, ... are called.

    Returns
    -------
    dict
        ``labels``, ``precision``, ``recall``, ``f1`` and ``support``, one value a class; NaN
        where nothing of a class was predicted or there. ``confusion``, a list of rows (the truth)
        for up to :data:`LARGEST_MATRIX` classes.
    """
    weight = columns.get("weightCol")
    counted = F.sum(quoted(weight).cast("double")) if weight else F.count("*").cast("double")
    cells = (
        predictions.groupBy(
            quoted(columns["labelCol"]).cast("double").alias("label"),
            quoted(columns["predictionCol"]).cast("double").alias("prediction"),
        )
        .agg(counted.alias("weight"))
        .collect()
    )
    labels = sorted({row["label"] for row in cells} | {row["prediction"] for row in cells})
    place = {label: i for i, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)))
    for row in cells:
        matrix[place[row["label"]], place[row["prediction"]]] = row["weight"]
    report: dict[str, Any] = {
        "labels": [_name(label, names) for label in labels],
        **{name: values.tolist() for name, values in per_class(matrix).items()},
    }
    if len(labels) <= LARGEST_MATRIX:
        report["confusion"] = matrix.tolist()
    return report


def per_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall, F1 and support of every class, each (k,), of a confusion matrix (k, k)."""
    right, truth, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: not defined
        return {
            "precision": right / predicted,
            "recall": right / truth,
            "f1": 2 * right / (truth + predicted),
            "support": truth,
        }


def _name(label: float, names: Sequence[str] | None) -> str | float | int:
    if not float(label).is_integer():
        return label
    known = names is not None and 0 <= label < len(names)
    return names[int(label)] if known and names is not None else int(label)
