"""The stages of a pipeline: an encoding of columns, Spark ML stages, the estimator."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from pyspark.ml.base import Estimator

from mllib_ext.job.config.section import Section
from mllib_ext.job.problems import Wrong, found, refuse
from mllib_ext.job.stages import STAGES, find_class, wrong_stage

# Params of the estimator that a key of the config sets.
COLUMNS = {
    "featuresCol": "features",
    "featuresCols": "features",
    "labelCol": "label",
    "weightCol": "weight",
}


class Encoding(Section):
    """Raw columns as one vector: what is missing imputed, text indexed and one-hot encoded."""

    numeric: list[str] = Field(
        default=[], description="Numeric columns that go into the vector as they are."
    )
    impute: dict[str, Literal["mean", "median", "mode"]] = Field(
        default={},
        description="Numeric columns that go into the vector with what takes the place of a "
        "missing value (null or NaN): Spark's Imputer makes NAME_imputed.",
    )
    categorical: list[str] = Field(
        default=[],
        description="Columns of categories, text or whole numbers: Spark's StringIndexer makes "
        "NAME_index and its OneHotEncoder NAME_onehot, which goes into the vector. A missing or "
        "unknown category is all zeros.",
    )
    index: list[str] = Field(
        default=[],
        description="Columns of categories to be numbered 0, 1, ... from the most frequent to "
        "the rarest, as a label has to be: NAME_index, which is not part of the vector.",
    )
    output: str = Field(default="features", min_length=1, description="The vector's column.")

    @property
    def features(self) -> list[str]:
        """The columns that go into the vector."""
        return [*self.numeric, *self.impute, *self.categorical]

    @model_validator(mode="after")
    def _once(self) -> Encoding:
        names = [*self.features, *self.index]
        twice = {name for name in names if names.count(name) > 1}
        # A label may be indexed, never one-hot as well: it would be a feature.
        refuse(
            [
                Wrong([key], "each column once in all of encode", found(name))
                for key in ("numeric", "impute", "categorical", "index")
                for name in dict.fromkeys(getattr(self, key))
                if name in twice
            ]
        )
        return self


class Stage(Section):
    """A Spark ML transformer or estimator, and its Params."""

    class_: str = Field(
        alias="class", description="Dotted path, as in pyspark.ml.feature.StandardScaler."
    )
    params: dict[str, Any] = Field(default={}, description="Its Params by name.")

    @model_validator(mode="after")
    def _known(self) -> Stage:
        self._check()
        return self

    def _check(self) -> None:
        refuse(wrong_stage(self.class_, self.params))

    def find(self) -> type:
        """The class itself."""
        return find_class(self.class_, STAGES)


class EstimatorStage(Stage):
    """The estimator to train, and its Params."""

    class_: str = Field(
        alias="class", description="Dotted path, as in mllib_ext.classification.LogisticRegression."
    )
    params: dict[str, Any] = Field(
        default={},
        description="Its Params by name, except the columns: features, label and weight.",
    )

    def _check(self) -> None:
        wrongs = wrong_stage(self.class_, self.params, (Estimator,))
        refuse([*wrongs, *column_params(self.params)])


def column_params(params: dict[str, Any]) -> list[Wrong]:
    """The Params that name a column, which keys of the config set."""
    return [
        Wrong(["params", name], f"the key {key!r} of the config in its place", found(params[name]))
        for name, key in COLUMNS.items()
        if name in params
    ]
