r"""Distributed stochastic gradient descent; an iteration is a pass over the rows.

Three ways to share a pass among the partitions (``updates``):

- ``synchronous``: every round each partition draws a share of ``fraction`` of its rows, and the
  driver takes one step by the gradient of them all: ``1 / fraction`` rounds a pass.
- ``local``: every partition takes ``local_steps`` steps of its own by mini-batches of
  ``fraction`` of its rows, a share of a pass or several passes, then the driver moves by the mean
  of their moves, weighted by rows (Stich 2019). With ``outer_momentum`` :math:`\beta` it goes on in
  the direction of moves before, :math:`u \leftarrow \beta u + \Delta, \; v \leftarrow v + u`
  (Wang et al. 2020, algorithm 1 with a slow learning rate of 1). What a rule remembers stays on
  its partition.
- ``asynchronous``: groups of partitions are under way at once, each with a share of its own. The
  driver steps by a group's gradient, times the group's share of all weight, as soon as it arrives
  and sends the group on from there. No group gets more than ``staleness`` shares ahead of the
  slowest (stale synchronous parallel, Ho et al. 2013); a pass ends when all have arrived. The order
  of arrivals is the cluster's: two runs differ.

What goes up and down may be compressed (:mod:`mllib_ext.compression`). Then, and where rules
remember, partitions have states. One that is lost with its executor takes the run back to where all
states were last collected on the driver, every :data:`ANCHOR` passes.

After a pass one more round measures the objective over all rows. With a ``validation_fraction``
that is the objective of the rows that train, and the mean loss of those held out: the run stops
once ``patience`` passes brought no better one, and ends with the parameters that had the best.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from mllib_ext.compression import (
    COMPRESSIONS,
    ErrorFeedback,
    Link,
    PowerSGD,
    TopK,
    Wire,
    codec,
)
from mllib_ext.optimizers.loop import Rule as StoppingRule
from mllib_ext.optimizers.loop import State, setting
from mllib_ext.optimizers.schedules import SCHEDULES, Schedule
from mllib_ext.optimizers.smooth import SmoothSettings
from mllib_ext.optimizers.updates import RULES, Memory, Momentum, Rule, own, rule
from mllib_ext.partials import StateLost
from mllib_ext.sampling import Draw, Steps

logger = logging.getLogger(__name__)

UPDATES = ("synchronous", "local", "asynchronous")
ALMOST_ONE = math.nextafter(1.0, 0.0)  # the largest momentum: at 1 nothing ever slows down
ANCHOR = 10  # passes: to collect two vectors a partition is then a small share of the bytes
PATIENCE = 5  # passes without a better loss, as in scikit-learn
# Schedules that fall without end; with the others rates are still high before the last passes.
ENDLESS = ("constant", "inverse")


@dataclass(frozen=True)
class StochasticSettings(SmoothSettings):
    """Settings of stochastic gradient descent; ``max_iter`` counts passes.

    Attributes
    ----------
    step_size : float
        The first rate, above 0.
    momentum : float
        Of the rules ``sgd`` and ``nesterov``, in [0, 1).
    mini_batch_fraction : float
        Of the rows in a step, in (0, 1]; with ``local`` of a partition's.
    schedule : str
        One of :data:`~mllib_ext.optimizers.schedules.SCHEDULES`.
    decay : float
        What ``inverse`` falls by.
    warm_up : float
        Passes until the rate has risen to the schedule's.
    updates : str
        ``synchronous``, ``local`` or ``asynchronous``.
    local_steps : int
        Of a partition in a round, about: shares of a pass are equal, and more steps than a pass has
        are whole passes. 0 is one pass.
    outer_momentum : float
        Of the mean moves, in [0, 1).
    staleness : int
        Shares of a pass that an asynchronous group may be ahead of another.
    compression : str
        One of :data:`~mllib_ext.compression.COMPRESSIONS`, up and down.
    share : float
        Of the entries that ``top-k`` sends, in (0, 1].
    rank : int
        Of ``powersgd``, 1 or more.
    feedback : int
        Whether what these two leave out comes later (1) or never (0).
    rule_name : str
        One of :data:`~mllib_ext.optimizers.RULES`.
    validation_fraction : float
        Of the rows, held out to stop by; 0 is none.
    patience : int
        Passes without a better loss after which a run stops, 1 or more.
    seed : int
    """

    step_size: float = setting(0.01, low=0, low_open=True)
    momentum: float = setting(0.0, low=0, high=ALMOST_ONE)
    mini_batch_fraction: float = setting(0.01, low=0, low_open=True, high=1)
    schedule: str = setting("constant", choices=SCHEDULES)
    decay: float = setting(1e-4, low=0)
    warm_up: float = setting(0.0, low=0)
    updates: str = setting("synchronous", choices=UPDATES)
    local_steps: int = setting(0, low=0)
    outer_momentum: float = setting(0.0, low=0, high=ALMOST_ONE)
    staleness: int = setting(1, low=0)
    compression: str = setting("none", choices=COMPRESSIONS, tunable=False)
    share: float = setting(0.01, low=0, low_open=True, high=1, tunable=False)
    rank: int = setting(2, low=1, tunable=False)
    feedback: int = setting(1, low=0, high=1, tunable=False)
    rule_name: str = setting("sgd", choices=RULES, tunable=False)
    validation_fraction: float = setting(0.0, low=0, high=ALMOST_ONE, tunable=False)
    patience: int = setting(PATIENCE, low=1)
    seed: int = setting(0, tunable=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.updates == "asynchronous" and self.compression != "none":
            raise ValueError(
                "setting 'compression': expected 'none' with asynchronous updates, "
                f"found {self.compression!r}"
            )

    def draw(self, epoch: int, index: int, n_passes: int = 1) -> Draw:
        """The rows of a round."""
        return Draw(self.seed, epoch, index, self.n_rounds, self.validation_fraction, n_passes)

    @property
    def rates(self) -> Schedule:
        """The schedule, with its rate."""
        n_passes = max(1, self.max_iter)
        return Schedule(self.schedule, self.step_size, self.decay, n_passes, self.warm_up)

    @property
    def rule(self) -> Rule:
        """The update rule."""
        return rule(self.rule_name, self.momentum)

    def wire(self, matrices: tuple[tuple[int, int, int], ...]) -> Wire | None:
        """What travels; None where the partitions have nothing to remember."""
        remembers = self.rule_name != "sgd" or self.momentum > 0
        if self.compression == "none" and not (self.updates == "local" and remembers):
            return None
        down = up = codec(self.compression, self.share, self.rank, matrices)
        if self.feedback and isinstance(up, TopK | PowerSGD):
            up = ErrorFeedback(up, self.momentum if self.corrected else 0.0)
        return Wire(up, down)

    @property
    def corrected(self) -> bool:
        """Whether momentum is the partitions' own: an entry that waits would come without it."""
        sparse = self.compression == "top-k" and self.feedback == 1
        return sparse and self.updates == "synchronous" and self.rule_name == "sgd"

    def ahead(self, iteration: int) -> int:
        """Passes until the objective is measured: one, or those of a round of several."""
        if self.updates != "local":
            return 1
        passes = round(self.mini_batch_fraction * self.local_steps)
        return max(1, min(passes, self.max_iter - iteration))

    @property
    def n_rounds(self) -> int:
        """Rounds of a pass, at least 1."""
        share = self.mini_batch_fraction
        if self.updates == "local":
            share = share * self.local_steps or 1.0
        return max(1, math.ceil(1.0 / share - 1e-9))  # 1 / 0.1 may come out above 10


