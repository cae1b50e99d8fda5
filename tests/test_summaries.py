"""Summaries, held against those of pyspark.ml on the same data."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
from pyspark.ml import classification as mllib_classification
from pyspark.ml import regression as mllib_regression
from pyspark.ml.linalg import Vector, Vectors
from pyspark.ml.util import HasTrainingSummary
from pyspark.sql import DataFrame, Row

from mllib_ext.classification import LogisticRegression, LogisticRegressionModel
from mllib_ext.regression import LinearRegression, LinearRegressionModel
from mllib_ext.summaries import inverse_diagonal

N = 90
# Both are fitted far past this: pyspark.ml stops by the change of its loss, and the coefficients
# are as exact as the square root of that.
TOLERANCE = 1e-6
TIGHT: dict[str, Any] = {"tol": 1e-12, "maxIter": 300}


def draw():
    """Features on three scales, off centre; labels of both kinds; weights."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((N, 3)) * [1.0, 5.0, 0.2] + [0.0, 3.0, -0.5]
    y = X @ [1.0, -0.5, 2.0] + 7.0 + rng.standard_normal(N)
    classes = np.digitize(y + rng.standard_normal(N), np.quantile(y, [0.3, 0.7]))
    return X, y, classes, np.round(rng.uniform(0.1, 3.0, N), 2)


X, Y, CLASSES, W = draw()


@pytest.fixture(scope="module")
def frame(spark):
    rows = [
        (
            Vectors.dense(x), Vectors.dense([*x, 2.0]), Vectors.dense([*x, x[0] + x[1]]),
            *map(float, x),
            float(y), float(k > 0), float(k), 1.0, float(w),
        )
        for x, y, k, w in zip(X, Y, CLASSES, W, strict=True)
    ]  # fmt: skip
    names = [
        "features",
        "constant",
        "dependent",
        "x0",
        "x1",
        "x2",
        "label",
        "binary",
        "class",
        "one",
        "w",
    ]
    df = spark.createDataFrame(rows, names).repartition(2, "label").cache()
    df.count()
    yield df
    df.unpersist()


# --- pyspark.ml's attributes and values ---------------------------------------------------------


def plain(value):
    """A value that ``pytest.approx`` takes: rows, vectors and Java arrays as nested lists."""
    if isinstance(value, DataFrame):
        return [value.columns, plain(value.collect())]
    if isinstance(value, Vector):
        return value.toArray().tolist()
    if isinstance(value, list | tuple | Row):
        return [plain(element) for element in value]
    return value


def ask(summary, name):
    """An attribute, a method's value for its default, or the error in its place."""
    try:
        value = getattr(summary, name)
        return plain(value() if callable(value) else value)
    except Exception as error:
        return [type(error).__name__, str(error)]


def same(found, expected, absolute=1e-14):
    """Up to the tolerance; 1e-14 is more than the rounding in a p-value, Spark's 2 (1 - cdf)."""
    if isinstance(expected, list) and isinstance(found, list):
        pairs = zip(found, expected, strict=False)
        return len(found) == len(expected) and all(same(*pair, absolute) for pair in pairs)
    if isinstance(expected, float):
        return found == pytest.approx(expected, rel=TOLERANCE, abs=absolute, nan_ok=True)
    return type(found) is type(expected) and found == expected


def assert_same_summary(found, expected):
    assert type(found) is type(expected)
    names = [name for name, _ in inspect.getmembers(type(expected)) if not name.startswith("_")]
    assert len(names) > 12
    for name in names:
        if name not in ("objectiveHistory", "totalIterations"):  # another road to the same end
            ours, theirs = ask(found, name), ask(expected, name)
            # Margins and residuals are differences of numbers of order 1, some of them near 0.
            rows = name in ("predictions", "residuals", "devianceResiduals")
            assert same(ours, theirs, *[TOLERANCE] * rows), f"{name}: {ours} is not {theirs}"


# Parameters, and whether to compare an evaluation on other rows too. That depends on nothing but
# the coefficients and the names of columns, and each takes seconds of Spark's jobs.
LOGISTIC = [
    ({"labelCol": "binary"}, True),
    ({"labelCol": "binary", "weightCol": "w", "fitIntercept": False, "family": "multinomial"},
     False),
    ({"labelCol": "class", "rawPredictionCol": "", "weightCol": ""}, True),
    ({"labelCol": "class", "weightCol": "w", "fitIntercept": False, "predictionCol": "guess"},
     True),
]  # fmt: skip


