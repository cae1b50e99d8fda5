"""One input of a job: what a Spark reader reads, or a data set that comes with scikit-learn."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mllib_ext.job.config.section import Scalars, Section, TextOrList
from mllib_ext.job.problems import Wrong, found, refuse

SKLEARN = ("digits", "breast_cancer", "diabetes", "iris", "wine")
# Formats that read files: they need a path, which can be looked for before Spark reads.
FILES = ("parquet", "orc", "csv", "json", "text", "avro", "xml", "libsvm", "idx")


class Source(Section):
    """One input: what a Spark reader reads, or a data set that comes with scikit-learn."""

    format: str = Field(
        min_length=1,
        description="A format of Spark's readers (parquet, csv, json, orc, libsvm, jdbc, ...), "
        "idx (MNIST's files: columns id, features and, with options.labels, label), or sklearn.",
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
        "Without it Spark takes the file's own, and text for every column of a CSV file. CSV and "
        "JSON that are of other columns or types are an error (in jobs/prepare.py: rows to be "
        "counted), unless options say otherwise: mode, enforceSchema.",
    )
    dataset: Literal["digits", "breast_cancer", "diabetes", "iris", "wine"] | None = Field(
        default=None,
        description="The data set, where format is sklearn: columns features and label.",
    )
    derive: dict[str, str] = Field(
        default={},
        description="Columns to add or to replace, in this order: SQL by the column's name, as in "
        "'log(price)'. Not part of the model: a job that predicts with it derives them as well.",
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
            if self.format == "idx":
                wrongs += self._wrong_idx()
        refuse(wrongs)
        return self

    def _wrong_idx(self) -> list[Wrong]:
        wrongs = []
        if isinstance(self.path, list):
            wrongs.append(Wrong(["path"], "one file of images with format: idx", found(self.path)))
        if self.schema_ is not None:
            wrongs.append(Wrong(["schema"], "no such key with format: idx", found(self.schema_)))
        for key, value in self.options.items():
            if key != "labels" or not isinstance(value, str):
                what = "labels alone, where the labels are, with format: idx"
                wrongs.append(Wrong(["options", key], what, found(value)))
        return wrongs
