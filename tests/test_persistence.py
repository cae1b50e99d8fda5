"""What is saved of parameters is what Spark's own estimators save."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pyspark.ml import classification, clustering, regression
from pyspark.ml.linalg import Matrices, Vectors

from mllib_ext.classification import LogisticRegression
from mllib_ext.clustering import KMeans
from mllib_ext.regression import LinearRegression

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


def test_a_linear_regression_is_written_as_pmml_as_by_spark(spark, tmp_path):
    rows = [(Vectors.dense(x, x * x), 2.0 * x + 1.0) for x in (0.0, 1.0, 2.0, 4.0)]
    df = spark.createDataFrame(rows, ["features", "label"])
    paths = {
        cls: str(tmp_path / cls.__module__)
        for cls in (LinearRegression, regression.LinearRegression)
    }
    coefficients = []
    for cls, path in paths.items():
        model = cls(regParam=0.1).fit(df)
        model.write().format("pmml").save(path)
        with pytest.raises(Exception, match="exists"):
            model.write().format("pmml").save(path)
        model.write().overwrite().format("pmml").save(path)
        (file,) = Path(path).glob("part-*")
        table = ElementTree.fromstring(file.read_text()).find(".//{*}RegressionTable")
        assert table is not None
        found = [table.attrib["intercept"], *(p.attrib["coefficient"] for p in table)]
        coefficients.append([float(value) for value in found])
    assert len(coefficients[0]) == 3
    assert coefficients[0] == pytest.approx(coefficients[1], rel=1e-9)
    with pytest.raises(Exception, match="onnx"):
        model.write().format("onnx").save(f"{paths[LinearRegression]}.onnx")


def test_clusters_are_written_as_pmml_as_by_spark(spark, tmp_path):
    rows = [(Vectors.dense(x, y),) for x in (0.0, 1.0, 9.0, 10.0) for y in (0.5, -3.0)]
    df = spark.createDataFrame(rows, ["features"])
    centers = []
    for cls in (KMeans, clustering.KMeans):
        path = str(tmp_path / cls.__module__)
        cls(k=2, seed=1).fit(df).write().format("pmml").save(path)
        (file,) = Path(path).glob("part-*")
        model = ElementTree.fromstring(file.read_text()).find("{*}ClusteringModel")
        assert model is not None
        assert model.attrib["modelClass"] == "centerBased"
        found = [cluster.findtext("{*}Array").split() for cluster in model.iter() if
                 cluster.tag.endswith("}Cluster")]  # fmt: skip
        centers.append(sorted([float(value) for value in center] for center in found))
    assert len(centers[0]) == 2
    assert centers[0] == [pytest.approx(center) for center in centers[1]]
    model = KMeans(k=2, seed=1, distanceMeasure="cosine").fit(df)
    with pytest.raises(ValueError, match="distanceMeasure: expected euclidean for PMML"):
        model.write().format("pmml").save(str(tmp_path / "cosine"))
    assert not (tmp_path / "cosine").exists()
