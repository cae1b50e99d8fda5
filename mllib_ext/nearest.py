r"""The step that all of k-means is made of: which center is a row nearest to, and how far is it.

.. math::

    \arg\min_j \|x - c_j\|^2 = \arg\max_j \; x \cdot c_j - \tfrac12 \|c_j\|^2,
    \qquad \min_j \|x - c_j\|^2 = \|x\|^2 - 2 \max_j \big(x \cdot c_j - \tfrac12 \|c_j\|^2\big)

One matrix product a tile of rows, added to the halved norms. The formula cancels far from 0: where
the data are, a copy of the rows is taken about an origin near them; other rows are multiplied where
they lie. An origin is no help where clusters lie far apart. So a row in float32 that is nearer to
its center than rounding lets it tell is assigned again in float64, and the distance of such a row
in float64 is taken of the difference itself: a row on its center costs nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.linalg.blas import dgemm, sgemm

from mllib_ext.columns import Matrix
from mllib_ext.distances import dense_rows, restored, squared_norms, weights_as
from mllib_ext.space import Space

# Rows whose sums are taken at once: enough that adding up (k, d) matrices of them costs little,
# few enough for float32 to add.
CHUNK_ROWS = 4096
# Scores of so many bytes stay near a core between the product and the argmax. With 0.5 MB of L2
# cache, half of it took 7 to 10% longer for 1,000 centers (too few rows for a product), as long
# for 100; twice as much 3% longer for 100. With 2 MB of L2, 0.25 to 4 MB are within 5%.
TILE_BYTES = 1 << 20
# A row counts as resolved if rounding moves its squared distance by less than this share. What a
# row loses by a wrong label is then at most twice that, and only where two centers are as near.
RESOLUTION = 1e-3

# Structures of one-hot matrices that are kept: blocks of a data set have few lengths.
ONEHOTS = 8

# Squared norms that a process keeps from round to round, a number a row: of 8 million rows.
NORMS_BYTES = 1 << 25

# choose(scores (m, k)) -> labels (m,)
Choice = Callable[[np.ndarray], np.ndarray]


def highest(scores: np.ndarray) -> np.ndarray:
    """The nearest of all centers; of equally near ones the first."""
    labels: np.ndarray = scores.argmax(axis=1)
    return labels


class Assigned(NamedTuple):
    """Some rows of a block, each with its center.

    Attributes
    ----------
    rows : slice or ndarray, shape (m,)
        Their places in the block.
    placed : ndarray or scipy.sparse.csr_array, shape (m, d)
        The rows as they stand in the space, valid until the next piece is asked for.
    labels : ndarray, shape (m,), int32
    squared : ndarray, shape (m,), float64
        Squared distances to the centers.
    """

    rows: slice | np.ndarray
    placed: Matrix
    labels: np.ndarray
    squared: np.ndarray


class Nearest:
    """Centers that rows are assigned to.

    Parameters
    ----------
    space : Space
    centers : ndarray, shape (k, d), float64
        In the coordinates of the data.
    choose : callable
        What is chosen by the scores (m, k), which are higher the nearer a center is.
    """

    def __init__(self, space: Space, centers: np.ndarray, choose: Choice = highest) -> None:
        self._space, self._centers, self._choose = space, centers, choose
        self._C = np.ascontiguousarray(centers - space.origin)
        self._offsets = -0.5 * np.einsum("ij,ij->i", self._C, self._C)
        self._rounded: dict[np.dtype, tuple[np.ndarray, np.ndarray]] = {}

    def assigned(self, X: Matrix, place: tuple[str, int] = ("", 0)) -> Iterator[Assigned]:
        """Assign the rows of X, ndarray or scipy.sparse.csr_array (n, d), a few thousand at a time.

        Parameters
        ----------
        X : ndarray or scipy.sparse.csr_array, shape (n, d)
        place : (str, int)
            The file that the rows were read from, and which of its rows is the first: what is
            computed of them alone is then kept for the next round. Empty for others.

        Yields
        ------
        Assigned
            Every row of X in one of them.
        """
        if not isinstance(X, np.ndarray):
            return self._sparse(X)
        key = *place, self._space.unit, self._space.origin.tobytes()
        return self._dense(X, None, key if place[0] else None)

    def _as(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """The centers and what is added to their products with rows, in a precision."""
        if dtype not in self._rounded:
            with np.errstate(over="ignore"):  # float32 ends at 1e38: such rows come out unresolved
                self._rounded[dtype] = self._C.astype(dtype), self._offsets.astype(dtype)
        return self._rounded[dtype]

    def _dense(
        self, X: np.ndarray, places: np.ndarray | None, key: Any = None
    ) -> Iterator[Assigned]:
        n, d = X.shape
        known = _norms.get(key)
        all_norms = np.empty(n, X.dtype) if known is None else known
        C, offsets = self._as(X.dtype)
        k = len(C)
        product = sgemm if X.dtype == np.float32 else dgemm
        chunk = _even(n, CHUNK_ROWS)
        tile = _even(chunk, _tile_rows(k, X.itemsize))
        buffer = None if self._space.as_is else _scratch.array("rows", chunk, d, X.dtype)
        scores = _scratch.array("scores", tile, k, X.dtype)
        first = np.arange(0, scores.size, k)
        for start in range(0, n, chunk):
            rows = slice(start, min(start + chunk, n))
            m = rows.stop - start
            placed = X[rows] if buffer is None else self._space.placed(X[rows], out=buffer[:m])
            labels, best, norms = np.empty(m, np.int32), np.empty(m, X.dtype), all_norms[rows]
            with np.errstate(over="ignore", invalid="ignore"):
                for i in range(0, m, tile):
                    part = placed[i : i + tile]
                    S = scores[: len(part)]
                    S[:] = offsets
                    # In BLAS's order of columns: S.T = C part.T + S.T, in place.
                    S = product(1, C.T, part.T, 1, S.T, trans_a=True, overwrite_c=True).T
                    labels[i : i + tile] = chosen = self._choose(S)
                    best[i : i + tile] = S.ravel().take(first[: len(part)] + chosen)
                    if known is None:
                        np.einsum("ij,ij->i", part, part, out=norms[i : i + tile])
                squared = np.multiply(best, -2, out=best)
                squared += norms
                resolved = _resolved(norms, squared, d)
            if X.dtype == np.float64 and not resolved.all():
                near = np.flatnonzero(~resolved)
                D = placed[near] - self._C[labels[near]]
                squared[near], resolved[:] = np.einsum("ij,ij->i", D, D), True
            if resolved.all():
                here = rows if places is None else places[rows]
                yield Assigned(here, placed, labels, squared.astype(np.float64, copy=False))
                continue
            here = np.arange(n)[rows] if places is None else places[rows]
            if resolved.any():
                kept = placed[resolved], labels[resolved], squared[resolved].astype(np.float64)
                yield Assigned(here[resolved], *kept)
            again = X[rows][~resolved].astype(np.float64)
            yield from self._dense(again, here[~resolved])
        if known is None and key is not None:
            _norms.put(key, all_norms)

    def _sparse(self, X: Any) -> Iterator[Assigned]:
        n = X.shape[0]
        C = self._centers  # sparse rows stay where they are: an origin would fill them
        C_T = np.ascontiguousarray(C.T)
        offsets = -0.5 * np.einsum("ij,ij->i", C, C)
        norms = squared_norms(X)
        if self._space.unit:
            data = X.data / np.repeat(np.sqrt(norms), np.diff(X.indptr))
            X = sp.csr_array((data, X.indices, X.indptr), shape=X.shape)
            norms = np.ones(n)
        tile = _tile_rows(len(C), 8)
        labels, best = np.empty(n, np.int32), np.empty(n)
        for i in range(0, n, tile):
            S = X[i : i + tile] @ C_T
            S += offsets
            labels[i : i + tile] = chosen = self._choose(S)
            best[i : i + tile] = S[np.arange(len(S)), chosen]
        squared = norms - 2 * best
        near = np.flatnonzero(~_resolved(norms, squared, X.shape[1]))
        if len(near):
            # Far from 0 the scores cancel, too: assigned again about an origin near the centers.
            about = Nearest(Space(C.mean(axis=0)), C, self._choose)
            some = max(1, TILE_BYTES // (8 * X.shape[1]))
            for i in range(0, len(near), some):
                rows = near[i : i + some]
                for piece in about._dense(dense_rows(X[rows]).astype(np.float64), rows):
                    labels[piece.rows], squared[piece.rows] = piece.labels, piece.squared
        yield Assigned(slice(n), X, labels, squared)


class _Norms:
    """Squared norms of the rows of blocks where they stand in a space, for the rounds to come."""

    def __init__(self) -> None:
        self._known: dict[Any, np.ndarray] = {}
        self._bytes = 0

    def get(self, key: Any) -> np.ndarray | None:
        """Those of a block, if they are known."""
        return self._known.get(key)

    def put(self, key: Any, norms: np.ndarray) -> None:
        """Keep those of a block; where there is no room, in place of all others."""
        if self._bytes + norms.nbytes > NORMS_BYTES:
            self._known, self._bytes = {}, 0
        self._known[key] = norms
        self._bytes += norms.nbytes


class _Scratch(threading.local):
    """Matrices that a thread uses again: fresh pages took a quarter of a step's time (measured)."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, np.dtype], np.ndarray] = {}
        self._onehots: dict[tuple[int, int], sp.csc_array] = {}

    def array(self, role: str, n: int, width: int, dtype: np.dtype) -> np.ndarray:
        """An uninitialised matrix (n, width), valid until the role's next one is asked for."""
        known = self._known.get((role, dtype))
        if known is None or len(known) < n or known.shape[1] != width:
            known = self._known[role, dtype] = np.empty((n, width), dtype)
        return known[:n]

    def onehot(self, labels: np.ndarray, weights: np.ndarray, k: int) -> sp.csc_array:
        """Column i (of m) holds weight i in row ``labels[i]`` (of k), until asked for another one.

        To make one takes as long as to multiply 4,000 rows by it (measured between products, which
        leave nothing of SciPy's code in the cache), so those of the last shapes are filled again.
        """
        shape = k, len(labels)
        if shape not in self._onehots:
            if len(self._onehots) >= ONEHOTS:
                self._onehots.clear()
            places = np.arange(len(labels) + 1, dtype=np.int32)
            self._onehots[shape] = sp.csc_array((weights, labels, places), shape=shape)
        known = self._onehots[shape]
        # Indices of 32 bits are taken as they are; wider ones are searched and copied.
        known.data, known.indices = weights, labels
        return known


