"""Fits kept on any Hadoop file system, and what a fit is: one that was killed goes on from there.

The runs of a fit (one for each start of k-means, one for each level of bisecting k-means) have a
directory each, ``run-1``, ``run-2``, ..., with a file for each of the last two iterations that were
kept: :mod:`mllib_ext.packed`, written whole or not at all. What comes before a run (moments, the
centers to start from) is computed again, from the same data and seeds.

A checkpoint says which fit it is of. The data are told by what lineage is judged by as well: sums
over the rows that no order and no partitioning changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mllib_ext import storage
from mllib_ext.blocks import Blocks
from mllib_ext.optimizers.loop import Keeper, Progress, Record, Settings
from mllib_ext.packed import packed, unpacked
from mllib_ext.persistence import encoded

logger = logging.getLogger(__name__)

FORMAT = 1
KEPT = 2  # the last one, and the one before in case that it is damaged
# Params that what is learnt does not depend on; the contents of columns are among the data.
WITHOUT_EFFECT = {
    "featuresCol", "featuresCols", "labelCol", "weightCol", "predictionCol", "rawPredictionCol",
    "probabilityCol", "threshold", "thresholds", "checkpointInterval", "intermediateStorageLevel",
}  # fmt: skip
# Params that change the order of additions.
LAYOUT = {"maxBlockSizeInMB", "aggregationDepth"}


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged, or was made over other partitions."""


@dataclass(frozen=True)
class Fit:
    """What a fit is of.

    Attributes
    ----------
    params : dict
        The class of the estimator, and all params that change the result; as JSON knows them.
    resumes_with : dict
        Those that may differ when it goes on.
    data : dict
        What the rows are, in any order and partitions.
    layout : dict
        How they lie: what may change the last bits of a result.
    """

    params: dict[str, Any]
    resumes_with: dict[str, Any]
    data: dict[str, Any]
    layout: dict[str, Any]

    @classmethod
    def of(cls, estimator: Any, blocks: Blocks) -> Fit:
        """The fit of an estimator on blocks."""
        values = {p.name: encoded(value) for p, value in estimator.extractParamMap().items()}
        params: dict[str, Any] = {"estimator": type(estimator).__name__}
        for name in sorted(values.keys() - WITHOUT_EFFECT - LAYOUT):
            params[name] = values[name]
        free = {name: params.pop(name) for name in estimator._resumes_with}
        params |= estimator._identity()
        partitions = [(h.partition, h.n_rows, h.ordered, h.unordered) for h in blocks.handles]
        data = {
            "rows": blocks.n_rows,
            "features": blocks.n_features,
            "type": str(np.dtype(blocks.features.dtype)),
            "sparse": blocks.sparse,
            # With labels and weights; a weight of 1 each is none.
            "checksum of all values": sum(h.unordered for h in blocks.handles) % (1 << 64),
        }
        layout = {name: values[name] for name in sorted(values.keys() & LAYOUT)}
        layout["partitions"] = _digest([p for p in partitions if p[1]])
        params, free, data, layout = (
            json.loads(json.dumps(part, default=str)) for part in (params, free, data, layout)
        )
        return cls(params, free, data, layout)

    @property
    def key(self) -> str:
        """A name for it: of its data and all its params, as fits that share a directory have."""
        return _digest([self.params, self.resumes_with, self.data])

    def differences(self, other: Fit) -> list[str]:
        """What another fit has otherwise, so that this one cannot go on from it."""
        told = []
        for what, mine, theirs in (
            ("param ", self.params, other.params),
            ("", self.data, other.data),
        ):
            for name in sorted(mine.keys() | theirs.keys()):
                here, there = mine.get(name), theirs.get(name)
                if here != there:
                    label = what if name != "estimator" else ""
                    told.append(f"{label}{name}: {there!r} there, {here!r} here")
        return told


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


