r"""The objective of a network, distributed over blocks.

.. math::

    F(\theta) = \frac1W \sum_i w_i \, \ell(y_i, z_L(x_i; \theta)) + \frac\lambda2 \sum_l \|W_l\|^2,
    \qquad W = \sum_i w_i

Optimizers see flat weights and the callables of :class:`NetworkObjective`, as they see those of
:class:`mllib_ext.objective.Objective`. Biases are not penalised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from mllib_ext.blockfile import Block
from mllib_ext.compact import dense
from mllib_ext.losses import Loss
from mllib_ext.network import ROWS, Network, margins
from mllib_ext.network import value_and_gradient as of_rows
from mllib_ext.objective import Sums
from mllib_ext.stochastic import Stochastic


@dataclass(frozen=True)
class NetworkObjective:
    """Value and gradient of a network's penalised mean loss by its flat weights.

    Attributes
    ----------
    blocks : Sums
    network : Network
    loss : Loss
    strength : float
        Of the L2 penalty on the weights, lambda.
    precision : float
        Relative rounding error of a value: what a line search may not take for a rise.
    rows : int
        Rows that pass through the layers together.
    """

    blocks: Sums
    network: Network
    loss: Loss
    strength: float = 0.0
    precision: float = 1e-14
    rows: int = ROWS

    # Margins are not linear in a step: a trial costs a gradient, and many of them as many.
    along: None = None

    def regularized(self, strength: float) -> NetworkObjective:
        """This objective with another strength of its penalty."""
        return replace(self, strength=strength)

    def value_and_gradient(self, v: np.ndarray) -> tuple[float, np.ndarray]:
        """``F(v)`` and its gradient: one round."""
        stage = partial(value_and_gradient, self.network, self.loss, self.rows)
        value, by_first, by_others = self.blocks.sum(stage, v)
        gradient = np.concatenate([by_first.ravel(), by_others]) / self.blocks.weight_sum
        value = float(value) / self.blocks.weight_sum
        parts = zip(self.network.split(gradient), self.network.split(v), strict=True)
        for (by_weights, _), (W, _) in parts:
            value += 0.5 * self.strength * float(np.vdot(W, W))
            by_weights += self.strength * W
        return value, gradient

    def value_gradient_curvature(self, v: np.ndarray) -> tuple[float, np.ndarray, None]:
        """``F(v)``, its gradient, and no Hessian: a network's has negative eigenvalues."""
        return *self.value_and_gradient(v), None


@dataclass(frozen=True)
class NetworkModel:
    """A network's loss by its flat weights, as :mod:`mllib_ext.stochastic` takes it.

    Attributes
    ----------
    network : Network
    loss : Loss
    rows : int
        Rows that pass through the layers together.
    dropout : float
        As in :func:`mllib_ext.network.value_and_gradient`.
    """

    network: Network
    loss: Loss
    rows: int = ROWS
    dropout: float = 0.0

    def __call__(
        self, block: Block, v: np.ndarray, rng: np.random.Generator | None = None
    ) -> tuple[float, np.ndarray]:
        dropout = self.dropout if rng is not None else 0.0
        if block.columns is not None:
            value, by_first, by_others = value_and_gradient(
                self.network, self.loss, self.rows, block, v, dropout, rng
            )
            return value, np.concatenate([dense(by_first).ravel(), by_others])
        gradient = np.empty(len(v), block.X.dtype)
        value, _ = of_rows(
            self.network, self.loss, _parts(self.network, block, v), block.X, block.y, block.w,
            self.rows, dropout, rng, out=self.network.split(gradient),
        )  # fmt: skip
        return value, gradient

    def value(self, block: Block, v: np.ndarray) -> float:
        """The block's summed loss, of the whole network."""
        z = margins(self.network, _parts(self.network, block, v), block.narrow, self.rows)
        z = z.astype(np.float64, copy=False)
        losses, _ = self.loss.value_and_gradient(block.y, z[:, 0] if z.shape[1] == 1 else z)
        return float(losses @ block.w)

    def over(self, blocks: Any) -> Stochastic:
        """The mean loss over all rows, and by samples of them."""
        ridge = np.zeros(self.network.n_weights)
        for W, _ in self.network.split(ridge):
            W[:] = 1.0
        matrices, place = [], 0
        for p, q in pairwise(self.network.layers):
            matrices.append((place, p, q))
            place += (p + 1) * q
        return Stochastic(blocks, self, ridge, matrices=tuple(matrices))


def value_and_gradient(
    network: Network,
    loss: Loss,
    rows: int,
    block: Block,
    v: np.ndarray,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[Any, ...]:
    """Sums over the block's rows: loss (), gradient by the first layer's weights, by all others.

    The first weights' is (d, units), of a wide sparse block scattered; the others' is flat.
    """
    parts = _parts(network, block, v)
    value, gradient = of_rows(
        network, loss, parts, block.narrow, block.y, block.w, rows, dropout, rng
    )
    (by_first, by_biases), *others = gradient
    flat = [by_biases, *(array.ravel() for part in others for array in part)]
    return value, block.widened(by_first), np.concatenate(flat)


def _parts(network: Network, block: Block, v: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The weights of every layer for the columns and in the precision of a block."""
    parts = network.split(v)
    if block.columns is not None:
        parts[0] = parts[0][0][block.columns], parts[0][1]
    dtype = block.X.dtype
    return [(W.astype(dtype, copy=False), b.astype(dtype, copy=False)) for W, b in parts]
