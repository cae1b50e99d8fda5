"""State that belongs to a partition and is no function of the parameters.

Error-feedback residuals and local moments stay where they are made. After a round a partition's new
state is a file beside its blocks, with a name for (run, partition, round, attempt); the task
reports the attempt, and only what the driver has committed is read by the next round. So a task
that is retried or runs twice starts from the same state both times, and one of its results counts.
"""

from __future__ import annotations

import os
import pickle
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllib_ext.blockfile import Block, Handle
from mllib_ext.partials import BlockMissing, Merge, StateLost


@dataclass(frozen=True)
class Kept:
    """The states of all partitions after one round, as the driver has committed them.

    Attributes
    ----------
    run : str
        Which sequence of rounds: several fits may share blocks.
    number : int
        Of the round in it.
    states : dict
        By partition the attempt whose file counts, or the state itself; never None.
    inline : bool
        It is the states themselves.
    """

    run: str
    number: int
    states: dict[int, Any]
    inline: bool

    def address(self) -> Any:
        """What a round sends: a few bytes for each partition, unless it is the states."""
        if self.inline:
            return self.states
        last = max(self.states, default=-1)
        attempts = [self.states.get(partition, 0) for partition in range(last + 1)]
        return self.run, self.number, b"".join(a.to_bytes(4, "little") for a in attempts)


# A stage with a state: stage(handle, blocks, state or None, *parameters) -> (values, state)
KeptStage = Callable[..., tuple[tuple[Any, ...], Any]]


def updated(
    stage: KeptStage,
    where: tuple[str, int] | None,
    handle: Handle,
    blocks: Iterable[Block],
    address: Any,
    *parameters: Any,
) -> tuple[Any, ...]:
    """One partition's share of :meth:`mllib_ext.blocks.Blocks.update`.

    ``where`` is the run and the number of the round that its file is named by; None where the state
    itself is returned in place of an attempt.
    """
    known, state = _read(handle, address)
    if not known:
        return {handle.partition: None}, None
    values, state = stage(handle, blocks, state, *parameters)
    if where is None:
        return {handle.partition: state}, values
    attempt = uuid.uuid4().int >> 96
    path = _path(handle, *where, attempt)
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(pickle.dumps(state, protocol=5))
        os.replace(temporary, path)
    except FileNotFoundError as gone:  # the directory, with its blocks
        raise BlockMissing(handle.path) from gone
    if isinstance(address, tuple):
        # Rounds before the committed one are over, with all their attempts.
        for old in path.parent.glob(f"state-{where[0]}-{handle.partition:05d}-*"):
            if int(old.name.split("-")[3]) < address[1]:
                old.unlink(missing_ok=True)
    return {handle.partition: attempt}, values


def recalled(handle: Handle, blocks: Iterable[Block], address: Any) -> tuple[Any]:
    """A partition's state, for the driver."""
    _, state = _read(handle, address)
    return ({handle.partition: state},)


def join_updates(merge: Merge, left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    """The shares of two neighbours."""
    values = left[1] if right[1] is None else right[1]
    if left[1] is not None and right[1] is not None:
        values = merge(left[1], right[1])
    return left[0] | right[0], values


def join_states(left: tuple[Any], right: tuple[Any]) -> tuple[Any]:
    """The states of two neighbours."""
    return (left[0] | right[0],)


def refuse_lost(states: dict[int, Any]) -> None:
    """StateLost if some state was not where its blocks are."""
    lost = [partition for partition, state in states.items() if state is None]
    if lost:
        raise StateLost(f"the states of partitions {lost} are lost")


def _read(handle: Handle, address: Any) -> tuple[bool, Any]:
    """Whether the state is here, and what it is."""
    if address is None:
        return True, None
    if isinstance(address, dict):
        return True, address.get(handle.partition)
    run, number, attempts = address
    at = 4 * handle.partition
    path = _path(handle, run, number, int.from_bytes(attempts[at : at + 4], "little"))
    try:
        return True, pickle.loads(path.read_bytes())
    except FileNotFoundError as gone:
        if not Path(handle.path).exists():  # this machine has none of it: the round looks further
            raise BlockMissing(handle.path) from gone
        return False, None


def _path(handle: Handle, run: str, number: int, attempt: int) -> Path:
    name = f"state-{run}-{handle.partition:05d}-{number:08d}-{attempt:08x}"
    return Path(handle.path).parent / name
