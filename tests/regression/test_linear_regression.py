from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pyspark.ml import regression as mllib
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

from mllib_ext.optimizers.loop import DivergenceError, Stop
from mllib_ext.regression import LinearRegression, LinearRegressionModel

D, N = 4, 200
TIGHT: dict[str, Any] = {"tol": 1e-14, "maxIter": 500}


def draw():
    """Rows off centre, on three scales, half of them zeros; labels off centre; weights.

    The numbers are float32's, so that a float column holds the same ones.
    """
    rng = np.random.default_rng(8)
    X = rng.standard_normal((N, D)) * [1.0, 5.0, 0.2, 1.0] + [0.0, 3.0, -0.5, 0.0]
    X[rng.random((N, D)) < 0.5] = 0.0
    X = X.astype(np.float32).astype(np.float64)
    y = X @ [1.0, -0.5, 2.0, 0.0] + 7.0 + rng.standard_normal(N)
    w = np.round(rng.uniform(0, 3, N), 2)
    w[::17] = 0.0
    return X, y, w


X, Y, W = draw()


@pytest.fixture(scope="module")
def frame(spark):
    """The rows with every kind of feature column, cached in two partitions."""
    rows = [
        (
            i, Vectors.dense(x), Vectors.sparse(D, np.flatnonzero(x), x[x != 0]), x.tolist(),
            float(y), float(w), *x.tolist(),
        )
        for i, (x, y, w) in enumerate(zip(X, Y, W, strict=True))
    ]  # fmt: skip
    names = ["i", "dense", "sparse", "array", "label", "w", "x0", "x1", "x2", "x3"]
    df = spark.createDataFrame(rows, names).withColumn("float", F.col("array").cast("array<float>"))
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
            known[key] = LinearRegression(**params).fit(frame)
        return known[key]

    return fit


def coefficients(model):
    return np.append(model.coefficients.toArray(), model.intercept)


def assert_same_coefficients(found, expected, tolerance):
    np.testing.assert_allclose(
        coefficients(found), coefficients(expected), rtol=tolerance, atol=tolerance
    )


def predictions(model, df):
    return np.array([row.prediction for row in model.transform(df).orderBy("i").collect()])


# --- the optimum --------------------------------------------------------------------------------

CASES: list[dict[str, Any]] = [
    {"featuresCol": "dense"},
    {"featuresCol": "sparse", "regParam": 0.5, "weightCol": "w"},
    {"featuresCol": "dense", "regParam": 0.5, "standardization": False},
    {"featuresCol": "sparse", "regParam": 0.5, "fitIntercept": False, "weightCol": "w"},
    {"featuresCol": "dense", "regParam": 0.5, "fitIntercept": False, "standardization": False},
]
every_case = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(map(str, case.values()))
)


@every_case
@pytest.mark.parametrize(
    # pyspark.ml's l-bfgs stops at a gradient of about 1e-8; its normal equations are direct.
    ("solver", "tolerance"), [("normal", 1e-9), ("l-bfgs", 1e-6)]
)  # fmt: skip
def test_coefficients_are_those_of_pyspark_ml(frame, fitted, case, solver, tolerance):
    expected = mllib.LinearRegression(**case, solver=solver, tol=1e-12, maxIter=500).fit(frame)
    model = fitted(**case, solver=solver, **({} if solver == "normal" else TIGHT))
    assert_same_coefficients(model, expected, tolerance)


@every_case
def test_coefficients_are_those_of_scikit_learns_ridge(fitted, case):
    w = W if "weightCol" in case else np.ones(N)
    mean, label_mean = np.average(X, axis=0, weights=w), np.average(Y, weights=w)
    deviation = np.sqrt(w @ (X - mean) ** 2 / w.sum())
    label_deviation = np.sqrt(w @ (Y - label_mean) ** 2 / w.sum())
    scale = deviation if case.get("standardization", True) else np.ones(D)
    # Ridge minimises sum(w * r**2) + alpha |b|**2: 2W times the objective of the module's page.
    alpha = w.sum() * case.get("regParam", 0.0) / label_deviation
    reference = Ridge(alpha=alpha, fit_intercept=case.get("fitIntercept", True), solver="cholesky")
    reference.fit(X / scale, Y, sample_weight=w)
    expected = np.append(reference.coef_ / scale, reference.intercept_)
    # Both solve normal equations of a condition number below 1e3.
    np.testing.assert_allclose(coefficients(fitted(**case)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "tolerance"),
    # Descent ends where ten losses are flat to 1e-14; coefficients are good to the root of it.
    [("newton", 1e-10), ("gd", 1e-6)],
)
def test_every_solver_finds_the_same_optimum(fitted, solver, tolerance):
    common: dict[str, Any] = {"featuresCol": "dense", "regParam": 0.5}
    model = fitted(**common, **TIGHT, solver=solver)
    assert model.converged
    # They standardise by unbiased variances, as pyspark.ml's l-bfgs does.
    assert_same_coefficients(model, fitted(**common, **TIGHT, solver="l-bfgs"), tolerance + 1e-7)


