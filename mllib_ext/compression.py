r"""Codecs for what is reduced: gradients and moves as a few bytes.

=========  ========================================================================================
none       float64
float16    half precision, in units of the largest entry
qsgd       8 bits an entry: a sign and one of 127 levels of its bucket's largest entry, rounded at
           random so that the mean is right, :math:`E[C(x)] = x` (QSGD, Alistarh et al. 2017, the
           variant of their experiments: levels of the norm would be as many times coarser as the
           norm is larger)
top-k      a share of the entries, the largest ones, and their places (Lin et al. 2018)
powersgd   matrices as two factors of a small rank, :math:`P Q^T` with :math:`P` orthonormal and
           :math:`Q = M^T P`, by one step of subspace iteration from the factor before (Vogels et
           al. 2019, algorithm 1; there sums of factors are reduced in two rounds, here each
           partition has factors of its own in one)
=========  ========================================================================================

The last two leave something out, and are wrong on average. :class:`ErrorFeedback` adds what was
left out to what comes next: nothing is lost, it comes late (Stich et al. 2018; Karimireddy et al.
2019). Such codecs remember; what they remember belongs to who sends, and a codec itself is a value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

Memory = tuple[Any, ...]

BUCKET = 512  # entries that share a unit of 8 bytes
LEVELS = 127


class Codec(ABC):
    """A way to send a vector of known size."""

    def start(self, size: int) -> Memory:
        """What the sender remembers before the first message of ``size`` entries."""
        return ()

    @abstractmethod
    def encode(
        self, x: np.ndarray, memory: Memory, rng: np.random.Generator
    ) -> tuple[bytes, Memory]:
        """The message for ``x`` (size,), and what is remembered after it."""

    @abstractmethod
    def decode(self, message: bytes, size: int) -> np.ndarray:
        """What the message says, (size,)."""


@final
@dataclass(frozen=True)
class Uncompressed(Codec):
    """All bits."""

    def encode(
        self, x: np.ndarray, memory: Memory, rng: np.random.Generator
    ) -> tuple[bytes, Memory]:
        return x.tobytes(), memory

    def decode(self, message: bytes, size: int) -> np.ndarray:
        return np.frombuffer(message, np.float64)


@final
@dataclass(frozen=True)
class Float16(Codec):
    """Half precision: an entry is off by at most 2**-11 of itself and 2**-25 of the largest."""

    def encode(
        self, x: np.ndarray, memory: Memory, rng: np.random.Generator
    ) -> tuple[bytes, Memory]:
        unit = np.abs(x).max(initial=0.0) or 1.0
        return np.float64(unit).tobytes() + (x / unit).astype(np.float16).tobytes(), memory

    def decode(self, message: bytes, size: int) -> np.ndarray:
        unit = np.frombuffer(message, np.float64, 1)
        return unit * np.frombuffer(message, np.float16, offset=8).astype(np.float64)


@final
@dataclass(frozen=True)
class QSGD(Codec):
    r"""8 bits an entry, unbiased.

    With s = 127 levels of a bucket's largest entry an entry's variance is at most
    :math:`(\max_i |x_i| / 2s)^2`, a quarter of the squared distance of two levels.
    """

    def encode(
        self, x: np.ndarray, memory: Memory, rng: np.random.Generator
    ) -> tuple[bytes, Memory]:
        padded = np.zeros(-(-len(x) // BUCKET) * BUCKET)
        padded[: len(x)] = x
        buckets = padded.reshape(-1, BUCKET)
        units = np.abs(buckets).max(axis=1, initial=0.0)
        level = np.abs(buckets) / np.where(units > 0, units, 1.0)[:, None] * LEVELS
        level = np.floor(level + rng.random(level.shape))
        signed = np.copysign(level, buckets).astype(np.int8).ravel()[: len(x)]
        return units.tobytes() + signed.tobytes(), memory

    def decode(self, message: bytes, size: int) -> np.ndarray:
        n_buckets = -(-size // BUCKET)
        units = np.frombuffer(message, np.float64, n_buckets)
        level = np.frombuffer(message, np.int8, offset=8 * n_buckets).astype(np.float64)
        return np.repeat(units, BUCKET)[:size] * level / LEVELS


@final
@dataclass(frozen=True)
class TopK(Codec):
    r"""The largest entries in single precision, at least one.

    A contraction: :math:`\|x - C(x)\|^2 \le (1 - k/n) \|x\|^2`, but for that rounding.
    """

    share: float

    def encode(
        self, x: np.ndarray, memory: Memory, rng: np.random.Generator
    ) -> tuple[bytes, Memory]:
        k = min(len(x), max(1, round(self.share * len(x))))
        places = np.sort(np.argpartition(np.abs(x), len(x) - k)[len(x) - k :]).astype(np.int32)
        return places.tobytes() + x[places].astype(np.float32).tobytes(), memory

    def decode(self, message: bytes, size: int) -> np.ndarray:
        x, k = np.zeros(size), len(message) // 8
        values = np.frombuffer(message, np.float32, offset=4 * k)
        x[np.frombuffer(message, np.int32, k)] = values
        return x


@final
@dataclass(frozen=True)
class PowerSGD(Codec):
    r"""Matrices by factors of a small rank; what is no matrix as it is, in single precision.

    A projection: :math:`\|M - P P^T M\| \le \|M\|`, and 0 up to rank ``rank``.

    Attributes
    ----------
    rank : int
    matrices : tuple of (int, int, int)
        Where each begins in the vector, its rows and its columns, one after the other.
    """

    rank: int
    matrices: tuple[tuple[int, int, int], ...]

    def start(self, size: int) -> Memory:
        rng = np.random.default_rng(0)  # any start that no matrix is orthogonal to
        return tuple(rng.standard_normal((n, self._rank(m, n))) for _, m, n in self.matrices)

    def encode(
        self, x: np.ndarray, memory: Memory, rng: np.random.Generator
    ) -> tuple[bytes, Memory]:
        parts, after = [], []
        for (begin, m, n), before in zip(self.matrices, memory, strict=True):
            M = x[begin : begin + m * n].reshape(m, n)
            P = np.linalg.qr(M @ before)[0].astype(np.float32)
            Q = (M.T @ P).astype(np.float32)
            parts += [P.tobytes(), Q.tobytes()]
            after.append(Q.astype(np.float64) if Q.any() else before)
        rest = x[self._rest(len(x))].astype(np.float32)
        return b"".join([*parts, rest.tobytes()]), tuple(after)

    def decode(self, message: bytes, size: int) -> np.ndarray:
        x, values, at = np.zeros(size), np.frombuffer(message, np.float32).astype(np.float64), 0
        for begin, m, n in self.matrices:
            r = self._rank(m, n)
            P = values[at : at + m * r].reshape(m, r)
            Q = values[at + m * r : at + (m + n) * r].reshape(n, r)
            x[begin : begin + m * n] = (P @ Q.T).ravel()
            at += (m + n) * r
        x[self._rest(size)] = values[at:]
        return x

    def _rank(self, m: int, n: int) -> int:
        return min(self.rank, m, n)

    def _rest(self, size: int) -> np.ndarray:
        rest = np.ones(size, bool)
        for begin, m, n in self.matrices:
            rest[begin : begin + m * n] = False
        return rest


@final
@dataclass(frozen=True)
class ErrorFeedback(Codec):
    """What a codec leaves out is added to what comes next.

    Attributes
    ----------
    codec : Codec
    momentum : float
        The sender's own, before the codec: entries that wait gather it as they would have on the
        driver, and lose it once they are sent (momentum correction and factor masking of Deep
        Gradient Compression, Lin et al. 2018, sections 3.2 and 3.3).
    """

    codec: Codec
    momentum: float = 0.0

    def start(self, size: int) -> Memory:
        return np.zeros(size), np.zeros(size if self.momentum else 0), self.codec.start(size)

    def encode(
        self, x: np.ndarray, memory: Memory, rng: np.random.Generator
    ) -> tuple[bytes, Memory]:
        waiting, velocity, inner = memory
        if self.momentum:
            # A run may have begun without momentum.
            velocity = x = self.momentum * velocity + x if len(velocity) else x
        x = waiting + x
        message, inner = self.codec.encode(x, inner, rng)
        sent = self.codec.decode(message, len(x))
        if self.momentum:
            velocity = np.where(sent == 0, velocity, 0.0)
        return message, (x - sent, velocity, inner)

    def decode(self, message: bytes, size: int) -> np.ndarray:
        return self.codec.decode(message, size)


COMPRESSIONS = ("none", "float16", "qsgd", "top-k", "powersgd")


def codec(name: str, share: float, rank: int, matrices: tuple[tuple[int, int, int], ...]) -> Codec:
    """The codec of that name; ``share`` is of top-k, the others of powersgd."""
    match name:
        case "none":
            return Uncompressed()
        case "float16":
            return Float16()
        case "qsgd":
            return QSGD()
        case "top-k":
            return TopK(share)
        case "powersgd":
            return PowerSGD(rank, matrices)
    raise ValueError(f"compression: expected one of {COMPRESSIONS}, found {name!r}")


@dataclass(frozen=True)
class Wire:
    """How gradients and moves go up, and changes of the parameters down.

    Attributes
    ----------
    up, down : Codec
    """

    up: Codec
    down: Codec


@dataclass(frozen=True)
class Link:
    """What the driver knows of the partitions between two rounds.

    Attributes
    ----------
    kept : mllib_ext.kept.Kept or None
        Their states; None where they have none yet.
    there : ndarray, shape (size,)
        The parameters that they have: the driver's, but for what codecs still hold back.
    memory : tuple
        Of the codec that goes down.
    """

    kept: Any = None
    there: np.ndarray = field(default_factory=lambda: np.empty(0))
    memory: Memory = ()
