"""The one loop of every iterative algorithm: stopping, history, divergence, callbacks.

An algorithm is a function ``step(state, settings) -> state``. :func:`iterate` calls it until a
stopping rule holds, hands each round to the callbacks and applies what they answer between two
rounds. No optimizer knows about callbacks, and nothing here knows about Spark.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from mllib_ext.names import did_you_mean

logger = logging.getLogger(__name__)

# A loss this many times its first value has left the basin: no line search allows such a rise.
DIVERGENCE_FACTOR = 1000.0


class DivergenceError(ArithmeticError):
    """Training left the region where the loss is finite or near its first value."""


class ConvergenceWarning(UserWarning):
    """Training stopped at ``maxIter`` before a stopping rule held."""


# --- settings --------------------------------------------------------------------------------


def setting(
    default: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    choices: Sequence[str] = (),
    tunable: bool = True,
) -> Any:
    """Declare a field of :class:`Settings`: its default, range, and whether a run may change it."""
    rule = {"low": low, "high": high, "low_open": low_open, "choices": tuple(choices)}
    return field(default=default, metadata={**rule, "tunable": tunable})


@dataclass(frozen=True)
class Settings:
    """What an algorithm is told and a callback may change between rounds (frozen values).

    Attributes
    ----------
    max_iter : int
        Rounds after which the loop stops, converged or not.
    tol : float
        Tolerance of the stopping rules.
    """

    max_iter: int = setting(100, low=0)
    tol: float = setting(1e-6, low=0)

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))

    @classmethod
    def tunables(cls) -> dict[str, dataclasses.Field[Any]]:
        """The fields that a running fit may change, by name."""
        return {f.name: f for f in dataclasses.fields(cls) if f.metadata["tunable"]}

    def change(self, /, **values: Any) -> Settings:
        """These settings with some values changed.

        Raises
        ------
        ValueError
            A name that is not tunable here, or a value outside its declared type or range.
        """
        known = self.tunables()
        for name in values:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(
                    f"setting {name!r}: expected one of {sorted(known)}, found {name!r}{hint}"
                )
        return replace(self, **values)

    def ahead(self, iteration: int) -> int:
        """How many iterations the next step makes: what ``max_iter`` counts may be many in one."""
        return 1


def _checked(f: dataclasses.Field[Any], value: Any) -> Any:
    """``value`` as the plain Python type of the field's default, or a ValueError with the rule."""
    rule: Any = f.metadata
    kind: Any = type(f.default)
    if kind is str:
        if value not in rule["choices"]:
            raise ValueError(
                f"setting {f.name!r}: expected one of {list(rule['choices'])}, found {value!r}"
            )
        return value
    try:
        number = float(value)
        right_type = not isinstance(value, bool | str) and (kind is float or number == int(number))
    except (TypeError, ValueError, OverflowError):
        right_type, number = False, math.nan
    low, high = rule["low"], rule["high"]
    above = number > low if rule["low_open"] else number >= low
    if not (right_type and above and number <= high and math.isfinite(number)):
        what = "an integer" if kind is int else "a number"
        bounds = f"{'(' if rule['low_open'] else '['}{low}, {high}]"
        raise ValueError(f"setting {f.name!r}: expected {what} in {bounds}, found {value!r}")
    return kind(value)


