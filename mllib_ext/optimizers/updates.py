r"""Update rules of stochastic gradient descent: what one estimate of the gradient moves.

With :math:`g` the estimate, :math:`r` the gradient of the penalty and :math:`\eta` the rate:

=========  ========================================================================================
sgd        :math:`u \leftarrow \mu u - \eta (g + r), \quad v \leftarrow v + u` (Polyak 1964)
nesterov   the same :math:`u`, then :math:`v \leftarrow v + \mu u - \eta (g + r)` (Nesterov 1983, in
           the variables of Bengio, Boulanger-Lewandowski & Pascanu 2013)
adagrad    :math:`s \leftarrow s + (g + r)^2, \quad v \leftarrow v - \eta (g + r) / (\sqrt s +
           \epsilon)` (Duchi et al. 2011)
adam       means of the gradients and of their squares that fade out, both without the bias of
           their start (Kingma & Ba 2015, algorithm 1)
adamw      Adam's step by :math:`g` alone, and :math:`v \leftarrow v - \eta r` beside it
           (Loshchilov & Hutter 2019, algorithm 2)
=========  ========================================================================================

A rule is a value; what it remembers is a tuple of arrays and the number of steps so far.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

Array = np.ndarray
Memory = tuple[Any, ...]

# Parameters that move together: what is computed between their reading and writing stays in a
# core's cache.
CHUNK = 1 << 14


class Rule(ABC):
    """One rule of the table above."""

    n_arrays: ClassVar[int] = 1  # that it remembers

    def start(self, size: int) -> Memory:
        """What the rule remembers before its first step on ``size`` parameters."""
        return *(np.zeros(size) for _ in range(self.n_arrays)), 0

    @final
    def move(
        self, v: np.ndarray, g: np.ndarray, r: np.ndarray, memory: Memory, eta: float
    ) -> Memory:
        """Move parameters v (size,) by ``g`` and ``r``, both (size,): the memory after the step.

        In place, v and the arrays of the memory: fresh ones would cost a network's step a third of
        its time. :func:`own` makes copies.
        """
        *arrays, t = memory
        for start in range(0, len(v), CHUNK):
            part = slice(start, start + CHUNK)
            self._move(v[part], g[part], r[part], [a[part] for a in arrays], t + 1, eta)
        return *arrays, t + 1

    @abstractmethod
    def _move(self, v: Array, g: Array, r: Array, kept: list[Array], t: int, eta: float) -> None:
        """Step ``t``, from 1 on, of some of the parameters, with what is kept of them."""


def own(memory: Memory, dtype: Any = None) -> Memory:
    """A copy of what a rule remembers, to be changed in place; in another precision if named."""
    *arrays, t = memory
    return *(np.array(a, dtype=dtype) for a in arrays), t


@final
@dataclass(frozen=True)
class Momentum(Rule):
    """Gradient descent with momentum in [0, 1), heavy-ball's or Nesterov's."""

    momentum: float = 0.0
    nesterov: bool = False

    def _move(self, v: Array, g: Array, r: Array, kept: list[Array], t: int, eta: float) -> None:
        (u,) = kept
        pull = g + r
        pull *= eta
        u *= self.momentum
        u -= pull
        v += self.momentum * u - pull if self.nesterov else u


@final
@dataclass(frozen=True)
class AdaGrad(Rule):
    """Rates that fall with the squares of all gradients so far, each parameter by its own."""

    epsilon: float = 1e-10

    def _move(self, v: Array, g: Array, r: Array, kept: list[Array], t: int, eta: float) -> None:
        (squares,) = kept
        step = g + r
        squares += step * step
        step *= eta
        root = np.sqrt(squares)
        root += self.epsilon
        step /= root
        v -= step


@final
@dataclass(frozen=True)
class Adam(Rule):
    """Adam; ``decoupled`` takes the penalty out of the moments (AdamW)."""

    n_arrays = 2

    decoupled: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def _move(self, v: Array, g: Array, r: Array, kept: list[Array], t: int, eta: float) -> None:
        means, squares = kept
        slope = g if self.decoupled else g + r
        means *= self.beta1
        means += (1.0 - self.beta1) * slope
        square = slope * slope
        square *= 1.0 - self.beta2
        squares *= self.beta2
        squares += square
        # The corrections of both means are one factor of the step (the end of section 2).
        unbiased = math.sqrt(1.0 - self.beta2**t)
        root = np.sqrt(squares, out=square)
        root += self.epsilon * unbiased
        step = means / root
        step *= eta * unbiased / (1.0 - self.beta1**t)
        if self.decoupled:
            step += eta * r
        v -= step


RULES = ("sgd", "nesterov", "adagrad", "adam", "adamw")


def rule(name: str, momentum: float = 0.0) -> Rule:
    """The rule of that name; ``momentum`` is of the first two."""
    match name:
        case "sgd" | "nesterov":
            return Momentum(momentum, nesterov=name == "nesterov")
        case "adagrad":
            return AdaGrad()
        case "adam" | "adamw":
            return Adam(decoupled=name == "adamw")
    raise ValueError(f"update rule: expected one of {RULES}, found {name!r}")
