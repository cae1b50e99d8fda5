"""The config of a training job: read, split, encode, fit, evaluate, write."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mllib_ext.job import metrics
from mllib_ext.job.config.job import JobConfig
from mllib_ext.job.config.pipeline import COLUMNS, Encoding, EstimatorStage, Stage
from mllib_ext.job.config.section import Section, Seed, TextOrList
from mllib_ext.job.problems import Wrong, found, refuse
from mllib_ext.job.stages import params_of, wrong_values

# The value of `weight` that asks for weights by class in place of a column.
BALANCED = "balanced"


def _page(value: Any) -> Any:
    if not isinstance(value, bool) and value != "auto":
        raise ValueError("expected true, false or auto")
    return value


class Split(Section):
    """How rows are divided into those for training and those for testing."""

    test: float = Field(
        default=0.2, ge=0, lt=1, description="The share of rows kept for testing; 0 trains on all."
    )
    seed: Seed = Field(default=1, description="Another seed gives another split.")
    by: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Columns that decide the side of a row: rows equal in all of them stay "
        "together. Without it, all columns of the input.",
    )


class TrainConfig(JobConfig):
    """A training job: read, split, encode, fit, evaluate, write."""

    features: TextOrList = Field(
        default="features",
        description="A column of vectors or arrays, or a list of numeric columns. Default with "
        "encode: the column that it makes.",
    )
    label: str = Field(default="label", description="The column to predict; clusters need none.")
    weight: str | None = Field(
        default=None,
        description="A column of row weights; or balanced: every class weighs the same in "
        "training, its rows n / (k n_c) each (n rows, k classes, n_c rows of class c). Metrics "
        "are then those of the rows as they are. For both at once, "
        "mllib_ext.feature.ClassBalancer with weightCol goes among the stages.",
    )
    split: Split = Field(
        default=Split(), description="How rows are divided into training and testing."
    )
    encode: Encoding | None = Field(
        default=None,
        description="Makes one vector of raw columns, fitted on the training rows.",
    )
    stages: list[Stage] = Field(
        default=[],
        description="Spark ML stages that prepare the columns, after encode, fitted on the "
        "training rows.",
    )
    estimator: EstimatorStage = Field(description="The estimator to train.")
    evaluation: list[str] | None = Field(
        default=None,
        description="Metrics of Spark's evaluators. Default: accuracy, f1 and, where they apply, "
        "logLoss, areaUnderROC and areaUnderPR; or rmse, mae and r2; or silhouette (by squared "
        "euclidean distances; cosineSilhouette by cosine distances).",
    )
    progress: Literal["auto", "rich", "plain", "none"] = Field(
        default="auto",
        description="How progress is shown: auto is rich on a terminal, plain elsewhere.",
    )
    page: Annotated[bool | Literal["auto"], BeforeValidator(_page)] = Field(
        default="auto",
        description="Whether a page on 127.0.0.1 shows the fit while the job runs, and steers it; "
        "its address is printed. auto: on a terminal, where the extra [live] is installed.",
    )
    checkpointDir: str | None = Field(
        default=None,
        min_length=1,
        description="A directory on any Hadoop file system that training is kept in every "
        "estimator.params.checkpointInterval iterations (10 unless given): a job that was killed "
        "goes on from there when it is submitted again, and refuses what is of other data or "
        "params; the fits of a search have a directory each below it, by their data and params. "
        "It is left at the end.",
    )

    @property
    def label_column(self) -> str | None:
        """The label, where the estimator takes one."""
        return self.label if "labelCol" in params_of(self.estimator.find()) else None

    @model_validator(mode="before")
    @classmethod
    def _encoded(cls, values: Any) -> Any:
        encode = values.get("encode") if isinstance(values, dict) else None
        if isinstance(encode, dict) and "output" in encode and "features" not in values:
            return {**values, "features": encode["output"]}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        estimator = self.estimator.find()
        params = params_of(estimator)
        wrongs = []
        if self.checkpointDir and not hasattr(estimator, "setCheckpointDir"):
            what = "none with an estimator that does not train in iterations"
            wrongs.append(Wrong(["checkpointDir"], what, found(self.checkpointDir)))
        for param in ("labelCol", "weightCol", "featuresCol"):
            key = COLUMNS[param]
            value = getattr(self, key)
            if param not in params and value != type(self).model_fields[key].default:
                what = f"no {key}: {estimator.__name__} takes none"
                wrongs.append(Wrong([key], what, found(value)))
        task = metrics.task_of(estimator)
        if self.weight == BALANCED and "weightCol" in params and task != "classification":
            what = f"a column: {estimator.__name__} has no classes to balance"
            wrongs.append(Wrong(["weight"], what, found(BALANCED)))
        wrongs += metrics.wrong_metrics(estimator, self.evaluation or ())
        wrongs += self._wrong_values()
        refuse(wrongs)
        return self

    def _wrong_values(self) -> list[Wrong]:
        """What the estimator would refuse, whatever the rows."""
        found = wrong_values(self.estimator.find(), self.estimator.params)
        return [Wrong(["estimator", *w.place], w.expected, w.found) for w in found]
