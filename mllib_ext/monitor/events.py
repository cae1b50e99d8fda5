"""What a run leaves behind: its description and its events.

``run.json`` describes a run: ``format``, ``estimator`` (the class), ``uid``, ``params`` (as they
were at the start), ``seed``, ``versions``, ``started`` (Unix seconds), ``application`` (Spark's id
of it), ``host`` and ``pid`` of the driver.

``events.jsonl`` (on file systems without append ``events/NUMBER.jsonl``) has one event a line. All
have ``id`` (1, 2, ...), ``time`` (Unix seconds) and ``event``, which is one of:

``round``
    After every round of the algorithm. ``start`` (which start of the algorithm, from 0: k-means
    with ``nInit`` and every level of bisecting k-means begin anew), ``iteration``, ``loss``,
    ``gradient_norm``, ``step_size`` (k-means: the largest distance that a center moved);
    ``seconds`` = ``latency`` + ``compute`` + ``driver``; ``bytes_down``, ``bytes_up``; ``passes``
    over the data; ``partitions`` with the lists ``partition``, ``rows`` and ``seconds`` (the
    slowest 1,000 where there are more), ``skew`` (their largest seconds less their median) and
    ``slowest``; ``settings`` that the round ran under; ``state`` with all numbers that the
    algorithm's state has, and the arrays that it names in ``shown``, matrices as points (n, 2).
``tunables``
    Before the first round: what may be set, each with ``type``, ``low``, ``high``, ``low_open``
    and ``choices``.
``command``
    A command was ``applied``, or ``refused`` with a ``reason``: ``command``, ``values``,
    ``origin``, ``key``, ``sent`` (Unix seconds), ``iteration`` after which it took effect.
``change``
    A callback of the user's changed settings: ``values``, ``iteration``.
``state``
    ``state`` became ``running`` or ``paused``.
``end``
    ``state`` is ``finished``, ``stopped`` (a command or a callback) or ``failed``; ``reason``,
    ``converged``, ``n_iter``, or ``error``.

A value that is not finite is null.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import re
import socket
import time
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyspark
import scipy
from pyspark import SparkContext

import mllib_ext
from mllib_ext.optimizers.loop import Record, Settings, State
from mllib_ext.persistence import encoded
from mllib_ext.plain import plain

FORMAT = 1
# Of partitions in a round, rows of a matrix and entries of an array: a line stays within 100 kB.
MOST = 1_000


def description(estimator: Any) -> dict[str, Any]:
    """What ``run.json`` says of a fit of an estimator."""
    params = params_of(estimator)
    context = SparkContext._active_spark_context
    return {
        "format": FORMAT,
        "estimator": f"{type(estimator).__module__}.{type(estimator).__name__}",
        "uid": estimator.uid,
        "params": params,
        "seed": params.get("seed"),
        "versions": versions(),
        "started": round(time.time(), 3),
        "application": context.applicationId if context is not None else None,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def params_of(estimator: Any) -> dict[str, Any]:
    """The Params of an estimator that have a value, as JSON knows them."""
    return {param.name: _param(value) for param, value in estimator.extractParamMap().items()}


def versions() -> dict[str, str]:
    """The versions of this package and of what its results depend on."""
    return {
        "mllib_ext": mllib_ext.__version__,
        "python": platform.python_version(),
        "pyspark": pyspark.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "pandas": pd.__version__,
        "pyarrow": pa.__version__,
    }


def _param(value: Any) -> Any:
    array = value.toArray() if hasattr(value, "toArray") else None
    if array is not None and array.size > MOST:
        return f"{type(value).__name__} of shape {array.shape}"
    return plain(encoded(value))


def tunables(settings: Settings) -> dict[str, Any]:
    """The schema of what may be set, by the names of Params."""
    found = {}
    for name, field in type(settings).tunables().items():
        rule = field.metadata
        found[camel(name)] = {
            "type": type(field.default).__name__,
            "low": plain(rule["low"]),
            "high": plain(rule["high"]),
            "low_open": rule["low_open"],
            "choices": list(rule["choices"]),
        }
    return found


def camel(name: str) -> str:
    """A setting's name as a Param's: ``step_size`` is ``stepSize``."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def snake(name: str) -> str:
    """A Param's name as a setting's: ``stepSize`` is ``step_size``."""
    return re.sub(r"(?<=[a-z0-9])[A-Z]", lambda match: f"_{match[0]}", name).lower()


# --- a round -------------------------------------------------------------------------------------


