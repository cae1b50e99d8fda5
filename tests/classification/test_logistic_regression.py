from __future__ import annotations

import json
import re
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pyspark.ml import classification as mllib
from pyspark.ml.common import _py2java
from pyspark.ml.feature import StringIndexer
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import DenseMatrix, Vectors
from pyspark.sql import functions as F
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression as ScikitLogisticRegression

from mllib_ext.classification import LogisticRegression, LogisticRegressionModel
from mllib_ext.optimizers.loop import Change, ConvergenceWarning, DivergenceError, Stop

D, N = 4, 240
TIGHT: dict[str, Any] = {"tol": 1e-14, "maxIter": 500}


def draw():
    """Rows off centre, on three scales, half of them zeros; labels of 2 and 3 classes; weights.

    The numbers are float32's, so that a float column holds the same ones.
    """
    rng = np.random.default_rng(42)
    X = rng.standard_normal((N, D)) * [1.0, 5.0, 0.2, 1.0] + [0.0, 3.0, -0.5, 0.0]
    X[rng.random((N, D)) < 0.5] = 0.0
    X = X.astype(np.float32).astype(np.float64)
    B = np.array([[1.0, -1.0, 0.0], [0.1, 0.0, -0.1], [2.0, 1.0, -3.0], [0.0, 0.5, -0.5]])
    z = X @ B + [0.2, -0.1, 0.0] + rng.gumbel(size=(N, 3))
    w = np.round(rng.uniform(0, 3, N), 2)
    w[::17] = 0.0
    return X, (z[:, 0] > z[:, 1]).astype(float), z.argmax(axis=1).astype(float), w


X, TWO, THREE, W = draw()


@pytest.fixture(scope="module")
def frame(spark):
    """The rows with every kind of feature column, cached in two partitions."""
    rows = [
        (
            i, Vectors.dense(x), Vectors.sparse(D, np.flatnonzero(x), x[x != 0]), x.tolist(),
            float(a), float(b), float(w), *x.tolist(),
        )
        for i, (x, a, b, w) in enumerate(zip(X, TWO, THREE, W, strict=True))
    ]  # fmt: skip
    names = ["i", "dense", "sparse", "array", "two", "three", "w", "x0", "x1", "x2", "x3"]
    df = spark.createDataFrame(rows, names).withColumn("float", F.col("array").cast("array<float>"))
    # About half of a row is stored: as sparse vectors the rows become CSR, beside a dense column.
    df = df.repartition(2, "i").cache()
    df.count()
    yield df
    df.unpersist()


@pytest.fixture(scope="module")
def fitted(frame):
    """Models by their parameters, fitted once."""
    known = {}

    def fit(**params):
        key = json.dumps(params, sort_keys=True)
        if key not in known:
            known[key] = LogisticRegression(**params).fit(frame)
        return known[key]

    return fit


def coefficients(model):
    return model.coefficientMatrix.toArray(), model.interceptVector.toArray()


