"""The config of a prediction job: read, load a model, predict, write."""

from __future__ import annotations

from pydantic import Field

from mllib_ext.job.config.job import JobConfig, RowsOutput
from mllib_ext.job.config.section import Names


class PredictConfig(JobConfig):
    """A prediction job: read, load a model, predict, write."""

    model: str = Field(
        min_length=1,
        description="What jobs/train.py, jobs/tune.py or jobs/prepare.py wrote, or any saved "
        "pyspark.ml model.",
    )
    columns: Names | None = Field(
        default=None,
        min_length=1,
        description="The columns to write. Default: those of the input, the model's prediction, "
        "its probabilities and, for a label that was text, predicted_LABEL. Vectors are written "
        "as arrays.",
    )
    output: RowsOutput = Field(
        default=RowsOutput(), description="Where the predictions go, and how."
    )