def round_event(
    state: State, record: Record, start: int, planes: dict[str, Plane]
) -> dict[str, Any]:
    """The event of a round.

    Parameters
    ----------
    state : State
    record : Record
    start : int
    planes : dict of str to Plane
        Where the matrices of this run are looked at; filled here.
    """
    spent = sum(r.seconds for r in record.rounds)
    seconds = max(record.seconds, spent)  # what comes before the first record is rounds alone
    compute = sum(map(compute_seconds, record.rounds))
    return {
        "event": "round",
        "start": start,
        "iteration": record.iteration,
        "loss": _finite(record.loss),
        "gradient_norm": _finite(record.gradient_norm),
        "step_size": _finite(record.step_size),
        "seconds": round(seconds, 6),
        "latency": round(spent - compute, 6),
        "compute": round(compute, 6),
        "driver": round(seconds - spent, 6),
        "bytes_down": sum(r.bytes_down for r in record.rounds),
        "bytes_up": sum(r.bytes_up for r in record.rounds),
        "passes": len(record.rounds),
        **partitions(record.rounds),
        "settings": _settings(record.settings),
        "state": shown(state, planes),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@lru_cache(maxsize=16)  # they are those of the round before
def _settings(settings: Settings) -> dict[str, Any]:
    values: dict[str, Any] = plain(vars(settings))
    return values


def compute_seconds(r: Any) -> float:
    """The least time in which the tasks of a round could have done what its partitions did.

    Which partitions a task had is not known, so it is that of an even division. The rest of the
    round's wall-clock time is latency: scheduling, the way there and back, and an uneven division.
    """
    spent = [p.seconds for p in r.partitions]
    return min(r.seconds, max(max(spent, default=0.0), sum(spent) / max(r.n_tasks, 1)))


def partitions(rounds: Sequence[Any]) -> dict[str, Any]:
    """Rows and seconds of every partition, those of several rounds together."""
    if not rounds:
        return {}
    if len({p.partition for r in rounds for p in r.partitions}) == 1:
        # On the driver, where a round takes little more time than this.
        one = next(p for r in rounds for p in r.partitions)
        taken = round(sum(p.seconds for r in rounds for p in r.partitions), 6)
        return {
            "partitions": {"partition": [one.partition], "rows": [one.rows], "seconds": [taken]},
            "skew": 0.0,
            "slowest": {"partition": one.partition, "host": one.host, "seconds": taken},
        }
    # Lists: of the few partitions that most data have, arrays take three times as long.
    last = {p.partition: p for r in rounds for p in r.partitions}
    if not last:  # a fit that goes on where nothing was left to do
        return {}
    spent = dict.fromkeys(sorted(last), 0.0)
    for r in rounds:
        for p in r.partitions:
            spent[p.partition] += p.seconds
    ranked = sorted(spent, key=spent.__getitem__)
    middle, slow = len(ranked) // 2, last[ranked[-1]]
    median = (spent[ranked[middle]] + spent[ranked[-1 - middle]]) / 2
    kept = sorted(ranked[-MOST:]) if len(ranked) > MOST else list(spent)
    most = round(spent[slow.partition], 6)
    return {
        "partitions": {
            "partition": kept,
            "rows": [last[i].rows for i in kept],
            "seconds": [round(spent[i], 6) for i in kept],
        },
        "skew": round(spent[slow.partition] - median, 6),
        "slowest": {"partition": slow.partition, "host": slow.host, "seconds": most},
    }


# --- what an algorithm's own state shows ---------------------------------------------------------


def shown(state: State, planes: dict[str, Plane]) -> dict[str, Any]:
    """The numbers of a state beyond those of every state, and the arrays that its class names."""
    values: dict[str, Any] = {}
    cls: Any = type(state)
    for name in _names(cls):
        value = getattr(state, name)
        if isinstance(value, bool | int | float | np.bool_ | np.number):
            values[name] = plain(value)
    for name in cls.shown:
        array = np.asarray(getattr(state, name))
        if len(array) <= MOST:
            if array.ndim > 1:
                array = planes.setdefault(name, Plane())(array)
            values[name] = _short(array)
    return values


@cache
def _names(cls: Any) -> tuple[str, ...]:
    """Fields that an algorithm adds to a state, and properties that say they are numbers."""
    known = {field.name for field in dataclasses.fields(State)}
    names = [field.name for field in dataclasses.fields(cls)]
    for base in cls.__mro__:
        for name, attribute in vars(base).items():
            get = getattr(attribute, "fget", None)
            kind = getattr(get, "__annotations__", {}).get("return")
            if kind in ("int", "float", "bool", int, float, bool):
                names.append(name)
    return tuple(n for n in dict.fromkeys(names) if n not in known and not n.startswith("_"))


def _short(values: np.ndarray) -> Any:
    """An array as lists, in the six digits that a picture needs."""
    if values.ndim > 1:
        return [_short(row) for row in values]
    return [plain(float(f"{value:.6g}")) for value in values.tolist()]


class Plane:
    """Rows of matrices as points: on the two principal axes of the first matrix that has some."""

    def __init__(self) -> None:
        self._mean = np.zeros(0)
        self._axes = np.zeros((0, 2))  # (d, 2)

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """The points (n, 2) of rows X (n, d)."""
        if X.shape[1] != len(self._mean) or not self._axes.any():
            self._fit(X)
        points: np.ndarray = (X - self._mean) @ self._axes
        return points

    def _fit(self, X: np.ndarray) -> None:
        self._mean = X.mean(axis=0)
        C = X - self._mean
        self._axes = np.zeros((X.shape[1], 2))
        # The smaller of both products: few centers of texts have very many columns.
        wide = len(X) < X.shape[1]
        values, vectors = np.linalg.eigh(C @ C.T if wide else C.T @ C)
        for axis in range(min(2, len(values))):
            if values[-1 - axis] > 1e-12 * max(values[-1], 1e-300):
                v = vectors[:, -1 - axis]
                direction = C.T @ v if wide else v
                self._axes[:, axis] = direction / np.linalg.norm(direction)
