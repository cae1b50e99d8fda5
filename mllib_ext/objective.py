r"""The objective of a linear predictor, distributed over blocks.

.. math::

    F(\beta, b) = \frac1W \sum_i w_i \, \ell(y_i, x_i \cdot \beta + b) + P(\beta),
    \qquad W = \sum_i w_i

A partition adds up its rows' losses and gradients in the data's own coordinates; the driver
divides, standardises and adds the penalty. Optimizers see one flat vector of parameters and the
callables of :class:`Objective`: standardisation is a linear map that they never meet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from mllib_ext.blockfile import Block
from mllib_ext.compact import Symmetric
from mllib_ext.losses import Loss
from mllib_ext.moments import weighted_gram
from mllib_ext.penalties import L2, L1Box

# Up to so many parameters a sampled Hessian is formed where it is worth a few gradients: its
# Cholesky factor takes the driver 20 ms.
CURVATURE_PARAMETERS = 1024
SAMPLED_ROWS = 200  # for each parameter: a sampled Hessian is then off by about 1 / sqrt(200)
# Where a round has no latency, a few more of them cost less than their Hessians: of a9a's 20 ms a
# round 19 go into the exact one.
SAMPLED_ROWS_ON_DRIVER = 50


class Sums(Protocol):
    """What an objective needs of a data set; :class:`mllib_ext.blocks.Blocks` is one."""

    @property
    def n_rows(self) -> int: ...

    @property
    def weight_sum(self) -> float: ...

    @property
    def on_driver(self) -> bool: ...

    def sum(self, stage: Any, *parameters: Any) -> tuple[Any, ...]: ...


@dataclass(frozen=True)
class Coordinates:
    r"""Standardised parameters :math:`v_j = s_j \beta_j` and the intercept at the mean row.

    Centring and scaling are done to the parameters instead of the data: nothing is copied and
    sparse rows stay sparse. A feature of scale 0 (a constant) keeps a coefficient of 0.

    Attributes
    ----------
    mean : ndarray, shape (d,)
        Zeros without an intercept, which could not make up for a shift.
    scale : ndarray, shape (d,)
    n_outputs : int
        Margins of a row, k.
    fit_intercept : bool
    """

    mean: np.ndarray
    scale: np.ndarray
    n_outputs: int
    fit_intercept: bool

    @property
    def inverse(self) -> np.ndarray:
        return np.divide(1.0, self.scale, out=np.zeros_like(self.scale), where=self.scale > 0)

    def zeros(self) -> np.ndarray:
        """Flat parameters of 0: d * k coefficients, class by class in a feature, k intercepts."""
        return np.zeros((len(self.mean) + self.fit_intercept) * self.n_outputs)

    def split(self, v: np.ndarray) -> tuple[np.ndarray, Any]:
        """Flat parameters as coefficients (d,) or (d, k) and intercepts () or (k,)."""
        size = len(self.mean) * self.n_outputs
        if self.n_outputs == 1:
            return v[:size], v[size] if self.fit_intercept else 0.0
        coef = v[:size].reshape(-1, self.n_outputs)
        return coef, v[size:] if self.fit_intercept else np.zeros(self.n_outputs)

    def to_data(self, v: np.ndarray) -> tuple[np.ndarray, Any]:
        """Coefficients and intercepts for the data as it is."""
        scaled, at_mean = self.split(v)
        coef = (self.inverse * scaled.T).T
        return coef, at_mean - self.mean @ coef if self.fit_intercept else at_mean

    def pull_back(self, by_coef: np.ndarray, by_intercept: Any) -> np.ndarray:
        """A gradient by the data's coefficients and intercepts as one by the flat parameters."""
        centred = by_coef - (np.multiply.outer(self.mean, by_intercept))
        scaled = (self.inverse * centred.T).T.ravel()
        return np.append(scaled, by_intercept) if self.fit_intercept else scaled

    def pull_back_hessian(self, H: np.ndarray) -> np.ndarray:
        """The same for a Hessian (d + 1, k, d + 1, k), its last row and column the intercepts'."""
        d, k = len(self.mean), self.n_outputs
        size = d * k
        if not self.fit_intercept:
            return self._scaled(H[:d, :, :d]).reshape(size, size)
        m = self.mean[:, None, None, None]
        H[:d] -= m * H[d]  # rows, then columns: what moves a coefficient moves the mean row too
        H[:, :, :d] -= self.mean[:, None] * H[:, :, d, None]
        scaled = np.empty((size + k, size + k))
        scaled[:size, :size] = self._scaled(H[:d, :, :d]).reshape(size, size)
        scaled[:size, size:] = (self.inverse[:, None, None] * H[:d, :, d]).reshape(size, k)
        scaled[size:, :size] = scaled[:size, size:].T
        scaled[size:, size:] = H[d, :, d]
        return scaled

    def pull_back_diagonal(self, parts: np.ndarray) -> np.ndarray:
        """The diagonal of a Hessian, from sums (3, d, k) of curvature times x squared, x and 1."""
        m = self.mean[:, None]
        about_mean = parts[0] - 2 * m * parts[1] + m * m * parts[2]
        diagonal = (np.square(self.inverse)[:, None] * about_mean).ravel()
        return np.append(diagonal, parts[2, 0]) if self.fit_intercept else diagonal

    def _scaled(self, H: np.ndarray) -> np.ndarray:
        return self.inverse[:, None, None, None] * H * self.inverse[:, None]


