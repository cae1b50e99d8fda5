"""The fits of a search, as pyspark.ml's CrossValidator asks for them."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pyspark.ml import Model, Pipeline, PipelineModel
from pyspark.ml.evaluation import Evaluator
from pyspark.ml.param import Param
from pyspark.sql import DataFrame

from mllib_ext.optimizers.loop import DivergenceError

logger = logging.getLogger(__name__)


class Candidates(Pipeline):
    """A pipeline whose estimator sees all candidates of a fold at once.

    pyspark.ml's Pipeline fits every stage again for every candidate. Here the stages before the
    estimator are fitted once for all candidates that agree in those stages' Params, on the rows
    of the fold alone, and the estimator's ``fitMultiple`` gets all of these candidates: it may
    share what they have in common.

    A candidate that diverges, as a learning rate that is too large makes it, is a warning and
    :class:`Diverged`: the others go on.
    """

    fold: str = ""

    def setFold(self, name: str) -> Candidates:
        """Name the column of the fold, which no stage is to see."""
        self.fold = name
        return self

    def _fit(self, dataset: DataFrame) -> PipelineModel:
        return super()._fit(self._visible(dataset))

    def fitMultiple(
        self, dataset: DataFrame, paramMaps: Sequence[Mapping[Param[Any], Any]]
    ) -> Iterator[tuple[int, Any]]:
        """``(index, model)`` of every candidate, in the order in which they are ready."""
        stages: list[Any] = self.getStages()
        *before, estimator = stages
        rows = self._visible(dataset)
        shared: dict[str, list[int]] = {}
        for index, params in enumerate(paramMaps):
            key = repr([(p, v) for p, v in params.items() if p.parent != estimator.uid])
            shared.setdefault(key, []).append(index)
        groups = []
        for indices in shared.values():
            fitted = Pipeline(stages=before).copy(dict(paramMaps[indices[0]])).fit(rows)
            prepared = fitted.transform(rows)
            own = [
                {p: v for p, v in paramMaps[i].items() if p.parent == estimator.uid}
                for i in indices
            ]
            models = estimator.fitMultiple(prepared, own)
            groups.append(_Group(fitted.stages, indices, models))
        return _Fits(groups)

    def _visible(self, dataset: DataFrame) -> DataFrame:
        return dataset.drop(self.fold) if self.fold else dataset


class Diverged(Model):
    """What stands for a candidate that has no model: it predicts nothing."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset


class Score(Evaluator):
    """An evaluator for which a candidate without a finite metric is the worst of all.

    CrossValidator would take a NaN for the best.

    Parameters
    ----------
    evaluator : Evaluator
    prediction : str
        The column that every model but :class:`Diverged` adds.
    total : int
        How many fits the search has, for its log.
    """

    def __init__(self, evaluator: Any, prediction: str, total: int) -> None:
        super().__init__()
        self.evaluator, self.prediction, self.total = evaluator, prediction, total
        self._numbers = itertools.count(1)

    def _evaluate(self, dataset: DataFrame) -> float:
        value = float("nan")
        if self.prediction in dataset.columns:
            value = float(self.evaluator.evaluate(dataset))
        metric = self.evaluator.getMetricName()
        logger.info("fit %d of %d: %s %.6g", next(self._numbers), self.total, metric, value)
        worst = float("-inf") if self.isLargerBetter() else float("inf")
        return value if math.isfinite(value) else worst

    def isLargerBetter(self) -> bool:
        """Whether the best candidate has the largest metric."""
        return bool(self.evaluator.isLargerBetter())


class _Fits(Iterator[tuple[int, Any]]):
    """The models of all groups; threads may call ``next`` at the same time."""

    def __init__(self, groups: Sequence[_Group]) -> None:
        self._groups = groups

    def __next__(self) -> tuple[int, Any]:
        for group in self._groups:
            found = group.next()
            if found is not None:
                return found
        raise StopIteration


class _Group:
    """Candidates that share the stages before the estimator."""

    def __init__(
        self,
        stages: Sequence[Any],
        indices: Sequence[int],
        models: Iterator[tuple[int, Any]],
    ) -> None:
        self._stages, self._indices, self._models = stages, indices, models
        self._missing = set(range(len(indices)))
        self._running = 0
        self._changed = threading.Condition()

    def next(self) -> tuple[int, Any] | None:
        """One more candidate; None when there are no more.

        An iterator of models does not say which candidate it was that diverged. So the next one
        is tried, and those that never came are told at the end, when no thread still fits.
        """
        while True:
            with self._changed:
                self._running += 1
            try:
                place, model = next(self._models)
                with self._changed:
                    self._missing.remove(place)
                return self._indices[place], PipelineModel([*self._stages, model])
            except DivergenceError as error:
                logger.warning("a candidate is left out: %s", error)
            except StopIteration:
                break
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0)
            return (self._indices[self._missing.pop()], Diverged()) if self._missing else None