@pytest.mark.parametrize(("params", "evaluated"), LOGISTIC, ids=str)
def test_a_summary_of_logistic_regression_is_pyspark_mls(frame, params, evaluated):
    params = {**TIGHT, "regParam": 0.02, **params}
    ours = LogisticRegression(**params).fit(frame)
    theirs = mllib_classification.LogisticRegression(**params).fit(frame)
    assert_same_summary(ours.summary, theirs.summary)
    if evaluated:
        part = frame.where("x0 > 0").drop("w" if "weightCol" not in params else "one")
        assert_same_summary(ours.evaluate(part), theirs.evaluate(part))
    history = ours.summary.objectiveHistory
    assert history == [record.loss for record in ours.history]
    assert ours.summary.totalIterations == ours.n_iter == len(history) - 1
    assert history[-1] == pytest.approx(theirs.summary.objectiveHistory[-1], rel=1e-9)


LINEAR = [
    ({}, True),
    ({"weightCol": "w", "fitIntercept": False}, True),
    ({"weightCol": "w", "regParam": 0.3}, False),
    ({"regParam": 0.3, "standardization": False, "predictionCol": "guess", "solver": "normal"},
     True),
    ({"featuresCol": "constant"}, False),
    ({"featuresCol": "constant", "regParam": 0.01, "weightCol": ""}, True),
    ({"labelCol": "one"}, False),
    ({"solver": "l-bfgs", "weightCol": "w", "regParam": 0.1}, False),
    ({"solver": "l-bfgs", "fitIntercept": False}, False),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:label column 'one' is 1 in every row")
@pytest.mark.parametrize(("params", "evaluated"), LINEAR, ids=str)
def test_a_summary_of_linear_regression_is_pyspark_mls(frame, params, evaluated):
    params = {**TIGHT, **params}
    ours = LinearRegression(**params).fit(frame)
    theirs = mllib_regression.LinearRegression(**params).fit(frame)
    assert_same_summary(ours.summary, theirs.summary)
    if evaluated:
        part = frame.where("x0 > 0")
        assert_same_summary(ours.evaluate(part), theirs.evaluate(part))
    found, expected = ours.summary.objectiveHistory, theirs.summary.objectiveHistory
    assert ours.summary.totalIterations == len(found) - 1
    if params.get("solver") == "l-bfgs":
        unit = ours.history[0].loss / found[0]  # the variance of the label
        assert found == [record.loss / unit for record in ours.history]
        assert found[-1] == pytest.approx(expected[-1], rel=1e-9)
    else:
        assert found == [0.0]


def test_without_standard_errors_the_error_is_sparks(frame):
    # Of dependent features pyspark.ml has none or, by rounding, some of a million and more.
    cases: list[dict[str, Any]] = [{"solver": "newton"}, {"featuresCol": "dependent"}]
    for params in cases:
        summary = LinearRegression(**params).fit(frame).summary
        for name, words in (("coefficientStandardErrors", "Std. Error"), ("pValues", "p-value")):
            assert ask(summary, name)[0] == "UnsupportedOperationException"
            assert f"No {words}" in ask(summary, name)[1]


@pytest.mark.parametrize("features", [["x0", "x1", "x2"], "array"])
def test_features_in_other_columns_give_the_same_summary(frame, features):
    df = frame.selectExpr("array(x0, x1, x2) as array", "*")
    linear = LinearRegression(featuresCol=features).fit(df)
    logistic = LogisticRegression(featuresCol=features, labelCol="binary").fit(df)
    for model, same_model, names in (
        (linear, LinearRegression().fit(df), ("r2", "tValues", "pValues", "devianceResiduals")),
        (logistic, LogisticRegression(labelCol="binary").fit(df), ("areaUnderROC", "accuracy")),
    ):
        assert model.summary.featuresCol == ("x0,x1,x2" if features != "array" else "array")
        for found, expected in (
            (model.summary, same_model.summary),
            (model.evaluate(df), same_model.evaluate(df)),
        ):
            for name in names:
                assert same(ask(found, name), ask(expected, name)), name


def test_prediction_columns_set_to_nothing_get_names_of_their_own(frame):
    linear = LinearRegression(predictionCol="").fit(frame)
    logistic = LogisticRegression(
        labelCol="class", predictionCol="", probabilityCol="", rawPredictionCol=""
    ).fit(frame)
    assert linear.summary.r2 == LinearRegression().fit(frame).summary.r2
    assert logistic.summary.accuracy > 0.5
    for summary in (linear.summary, linear.evaluate(frame), logistic.summary):
        named = [
            column for column in ("predictionCol", "probabilityCol") if hasattr(summary, column)
        ]
        for column in named:
            assert getattr(summary, column).startswith(f"{column[:-3]}_")
        new = [getattr(summary, column) for column in reversed(named)]
        assert summary.predictions.columns == [*frame.columns, *new]
    assert linear.getPredictionCol() == logistic.getProbabilityCol() == ""


# --- when there is one --------------------------------------------------------------------------


def test_a_summary_is_computed_when_it_is_first_asked_for(frame):
    context = frame.sparkSession.sparkContext
    context.setJobGroup("summary", "")
    try:
        model = LinearRegressionModel([1.0, -0.5, 2.0], 7.0)._trained_on(frame)
        assert model.hasSummary
        assert len(context.statusTracker().getJobIdsForGroup("summary")) == 0
        assert model.summary.r2 > 0.5
        jobs = len(context.statusTracker().getJobIdsForGroup("summary"))
        assert jobs > 0
        assert model.summary.meanAbsoluteError < 1.5
        assert len(context.statusTracker().getJobIdsForGroup("summary")) == jobs
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)


