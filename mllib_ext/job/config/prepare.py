"""The config of a preparation job: read, check, join, sample, encode, partition, write."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from mllib_ext.job.config.job import JobConfig
from mllib_ext.job.config.pipeline import Encoding, Stage
from mllib_ext.job.config.section import Names, Section, Seed, TextOrList
from mllib_ext.job.config.source import Source
from mllib_ext.job.problems import Wrong, found, refuse


class Join(Section):
    """Another input, joined by columns of the same name."""

    input: Source = Field(description="What to join.")
    # Not "on", as in Spark: YAML takes that word for true.
    by: TextOrList = Field(description="The column or columns that both sides have.")
    how: Literal["inner", "left", "right", "full", "semi", "anti"] = Field(
        default="inner", description="As in Spark."
    )


class Quarantine(Section):
    """What happens to rows that break the declared schema or a check."""

    sample: int = Field(
        default=1000,
        ge=0,
        description="How many of them to write, with their reasons, drawn evenly; all of them "
        "are counted and reported.",
    )
    most: float = Field(
        default=1.0, ge=0, le=1, description="The job fails where more than this share is broken."
    )


class Balance(Section):
    """The same number of rows for every class, on average, by sampling."""

    column: str = Field(min_length=1, description="The column of the classes.")
    method: Literal["over", "under"] = Field(
        description="over repeats rows until every class is as large as the largest; under drops "
        "rows until every class is as small as the smallest. Weights (weight: balanced in "
        "training) lose and repeat nothing, and leave test rows as they are."
    )
    seed: Seed = Field(default=1, description="Another seed draws other rows.")


class Partitioning(Section):
    """How rows are spread over partitions, and so over files."""

    method: Literal["hash", "range", "round-robin", "balanced"] = Field(
        description="hash and range of the columns; round-robin, row by row; balanced keeps rows "
        "of equal columns together and gives each such group to the emptiest partition, the "
        "largest group first."
    )
    count: int = Field(ge=1, description="How many partitions.")
    columns: list[str] | None = Field(
        default=None, min_length=1, description="What decides, for all but round-robin."
    )

    @model_validator(mode="after")
    def _complete(self) -> Partitioning:
        if self.method == "round-robin" and self.columns is not None:
            refuse([Wrong(["columns"], "none with method: round-robin", found(self.columns))])
        if self.method != "round-robin" and self.columns is None:
            refuse([Wrong(["columns"], f"columns with method: {self.method}", "nothing")])
        return self


class PrepareConfig(JobConfig):
    """A preparation job: read, check, join, sample, encode, partition, write as Parquet."""

    checks: dict[str, str] = Field(
        default={},
        description="What must hold for every row of the input: SQL by a name for the report. As "
        "in SQL, a condition that is null holds.",
    )
    quarantine: Quarantine = Field(
        default=Quarantine(),
        description="What happens to rows that break a check or the schema of their input: a "
        "value of another type, NOT NULL, too few or too many values in a line.",
    )
    join: list[Join] = Field(
        default=[], description="Other inputs to join, one after the other, after the checks."
    )
    balance: Balance | None = Field(
        default=None, description="The same number of rows for every class."
    )
    encode: Encoding | None = Field(default=None, description="Makes one vector of raw columns.")
    stages: list[Stage] = Field(default=[], description="Spark ML stages, after encode.")
    columns: Names | None = Field(
        default=None, min_length=1, description="The columns to write. Default: all."
    )
    partition: Partitioning | None = Field(
        default=None, description="How rows are spread over files. Default: as they come."
    )

    @field_validator("join", mode="before")
    @classmethod
    def _one_join(cls, value: object) -> object:
        return [value] if isinstance(value, dict) else value
