r"""Losses of a linear predictor: value, gradient and curvature, row by row.

A loss :math:`\ell(y, z)` compares a label with a margin :math:`z = x \cdot \beta + b` (a vector of
margins for several classes). Everything is computed in float64 and stays finite for any finite
margin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import numpy as np


class Loss(ABC):
    """A convex loss with a gradient, and curvature almost everywhere.

    Attributes
    ----------
    n_outputs : int
        Margins of a row: 1, or the number of classes.
    apart : bool
        It is a sum of losses of one margin each.
    """

    n_outputs: int = 1
    apart: bool = False

    @abstractmethod
    def value_and_gradient(self, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``l(y, z)``, shape (n,), and its derivative by ``z``, of the shape of ``z``."""

    @abstractmethod
    def curvature(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Second derivative by ``z``: (n,); for k margins (n, k, k), or (n, k) if diagonal."""


@final
class SquaredError(Loss):
    r"""Half the squared error, :math:`\frac12 (z - y)^2`."""

    def value_and_gradient(self, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        residual = z - y
        return 0.5 * residual * residual, residual

    def curvature(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.ones_like(z)


@final
class Logistic(Loss):
    r"""Binomial deviance, :math:`\log(1 + e^z) - y z` for labels 0 and 1.

    Written with :math:`e^{-|z|} \le 1`, so that nothing overflows and small losses keep their
    digits.
    """

    def value_and_gradient(self, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e = np.exp(-np.abs(z))
        # log(1 + e^z) - yz = log1p(e^-|z|) + max(z, 0) - yz; the last two cancel for y = [z > 0].
        value = np.log1p(e) + np.where(z > 0, 1.0 - y, -y) * z
        probability = np.where(z > 0, 1.0, e) / (1.0 + e)
        return value, probability - y

    def curvature(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        e = np.exp(-np.abs(z))
        return e / np.square(1.0 + e)


@final
class Multinomial(Loss):
    r"""Multinomial deviance, :math:`\log \sum_j e^{z_j} - z_y`, for labels 0 .. k-1.

    Invariant to adding one number to all margins of a row: the largest is taken to 0.
    """

    def __init__(self, n_classes: int) -> None:
        self.n_outputs = n_classes

    def value_and_gradient(self, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # A row of weight 0 may bear a label beyond the classes.
        rows, labels = np.arange(len(y)), np.minimum(y.astype(np.intp), self.n_outputs - 1)
        z = z - z.max(axis=1, keepdims=True)
        own = z[rows, labels]
        e = np.exp(z, out=z)
        total = e.sum(axis=1)
        value = np.log(total) - own
        e /= total[:, None]
        e[rows, labels] -= 1.0
        return value, e

    def curvature(self, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        p = softmax(z)  # (n, k)
        return p[:, :, None] * np.eye(self.n_outputs) - p[:, :, None] * p[:, None, :]


def sigmoid(z: np.ndarray) -> np.ndarray:
    r""":math:`1 / (1 + e^{-z})` without overflow."""
    e = np.exp(-np.abs(z))
    return np.where(z > 0, 1.0, e) / (1.0 + e)


def softmax(z: np.ndarray) -> np.ndarray:
    """Class probabilities of margins ``(n, k)``; an infinite margin takes all of its row."""
    top = z.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        e = np.where(z == top, 1.0, np.exp(z - top))
    return e / e.sum(axis=1, keepdims=True)
