"""IDX files, as MNIST and its successors have them: one array each, gzipped or not.

Two bytes of 0, the type of the values, the number of axes, the length of each axis as a big-endian
int32, then the values in C order (LeCun, "The MNIST database of handwritten digits").
"""

from __future__ import annotations

import gzip
import zlib

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
GZIP = b"\x1f\x8b"


def decode_idx(content: bytes) -> np.ndarray:
    """The array in the bytes of an IDX file.

    Raises
    ------
    ValueError
        Bytes that are no IDX file, or fewer or more values than its shape says.
    """
    if content[:2] == GZIP:
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"expected a whole gzipped file, found: {error}") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES or not content[3]:
        raise ValueError(
            "expected an IDX file, which begins with 0, 0, a type of values and a number of axes, "
            f"found {list(content[:4])}"
        )
    kind, n_axes = np.dtype(TYPES[content[2]]), content[3]
    start = 4 + 4 * n_axes
    if len(content) < start:
        raise ValueError(f"expected {n_axes} lengths of axes, found {len(content) - 4} bytes")
    shape = np.frombuffer(content, ">u4", n_axes, 4).astype(np.int64)
    expected = int(shape.prod()) * kind.itemsize
    if len(content) - start != expected:
        raise ValueError(
            f"expected {expected} bytes for values of shape {shape.tolist()}, "
            f"found {len(content) - start}"
        )
    return np.frombuffer(content, kind, offset=start).reshape(shape)


def read_idx(spark: SparkSession, images: str, labels: str | None, name: str) -> DataFrame:
    """``id`` (the row's number), ``features`` (array of floats) and, with labels, ``label``.

    Parameters
    ----------
    spark : SparkSession
    images, labels : str
        Files on any Hadoop file system, small enough for the driver.
    name : str
        The input's key in the config, for messages.

    Raises
    ------
    ValueError
        A file that is no IDX file; labels that are not one a row.
    """
    X = _array(spark, images, f"{name}.path")
    n = len(X)
    flat = X.reshape(n, -1).astype(np.float32)
    d = flat.shape[1]
    offsets = np.arange(0, n * d + 1, d, dtype=np.int64)
    rows = pa.LargeListArray.from_arrays(offsets, pa.array(flat.ravel()))
    columns = {"id": pa.array(np.arange(n)), "features": rows.cast(pa.list_(pa.float32()))}
    if labels is not None:
        y = _array(spark, labels, f"{name}.options.labels")
        if y.shape != (n,):
            raise ValueError(
                f"{name}.options.labels: expected a label for each of {n} rows, "
                f"found shape {list(y.shape)}"
            )
        columns["label"] = pa.array(y.astype(np.float64))
    return spark.createDataFrame(pa.table(columns))


def _array(spark: SparkSession, path: str, key: str) -> np.ndarray:
    files = spark.read.format("binaryFile").load(path).select("content").toArrow()
    if files.num_rows != 1:
        raise ValueError(f"{key}: expected one IDX file, found {files.num_rows} at {path}")
    try:
        return decode_idx(files["content"][0].as_py())
    except ValueError as error:
        raise ValueError(f"{key}: {error} ({path})") from None
