"""The config of a search for the best Params: a training job and what to try."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from mllib_ext.job import metrics
from mllib_ext.job.config.pipeline import column_params
from mllib_ext.job.config.section import Section
from mllib_ext.job.config.train import TrainConfig
from mllib_ext.job.problems import Wrong, below, found, refuse
from mllib_ext.job.stages import params_of, wrong_stage, wrong_values
from mllib_ext.names import did_you_mean

# A grid grows fast: a thousand fits that nobody meant are not started.
MOST_CANDIDATES = 1000

RANGE = "a list of values, or {from: , to: } for search.method: random"


class Range(Section):
    """Numbers between two ends, both included; whole numbers where both ends are."""

    from_: int | float = Field(alias="from", description="The lower end.")
    to: int | float = Field(description="The upper end.")
    scale: Literal["linear", "log"] = Field(
        default="linear", description="log draws every order of magnitude as often."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.to <= self.from_:
            refuse([Wrong(["to"], f"a number above {self.from_}", found(self.to))])
        if self.scale == "log" and self.from_ <= 0:
            refuse([Wrong(["from"], "a number above 0 with scale: log", found(self.from_))])
        return self


def _space(values: Any) -> Any:
    """The distribution of every Param, each a list or a :class:`Range`; problems by their key."""
    if not isinstance(values, dict):
        return values
    space: dict[str, list[Any] | Range] = {}
    wrongs = []
    for key, value in values.items():
        if isinstance(value, list | Range) and value:
            space[key] = value
        elif isinstance(value, dict):
            try:
                space[key] = Range.model_validate(value)
            except ValidationError as error:
                for wrong in below(error, Range):
                    wrongs.append(Wrong([key, *wrong.place], wrong.expected, wrong.found))
        else:
            wrongs.append(Wrong([key], RANGE, found(value)))
    refuse(wrongs)
    return space


class Search(Section):
    """What to try, and how to judge it."""

    method: Literal["grid", "random"] = Field(
        default="grid", description="grid tries all combinations; random draws some."
    )
    params: Annotated[dict[str, Any], BeforeValidator(_space)] = Field(
        min_length=1,
        description="What to try, by the estimator's Param (stepSize, regParam, ...) or, for a "
        "stage, stages.INDEX.PARAM: a list of values, or for random {from: , to: , scale: linear "
        "or log}.",
    )
    candidates: int = Field(
        default=20,
        ge=1,
        description="How many to draw, for random; what is drawn again is tried once.",
    )
    folds: int = Field(default=3, ge=2, description="How many parts the training rows have.")
    parallelism: int = Field(
        default=1, ge=1, description="How many candidates are trained at the same time."
    )
    metric: str | None = Field(
        default=None,
        description="What the best has the best of. Default: f1, rmse or silhouette.",
    )
    seed: int = Field(
        default=1, ge=0, lt=2**63, description="Another seed gives other folds and draws."
    )

    def drawn(self) -> list[dict[str, Any]]:
        """What to try: values by the keys of ``params``, each set of them once.

        All combinations of a grid, the last key changing fastest; or draws, each of its own
        (seed, number), so that more candidates begin with those of fewer.
        """
        if self.method == "grid":
            combinations = itertools.product(*self.params.values())
            drawn = [dict(zip(self.params, values, strict=True)) for values in combinations]
        else:
            drawn = [
                {
                    key: _draw(values, np.random.default_rng([self.seed, number, place]))
                    for place, (key, values) in enumerate(self.params.items())
                }
                for number in range(self.candidates)
            ]
        return list({repr(one): one for one in drawn}.values())


def _draw(values: list[Any] | Range, rng: np.random.Generator) -> Any:
    if isinstance(values, list):
        return values[int(rng.integers(len(values)))]
    low, high = values.from_, values.to
    if values.scale == "log":
        # Rounding may lead out of the range by a bit.
        drawn = min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)
        return round(drawn) if isinstance(low, int) and isinstance(high, int) else float(drawn)
    if isinstance(low, int) and isinstance(high, int):
        return int(rng.integers(low, high + 1))
    return float(rng.uniform(low, high))


class TuneConfig(TrainConfig):
    """A search for the best Params by cross-validation, then a training job with them."""

    search: Search = Field(description="What to try, and how to judge it.")

    @property
    def metric(self) -> str:
        """The metric that decides."""
        estimator = self.estimator.find()
        return self.search.metric or metrics.deciding_metric(estimator)

    @model_validator(mode="after")
    def _searchable(self) -> TuneConfig:
        estimator = self.estimator.find()
        wrongs = []
        for key, values in self.search.params.items():
            wrongs += self._wrong_space(key, values)
        if self.search.metric is not None:
            for wrong in metrics.wrong_metrics(estimator, [self.search.metric]):
                wrongs.append(Wrong(["search", "metric"], wrong.expected, wrong.found))
        elif metrics.task_of(estimator) is None:
            what = "an estimator whose predictions can be judged"
            wrongs.append(Wrong(["estimator", "class"], what, found(self.estimator.class_)))
        if self.search.method == "grid":
            n = math.prod(len(v) for v in self.search.params.values() if isinstance(v, list))
            if n > MOST_CANDIDATES:
                what = f"at most {MOST_CANDIDATES} combinations; search.method: random draws some"
                wrongs.append(Wrong(["search", "params"], what, str(n)))
        refuse(wrongs)
        refuse(self._wrong_candidates())
        return self

    def _wrong_values(self) -> list[Wrong]:
        return []  # the Params alone are no candidate

    def _wrong_candidates(self) -> list[Wrong]:
        """What the estimator would refuse of the first candidate that it refuses something of."""
        for one in self.search.drawn():
            own = {key: value for key, value in one.items() if not key.startswith("stages.")}
            found = wrong_values(self.estimator.find(), {**self.estimator.params, **own})
            if found:
                inside = found[0].place
                section = "search" if inside[-1] in own else "estimator"
                return [Wrong([section, *inside], found[0].expected, found[0].found)]
        return []

    def _wrong_space(self, key: str, values: list[Any] | Range) -> list[Wrong]:
        """What is wrong with one key of ``search.params`` and the values to try there."""
        place = ["search", "params", key]
        stage, param = self._stage_of(key)
        if stage is None:
            n = len(self.stages)
            what = f"stages.INDEX.PARAM with an index below {n}" if n else "no stages to search"
            return [Wrong(place, what, found(key))]
        known = params_of(stage.find())
        if param not in known:
            near = did_you_mean(param, known)
            what = f"a Param of {stage.find().__name__}"
            return [Wrong(place, what, f"no such Param{near}")]
        if stage is self.estimator and (columns := column_params({param: None})):
            return [Wrong(place, columns[0].expected, found(key))]
        if isinstance(values, Range):
            if self.search.method == "grid":
                return [Wrong(place, "a list of values with search.method: grid", "a range")]
            values = [values.from_, values.to]
        for index, value in enumerate(values):
            wrongs = wrong_stage(stage.class_, {param: value})
            if wrongs:
                return [Wrong([*place, index], wrongs[0].expected, wrongs[0].found)]
        return []

    def _stage_of(self, key: str) -> tuple[Any, str]:
        """The section that a key of ``search.params`` is about, None if there is none."""
        first, _, rest = key.partition(".")
        if first != "stages":
            return self.estimator, key
        index, _, param = rest.partition(".")
        if index.isdigit() and int(index) < len(self.stages):
            return self.stages[int(index)], param
        return None, param
