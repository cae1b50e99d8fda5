"""A section of a config, and the kinds of values that stand in one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from mllib_ext.job.problems import Wrong, found, refuse


class Section(BaseModel):
    """A mapping of the config: frozen, without unknown keys, nothing converted silently."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _text_or_list(value: Any) -> Any:
    items = value if isinstance(value, list) and value else [value]
    if not all(isinstance(item, str) and item for item in items):
        raise ValueError("expected text or a list of text")
    return value


def _each_once(names: Any) -> Any:
    if isinstance(names, list) and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        refuse([Wrong([names.index(twice)], "each column once", f"{found(twice)} again")])
    return names


Names = Annotated[list[str], AfterValidator(_each_once)]
TextOrList = Annotated[str | list[str], BeforeValidator(_text_or_list)]
# What Spark takes for one.
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
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


def listed(value: str | list[str]) -> list[str]:
    """Text or a list of text as a list."""
    return [value] if isinstance(value, str) else list(value)