def assert_same_coefficients(found, expected, tolerance):
    for one, other in zip(coefficients(found), coefficients(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def probabilities(model, df):
    rows = model.transform(df).orderBy("i").select("probability").collect()
    return np.array([row.probability.toArray() for row in rows])


# --- the optimum --------------------------------------------------------------------------------

CASES: list[dict[str, Any]] = [
    {"labelCol": "two", "featuresCol": "dense"},
    {"labelCol": "two", "featuresCol": "sparse", "regParam": 0.05, "standardization": False},
    {"labelCol": "two", "featuresCol": "dense", "regParam": 0.05, "fitIntercept": False,
     "weightCol": "w"},
    {"labelCol": "three", "featuresCol": "dense", "weightCol": "w"},
    {"labelCol": "three", "featuresCol": "sparse", "regParam": 0.05},
    {"labelCol": "three", "featuresCol": "dense", "regParam": 0.1, "fitIntercept": False,
     "standardization": False},
]  # fmt: skip
every_case = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(map(str, case.values()))
)


@every_case
def test_coefficients_are_those_of_pyspark_ml(frame, fitted, case):
    expected = mllib.LogisticRegression(**case, tol=1e-12, maxIter=500).fit(frame)
    # pyspark.ml's optimiser stops at a gradient of about 1e-8: to 1e-7 in the coefficients.
    assert_same_coefficients(fitted(**case, **TIGHT), expected, 1e-6)


@every_case
def test_coefficients_are_those_of_scikit_learn(fitted, case):
    w = W if "weightCol" in case else np.ones(N)
    y = TWO if case["labelCol"] == "two" else THREE
    degrees = w.sum() - w @ w / w.sum()
    deviation = np.sqrt(w @ (X - np.average(X, axis=0, weights=w)) ** 2 / degrees)
    scale = deviation if case.get("standardization", True) else np.ones(D)
    reg = case.get("regParam", 0.0)
    # 1/W sum(w * loss) + reg/2 |b|**2 is scikit-learn's with C = 1 / (W * reg).
    reference = ScikitLogisticRegression(
        C=1 / (w.sum() * reg) if reg else np.inf,
        fit_intercept=case.get("fitIntercept", True),
        solver="lbfgs", tol=1e-11, max_iter=10_000,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops by its own rule at the limit of rounding
        reference.fit(X / scale, y, sample_weight=w)
    coef, intercept = coefficients(fitted(**case, **TIGHT))
    expected, at = reference.coef_ / scale, reference.intercept_
    if not reg and len(expected) > 1:
        expected = expected - expected.mean(axis=0)
    # The norm of its gradient is below 1e-9 where it stops.
    np.testing.assert_allclose(coef, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(intercept, at - at.mean() if len(at) > 1 else at, atol=1e-6)


@pytest.mark.parametrize("label", ["two", "three"])
@pytest.mark.parametrize(
    ("solver", "line_search", "tolerance"),
    [
        ("newton", "none", 1e-9),
        ("l-bfgs", "none", 1e-6),
        # Descent ends where ten losses are flat to 1e-14; coefficients are good to the root of it.
        ("gd", "barzilai-borwein", 1e-5),
    ],
)
def test_every_solver_finds_the_same_optimum(frame, fitted, label, solver, line_search, tolerance):
    common: dict[str, Any] = {"labelCol": label, "featuresCol": "dense", "regParam": 0.05, **TIGHT}
    model = fitted(**common, solver=solver, lineSearch=line_search)
    assert model.converged
    assert_same_coefficients(model, fitted(**common), tolerance)


def test_a_family_of_multinomial_with_two_classes_predicts_what_the_binomial_one_does(
    frame, fitted
):
    common: dict[str, Any] = {"labelCol": "two", "featuresCol": "dense", **TIGHT}
    two_rows = fitted(**common, family="multinomial")
    coef, intercept = coefficients(two_rows)
    one, at = coefficients(fitted(**common))
    assert coef.shape == (2, D)
    # Without a penalty the classes are centred: each has half of the difference.
    np.testing.assert_allclose(coef, [-one[0] / 2, one[0] / 2], rtol=1e-6)
    np.testing.assert_allclose(intercept, [-at[0] / 2, at[0] / 2], rtol=1e-6)
    with pytest.raises(ValueError, match=r"coefficients: .*use coefficientMatrix"):
        _ = two_rows.coefficients
    with pytest.raises(ValueError, match=r"intercept: .*use interceptVector"):
        _ = two_rows.intercept


@pytest.mark.parametrize("name", ["breast_cancer", "iris"])
def test_real_data_have_scikit_learns_coefficients(spark, name):
    data = load_breast_cancer() if name == "breast_cancer" else load_iris()
    values, labels = data.data, data.target.astype(float)
    table = list(zip(values.tolist(), labels.tolist(), strict=True))
    df = spark.createDataFrame(table, "features array<double>, label double").coalesce(2)
    model = LogisticRegression(regParam=0.01, **TIGHT).fit(df)
    deviation = values.std(axis=0, ddof=1)
    reference = ScikitLogisticRegression(
        C=1 / (len(labels) * 0.01), solver="newton-cholesky", tol=1e-10, max_iter=1000
    ).fit(values / deviation, labels)
    coef, intercept = coefficients(model)
    np.testing.assert_allclose(coef * deviation, reference.coef_, rtol=1e-6, atol=1e-7)
    at = reference.intercept_
    np.testing.assert_allclose(intercept, at - at.mean() if len(at) > 1 else at, rtol=1e-6)


# --- the way in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["array", "sparse", ["x0", "x1", "x2", "x3"]])
def test_every_kind_of_features_column_gives_the_same_model(fitted, features):
    common: dict[str, Any] = {"labelCol": "three", "weightCol": "w", **TIGHT}
    model = fitted(**common, featuresCol=features)
    assert_same_coefficients(model, fitted(**common, featuresCol="dense"), 1e-9)


def test_float_features_are_as_good_as_floats_are(frame, fitted):
    common: dict[str, Any] = {"labelCol": "two", "regParam": 0.05}
    model = fitted(**common, featuresCol="float")
    assert model.converged
    # Margins and gradients are good to 1e-7 of the largest products.
    assert_same_coefficients(model, fitted(**common, featuresCol="dense", **TIGHT), 1e-3)
    assert probabilities(model, frame).dtype == np.float64


@pytest.mark.parametrize("partitions", [1, 7])
def test_the_number_of_partitions_does_not_matter_even_if_one_is_empty(frame, fitted, partitions):
    params: dict[str, Any] = {
        "labelCol": "three",
        "featuresCol": "dense",
        "weightCol": "w",
        **TIGHT,
    }
    df = frame.repartition(partitions, F.floor(F.col("i") / 80))  # three values: at most 3 filled
    sizes = df.select(F.spark_partition_id().alias("p")).groupBy("p").count().collect()
    assert (len(sizes) < partitions) == (partitions == 7)
    assert_same_coefficients(LogisticRegression(**params).fit(df), fitted(**params), 1e-9)


def test_a_weight_counts_as_so_many_copies_and_0_as_absence(frame):
    params: dict[str, Any] = {
        "labelCol": "three",
        "featuresCol": "dense",
        "regParam": 0.05,
        **TIGHT,
    }
    weighted = frame.withColumn("times", (F.col("i") % 3).cast("double"))
    # Rows of weight 0 may even hold a class that no other row has.
    weighted = weighted.withColumn("three", F.expr("if(times = 0 and i < 9, 5.0, three)"))
    copies = frame.where("i % 3 > 0").union(frame.where("i % 3 = 2"))
    # Standardisation divides by the weights' degrees of freedom, which copies do not share.
    model = LogisticRegression(**params, weightCol="times", standardization=False).fit(weighted)
    expected = LogisticRegression(**params, standardization=False).fit(copies)
    assert model.numClasses == 3
    assert_same_coefficients(model, expected, 1e-9)


def test_the_number_of_classes_is_the_string_indexers(frame):
    named = frame.where("i < 60").withColumn("name", F.expr("if(two > 0, 'b', 'a')"))
    indexer = StringIndexer(inputCol="name", outputCol="label", stringOrderType="alphabetAsc")
    model = indexer.fit(named.union(named.withColumn("name", F.lit("c"))))
    df = model.transform(named)
    found = LogisticRegression(featuresCol="dense", regParam=0.1).fit(df)
    expected = mllib.LogisticRegression(featuresCol="dense", regParam=0.1).fit(df)
    assert found.numClasses == expected.numClasses == 3
    assert found.coefficientMatrix.numRows == 3


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "found"),
    [("'NaN'", "found nan"), ("-1", "found -1"), ("0.5", "found 0.5"), ("null", "found null"),
     ("1e6", "found label 1e+06")],
)  # fmt: skip
def test_a_label_that_is_no_class_is_an_error_that_names_the_column(frame, label, found):
    df = frame.withColumn("two", F.expr(f"if(i = 20, double({label}), two)"))
    found = re.escape(found)
    with pytest.raises(ValueError, match=rf"label column 'two': expected .*{found}"):
        LogisticRegression(featuresCol="dense", labelCol="two").fit(df)


def test_labels_beyond_the_declared_classes_are_refused(frame):
    metadata = {"ml_attr": {"type": "nominal", "vals": ["a", "b"]}}
    df = frame.withColumn("three", F.col("three").alias("three", metadata=metadata))
    message = "label column 'three': expected labels below 2, .* metadata, found 2"
    with pytest.raises(ValueError, match=message):
        LogisticRegression(featuresCol="dense", labelCol="three").fit(df)


def test_a_family_of_binomial_refuses_three_classes(frame):
    with pytest.raises(ValueError, match=r"param family: .* for 3 classes, found 'binomial'"):
        LogisticRegression(featuresCol="dense", labelCol="three", family="binomial").fit(frame)


@pytest.mark.parametrize(
    ("label", "family"), [(0.0, "auto"), (1.0, "auto"), (0.0, "multinomial"), (3.0, "auto")]
)
def test_one_class_gives_a_constant_model_and_a_warning_as_in_pyspark_ml(frame, label, family):
    df = frame.where("i < 20").withColumn("y", F.lit(label))
    params: dict[str, Any] = {"featuresCol": "dense", "labelCol": "y", "family": family}
    with pytest.warns(UserWarning, match=f"label column 'y' holds {label:g} alone"):
        model = LogisticRegression(**params).fit(df)
    expected = mllib.LogisticRegression(**params).fit(df)
    assert (model.numClasses, model.converged) == (expected.numClasses, True)
    assert model.reason == "constant_label"
    np.testing.assert_array_equal(coefficients(model)[0], expected.coefficientMatrix.toArray())
    np.testing.assert_array_equal(coefficients(model)[1], expected.interceptVector.toArray())
    columns = ["rawPrediction", "probability", "prediction"]
    found, wanted = (m.transform(df).select(columns).first() for m in (model, expected))
    assert found == wanted


def test_a_single_class_of_a_multinomial_without_intercept_has_a_model_too(frame):
    df = frame.where("i < 20").withColumn("y", F.lit(0.0))
    estimator = LogisticRegression(
        featuresCol="dense", labelCol="y", family="multinomial", fitIntercept=False
    )
    with pytest.warns(UserWarning, match="holds 0 alone"):
        model = estimator.fit(df)
    assert coefficients(model)[1].tolist() == [0.0]
    assert model.transform(df).first().prediction == 0.0


def test_a_single_row_and_fewer_rows_than_features_give_finite_models(frame):
    with pytest.warns(UserWarning, match="alone"):
        LogisticRegression(featuresCol="dense", labelCol="two").fit(frame.where("i = 0"))
    few = LogisticRegression(featuresCol="dense", labelCol="two", regParam=0.1)
    model = few.fit(frame.where("i < 3").withColumn("two", (F.col("i") % 2).cast("double")))
    assert model.converged
    assert np.isfinite(coefficients(model)[0]).all()


# --- prediction ---------------------------------------------------------------------------------


def twins(spark, coef, intercept, n_classes, **params) -> Any:
    """A model of this package and one of pyspark.ml with the same coefficients."""
    model = LogisticRegressionModel(coef, intercept, n_classes)
    context = spark.sparkContext
    matrix = DenseMatrix(coef.shape[0], coef.shape[1], coef.ravel().tolist(), isTransposed=True)
    java = context._jvm.org.apache.spark.ml.classification.LogisticRegressionModel(
        "twin", _py2java(context, matrix), _py2java(context, Vectors.dense(intercept)),
        n_classes, coef.shape[0] > 1,
    )  # fmt: skip
    twin = mllib.LogisticRegressionModel(java)
    for both in (model, twin):
        both.setFeaturesCol(params.get("featuresCol", "dense"))
        for name in ("threshold", "thresholds"):
            if name in params:
                getattr(both, f"set{name.capitalize()}")(params[name])
    return SimpleNamespace(model=model, twin=twin)


BINOMIAL = np.array([[1.0, -0.3, 2.0, 0.1]]), np.array([0.2])
MULTINOMIAL = np.array([[1.0, -0.3, 2.0, 0.1], [0, 0.4, -1, 0.3], [-1, 0.1, 0, 0]]), np.arange(3.0)


def outputs(model, df):
    columns = [*map(vector_to_array, (F.col("rawPrediction"), F.col("probability")))]
    return [
        np.array(column)
        for column in zip(
            *model.transform(df).orderBy("i").select(*columns, "prediction").collect(), strict=True
        )
    ]


@pytest.mark.parametrize(
    ("parameters", "n", "options"),
    [
        (BINOMIAL, 2, {}),
        (BINOMIAL, 2, {"threshold": 0.3, "featuresCol": "sparse"}),
        (BINOMIAL, 2, {"thresholds": [0.2, 0.8]}),
        (MULTINOMIAL, 3, {"featuresCol": "sparse"}),
        (MULTINOMIAL, 3, {"thresholds": [0.2, 0.1, 0.7]}),
        (MULTINOMIAL, 3, {"thresholds": [0.5, 0.0, 0.5]}),
    ],
)
def test_predictions_are_those_of_pyspark_ml(spark, frame, parameters, n, options):
    coef, intercept = parameters
    pair = twins(spark, coef, intercept, n, **options)
    found, expected = outputs(pair.model, frame), outputs(pair.twin, frame)
    for one, other in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)  # four products in a row
    np.testing.assert_array_equal(found[2], expected[2])
    assert len(set(found[2])) == (1 if 0.0 in options.get("thresholds", []) else n)
    model, twin = pair.model, pair.twin
    for x in (Vectors.dense(X[3]), Vectors.sparse(D, {1: 2.5})):
        assert model.predict(x) == twin.predict(x)
        for name in ("predictRaw", "predictProbability"):
            found, expected = (getattr(m, name)(x).toArray() for m in (model, twin))
            np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (model.numClasses, model.numFeatures) == (twin.numClasses, twin.numFeatures)