SETTINGS = StochasticSettings


@dataclass(frozen=True)
class Passes(State):
    """Where a run stands after whole passes.

    Attributes
    ----------
    v : ndarray, shape (size,)
    memory : tuple
        Of the driver's rule.
    outer : ndarray, shape (size,)
        The driver's momentum of mean moves.
    epoch, steps : int
        Passes so far, and the driver's steps in them.
    link : Link or None
        What the driver knows of the partitions, if they remember anything.
    anchor : Passes or None
        A state whose partitions' states are on the driver.
    validation_loss : float
        The mean loss of the rows held out; NaN without any.
    best : Passes or None
        Where that was least so far.
    mean_staleness : float
        Of asynchronous updates: steps that the driver took while a share was under way, the mean
        of the pass; else NaN.
    waited : int
        Passes since it fell by more than ``tol`` times its least value before.
    """

    v: np.ndarray = field(default_factory=lambda: np.empty(0))
    memory: tuple[Any, ...] = ()
    outer: np.ndarray = field(default_factory=lambda: np.empty(0))
    epoch: int = 0
    steps: int = 0
    link: Link | None = None
    anchor: Passes | None = None
    validation_loss: float = math.nan
    best: Passes | None = None
    waited: int = 0
    mean_staleness: float = math.nan

    def by_partition(self) -> bool:
        return self.link is not None