class Checkpoints(Keeper):
    """Keeps the runs of a fit in a directory.

    Parameters
    ----------
    path : str
        Qualified.
    fit : Fit
    interval : int
        Iterations from one checkpoint to the next, 1 or more.
    """

    def __init__(self, path: str, fit: Fit, interval: int) -> None:
        self._path, self._fit, self._interval = path.rstrip("/"), fit, interval
        self._runs = self._last = 0

    @property
    def _run(self) -> str:
        return f"{self._path}/run-{self._runs}"

    def begin(self, settings: Settings) -> Progress[Any] | None:
        """Where the next run goes on: after the last checkpoint that can be read.

        Raises
        ------
        ValueError
            It is of another fit: what differs. ``maxIter`` is less than the iterations so far.
        """
        self._runs, self._last = self._runs + 1, 0
        for name in reversed(_files(self._run)):
            path = f"{self._run}/{name}"
            try:
                content = unpacked(storage.read_bytes(path))
                if content["format"] != FORMAT:
                    raise ValueError(f"expected format {FORMAT}, found {content['format']!r}")
                fit, progress = content["fit"], content["progress"]
            except (ValueError, KeyError, TypeError) as error:
                warnings.warn(
                    f"checkpoint {path} cannot be read: {error}; trying the one before it",
                    CheckpointWarning,
                    stacklevel=2,
                )
                continue
            self._refuse(path, fit, progress)
            logger.info("the fit goes on after iteration %d from %s", progress.iteration, path)
            self._last = progress.iteration
            return self._with_settings(path, progress, settings)
        return None

    def due(self, iteration: int) -> bool:
        return iteration // self._interval > self._last // self._interval  # some steps make many

    def keep(self, progress: Progress[Any], end: bool) -> None:
        """Write a checkpoint. One that cannot be written is a warning in the log: training goes on.

        Older ones go, but for the last.
        """
        self._last = progress.iteration
        name = f"{progress.iteration:08d}.zip"
        path = f"{self._run}/{name}"
        try:
            storage.delete(path)  # a damaged one, that the run did not go on from
            kept = replace(progress, history=tuple(map(_short, progress.history)))
            content = {"format": FORMAT, "fit": self._fit, "progress": kept}
            storage.put_bytes(path, packed(content))
            found = _files(self._run)
            before = [other for other in found if other < name]
            for other in set(found) - {name, *before[1 - KEPT :]}:
                storage.delete(f"{self._run}/{other}")
        except OSError as error:
            logger.warning("no checkpoint after iteration %d: %s", progress.iteration, error)
            return
        if end:
            logger.info("the run has ended; its last checkpoint stays in %s", path)

    def _refuse(self, path: str, fit: Fit, progress: Progress[Any]) -> None:
        told = self._fit.differences(fit)
        if told:
            raise ValueError(
                f"checkpointDir {self._path}: expected a checkpoint of this fit, found {path}, of "
                f"another one ({'; '.join(told)}): use another directory, delete this one, or have "
                "one below it for every fit by setCheckpointDir(path, shared=True)"
            )
        moved = self._fit.layout["partitions"] != fit.layout["partitions"]
        states = [progress.state, *(state for state, _ in progress.checkpoints.values())]
        if moved and any(state.by_partition() for state in states):
            raise ValueError(
                f"checkpointDir {self._path}: expected the partitions of {path}, whose state "
                "belongs to them, found the same rows in other partitions or in another order"
            )
        if self._fit.layout != fit.layout:
            names = [name for name in fit.layout if fit.layout[name] != self._fit.layout.get(name)]
            warnings.warn(
                f"checkpoint {path} was made of the same rows with other {' and '.join(names)}: "
                "the result may differ from that of an uninterrupted fit in its last bits, or more "
                "where rows are sampled",
                CheckpointWarning,
                stacklevel=2,
            )

    def _with_settings(
        self, path: str, progress: Progress[Any], settings: Settings
    ) -> Progress[Any]:
        """As it was, and with the ``maxIter`` of this fit where that is another one."""
        if settings.max_iter == progress.begun.max_iter:
            return progress
        if settings.max_iter < progress.iteration:
            raise ValueError(
                f"param maxIter: expected {progress.iteration} or more, the iterations of "
                f"checkpoint {path}, found {settings.max_iter}"
            )
        return progress.with_max_iter(settings.max_iter)


def _short(record: Record) -> Record:
    """Without the share of every partition: of a hundred thousand rounds they would fill disks."""
    rounds = tuple(replace(one, partitions=()) for one in record.rounds)
    return replace(record, rounds=rounds)


def _files(path: str) -> list[str]:
    """The checkpoints of a run, the first iteration first."""
    names = storage.names(path) or []
    return sorted(name for name in names if re.fullmatch(r"[0-9]{8,}\.zip", name))