def test_a_class_of_threshold_0_and_probability_0_is_not_predicted(spark):
    coef = np.array([[-2000.0], [0.0], [1.0]])
    pair = twins(spark, coef, np.zeros(3), 3, featuresCol="x", thresholds=[0.0, 0.5, 0.5])
    df = spark.createDataFrame([(Vectors.dense([1.0]),), (Vectors.dense([-1.0]),)], ["x"])
    found, expected = (
        [row.prediction for row in m.transform(df).collect()] for m in (pair.model, pair.twin)
    )
    assert found == expected == [2.0, 0.0]


def test_the_schema_of_predictions_is_that_of_pyspark_ml(spark, frame):
    pair = twins(spark, *BINOMIAL, 2)
    found, expected = (m.transform(frame).schema for m in (pair.model, pair.twin))
    assert [(f.name, f.dataType) for f in found] == [(f.name, f.dataType) for f in expected]


def test_a_column_without_a_name_is_left_out(spark, frame):
    model = twins(spark, *BINOMIAL, 2).model.setRawPredictionCol("")
    assert model.transform(frame).columns == [*frame.columns, "probability", "prediction"]
    model.setProbabilityCol("").setPredictionCol("")
    assert model.transform(frame).columns == frame.columns


def test_nan_features_are_predicted_as_in_pyspark_ml(spark):
    nan = float("nan")
    rows = [(0, Vectors.dense([nan, 1.0])), (1, Vectors.sparse(2, [1], [nan]))]
    df = spark.createDataFrame(rows, ["i", "x"])
    for coef, k in ((np.array([[1.0, 2.0]]), 2), (np.arange(6.0).reshape(3, 2), 3)):
        pair = twins(spark, coef, np.zeros(len(coef)), k, featuresCol="x")
        found, expected = outputs(pair.model, df), outputs(pair.twin, df)
        assert np.isnan(found[0]).all()
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_vector_of_another_length_is_an_error_that_says_so(spark, frame):
    model = LogisticRegressionModel(np.ones((1, 3)), [0.0], 2).setFeaturesCol("dense")
    with pytest.raises(Exception, match=r"'dense'.*: expected vectors of length 3, found length 4"):
        model.transform(frame).collect()
    with pytest.raises(ValueError, match="expected a vector of length 3, found shape"):
        model.predict(Vectors.dense([1.0, 2.0]))
    model.setFeaturesCol(["x0", "x1"])
    with pytest.raises(ValueError, match="expected 3 columns as in training, found 2"):
        model.transform(frame)


