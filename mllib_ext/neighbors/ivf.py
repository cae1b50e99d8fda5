r"""An inverted file: rows in cells, so that a query looks at few of them (Jégou et al. 2011).

Centroids :math:`c_1, \dots, c_n` cut space into cells; a row stands in that of its nearest
centroid. A query is compared with the rows of the p cells whose centroids are nearest to it,

.. math::

    \mathrm{knn}_p(q) = \text{the first } k \text{ of } \{x : \mathrm{cell}(x) \in
    \mathrm{near}_p(q)\} \text{ by } \big(d(q, x), \mathrm{id}(x)\big)

and among those the answer is exact (:mod:`mllib_ext.neighbors.top_k`). So a true neighbour is found
if and only if its cell is looked at, and the true neighbours of a sample of queries give the recall
for every p at once:

.. math::

    \mathrm{recall}(p) = \frac{1}{mk} \sum_q \sum_{x \in \mathrm{knn}(q)}
    \big[\mathrm{cell}(x) \in \mathrm{near}_p(q)\big]

Cells that hold fewer than k rows between them are not an answer: such a query looks further.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Self

import numpy as np

from mllib_ext.columns import Matrix
from mllib_ext.distances import Metric, metric
from mllib_ext.neighbors.top_k import ROWS, Neighbors, Part, Search, Tiles

METRICS = ("euclidean", "sqeuclidean", "cosine", "inner_product")
# Queries whose recall is measured: with a deviation of 0.1 among them, the mean is known to 0.003.
SAMPLE = 1_000
# By so many standard errors of the mean other queries may do worse: once in 40 samples.
DEVIATIONS = 2.0


@dataclass(frozen=True)
class Cells:
    """Centroids, and which of them are near.

    Attributes
    ----------
    centroids : ndarray, shape (n_cells, d), float64
    metric : Metric
        Of the neighbours.
    """

    centroids: np.ndarray
    metric: Metric

    def __len__(self) -> int:
        return len(self.centroids)

    def of(self, X: Matrix) -> np.ndarray:
        """The cells (n,) of rows X (n, d): of equally near centroids the first."""
        return self._nearest(X, 1, metric("sqeuclidean")).ravel()

    def near(self, Q: Matrix, p: int) -> np.ndarray:
        """The p cells (m, p) that queries Q (m, d) look at first, nearest first."""
        products = self.metric.name == "inner_product"
        return self._nearest(Q, p, metric("inner_product" if products else "sqeuclidean"))

    def _nearest(self, X: Matrix, p: int, by: Metric) -> np.ndarray:
        # Rows as the metric has them, centroids as they are: a mean of directions may be 0.
        search = Search(self.metric.rows(X), p, by)
        search.add(self.centroids, np.arange(len(self)))
        return search.neighbors().ids.reshape(X.shape[0], p)


class Recall(NamedTuple):
    """What it takes to find the true neighbours, measured on a sample of queries.

    Attributes
    ----------
    k : int
    probes : ndarray, shape (s,)
        Numbers of cells that are looked at, ascending.
    recall : ndarray, shape (s,)
        Share of the true neighbours that are found.
    lower : ndarray, shape (s,)
        What the recall of other queries is at least, by :data:`DEVIATIONS` standard errors.
    compared : ndarray, shape (s,)
        Share of all rows that a query is compared with.
    """

    k: int
    probes: np.ndarray
    recall: np.ndarray
    lower: np.ndarray
    compared: np.ndarray

    def probes_for(self, target: float) -> int:
        """The fewest probes whose recall of other queries is the target or more."""
        return int(self.probes[np.argmax(self.lower >= target)])

    def at(self, probes: int) -> tuple[float, float]:
        """The share of all rows that are compared with so many probes, and the recall."""
        compared, recall = (np.interp(probes, self.probes, y) for y in (self.compared, self.recall))
        return float(compared), float(recall)

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"k": self.k, **{name: getattr(self, name).tolist() for name in self._fields[1:]}}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of :meth:`as_json`."""
        return cls(values["k"], *(np.array(values[name]) for name in cls._fields[1:]))


