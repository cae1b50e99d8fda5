"""How an estimator fits over blocks: once, or for a whole grid of parameters on the same blocks.

``CrossValidator`` and ``TrainValidationSplit`` hand each fold to ``fitMultiple`` with all settings
of the grid: the fold is converted once, and what differs between the settings is rounds alone.
"""

from __future__ import annotations

import threading
import weakref
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from pyspark.ml.base import Estimator, _FitMultipleIterator
from pyspark.sql import DataFrame

from mllib_ext.blocks import Blocks
from mllib_ext.partials import Merge, Stage

# A pass over so many bytes takes a core a fraction of a Spark job's 25 ms.
DRIVER_BYTES = 16 << 20


class FitsOverBlocks(Estimator[Any]):
    """An estimator that trains in rounds over blocks."""

    @abstractmethod
    def _refuse(self, dataset: DataFrame) -> None:
        """ValueError or TypeError for parameters and columns that no fit could use."""

    @abstractmethod
    def _fit_blocks(self, blocks: Blocks) -> Any:
        """Fit on blocks that are there already."""

    def _first_round(self) -> tuple[Stage, Merge | None] | None:
        """The round that a fit begins with, to be computed while blocks are written."""
        return None

    def _driver_bytes(self) -> int:
        """Data of so many bytes, or fewer, are trained on the driver."""
        return DRIVER_BYTES

    def _finish(self, model: Any, dataset: DataFrame) -> Any:
        """What a model is told of its training data."""
        return model

    def _fit(self, dataset: DataFrame) -> Any:
        self._refuse(dataset)
        with training_blocks(self, dataset) as blocks:
            return self._finish(self._fit_blocks(blocks), dataset)

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
        estimators: list[Any] = [self.copy(params) for params in paramMaps]
        for estimator in estimators:
            estimator._refuse(dataset)
        grid = _Grid(estimators, dataset)
        return _FitMultipleIterator(grid.fit, len(estimators))


class _Grid:
    """Estimators that share blocks wherever they read the same columns."""

    def __init__(self, estimators: list[Any], dataset: DataFrame) -> None:
        self._estimators, self._dataset = estimators, dataset
        self._blocks: dict[str, Blocks] = {}
        self._left = len(estimators)
        self._lock = threading.Lock()
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
            return estimator._finish(estimator._fit_blocks(blocks), self._dataset)
        finally:
            with self._lock:
                self._left -= 1
                if not self._left:
                    _close(self._blocks)


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