@pytest.mark.parametrize("estimator", [LinearRegression(), LogisticRegression(labelCol="binary")])
def test_a_copy_keeps_the_summary_and_a_loaded_or_unpickled_model_has_none(
    frame, estimator, tmp_path
):
    model = estimator.fit(frame)
    assert HasTrainingSummary in type(model).__mro__
    model.setPredictionCol("another")  # not that of the fit, nor of its summary
    for kept in (model.copy(), copy.copy(model), model.copy({model.predictionCol: "other"})):
        assert kept.hasSummary
        assert kept.summary is model.summary
    assert model.summary.predictionCol == "prediction"
    assert model.evaluate(frame).predictionCol == "another"
    model.save(str(tmp_path / "model"))
    bare = type(model)(*(getattr(model, f"_{name}") for name in model._arrays))
    loaded = type(model).load(str(tmp_path / "model"))
    for lost in (loaded, pickle.loads(pickle.dumps(model)), copy.deepcopy(model), bare):
        assert not lost.hasSummary
        with pytest.raises(
            RuntimeError, match=f"No training summary available for this {type(model).__name__}"
        ):
            _ = lost.summary
    assert loaded.evaluate(frame).labelCol == estimator.getLabelCol()


def test_only_a_dataframe_is_evaluated():
    model: Any
    for model in (LinearRegressionModel([1.0], 0.0), LogisticRegressionModel([[1.0]], [0.0], 2)):
        with pytest.raises(TypeError, match="dataset: expected a DataFrame, found list"):
            model.evaluate([])


# --- standard errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_the_diagonal_is_that_of_the_inverse_of_the_weighted_normal_equations(fit_intercept):
    deviation = np.sqrt(np.cov(X.T, aweights=W, bias=True).diagonal())
    mean = np.average(X, axis=0, weights=W) if fit_intercept else np.zeros(3)
    Z = (X - mean) / deviation
    gram = Z.T @ (W[:, None] * Z) / W.sum()
    A = np.column_stack([X, np.ones(N)]) if fit_intercept else X
    expected = np.linalg.inv(A.T @ (W[:, None] * A)).diagonal()
    found: Any = inverse_diagonal(
        gram, deviation, W.sum(), mean / deviation if fit_intercept else None
    )
    # Two inverses of matrices with condition numbers below 1e4.
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_a_singular_system_has_no_diagonal_and_a_penalised_constant_an_infinite_one():
    ones, zeros = np.ones(2), np.zeros(2)
    for gram in (np.ones((2, 2)), np.diag([1.0, 0.0]), np.array([[1.0, 2.0], [2.0, 1.0]])):
        assert inverse_diagonal(gram, ones, 1.0, zeros) is None
    almost = np.array([[1.0, 1.0 - 1e-13], [1.0 - 1e-13, 1.0]])  # dependent but for rounding
    assert inverse_diagonal(almost, ones, 1.0, zeros) is None
    units: Any = inverse_diagonal(np.diag([1e-200, 1e200]), ones, 2.0, None)
    np.testing.assert_allclose(units, np.array([5e199, 5e-201]), rtol=1e-14)
    constant: Any = inverse_diagonal(np.diag([2.0, 0.5]), np.array([1.0, 0.0]), 4.0, zeros)
    np.testing.assert_allclose(constant, np.array([0.125, np.inf, 0.25]), rtol=1e-14)


def test_a_training_summary_follows_the_thresholds_of_its_model(frame):
    model = LogisticRegression(labelCol="binary").fit(frame)
    accuracies = []
    for threshold in (0.5, 0.99):
        model.setThreshold(threshold)
        accuracies.append(model.summary.accuracy)
        assert accuracies[-1] == model.evaluate(frame).accuracy
        assert model.summary is model.summary
    assert accuracies[0] != accuracies[1]
    assert model.setThreshold(0.5).summary.accuracy == accuracies[0]
