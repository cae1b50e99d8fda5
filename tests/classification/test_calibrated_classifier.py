"""Calibrated probabilities, against scikit-learn's CalibratedClassifierCV and scipy."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import NaiveBayes, RandomForestClassifier
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import CrossValidator
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_wine
from sklearn.model_selection import PredefinedSplit
from sklearn.preprocessing import MinMaxScaler
from sklearn.svm import SVC

from data_frames import every_kind_of_features
from mllib_ext.blocks import Blocks
from mllib_ext.calibration import fit_sigmoids
from mllib_ext.classification import (
    CalibratedClassifier,
    CalibratedClassifierModel,
    KernelSVC,
    LinearSVC,
)
from mllib_ext.feature import Nystroem

WINE = load_wine()
X = MinMaxScaler().fit_transform(WINE.data)[:, :3].round(2)
THREE = WINE.target.astype(float)
TWO = (THREE > 0).astype(float)
W = (np.arange(len(X)) % 3).astype(float)  # also weights of 0
FOLD = np.arange(len(X)) % 3
# scikit-learn stops L-BFGS at a gradient of 1e-6, of the sum over all rows.
CLOSE: Any = {"rtol": 0.0, "atol": 2e-5}


@pytest.fixture(scope="module")
def frame(spark):
    with every_kind_of_features(spark, X, three=THREE, two=TWO, w=W, fold=FOLD) as df:
        yield df.withColumn("fold", df["fold"].cast("int"))


def probabilities(model, df):
    rows = model.transform(df).orderBy("i").select("probability", "prediction").collect()
    return np.array([row[0].toArray() for row in rows]), np.array([row[1] for row in rows])


class Scores(ClassifierMixin, BaseEstimator):
    """A fitted classifier for scikit-learn whose scores are its only feature, or features."""

    def fit(self, X, y, sample_weight=None):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        raise AssertionError("nobody asks")

    def decision_function(self, X):
        return X[:, 0] if X.shape[1] == 1 else X


def oracle(raw, y, method, w=None):
    """scikit-learn's calibration of raw predictions."""
    S = 0.5 * (raw[:, 1:] - raw[:, :1]) if raw.shape[1] == 2 else raw
    calibrated = CalibratedClassifierCV(Scores(), method=method, ensemble=False, cv=2)
    return calibrated.fit(S, y, sample_weight=w).predict_proba(S)


@pytest.mark.parametrize(("method", "label"), [("isotonic", "two"), ("sigmoid", "three")])
def test_cross_fitted_probabilities_are_scikit_learns_of_the_same_folds(frame, method, label):
    y = {"two": TWO, "three": THREE}[label]
    svc = SVC(C=3.0, gamma=2.0, tol=1e-8)
    theirs = CalibratedClassifierCV(svc, method=method, ensemble=False, cv=PredefinedSplit(FOLD))
    theirs.fit(X, y)
    kernel_svc = KernelSVC(featuresCol="dense", C=3.0, gamma=2.0, tol=1e-7)
    calibrated = CalibratedClassifier(
        classifier=kernel_svc, method=method, labelCol=label, numFolds=3, foldCol="fold"
    )
    model = calibrated.fit(frame)
    found, predictions = probabilities(model, frame)
    expected = theirs.predict_proba(X)
    # Scores agree to 1e-6, and where a step of the isotonic function is steep it magnifies that.
    tolerance = {"rtol": 0.0, "atol": 1e-3} if method == "isotonic" else CLOSE
    np.testing.assert_allclose(found, expected, **tolerance)
    np.testing.assert_array_equal(predictions, found.argmax(axis=1))
    assert type(model.model).__name__ == "KernelSVCModel"
    assert model.model.getLabelCol() == label


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
@pytest.mark.parametrize(("classifier", "label", "weight"), [
    (lambda: LinearSVC(featuresCol="float"), "three", None),  # Spark's own need its session
    (lambda: RandomForestClassifier(featuresCol="dense", numTrees=5, seed=1), "two", None),
    (lambda: NaiveBayes(featuresCol="dense"), "two", "w"),
], ids=["LinearSVC", "RandomForest", "NaiveBayes"])  # fmt: skip
def test_a_fitted_model_is_calibrated_as_scikit_learns_frozen_ones(
    frame, method, classifier, label, weight
):
    y = {"two": TWO, "three": THREE}[label]
    fitted = classifier().setLabelCol(label).fit(frame)
    rows = fitted.transform(frame).orderBy("i").select("rawPrediction").collect()
    raw = np.array([row[0].toArray() for row in rows])
    calibrated = CalibratedClassifier(
        classifier=fitted, method=method, labelCol=label, weightCol=weight
    )
    found, _ = probabilities(calibrated.fit(frame), frame)
    w = W if weight else None
    np.testing.assert_allclose(found, oracle(raw, y, method, w), **CLOSE)


