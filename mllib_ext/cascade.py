r"""Cascade SVM (Graf, Cosatto, Bottou, Durdanovic & Vapnik 2004), run until it is exact.

The dual problem of :mod:`mllib_ext.kernel_machine` over a data set of blocks. A pass:

1. Every block scans its rows under the machine of all so far. Rows that violate their KKT
   condition, a random choice where they are very many, join the global support vectors. Where
   they are more than these the block solves the problem of both and keeps its support vectors:
   it sieves; else it passes its violators on.
2. What blocks keep is united in pairs by the ids of the rows, solved on the way where it has become
   much, and last on the driver: the next machine, which goes back to every block.

A union holds the support vectors of either side, so that no merge lowers the dual objective, and a
pass that found violators raises it: passes end, and where no row violates its condition by more
than the tolerance the machine is that of all rows. The first machine is of a sample of each class,
so that every block, whatever it holds, has rows of all classes before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np

from mllib_ext.blockfile import Block
from mllib_ext.classes import weight_of_labels
from mllib_ext.columns import Matrix
from mllib_ext.kernel_machine import Machine, Rows
from mllib_ext.kernels import Kernel
from mllib_ext.moments import moments
from mllib_ext.optimizers.loop import Callback, Result, Rule, Settings, State, iterate, setting

# Rows of each class that the first machine is of: solved in well under a second.
SAMPLE = 500
# Violators of one block that join in one pass: their problem takes seconds, not minutes.
MOST_VIOLATORS = 5_000
# Violators and support vectors of several blocks that one solution, of seconds, sieves at once.
MOST_WAITING = 10_000
# Rows that satisfy their condition by less than this join where there is room, as many a violator:
# the next machine makes violators of some, and each pass solves the problem of all support vectors.
SLACK = 0.5
NEAR = 10
# Places of a row in its partition; ids have the partition's number above them.
PLACES = 1 << 40
# The sample is the same for everyone; what a fit converges to does not depend on it.
SEED = 0


class Rounds(Protocol):
    """What the cascade asks of a data set: see :class:`mllib_ext.blocks.Blocks`."""

    def reduce(self, stage: Any, merge: Any, *parameters: Any) -> tuple[Any, ...]: ...
    def drain(self) -> tuple[Any, ...]: ...


class AnyMachine(Protocol):
    """Support vectors, and what a scan asks of them: see :class:`Machine`."""

    @property
    def rows(self) -> Rows: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    def violations(self, kernel: Kernel, X: Matrix, y: np.ndarray) -> np.ndarray: ...
    def dual_objective(self, kernel: Kernel) -> float: ...


class Task(Protocol):
    """What the cascade asks of a problem: see :class:`Problem`."""

    @property
    def kernel(self) -> Kernel: ...
    @property
    def max_support_vectors(self) -> int: ...
    @property
    def most_violators(self) -> int: ...
    @property
    def most_waiting(self) -> int: ...
    @property
    def remedy(self) -> str: ...
    def classes(self, block: Block, places: np.ndarray) -> np.ndarray: ...
    def rows(self, block: Block, places: np.ndarray) -> Rows: ...
    def drawn(self, numbers: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray: ...
    def solved(self, rows: Rows, tol: float) -> Any: ...


class TooManySupportVectors(ValueError):
    """More rows than a machine may hold would be support vectors."""


@dataclass(frozen=True)
class Problem:
    """What is solved.

    Attributes
    ----------
    kernel : Kernel
    labels : ndarray, shape (k,)
        The labels that occur, ascending: the classes 0 .. k-1 of :class:`Rows`.
    bounds : ndarray, shape (k,)
        C of the rows of each class, of weight 1.
    max_support_vectors : int
    sample : int
        Rows of each class that the first machine is of.
    most_violators : int
        Of one block, that join the support vectors in one pass.
    most_waiting : int
        Rows that are put together before they are solved.
    remedy : str
        What makes support vectors fewer.
    """

    kernel: Kernel
    labels: np.ndarray
    bounds: np.ndarray
    max_support_vectors: int
    sample: int = SAMPLE
    most_violators: int = MOST_VIOLATORS
    most_waiting: int = MOST_WAITING
    remedy: str = (
        "make C or gamma smaller, or use an approximation of the kernel "
        "(mllib_ext.feature.Nystroem or RandomFourierFeatures) with LinearSVC, which holds no rows"
    )

    def classes(self, block: Block, places: np.ndarray) -> np.ndarray:
        """The classes of a block's rows, by their places in it."""
        return np.searchsorted(self.labels, block.y[places])

    def rows(self, block: Block, places: np.ndarray) -> Rows:
        """Rows of a block, by their places in it."""
        y = self.classes(block, places)
        X = block.X[places].astype(np.float64)
        return Rows(row_ids(block)[places], X, y, self.bounds[y] * block.w[places])

    def drawn(self, numbers: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
        """The places of the rows that drew the lowest numbers of each class, as many as asked."""
        order = np.lexsort((numbers, y))
        starts = np.searchsorted(y[order], y[order])  # where the class of each begins
        lowest: np.ndarray = np.sort(order[np.arange(len(y)) - starts < self.sample])
        return lowest

    def solved(self, rows: Rows, tol: float) -> Machine:
        """The machine of some rows."""
        # Half the tolerance: a row that a solution leaves out is not at once a violator again.
        return Machine.solved(self.kernel, rows, len(self.labels), tol / 2)


@dataclass(frozen=True)
class CascadeSettings(Settings):
    """``tol`` is what a KKT condition may be violated by, ``max_iter`` counts passes."""

    tol: float = setting(1e-3, low=0, low_open=True, tunable=False)


@dataclass(frozen=True, kw_only=True)
class Cascade(State):
    """A machine, and what a scan of all rows says of it.

    ``loss`` is the dual objective as it is minimised, so the lower the better; ``gradient_norm``
    the worst violation of a KKT condition among the rows that are no support vectors.

    Attributes
    ----------
    machine : Machine
        Or what else the problem's ``solved`` gives.
    n_violators : int
        Rows that violate a condition by more than the tolerance.
    found : Pass
        What the scan brought for the next machine.
    """

    told: ClassVar[tuple[str, ...]] = ("n_support_vectors", "n_violators")

    machine: Any
    n_violators: int
    found: Pass

    def by_partition(self) -> bool:
        return True  # the ids of its rows

    @property
    def dual_objective(self) -> float:
        return -self.loss

    @property
    def n_support_vectors(self) -> int:
        return len(self.machine)

    @property
    def worst_violation(self) -> float:
        return self.gradient_norm


def conditions_hold(losses: Sequence[float], state: State, settings: Settings) -> bool:
    """No row violates its KKT condition by more than ``tol``."""
    assert isinstance(state, Cascade)
    return state.n_violators == 0


STOPPING: dict[str, Rule] = {"kkt": conditions_hold}


def fit(
    rounds: Rounds,
    problem: Task,
    settings: CascadeSettings,
    callbacks: Sequence[Callback] = (),
) -> Result[Cascade]:
    """Pass until no row violates its KKT condition.

    Raises
    ------
    TooManySupportVectors
    RuntimeError
        Rows stand in other places than before.
    """
    *_, sample = rounds.reduce(partial(drawn, problem), partial(sampled, problem))
    machine = problem.solved(sample, settings.tol)
    return iterate(
        partial(step, rounds, problem),
        evaluated(rounds, problem, machine, settings.tol),
        settings,
        callbacks,
        stopping=STOPPING,
        drain=rounds.drain,
        divergence=math.inf,
    )


def step(rounds: Rounds, problem: Task, state: Cascade, settings: CascadeSettings) -> Cascade:
    """Solve what the last scan found, the last merge of the cascade, and scan again."""
    machine = state.found.machine
    if machine is None:
        found = _both(state.found.rows, state.found.near)
        assert found is not None
        # With the support vectors, so that the dual objective rises whatever was found.
        machine = problem.solved(state.machine.rows.union(found), settings.tol)
    return evaluated(rounds, problem, machine, settings.tol)


def evaluated(rounds: Rounds, problem: Task, machine: AnyMachine, tol: float) -> Cascade:
    """A machine as a state: one pass."""
    node, merge = partial(scanned, problem, tol), partial(merged, problem, tol)
    found: Pass = rounds.reduce(node, merge, machine)[0]
    most = problem.max_support_vectors
    if max(found.excess, len(machine)) > most:
        raise TooManySupportVectors(
            f"param maxSupportVectors: expected up to {most} support vectors, found "
            f"{max(found.excess, len(machine))} among a part of the rows: raise it, or "
            f"{problem.remedy}"
        )
    if found.moved:
        raise RuntimeError(
            f"{found.moved} support vectors are not where they were found: the DataFrame gave its "
            "rows in another order when lost blocks were built again; cache or checkpoint it"
        )
    return Cascade(
        loss=-machine.dual_objective(problem.kernel),
        gradient_norm=max(found.worst, 0.0),
        machine=machine,
        n_violators=found.n_violators,
        found=found,
    )


# --- the sample ----------------------------------------------------------------------------------


def overview(block: Block) -> tuple[Any, ...]:
    """One block's labels, the weight of each, and moments of its rows with a weight above 0."""
    counted = Block(block.X, block.y, (block.w > 0).astype(np.float64), block.id)
    return *weight_of_labels(block.y, block.w), *moments(counted)


def drawn(problem: Task, block: Block) -> tuple[np.ndarray, np.ndarray, Rows]:
    """Random numbers and weights of the rows of a block that are in its sample, and the rows."""
    numbers = np.random.default_rng([SEED, block.start, block.partition]).random(block.n)
    places = np.flatnonzero(block.w > 0)
    y = problem.classes(block, places)
    places = places[problem.drawn(numbers[places], y, block.w[places])]
    return numbers[places], block.w[places], problem.rows(block, places)


def sampled(
    problem: Task,
    left: tuple[np.ndarray, np.ndarray, Rows],
    right: tuple[np.ndarray, np.ndarray, Rows],
) -> tuple[np.ndarray, np.ndarray, Rows]:
    """The sample of two samples."""
    numbers, w = (np.concatenate([left[i], right[i]]) for i in (0, 1))
    rows = left[2].followed_by(right[2])
    places = problem.drawn(numbers, rows.y, w)
    return numbers[places], w[places], rows.take(places)


# --- a pass --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """What some blocks found in a pass.

    Attributes
    ----------
    n_violators : int
    worst : float
        The largest violation; negative where every condition holds.
    rows : Rows or None
        Violators, or the support vectors of a solution; None without violators.
    near : Rows or None
        Rows that join where there is room. They are apart, for without a violator a pass would find
        what the last one did.
    machine : Machine or None
        The solution of which ``rows`` are the support vectors.
    feasible : bool
        ``rows`` hold a solution, which began from the global support vectors.
    excess : int
        The size of a machine that was too large to keep.
    moved : int
        Support vectors that are not where they were.
    """

    n_violators: int
    worst: float
    rows: Rows | None = None
    near: Rows | None = None
    machine: AnyMachine | None = None
    feasible: bool = False
    excess: int = 0
    moved: int = 0

    @property
    def nbytes(self) -> int:
        parts = [part.nbytes for part in (self.rows, self.near, self.machine) if part is not None]
        return 8 + sum(parts)


def scanned(problem: Task, tol: float, block: Block, machine: AnyMachine) -> tuple[Pass]:
    """One node of the cascade: a block's violators.

    They are solved together with the support vectors where that sieves: where they are more. Fewer
    would cost as much again as the machine of all, whose problem they join anyway.
    """
    ids = row_ids(block)
    known = np.isin(ids, machine.rows.id)
    places = np.flatnonzero(~known & (block.w > 0))
    y = problem.classes(block, places)
    violations = machine.violations(problem.kernel, block.X[places], y)
    worst = float(violations.max(initial=-np.inf))
    moved = _moved(block, np.flatnonzero(known), machine.rows)
    violators = np.flatnonzero(violations > tol)
    if moved or not len(violators):
        return (Pass(len(violators), worst, moved=moved),)
    # Not the worst: they are outliers, and a machine of outliers is no start for the next pass.
    chosen = violators[_some(len(violators), problem.most_violators, block)]
    joining = problem.rows(block, places[chosen])
    most = min(problem.most_violators - len(chosen), NEAR * len(chosen))
    near = np.flatnonzero((violations <= tol) & (violations > tol - SLACK))
    near = np.sort(near[np.argsort(-violations[near], kind="stable")[:most]])
    beside = problem.rows(block, places[near])
    if len(joining) + len(beside) <= len(machine):
        return (Pass(len(violators), worst, joining, beside),)
    joining = joining.union(beside)
    solved = problem.solved(machine.rows.union(joining), tol)
    return (_limited(problem, len(violators), worst, solved),)


def merged(problem: Task, tol: float, left: tuple[Pass], right: tuple[Pass]) -> tuple[Pass]:
    """What two nodes found as one, solved where it has become much."""
    (a,), (b,) = left, right
    n_violators, worst = a.n_violators + b.n_violators, max(a.worst, b.worst)
    if a.excess or b.excess or a.moved or b.moved:
        excess, moved = max(a.excess, b.excess), a.moved + b.moved
        return (Pass(n_violators, worst, excess=excess, moved=moved),)
    if a.rows is None or b.rows is None:
        found = b if a.rows is None else a
        return (replace(found, n_violators=n_violators, worst=worst),)
    rows, near = a.rows.union(b.rows), _both(a.near, b.near)
    feasible = a.feasible or b.feasible
    if near is not None and len(rows) + len(near) > problem.most_waiting:
        near = None
    if len(rows) > problem.most_waiting:
        if feasible:
            solved = problem.solved(rows, tol)
            return (_limited(problem, n_violators, worst, solved),)
        # Violators alone, which the scan finds again.
        order = np.random.default_rng([SEED, len(rows)]).permutation(len(rows))
        rows = rows.take(np.sort(order[: problem.most_waiting]))
    return (Pass(n_violators, worst, rows, near, feasible=feasible),)


def _both(left: Rows | None, right: Rows | None) -> Rows | None:
    return (
        left.union(right)
        if left is not None and right is not None
        else (left if right is None else right)
    )


def _some(n: int, most: int, block: Block) -> np.ndarray:
    """Up to so many of n places, by chance, ascending."""
    rng = np.random.default_rng([SEED, block.start, block.partition])
    some: np.ndarray = np.sort(rng.permutation(n)[:most])
    return some


def _limited(problem: Task, n_violators: int, worst: float, machine: AnyMachine) -> Pass:
    if len(machine) > problem.max_support_vectors:
        return Pass(n_violators, worst, excess=len(machine))
    return Pass(n_violators, worst, machine.rows, machine=machine, feasible=True)


def row_ids(block: Block) -> np.ndarray:
    """Partition and place of a block's rows as one number each (n,), int64."""
    first = block.partition * PLACES + block.start
    return np.arange(first, first + block.n, dtype=np.int64)


def _moved(block: Block, places: np.ndarray, rows: Rows) -> int:
    """How many of a block's rows at these places are not the support vectors of their ids."""
    order = np.argsort(rows.id)
    found = order[np.searchsorted(rows.id[order], row_ids(block)[places])]
    ours, theirs = block.X[places].astype(np.float64), rows.X[found]
    differ: Any = ours != theirs
    return int(np.count_nonzero(np.asarray(differ.sum(axis=1))))