def test_sparse_rows_of_a_million_columns_are_predicted_without_making_them_dense(spark):
    d = 1_000_000
    coef = np.zeros((1, d))
    coef[0, [5, d - 1]] = 1.0, -2.0
    model = LogisticRegressionModel(coef, [0.5], 2).setFeaturesCol("x")
    rows = [(i, Vectors.sparse(d, [5, d - 1], [float(i), 1.0])) for i in range(2000)]
    df = spark.createDataFrame(rows, ["i", "x"]).coalesce(1)
    raw = outputs(model, df)[0]  # dense, a batch of these would take 16 GB
    np.testing.assert_allclose(raw[:, 1], np.arange(2000) - 1.5, rtol=1e-12)


def test_coefficients_are_read_only():
    model = LogisticRegressionModel(np.ones((1, 2)), [0.0], 2)
    with pytest.raises(ValueError, match="read-only"):
        model._coefficients[0, 0] = 5.0


# --- save and load ------------------------------------------------------------------------------


def test_a_saved_model_predicts_the_same_bits(frame, fitted, tmp_path):
    for case in (CASES[1], CASES[3]):
        model = fitted(**case, **TIGHT)
        path = str(tmp_path / case["labelCol"])
        model.save(path)
        loaded = LogisticRegressionModel.load(path)
        assert loaded.uid == model.uid
        assert {p.name: v for p, v in loaded.extractParamMap().items()} == {
            p.name: v for p, v in model.extractParamMap().items()
        }
        assert (loaded.numClasses, loaded.converged, loaded.reason, loaded.n_iter) == (
            model.numClasses, model.converged, model.reason, model.n_iter,
        )  # fmt: skip
        for one, other in zip(outputs(loaded, frame), outputs(model, frame), strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_estimator_is_saved_with_its_parameters_and_without_its_callbacks(tmp_path):
    estimator = LogisticRegression(featuresCol=["a", "b"], regParam=0.3, solver="gd", stepSize=0.1)
    estimator.setCallbacks([lambda state, record: None]).save(str(tmp_path / "estimator"))
    loaded = LogisticRegression.load(str(tmp_path / "estimator"))
    assert loaded.uid == estimator.uid
    assert loaded.getFeaturesCols() == ["a", "b"]
    assert (loaded.getRegParam(), loaded.getSolver(), loaded.getStepSize()) == (0.3, "gd", 0.1)
    assert loaded.getCallbacks() == ()


# --- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"elasticNetParam": 1.5}, "elasticNetParam"),
        ({"aggregationDepth": 1}, "aggregationDepth"),
        ({"maxBlockSizeInMB": -1.0}, "maxBlockSizeInMB"),
        ({"solver": "normal"}, "solver"),
        ({"family": "poisson"}, "family"),
        ({"lineSearch": "wolfe"}, "lineSearch"),
        ({"regParam": -0.1}, "regParam"),
        ({"regParam": float("nan")}, "regParam"),
        ({"tol": -1.0}, "tol"),
        ({"maxIter": -1}, "maxIter"),
        ({"stepSize": 0.0}, "stepSize"),
        ({"threshold": 1.5}, "threshold"),
        ({"thresholds": [-1.0, 1.0]}, "threshold"),
        ({"thresholds": [0.0, 0.0, 1.0]}, "thresholds"),
    ],
)  # fmt: skip
def test_a_parameter_that_is_not_supported_is_refused_before_any_job(frame, params, name):
    group = "refused"
    context = frame.sparkSession.sparkContext
    context.setJobGroup(group, "")
    try:
        with pytest.raises(ValueError, match=rf"param {name}s?: expected .*found"):
            LogisticRegression(featuresCol="dense", labelCol="three", **params).fit(frame)
        assert len(context.statusTracker().getJobIdsForGroup(group)) == 0
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)