@dataclass(frozen=True)
class InvertedFile:
    """Rows by cell, ready to be searched.

    Attributes
    ----------
    cells : Cells
    X : ndarray or csr_array, shape (n, d)
        By cell, and by id within one.
    ids : ndarray, shape (n,), int64
    offsets : ndarray, shape (n_cells + 1,)
        Where each cell begins and ends.
    tiles : Tiles
        The rows prepared for scores, each tile a part of one cell.
    """

    cells: Cells
    X: Matrix
    ids: np.ndarray
    offsets: np.ndarray
    tiles: Tiles

    @classmethod
    def of(cls, cells: Cells, X: Matrix, ids: np.ndarray, of_rows: np.ndarray) -> Self:
        """Put rows X (n, d) with their ids (n,) into the cells (n,) they are of."""
        order = np.lexsort((ids, of_rows))
        X, ids = X[order], ids[order]
        offsets = np.searchsorted(of_rows, np.arange(len(cells) + 1), sorter=order)
        tiles = Tiles.of(X, cells.metric, _edges(offsets))
        return cls(cells, X, ids, offsets, tiles)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Rows of each cell (n_cells,)."""
        return np.diff(self.offsets)

    def neighbors(self, Q: Matrix, k: int, probes: int) -> Neighbors:
        """The k nearest rows of queries Q (m, d) in so many cells; in more where those hold fewer.

        All rows in order where there are no more than k.
        """
        search = Search(Q, k, self.cells.metric)
        search.add_parts(self.X, self.ids, self._parts(*self._visits(Q, k, probes)))
        return search.neighbors()

    def _visits(self, Q: Matrix, k: int, probes: int) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a query and a cell that it looks at: queries (v,), cells (v,)."""
        needed = min(k, len(self.ids))
        waiting, probes = np.arange(Q.shape[0]), min(probes, len(self.cells))
        queries, cells = [waiting[:0]], [waiting[:0]]
        while len(waiting):
            near = self.cells.near(Q[waiting], probes)
            full = self.sizes[near].sum(axis=1) >= needed
            queries.append(np.repeat(waiting[full], probes))
            cells.append(near[full].ravel())
            waiting, probes = waiting[~full], min(2 * probes, len(self.cells))
        return np.concatenate(queries), np.concatenate(cells)

    def _parts(self, queries: np.ndarray, cells: np.ndarray) -> Iterator[Part]:
        """Each cell that is looked at, with all queries that do."""
        order = np.lexsort((queries, cells))
        queries, cells = queries[order], cells[order]
        ends = np.searchsorted(cells, np.arange(len(self.cells) + 1))
        _, edges, tiles = self.tiles
        first_tiles = np.searchsorted(edges, self.offsets)
        for cell in np.flatnonzero(np.diff(ends) * self.sizes):
            asking = queries[ends[cell] : ends[cell + 1]]
            for number in range(first_tiles[cell], first_tiles[cell + 1]):
                yield Part(tiles[number], edges[number], edges[number + 1], asking)

    def recall(self, k: int, seed: int) -> Recall:
        """Measure the recall by every number of probes, on a sample of the rows.

        A row that is a query is not its own neighbour, as one that the index has never seen.
        """
        n = len(self.ids)
        places = np.random.default_rng(seed).choice(n, min(n, SAMPLE), replace=False)
        places.sort()
        Q, k = self.X[places], min(k, n - 1)
        search = Search(Q, max(k, 1), self.cells.metric, exclude=places)
        search.add(self.X, np.arange(n))
        true = search.neighbors().ids.reshape(len(places), k)
        near = self.cells.near(Q, len(self.cells))  # (m, n_cells)
        ranks = np.empty_like(near)
        np.put_along_axis(ranks, near, np.arange(len(self.cells))[None], axis=1)
        cell = np.searchsorted(self.offsets, true, side="right") - 1
        found = np.take_along_axis(ranks, cell, axis=1)  # (m, k): after so many other cells
        probes = _growing(len(self.cells))
        shares = (found[:, :, None] < probes).mean(axis=1) if k else np.ones((1, len(probes)))
        recall = shares.mean(axis=0)
        error = shares.std(axis=0) / np.sqrt(len(places))
        compared = np.cumsum(self.sizes[near], axis=1)[:, probes - 1].mean(axis=0) / n
        return Recall(k, probes, recall, recall - DEVIATIONS * error, compared)


def _edges(offsets: np.ndarray) -> Iterator[int]:
    """Where tiles end that are each a part of one cell, 0 first."""
    yield 0
    for start, stop in pairwise(offsets.tolist()):
        yield from range(start + ROWS, stop, ROWS)
        if stop > start:
            yield stop


def _growing(n: int) -> np.ndarray:
    """Numbers from 1 to n, a tenth apart."""
    steps = int(np.log(n) / np.log(1.1)) + 1
    return np.unique(np.append(np.floor(1.1 ** np.arange(steps)).astype(np.int64), n))
