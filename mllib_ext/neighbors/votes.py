r"""Classification and regression by the labels of the nearest rows.

.. math::

    \mathrm{raw}_c(q) = \sum_{i \in \mathrm{knn}(q)} w_i \, \kappa(d_i) \, [y_i = c], \qquad
    \hat y(q) = \frac{\sum_i w_i \, \kappa(d_i) \, y_i}{\sum_i w_i \, \kappa(d_i)}

with :math:`\kappa = 1`, or :math:`\kappa(d) = 1 / d`, where rows at distance 0, if there are any,
outweigh all others (Dudani 1976; scikit-learn's ``weights``). Among rows at the distance of the
k-th the one with the smaller label is the neighbour, then the one with the smaller weight, so that
the answer does not depend on the order of the rows; of classes with the same vote, the lowest wins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mllib_ext.classes import chosen
from mllib_ext.columns import BadRow, Features, Matrix
from mllib_ext.distances import Metric
from mllib_ext.mapped import Mapped
from mllib_ext.neighbors.items import refuse_zeros
from mllib_ext.neighbors.top_k import Search, Tiles, prepared


@dataclass(frozen=True)
class Settings:
    """What a prediction goes by."""

    k: int
    metric: Metric
    by_distance: bool


@dataclass(frozen=True)
class LabelledRows:
    """Training rows, ordered by label and weight.

    Attributes
    ----------
    X : ndarray or csr_array, shape (n, d)
    y, w : ndarray, shape (n,), float64
    tiles : Tiles or None
        The rows prepared for many searches.
    """

    X: Matrix
    y: np.ndarray
    w: np.ndarray
    tiles: Tiles | None = None

    @classmethod
    def of(cls, X: Matrix, y: np.ndarray, w: np.ndarray) -> LabelledRows:
        """Put rows in order; those of weight 0 are as if they were not there."""
        order = np.lexsort((w, y))
        order = order[w[order] > 0]
        rows = cls(X[order], y[order], w[order])
        stored = (rows.X,) if isinstance(X, np.ndarray) else (rows.X.data, rows.X.indices)  # type: ignore[union-attr]
        for array in (*stored, rows.y, rows.w):
            array.flags.writeable = False
        return rows

    def prepared(self, metric: Metric) -> LabelledRows:
        """The same rows, ready for many searches by a metric."""
        return replace(self, tiles=prepared(self.X, metric))

    def votes(self, Q: Matrix, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """Labels (m, k) of the neighbours of queries Q (m, d), and their weights (m, k)."""
        n = len(self.y)
        search = Search(Q, min(settings.k, n), settings.metric)
        search.add(self.X, np.arange(n), self.tiles)
        found = search.neighbors()
        nearest = found.ids.reshape(Q.shape[0], -1)
        weights = self.w[nearest]
        if settings.by_distance:
            weights = weights * inverse(found.distances.reshape(nearest.shape))
        return self.y[nearest], weights


def inverse(distances: np.ndarray) -> np.ndarray:
    """1 / d (m, k); in rows with a distance of 0, 1 where it is and 0 elsewhere."""
    with np.errstate(divide="ignore", over="ignore"):
        weights = 1 / distances
    infinite = np.isinf(weights)
    same = infinite.any(axis=1)
    weights[same] = infinite[same]
    return weights


def class_votes(labels: np.ndarray, weights: np.ndarray, n_classes: int) -> np.ndarray:
    """Summed weights (m, n_classes) of the neighbours of each class."""
    m = len(labels)
    places = np.arange(m)[:, None] * n_classes + labels.astype(np.intp)
    votes = np.bincount(places.ravel(), weights.ravel(), m * n_classes)
    return votes.reshape(m, n_classes)


def classified(
    n_classes: int,
    thresholds: np.ndarray | None,
    names: tuple[str, str, str],
    labels: np.ndarray,
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """Votes and probabilities (m, n_classes), and the class (m,), by the labels (m, k)."""
    raw = class_votes(labels, weights, n_classes)
    probability = raw / raw.sum(axis=1, keepdims=True)
    prediction = chosen(probability, thresholds)
    return dict(zip(names, (raw, probability, prediction), strict=True))


def mean_label(names: tuple[str], labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The weighted mean (m,) of the neighbours' labels (m, k)."""
    (name,) = names
    return {name: (weights * labels).sum(axis=1) / weights.sum(axis=1)}


def predicted(
    mapped: Mapped, features: Features, settings: Settings, answer: Any, X: Matrix
) -> dict[str, np.ndarray]:
    """Columns that ``answer(labels, weights)`` makes of the neighbours of rows X (m, d)."""
    try:
        features.refuse_non_finite(X)
        if settings.metric.name == "cosine":
            refuse_zeros(features.label, X)
    except BadRow as bad:
        raise ValueError(f"{bad} (row {bad.row} of its batch)") from None
    rows: LabelledRows = mapped.open()
    columns: dict[str, np.ndarray] = answer(*rows.votes(X, settings))
    return columns
