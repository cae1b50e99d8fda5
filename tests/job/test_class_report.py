"""The report of classes: counts that scikit-learn makes too, with weights and without."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from mllib_ext.job.class_report import class_report, per_class

COLUMNS = {"labelCol": "y", "predictionCol": "p"}


@pytest.mark.parametrize("weighted", [False, True])
def test_the_report_agrees_with_scikit_learn(spark, weighted):
    rng = np.random.default_rng(3)
    y, p = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    w = rng.uniform(0, 2, 200)
    rows = [(int(a), float(b), float(c)) for a, b, c in zip(y, p, w, strict=True)]
    df = spark.createDataFrame(rows, "y int, p double, w double").repartition(3)
    columns = {**COLUMNS, "weightCol": "w"} if weighted else COLUMNS
    report = class_report(df, columns, names=["a", "b", "c"])
    weights = w if weighted else None
    assert report["labels"] == ["a", "b", "c", 3]  # a class without a name is its number
    expected = precision_recall_fscore_support(y, p, sample_weight=weights)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        assert report[name] == pytest.approx(values, rel=1e-12)
    matrix = confusion_matrix(y, p, sample_weight=weights)
    assert np.array(report["confusion"]) == pytest.approx(matrix, rel=1e-12)
    assert report["support"] == pytest.approx(matrix.sum(axis=1), rel=1e-12)


def test_what_is_not_defined_is_nan():
    # a class that is there and never predicted, and one that is predicted and never there
    report = per_class(np.array([[2.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert np.isnan(report["precision"][1])
    assert np.isnan(report["recall"][2])
    assert report["f1"].tolist() == [2 * 2 / (3 + 3), 0.0, 0.0]
