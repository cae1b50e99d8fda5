"""The config of an evaluation job: read, load a model, predict, measure, write."""

from __future__ import annotations

from pydantic import Field

from mllib_ext.job.config.job import JobConfig


class EvaluateConfig(JobConfig):
    """An evaluation job: read, load a model, predict, measure, write."""

    model: str = Field(
        min_length=1,
        description="What jobs/train.py or jobs/tune.py wrote, or any saved pyspark.ml model.",
    )
    label: str | None = Field(
        default=None, description="The column with the truth. Default: that of the training."
    )
    weight: str | None = Field(default=None, description="A column of row weights.")
    evaluation: list[str] | None = Field(
        default=None,
        description="Metrics of Spark's evaluators. Default: those that fit the model's task, as "
        "in training.",
    )