# --- what a round leaves behind --------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """Where an algorithm stands. Each algorithm adds its own parameters; none is ever mutated.

    Attributes
    ----------
    loss : float
        The objective at this state's parameters, not at those before the last move.
    gradient_norm : float
        Euclidean norm of the gradient there; NaN where the algorithm has none.
    step_size : float
        The step that led here; 0 at the start.
    stalled : bool
        The algorithm found no better point at the precision of the arithmetic.
    shown : tuple of str
        Names of the arrays that are worth a look in every round, of a class: a record of the run
        keeps them beside all numbers that the state has.
    told : tuple of str
        Names of the numbers of a class that its history has, beside those of every state.
    """

    shown: ClassVar[tuple[str, ...]] = ()
    told: ClassVar[tuple[str, ...]] = ()

    loss: float
    gradient_norm: float = math.nan
    step_size: float = 0.0
    stalled: bool = False

    def by_partition(self) -> bool:
        """Whether it tells of partitions, or of places in them: it then needs the same ones."""
        return False


@dataclass(frozen=True)
class Record:
    """One line of the history: what a round did and what it cost.

    Attributes
    ----------
    iteration : int
        0 is the state before the first step.
    loss, gradient_norm, step_size : float
        As in :class:`State`.
    seconds : float
        Wall-clock time of the iteration on the driver, rounds included.
    rounds : tuple
        One :class:`mllib_ext.blocks.Round` for every pass over the data: seconds, bytes, and
        rows and seconds of every partition.
    settings : Settings
        The settings that the iteration ran under.
    actions : tuple of str
        What callbacks asked for after the round, in words.
    validation_loss : float
        The mean loss of rows held out, of a state that has one; else NaN.
    values : dict of str to float
        What the algorithm's state tells besides (:attr:`State.told`), by name.
    checkpoints : tuple of str
        What there is to go back to, by name.
    """

    iteration: int
    loss: float
    gradient_norm: float
    step_size: float
    seconds: float
    rounds: tuple[Any, ...]
    settings: Settings
    actions: tuple[str, ...] = ()
    validation_loss: float = math.nan
    values: dict[str, float] = field(default_factory=dict)
    checkpoints: tuple[str, ...] = ()


S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Result(Generic[S]):
    """The end of a run: the last state, and how it came about.

    Attributes
    ----------
    state : State
    converged : bool
        A stopping rule held.
    reason : str
        That of a stopping rule or ``precision`` (converged), ``max_iter``, or what a callback
        said.
    n_iter : int
    history : tuple of Record
        The first record is the state before the first step.
    """

    state: S
    converged: bool
    reason: str
    n_iter: int
    history: tuple[Record, ...]


# --- callbacks and their actions -------------------------------------------------------------


@dataclass(frozen=True)
class Stop:
    """End the run after this round and keep the state."""

    reason: str = "stopped by a callback"

    def __str__(self) -> str:
        return f"stop: {self.reason}"


class Change:
    """Go on with other settings: ``Change(step_size=0.01)``."""

    def __init__(self, /, **values: Any) -> None:
        self.values = values

    def __str__(self) -> str:
        return "change " + ", ".join(f"{k}={v!r}" for k, v in self.values.items())


@dataclass(frozen=True)
class Checkpoint:
    """Remember this state under a name, for :class:`Restore`."""

    name: str = "checkpoint"

    def __str__(self) -> str:
        return f"checkpoint {self.name!r}"


@dataclass(frozen=True)
class Restore:
    """Go back to the state that :class:`Checkpoint` remembered. Iterations go on counting."""

    name: str = "checkpoint"

    def __str__(self) -> str:
        return f"restore {self.name!r}"


Action = Stop | Change | Checkpoint | Restore


class Callback(Protocol):
    """Called on the driver after every round; may answer with one action or several."""

    def __call__(self, state: Any, record: Record) -> Action | Iterable[Action] | None: ...


@dataclass(frozen=True)
class Progress(Generic[S]):
    """All that a run needs to go on after an iteration, what callbacks asked for being done.

    Attributes
    ----------
    state : State
    settings : Settings
        As they are by now.
    begun : Settings
        As they were at the start.
    iteration : int
    losses : tuple of float
        What stopping rules look at.
    reason : str or None
        The stopping rule that holds.
    history : tuple of Record
    checkpoints : dict
        State and settings by the names that :class:`Checkpoint` gave them.
    """

    state: S
    settings: Any
    begun: Any
    iteration: int
    losses: tuple[float, ...]
    reason: str | None
    history: tuple[Record, ...]
    checkpoints: dict[str, tuple[S, Any]]

    def with_max_iter(self, max_iter: int) -> Progress[S]:
        """As if it had begun with another ``max_iter``, and nothing had changed that."""
        settings, begun = (replace(s, max_iter=max_iter) for s in (self.settings, self.begun))
        return replace(self, settings=settings, begun=begun)


class Keeper(ABC):
    """A callback that keeps runs, so that one which was killed can go on."""

    def __call__(self, state: Any, record: Record) -> None:
        """No action: what is kept is what the other callbacks made of the round."""
        return None

    @abstractmethod
    def begin(self, settings: Settings) -> Progress[Any] | None:
        """Where a run that begins with these settings goes on; None at its start."""

    @abstractmethod
    def due(self, iteration: int) -> bool:
        """Whether to keep the run after this iteration, also if nobody asked for it."""

    @abstractmethod
    def keep(self, progress: Progress[Any], end: bool) -> None:
        """Keep the run as it is; ``end`` where it ends here."""


# --- stopping rules --------------------------------------------------------------------------

Rule = Callable[[Sequence[float], State, Settings], bool]


def gradient_is_small(losses: Sequence[float], state: State, settings: Settings) -> bool:
    """``norm(gradient) <= tol * |loss|``, as in pyspark.ml (1e-8 keeps a loss of 0 reachable)."""
    return state.gradient_norm <= settings.tol * max(abs(state.loss), 1e-8)


def loss_is_flat(losses: Sequence[float], state: State, settings: Settings) -> bool:
    """The last ten losses lie within ``tol * |first loss|``, as in pyspark.ml.

    Tested from the first iteration on, over what history there is.
    """
    window = losses[-10:]  # a rise is not flat either
    return len(window) > 1 and max(window) - min(window) <= settings.tol * abs(losses[0])


SMOOTH: dict[str, Rule] = {"gradient": gradient_is_small, "loss": loss_is_flat}


# --- the loop --------------------------------------------------------------------------------


def iterate(
    step: Callable[[S, Any], S],
    state: S,
    settings: Settings,
    callbacks: Sequence[Callback] = (),
    *,
    stopping: dict[str, Rule] = SMOOTH,
    changed: Callable[[S, Any, Any], S] = lambda state, old, new: state,
    drain: Callable[[], tuple[Any, ...]] = tuple,
    portable: Callable[[S, Any], S] = lambda state, settings: state,
    divergence: float = DIVERGENCE_FACTOR,
    warn: bool = True,
) -> Result[S]:
    """Step until a stopping rule holds, a callback says stop, or ``max_iter`` is reached.

    Parameters
    ----------
    step : callable
        ``step(state, settings) -> state``: one iteration.
    state : State
        The start, its loss already evaluated.
    settings : Settings
    callbacks : sequence of callables
        Each is called as ``callback(state, record)`` once at the start (iteration 0) and after
        every iteration. Their actions are applied in order, between two iterations. A run that a
        :class:`Keeper` among them has kept goes on after the iteration that it was kept after.
    stopping : dict of str to callable
        ``rule(losses, state, settings) -> bool`` by the reason it stands for; ``losses`` are
        those of the run since the objective last changed, the first one included.
    changed : callable
        ``changed(state, old, new) -> state``: what a change of settings does to the state; an
        optimizer that remembers curvature forgets it here when the objective changed.
    drain : callable
        Returns the reports of the rounds run since it was last called.
    portable : callable
        ``portable(state, settings)``: the state without what is elsewhere than on the driver.
    divergence : float
        How many times its first value a loss may be; infinite where losses are those of samples.
    warn : bool
        Whether an end at ``max_iter`` is a ConvergenceWarning.

    Raises
    ------
    DivergenceError
        The loss became non-finite, or rose a thousandfold (``divergence``).
    ValueError
        A callback asked for a setting or a checkpoint that does not exist.
    """
    history: list[Record] = []
    checkpoints: dict[str, tuple[S, Settings]] = {}
    losses = [state.loss]
    iteration, began, begun = 0, time.perf_counter(), settings
    keeper = next((callback for callback in callbacks if isinstance(callback, Keeper)), None)

    if keeper is not None and (kept := keeper.begin(settings)) is not None:
        state, settings, iteration = kept.state, kept.settings, kept.iteration
        history, losses, checkpoints = list(kept.history), list(kept.losses), kept.checkpoints
        reason = kept.reason and _reason(losses, state, settings, stopping)
        ended = _ended(state, settings, iteration, history, None, reason)
        if ended is not None:
            return _told(ended, settings, warn)
        state = step(state, settings)
        losses.append(state.loss)
        iteration += settings.ahead(iteration)

    while True:
        reason = _reason(losses, state, settings, stopping)
        record = Record(
            iteration=iteration,
            seconds=time.perf_counter() - began,
            rounds=drain(),
            settings=settings,
            checkpoints=tuple(checkpoints),
            **_numbers(state),
        )
        _refuse_divergence(losses, record, divergence)
        actions = [action for callback in callbacks for action in _answer(callback, state, record)]
        history.append(replace(record, actions=tuple(map(str, actions))))

        began, asked = time.perf_counter(), False
        stop: str | None = None
        for action in actions:
            logger.info("iteration %d: %s", iteration, action)
            match action:
                case Stop():
                    stop = action.reason
                case Checkpoint():
                    remembered = portable(state, settings)
                    checkpoints[action.name], asked = (remembered, settings), True
                case Restore():
                    if action.name not in checkpoints:
                        raise ValueError(
                            f"restore {action.name!r}: expected one of the checkpoints "
                            f"{sorted(checkpoints)}, found none of that name"
                        )
                    remembered, then = checkpoints[action.name]
                    # The objective may be another one by now.
                    state, reason = changed(remembered, then, settings), None
                    losses = [state.loss]
                case Change():
                    new = settings.change(**action.values)
                    state = changed(state, settings, new)
                    settings, reason, losses = new, None, [state.loss]
        ended = _ended(state, settings, iteration, history, stop, reason)
        if ended is not None and any(isinstance(action, Restore) for action in actions):
            # The last record is of what is kept, which the round did not make.
            history[-1] = replace(history[-1], **_numbers(state))
            ended = replace(ended, history=tuple(history))
        if keeper is not None and (asked or ended or keeper.due(iteration)):
            # Also if it ends here: it may go on with another max_iter.
            progress = Progress(
                portable(state, settings), settings, begun, iteration, tuple(losses), reason,
                tuple(history), checkpoints,
            )  # fmt: skip
            keeper.keep(progress, ended is not None)
        if ended is not None:
            return _told(ended, settings, warn)

        state = step(state, settings)
        losses.append(state.loss)
        iteration += settings.ahead(iteration)


def _numbers(state: State) -> dict[str, Any]:
    """What a record tells of a state."""
    return {
        "loss": state.loss,
        "gradient_norm": state.gradient_norm,
        "step_size": state.step_size,
        "validation_loss": getattr(state, "validation_loss", math.nan),
        "values": {name: getattr(state, name) for name in state.told},
    }


def _ended(
    state: S,
    settings: Settings,
    iteration: int,
    history: Sequence[Record],
    stop: str | None,
    reason: str | None,
) -> Result[S] | None:
    """The result of a run that ends here: a callback said stop, or a rule or ``max_iter`` does."""
    if stop is not None:
        return Result(state, False, stop, iteration, tuple(history))
    if reason is not None:
        return Result(state, True, reason, iteration, tuple(history))
    if iteration < settings.max_iter:
        return None
    return Result(state, False, "max_iter", iteration, tuple(history))


def _told(ended: Result[S], settings: Settings, warn: bool) -> Result[S]:
    if warn and ended.reason == "max_iter":
        _warn_unconverged(replace(ended.history[-1], settings=settings))
    return ended


def _reason(
    losses: Sequence[float], state: State, settings: Settings, stopping: dict[str, Rule]
) -> str | None:
    for reason, holds in stopping.items():
        if holds(losses, state, settings):
            return reason
    return "precision" if state.stalled else None


def _answer(callback: Callback, state: State, record: Record) -> list[Action]:
    answer = callback(state, record)
    if answer is None:
        return []
    several = isinstance(answer, Iterable) and not isinstance(answer, str)
    actions: list[Any] = list(answer) if several else [answer]  # type: ignore[arg-type]
    for action in actions:
        if not isinstance(action, Action):
            raise TypeError(
                f"callback {callback!r}: expected Stop, Change, Checkpoint or Restore, "
                f"found {action!r}"
            )
    return actions


def _refuse_divergence(losses: Sequence[float], record: Record, factor: float) -> None:
    first, loss = abs(losses[0]), record.loss
    if math.isfinite(loss) and (len(losses) == 1 or loss <= factor * max(first, 1e-300)):
        return
    raise DivergenceError(
        f"training diverged in round {record.iteration} with step size {record.step_size:g}: "
        f"the loss went from {losses[0]:g} to {loss:g}; use a smaller step size or a line search"
    )


def _warn_unconverged(record: Record) -> None:
    if record.settings.max_iter:
        norm = record.gradient_norm
        gradient = "" if math.isnan(norm) else f", the norm of its gradient {norm:g}"
        warnings.warn(
            f"not converged in maxIter = {record.settings.max_iter} iterations: the loss is "
            f"{record.loss:g}{gradient}; raise maxIter or tol",
            ConvergenceWarning,
            stacklevel=5,
        )
