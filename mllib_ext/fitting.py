"""How an estimator fits over blocks: once, or for a whole grid of parameters on the same blocks.

``CrossValidator`` and ``TrainValidationSplit`` hand each fold to ``fitMultiple`` with all settings
of the grid: the fold is converted once, and what differs between the settings is rounds alone.
"""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pyspark.ml.base import Estimator, _FitMultipleIterator
from pyspark.sql import DataFrame

from mllib_ext import storage
from mllib_ext.blocks import Blocks
from mllib_ext.checkpoints import Checkpoints, Fit
from mllib_ext.columns import data_type, refuse_no_dataframe
from mllib_ext.partials import Merge, Stage

if TYPE_CHECKING:
    from mllib_ext.monitor import LiveRun

# A pass over so many bytes takes a core a fraction of a Spark job's 25 ms.
DRIVER_BYTES = 16 << 20


class FitsOverBlocks(Estimator[Any]):
    """An estimator that trains in rounds over blocks."""

    @abstractmethod
    def _refuse_params(self) -> None:
        """ValueError for parameters that no fit could use, whatever the data."""

    def _refuse(self: Any, dataset: DataFrame) -> None:
        """ValueError or TypeError for parameters and columns that no fit could use."""
        self._refuse_params()
        if self.hasParam("labelCol"):
            data_type(dataset.schema, self.getLabelCol(), "label")

    @abstractmethod
    def _fit_blocks(self, blocks: Blocks) -> Any:
        """Fit on blocks that are there already."""

    def _first_round(self) -> tuple[Stage, Merge | None] | None:
        """The round that a fit begins with, to be computed while blocks are written."""
        return None

    def _driver_bytes(self) -> int:
        """Data of so many bytes, or fewer, are trained on the driver."""
        return DRIVER_BYTES

    def _identity(self) -> dict[str, Any]:
        """What a fit is of beside its params, as JSON knows it: by what names in messages."""
        return {}

    def _finish(self, model: Any, dataset: DataFrame) -> Any:
        """What a model is told of its training data."""
        return model

    def _fit(self, dataset: DataFrame) -> Any:
        refuse_no_dataframe(dataset)
        self._refuse(dataset)
        _refuse_checkpoints(self)
        return _watched(self, partial(_fit_rows, dataset), lambda path: path)

    def fitAsync(self, dataset: DataFrame, params: dict[Any, Any] | None = None) -> LiveRun:
        """Fit in another thread, under a Spark job group of its own.

        Parameters
        ----------
        dataset : DataFrame
        params : dict, optional
            As in ``fit``.

        Returns
        -------
        LiveRun
            Watches the fit, changes its settings, pauses or stops it, and has its model:
            ``run.set(stepSize=0.01)``, ``run.stop()``, ``run.result()``.

        Raises
        ------
        TypeError
            The estimator has no rounds to steer, or ``dataset`` is no DataFrame.
        ValueError
            What ``fit`` refuses before it starts.
        """
        from mllib_ext.monitor.handle import LiveRun

        if not hasattr(self, "getCallbacks"):
            raise TypeError(f"{type(self).__name__}: expected rounds to steer, found none")
        refuse_no_dataframe(dataset)
        estimator: Any = self.copy(params or {})
        estimator._refuse(dataset)
        return LiveRun(estimator, dataset)

    def fitMultiple(
        self, dataset: DataFrame, paramMaps: Sequence[dict[Any, Any]]
    ) -> Iterator[tuple[int, Any]]:
        """Fit a model for each map of params, the data converted once for all.

        Parameters
        ----------
        dataset : DataFrame
        paramMaps : sequence of dict
            Params that stand in for those of this estimator.

        Returns
        -------
        iterator of (int, model)
            Safe to share between threads. The blocks are deleted with the last model, or when the
            iterator is let go.
        """
        refuse_no_dataframe(dataset)
        estimators: list[Any] = [self.copy(params) for params in paramMaps]
        for estimator in estimators:
            estimator._refuse(dataset)
            _refuse_checkpoints(estimator)
        grid = _Grid(estimators, dataset)
        return _FitMultipleIterator(grid.fit, len(estimators))


