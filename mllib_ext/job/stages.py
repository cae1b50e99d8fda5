"""Spark ML stages named in a config: found, checked against their Params, and made.

The Params of a class can be read without a Spark session, so a config is checked in full before
Spark starts.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pyspark.ml.base import Estimator, Transformer
from pyspark.ml.param import Param, TypeConverters

from mllib_ext.job.problems import Wrong, found
from mllib_ext.names import did_you_mean

KINDS: dict[Any, str] = {
    TypeConverters.toInt: "a whole number",
    TypeConverters.toFloat: "a number",
    TypeConverters.toBoolean: "true or false",
    TypeConverters.toString: "text",
    TypeConverters.toList: "a list",
    TypeConverters.toListInt: "a list of whole numbers",
    TypeConverters.toListFloat: "a list of numbers",
    TypeConverters.toListString: "a list of text",
    TypeConverters.toListListFloat: "a list of lists of numbers",
    TypeConverters.toVector: "a list of numbers",
}


STAGES = (Transformer, Estimator)


def find_class(path: str, bases: tuple[type, ...] = STAGES) -> type:
    """The class at a dotted path.

    Parameters
    ----------
    path : str
        ``package.module.Class``.
    bases : tuple of type
        What it has to be one of, from ``pyspark.ml.base``.

    Raises
    ------
    Wrong
        Nothing there, or something that is not such a class.
    """
    module_name, _, name = path.rpartition(".")
    kinds = " or ".join(base.__name__ for base in bases)
    expected = f"the dotted path of a pyspark.ml {kinds}"
    if not module_name:
        raise Wrong(["class"], expected, found(path))
    module = _import(module_name, expected)
    cls = getattr(module, name, None)
    if cls is None:
        names = [n for n, value in vars(module).items() if _is_stage(value, bases)]
        what = f"no {name!r} in {module_name}{did_you_mean(name, names)}"
        raise Wrong(["class"], expected, what)
    if not _is_stage(cls, bases):
        raise Wrong(["class"], expected, f"{path}, which is none")
    return cls  # type: ignore[no-any-return]


def _import(module_name: str, expected: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        what = f"no module {missing!r}{_near_module(missing)}"
        if not f"{module_name}.".startswith(f"{missing}."):
            what = f"that module {module_name!r} needs {missing!r}, which is not installed"
    except ImportError as error:
        what = f"that module {module_name!r} fails: {error}"
    raise Wrong(["class"], expected, what)


def _near_module(missing: str) -> str:
    parent_name, _, name = missing.rpartition(".")
    if not parent_name:
        return ""
    try:
        parent = importlib.import_module(parent_name)
    except ImportError:
        return ""
    modules = pkgutil.iter_modules(getattr(parent, "__path__", []))
    return did_you_mean(name, [module.name for module in modules])


def _is_stage(value: Any, bases: tuple[type, ...]) -> bool:
    return isinstance(value, type) and issubclass(value, bases) and not inspect.isabstract(value)


def params_of(cls: type) -> dict[str, Param[Any]]:
    """The Params that a class declares, by name."""
    values = ((name, inspect.getattr_static(cls, name, None)) for name in dir(cls))
    return {name: value for name, value in values if isinstance(value, Param)}


def wrong_stage(
    path: str, params: Mapping[str, Any], bases: tuple[type, ...] = STAGES
) -> list[Wrong]:
    """What is wrong with a stage: its class, unknown Params, values of another type."""
    try:
        cls = find_class(path, bases)
    except Wrong as wrong:
        return [wrong]
    known = params_of(cls)
    wrongs = []
    for name, value in params.items():
        if name not in known:
            what = f"no such Param{did_you_mean(name, known)}"
            wrongs.append(Wrong(["params", name], f"a Param of {cls.__name__}", what))
            continue
        converter = known[name].typeConverter
        try:
            converter(value)
        except (TypeError, ValueError):
            expected = KINDS.get(converter, f"a value for: {known[name].doc}")
            wrongs.append(Wrong(["params", name], expected, found(value)))
    return wrongs


def wrong_values(cls: type, params: Mapping[str, Any]) -> list[Wrong]:
    """What an estimator of this library says of its Params, all together; Spark's tell in ``fit``.

    Parameters
    ----------
    cls : type
    params : mapping
        Known ones, of the right types.
    """
    if not hasattr(cls, "_refuse_params"):
        return []
    try:
        make(cls, params)._refuse_params()
    except (TypeError, ValueError) as error:
        told = re.fullmatch(r"param (\w+): expected (.+?), found (.+)", str(error), re.DOTALL)
        if told is None:
            return [Wrong(["params"], "values that go together", str(error))]
        return [Wrong(["params", told[1]], told[2], told[3])]
    return []


def make(cls: type, params: Mapping[str, Any]) -> Any:
    """An instance with these Params, through its setters: they keep Params consistent."""
    stage = cls()
    for name, value in params.items():
        setter = getattr(stage, "set" + name[0].upper() + name[1:], None)
        if callable(setter):
            setter(value)
        else:
            stage._set(**{name: value})
    return stage