@dataclass(frozen=True)
class Shifted:
    """A data set whose rows are seen from another origin: every stage gets ``X - origin``.

    For dense features far from 0: sums about 0 would cancel the digits that tell rows apart.

    Attributes
    ----------
    blocks : Sums
    origin : ndarray, shape (d,)
        In the precision of the features.
    """

    blocks: Sums
    origin: np.ndarray

    @property
    def n_rows(self) -> int:
        return self.blocks.n_rows

    @property
    def weight_sum(self) -> float:
        return self.blocks.weight_sum

    @property
    def on_driver(self) -> bool:
        return self.blocks.on_driver

    def sum(self, stage: Any, *parameters: Any) -> tuple[Any, ...]:
        return self.blocks.sum(partial(shifted, stage), self.origin, *parameters)


@dataclass(frozen=True)
class Objective:
    """Value and derivatives of a penalised mean loss by flat standardised parameters.

    Attributes
    ----------
    blocks : Sums
    loss : Loss
    coordinates : Coordinates
    penalty : L2
        On the standardised coefficients.
    precision : float
        Relative rounding error of a value: what a line search may not take for a rise.
    nonsmooth : L1Box or None
        On all flat parameters. Left to the minimizer: values and gradients are of the rest.
    """

    blocks: Sums
    loss: Loss
    coordinates: Coordinates
    penalty: L2
    precision: float = 1e-14
    nonsmooth: L1Box | None = None

    def regularized(self, strength: float) -> Objective:
        """This objective with another strength of its penalties."""
        nonsmooth = self.nonsmooth and replace(self.nonsmooth, strength=strength)
        return replace(self, penalty=replace(self.penalty, strength=strength), nonsmooth=nonsmooth)

    def value_and_gradient(self, v: np.ndarray) -> tuple[float, np.ndarray]:
        """``F(v)`` and its gradient: one round."""
        stage = partial(value_and_gradient, self.loss)
        value, by_coef, by_intercept = self.blocks.sum(stage, *self.coordinates.to_data(v))
        return self._penalised(v, value, by_coef, by_intercept)

    def hessian(self, v: np.ndarray) -> np.ndarray:
        """The Hessian of ``F`` at ``v``: one round."""
        return self.value_gradient_hessian(v)[2]

    def value_gradient_hessian(self, v: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """``F(v)``, its gradient and its exact Hessian: one round."""
        stage = partial(value_gradient_hessian, self.loss)
        *sums, H = self.blocks.sum(stage, *self.coordinates.to_data(v))
        return *self._penalised(v, *sums), self._curved(self.coordinates.pull_back_hessian(H))

    def value_gradient_curvature(
        self, v: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray | None]:
        """``F(v)``, its gradient, and its Hessian from a sample of the rows: one round.

        The sample is every m-th row of a block, as many for each parameter as :func:`sampling`
        says. What it
        may miss are features that few rows have. In sparse rows the diagonal is therefore that of
        all rows where the sample's falls short (9 rounds in place of 25 on a9a four times over);
        in dense ones an entry far below the others counts as an average one.
        None in place of a Hessian for more than :data:`CURVATURE_PARAMETERS`.
        """
        if len(v) > CURVATURE_PARAMETERS:
            return *self.value_and_gradient(v), None
        every = sampling(self.blocks, len(v))
        if every == 1:
            return self.value_gradient_hessian(v)
        stage = partial(value_gradient_curvature, self.loss)
        here = self.coordinates.to_data(v)
        *sums, H, whole = self.blocks.sum(stage, *here, every)
        H = self.coordinates.pull_back_hessian(H)
        if np.isnan(whole).any():
            H = with_average_diagonal(H)
        else:
            whole = self.coordinates.pull_back_diagonal(whole)
            H[np.diag_indices(len(v))] = np.maximum(H.diagonal(), whole)
        return *self._penalised(v, *sums), self._curved(H)

    def _curved(self, H: np.ndarray) -> np.ndarray:
        """The Hessian of the mean, with that of the penalty."""
        return curved(H, self.blocks.weight_sum, self.penalty, self.coordinates.n_outputs)

    @property
    def groups(self) -> np.ndarray | None:
        """The output of each parameter (size,), if no two outputs meet in the Hessian."""
        k = self.coordinates.n_outputs
        if k == 1 or not self.loss.apart:
            return None
        return np.arange(len(self.coordinates.zeros())) % k

    def hvp(self, v: np.ndarray, p: np.ndarray) -> np.ndarray:
        """The Hessian at ``v`` times ``p``, without the Hessian: one round."""
        stage = partial(hessian_product, self.loss)
        here, there = self.coordinates.to_data(v), self.coordinates.to_data(p)
        by_coef, by_intercept = self.blocks.sum(stage, *here, *there)
        curved = self.coordinates.pull_back(by_coef, by_intercept) / self.blocks.weight_sum
        curved[: self._n_coef] += self.penalty.gradient(self.coordinates.split(p)[0]).ravel()
        return curved

    def along(
        self, v: np.ndarray, p: np.ndarray, steps: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """``F(v + t p)`` and its slope by t for every t of ``steps`` (s,): one round for all."""
        stage = partial(along, self.loss)
        here, there = self.coordinates.to_data(v), self.coordinates.to_data(p)
        values, slopes = self.blocks.sum(stage, *here, *there, steps)
        values, slopes = values / self.blocks.weight_sum, slopes / self.blocks.weight_sum
        p_coef = self.coordinates.split(p)[0]
        for i, t in enumerate(steps):
            coef = self.coordinates.split(v + t * p)[0]
            values[i] += self.penalty.value(coef)
            slopes[i] += np.sum(self.penalty.gradient(coef) * p_coef)
        return values, slopes

    @property
    def _n_coef(self) -> int:
        return self.penalty.scale.size * self.coordinates.n_outputs

    def _penalised(
        self, v: np.ndarray, value: float, by_coef: np.ndarray, by_intercept: Any
    ) -> tuple[float, np.ndarray]:
        """Means of the sums over all rows, plus the penalty."""
        W = self.blocks.weight_sum
        gradient = self.coordinates.pull_back(by_coef, by_intercept) / W
        coef = self.coordinates.split(v)[0]
        gradient[: self._n_coef] += self.penalty.gradient(coef).ravel()
        return float(value) / W + self.penalty.value(coef), gradient


def curved(H: np.ndarray, weight_sum: float, penalty: L2, n_outputs: int) -> np.ndarray:
    """The Hessian of a mean from that of the sum, with that of the penalty."""
    H /= weight_sum
    coefs = np.arange(penalty.scale.size * n_outputs)
    H[coefs, coefs] += np.repeat(penalty.curvature(), n_outputs)
    return H


def sampling(blocks: Sums, n_parameters: int) -> int:
    """Each so manieth row makes the sample of a Hessian."""
    rows = SAMPLED_ROWS_ON_DRIVER if blocks.on_driver else SAMPLED_ROWS
    return max(1, blocks.n_rows // (rows * n_parameters))


def with_average_diagonal(H: np.ndarray) -> np.ndarray:
    """A sampled Hessian in which a parameter that it hardly meets counts as an average one."""
    diagonal = H.diagonal()
    mean = diagonal.mean()
    H[np.diag_indices(len(H))] = np.where(diagonal < 0.3 * mean, mean, diagonal)
    return H


# --- stages: one block's share, in the data's coordinates ----------------------------------------


def shifted(stage: Any, block: Block, origin: np.ndarray, *parameters: Any) -> Any:
    """A stage applied to the block about another origin."""
    return stage(replace(block, X=block.X - origin), *parameters)


def margins(block: Block, coef: np.ndarray, intercept: Any) -> np.ndarray:
    """``X @ coef + intercept`` as float64, (n,) or (n, k); the product in the block's precision."""
    z: np.ndarray = block.X @ coef.astype(block.X.dtype, copy=False)
    return z.astype(np.float64, copy=False) + intercept


def value_and_gradient(
    loss: Loss, block: Block, coef: np.ndarray, intercept: Any
) -> tuple[Any, ...]:
    """Sums over the block's rows: loss (), gradient by coef (d,) or (d, k), by intercept."""
    return _first_order(loss, block, margins(block, coef, intercept))


def value_gradient_hessian(
    loss: Loss, block: Block, coef: np.ndarray, intercept: Any
) -> tuple[Any, ...]:
    """As :func:`value_and_gradient`, and the Hessian (d + 1, k, d + 1, k), intercepts last."""
    z = margins(block, coef, intercept)
    return *_first_order(loss, block, z), weighted_hessian(block, _curvature(loss, block, z))


def value_gradient_curvature(
    loss: Loss, block: Block, coef: np.ndarray, intercept: Any, every: int
) -> tuple[Any, ...]:
    """As :func:`value_gradient_hessian`, with the Hessian of a sample of the rows.

    The sample is each so manieth row, weighted for all. Besides, from all rows of a CSR block
    (NaN for a dense one), sums (3, d, k) of curvature times x squared, x and 1.
    """
    z = margins(block, coef, intercept)
    sums = _first_order(loss, block, z)
    w = block.w[::every] * (block.n / len(block.w[::every]))
    sample = replace(block, X=block.X[::every], y=block.y[::every], w=w)
    H = weighted_hessian(sample, _curvature(loss, sample, z[::every]))
    d, k = block.X.shape[1], H.array.shape[1]
    whole = np.full((3, d, k), np.nan)
    if not isinstance(block.X, np.ndarray):  # a pass over what is stored, which is little
        c = _curvature(loss, block, z)
        c = np.einsum("njj->nj", c) if c.ndim == 3 else c
        squared = replace(block, X=block.X.power(2))
        whole[0], whole[1] = transposed_product(squared, c), transposed_product(block, c)
        whole[2] = c.sum(axis=0)
    return *sums, H, whole


def _first_order(loss: Loss, block: Block, z: np.ndarray) -> tuple[Any, ...]:
    """Sums as of :func:`value_and_gradient`, at margins that are known."""
    value, residual = loss.value_and_gradient(block.y, z)
    residual = (residual.T * block.w).T
    return value @ block.w, transposed_product(block, residual), residual.sum(axis=0)


def _curvature(loss: Loss, block: Block, z: np.ndarray) -> np.ndarray:
    """Of every row by its margins (n, k, k), or (n, k) if diagonal, times its weight."""
    curvature = (loss.curvature(block.y, z).T * block.w).T
    return curvature[:, None] if curvature.ndim == 1 else curvature


def weighted_hessian(block: Block, curvature: np.ndarray) -> Symmetric:
    """``X' C X`` with a column of ones in X, (d + 1, k, d + 1, k), for C of the rows."""
    d, k = block.X.shape[1], curvature.shape[1]
    H = np.zeros((d + 1, k, d + 1, k))
    for i in range(k):
        for j in range(i, k if curvature.ndim == 3 else i + 1):
            c = curvature[:, i, j] if curvature.ndim == 3 else curvature[:, i]
            # A curvature between two classes is negative or 0, of one class positive or 0.
            H[:d, i, :d, j] = weighted_gram(block.X, c) if i == j else -weighted_gram(block.X, -c)
            H[:d, i, d, j] = H[d, i, :d, j] = transposed_product(block, c)
            H[d, i, d, j] = c.sum()
            if i != j:
                H[:, j, :, i] = H[:, i, :, j]  # both are symmetric
    return Symmetric(H, block.X.dtype)


def hessian_product(
    loss: Loss, block: Block, coef: np.ndarray, intercept: Any, p_coef: np.ndarray, p_intercept: Any
) -> tuple[Any, ...]:
    """Hessian times direction, by coef (d,) or (d, k) and by intercept."""
    curvature = loss.curvature(block.y, margins(block, coef, intercept))
    dz = margins(block, p_coef, p_intercept)
    diagonal = curvature.ndim == dz.ndim
    curved = curvature * dz if diagonal else np.einsum("nij,nj->ni", curvature, dz)
    curved = (curved.T * block.w).T
    return transposed_product(block, curved), curved.sum(axis=0)


def along(
    loss: Loss,
    block: Block,
    coef: np.ndarray,
    intercept: Any,
    p_coef: np.ndarray,
    p_intercept: Any,
    steps: np.ndarray,
) -> tuple[Any, ...]:
    """Loss and its slope at every step (s,) from one product of the rows with both vectors."""
    both = margins(block, np.stack([coef, p_coef], axis=-1).reshape(len(coef), -1), 0.0).reshape(
        block.n, *coef.shape[1:], 2
    )
    z, dz = both[..., 0] + intercept, both[..., 1] + p_intercept
    values, slopes = np.empty(len(steps)), np.empty(len(steps))
    for i, t in enumerate(steps):
        value, residual = loss.value_and_gradient(block.y, z + t * dz)
        values[i] = value @ block.w
        slopes[i] = np.sum((residual * dz).T * block.w)
    return values, slopes


def transposed_product(block: Block, r: np.ndarray) -> Any:
    """``X.T @ r`` in the block's precision, (d,) or (d, k); of a wide sparse block scattered."""
    return block.widened(block.narrow.T @ r.astype(block.X.dtype, copy=False))
