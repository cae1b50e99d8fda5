"""Weights that make classes count the same: the formula, and what stands before and after it."""

from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.linalg import Vectors
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression
from sklearn.utils.class_weight import compute_class_weight

from mllib_ext.classification import LogisticRegression
from mllib_ext.feature import ClassBalancer, ClassBalancerModel


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(300, 3))
    y = (X[:, 0] + rng.normal(size=300) > 1.2).astype(float) + (X[:, 1] > 1.5)
    return X, y, rng.uniform(0.5, 2, size=300)


@pytest.fixture(scope="module")
def df(spark, data):
    X, y, w = data
    rows = [(Vectors.dense(x), float(a), float(b)) for x, a, b in zip(X, y, w, strict=True)]
    return spark.createDataFrame(rows, ["features", "label", "w"]).repartition(3)


def test_the_factors_are_those_of_scikit_learn(df, data):
    y = data[1]
    model = ClassBalancer().fit(df)
    classes = np.unique(y)
    assert np.array_equal(model.labels, classes)
    expected = compute_class_weight("balanced", classes=classes, y=y)
    assert model.factors == pytest.approx(expected, rel=1e-14)
    assert not model.factors.flags.writeable


def test_with_weights_every_class_has_the_same_and_the_whole_keeps_its_own(df, data):
    balancer = ClassBalancer(weightCol="w", outputCol="v")
    model = balancer.fit(df)
    assert model.uid == balancer.uid
    sums = model.transform(df).groupBy("label").sum("v").collect()
    total = data[2].sum()
    assert [row["sum(v)"] for row in sums] == pytest.approx([total / 3] * 3, rel=1e-12)


def test_a_balanced_fit_is_that_of_scikit_learn(df, data):
    X, y, _ = data
    rows = df.filter("label < 2")
    keep = y < 2
    n = keep.sum()
    weighted = ClassBalancer().fit(rows).transform(rows)
    ours = LogisticRegression(
        weightCol="class_weight", regParam=0.1, standardization=False, tol=1e-10
    ).fit(weighted)
    theirs = SklearnLogisticRegression(class_weight="balanced", C=1 / (0.1 * n), tol=1e-10)
    theirs.fit(X[keep], y[keep])
    # two solvers at the optimum of the same objective
    assert ours.coefficients.toArray() == pytest.approx(theirs.coef_[0], abs=1e-5)
    assert ours.intercept == pytest.approx(theirs.intercept_[0], abs=1e-5)


def test_a_saved_model_weighs_as_before_and_leaves_rows_without_a_label_alone(df, tmp_path):
    fitted: Any = Pipeline(stages=[ClassBalancer(weightCol="w", outputCol="v")]).fit(df)
    fitted.save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))
    stage = loaded.stages[0]
    assert isinstance(stage, ClassBalancerModel)
    assert stage.factors.tolist() == fitted.stages[0].factors.tolist()
    before, after = (m.transform(df).select("label", "v").collect() for m in (fitted, loaded))
    assert sorted(before) == sorted(after)
    assert loaded.transform(df.drop("label")).columns == ["features", "w"]


def test_an_estimator_is_saved_with_its_columns(spark, tmp_path):
    ClassBalancer(labelCol="y", weightCol="w").save(str(tmp_path / "balancer"))
    loaded = ClassBalancer.load(str(tmp_path / "balancer"))
    assert (loaded.getLabelCol(), loaded.getWeightCol()) == ("y", "w")
    assert loaded.getOutputCol() == "class_weight"


def test_a_class_that_was_not_there_keeps_its_weight(df):
    model = ClassBalancer().fit(df.filter("label < 2"))
    weights = {r.class_weight for r in model.transform(df.filter("label = 2")).collect()}
    assert weights == {1.0}


@pytest.mark.parametrize(
    ("rows", "weight", "message"),
    [
        ([(None, 1.0)], None, "label column 'y': expected a number in every row, found null in 1"),
        ([(float("nan"), 1.0)], None, "expected a number in every row, found NaN in 1"),
        ([], None, "label column 'y': expected at least one row, found no rows"),
        (
            [(0.0, -1.0), (1.0, 1.0)],
            "w",
            "weight column 'w': expected finite weights",
        ),
        ([(0.0, None), (1.0, 1.0)], "w", "expected finite weights of at least 0"),
        ([(0.0, 0.0), (1.0, 1.0)], "w", "expected weights above 0 .* found only 0 in class 0"),
        ([(0.0, 1.0)], "v", "weight column 'v': expected one of"),
    ],
)
def test_what_cannot_be_balanced_is_refused_by_name(spark, rows, weight, message):
    df = spark.createDataFrame(rows, "y double, w double")
    with pytest.raises(ValueError, match=message):
        ClassBalancer(labelCol="y", weightCol=weight).fit(df)


def test_a_column_of_text_or_one_that_is_there_already_is_refused(spark):
    df = spark.createDataFrame([("a", 1.0)], "label string, class_weight double")
    with pytest.raises(TypeError, match="label column 'label': expected a numeric type"):
        ClassBalancer().fit(df)
    model = ClassBalancer(labelCol="class_weight").fit(df)
    with pytest.raises(ValueError, match="'class_weight': expected a name that is free"):
        model.transform(df)
