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

A rule is a value; what it remembers is a tuple of arrays, never changed in place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np

Memory = tuple[Any, ...]

# Parameters that move together: what is computed between their reading and writing stays in a
# core's cache.
CHUNK = 1 << 13


class Rule(ABC):
    """One rule of the table above."""

    @abstractmethod
    def start(self, size: int) -> Memory:
        """What the rule remembers before its first step on ``size`` parameters."""

    @abstractmethod
    def move(
        self, v: np.ndarray, g: np.ndarray, r: np.ndarray, memory: Memory, eta: float
    ) -> tuple[np.ndarray, Memory]:
        """Parameters (size,) and memory after one step by ``g`` and ``r``, both (size,)."""


@final
@dataclass(frozen=True)
class Momentum(Rule):
    """Gradient descent with momentum in [0, 1), heavy-ball's or Nesterov's."""

    momentum: float = 0.0
    nesterov: bool = False

    def start(self, size: int) -> Memory:
        return (np.zeros(size),)

    def move(
        self, v: np.ndarray, g: np.ndarray, r: np.ndarray, memory: Memory, eta: float
    ) -> tuple[np.ndarray, Memory]:
        pull = eta * (g + r)
        u = self.momentum * memory[0] - pull
        return v + (self.momentum * u - pull if self.nesterov else u), (u,)


@final
@dataclass(frozen=True)
class AdaGrad(Rule):
    """Rates that fall with the squares of all gradients so far, each parameter by its own."""

    epsilon: float = 1e-10

    def start(self, size: int) -> Memory:
        return (np.zeros(size),)

    def move(
        self, v: np.ndarray, g: np.ndarray, r: np.ndarray, memory: Memory, eta: float
    ) -> tuple[np.ndarray, Memory]:
        g = g + r
        s = memory[0] + g * g
        return v - eta * g / (np.sqrt(s) + self.epsilon), (s,)


@final
@dataclass(frozen=True)
class Adam(Rule):
    """Adam; ``decoupled`` takes the penalty out of the moments (AdamW)."""

    decoupled: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def start(self, size: int) -> Memory:
        return np.zeros(size), np.zeros(size), 0

    def move(
        self, v: np.ndarray, g: np.ndarray, r: np.ndarray, memory: Memory, eta: float
    ) -> tuple[np.ndarray, Memory]:
        first, second, t = memory
        t += 1
        v, first, second = v.copy(), first.copy(), second.copy()
        unbiased = 1.0 - self.beta1**t, 1.0 - self.beta2**t
        for start in range(0, len(v), CHUNK):
            part = slice(start, start + CHUNK)
            slope = g[part] if self.decoupled else g[part] + r[part]
            first[part] *= self.beta1
            first[part] += (1.0 - self.beta1) * slope
            second[part] *= self.beta2
            second[part] += (1.0 - self.beta2) * (slope * slope)
            root = np.sqrt(second[part] / unbiased[1])
            root += self.epsilon
            step = first[part] / unbiased[0]
            step /= root
            if self.decoupled:
                step += r[part]
            step *= eta
            v[part] -= step
        return v, (first, second, t)


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
