"""Files of arrays and structure: the same bits and layout come back, and nothing is executed."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp

from mllib_ext.kernel_machine import Rows
from mllib_ext.optimizers.cuts import Bound
from mllib_ext.optimizers.loop import Settings
from mllib_ext.packed import STRUCTURE, packed, unpacked


def test_plain_values_classes_and_sparse_arrays_come_back():
    X = sp.csr_array(np.array([[0.0, 1.5], [2.0, 0.0]]))
    rows = Rows(np.arange(2), X, np.array([1, 0]), np.array([0.1, np.inf]))
    values = (None, True, 3, 2**70, 0.1, -0.0, "é", b"\x00\x01", [1, (2.0,)], {3: "a", "b": ()})
    found, some, bound, settings = unpacked(
        packed((values, rows, Bound(1.0, np.ones(2), np.zeros(0)), Settings(max_iter=7)))
    )
    assert repr(found) == repr(values)
    assert (some.X.toarray() == X.toarray()).all()
    assert type(some.X) is type(X)
    assert some.bound.tolist() == [0.1, np.inf]
    assert type(bound) is Bound
    assert settings == Settings(max_iter=7)
    assert np.isnan(unpacked(packed(float("nan"))))
    scalar = unpacked(packed(np.float32(0.1)))
    assert type(scalar) is np.float32
    assert scalar == np.float32(0.1)


def test_arrays_keep_their_layout_in_memory():
    base = np.random.default_rng(0).normal(size=(6, 8))
    for array in (
        base,
        base.T,
        base[:, 2],
        base[::2, 1::3],
        base[:, :3].T,
        np.array(1.0),
        base[:0],
    ):
        found = unpacked(packed(array))
        assert found.tobytes() == array.tobytes()
        assert found.shape == array.shape
        if array.size:
            assert found.strides == array.strides


def test_what_has_no_place_in_a_file_is_refused():
    for value in (object(), np.array([None]), {1: print}, Settings):
        with pytest.raises(TypeError, match="expected"):
            packed(value)


@pytest.mark.parametrize("name", ["os:system", "mllib_ext.storage:delete", "mllib_ext.packed:np"])
def test_a_name_that_is_no_class_of_this_package_is_refused(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(STRUCTURE, json.dumps({"class": name, "fields": {"path": "x"}}))
    with pytest.raises(ValueError, match=f"found {name}"):
        unpacked(file.getvalue())


def test_any_damaged_bit_is_refused_or_does_no_harm():
    value = {"coef": np.arange(5.0), "names": [str(i) for i in range(20)], "end": (None, True)}
    whole = packed(value)
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        try:
            found = unpacked(bytes(damaged))
        except ValueError:
            continue
        assert repr(found) == repr(value)  # a date, or a flag that is not read


def test_a_file_that_is_cut_off_is_refused():
    whole = packed({"coef": np.arange(5.0)})
    for length in range(len(whole)):
        with pytest.raises(ValueError):  # noqa: PT011 - zipfile's own words
            unpacked(whole[:length])