def test_the_normal_equations_take_one_round_and_are_the_automatic_choice(fitted):
    automatic = fitted(featuresCol="dense")
    np.testing.assert_array_equal(
        coefficients(automatic), coefficients(fitted(featuresCol="dense", solver="normal"))
    )
    assert (automatic.reason, automatic.converged, automatic.n_iter) == ("closed_form", True, 0)


def test_the_diabetes_data_have_the_coefficients_of_least_squares(spark):
    data = load_diabetes(scaled=False)
    table = list(zip(data.data.tolist(), data.target.tolist(), strict=True))
    df = spark.createDataFrame(table, "features array<double>, label double").coalesce(2)
    found = coefficients(LinearRegression().fit(df))
    A = np.column_stack([data.data, np.ones(len(data.data))])
    expected = np.linalg.lstsq(A, data.target, rcond=None)[0]
    # The squared condition number of the standardised columns is 5e2: twelve digits stay.
    np.testing.assert_allclose(found, expected, rtol=1e-9)


# --- the way in ---------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["array", "sparse", ["x0", "x1", "x2", "x3"], "float"])
def test_every_kind_of_features_column_gives_the_same_model(fitted, features):
    common: dict[str, Any] = {"weightCol": "w", "regParam": 0.5}
    model = fitted(**common, featuresCol=features)
    # Moments are summed as float64, whatever the column: the float column holds the same numbers.
    assert_same_coefficients(model, fitted(**common, featuresCol="dense"), 1e-10)


@pytest.mark.parametrize("partitions", [1, 7])
def test_the_number_of_partitions_does_not_matter_even_if_one_is_empty(frame, fitted, partitions):
    df = frame.repartition(partitions, F.floor(F.col("i") / 70))  # three values: at most 3 filled
    for solver in ("normal", "l-bfgs"):
        params: dict[str, Any] = {
            "featuresCol": "dense",
            "weightCol": "w",
            "solver": solver,
            **TIGHT,
        }
        found = LinearRegression(**params).fit(df)
        assert_same_coefficients(found, fitted(**params), 1e-9)


def test_a_weight_counts_as_so_many_copies_and_0_as_absence(frame):
    weighted = frame.withColumn("times", (F.col("i") % 3).cast("double"))
    copies = frame.where("i % 3 > 0").union(frame.where("i % 3 = 2"))
    params: dict[str, Any] = {"featuresCol": "dense", "regParam": 0.5}
    model = LinearRegression(**params, weightCol="times").fit(weighted)
    assert_same_coefficients(model, LinearRegression(**params).fit(copies), 1e-10)


@pytest.mark.parametrize(("solver", "intercept"), [("normal", True), ("l-bfgs", False)])
def test_a_constant_column_has_a_coefficient_of_0_as_in_pyspark_ml(frame, solver, intercept):
    params: dict[str, Any] = {"solver": solver, "fitIntercept": intercept, "tol": 1e-12}
    names = ["x0", "x1", "x2"]
    df = frame.withColumn("x1", F.lit(4.0))
    assembled = VectorAssembler(inputCols=names, outputCol="features").transform(df)
    expected = mllib.LinearRegression(**params).fit(assembled)
    model = LinearRegression(featuresCol=names, **params).fit(df)
    assert model.coefficients[1] == expected.coefficients[1] == 0.0
    assert_same_coefficients(model, expected, 1e-6)  # where its optimiser stops
    # The same with a number whose sums round, of which pyspark.ml makes a column that varies.
    df = frame.withColumn("x1", F.lit(0.1))
    assert LinearRegression(featuresCol=names, **params).fit(df).coefficients[1] == 0.0


def test_duplicate_columns_share_a_coefficient(frame):
    model = LinearRegression(featuresCol=["x0", "x0", "x2"]).fit(frame)
    alone = LinearRegression(featuresCol=["x0", "x2"]).fit(frame)
    a, b, c = model.coefficients.toArray()
    assert a == pytest.approx(b, rel=1e-9)  # the solution of least norm
    assert [a + b, c] == pytest.approx(alone.coefficients.toArray(), rel=1e-9)


def test_fewer_rows_than_features_have_the_solution_of_least_norm_of_pyspark_ml(frame):
    df = frame.where("i in (1, 5, 6)")
    for reg in (0.0, 0.1):
        found = LinearRegression(featuresCol="dense", regParam=reg).fit(df)
        assert np.isfinite(coefficients(found)).all()
        if reg == 0.0:
            labels = [row.label for row in df.orderBy("i").collect()]
            np.testing.assert_allclose(predictions(found, df), labels, atol=1e-9)
        else:
            expected = mllib.LinearRegression(featuresCol="dense", regParam=reg).fit(df)
            assert_same_coefficients(found, expected, 1e-5)  # by its quasi-Newton fallback


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["normal", "l-bfgs"])
def test_a_constant_label_is_a_constant_model_and_a_warning(frame, solver):
    df = frame.withColumn("label", F.lit(0.3))
    with pytest.warns(UserWarning, match=r"label column 'label' is 0\.3 in every row"):
        model = LinearRegression(featuresCol="dense", solver=solver).fit(df)
    assert coefficients(model).tolist() == [0.0] * D + [0.3]
    assert (model.reason, model.converged) == ("constant_label", True)


