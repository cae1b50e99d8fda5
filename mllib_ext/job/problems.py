"""What is wrong with a config, in plain words: dotted key, what was expected, what was found."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from mllib_ext.names import did_you_mean

# pydantic's names of what it expected, in words; with the rule's value where there is one.
EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "missing": "a value",
    "literal_error": "one of {expected}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "string_too_short": "text that is not empty",
    "invalid_key": "text as the key",
    "too_short": "at least {min_length} entry",
}


class ConfigError(ValueError):
    """A config that cannot be run: one line for each problem.

    Attributes
    ----------
    problems : tuple of str
        ``dotted.key: expected ..., found ...``
    """

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.source, self.problems = source, tuple(problems)
        super().__init__(self.source, self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"{self.source}: {self.problems[0]}"
        lines = [f"{self.source}: {len(self.problems)} problems", *self.problems]
        return "\n  ".join(lines)


class Wrong(Exception):
    """A value that is wrong, somewhere below the section that is being checked."""

    def __init__(self, place: Sequence[str | int], expected: str, found: str) -> None:
        super().__init__(place, expected, found)
        self.place, self.expected, self.found = tuple(place), expected, found


def refuse(wrongs: Sequence[Wrong]) -> None:
    """Raise all of them as pydantic's own error, which keeps their places inside a section."""
    if wrongs:
        raise ValidationError.from_exception_data(
            "config",
            [
                InitErrorDetails(
                    type=PydanticCustomError(
                        "wrong",
                        "expected {expected}, found {found}",
                        {"expected": wrong.expected, "found": wrong.found},
                    ),
                    loc=wrong.place,
                    input=None,
                )
                for wrong in wrongs
            ],
        )


def found(value: Any) -> str:
    """A value as its writer sees it in YAML, cut to a line."""
    match value:
        case None:
            return "nothing"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict() | BaseModel():
            return "a mapping"
        case bool() | int() | float() | str():
            text = json.dumps(value, ensure_ascii=False)
            return text if len(text) <= 60 else text[:57] + '..."'
    return repr(value)


def dotted(place: Iterable[str | int]) -> str:
    """``("input", 0, "path")`` as ``input.0.path``."""
    return ".".join(map(str, place))


def describe(error: ValidationError, model: type[BaseModel], raw: Any) -> list[str]:
    """Every problem that pydantic found, one line each, in the order of the file's keys."""
    lines: dict[str, None] = {}  # unions report once a branch: keep one
    for details in error.errors(include_url=False):
        place = details["loc"]
        # A single input or join is checked as a list of one: its writer saw no index.
        if place[1:2] == (0,) and isinstance(raw.get(place[0]), dict):
            place = (place[0], *place[2:])
        expected, value = _expected_and_found(details, model)
        lines[f"{dotted(place) or 'config'}: expected {expected}, found {value}"] = None
    return list(lines)


def below(error: ValidationError, model: type[BaseModel]) -> list[Wrong]:
    """What pydantic found in a section that was validated by itself."""
    return [
        Wrong(details["loc"], *_expected_and_found(details, model))
        for details in error.errors(include_url=False)
    ]


def _expected_and_found(details: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    kind, context = details["type"], details.get("ctx", {})
    value = found(None if kind == "missing" else details["input"])
    match kind:
        case "extra_forbidden":
            known = _keys(model, details["loc"][:-1])
            near = did_you_mean(str(details["loc"][-1]), known)
            return f"one of {', '.join(known)}", f"no such key{near}"
        case "wrong":
            return context["expected"], context["found"]
        case "value_error":
            return str(context["error"]).removeprefix("expected "), value
        case _ if kind in EXPECTED:
            return EXPECTED[kind].format(**context), value
    return details["msg"], value


def _keys(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """The keys of the section at ``place``."""
    for step in place:
        if isinstance(step, int):
            continue
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        model = _section(fields[step].annotation)
    return [field.alias or name for name, field in model.model_fields.items()]


def _section(annotation: Any) -> type[BaseModel]:
    """The model inside ``Model``, ``list[Model]`` or ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        try:
            return _section(argument)
        except TypeError:
            continue
    raise TypeError(f"no section in {annotation!r}")
