r"""Lloyd's algorithm (1982): k centers of least cost, by turns of assigning and averaging.

.. math::

    \min_{c_1, \dots, c_k} \sum_i w_i \min_j \mathrm{dist}(x_i, c_j)

with the squared euclidean distance, or the cosine distance of rows and centers of length 1
(spherical k-means). A round assigns the rows to the moved centers; the sums that it brings back
are the next move, so the cost of a state is that of its own centers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np

from mllib_ext.blockfile import Block, Handle
from mllib_ext.distances import dense_rows
from mllib_ext.nearest import Nearest, add_sums, distances
from mllib_ext.optimizers.loop import Callback, Result, Rule, Settings, State, iterate
from mllib_ext.partials import Walk
from mllib_ext.space import Space


class Rounds(Protocol):
    """What Lloyd's algorithm asks of a data set: see :class:`mllib_ext.blocks.Blocks`."""

    def sum(self, stage: Any, *parameters: Any) -> tuple[Any, ...]: ...
    def reduce(self, stage: Any, merge: Any, *parameters: Any) -> tuple[Any, ...]: ...
    def drain(self) -> tuple[Any, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Clusters(State):
    """Centers, and what the rows that are assigned to them add up to.

    ``loss`` is the cost; ``step_size`` the largest distance that a center moved to get here, NaN
    at the start.

    Attributes
    ----------
    centers : ndarray, shape (k, d)
    sizes : ndarray, shape (k,)
        Summed weights of the rows of each center.
    sums : ndarray, shape (k, d)
        Weighted sums of these rows, in the space.
    """

    shown: ClassVar[tuple[str, ...]] = ("sizes", "centers")

    centers: np.ndarray
    sizes: np.ndarray
    sums: np.ndarray

    @property
    def shift(self) -> float:
        """The largest distance that a center moved to get here."""
        return self.step_size


def centers_stand(losses: Sequence[float], state: State, settings: Settings) -> bool:
    """No center moved farther than ``tol``, as in pyspark.ml."""
    return state.step_size <= settings.tol


STOPPING: dict[str, Rule] = {"shift": centers_stand}


def fit(
    rounds: Rounds,
    space: Space,
    centers: np.ndarray,
    settings: Settings,
    callbacks: Sequence[Callback] = (),
) -> Result[Clusters]:
    """Move centers until they stand.

    Parameters
    ----------
    rounds : Blocks
    space : Space
    centers : ndarray, shape (k, d)
        The start.
    settings : Settings
        ``tol`` is the largest distance that a center may move at the end.
    callbacks : sequence of callables
    """
    return iterate(
        partial(step, rounds, space),
        evaluated(rounds, space, space.settle(centers)),
        settings,
        callbacks,
        stopping=STOPPING,
        drain=rounds.drain,
    )


def step(rounds: Rounds, space: Space, state: Clusters, settings: Settings) -> Clusters:
    """Move centers to the means of their rows, centers without rows to rows far from theirs."""
    sums, sizes = state.sums, state.sizes
    centers = state.centers.copy()
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        rows, taken, weights = remote_rows(rounds, space, state)
        rows, taken, weights = rows[: len(empty)], taken[: len(empty)], weights[: len(empty)]
        centers[empty[: len(rows)]] = rows
        sums, sizes = sums.copy(), sizes.copy()
        sums[taken] -= weights[:, None] * space.placed(rows)
        sizes[taken] -= weights
    centers = means(space, sums, sizes, centers)
    return evaluated(rounds, space, centers, shift(space, state.centers, centers))


def means(space: Space, sums: np.ndarray, sizes: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Centers (k, d) at the means of their rows; those without rows where they were."""
    moved = centers.copy()
    full = sizes > 0
    moved[full] = space.settle(space.origin + sums[full] / sizes[full, None])
    # Directions that cancel out have no mean direction.
    lost = space.unit & ~moved.any(axis=1)
    moved[lost] = centers[lost]
    return moved


def shift(space: Space, before: np.ndarray, after: np.ndarray) -> float:
    """The largest distance of two centers: euclidean, or 1 - cosine, as in pyspark.ml."""
    squared = np.einsum("ij,ij->i", after - before, after - before).max()
    return float(0.5 * squared if space.unit else math.sqrt(squared))


def evaluated(
    rounds: Rounds, space: Space, centers: np.ndarray, moved: float = math.nan
) -> Clusters:
    """Centers as a state: one round."""
    sums, sizes, cost = rounds.sum(Walk(share), space, centers)
    # Rows that lie on their centers are as far from them as these are rounded.
    exact = cost <= sizes @ rounding(centers)
    return Clusters(
        loss=0.0 if exact else float(cost),
        step_size=moved,
        stalled=bool(exact and (sizes > 0).all()),
        centers=centers,
        sizes=sizes,
        sums=sums,
    )


def rounding(X: np.ndarray) -> np.ndarray:
    """The squared distance (n,) up to which float64 does not tell rows (n, d) from others."""
    squared: np.ndarray = np.einsum("ij,ij->i", X, X)
    return squared * (16 * np.finfo(np.float64).eps) ** 2


def share(
    handle: Handle, blocks: Iterable[Block], space: Space, centers: np.ndarray
) -> tuple[Any, ...]:
    """:func:`statistics` of one partition."""
    return statistics(blocks, space, centers)


def statistics(blocks: Iterable[Block], space: Space, centers: np.ndarray) -> tuple[Any, ...]:
    """What the rows of some blocks add up to.

    Returns
    -------
    sums : ndarray, shape (k, d)
        Weighted sums of the rows of each center, in the space.
    sizes : ndarray, shape (k,)
        Sums of their weights.
    cost : float
    """
    k, d = centers.shape
    sums, sizes, cost = np.zeros((k, d)), np.zeros(k), 0.0
    nearest = Nearest(space, centers)
    for block in blocks:
        for piece in nearest.assigned(block.X, (block.file, block.start)):
            w = block.w[piece.rows]
            add_sums(sums, piece, w)
            sizes += np.bincount(piece.labels, w, k)
            cost += float(w @ space.distance(piece.squared))
    return sums, sizes, cost


def remote_rows(
    rounds: Rounds, space: Space, state: Clusters
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each cluster the row that lies farthest from its center: one round.

    Rows that are all that a cluster has, and rows that lie on their center, are left out.

    Returns
    -------
    rows : ndarray, shape (m, d)
        As centers. The farthest first; of equally far ones that of the first cluster.
    clusters : ndarray, shape (m,)
    weights : ndarray, shape (m,)
    """
    _, found, weights = rounds.reduce(farthest, farther, space, state.centers)
    some = np.flatnonzero(weights)
    rows, weights = space.settle(found[some].astype(np.float64)), weights[some]
    D = space.placed(rows) - (state.centers[some] - space.origin)
    squared = np.einsum("ij,ij->i", D, D)
    order = np.argsort(-squared, kind="stable")
    order = order[((squared > rounding(rows)) & (state.sizes[some] > weights))[order]]
    return rows[order], some[order], weights[order]


def farthest(block: Block, space: Space, centers: np.ndarray) -> tuple[np.ndarray, ...]:
    """One block's farthest row of each cluster: squared distance, row, weight (0 for none)."""
    k, d = centers.shape
    squared, weights = np.full(k, -1.0), np.zeros(k)
    rows = np.zeros((k, d), block.X.dtype)
    labels, distance = distances(block.X, space, centers)
    distance[block.w == 0] = -1.0
    order = np.lexsort((-distance, labels))  # stable: of equals the first row
    first = order[np.diff(labels[order], prepend=-1) > 0]
    found = labels[first]
    squared[found], weights[found] = distance[first], block.w[first]
    rows[found] = dense_rows(block.X[first])
    return squared, rows, weights


def farther(left: tuple[np.ndarray, ...], right: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    """The farthest rows of two sets of rows, for ``Blocks.reduce``."""
    better = right[0] > left[0]
    rows = np.where(better[:, None], right[1], left[1])
    return np.where(better, right[0], left[0]), rows, np.where(better, right[2], left[2])


def without_needless(rounds: Rounds, space: Space, state: Clusters) -> Clusters:
    """The state without its empty clusters, if every other one holds equal rows alone.

    There are then fewer distinct rows than centers. Empty clusters that came of a start far from
    the data, or of too few rounds, stay.
    """
    empty = state.sizes == 0
    if not empty.any() or len(remote_rows(rounds, space, state)[0]):
        return state
    return replace(
        state, centers=state.centers[~empty], sizes=state.sizes[~empty], sums=state.sums[~empty]
    )
