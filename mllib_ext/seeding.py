r"""Where k-means starts: ``k-means||`` (Bahmani et al. 2012) or random rows.

``k-means||`` oversamples: each of a few rounds draws rows with probabilities in proportion to

.. math:: w_i \min_{c \in C} \mathrm{dist}(x_i, c)

and adds them to the candidates C; each candidate then weighs as much as the rows that are nearest
to it, and k-means on these few weighted rows, on the driver, gives the start. Instead of tossing a
coin for every row, which needs the sum of all distances and so a round more, a round draws exactly
l rows: those of the least :math:`E_i / (w_i \, \mathrm{dist}_i)`, with exponential variates
:math:`E_i` (Efraimidis & Spirakis 2006). The origin of the space, which is near the mean of the
data, stands for the first candidate.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from mllib_ext.blas import one_thread
from mllib_ext.blockfile import Block
from mllib_ext.columns import Matrix, stacked
from mllib_ext.distances import dense_rows
from mllib_ext.lloyd import Rounds, means, share, statistics
from mllib_ext.nearest import distances
from mllib_ext.partials import Walk
from mllib_ext.space import Space

# Candidates of a round for each center, as in pyspark.ml, and what few centers are given beside:
# with them a small data set is nearly all candidates, and clusters of few rows are met.
OVERSAMPLING, MORE_CANDIDATES = 2, 100
# Starts that are tried on the candidates, fewer where a sweep over them takes many distances: all
# together take the driver 0.05 to 0.5 s, from 10 to 1,000 centers (measured).
RESTARTS, RESTART_DISTANCES = 25, 1 << 20
# Of Lloyd's algorithm on the candidates, as in pyspark.ml.
CANDIDATE_ROUNDS = 30


def random_rows(rounds: Rounds, space: Space, k: int, seed: list[int]) -> np.ndarray:
    """Rows drawn without replacement in proportion to their weights, (k, d), float64.

    Rows may be equal; where there are fewer than k, some are repeated.
    """
    rows = dense_rows(drawn_rows(rounds, k, seed)).astype(np.float64)
    return np.resize(rows, (k, rows.shape[1]))


def drawn_rows(rounds: Rounds, k: int, seed: list[int]) -> Matrix:
    """Rows drawn without replacement in proportion to their weights: (k, d), or all if fewer.

    As the blocks have them, dense or CSR.
    """
    rows: Matrix = rounds.reduce(partial(_draw, k, seed), partial(_least, k), None, None)[1]
    return rows


def k_means_parallel(
    rounds: Rounds, space: Space, k: int, steps: int, seed: list[int]
) -> np.ndarray:
    """Centers to start from, (k, d), by ``steps + 1`` rounds.

    Parameters
    ----------
    rounds : Blocks
    space : Space
    k : int
    steps : int
        Rounds that draw candidates, 1 or more.
    seed : list of int
    """
    size = OVERSAMPLING * k + MORE_CANDIDATES
    candidates = space.origin[None]
    for i in range(steps):
        draw = partial(_draw, size, [*seed, i])
        _, rows = rounds.reduce(draw, partial(_least, size), space, candidates)
        if not rows.shape[0]:  # every row is on a candidate
            break
        drawn = dense_rows(rows).astype(np.float64)
        candidates = np.concatenate([candidates, drawn]) if i else drawn
    candidates = np.unique(space.settle(candidates), axis=0)
    if len(candidates) <= k:
        return np.resize(candidates, (k, candidates.shape[1]))
    _, weights, _ = rounds.sum(Walk(share), space, candidates)
    with one_thread():
        return reduced(candidates, weights, k, space, np.random.default_rng([*seed, steps]))


def _draw(
    size: int, seed: list[int], block: Block, space: Any, candidates: np.ndarray | None
) -> tuple[np.ndarray, Matrix]:
    """One block's rows of the least keys: keys (m,), rows (m, d), m up to size.

    The chance of a row is its weight or, where there are candidates, its share of the cost.
    """
    rng = np.random.default_rng([*seed, block.partition, block.start])
    mass = block.w
    if candidates is not None:
        _, squared = distances(block.X, space, space.settle(candidates))
        mass = mass * squared
    drawn = np.flatnonzero(mass > 0)
    keys = rng.exponential(size=block.n)[drawn] / mass[drawn]
    least = np.argsort(keys, kind="stable")[:size]
    return keys[least], block.X[drawn[least]]


def _least(size: int, left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    """The rows of the least keys of both, for ``Blocks.reduce``."""
    keys, rows = np.concatenate([left[0], right[0]]), stacked([left[1], right[1]])
    least = np.argsort(keys, kind="stable")[:size]
    return keys[least], rows[least]


def reduced(
    candidates: np.ndarray, weights: np.ndarray, k: int, space: Space, rng: np.random.Generator
) -> np.ndarray:
    """The best of a few k-means of weighted rows (n, d) in memory, (k, d), n above k."""
    block = Block(candidates, np.empty(0), weights, np.empty(0))
    best, centers = np.inf, candidates[:k]
    for _ in range(int(np.clip(RESTART_DISTANCES // (len(candidates) * k), 1, RESTARTS))):
        found = plus_plus(candidates, weights, k, space, rng)
        for _ in range(CANDIDATE_ROUNDS):
            sums, sizes, cost = statistics([block], space, found)
            moved = means(space, sums, sizes, found)
            if np.array_equal(moved, found):
                break
            found = moved
        if cost < best:
            best, centers = cost, found
    return centers


def plus_plus(
    X: np.ndarray, w: np.ndarray, k: int, space: Space, rng: np.random.Generator
) -> np.ndarray:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): rows of X (n, d) as centers (k, d).

    Each center is the best of 2 + log k rows, drawn in proportion to what they cost so far.
    """
    P = space.placed(X)
    norms = np.einsum("ij,ij->i", P, P)

    def squared(rows: np.ndarray) -> np.ndarray:
        D = norms[:, None] + norms[rows] - 2 * (P @ P[rows].T)  # (n, trials)
        return np.maximum(D, 0, out=D)

    trials = 2 + int(np.log(k))
    chosen = [int(np.searchsorted(np.cumsum(w), rng.random() * w.sum(), side="right"))]
    nearest = squared(np.array(chosen))[:, 0]
    for _ in range(1, k):
        mass = np.cumsum(w * nearest)
        drawn = np.searchsorted(mass, rng.random(trials) * mass[-1], side="right")
        drawn = np.minimum(drawn, len(X) - 1)
        closer = np.minimum(nearest[:, None], squared(drawn))
        best = int((w @ closer).argmin())
        chosen.append(int(drawn[best]))
        nearest = closer[:, best]
    return space.settle(X[chosen])