def test_sigmoids_are_the_optimum_also_of_scores_of_any_scale(spark, frame):
    rng = np.random.default_rng(3)
    f = 1e6 + 1e3 * rng.normal(size=200)
    y = (rng.random(200) < 1 / (1 + np.exp(-(f - 1e6) / 500))).astype(float)
    df = spark.createDataFrame([([-a, a], b) for a, b in zip(f.tolist(), y.tolist(), strict=True)])
    with Blocks.of(df, "_1", label="_2") as blocks:
        counts = np.array([y.sum()])
        ((a, b),) = fit_sigmoids(blocks, counts, np.array([f.mean()]), np.array([f.std()]))
    t = np.where(y > 0, (y.sum() + 1) / (y.sum() + 2), 1 / (200 - y.sum() + 2))
    g = (f - f.mean()) / f.std()

    def loss(v):
        z = v[0] * g + v[1]
        return np.sum(np.logaddexp(0, z) - (1 - t) * z)

    best = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13})
    found = np.array([a * f.std(), b + a * f.mean()])
    np.testing.assert_allclose(found, best.x, rtol=1e-5)
    assert loss(found) <= best.fun + 1e-9


def test_constant_scores_and_a_single_class_have_the_share_of_the_class(frame):
    stump = RandomForestClassifier(featuresCol="dense", labelCol="two", maxDepth=0, numTrees=1)
    model = stump.fit(frame)
    for method, n in (("sigmoid", 1.0), ("isotonic", 0.0)):
        calibrated = CalibratedClassifier(classifier=model, method=method, labelCol="two")
        found, _ = probabilities(calibrated.fit(frame), frame)
        high, low = (TWO.sum() + n) / (TWO.sum() + 2 * n), n / ((1 - TWO).sum() + 2 * n)
        expected = np.mean(np.where(TWO > 0, high, low))
        np.testing.assert_allclose(found[:, 1], expected, rtol=0, atol=1e-9)


def test_a_pipeline_in_a_grid_is_calibrated_saved_and_loaded(frame, tmp_path):
    svc = LinearSVC(featuresCol="z", labelCol="two", loss="squared_hinge", standardization=False)
    nystroem = Nystroem(inputCol="dense", outputCol="z", nComponents=10)
    calibrated = CalibratedClassifier(
        classifier=Pipeline(stages=[nystroem, svc]), labelCol="two", numFolds=2
    )
    validator = CrossValidator(
        estimator=calibrated,
        estimatorParamMaps=[{svc.regParam: 1e-3}, {svc.regParam: 1e3}],
        evaluator=MulticlassClassificationEvaluator(labelCol="two", metricName="logLoss"),  # type: ignore[arg-type]
        numFolds=2,
        seed=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # PySpark leaves its thread pool open
        found = validator.fit(frame)
        gc.collect()
    assert found.avgMetrics[0] < 0.7 * found.avgMetrics[1]
    model: Any = found.bestModel
    assert model.model.stages[1].getRegParam() == 1e-3
    out = model.transform(frame)
    names = ["rawPrediction", "probability", "prediction"]
    assert out.columns == [*frame.columns, *names]  # nothing of the pipeline within
    model.save(str(tmp_path / "model"))
    loaded = CalibratedClassifierModel.load(str(tmp_path / "model"))
    for one, other in zip(probabilities(loaded, frame), probabilities(model, frame), strict=True):
        np.testing.assert_array_equal(one, other)


def test_folds_at_random_are_the_same_for_the_same_seed(frame):
    def fitted(seed):
        svc = LinearSVC(featuresCol="dense", loss="squared_hinge")
        return CalibratedClassifier(classifier=svc, labelCol="two", numFolds=2, seed=seed).fit(
            frame
        )

    one, again, other = fitted(1), fitted(1), fitted(2)
    np.testing.assert_array_equal(one.sigmoids, again.sigmoids)
    assert (one.sigmoids != other.sigmoids).all()


@pytest.mark.parametrize(("params", "error", "message"), [
    ({"classifier": None}, ValueError, "param classifier: expected an estimator .*, found none"),
    ({"classifier": 3}, TypeError, "param classifier: expected an estimator .*, found int"),
    ({"method": "platt"}, ValueError, "param method: expected one of .*, found 'platt'"),
    ({"numFolds": 1}, ValueError, "param numFolds: expected 2 or more, found 1"),
    ({"foldCol": "w"}, TypeError, "fold column 'w': expected an integer type, found double"),
    ({"foldCol": "fold"}, ValueError, r"fold column 'fold': .* 0 to 1, .*\[0, 1, 2"),
    ({"labelCol": "tow"}, ValueError, "label column 'tow': .*did you mean 'two'"),
])  # fmt: skip
def test_bad_input_is_named(frame, params, error, message):
    svc = LinearSVC(featuresCol="dense", loss="squared_hinge")
    with pytest.raises(error, match=message):
        CalibratedClassifier(**{"classifier": svc, "labelCol": "two", "numFolds": 2, **params}).fit(
            frame
        )


def test_labels_that_a_fitted_model_does_not_know_are_refused(frame):
    model = LinearSVC(featuresCol="dense", labelCol="two", loss="squared_hinge").fit(frame)
    with pytest.raises(
        ValueError, match=r"label column 'three': expected labels below 2, .*found 2"
    ):
        CalibratedClassifier(classifier=model, labelCol="three").fit(frame)


def test_a_class_within_one_fold_is_refused_before_any_fit(spark):
    rows = [(Vectors.dense(float(i)), float(i == 0)) for i in range(12)]
    df = spark.createDataFrame(rows, ["features", "label"])
    with pytest.raises(
        ValueError, match=r"label column 'label': .* all rows of class 1 in fold \d: use"
    ):
        CalibratedClassifier(classifier=LinearSVC(loss="squared_hinge")).fit(df)
