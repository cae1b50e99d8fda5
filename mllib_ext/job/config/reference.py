"""``docs/config.md``: every key of every job's config, from the models themselves.

``python -m mllib_ext.job.config.reference > docs/config.md`` writes it anew.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mllib_ext.job import yamlfile
from mllib_ext.job.config import (
    EvaluateConfig,
    JobConfig,
    NeighborsConfig,
    PredictConfig,
    PrepareConfig,
    TrainConfig,
    TuneConfig,
)
from mllib_ext.job.config.section import Section
from mllib_ext.job.config.tune import Range

JOBS: dict[str, type[JobConfig]] = {
    "train": TrainConfig,
    "tune": TuneConfig,
    "predict": PredictConfig,
    "evaluate": EvaluateConfig,
    "prepare": PrepareConfig,
    "neighbors": NeighborsConfig,
}

HEAD = """\
# Configs

Every key that the YAML file of a job may have. This page is made of the models in
`mllib_ext/job/config/` by `python -m mllib_ext.job.config.reference`; a test compares the two.

`--set KEY=VALUE` changes a key on the command line (`--set estimator.params.maxIter=50`,
`--set input.0.path=...` for the first of several inputs), `--output DIR` is `output.path`,
`--overwrite` is `output.overwrite`, and `--dry-run` prints the config with all its defaults. An
unknown key is an error. A key without a default has to be given.
"""

KINDS = {str: "text", bool: "true or false", int: "whole number", float: "number", Any: "any value"}


def markdown() -> str:
    """The page: a table a job, then a table a section."""
    sections: dict[str, type[BaseModel]] = {"Range": Range}
    parts = [HEAD, f"## Every job\n\n{_table(JobConfig, sections)}"]
    for job, model in JOBS.items():
        base = TrainConfig if model is TuneConfig else JobConfig
        beside = "jobs/train.py" if model is TuneConfig else "every job"
        table = _table(model, sections, base)
        parts.append(f"## jobs/{job}.py\n\n{_doc(model)} Beside the keys of {beside}:\n\n{table}")
    done: set[str] = set()
    parts.append("## Sections\n\nWhat the values above are made of.\n")
    while waiting := sorted(set(sections) - done):
        for name in waiting:
            done.add(name)
            section = sections[name]
            parts.append(f"### {name}\n\n{_doc(section)}\n\n{_table(section, sections)}")
    return "\n".join(parts)


def _doc(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _table(
    model: type[BaseModel],
    sections: dict[str, type[BaseModel]],
    base: type[BaseModel] = BaseModel,
) -> str:
    """The keys of a model that ``base`` has not, or has with another meaning."""
    lines = ["| key | value | default | |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if name in base.model_fields and base.model_fields[name].annotation == field.annotation:
            continue
        for section in _sections(field.annotation):
            sections[section.__name__] = section
        cells = [f"`{field.alias or name}`", _kind(field.annotation), _default(field)]
        lines.append(f"| {' | '.join(cells)} | {_cell(field.description or '')} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        if isinstance(part, type) or typing.get_args(part):
            yield from _sections(part)


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(parts[0])
    if origin is typing.Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        kinds = [
            _kind(p) for p in parts if p is not type(None) and not (p is int and float in parts)
        ]
        return ", ".join(kinds[:-1]) + " or " * (len(kinds) > 1) + kinds[-1]
    if origin is list:
        return f"list of {_kind(parts[0])}"
    if origin is dict:
        return f"mapping of {_kind(parts[0])} to {_kind(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        name = annotation.__name__
        return f"[{name}](#{name.lower()})"
    return KINDS[annotation]


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return ""
    if value is None or value in ({}, []):
        return "none"
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{yamlfile.dump({'': value}).partition(': ')[2].strip()}`"


if __name__ == "__main__":
    sys.stdout.write(markdown())
