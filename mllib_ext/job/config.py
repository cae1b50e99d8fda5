"""The config of a training job: what may stand in its YAML file, and what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pyspark.ml.base import Estimator

from mllib_ext.job import evaluation, yamlfile
from mllib_ext.job.problems import ConfigError, Wrong, describe, found, refuse
from mllib_ext.job.stages import STAGES, find_class, params_of, wrong_stage
from mllib_ext.names import did_you_mean

SKLEARN = ("digits", "breast_cancer", "diabetes", "iris", "wine")
# Formats that read files: they need a path, which can be looked for before Spark reads.
FILES = ("parquet", "orc", "csv", "json", "text", "avro", "xml", "libsvm")
# What hides a value in the resolved config: Spark's spark.redaction.regex.
SECRET = re.compile(r"(?i)secret|password|token|access[.]?key")
# Params of the estimator that a key of the config sets.
COLUMNS = {
    "featuresCol": "features",
    "featuresCols": "features",
    "labelCol": "label",
    "weightCol": "weight",
}


class Section(BaseModel):
    """A mapping of the config: frozen, without unknown keys, nothing converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _text_or_list(value: Any) -> Any:
    items = value if isinstance(value, list) and value else [value]
    if not all(isinstance(item, str) and item for item in items):
        raise ValueError("expected text or a list of text")
    return value


TextOrList = Annotated[str | list[str], BeforeValidator(_text_or_list)]
Scalar = str | bool | int | float


def _scalars(values: Any) -> Any:
    if isinstance(values, dict):
        refuse(
            [
                Wrong([key], "text, a number, true or false", found(value))
                for key, value in values.items()
                if not isinstance(value, Scalar)
            ]
        )
    return values


Scalars = Annotated[dict[str, Scalar], BeforeValidator(_scalars)]


class Source(Section):
    """One input: what a Spark reader reads, or a data set that comes with scikit-learn."""

    format: str = Field(
        min_length=1,
        description="A format of Spark's readers (parquet, csv, json, orc, libsvm, jdbc, ...), "
        "or sklearn.",
    )
    path: TextOrList | None = Field(
        default=None, description="Where the files are: one path or a list, wildcards allowed."
    )
    options: Scalars = Field(
        default={}, description="Options of the reader, as in Spark's documentation."
    )
    schema_: str | None = Field(
        default=None,
        alias="schema",
        description="The columns and their types as DDL text, as in 'x double, label int'. "
        "Without it Spark takes the file's own, and text for every column of a CSV file.",
    )
    dataset: Literal["digits", "breast_cancer", "diabetes", "iris", "wine"] | None = Field(
        default=None,
        description="The data set, where format is sklearn: columns features and label.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Source:
        given = {"path": self.path, "options": self.options or None, "schema": self.schema_}
        wrongs = []
        if self.format == "sklearn":
            if self.dataset is None:
                wrongs.append(Wrong(["dataset"], f"one of {', '.join(SKLEARN)}", "nothing"))
            for key, value in given.items():
                if value is not None:
                    wrongs.append(Wrong([key], "no such key with format: sklearn", found(value)))
        else:
            if self.dataset is not None:
                wrongs.append(Wrong(["dataset"], "format: sklearn beside it", found(self.format)))
            if self.format in FILES and self.path is None:
                wrongs.append(Wrong(["path"], f"where the {self.format} files are", "nothing"))
        refuse(wrongs)
        return self


class Split(Section):
    """How rows are divided into those for training and those for testing."""

    test: float = Field(
        default=0.2, ge=0, lt=1, description="The share of rows kept for testing; 0 trains on all."
    )
    seed: int = Field(default=1, description="Another seed gives another split.")
    by: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Columns that decide the side of a row: rows equal in all of them stay "
        "together. Without it, all columns of the input.",
    )


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
        for name, key in COLUMNS.items():
            if name in self.params:
                wrongs.append(
                    Wrong(
                        ["params", name],
                        f"the key {key!r} of the config in its place",
                        found(self.params[name]),
                    )
                )
        refuse(wrongs)


class Output(Section):
    """Where the result goes."""

    path: str = Field(
        default="output/{name}",
        min_length=1,
        description="A directory on any Hadoop file system, made by the job. {name} stands for "
        "the job's name.",
    )
    overwrite: bool = Field(
        default=False, description="Replace an earlier result there, once the new one is complete."
    )


