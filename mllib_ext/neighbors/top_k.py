r"""The k nearest of all rows, exactly: candidates by matrix products, the answer in float64.

For each query the rows are wanted that come first by (distance, id), and a distance is a function
of a key of :mod:`mllib_ext.distances`. Scores give every key as an interval
:math:`[l_j, u_j]`. With :math:`\tau` the k-th smallest :math:`u_j` so far, a row with
:math:`l_j > \tau` has k rows before it whatever the rounding was; all others are candidates, whose
keys are then computed in float64. The answer is the same as if all keys had been: scores only save
work. So it does not depend on how rows and queries are cut into blocks, and ties at the k-th place
go to the smaller id.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from mllib_ext.columns import Matrix
from mllib_ext.distances import Manhattan, Metric, Tile

# Queries and rows that are prepared together.
QUERIES, ROWS = 1024, 4096
# Pairs of one product: its result stays in the processor's cache for the comparison.
PAIRS = 1 << 19
# The first tile has no bound to compare with and is sorted: a small one.
FIRST_ROWS = 512
# Candidates that wait for their exact keys, 24 bytes each.
PENDING = 1 << 21
# Numbers of a dense copy: of pairs whose keys are computed, or of rows that are sparse.
COPY = 1 << 21
# Far more candidates than chance would leave: float32 cannot tell the rows apart.
CROWDED = 16


class Neighbors(NamedTuple):
    """The nearest rows of each query, flat, nearest first.

    Attributes
    ----------
    counts : ndarray, shape (m,), int64
        How many each query has: k, or fewer where there are no more.
    ids : ndarray, shape (counts.sum(),), int64
    distances : ndarray, shape (counts.sum(),), float64
    """

    counts: np.ndarray
    ids: np.ndarray
    distances: np.ndarray

    @classmethod
    def none(cls, m: int) -> Neighbors:
        """No neighbours of m queries."""
        return cls(np.zeros(m, np.int64), np.empty(0, np.int64), np.empty(0))

    @property
    def offsets(self) -> np.ndarray:
        """Where each query's neighbours begin and end, shape (m + 1,), int32 as Arrow has it."""
        return np.concatenate(([0], np.cumsum(self.counts))).astype(np.int32)


class Tiles(NamedTuple):
    """Rows that many searches look among, prepared once for float32 scores.

    Attributes
    ----------
    metric : Metric
    edges : ndarray, shape (n_tiles + 1,)
        Where each tile begins and ends.
    tiles : tuple of Tile
    """

    metric: Metric
    edges: np.ndarray
    tiles: tuple[Tile, ...]

    @classmethod
    def of(cls, X: Matrix, metric: Metric, edges: Iterable[int]) -> Tiles:
        """Prepare rows X (n, d) in tiles with these edges."""
        edges = np.array([*edges])
        tiles = (metric.tile(X[a:b], np.float32) for a, b in pairwise(edges.tolist()))
        return cls(metric, edges, tuple(tiles))


def prepared(X: Matrix, metric: Metric) -> Tiles | None:
    """Rows X (n, d) for :meth:`Search.add`; None where a tile is no more than the rows."""
    if isinstance(metric, Manhattan):
        return None
    cuts = _tiles(X.shape[0], FIRST_ROWS, ROWS)
    return Tiles.of(X, metric, (0, *(stop for _, stop in cuts)))


class Part(NamedTuple):
    """Rows that some queries look among.

    Attributes
    ----------
    tile : Tile
        Of rows ``start`` to ``stop``, in float32.
    start, stop : int
    queries : ndarray, shape (p,)
        Places of the queries, ascending.
    """

    tile: Tile
    start: int
    stop: int
    queries: np.ndarray


