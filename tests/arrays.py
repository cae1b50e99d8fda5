"""A data set in memory with the rounds of ``Blocks``: for tests that need no Spark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, reduce
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from mllib_ext.blockfile import Block, Handle
from mllib_ext.compact import dense
from mllib_ext.flights import Simulated
from mllib_ext.kept import Kept, join_updates, updated
from mllib_ext.partials import Walk


def block(X: Any, y: Any = None, w: Any = None) -> Block:
    """One block of these rows: labels of 0 and weights of 1 unless given."""
    n = X.shape[0]
    y = np.zeros(n) if y is None else np.asarray(y, dtype=np.float64)
    w = np.ones(n) if w is None else np.asarray(w, dtype=np.float64)
    return Block(X, y, w, np.empty(0))


class Arrays:
    """Blocks held in memory.

    Attributes
    ----------
    rounds : Counter
        How often each stage function has been run over the data, by its name.
    """

    on_driver = False  # the costs of a cluster are what minimizers are made for
    durations: list[float] | None = None  # of flights, by partition; all equal unless set

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.blocks = list(blocks)
        self.rounds: Counter[str] = Counter()

    @classmethod
    def of(cls, X: Any, y: Any = None, w: Any = None, parts: int = 1) -> Arrays:
        """The rows in up to so many blocks, each a little larger than the one before."""
        whole = block(X, y, w)
        cuts = np.linspace(0, 1, parts + 1) ** 1.5 * whole.n
        return cls(
            replace(block(X[i:j], whole.y[i:j], whole.w[i:j]), partition=part)
            for part, (i, j) in enumerate(pairwise(cuts.astype(int)))
            if i < j
        )

    @property
    def n_rows(self) -> int:
        return sum(b.n for b in self.blocks)

    @property
    def weight_sum(self) -> float:
        return float(sum(b.w.sum() for b in self.blocks))

    def drain(self) -> tuple[Any, ...]:
        """No reports: nothing is sent anywhere."""
        return ()

    def sum(self, stage: Callable[..., tuple[Any, ...]], *parameters: Any) -> tuple[Any, ...]:
        """Add up ``stage(block, *parameters)`` over the blocks."""
        return tuple(map(dense, self.reduce(stage, _add, *parameters)))

    def update(
        self, stage: Any, merge: Any, kept: Kept | None, *parameters: Any
    ) -> tuple[Any, Kept]:
        """As ``Blocks.update``, the states inline."""
        address = None if kept is None else kept.address()
        walk = Walk(partial(updated, stage, None))
        states, values = self.reduce(walk, partial(join_updates, merge), address, *parameters)
        return values, Kept("", 0, states, True)

    @property
    def handles(self) -> list[Handle]:
        return [handle_of([b for b in self.blocks if b.partition == p]) for (p,) in self.groups]

    @property
    def groups(self) -> list[list[int]]:
        """Each partition by itself."""
        return [[partition] for partition in sorted({b.partition for b in self.blocks})]

    @contextmanager
    def flights(self) -> Iterator[Simulated]:
        """Sums over one partition each."""

        def run(group: int, stage: Any, *parameters: Any) -> tuple[Any, ...]:
            (partition,) = self.groups[group]
            part = Arrays(b for b in self.blocks if b.partition == partition)
            return part.sum(stage, *parameters)

        yield Simulated(run, self.durations or [1.0] * len(self.groups))

    def recall(self, kept: Kept) -> Kept:
        """The states, which are here."""
        return kept

    def reduce(
        self, stage: Callable[..., tuple[Any, ...]], merge: Callable[..., Any], *parameters: Any
    ) -> tuple[Any, ...]:
        """Join ``stage(block, *parameters)`` over the blocks from left to right."""
        inner = stage.stage if isinstance(stage, Walk) else stage
        function: Any = inner.func if isinstance(inner, partial) else inner
        self.rounds[function.__name__] += 1
        if isinstance(stage, Walk):
            parts = [list(part) for _, part in groupby(self.blocks, lambda b: b.partition)]
            shares = [stage(handle_of(part), iter(part), *parameters) for part in parts]
            return reduce(merge, shares)
        return reduce(merge, [stage(b, *parameters) for b in self.blocks])


def handle_of(blocks: list[Block], path: str = "") -> Handle:
    """What is known of a partition of these blocks."""
    n = sum(b.n for b in blocks)
    d, w = blocks[0].X.shape[1], sum(float(b.w.sum()) for b in blocks)
    return Handle(blocks[0].partition, "", path, n, d, w, 0, 0.0, 0, 0, False, "")


def _add(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def slopes(f: Callable[[np.ndarray], Any], v: np.ndarray, h: float = 1e-6) -> np.ndarray:
    """Central differences of ``f`` by every element of ``v``, along a new last axis.

    Their relative error is about ``eps / h + h**2``: 1e-9 at best, for values of order 1.
    """
    steps = h * np.eye(len(v))
    return np.stack([(np.asarray(f(v + e)) - f(v - e)) / (2 * h) for e in steps], axis=-1)
