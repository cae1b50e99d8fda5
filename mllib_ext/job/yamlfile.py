"""Config files: YAML to a mapping, ``--set`` on top, and back to YAML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mllib_ext.job.problems import ConfigError, dotted, found
from mllib_ext.names import did_you_mean

# Sections whose keys hold dots: the rest of a --set path is one key.
DOTTED_KEYS = ("spark", "options", "search.params")


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: ``1e-6`` is a number, dates are text, a key stands once.

    That is YAML 1.2, where ``010`` is ten, and ``1:30`` and ``1_000`` are text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _Repeated(
                        problem=f"expected each key once, found {key.value!r} again",
                        problem_mark=key.start_mark,
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Repeated(yaml.MarkedYAMLError):
    """A key twice in one mapping: PyYAML would silently take the last."""


def _without(*tags: str) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    return {
        first: [(t, regexp) for t, regexp in rules if t not in tags]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


# PyYAML reads YAML 1.1, which takes 1e-6 for text, 010 for eight and 1:30 for ninety.
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = _without("tag:yaml.org,2002:timestamp", _INT, _FLOAT)
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"""^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$
        |^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$""",
        re.VERBOSE,
    ),
    list("-+.0123456789"),
)
_Loader.add_constructor(_INT, lambda loader, node: int(node.value))


def parse(text: str) -> Any:
    """A YAML document as plain Python values; ``yaml.YAMLError`` where it is none."""
    return yaml.load(text, Loader=_Loader)


def dump(values: dict[str, Any]) -> str:
    """A mapping as YAML, in its own order."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def read(path: str) -> dict[str, Any]:
    """The mapping in a config file.

    Raises
    ------
    ConfigError
        No such file, not text, not YAML, empty, or not a mapping.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = [other.name for other in file.parent.glob("*.y*ml")]
        hint = did_you_mean(file.name, near)
        raise ConfigError(path, [f"expected a config file, found no such file{hint}"]) from None
    except UnicodeDecodeError:
        raise ConfigError(path, ["expected text in UTF-8, found other bytes"]) from None
    except OSError as error:
        raise ConfigError(path, [f"expected a config file, found: {error.strerror}"]) from None
    try:
        values = parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = error.problem if isinstance(error, _Repeated) else f"not YAML: {error.problem}"
        raise ConfigError(path, [f"{where}{what}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError(path, [f"not YAML: {' '.join(str(error).split())}"]) from None
    if values is None:
        raise ConfigError(path, ["expected a mapping of keys, found an empty file"])
    if not isinstance(values, dict):
        raise ConfigError(path, [f"expected a mapping of keys, found {found(values)}"])
    return values


def override(values: dict[str, Any], assignment: str) -> None:
    """Apply one ``a.b=c`` in place; ``c`` is YAML, steps into lists are indices.

    Raises
    ------
    ConfigError
        No ``=``, a value that is not YAML, or a path through something that has no keys.
    """
    source = f"--set {assignment}"
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise ConfigError(source, ["expected KEY=VALUE, as in estimator.params.maxIter=50"])
    try:
        value = parse(text)
    except yaml.YAMLError:
        raise ConfigError(source, [f"expected a value in YAML, found {text!r}"]) from None
    steps = _steps(path.strip())
    place: Any = values
    for depth, step in enumerate(steps):
        key = _key(place, step, steps[:depth], source)
        if depth == len(steps) - 1:
            place[key] = value
            return
        if isinstance(place, dict) and place.get(key) is None:
            place[key] = {}  # absent, or "spark:" with nothing below it
        place = place[key]


def _steps(path: str) -> list[str]:
    steps = path.split(".")
    for depth in range(len(steps) - 1):
        here = ".".join(steps[: depth + 1])
        if any(f".{here}".endswith(f".{section}") for section in DOTTED_KEYS):
            return [*steps[: depth + 1], ".".join(steps[depth + 1 :])]
    return steps


def _key(place: Any, step: str, before: Sequence[str], source: str) -> Any:
    where = dotted(before)
    if isinstance(place, dict):
        return step
    if isinstance(place, list):
        if step.isdigit() and int(step) < len(place):
            return int(step)
        rule = f"an index from 0 to {len(place) - 1}"
        raise ConfigError(source, [f"{where}: expected {rule}, found {step!r}"])
    raise ConfigError(source, [f"{where}: expected a mapping or a list, found {found(place)}"])
