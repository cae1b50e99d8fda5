"""A section of a config, and the kinds of values that stand in one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from mllib_ext.job.problems import Wrong, found, refuse


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


def listed(value: str | list[str]) -> list[str]:
    """Text or a list of text as a list."""
    return [value] if isinstance(value, str) else list(value)