def test_thresholds_of_another_number_than_classes_are_refused(frame):
    with pytest.raises(ValueError, match=r"param thresholds: expected 3 values.*found 2"):
        LogisticRegression(featuresCol="dense", labelCol="three", thresholds=[0.5, 0.5]).fit(frame)
    with pytest.raises(ValueError, match="inconsistent"):
        LogisticRegression(threshold=0.5, thresholds=[0.3, 0.7])


# --- steering -----------------------------------------------------------------------------------


def test_callbacks_steer_a_fit_and_see_every_partition(frame):
    seen = []

    def watch(state, record):
        seen.append(record)
        match record.iteration:
            case 2:
                return Change(step_size=0.125)
            case 4:
                return Change(reg_param=0.5)
            case 6:
                return Stop("enough")

    estimator = LogisticRegression(
        featuresCol="dense", labelCol="two", solver="gd", lineSearch="none", stepSize=0.5, tol=0.0
    )
    model = estimator.setCallbacks([watch]).fit(frame)
    assert (model.reason, model.converged, model.n_iter) == ("enough", False, 6)
    assert [r.step_size for r in model.history] == [0.0, 0.5, 0.5] + [0.125] * 4
    assert [r.settings.reg_param for r in model.history] == [0.0] * 5 + [0.5] * 2
    assert [r.loss for r in seen] == [r.loss for r in model.history]
    assert model.history[4].actions == ("change reg_param=0.5",)
    rounds = [r for record in seen for r in record.rounds]
    assert all(record.rounds for record in seen)
    for done in rounds:
        assert sum(p.rows for p in done.partitions) == N
        assert [p.partition for p in done.partitions] == [0, 1]
        assert done.seconds > 0
        assert all(p.seconds > 0 and p.bytes > 0 for p in done.partitions)


