"""Values as one file: a zip of arrays (``.npz``), and JSON that says how they hang together.

Nothing in such a file is executed. Arrays come back with their bits and their layout in memory,
which decides in what order BLAS adds. Dataclasses and named tuples of this package come back as
such, if their module is loaded by now; what else there is are numbers, texts, tuples, lists,
dictionaries, sparse arrays and None.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
import zipfile
from typing import Any

import numpy as np
import scipy.sparse as sp

PACKAGE = __name__.partition(".")[0]
STRUCTURE = "structure.json"
SPARSE = {"csr": sp.csr_array, "csc": sp.csc_array}


def packed(value: Any) -> bytes:
    """The file of a value; TypeError for one that has no place in it."""
    arrays: list[np.ndarray] = []
    structure = json.dumps(_encoded(value, arrays))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(STRUCTURE, structure, zipfile.ZIP_DEFLATED)
        for number, array in enumerate(arrays):
            with archive.open(f"{number}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return file.getvalue()


def unpacked(data: bytes) -> Any:
    """The value in a file.

    Raises
    ------
    ValueError
        The file is cut off or damaged, or names a class that this package does not have.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            structure = json.loads(archive.read(STRUCTURE))
            arrays = []
            for number in range(len(archive.namelist()) - 1):
                entry = io.BytesIO(archive.read(f"{number}.npy"))  # checks its CRC
                arrays.append(np.lib.format.read_array(entry, allow_pickle=False))
        return _decoded(structure, arrays)
    except (ValueError, MemoryError):
        raise
    except Exception as error:
        # By where the damage is, zipfile raises BadZipFile, zlib.error, EOFError, OSError,
        # RuntimeError ("encrypted"), NotImplementedError (a method or version that is not there).
        raise ValueError(f"expected a whole file, found {error}") from None


def _encoded(value: Any, arrays: list[np.ndarray]) -> Any:
    def several(values: Any) -> list[Any]:
        return [_encoded(item, arrays) for item in values]

    match value:
        case None | bool() | str():
            return value
        case np.generic():
            return {"scalar": _array(np.asarray(value), arrays)}
        case int() | float():
            return value  # the shortest text that comes back as the same bits
        case np.ndarray():
            return {"array": _array(value, arrays)} | _layout(value)
        case bytes():
            return {"bytes": _array(np.frombuffer(value, np.uint8), arrays)}
        case dict():
            return {"dict": [several(value), several(value.values())]}
        case list():
            return {"list": several(value)}
        case _ if type(value) is tuple:
            return {"tuple": several(value)}
    if type(value) in SPARSE.values():
        parts = several((value.data, value.indices, value.indptr))
        return {"sparse": value.format, "shape": list(value.shape), "parts": parts}
    cls = type(value)
    if cls.__module__.partition(".")[0] == PACKAGE and _names(cls) is not None:
        fields = {name: _encoded(getattr(value, name), arrays) for name in _names(cls) or ()}
        return {"class": f"{cls.__module__}:{cls.__qualname__}", "fields": fields}
    raise TypeError(f"expected arrays, plain values and classes of this package, found {value!r}")


def _decoded(value: Any, arrays: list[np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value

    def several(values: Any) -> list[Any]:
        return [_decoded(item, arrays) for item in values]

    match value:
        case {"scalar": number}:
            return arrays[number][()]
        case {"array": number, "strides": strides}:
            return _strided(arrays[number], strides)
        case {"array": number}:
            return arrays[number]
        case {"bytes": number}:
            return arrays[number].tobytes()
        case {"dict": [keys, values]}:
            return dict(zip(several(keys), several(values), strict=True))
        case {"list": values}:
            return several(values)
        case {"tuple": values}:
            return tuple(several(values))
        case {"sparse": kind, "shape": shape, "parts": parts}:
            return SPARSE[kind](tuple(several(parts)), shape=tuple(shape))
        case {"class": name, "fields": fields}:
            known = {field: _decoded(item, arrays) for field, item in fields.items()}
            return _class(name)(**known)
    raise ValueError(f"expected a value, found {sorted(value)}")


def _array(array: np.ndarray, arrays: list[np.ndarray]) -> int:
    if array.dtype.hasobject:
        raise TypeError(f"expected arrays of numbers, found one of {array.dtype}")
    arrays.append(array)
    return len(arrays) - 1


def _layout(array: np.ndarray) -> dict[str, Any]:
    """The strides of an array that is part of another one: BLAS adds such otherwise."""
    contiguous = array.flags.c_contiguous or array.flags.f_contiguous
    if contiguous or min(array.strides) <= 0:
        return {}
    return {"strides": list(array.strides)}


def _strided(array: np.ndarray, strides: list[int]) -> np.ndarray:
    extent = sum(s * (n - 1) for s, n in zip(strides, array.shape, strict=True)) + array.itemsize
    buffer = np.zeros(math.ceil(extent / array.itemsize), array.dtype)
    view = np.lib.stride_tricks.as_strided(buffer, array.shape, strides)
    view[...] = array
    return view


def _names(cls: type) -> tuple[str, ...] | None:
    """The fields of a dataclass or a named tuple; None for another class."""
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls) if field.init)
    return getattr(cls, "_fields", None) if issubclass(cls, tuple) else None


def _class(name: str) -> Any:
    """A dataclass or a named tuple of this package whose module is loaded."""
    module, _, qualified = name.partition(":")
    found = getattr(sys.modules.get(module), qualified, None)
    if module.partition(".")[0] != PACKAGE or not isinstance(found, type) or _names(found) is None:
        raise ValueError(
            f"expected a class of {PACKAGE} {sys.modules[PACKAGE].__version__}, found {name}"
        )
    return found