class Flights(Protocol):
    """Gradients under way; :class:`mllib_ext.stochastic.GradientFlights` are."""

    @property
    def shares(self) -> Sequence[float]: ...

    def send(self, group: int, v: np.ndarray, draw: Draw) -> None: ...

    def receive(self) -> tuple[int, np.ndarray | None]: ...


class Sampled(Protocol):
    """What a run sees of an objective; :class:`mllib_ext.stochastic.Stochastic` is one."""

    def value(self, v: np.ndarray) -> float: ...

    def value_and_validation(
        self, v: np.ndarray, fraction: float, seed: int
    ) -> tuple[float, float]: ...

    def pull(self, v: np.ndarray) -> np.ndarray: ...

    def gradient(
        self, v: np.ndarray, draw: Draw, wire: Wire | None, link: Link | None
    ) -> tuple[np.ndarray | None, Link | None]: ...

    def moves(
        self, v: np.ndarray, draw: Draw, steps: Steps, wire: Wire | None, link: Link | None
    ) -> tuple[np.ndarray | None, Link | None]: ...

    def flights(self) -> AbstractContextManager[Flights]: ...

    def recalled(self, link: Link | None) -> Link | None: ...

    @property
    def matrices(self) -> tuple[tuple[int, int, int], ...]: ...


def stopped_falling(losses: Sequence[float], state: Any, settings: Any) -> bool:
    """No pass of the last five had a loss lower by ``tol * |first loss|`` than those before.

    ``patience`` says how many in place of five. With a schedule that has an end, only there; with
    a validation fraction never.
    """
    before, last = losses[: -settings.patience], losses[-settings.patience :]
    if settings.validation_fraction or not before:
        return False
    if settings.schedule not in ENDLESS and state.epoch < settings.max_iter:
        return False
    return min(before) - min(last) <= settings.tol * abs(losses[0])


def validation_stopped_falling(losses: Sequence[float], state: Any, settings: Any) -> bool:
    """So many passes as ``patience`` says brought no better loss of the rows held out."""
    return settings.validation_fraction > 0 and state.waited >= settings.patience


STOPPING: dict[str, StoppingRule] = {
    "loss": stopped_falling,
    "validation": validation_stopped_falling,
}


def start(objective: Sampled, v: np.ndarray, settings: StochasticSettings) -> Passes:
    """Evaluate the starting point."""
    memory = settings.rule.start(len(v))
    return _measured(objective, Passes(0.0, v=v, memory=memory, outer=np.zeros_like(v)), settings)


def finish(state: Passes) -> Passes:
    """The state that a run ends with: where the loss of the rows held out was least."""
    if state.best is None:
        return state
    best = state.best
    return replace(state, v=best.v, loss=best.loss, validation_loss=best.validation_loss)


def again(objective: Sampled, state: Passes, settings: StochasticSettings) -> Passes:
    """The state under another objective: its momentum is gone, its passes are not."""
    fresh = start(objective, state.v, settings)
    return replace(fresh, epoch=state.epoch, steps=state.steps)


def portable(objective: Sampled, state: Passes) -> Passes:
    """The state with those of the partitions in it, or the last one that has them."""
    try:
        return replace(state, link=objective.recalled(state.link), anchor=None)
    except StateLost as lost:  # the next step would go back as well
        assert state.anchor is not None
        logger.warning("%s: the checkpoint is of pass %d", lost, state.anchor.epoch)
        return state.anchor


def step(objective: Sampled, state: Passes, settings: StochasticSettings) -> Passes:
    """One pass, or a round of several."""
    went = {"synchronous": _synchronous, "local": _local, "asynchronous": _asynchronous}[
        settings.updates
    ]
    with np.errstate(over="ignore", invalid="ignore"):  # the loop says which rate diverged
        while True:
            try:
                if state.anchor is None or state.epoch >= state.anchor.epoch + ANCHOR:
                    anchor = replace(state, link=objective.recalled(state.link), anchor=None)
                    state = replace(anchor, anchor=anchor)
                after = went(objective, state, settings)
                break
            except StateLost as lost:
                assert state.anchor is not None
                logger.warning("%s: back to pass %d", lost, state.anchor.epoch)
                state = replace(state.anchor, anchor=state.anchor)
        if settings.updates != "asynchronous":  # it may have been before
            after = replace(after, mean_staleness=math.nan)
        epoch = state.epoch + settings.ahead(state.epoch)
        return _measured(objective, replace(after, epoch=epoch), settings)


