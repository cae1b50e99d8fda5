"""IDX files: what is read of them, and what is refused."""

import gzip
import struct

import numpy as np
import pytest
from pydantic import ValidationError

from mllib_ext.job import inputs
from mllib_ext.job.config import Source
from mllib_ext.job.idx import decode_idx
from mllib_ext.job.problems import describe

IMAGES = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
LABELS = np.array([3, 0, 255, 1], np.uint8)


def idx(array, kind=8):
    """The bytes of an IDX file."""
    head = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (tmp_path / "labels").write_bytes(idx(LABELS))
    return tmp_path


def read(spark, path, **options):
    source = {"format": "idx", "path": str(path), "options": options}
    return inputs.read(spark, [Source.model_validate(source)])


@pytest.mark.parametrize(
    ("kind", "dtype"), [(8, "u1"), (9, "i1"), (11, "i2"), (12, "i4"), (13, "f4"), (14, "f8")]
)
def test_every_type_of_values_is_decoded(kind, dtype):
    array = np.array([[1, 2, 3], [100, 0, 7]], dtype)
    np.testing.assert_array_equal(decode_idx(idx(array, kind)), array)
    np.testing.assert_array_equal(decode_idx(gzip.compress(idx(array, kind))), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"expected an IDX file, .* found \[\]"),
        (b"\x89PNG1234", r"found \[137, 80, 78, 71\]"),
        (b"\0\0\7\1\0\0\0\1a", "expected an IDX file"),
        (idx(IMAGES)[:9], "expected 3 lengths of axes, found 5 bytes"),
        (idx(IMAGES)[:-1], r"expected 24 bytes for values of shape \[4, 3, 2\], found 23"),
        (idx(IMAGES) + b"0", "found 25"),
        (gzip.compress(idx(IMAGES))[:-9], "expected a whole gzipped file"),
    ],
    ids=["empty", "a picture", "an unknown type", "a short head", "short", "long", "cut"],
)
def test_other_bytes_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        decode_idx(content)


def test_images_and_labels_become_rows(spark, files):
    rows = read(spark, files / "images.gz", labels=str(files / "labels")).orderBy("id")
    assert dict(rows.dtypes) == {"id": "bigint", "features": "array<float>", "label": "double"}
    found = rows.collect()
    assert [row.id for row in found] == [0, 1, 2, 3]
    assert [row.label for row in found] == [3.0, 0.0, 255.0, 1.0]
    np.testing.assert_array_equal([row.features for row in found], IMAGES.reshape(4, 6))
    assert read(spark, files / "images.gz").columns == ["id", "features"]


def test_files_that_do_not_fit_are_refused_with_their_key(spark, files):
    images = files / "images.gz"
    with pytest.raises(ValueError, match=r"input\.options\.labels: expected a label for each of 4"):
        read(spark, images, labels=str(images))
    (files / "broken").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"input\.path: expected an IDX file, .*/broken\)"):
        read(spark, files / "broken")
    with pytest.raises(ValueError, match=r"input\.path: expected one IDX file, found 3"):
        read(spark, f"{files}/*")
    for path, options, key in ((files / "none", {}, "path"), (images, {"labels": "no"}, "labels")):
        with pytest.raises(FileNotFoundError, match=rf"{key}: expected idx files, found nothing"):
            read(spark, path, **options)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({}, "path: expected where the idx files are, found nothing"),
        ({"path": ["a", "b"]}, "path: expected one file of images with format: idx"),
        ({"path": "a", "schema": "x int"}, "schema: expected no such key with format: idx"),
        ({"path": "a", "options": {"lables": "b"}}, "options.lables: expected labels alone"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, problem):
    raw = {"format": "idx", **keys}
    with pytest.raises(ValidationError) as caught:
        Source.model_validate(raw)
    assert any(line.startswith(problem) for line in describe(caught.value, Source, raw))
