r"""Bisecting k-means (Steinbach, Karypis & Kumar 2000): a tree of clusters, each split in two.

From one cluster of all rows on, every divisible cluster of a level is split by k-means with two
centers, all of them in the same rounds, until there are k leaves; where more could be split than
are needed, the larger ones are. A row goes down the tree to the nearer of two children, in training
as in prediction.

Two centers start a standard deviation to either side of their cluster's own, along the direction
of large variance that one step of the power method finds from a random one:
:math:`\sum_i w_i (x_i - c) (x_i - c)^T v`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from mllib_ext import lloyd
from mllib_ext.blockfile import Block
from mllib_ext.lloyd import Rounds
from mllib_ext.nearest import Nearest, add_sums
from mllib_ext.optimizers.loop import Callback, Record, Result, Settings, State, iterate
from mllib_ext.space import Space


@dataclass(frozen=True)
class Descent:
    """The way down a tree, as a choice by scores: at each node to the child of the higher one.

    Attributes
    ----------
    children : ndarray, shape (m, 2)
        Of each node; -1 for a leaf. Node 0 is the root.
    """

    children: np.ndarray

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """The leaves (n,) that scores (n, m) lead to."""
        nodes = np.zeros(len(scores), np.intp)
        going = np.arange(len(scores))
        while True:
            pairs = self.children[nodes[going]]
            inner = pairs[:, 0] >= 0
            going, (left, right) = going[inner], pairs[inner].T
            if not len(going):
                return nodes
            nodes[going] = np.where(scores[going, right] > scores[going, left], right, left)

    @property
    def leaves(self) -> np.ndarray:
        """The leaves from left to right."""
        found, stack = [], [0]
        while stack:
            node = stack.pop()
            left, right = self.children[node]
            if left < 0:
                found.append(node)
            else:
                stack += [right, left]
        return np.array(found)


@dataclass(frozen=True, kw_only=True)
class Tree(State):
    """A tree of clusters, and what the rows at its leaves add up to.

    ``loss`` is the cost of the leaves; ``step_size`` the largest distance that a center moved.

    Attributes
    ----------
    centers : ndarray, shape (m, d)
        Of all nodes, the root first.
    children : ndarray, shape (m, 2)
    sizes, costs, counts : ndarray, shape (m,)
        Summed weights of leaves, their costs, and their numbers of rows of a weight above 0; of
        other nodes what they were when they were split.
    sums : ndarray, shape (m, d)
    """

    shown: ClassVar[tuple[str, ...]] = ("sizes", "centers")

    centers: np.ndarray
    children: np.ndarray
    sizes: np.ndarray
    costs: np.ndarray
    counts: np.ndarray
    sums: np.ndarray

    @property
    def shift(self) -> float:
        """The largest distance that a center moved to get here."""
        return self.step_size

    @property
    def descent(self) -> Descent:
        """The way of a row down the tree."""
        return Descent(self.children)


def fit(
    rounds: Rounds,
    space: Space,
    k: int,
    divisible_size: float,
    settings: Settings,
    seed: int,
    callbacks: Sequence[Callback] = (),
) -> Result[Tree]:
    """Split clusters level by level until there are k leaves, or none can be split.

    Parameters
    ----------
    rounds : Blocks
    space : Space
    k : int
    divisible_size : float
        The least number of rows of a cluster that is split; below 1 as a share of all rows.
    settings : Settings
        ``max_iter`` rounds for each level, fewer where the centers stand.
    seed : int
    callbacks : sequence of callables
        Iterations start again from 0 at each level.
    """
    root = _root(rounds, space)
    least = divisible_size if divisible_size >= 1 else divisible_size * root.counts[0]
    tree, level, converged, n_iter, reason = root, np.array([0]), True, 0, "leaves"
    history: list[Record] = []
    while len(level) and len(tree.descent.leaves) < k:
        needed = k - len(tree.descent.leaves)
        parents = _divisible(tree, level, least, needed)
        if not len(parents):
            break
        result = iterate(
            partial(_step, rounds, space, parents),
            _split(rounds, space, tree, parents, seed),
            settings,
            callbacks,
            stopping=lloyd.STOPPING,
            drain=rounds.drain,
            warn=False,  # a level is good enough to go on from
        )
        history += result.history
        n_iter += result.n_iter
        converged &= result.converged
        tree, level = _kept(result.state, parents)
        if not result.converged and result.reason != "max_iter":  # a callback said stop
            reason = result.reason
            break
    return Result(tree, converged, reason, n_iter, tuple(history))


def _root(rounds: Rounds, space: Space) -> Tree:
    """One cluster of all rows."""
    one = np.full((1, 2), -1)
    start = _evaluated(rounds, space, space.settle(space.origin[None]), one, None)
    center = lloyd.means(space, start.sums, start.sizes, start.centers)
    return _evaluated(rounds, space, center, one, None)


def _divisible(tree: Tree, level: np.ndarray, least: float, needed: int) -> np.ndarray:
    """The clusters of a level that are large enough and have distinct rows; the largest first."""
    nothing = tree.sizes[level] * lloyd.rounding(tree.centers[level])
    candidates = level[(tree.counts[level] >= least) & (tree.costs[level] > nothing)]
    return candidates[np.argsort(-tree.sizes[candidates], kind="stable")][:needed]


def _split(rounds: Rounds, space: Space, tree: Tree, parents: np.ndarray, seed: int) -> Tree:
    """The tree with two new leaves below each parent: two rounds."""
    m, d = tree.centers.shape
    rng = np.random.default_rng([seed, m])
    directions = np.zeros((m, d))
    directions[parents] = rng.normal(size=(len(parents), d))
    (stretched,) = rounds.sum(stretch, space, tree.centers, tree.descent, directions)
    v = np.where(stretched.any(axis=1, keepdims=True), stretched, directions)[parents]
    deviation = np.sqrt(tree.costs[parents] / tree.sizes[parents])
    v *= (deviation / np.linalg.norm(v, axis=1))[:, None]
    pairs = np.stack([tree.centers[parents] - v, tree.centers[parents] + v], axis=1)  # (p, 2, d)
    centers = np.concatenate([tree.centers, space.settle(pairs.reshape(-1, d))])
    children = np.concatenate([tree.children, np.full((2 * len(parents), 2), -1)])
    children[parents] = m + np.arange(2 * len(parents)).reshape(-1, 2)
    return _evaluated(rounds, space, centers, children, tree)


def _step(
    rounds: Rounds, space: Space, parents: np.ndarray, tree: Tree, settings: Settings
) -> Tree:
    """Move the children of the parents to the means of their rows."""
    moving = tree.children[parents].ravel()
    centers = tree.centers.copy()
    centers[moving] = lloyd.means(space, tree.sums[moving], tree.sizes[moving], centers[moving])
    moved = lloyd.shift(space, tree.centers, centers)
    return _evaluated(rounds, space, centers, tree.children, tree, moved)


def _evaluated(
    rounds: Rounds,
    space: Space,
    centers: np.ndarray,
    children: np.ndarray,
    before: Tree | None,
    moved: float = np.nan,
) -> Tree:
    """A tree as a state: one round. Inner nodes keep what they were ``before``."""
    found = rounds.sum(leaf_statistics, space, centers, Descent(children))
    sums, sizes, costs, counts = found
    loss = float(costs.sum())
    if before is not None:
        inner = np.flatnonzero(children[:, 0] >= 0)
        sizes[inner], costs[inner] = before.sizes[inner], before.costs[inner]
        counts[inner] = before.counts[inner]
    return Tree(
        loss=loss,
        step_size=moved,
        centers=centers,
        children=children,
        sizes=sizes,
        costs=costs,
        counts=counts,
        sums=sums,
    )


def _kept(tree: Tree, parents: np.ndarray) -> tuple[Tree, np.ndarray]:
    """The tree without splits that left one side empty, and its new leaves."""
    pairs = tree.children[parents]
    empty = (tree.sizes[pairs] == 0).any(axis=1)
    children = tree.children.copy()
    children[parents[empty]] = -1
    return replace(tree, children=children), pairs[~empty].ravel()


def leaf_statistics(
    block: Block, space: Space, centers: np.ndarray, descent: Descent
) -> tuple[Any, ...]:
    """One block's sums (m, d), weights, costs and numbers of rows (m,) at the leaves of a tree."""
    m, d = centers.shape
    sums, sizes, costs, counts = np.zeros((m, d)), np.zeros(m), np.zeros(m), np.zeros(m, np.int64)
    for piece in Nearest(space, centers, descent).assigned(block.X):
        w = block.w[piece.rows]
        add_sums(sums, piece, w)
        sizes += np.bincount(piece.labels, w, m)
        costs += np.bincount(piece.labels, w * space.distance(piece.squared), m)
        counts += np.bincount(piece.labels[w > 0], minlength=m)
    return sums, sizes, costs, counts


def stretch(
    block: Block, space: Space, centers: np.ndarray, descent: Descent, directions: np.ndarray
) -> tuple[Any, ...]:
    """One block's step of the power method at each leaf: scatter matrix times direction, (m, d)."""
    m, d = centers.shape
    C = centers - space.origin
    stretched, total = np.zeros((m, d)), np.zeros(m)
    for piece in Nearest(space, centers, descent).assigned(block.X):
        along = (piece.placed @ directions.T)[np.arange(len(piece.labels)), piece.labels]
        along = along - np.einsum("ij,ij->i", C, directions)[piece.labels]
        weights = block.w[piece.rows] * along
        add_sums(stretched, piece, weights)
        total += np.bincount(piece.labels, weights, m)
    return (stretched - total[:, None] * C,)