class _Grid:
    """Estimators that share blocks wherever they read the same columns."""

    def __init__(self, estimators: list[Any], dataset: DataFrame) -> None:
        self._estimators, self._dataset = estimators, dataset
        self._blocks: dict[str, Blocks] = {}
        self._left = len(estimators)
        self._lock = threading.Lock()
        self._fold: Any = None
        weakref.finalize(self, _close, self._blocks)

    def fit(self, index: int) -> Any:
        estimator = self._estimators[index]
        try:
            with self._lock:
                layout = _block_bytes(estimator), _depth(estimator)
                key = repr((_columns(estimator), *layout))
                if key not in self._blocks:
                    self._blocks[key] = training_blocks(estimator, self._dataset)
                blocks = self._blocks[key]

            def fit(watched: Any) -> Any:
                return watched._finish(_kept(watched, blocks, one=False), self._dataset)

            return _watched(estimator, fit, lambda path: self._point(path, index + 1))
        finally:
            with self._lock:
                self._left -= 1
                if not self._left:
                    _close(self._blocks)

    def _point(self, path: str, number: int) -> str:
        """The run directory of one point of this grid, the fold's made when it is first needed."""
        from mllib_ext.monitor.fits import Fold

        with self._lock:
            if self._fold is None:
                self._fold = Fold(path)
            return self._fold.point(number)


def _watched(estimator: Any, fit: Callable[[Any], Any], place: Callable[[str], str]) -> Any:
    """Fit; where there is a run directory or a handle, recorded there and steered.

    A callback that has ``around(fit, estimator) -> model`` is told of the beginning and the end.
    """
    for callback in getattr(estimator, "_callbacks", ()):
        if hasattr(callback, "around"):
            fit = partial(callback.around, fit)
    path: Any = getattr(estimator, "_run_dir", None)
    live: Any = getattr(estimator, "_monitor", None)
    if path is None and live is None:
        return fit(estimator)
    from mllib_ext.monitor.fits import Monitor  # nobody else pays for its imports

    return (live or Monitor.at(path, place)).fit(estimator, fit)


def _fit_rows(dataset: DataFrame, estimator: Any) -> Any:
    with training_blocks(estimator, dataset) as blocks:
        return estimator._finish(_kept(estimator, blocks, one=True), dataset)


def _refuse_checkpoints(estimator: Any) -> None:
    """ValueError for an interval that is none, OSError for a directory that cannot be made."""
    if not hasattr(estimator, "_checkpoint_dir"):
        return
    interval = estimator.getCheckpointInterval()
    if interval < 1 and interval != -1:
        raise ValueError(
            f"param checkpointInterval: expected 1 or more, or -1 for never, found {interval!r}"
        )
    if estimator._checkpoint_dir is not None and interval > 0:
        storage.make_directory(estimator._checkpoint_dir)


def _kept(estimator: Any, blocks: Blocks, one: bool) -> Any:
    """The model of an estimator; where there is a directory for checkpoints, kept there.

    ``one`` is False for fits that share the directory.
    """
    path = getattr(estimator, "_checkpoint_dir", None)
    if path is None or estimator.getCheckpointInterval() < 0:
        return estimator._fit_blocks(blocks)
    fit = Fit.of(estimator, blocks)
    one = one and not estimator._shares_checkpoint_dir
    place = storage.qualified(path if one else f"{path.rstrip('/')}/{fit.key}")
    kept = estimator.copy()
    checkpoints = Checkpoints(place, fit, estimator.getCheckpointInterval())
    kept.setCallbacks((*estimator.getCallbacks(), checkpoints))
    return kept._fit_blocks(blocks)


def _close(blocks: dict[str, Blocks]) -> None:
    while blocks:
        blocks.popitem()[1].close()


def training_blocks(estimator: Any, dataset: DataFrame) -> Blocks:
    """The blocks of an estimator's features, label (if it takes one) and weight columns."""
    features, label, weight = _columns(estimator)
    return Blocks.of(
        dataset,
        features,
        label=label,
        weight=weight,
        block_bytes=_block_bytes(estimator),
        driver_bytes=estimator._driver_bytes(),
        ahead=estimator._first_round(),
        depth=_depth(estimator),
    )


def _columns(estimator: Any) -> tuple[Any, str | None, str | None]:
    """Names of the features, label and weight columns."""
    weighted = (
        estimator.hasParam("weightCol")
        and estimator.isDefined("weightCol")
        and estimator.getOrDefault("weightCol")
    )
    return (
        estimator._features(),
        estimator.getLabelCol() if estimator.hasParam("labelCol") else None,
        estimator.getWeightCol() if weighted else None,
    )


def _block_bytes(estimator: Any) -> int | None:
    """The size of a block that an estimator asks for."""
    if not estimator.hasParam("maxBlockSizeInMB"):
        return None
    return round(estimator.getOrDefault("maxBlockSizeInMB") * (1 << 20)) or None


def _depth(estimator: Any) -> int:
    """The levels on which an estimator wants partials joined."""
    asks = estimator.hasParam("aggregationDepth")
    return int(estimator.getOrDefault("aggregationDepth")) if asks else 2
