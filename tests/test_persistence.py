"""What is saved of parameters is what Spark's own estimators save."""

import json
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import classification
from pyspark.ml.linalg import Matrices, Vectors

from mllib_ext.classification import LogisticRegression

BOUNDS: dict[str, tuple[Any, Any]] = {
    "dense": (Matrices.dense(2, 2, [1.0, 2.0, 3.0, 4.0]), Vectors.dense([1.0, 2.0])),
    "sparse": (
        Matrices.sparse(2, 2, [0, 1, 2], [0, 1], [5.0, 6.0]),
        Vectors.sparse(2, [1], [7.0]),
    ),
}


def saved(estimator, path):
    estimator.save(str(path))
    (file,) = Path(path, "metadata").glob("part-*")
    return json.loads(file.read_text())["paramMap"]


@pytest.mark.parametrize("kind", BOUNDS)
def test_bounds_are_written_as_spark_writes_them_and_read_again(spark, tmp_path, kind):
    matrix, vector = BOUNDS[kind]
    params: dict[str, Any] = {
        "lowerBoundsOnCoefficients": matrix,
        "lowerBoundsOnIntercepts": vector,
    }
    ours = saved(LogisticRegression(**params), tmp_path / "ours")
    assert ours == saved(classification.LogisticRegression(**params), tmp_path / "theirs")
    loaded = LogisticRegression.load(str(tmp_path / "ours"))
    assert loaded.getLowerBoundsOnCoefficients() == matrix
    assert loaded.getLowerBoundsOnIntercepts() == vector