def _measured(objective: Sampled, state: Passes, settings: StochasticSettings) -> Passes:
    """The state with its losses."""
    fraction = settings.validation_fraction
    if not fraction:
        return replace(state, loss=objective.value(state.v))
    loss, validation = objective.value_and_validation(state.v, fraction, settings.seed)
    state = replace(state, loss=loss, validation_loss=validation)
    least = None if state.best is None else state.best.validation_loss
    waited = 0
    if least is not None and validation >= least - settings.tol * abs(least):
        waited = state.waited + 1
    if least is None or validation < least:
        best = replace(state, memory=(), outer=np.empty(0), link=None, anchor=None, best=None)
        state = replace(state, best=best)
    return replace(state, waited=waited)


def _synchronous(objective: Sampled, state: Passes, settings: StochasticSettings) -> Passes:
    """A step on the driver by every share of the pass."""
    rule, count = settings.rule, settings.n_rounds
    if settings.corrected:
        rule = Momentum()
    wire = settings.wire(objective.matrices)
    v, memory, link, steps, eta = state.v, state.memory, state.link, state.steps, 0.0
    for index in range(count):
        draw = settings.draw(state.epoch, index)
        gradient, link = objective.gradient(v, draw, wire, link)
        if gradient is not None:
            eta = settings.rates.rate(steps, state.epoch + (index + 0.5) / count)
            v, memory = _moved(rule, v, gradient, objective.pull(v), memory, eta)
            steps += 1
    return replace(state, v=v, memory=memory, link=link, steps=steps, step_size=eta)


def _moved(
    rule: Rule, v: np.ndarray, g: np.ndarray, r: np.ndarray, memory: Memory, eta: float
) -> tuple[np.ndarray, Memory]:
    """A step in copies: states are never changed."""
    v = v.copy()
    return v, rule.move(v, g, r, own(memory), eta)


def _local(objective: Sampled, state: Passes, settings: StochasticSettings) -> Passes:
    """A mean of the partitions' own moves for every share of the pass, or for several passes."""
    v, outer, link, count = state.v, state.outer, state.link, settings.n_rounds
    n_passes = settings.ahead(state.epoch)
    fraction, rates = settings.mini_batch_fraction, settings.rates
    steps, wire = Steps(settings.rule, rates, fraction), settings.wire(objective.matrices)
    for index in range(count):
        draw = settings.draw(state.epoch, index, n_passes)
        moved, link = objective.moves(v, draw, steps, wire, link)
        if moved is not None:
            outer = settings.outer_momentum * outer + moved
            v = v + outer
    epoch = state.epoch + n_passes
    eta = rates.rate(epoch / fraction, epoch - 0.5 * fraction)
    steps_so_far = state.steps + count
    return replace(state, v=v, outer=outer, link=link, steps=steps_so_far, step_size=eta)


def _asynchronous(objective: Sampled, state: Passes, settings: StochasticSettings) -> Passes:
    """A step on the driver by every share of every group, in the order of their arrival."""
    rule, count, rates = settings.rule, settings.n_rounds, settings.rates
    v, memory, steps, eta = state.v, state.memory, state.steps, 0.0
    stale: list[int] = []
    with objective.flights() as flights:
        done = [0] * len(flights.shares)  # shares of the pass, by group
        idle = set(range(len(done)))
        sent = [0] * len(done)  # steps when a group was last sent
        while min(done) < count:
            ahead = min(count - 1, min(done) + settings.staleness)
            for group in sorted(g for g in idle if done[g] <= ahead):
                flights.send(group, v, settings.draw(state.epoch, done[group]))
                idle.remove(group)
                sent[group] = steps
            group, gradient = flights.receive()
            stale.append(steps - sent[group])
            if gradient is not None:
                # As many arrivals as there are groups make one step by all rows.
                share = flights.shares[group]
                eta = rates.rate(steps / len(done), state.epoch + (done[group] + 0.5) / count)
                pull = objective.pull(v)
                v, memory = _moved(rule, v, share * gradient, share * pull, memory, eta)
                steps += 1
            done[group] += 1
            idle.add(group)
    mean = sum(stale) / len(stale)
    return replace(state, v=v, memory=memory, steps=steps, step_size=eta, mean_staleness=mean)
