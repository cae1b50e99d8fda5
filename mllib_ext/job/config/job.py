"""What the config of every job has: a name, inputs, an output, the session; and how it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from mllib_ext.job import yamlfile
from mllib_ext.job.config.section import Scalar, Scalars, Section
from mllib_ext.job.config.source import Source
from mllib_ext.job.problems import ConfigError, describe

# What hides a value in the resolved config: Spark's spark.redaction.regex.
SECRET = re.compile(r"(?i)secret|password|token|access[.]?key")

# Sections whose keys are settings of Spark.
SETTINGS = ("options", "spark")

Config = TypeVar("Config", bound="JobConfig")


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


class RowsOutput(Output):
    """Where rows go, and how they are written."""

    format: Literal["parquet", "orc", "json", "csv"] = Field(
        default="parquet", description="How the rows are written."
    )
    options: Scalars = Field(
        default={}, description="Options of the writer, as in Spark's documentation."
    )
    files: int | None = Field(
        default=None, ge=1, description="How many files to write. Default: one a partition."
    )


class JobConfig(Section):
    """What every job has."""

    name: str = Field(
        min_length=1, description="What the job is called. Default: the name of the config file."
    )
    input: list[Source] = Field(
        min_length=1,
        description="What to read: one input, or a list of inputs that are united by column name.",
    )
    output: Output = Field(default=Output(), description="Where the result goes.")
    spark: Scalars = Field(
        default={},
        description="Settings of the Spark session, with or without their prefix 'spark.'. They "
        "win over those of spark-submit, but cannot change a JVM that runs, as its memory.",
    )

    @field_validator("input", mode="before")
    @classmethod
    def _one_input(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @field_validator("spark", mode="after")
    @classmethod
    def _with_prefix(cls, values: dict[str, Scalar]) -> dict[str, Scalar]:
        return {k if k.startswith("spark.") else f"spark.{k}": v for k, v in values.items()}

    def resolved(self) -> dict[str, Any]:
        """All values, defaults included, as a mapping that can be read again.

        Secrets (options and settings whose name speaks of a password, token or key) are masked.
        """
        values = self.model_dump(by_alias=True, exclude_none=True)
        _mask(values)
        if len(values["input"]) == 1:
            values["input"] = values["input"][0]
        return values


def _mask(value: Any) -> None:
    """Mask the secrets among all settings of Spark, in place."""
    if isinstance(value, list):
        for item in value:
            _mask(item)
    elif isinstance(value, dict):
        for name, section in value.items():
            if name in SETTINGS and isinstance(section, dict):
                for key in section:
                    if SECRET.search(str(key)):
                        section[key] = "*** (redacted)"
            else:
                _mask(section)


def load(
    model: type[Config],
    path: str,
    overrides: Sequence[str] = (),
    output: Mapping[str, Any] | None = None,
) -> Config:
    """Read and check a config file.

    Parameters
    ----------
    model : type
        The config of this job.
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
        config = model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(path, describe(error, model, raw)) from None
    target = config.output.path.replace("{name}", config.name)
    return config.model_copy(update={"output": config.output.model_copy(update={"path": target})})
