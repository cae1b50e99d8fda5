r"""Platt's sigmoids: probabilities from the scores of a classifier.

.. math::

    p(f) = \frac1{1 + e^{A f + B}}, \qquad
    \min_{A, B} - \sum_i w_i [t_i \log p(f_i) + (1 - t_i) \log(1 - p(f_i))]

with the targets :math:`t = (N_+ + 1) / (N_+ + 2)` of the class and :math:`1 / (N_- + 2)` of the
others, N being summed weights (Platt 1999), by Newton's method with logarithms that do not cancel
(Lin, Lin & Weng 2007). More than two classes have one sigmoid each, all fitted in the same rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import expit

from mllib_ext.blockfile import Block
from mllib_ext.blocks import Blocks
from mllib_ext.classes import weight_of_labels
from mllib_ext.columns import Matrix
from mllib_ext.distances import dense_rows
from mllib_ext.moments import moments
from mllib_ext.optimizers import newton
from mllib_ext.optimizers.smooth import SmoothSettings, minimize

SETTINGS = SmoothSettings(max_iter=100, tol=1e-12)


def scores(raw: Matrix) -> np.ndarray:
    """What is calibrated, (n, c), of raw predictions (n, k): one score of two classes, or k.

    Of two classes half the difference: f of the (-f, f) of most classifiers, and right also for
    votes and log likelihoods.
    """
    raw = dense_rows(raw)
    if raw.shape[1] != 2:
        return raw
    half: np.ndarray = 0.5 * (raw[:, 1:] - raw[:, :1])
    return half


def positives(y: np.ndarray, n_scores: int) -> np.ndarray:
    """Whether rows are of the class of each score, (n, c)."""
    return y[:, None] == (np.arange(n_scores) if n_scores > 1 else 1)


def overview(block: Block) -> tuple[Any, ...]:
    """One block's labels, the weight of each, and moments of the scores."""
    scored = replace(block, X=scores(block.X), columns=None, places=None)
    return *weight_of_labels(block.y, block.w), *moments(scored)


def fit_sigmoids(
    blocks: Blocks, class_weights: np.ndarray, mean: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    """A and B of each score's sigmoid, (c, 2).

    Parameters
    ----------
    blocks : Blocks
        Raw predictions and labels.
    class_weights : ndarray, shape (c,)
        Summed weights of the class of each score.
    mean, spread : ndarray, shape (c,)
        Of the scores, which are scaled by them for the sake of rounding.
    """
    total = blocks.weight_sum
    spread = np.where(spread > 0, spread, 1.0)
    others = total - class_weights
    high, low = (class_weights + 1) / (class_weights + 2), 1 / (others + 2)
    objective = Sigmoids(blocks, mean, spread, low, high)
    start = np.concatenate([np.zeros(len(mean)), np.log((class_weights + 1) / (others + 1))])
    v = minimize(newton, lambda _: objective, start, SETTINGS, drain=blocks.drain).state.v
    slope, offset = np.split(v, 2)
    slope = slope / spread
    return np.column_stack([-slope, slope * mean - offset])


@dataclass(frozen=True)
class Sigmoids:
    """The mean loss of c sigmoids of the scaled scores; parameters are c slopes, then c offsets."""

    blocks: Blocks
    mean: np.ndarray
    spread: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def precision(self) -> float:
        """Rounding of the value, relative to it."""
        return 1e-14

    def value_and_gradient(self, v: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss and its gradient (2 c,)."""
        return self.value_gradient_hessian(v)[:2]

    def value_gradient_hessian(self, v: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The loss, its gradient (2 c,) and Hessian (2 c, 2 c): one round."""
        value, gradient, curvature = self.blocks.sum(shares, *self._scale, v)
        total, c = self.blocks.weight_sum, len(self.mean)
        hessian = np.zeros((2 * c, 2 * c))
        slope, offset = np.arange(c), np.arange(c, 2 * c)
        hessian[slope, slope] += curvature[0] / total
        hessian[offset, offset] += curvature[2] / total
        hessian[slope, offset] = hessian[offset, slope] = curvature[1] / total
        return float(value) / total, gradient / total, hessian

    def value_gradient_curvature(
        self, v: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray | None]:
        """As :meth:`value_gradient_hessian`: the curvature is that of all rows."""
        return self.value_gradient_hessian(v)

    def along(
        self, v: np.ndarray, p: np.ndarray, steps: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The loss at ``v + t p`` and its slope by t for every t of ``steps`` (s,): one round."""
        values, slopes = self.blocks.sum(along, *self._scale, v, p, steps)
        return values / self.blocks.weight_sum, slopes / self.blocks.weight_sum

    @property
    def _scale(self) -> tuple[np.ndarray, ...]:
        return self.mean, self.spread, self.low, self.high


def shares(
    block: Block,
    mean: np.ndarray,
    spread: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    v: np.ndarray,
) -> tuple[Any, ...]:
    """One block's loss (), gradient (2 c,) and curvature (3, c) by slopes, both, offsets."""
    f, t = _scaled(block, mean, spread, low, high)
    slope, offset = np.split(v, 2)
    z = slope * f + offset
    p = expit(z)
    residual = block.w[:, None] * (p - t)
    curved = block.w[:, None] * p * (1 - p)
    value = block.w @ (np.logaddexp(0.0, z) - t * z).sum(axis=1)
    gradient = np.concatenate([(residual * f).sum(axis=0), residual.sum(axis=0)])
    cf = curved * f
    return value, gradient, np.stack([(cf * f).sum(axis=0), cf.sum(axis=0), curved.sum(axis=0)])


def along(
    block: Block,
    mean: np.ndarray,
    spread: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    v: np.ndarray,
    p: np.ndarray,
    steps: np.ndarray,
) -> tuple[Any, ...]:
    """One block's loss and its slope at every step, (s,) each."""
    points = [shares(block, mean, spread, low, high, v + step * p) for step in steps]
    return np.array([q[0] for q in points]), np.array([q[1] @ p for q in points])


def _scaled(
    block: Block, mean: np.ndarray, spread: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scaled scores and targets, (n, c) each."""
    f = (scores(block.X) - mean) / spread
    return f, np.where(positives(block.y, len(mean)), high, low)


def normalised(P: np.ndarray) -> np.ndarray:
    """Probabilities (n, k) of calibrated ones (n, c): of two classes both, of more by their sum.

    Rows that no class wants have uniform ones, as in scikit-learn.
    """
    if P.shape[1] == 1:
        return np.hstack([1.0 - P, P])
    total = P.sum(axis=1, keepdims=True)
    return np.divide(P, total, out=np.full_like(P, 1.0 / P.shape[1]), where=total > 0)