class JobConfig(Section):
    """A training job: read, split, fit, evaluate, write."""

    name: str = Field(
        min_length=1, description="What the job is called. Default: the name of the config file."
    )
    input: list[Source] = Field(
        min_length=1,
        description="What to read: one input, or a list of inputs that are united by column name.",
    )
    features: TextOrList = Field(
        default="features",
        description="A column of vectors or arrays, or a list of numeric columns.",
    )
    label: str = Field(default="label", description="The column to predict.")
    weight: str | None = Field(default=None, description="A column of row weights.")
    split: Split = Field(
        default=Split(), description="How rows are divided into training and testing."
    )
    stages: list[Stage] = Field(
        default=[],
        description="Spark ML stages that prepare the columns, fitted on the training rows.",
    )
    estimator: EstimatorStage = Field(description="The estimator to train.")
    evaluation: list[str] | None = Field(
        default=None,
        description="Metrics of Spark's evaluators. Default: accuracy, f1 and, where they apply, "
        "logLoss, areaUnderROC and areaUnderPR; or rmse, mae and r2; or silhouette.",
    )
    output: Output = Field(default=Output(), description="Where the result goes.")
    spark: Scalars = Field(
        default={},
        description="Settings of the Spark session, with or without their prefix 'spark.'. They "
        "win over those of spark-submit, but cannot change a JVM that runs, as its memory.",
    )
    progress: Literal["auto", "rich", "plain", "none"] = Field(
        default="auto",
        description="How progress is shown: auto is rich on a terminal, plain elsewhere.",
    )

    @field_validator("input", mode="before")
    @classmethod
    def _one_input(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @field_validator("spark", mode="after")
    @classmethod
    def _with_prefix(cls, values: dict[str, Scalar]) -> dict[str, Scalar]:
        return {k if k.startswith("spark.") else f"spark.{k}": v for k, v in values.items()}

    @model_validator(mode="after")
    def _consistent(self) -> JobConfig:
        estimator = self.estimator.find()
        params = params_of(estimator)
        wrongs = []
        for param in ("labelCol", "weightCol", "featuresCol"):
            key = COLUMNS[param]
            if key in self.model_fields_set and getattr(self, key) and param not in params:
                what = f"no {key}: {estimator.__name__} takes none"
                wrongs.append(Wrong([key], what, found(getattr(self, key))))
        task = evaluation.task_of(estimator)
        known = evaluation.METRICS[task] if task else ()
        for index, metric in enumerate(self.evaluation or ()):
            if metric not in known:
                what = f"a metric of {task}: {', '.join(known)}" if task else "no metric"
                near = did_you_mean(metric, known)
                wrongs.append(Wrong(["evaluation", index], what, found(metric) + near))
            elif metric == "logLoss" and "probabilityCol" not in params:
                what = f"a metric without probabilities: {estimator.__name__} gives none"
                wrongs.append(Wrong(["evaluation", index], what, found(metric)))
        refuse(wrongs)
        return self

    def resolved(self) -> dict[str, Any]:
        """All values, defaults included, as a mapping that can be read again.

        Secrets (options and settings whose name speaks of a password, token or key) are masked.
        """
        values = self.model_dump(by_alias=True, exclude_none=True)
        for section in (values["spark"], *(source["options"] for source in values["input"])):
            for key in section:
                if SECRET.search(key):
                    section[key] = "*** (redacted)"
        if len(values["input"]) == 1:
            values["input"] = values["input"][0]
        return values


def load(
    path: str, overrides: Sequence[str] = (), output: Mapping[str, Any] | None = None
) -> JobConfig:
    """Read and check a config file.

    Parameters
    ----------
    path : str
        A YAML file on the driver's disk.
    overrides : sequence of str
        ``a.b=c``, applied in order.
    output : mapping of str to object
        Values of the section ``output`` that win over all others.

    Raises
    ------
    ConfigError
        Every problem at once.
    """
    raw = yamlfile.read(path)
    for assignment in overrides:
        yamlfile.override(raw, assignment)
    for key, value in (output or {}).items():
        section = raw["output"] if raw.get("output") is not None else {}
        raw["output"] = {**section, key: value} if isinstance(section, dict) else section
    # "spark:" with nothing below it means the default, not null
    raw = {key: value for key, value in raw.items() if value is not None}
    raw.setdefault("name", Path(path).stem)
    try:
        config = JobConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(path, describe(error, JobConfig, raw)) from None
    target = config.output.path.replace("{name}", config.name)
    return config.model_copy(update={"output": config.output.model_copy(update={"path": target})})
