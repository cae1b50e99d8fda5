"""Functions as params: known by their import path, which is what is saved of them.

A function travels to the workers by Spark's cloudpickle. A file holds its path alone, and what
stands at a path is called only if it says that it makes modules: a file cannot name any other
function.
"""

from __future__ import annotations

import pkgutil
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

from mllib_ext.torch.needs import torch_package


class Named(str):
    """The path of a function, with the function itself."""

    function: Callable[..., Any]

    def __new__(cls, name: str, function: Callable[..., Any]) -> Named:
        named = super().__new__(cls, name)
        named.function = function
        return named

    def __getnewargs__(self) -> tuple[str, Callable[..., Any]]:  # type: ignore[override]
        return str(self), self.function


def to_function(value: Any) -> str:
    """A function, or the dotted path of one, as the value of a Param.

    Raises
    ------
    TypeError
        Neither of them; a module in place of the function that makes one.
    """
    if isinstance(value, str):
        return value
    if not callable(value):
        raise TypeError(f"expected a function or the dotted path of one, found {value!r}")
    return Named(path_of(value), value)


def path_of(function: Callable[..., Any]) -> str:
    """Where a function stands: ``package.module.function``; the same in every process."""
    if isinstance(function, partial):
        arguments = [repr(value) for value in function.args]
        arguments += [f"{name}={value!r}" for name, value in function.keywords.items()]
        return f"{path_of(function.func)}({', '.join(arguments)})"
    if not hasattr(function, "__qualname__"):
        return f"{path_of(type(function))}()"
    return f"{function.__module__}.{function.__qualname__}"


def found(param: str, value: str) -> Callable[..., Any]:
    """The function of a Param's value.

    Raises
    ------
    ValueError
        A path where nothing stands that can be called.
    """
    if isinstance(value, Named):
        return value.function
    try:
        function = pkgutil.resolve_name(value)
    except (ImportError, AttributeError, ValueError) as error:
        setter = "set" + param[0].upper() + param[1:]
        raise ValueError(
            f"param {param}: expected the dotted path of a function that can be imported here, "
            f"found {value!r} ({error}); {setter} takes the function itself"
        ) from None
    if not callable(function):
        raise ValueError(f"param {param}: expected the path of a function, found {value!r}")
    return function  # type: ignore[no-any-return]


def factory(value: str) -> Callable[..., Any]:
    """The function of param ``module``.

    Raises
    ------
    ValueError
        A path where nothing stands that says that it makes modules.
    """
    function = found("module", value)
    if not isinstance(value, Named) and not _makes_modules(function):
        raise ValueError(
            "param module: expected the path of a class of torch.nn.Module, or of a function that "
            f"is declared to return one (-> torch.nn.Module), found {value!r}, which is not"
        )
    return function


def loads_again(value: str) -> bool:
    """Whether another session finds by its path what makes the module."""
    if not isinstance(value, Named):
        return True
    if value.startswith("__main__."):
        return False
    try:
        return pkgutil.resolve_name(value) is value.function and _makes_modules(value.function)
    except (ImportError, AttributeError, ValueError):
        return False


def _makes_modules(function: Any) -> bool:
    torch = torch_package()
    base = torch.nn.Module
    if not isinstance(function, type):
        try:  # it may import torch where it first needs it
            function = typing.get_type_hints(function, localns={"torch": torch}).get("return")
        except (TypeError, NameError, AttributeError):
            return False
    return isinstance(function, type) and issubclass(function, base)
