"""Curves from bins on Spark: those of scikit-learn, and of bounded size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.functions import array_to_vector
from pyspark.sql import functions as F
from scipy.special import expit, softmax
from sklearn import metrics
from sklearn.calibration import calibration_curve

from mllib_ext import curves

rng = np.random.default_rng(0)


def predictions(spark, label, raw, probability, weight=None, partitions=3):
    """A DataFrame as a classifier's ``transform`` gives it."""
    weight = np.ones(len(label)) if weight is None else weight
    values = zip(label.tolist(), raw.tolist(), probability.tolist(), weight.tolist(), strict=True)
    schema = "label double, r array<double>, p array<double>, w double"
    rows = spark.createDataFrame(list(values), schema).repartition(partitions)
    names = {"rawPrediction": "r", "probability": "p"}
    vectors = {name: array_to_vector(F.col(column)) for name, column in names.items()}
    return rows.withColumns(vectors).drop("r", "p")


def test_curves_of_two_classes_are_exact_up_to_as_many_rows_as_bins(spark):
    n = 900
    y = (rng.random(n) < 0.3).astype(float)
    z = np.round(rng.normal(size=n) + y, 2)  # with ties
    p, w = expit(z), rng.integers(0, 4, n).astype(float)
    df = predictions(spark, y, np.column_stack([-z, z]), np.column_stack([1 - p, p]), w)
    (bins,) = curves.score_bins(df, weightCol="w", classes=["no", "yes"])
    assert bins.name == "yes"
    kept = w > 0  # a threshold that no row counts for is no point of a curve
    y, z, p, w = y[kept], z[kept], p[kept], w[kept]
    expected = metrics.roc_curve(y, z, sample_weight=w, drop_intermediate=False)
    np.testing.assert_allclose(bins.roc(), expected[:2], rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(bins.thresholds, expected[2][1:])
    precision, recall, _ = metrics.precision_recall_curve(y, z, sample_weight=w)
    ours = np.array(bins.precision_recall())[:, 1:]  # the first point is Spark's, not theirs
    np.testing.assert_allclose(ours, [recall[::-1][1:], precision[::-1][1:]], rtol=1e-12)
    for area, name in ((bins.area_under_roc, "areaUnderROC"), (bins.area_under_pr, "areaUnderPR")):
        spark_s = BinaryClassificationEvaluator(weightCol="w", numBins=0)
        assert area == pytest.approx(spark_s.evaluate(df, {spark_s.metricName: name}), rel=1e-12)

    (bins,) = curves.score_bins(df)  # scikit-learn's calibration_curve takes no weights
    rows = df.collect()
    y, p = np.array([r.label for r in rows]), np.array([r.probability[1] for r in rows])
    share, mean = calibration_curve(y, p, n_bins=curves.CALIBRATION_BINS)
    np.testing.assert_allclose(bins.calibration(), [mean, share], rtol=1e-12)
    assert 0 < bins.calibration_error < 0.5


def test_curves_of_many_rows_are_of_bounded_size_and_near(spark):
    n = 30_000
    y = (rng.random(n) < 0.1).astype(float)
    p = expit(rng.normal(size=n) + 2 * y - 8)  # all of them small
    df = predictions(spark, y, np.column_stack([-p, p]), np.column_stack([1 - p, p]))
    (bins,) = curves.score_bins(df)
    assert 0.9 * curves.BINS < len(bins.thresholds) <= curves.BINS
    assert bins.positive.sum() + bins.negative.sum() == n
    bound = (bins.negative / bins.negative.sum()).max() / 2
    assert bound < 1 / curves.BINS
    assert bins.area_under_roc == pytest.approx(metrics.roc_auc_score(y, p), abs=bound)


def test_a_few_classes_have_a_curve_each_and_many_none(spark):
    n, k = 300, 3
    y = rng.integers(0, k, n).astype(float)
    raw = rng.normal(size=(n, k)) + 2 * (y[:, None] == np.arange(k))
    p = softmax(raw, axis=1)
    found = curves.score_bins(predictions(spark, y, raw, p))
    assert [one.name for one in found] == ["0", "1", "2"]
    for j, one in enumerate(found):
        expected = metrics.roc_auc_score(y == j, p[:, j])
        assert one.area_under_roc == pytest.approx(expected, rel=1e-12)
    assert not curves.score_bins(predictions(spark, y, np.ones((n, 11)), np.ones((n, 11))))
    df = predictions(spark, y, raw, p).drop("probability")
    with pytest.raises(ValueError, match="expected probabilities, found raw predictions"):
        curves.score_bins(df)[0].calibration()
    with pytest.raises(TypeError, match="score column 'w': expected a vector, found double"):
        curves.score_bins(df, rawPredictionCol="w")
    with pytest.raises(ValueError, match="score column 'raw': expected one of"):
        curves.score_bins(df, rawPredictionCol="raw")


def test_residuals_are_counted_as_numpy_counts_them(spark):
    n = 700
    y, f = rng.normal(size=n), rng.normal(size=n)
    w = rng.integers(0, 3, n).astype(float)
    df = spark.createDataFrame(
        list(zip(y.tolist(), f.tolist(), w.tolist(), strict=True)),
        "label double, prediction double, w double",
    )
    found = curves.residual_bins(df, weightCol="w")
    edges: list[Any] = [found.residuals, found.predictions]
    inside: list[Any] = [np.clip(v, e[0], e[-1]) for v, e in zip((y - f, f), edges, strict=True)]
    expected = np.histogram2d(inside[0], inside[1], bins=edges, weights=w)[0]
    assert np.abs(found.counts - expected).sum() <= 2  # a value on an edge, rounded
    mean = np.average(y - f, weights=w)
    assert found.mean == pytest.approx(mean, rel=1e-9)
    deviation = np.sqrt(np.average((y - f - mean) ** 2, weights=w))
    assert found.deviation == pytest.approx(deviation, rel=1e-9)

    exact = curves.residual_bins(df.withColumn("label", F.col("prediction")))
    assert exact.counts.sum() == n
    assert (exact.mean, exact.deviation) == (0, 0)
    with pytest.raises(ValueError, match="expected rows with a label and a prediction, found none"):
        curves.residual_bins(df.limit(0))
