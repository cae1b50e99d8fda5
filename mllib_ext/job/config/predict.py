"""The config of a prediction job: read, load a model, predict, write."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mllib_ext.job.config.job import JobConfig, Output
from mllib_ext.job.config.section import Scalars


class PredictOutput(Output):
    """Where the predictions go, and how they are written."""

    format: Literal["parquet", "orc", "json", "csv"] = Field(
        default="parquet", description="How the predictions are written."
    )
    options: Scalars = Field(
        default={}, description="Options of the writer, as in Spark's documentation."
    )
    files: int | None = Field(
        default=None, ge=1, description="How many files to write. Default: one a partition."
    )


class PredictConfig(JobConfig):
    """A prediction job: read, load a model, predict, write."""

    model: str = Field(
        min_length=1,
        description="What jobs/train.py, jobs/tune.py or jobs/prepare.py wrote, or any saved "
        "pyspark.ml model.",
    )
    columns: list[str] | None = Field(
        default=None,
        min_length=1,
        description="The columns to write. Default: those of the input, the model's prediction, "
        "its probabilities and, for a label that was text, predicted_LABEL. Vectors are written "
        "as arrays.",
    )
    output: PredictOutput = Field(
        default=PredictOutput(), description="Where the predictions go, and how."
    )
