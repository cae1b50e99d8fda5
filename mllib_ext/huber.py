r"""The Huber objective with concomitant scale (Huber 1981; Owen 2007), distributed over blocks.

.. math::

    F(\beta, b, \sigma) = \frac1{2W} \sum_i w_i \Big[ \sigma
    + H_\epsilon \Big( \frac{x_i \cdot \beta + b - y_i}{\sigma} \Big) \sigma \Big] + P(\beta),
    \qquad
    H_\epsilon(z) = \begin{cases} z^2 & |z| < \epsilon \\
    2 \epsilon |z| - \epsilon^2 & \text{else} \end{cases}

with :math:`W = \sum_i w_i`: that of pyspark.ml's ``LinearRegression(loss="huber")``, and of
scikit-learn's ``HuberRegressor`` with ``alpha`` = :math:`W \lambda`. It is convex in all of
:math:`(\beta, b, \sigma)`, :math:`\sigma > 0`. Rows within :math:`\epsilon \sigma` count as
squares, those beyond by their distance: an outlier's pull has an end.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np

from mllib_ext.blockfile import Block
from mllib_ext.compact import Symmetric
from mllib_ext.moments import weighted_gram
from mllib_ext.objective import (
    CURVATURE_PARAMETERS,
    Coordinates,
    Sums,
    margins,
    sampling,
    transposed_product,
    with_average_diagonal,
)
from mllib_ext.penalties import L2, L1Box

# The least scale, scikit-learn's: where every row is fitted, the minimum is at 0.
SMALLEST = 10 * np.finfo(np.float64).eps


@final
@dataclass(frozen=True)
class Huber:
    """Value and derivatives by flat parameters: those of the coordinates, and the scale last.

    Defined for a scale above 0: for minimizers that keep to :attr:`nonsmooth`.

    Attributes
    ----------
    blocks : Sums
    coordinates : Coordinates
        Of one output.
    penalty : L2
        On the standardised coefficients.
    epsilon : float
        Above 1, or the scale would grow less than the outliers that it would have to cover.
    precision : float
        Relative rounding error of a value.
    """

    blocks: Sums
    coordinates: Coordinates
    penalty: L2
    epsilon: float = 1.35
    precision: float = 1e-14

    @property
    def nonsmooth(self) -> L1Box:
        """The bound of the scale."""
        free = np.append(np.full(len(self.coordinates.zeros()), -np.inf), SMALLEST)
        return L1Box(0.0, np.zeros(len(free)), free, np.full(len(free), np.inf))

    def regularized(self, strength: float) -> Huber:
        """This objective with another strength of its penalty."""
        return replace(self, penalty=replace(self.penalty, strength=strength))

    def start(self, intercept: float, sigma: float) -> np.ndarray:
        """Flat parameters without coefficients.

        The label's mean and deviation serve: from a scale far below the residuals every row looks
        like an outlier, and nothing curves.
        """
        v = np.append(self.coordinates.zeros(), sigma)
        if self.coordinates.fit_intercept:
            v[-2] = intercept
        return v

    def to_data(self, v: np.ndarray) -> tuple[np.ndarray, Any, float]:
        """Coefficients and intercept for the data as it is, and the scale."""
        return *self.coordinates.to_data(v[:-1]), float(v[-1])

    def value_and_gradient(self, v: np.ndarray) -> tuple[float, np.ndarray]:
        """``F(v)`` and its gradient: one round."""
        stage = partial(value_and_gradient, self.epsilon)
        return self._penalised(v, *self.blocks.sum(stage, *self.to_data(v)))

    def value_gradient_hessian(self, v: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """``F(v)``, its gradient and its exact Hessian: one round."""
        return self._second_order(v, every=1)

    def value_gradient_curvature(
        self, v: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray | None]:
        """As in :class:`~mllib_ext.objective.Objective`: the Hessian from a sample of the rows."""
        if len(v) > CURVATURE_PARAMETERS:
            return *self.value_and_gradient(v), None
        every = sampling(self.blocks, len(v))
        value, gradient, H = self._second_order(v, every)
        return value, gradient, H if every == 1 else with_average_diagonal(H)

    def along(
        self, v: np.ndarray, p: np.ndarray, steps: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """``F(v + t p)`` and its slope by t for every t of ``steps`` (s,): one round for all."""
        stage = partial(along, self.epsilon)
        values, slopes = self.blocks.sum(stage, *self.to_data(v), *self.to_data(p), steps)
        values, slopes = values / self.blocks.weight_sum, slopes / self.blocks.weight_sum
        p_coef = self.coordinates.split(p[:-1])[0]
        for i, t in enumerate(steps):
            coef = self.coordinates.split((v + t * p)[:-1])[0]
            values[i] += self.penalty.value(coef)
            slopes[i] += self.penalty.gradient(coef) @ p_coef
        return values, slopes

    def _second_order(self, v: np.ndarray, every: int) -> tuple[float, np.ndarray, np.ndarray]:
        stage = partial(value_gradient_hessian, self.epsilon)
        *first, inner, by_coef, by_intercept, by_scale = self.blocks.sum(
            stage, *self.to_data(v), every
        )
        H = np.empty((len(v), len(v)))
        H[:-1, :-1] = self.coordinates.pull_back_hessian(inner)
        H[:-1, -1] = H[-1, :-1] = self.coordinates.pull_back(by_coef, by_intercept)
        H[-1, -1] = by_scale
        H /= self.blocks.weight_sum
        coefs = np.arange(len(self.coordinates.mean))
        H[coefs, coefs] += self.penalty.curvature()
        return *self._penalised(v, *first), H

    def _penalised(
        self, v: np.ndarray, value: float, by_coef: np.ndarray, by_intercept: Any, by_scale: float
    ) -> tuple[float, np.ndarray]:
        """Means of the sums over all rows, plus the penalty."""
        W = self.blocks.weight_sum
        gradient = np.append(self.coordinates.pull_back(by_coef, by_intercept), by_scale) / W
        coef = self.coordinates.split(v[:-1])[0]
        gradient[: len(coef)] += self.penalty.gradient(coef)
        return float(value) / W + self.penalty.value(coef), gradient


# --- stages: one block's share, in the data's coordinates ----------------------------------------


def losses(epsilon: float, r: np.ndarray, sigma: float) -> tuple[np.ndarray, ...]:
    """Of residuals (n,): the loss, its slopes by the residual and by the scale, and what is within.

    All of shape (n,); the last is boolean.
    """
    z = r / sigma
    within = np.abs(z) < epsilon
    capped = np.clip(z, -epsilon, epsilon)
    # z**2 and 2 epsilon |z| - epsilon**2 are both c (2 z - c) for the capped c.
    value = 0.5 * sigma * (1.0 + capped * (2.0 * z - capped))
    return value, capped, 0.5 * (1.0 - capped * capped), within


def value_and_gradient(
    epsilon: float, block: Block, coef: np.ndarray, intercept: Any, sigma: float
) -> tuple[Any, ...]:
    """Sums over the block's rows: loss (), gradient by coef (d,), by intercept, by scale."""
    r = margins(block, coef, intercept) - block.y
    value, by_residual, by_scale, _ = losses(epsilon, r, sigma)
    by_coef, by_intercept = _products(block, by_residual * block.w)
    return value @ block.w, by_coef, by_intercept, by_scale @ block.w