_scratch = _Scratch()
_norms = _Norms()


def _tile_rows(k: int, itemsize: int) -> int:
    return int(np.clip(TILE_BYTES // (itemsize * k), 64, CHUNK_ROWS))


def _even(n: int, most: int) -> int:
    """How long the fewest equal parts of n are that are no longer than ``most``."""
    parts = max(1, -(-n // most))
    return max(1, -(-n // parts))


def _resolved(norms: np.ndarray, squared: np.ndarray, d: int) -> np.ndarray:
    """Where squared distances are far above their rounding.

    A sum of d rounded products is off by about sqrt(d) roundings of the largest (Higham & Mary
    2019); the product, two norms and the difference have three.
    """
    rounding = 3 * math.sqrt(d) * float(np.finfo(norms.dtype).eps)  # of norms + squared
    resolved: np.ndarray = (RESOLUTION - rounding) * squared > rounding * norms
    return resolved & np.isfinite(squared)


def add_sums(sums: np.ndarray, piece: Assigned, w: np.ndarray) -> None:
    """Add the weighted rows of a piece to the sums (k, d) of their centers: one sparse product.

    Parameters
    ----------
    sums : ndarray, shape (k, d), float64
    piece : Assigned
    w : ndarray, shape (m,)
        The weights of the rows of the piece.
    """
    weights, exponent = weights_as(piece.placed.dtype, w)
    product = _scratch.onehot(piece.labels, weights, len(sums)) @ piece.placed
    if isinstance(product, np.ndarray):
        sums += restored(product, exponent)
    else:
        entries = product.tocoo()
        sums[entries.coords] += restored(entries.data, exponent)


def distances(
    X: Matrix, space: Space, centers: np.ndarray, choose: Choice = highest
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and squared distances (n,) of all rows."""
    labels, squared = np.empty(X.shape[0], np.intp), np.empty(X.shape[0])
    for piece in Nearest(space, centers, choose).assigned(X):
        labels[piece.rows], squared[piece.rows] = piece.labels, piece.squared
    return labels, squared