def test_a_constant_label_without_intercept_is_fitted_and_with_a_penalty_refused(frame):
    df = frame.withColumn("label", F.lit(3.0))
    params: dict[str, Any] = {"featuresCol": "dense", "fitIntercept": False}
    expected = mllib.LinearRegression(**params).fit(df)
    assert_same_coefficients(LinearRegression(**params).fit(df), expected, 1e-9)
    with pytest.raises(ValueError, match=r"label column 'label': expected a label that varies"):
        LinearRegression(**params, regParam=0.1).fit(df)


def test_a_single_row_is_a_constant_model(frame):
    with pytest.warns(UserWarning, match="in every row"):
        model = LinearRegression(featuresCol="dense").fit(frame.where("i = 3"))
    assert model.intercept == pytest.approx(Y[3], rel=1e-15)


@pytest.mark.parametrize("label", ["double('NaN')", "double('Infinity')", "null"])
def test_a_label_that_is_no_number_is_an_error_that_names_the_column(frame, label):
    df = frame.withColumn("label", F.expr(f"if(i = 20, {label}, label)"))
    with pytest.raises(ValueError, match=r"label column 'label': expected .*found (nan|inf|null)"):
        LinearRegression(featuresCol="dense").fit(df)


# --- prediction, save and load ------------------------------------------------------------------


def test_predictions_are_the_linear_form_and_have_pyspark_mls_schema(frame):
    coef = np.array([1.0, -2.0, 0.5, 0.1])
    model = LinearRegressionModel(coef, 0.25)
    for column in ("dense", "sparse", "float", ["x0", "x1", "x2", "x3"]):
        model.setFeaturesCol(column)
        # Four products; a float column is multiplied as float64.
        found = predictions(model, frame)
        np.testing.assert_allclose(found, X @ coef + 0.25, rtol=1e-13, atol=1e-13)
    assert model.predict(Vectors.sparse(D, {1: 2.0})) == -3.75
    with pytest.raises(ValueError, match="expected a vector of length 4"):
        model.predict(Vectors.dense([1.0]))
    expected = mllib.LinearRegression(featuresCol="dense").fit(frame).transform(frame).schema
    schema = model.setFeaturesCol("dense").transform(frame).schema
    assert [(f.name, f.dataType) for f in schema] == [(f.name, f.dataType) for f in expected]
    assert model.setPredictionCol("").transform(frame).columns == frame.columns


def test_a_saved_model_predicts_the_same_bits(frame, fitted, tmp_path):
    model = fitted(**CASES[1])
    model.save(str(tmp_path / "model"))
    loaded = LinearRegressionModel.load(str(tmp_path / "model"))
    assert (loaded.uid, loaded.reason) == (model.uid, "closed_form")
    assert loaded.getRegParam() == 0.5
    np.testing.assert_array_equal(predictions(loaded, frame), predictions(model, frame))


# --- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"elasticNetParam": -0.5}, "elasticNetParam"),
        ({"aggregationDepth": 1}, "aggregationDepth"),
        ({"maxBlockSizeInMB": -8.0}, "maxBlockSizeInMB"),
        ({"solver": "sag"}, "solver"),
        ({"lineSearch": "wolfe"}, "lineSearch"),
        ({"regParam": -1.0}, "regParam"),
    ],
)
def test_a_parameter_that_is_not_supported_is_refused_before_any_job(frame, params, name):
    context = frame.sparkSession.sparkContext
    context.setJobGroup("refused", "")
    try:
        with pytest.raises(ValueError, match=f"param {name}: expected .*found"):
            LinearRegression(featuresCol="dense", **params).fit(frame)
        assert len(context.statusTracker().getJobIdsForGroup("refused")) == 0
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)


# --- steering -----------------------------------------------------------------------------------


def test_a_callback_stops_a_fit_and_the_model_has_the_history(frame):
    estimator = LinearRegression(
        featuresCol="dense", solver="gd", lineSearch="none", stepSize=0.1, tol=0.0
    )
    stop = [lambda state, record: Stop("enough") if record.iteration == 2 else None]
    model = estimator.setCallbacks(stop).fit(frame)
    assert (model.reason, model.n_iter, len(model.history)) == ("enough", 2, 3)
    for record in model.history:
        assert sum(p.rows for p in record.rounds[-1].partitions) == N


def test_a_step_size_that_diverges_is_an_error_that_names_it_and_the_round(frame):
    estimator = LinearRegression(featuresCol="dense", solver="gd", lineSearch="none", stepSize=1e6)
    with pytest.raises(DivergenceError, match=r"in round 1 with step size 1e\+06"):
        estimator.fit(frame)