def test_a_penalty_changed_on_the_way_ends_at_its_own_optimum(frame, fitted):
    def steer(state, record):
        return Change(reg_param=0.05) if record.iteration == 2 else None

    common: dict[str, Any] = {"labelCol": "two", "featuresCol": "dense", **TIGHT}
    model = LogisticRegression(**common).setCallbacks([steer]).fit(frame)
    assert_same_coefficients(model, fitted(**common, regParam=0.05), 1e-7)


def test_a_step_size_that_diverges_is_an_error_that_names_it_and_the_round(frame):
    estimator = LogisticRegression(
        featuresCol="dense", labelCol="two", solver="gd", lineSearch="none", stepSize=1e6
    )
    with pytest.raises(DivergenceError, match=r"diverged in round 1 with step size 1e\+06"):
        estimator.fit(frame)


def test_too_few_iterations_are_a_warning_and_stay_readable_on_the_model(frame):
    estimator = LogisticRegression(featuresCol="dense", labelCol="two", maxIter=1, tol=1e-12)
    with pytest.warns(ConvergenceWarning, match="maxIter = 1 "):
        model = estimator.fit(frame)
    assert (model.converged, model.reason, model.n_iter) == (False, "max_iter", 1)
    assert len(model.history) == 2


@pytest.mark.parametrize(("kind", "offset"), [("float", 100.0), ("double", 1e8)])
def test_features_far_from_zero_cost_no_digits(spark, kind, offset):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1000, 3))
    y = (rng.random(1000) < 1 / (1 + np.exp(-X @ [1.0, -1.0, 0.5]))).astype(float)
    X = (X + offset).astype("f" if kind == "float" else "d")
    rows = [(x.tolist(), float(label)) for x, label in zip(X, y, strict=True)]
    df = spark.createDataFrame(rows, f"features array<{kind}>, label double")
    near = spark.createDataFrame(
        [([v - offset for v in x], label) for x, label in rows],
        "features array<double>, label double",
    )
    for solver in ("newton", "l-bfgs"):
        far = LogisticRegression(solver=solver, tol=1e-7).fit(df).coefficients
        exact = LogisticRegression(tol=1e-12).fit(near).coefficients
        # float32 leaves margins 1e-7 of rounding; at 1e8 a double holds 1e-8 of a deviation.
        np.testing.assert_allclose(far, exact, atol=2e-5)