class Search:
    """The nearest rows of a block of queries among blocks of rows, which come one by one.

    Parameters
    ----------
    Q : ndarray or csr_array, shape (m, d)
    k : int
    metric : Metric
    radius : float, optional
        Only rows up to this distance (under the inner product: from it on).
    exclude : ndarray, shape (m,), int64, optional
        An id for each query that is not among its neighbours.
    dtype : dtype
        Of the scores of dense rows. float32 is the faster and changes no result; where it leaves
        too many candidates the search goes on in float64.
    """

    def __init__(
        self,
        Q: Matrix,
        k: int,
        metric: Metric,
        *,
        radius: float | None = None,
        exclude: np.ndarray | None = None,
        dtype: Any = np.float32,
    ) -> None:
        self._k, self._metric = k, metric
        self._exclude, self._dtype = exclude, dtype
        self._Q = metric.rows(Q)
        m = Q.shape[0]
        self._places = np.arange(m)
        self._distances = np.full((m, k), np.inf)  # exact, ascending
        self._ids = np.zeros((m, k), np.int64)
        self._upper = np.full((m, k), np.inf)  # the k smallest upper bounds of keys
        self._radius = np.inf if radius is None else metric.sign * radius
        self._cap = metric.largest_key(self._radius)
        self._tau = np.full(m, self._cap)
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._waiting = 0
        self._values, self._mask = np.empty(0, dtype), np.empty(0, bool)

    def add(self, X: Matrix, ids: np.ndarray, tiles: Tiles | None = None) -> None:
        """Look among more rows.

        Parameters
        ----------
        X : ndarray or csr_array, shape (n, d)
        ids : ndarray, shape (n,), int64
            They order rows at the same distance; every row counts, the ids need not differ.
        tiles : Tiles, optional
            The same rows, prepared. Those of another metric are of no use.

        Raises
        ------
        ValueError
            Rows of another length than the queries'; numbers whose squares overflow.
        """
        n, m = X.shape[0], self._Q.shape[0]
        self._meet(X)
        if not n or not m:
            return
        hidden = _Hidden.of(self._exclude, ids)
        rows, queries = self._shape(X)
        cuts: Iterable[tuple[int, int]] = _tiles(n, max(FIRST_ROWS, 4 * self._k), rows)
        if tiles is not None and tiles.metric == self._metric:
            cuts = pairwise(tiles.edges.tolist())
        else:
            tiles = None
        for number, (start, stop) in enumerate(cuts):
            if tiles is not None and self._dtype == np.float32:
                tile = tiles.tiles[number]
            else:
                tile = self._metric.tile(X[start:stop], self._dtype)
            for first in range(0, m, queries):
                chunk = slice(first, min(m, first + queries))
                if self._scan(tile, chunk, start, stop - start, hidden):
                    continue
                self._dtype = np.float64
                tile = self._metric.tile(X[start:stop], self._dtype)
                self._scan(tile, chunk, start, stop - start, hidden)
            self._settle_many(X, ids)
        self._settle(X, ids)

    def add_parts(self, X: Matrix, ids: np.ndarray, parts: Iterable[Part]) -> None:
        """Look among more rows, each query among parts of them alone.

        Parameters
        ----------
        X : ndarray or csr_array, shape (n, d)
        ids : ndarray, shape (n,), int64
            As of :meth:`add`.
        parts : iterable of Part
            A query meets a row once at most.
        """
        self._meet(X)
        hidden = _Hidden.of(self._exclude, ids)
        for tile, start, stop, queries in parts:
            t = stop - start
            for first in range(0, len(queries), QUERIES):
                chunk = queries[first : first + QUERIES]
                if not self._scan(tile, chunk, start, t, hidden):
                    exact = self._metric.tile(X[start:stop], np.float64)
                    self._scan(exact, chunk, start, t, hidden)
            self._settle_many(X, ids)
        self._settle(X, ids)

    def neighbors(self) -> Neighbors:
        """The nearest of all rows so far."""
        found = np.isfinite(self._distances) & (self._distances <= self._radius)
        distances = self._metric.sign * self._distances[found]
        return Neighbors(found.sum(axis=1), self._ids[found], distances)

    def _meet(self, X: Matrix) -> None:
        """Bring the queries into the form of the rows; ValueError for rows of another length."""
        if X.shape[1] != self._Q.shape[1]:
            raise ValueError(f"expected rows of {self._Q.shape[1]} features, found {X.shape[1]}")
        if isinstance(X, np.ndarray) != isinstance(self._Q, np.ndarray):
            Q: Any = self._Q
            self._Q = Q.toarray() if isinstance(X, np.ndarray) else sp.csr_array(Q)

    def _shape(self, X: Matrix) -> tuple[int, int]:
        """Rows and queries of one product."""
        if not isinstance(X, np.ndarray) and isinstance(
            self._metric, Manhattan
        ):  # dense copies of both
            few = max(16, COPY // X.shape[1])
            return min(ROWS, few), min(QUERIES, few)
        return max(ROWS, 4 * self._k), QUERIES

    def _scan(
        self, tile: Tile, chunk: slice | np.ndarray, start: int, t: int, hidden: _Hidden
    ) -> bool:
        """Note the candidates of a tile; False if float64 should look instead.

        ``chunk`` says which queries look: a slice, or their places in ascending order.
        """
        queries, k = self._places[chunk], self._k
        m = len(queries)
        values_of, dtype, scale, shift, error = tile.scores(self._Q[chunk])
        limit = _upward((self._tau[chunk] - shift + error) / scale, dtype)
        # Without a bound the tile gives one, which takes all of its values.
        unbounded = t >= k and bool(np.isinf(self._upper[chunk, -1]).any())
        span = t if unbounded else min(t, max(1, PAIRS // m))
        found: list[tuple[np.ndarray, ...]] = []
        n = 0
        for first in range(0, t, span):
            stop = min(t, first + span)
            out, mask = self._scratch(m, stop - first, dtype)
            values = values_of(first, stop, out)
            hidden.hide(values, queries, start + first)
            if unbounded:
                kth = np.partition(values, k - 1, axis=1)[:, k - 1]
                limit = np.minimum(limit, _upward(kth + 2 * error / scale, dtype))
            places = np.flatnonzero(np.less_equal(values, limit[:, None], out=mask))
            n += len(places)
            if dtype == np.float32 and n > CROWDED * max(k, 8) * m:
                return False
            row, column = np.divmod(places, stop - first)
            found.append((row, column + first, values[row, column]))
        rows, columns, scores = map(np.concatenate, zip(*found, strict=True))
        if len(found) > 1:
            order = np.argsort(rows, kind="stable")
            rows, columns, scores = rows[order], columns[order], scores[order]
        near = scale[rows] * scores + shift[rows]
        self._tighten(chunk, m, rows, near + error[rows])
        self._pending.append((queries[rows], columns + start, near - error[rows]))
        self._waiting += len(rows)
        return True

    def _scratch(self, m: int, t: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """Room for values and their comparison (m, t): fresh pages would take longer to get."""
        if len(self._mask) < m * t or self._values.dtype != dtype:
            self._values, self._mask = np.empty(m * t, dtype), np.empty(m * t, bool)
        return self._values[: m * t].reshape(m, t), self._mask[: m * t].reshape(m, t)

    def _tighten(
        self, chunk: slice | np.ndarray, m: int, rows: np.ndarray, upper: np.ndarray
    ) -> None:
        """Lower the bounds of m queries by the upper bounds of new candidates (rows ascending)."""
        if not len(rows):
            return
        counts = np.bincount(rows, minlength=m)
        found = np.flatnonzero(counts)
        counts, queries = counts[found], self._places[chunk][found]
        padded = np.full((len(found), self._k + counts.max()), np.inf)
        padded[:, : self._k] = self._upper[queries]
        padded[np.repeat(np.arange(len(found)), counts), self._k + _places(counts)] = upper
        padded = np.partition(padded, self._k - 1, axis=1)[:, : self._k]
        self._upper[queries] = padded
        self._tau[queries] = np.minimum(padded[:, -1], self._cap)

    def _settle_many(self, X: Matrix, ids: np.ndarray) -> None:
        if self._waiting > PENDING:
            self._settle(X, ids)

    def _settle(self, X: Matrix, ids: np.ndarray) -> None:
        """Compute the exact keys of the candidates and keep the k first of each query."""
        if not self._pending:
            return
        rows, columns, lower = map(np.concatenate, zip(*self._pending, strict=True))
        self._pending, self._waiting = [], 0
        kept = lower <= self._tau[rows]
        rows, columns = rows[kept], columns[kept]
        keys = np.empty(len(rows))
        step = max(1, COPY // X.shape[1])
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            keys[part] = self._metric.keys(self._Q[rows[part]], self._metric.rows(X[columns[part]]))
        self._merge(rows, self._metric.distances(keys), ids[columns])

    def _merge(self, rows: np.ndarray, distances: np.ndarray, ids: np.ndarray) -> None:
        m, k = self._distances.shape
        before = np.isfinite(self._distances)
        rows = np.concatenate([np.nonzero(before)[0], rows])
        distances = np.concatenate([self._distances[before], distances])
        ids = np.concatenate([self._ids[before], ids])
        order = np.lexsort((ids, distances, rows))
        rows = rows[order]
        places = _places(np.bincount(rows, minlength=m))
        kept = places < k
        rows, places, order = rows[kept], places[kept], order[kept]
        self._distances.fill(np.inf)
        self._distances[rows, places] = distances[order]
        self._ids[rows, places] = ids[order]
        self._upper = self._metric.largest_key(self._distances)
        self._tau = np.minimum(self._upper[:, -1], self._cap)


class _Hidden(NamedTuple):
    """Pairs of a query and a row that are no neighbours, by the row's place."""

    queries: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, exclude: np.ndarray | None, ids: np.ndarray) -> _Hidden:
        if exclude is None:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64))
        order = np.argsort(ids, kind="stable")
        first, last = (np.searchsorted(ids, exclude, side, order) for side in ("left", "right"))
        counts = last - first
        queries = np.repeat(np.arange(len(exclude)), counts)
        places = order[np.repeat(first, counts) + _places(counts)]
        by_place = np.argsort(places, kind="stable")
        return cls(queries[by_place], places[by_place])

    def hide(self, values: np.ndarray, among: np.ndarray, start: int) -> None:
        """Set the scores (m, t) of the hidden pairs of queries ``among`` to infinity."""
        if not len(self.places):
            return
        first, last = np.searchsorted(self.places, (start, start + values.shape[1]))
        queries, places = self.queries[first:last], self.places[first:last]
        rows = np.minimum(np.searchsorted(among, queries), len(among) - 1)
        inside = among[rows] == queries
        values[rows[inside], places[inside] - start] = np.inf


def _tiles(n: int, first: int, rows: int) -> Iterator[tuple[int, int]]:
    """Cuts of n rows that grow up to a size: while bounds are new they let many rows through."""
    start, size = 0, min(first, rows)
    while start < n:
        stop = min(n, start + size)
        yield start, stop
        start, size = stop, min(rows, 4 * size)


def _places(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... within each of several runs of these lengths, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _upward(limit: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Limits no lower than these in a precision, and finite: infinite scores stay above."""
    with np.errstate(over="ignore"):
        rounded = limit.astype(dtype)
    up = np.nextafter(rounded, dtype.type(np.inf))
    return np.minimum(up, np.finfo(dtype).max)
