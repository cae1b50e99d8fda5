r"""The regularised risk of a piecewise linear loss, and its interior point, over blocks.

.. math::

    F(\beta, b) = R(\beta, b) + P(\beta), \qquad
    R(\beta, b) = \frac1W \sum_i w_i \max_j u_{ij}, \qquad u_i = u(y_i, x_i \cdot \beta + b)

Its optimum is where each row has weights :math:`a_i` of its lines, :math:`\xi_i` above them all,
and slacks :math:`t_{ij} = \xi_i - u_{ij}` with

.. math::

    \sum_i \tfrac{w_i}W \partial u_i^T a_i + \partial P = 0, \qquad
    \sum_j a_{ij} = 1, \qquad a_{ij} t_{ij} = \mu \to 0, \qquad a, t > 0

Newton's method on these equations eliminates the rows, as Ferris & Munson (2002) do, and leaves a
system in :math:`(\beta, b)` whose matrix is the Hessian of a smooth loss. The weights and slacks of
the rows belong to the partitions, and yet nobody keeps them: a round sends all points that the run
has visited, and each row replays its few numbers along their margins, which is one matrix product
and costs less than the Hessian. So a lost executor loses nothing.

Weights on the simplex are feasible for the dual whatever they are. They add up to a line below R:
a cutting plane, from which :mod:`mllib_ext.optimizers.cuts` proves how far F is from its minimum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mllib_ext.blockfile import Block
from mllib_ext.hinges import LargestLine
from mllib_ext.objective import (
    Coordinates,
    Sums,
    curved,
    margins,
    transposed_product,
    weighted_hessian,
)
from mllib_ext.penalties import L2

# In place of no penalty at all, on the standardised coefficients: what makes a bound finite. It
# divides the square of the rounding in the gradient, which is why single precision needs more.
RIDGE, RIDGE_FLOAT32 = 1e-8, 1e-6
# A row's weights go this far to the border of the simplex; its slacks keep at least the rest.
TO_BORDER = 0.9


class Cut(NamedTuple):
    """A line below the risk, for each group of outputs that depend on each other.

    Attributes
    ----------
    slopes : ndarray, shape (g, p)
        By the p coefficients of a group.
    shifts : ndarray, shape (g, q)
        By its q intercepts; q is 0 without intercepts.
    offsets : ndarray, shape (g,)
    """

    slopes: np.ndarray
    shifts: np.ndarray
    offsets: np.ndarray


class Evaluation(NamedTuple):
    """What a round tells of the last point of a path.

    Attributes
    ----------
    value : float
        F.
    cut : Cut
        By the weights of the rows.
    complementarity : float
        Mean of the products ``a t``: the mu of the rows.
    gradient, by_mu : ndarray, shape (size,)
        What Newton's system has on its right side, ``-(gradient + mu * by_mu)``, for any mu.
    hessian : ndarray, shape (size, size)
    """

    value: float
    cut: Cut
    complementarity: float
    gradient: np.ndarray
    by_mu: np.ndarray
    hessian: np.ndarray


@dataclass(frozen=True)
class Risk:
    """A regularised risk by flat standardised parameters, as its optimizers see it.

    Attributes
    ----------
    blocks : Sums
    loss : LargestLine
    coordinates : Coordinates
    penalty : L2
        On the standardised coefficients.
    intercepts : ndarray, shape (e, k)
        Intercepts so far out that, without coefficients, each row has one largest line, and that
        these lines together bound the risk from below.
    mu : float
        Of the first point: of the size of the loss there.
    precision : float
        Relative rounding error of a value.
    """

    blocks: Sums
    loss: LargestLine
    coordinates: Coordinates
    penalty: L2
    intercepts: np.ndarray
    mu: float = 1.0
    precision: float = 1e-14

    def regularized(self, strength: float) -> Risk:
        """With another strength of the penalty; a slight ridge in place of 0."""
        if strength > 0:
            return replace(self, penalty=replace(self.penalty, strength=strength))
        ridge = RIDGE if self.precision < 1e-10 else RIDGE_FLOAT32
        return replace(self, penalty=L2(ridge, np.ones_like(self.penalty.scale)))

    def evaluate(self, path: np.ndarray, mus: np.ndarray) -> Evaluation:
        """The end of a path of points (size, T), and of what ``mu`` was (T,): one round.

        ``mus[0]`` is of the first point, each other one of the step that led to its point.
        """
        k = self.coordinates.n_outputs
        stage = partial(interior_sums, self.loss)
        value, offsets, products, by_coef, by_intercept, H = self.blocks.sum(
            stage, *self._stacked(path), mus
        )
        slopes, without_mu, by_mu = self._pulled_back(by_coef, by_intercept, 3)
        W, v = self.blocks.weight_sum, path[:, -1]
        coef = self.coordinates.split(v)[0]
        ridge = np.zeros_like(v)
        ridge[: coef.size] = self.penalty.gradient(coef).ravel()
        H = self.coordinates.pull_back_hessian(H)
        return Evaluation(
            value=float(value) / W + self.penalty.value(coef),
            cut=self._cut(slopes, offsets),
            complementarity=float(products) / W,
            gradient=without_mu + ridge,
            by_mu=by_mu,
            hessian=curved(H, W, self.penalty, k),
        )

    def subgradients(self, points: np.ndarray) -> tuple[np.ndarray, list[Cut]]:
        """F at several points (size, s), and the cuts there by subgradients: one round."""
        count = points.shape[1]
        stage = partial(largest_lines, self.loss)
        stacked = self._stacked(points)
        value, offsets, by_coef, by_intercept = self.blocks.sum(stage, *stacked)
        flat = self._pulled_back(by_coef, by_intercept, count)
        penalties = [self.penalty.value(self.coordinates.split(v)[0]) for v in points.T]
        values = value / self.blocks.weight_sum + np.array(penalties)
        return values, [self._cut(flat[i], offsets[i]) for i in range(count)]

    def far_cuts(self) -> list[Cut]:
        """The cuts at :attr:`intercepts`; none without an intercept, where no bound needs them."""
        if not self.coordinates.fit_intercept:
            return []
        size = len(self.coordinates.zeros()) - self.coordinates.n_outputs
        points = np.vstack([np.zeros((size, len(self.intercepts))), self.intercepts.T])
        return self.subgradients(points)[1]

    def flat(self, coefs: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
        """Flat parameters from coefficients (g, p) and intercepts (g, q) by groups."""
        return np.append(coefs.T if self.loss.apart else coefs, intercepts)

    def curvature(self) -> np.ndarray:
        """The penalty's Hessian by the coefficients of a group, its diagonal (p,)."""
        each = self.penalty.curvature()
        return each if self.loss.apart else np.repeat(each, self.coordinates.n_outputs)

    def _stacked(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (d, k s) and intercepts (k, s) for the data, of points (size, s)."""
        pairs = [self.coordinates.to_data(v) for v in points.T]
        coefs = np.stack([coef for coef, _ in pairs], axis=-1)
        intercepts = np.stack([np.atleast_1d(b) for _, b in pairs], axis=-1)
        return coefs.reshape(len(coefs), -1), intercepts

    def _pulled_back(self, by_coef: np.ndarray, by_intercept: np.ndarray, s: int) -> np.ndarray:
        """Mean gradients (s, size), of sums by stacked coefficients (d, k s) and intercepts."""
        k, d = self.coordinates.n_outputs, len(by_coef)
        by_coef = by_coef.reshape((d, s) if k == 1 else (d, k, s))
        by_intercept = by_intercept.reshape((s,) if k == 1 else (k, s))
        flat = [self.coordinates.pull_back(by_coef[..., i], by_intercept[..., i]) for i in range(s)]
        return np.array(flat) / self.blocks.weight_sum

    def _cut(self, slopes: np.ndarray, offsets: Any) -> Cut:
        offsets = np.atleast_1d(offsets) / self.blocks.weight_sum
        k = self.coordinates.n_outputs
        size = len(self.coordinates.mean) * k
        shifts = slopes[size:]
        if self.loss.apart:
            q = int(self.coordinates.fit_intercept)
            return Cut(slopes[:size].reshape(-1, k).T, shifts.reshape(k, q), offsets)
        return Cut(slopes[None, :size], shifts[None], offsets)


# --- stages: one block's share, in the data's coordinates ----------------------------------------


def interior_sums(
    loss: LargestLine, block: Block, coefs: np.ndarray, intercepts: np.ndarray, mus: np.ndarray
) -> tuple[Any, ...]:
    """Sums over the block's rows at the end of a path of coefs (d, k T) and intercepts (k, T).

    The loss (), the lines' offsets () or (k,), the mean products ``a t`` (); by coefficients
    (d, 3 k) and by intercepts (3 k,), slopes: of the weights, and of what they become after a step
    without ``mu`` and for each unit of it; the Hessian (d + 1, k, d + 1, k).
    """
    Z = stacked_margins(block, coefs, intercepts)
    y, w = block.y, block.w
    a, t = replay(loss, y, Z, mus)
    D, inverse = a / t, 1.0 / t
    share = D / D.sum(axis=0)
    by_mu = inverse - share * inverse.sum(axis=0)
    slopes = np.stack([loss.slope(y, each) for each in (a, share, by_mu)], axis=-1)
    slopes = ((slopes.T * w).T).reshape(len(y), -1)
    curvature = (loss.curvature(D).T * w).T
    value, offsets = _value_and_offsets(loss, block, Z[..., -1], a)
    return (
        value,
        offsets,
        (a * t).reshape(len(a), len(y), -1).mean(axis=(0, 2)) @ w,
        transposed_product(block, slopes),
        slopes.sum(axis=0),
        weighted_hessian(block, curvature[:, None] if curvature.ndim == 1 else curvature),
    )


def replay(
    loss: LargestLine, y: np.ndarray, Z: np.ndarray, mus: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and slacks (J, n) or (J, n, k) of rows after margins Z (n, T) or (n, k, T).

    Each row goes as far as its own borders allow: a common step length would be that of the worst
    row, and cost a round.
    """
    u = loss.lines(y, Z[..., 0])
    a, t = central(u, mus[0])
    for i in range(1, len(mus)):
        ahead = loss.lines(y, Z[..., i])
        du = ahead - u
        D = a / t
        push = mus[i] / t - a + D * du
        rise = push.sum(axis=0) / D.sum(axis=0)  # of xi
        da = push - D * rise
        # The step that takes a weight to 0 is a / -da.
        step = np.minimum(1.0, TO_BORDER / np.maximum((-da / a).max(axis=0), 1e-300))
        # t itself is kept, as xi - u would cancel; lifted together, the slacks still differ by u.
        moved = t + rise - du
        lift = np.maximum(0.0, ((1.0 - TO_BORDER) * t - moved).max(axis=0))
        a, t, u = a + step * da, moved + lift, ahead
        a /= a.sum(axis=0)  # what is proved rests on it
    return a, t


def central(u: np.ndarray, mu: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights and slacks with ``a t = mu`` for lines ``u``."""
    below = u.max(axis=0) - u
    lift = np.full_like(below[0], mu)
    for _ in range(20):  # Newton's method from where the convex sum of mu / t - 1 is not negative
        t = lift + below
        lift = lift + ((mu / t).sum(axis=0) - 1.0) / (mu / (t * t)).sum(axis=0)
    t = lift + below
    a = mu / t
    return a / a.sum(axis=0), t


def largest_lines(
    loss: LargestLine, block: Block, coefs: np.ndarray, intercepts: np.ndarray
) -> tuple[Any, ...]:
    """Sums over the block's rows at several points, coefs (d, k s) and intercepts (k, s).

    Losses (s,), offsets (s,) or (s, k), subgradients by coefficients (d, k s) and by intercepts.
    """
    Z = stacked_margins(block, coefs, intercepts)
    values, offsets, slopes = [], [], []
    for i in range(Z.shape[-1]):
        u = loss.lines(block.y, Z[..., i])
        a = loss.largest(u)
        slopes.append((loss.slope(block.y, a).T * block.w).T)
        value, offset = _value_and_offsets(loss, block, Z[..., i], a)
        values.append(value)
        offsets.append(offset)
    flat = np.stack(slopes, axis=-1).reshape(block.n, -1)
    return np.array(values), np.array(offsets), transposed_product(block, flat), flat.sum(axis=0)


def stacked_margins(block: Block, coefs: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
    """Margins (n, s) or (n, k, s) by coefs (d, k s) and intercepts (k, s)."""
    k, s = intercepts.shape
    Z: np.ndarray = margins(block, coefs, 0.0).reshape(-1, k, s) + intercepts
    return Z[:, 0] if k == 1 else Z


def _value_and_offsets(loss: LargestLine, block: Block, z: np.ndarray, a: np.ndarray) -> Any:
    """The loss (), and at margins of 0 the lines weighted by ``a`` () or (k,)."""
    offsets = (a * loss.lines(block.y, np.zeros_like(z))).sum(axis=0)
    return loss.value(block.y, z) @ block.w, offsets.T @ block.w