def value_gradient_hessian(
    epsilon: float, block: Block, coef: np.ndarray, intercept: Any, sigma: float, every: int = 1
) -> tuple[Any, ...]:
    """As :func:`value_and_gradient`, and the Hessian from each so manieth row, weighted for all.

    Its parts: by coefficients and intercept twice (d + 1, 1, d + 1, 1), the intercept last; by
    these and the scale (d,) and (); by the scale twice ().
    """
    r = margins(block, coef, intercept) - block.y
    value, by_residual, by_scale, within = losses(epsilon, r, sigma)
    first = _products(block, by_residual * block.w)
    sums = value @ block.w, *first, by_scale @ block.w
    if every > 1:
        w = block.w[::every] * (block.n / len(block.w[::every]))
        block, r, within = replace(block, X=block.X[::every], w=w), r[::every], within[::every]
    curvature = np.where(within, 1.0 / sigma, 0.0) * block.w
    z = r / sigma
    d = block.X.shape[1]
    H = np.empty((d + 1, 1, d + 1, 1))
    H[:d, 0, :d, 0] = weighted_gram(block.X, curvature)
    H[:d, 0, d, 0], H[d, 0, d, 0] = _products(block, curvature)
    H[d, 0, :d, 0] = H[:d, 0, d, 0]
    inner = Symmetric(H, block.X.dtype)
    return *sums, inner, *_products(block, -curvature * z), curvature @ (z * z)


def along(
    epsilon: float,
    block: Block,
    coef: np.ndarray,
    intercept: Any,
    sigma: float,
    p_coef: np.ndarray,
    p_intercept: Any,
    p_sigma: float,
    steps: np.ndarray,
) -> tuple[Any, ...]:
    """Loss and its slope at every step (s,) from one product of the rows with both vectors."""
    both = margins(block, np.stack([coef, p_coef], axis=-1), 0.0)  # (n, 2)
    r, dr = both[:, 0] + intercept - block.y, both[:, 1] + p_intercept
    values, slopes = np.empty(len(steps)), np.empty(len(steps))
    for i, t in enumerate(steps):
        value, by_residual, by_scale, _ = losses(epsilon, r + t * dr, sigma + t * p_sigma)
        values[i] = value @ block.w
        slopes[i] = (by_residual * dr + by_scale * p_sigma) @ block.w
    return values, slopes


def _products(block: Block, r: np.ndarray) -> tuple[Any, float]:
    """``X.T @ r``, and the sum of ``r``: what goes with the intercept."""
    return transposed_product(block, r), float(r.sum())
