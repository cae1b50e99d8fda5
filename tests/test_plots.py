"""Pictures: what is drawn is what the model and scikit-learn say."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import rcsetup
from pyspark.ml.functions import array_to_vector
from pyspark.sql import functions as F
from scipy.special import expit
from sklearn import metrics
from sklearn.calibration import calibration_curve

from mllib_ext import figures, plots
from mllib_ext.blocks import PartitionReport, Round
from mllib_ext.classification import LogisticRegressionModel
from mllib_ext.curves import score_bins
from mllib_ext.neighbors.ivf import Recall
from mllib_ext.optimizers.loop import Change, Checkpoint, Record, Settings, State, Stop, iterate
from mllib_ext.regression import LinearRegressionModel


@pytest.fixture(autouse=True)
def _without_a_display():
    with matplotlib.rc_context({"backend": "Agg"}):
        yield
    plt.close("all")


def texts(labels):
    return [label.get_text() for label in labels]


# --- the loss -----------------------------------------------------------------------------------


def halving(act):
    """The history of five iterations that halve the loss."""
    result = iterate(
        lambda state, settings: replace(state, loss=state.loss / 2),
        State(loss=8.0),
        Settings(max_iter=9),
        [lambda state, record: act.get(record.iteration)],
        stopping={},
    )
    return result.history


def test_a_loss_curve_has_the_losses_of_the_history_and_what_callbacks_changed():
    history = halving({1: Checkpoint(), 2: [Checkpoint(), Change(tol=0.5)], 5: Stop("enough")})
    ax: Any = plots.loss_curve(history)
    line, *marks = ax.lines
    np.testing.assert_array_equal(line.get_xydata(), np.array([(i, 8.0 / 2**i) for i in range(6)]))
    assert [mark.get_xdata()[0] for mark in marks] == [2, 5]
    assert [(note.xy[0], note.get_text()) for note in ax.texts] == [
        (2, "change tol=0.5"),
        (5, "stop: enough"),
    ]
    assert ax.get_legend() is None


def test_a_loss_curve_counts_what_was_spent_and_how_far_the_optimum_is():
    round_ = Round(0.1, 30, 12, ())
    history = [
        replace(record, seconds=0.5, rounds=(round_,) * (1 + record.iteration))
        for record in halving({5: Stop()})[:4]
    ]
    for against, expected in (
        ("rounds", [1, 3, 6, 10]),
        ("seconds", [0.5, 1.0, 1.5, 2.0]),
        ("bytes", [42, 126, 252, 420]),
    ):
        ax: Any = plots.loss_curve(history, against=against, optimum=0.5)
        assert ax.lines[0].get_xdata() == pytest.approx(expected)
        assert ax.lines[0].get_ydata() == pytest.approx([15, 7, 3, 1])
        assert (ax.get_xlabel(), ax.get_yscale()) == (against, "log")
    with pytest.raises(ValueError, match=r"against: expected one of .*, found 'time'"):
        plots.loss_curve(history, against="time")


def test_the_colours_of_a_style_may_be_numbers():
    green = (0.1, 0.6, 0.3)
    with matplotlib.rc_context({"axes.prop_cycle": rcsetup.cycler(color=[green])}):
        ax: Any = plots.loss_curve(halving({5: Stop("enough")}))
    assert {line.get_color() for line in ax.lines} == {green}  # of the marks too


def test_several_loss_curves_share_axes_and_are_told_apart():
    ax: Any = plt.subplots()[1]
    seen: list[Record] = []

    def gather(state, record):
        seen.append(record)
        return Stop() if len(seen) == 3 else None

    iterate(
        lambda state, settings: state,
        State(loss=1.0),
        Settings(max_iter=3),
        [gather],
        stopping={},
    )
    assert plots.loss_curve(halving({5: Stop()}), label="one", ax=ax) is ax
    assert plots.loss_curve(seen, label="two", ax=ax) is ax  # what a callback has gathered so far
    curves: dict[str, Any] = {str(line.get_label()): line for line in ax.lines}
    assert [len(curves[name].get_xdata()) for name in ("one", "two")] == [6, 3]
    (note,) = ax.texts  # a record is given to callbacks before they answer
    assert note.get_color() == curves["one"].get_color() != curves["two"].get_color()
    assert texts(ax.get_legend().get_texts()) == ["one", "two"]
    assert len(plt.get_fignums()) == 1


def test_a_model_without_a_history_has_no_loss_curve():
    with pytest.raises(ValueError, match="history: expected the records of a fit, found none"):
        plots.loss_curve(LinearRegressionModel([1.0], 0.0).history)
    assert not plt.get_fignums()


# --- coefficients -------------------------------------------------------------------------------

LINEAR = LinearRegressionModel([0.5, -3.0, 0.0, 2.0], 1.0)
BINOMIAL = LogisticRegressionModel([[0.5, -3.0, 0.0, 2.0]], [1.0], 2)


@pytest.mark.parametrize("model", [LINEAR, BINOMIAL], ids=["regression", "classification"])
def test_coefficients_of_one_output_are_bars_by_falling_magnitude(model):
    ax: Any = plots.coefficients(model)
    assert [bar.get_width() for bar in ax.patches] == [-3.0, 2.0, 0.5, 0.0]
    assert texts(ax.get_yticklabels()) == ["1", "3", "0", "2"]
    top, bottom = ax.patches[0], ax.patches[-1]
    assert (
        ax.transData.transform((0, top.get_y()))[1] > ax.transData.transform((0, bottom.get_y()))[1]
    )
    assert top.get_facecolor() != ax.patches[1].get_facecolor()

    ax = plots.coefficients(model, list("abcd"), deviation=[10, 1, 1, 1], largest=2)
    assert [bar.get_width() for bar in ax.patches] == [5.0, -3.0]
    assert texts(ax.get_yticklabels()) == ["a", "b"]
    assert ax.get_xlabel() == "coefficient × standard deviation"


def test_feature_columns_name_the_coefficients():
    model = LINEAR.copy()
    model.setFeaturesCol(["age", "hours", "rooms", "price"])
    assert texts(plots.coefficients(model).get_yticklabels()) == ["hours", "price", "age", "rooms"]


def test_coefficients_of_several_classes_are_a_map_that_is_symmetric_about_0():
    model = LogisticRegressionModel([[1.0, 0.0, 3.0], [0.0, 0.1, -4.0]], [0.0, 0.0], 2)
    ax: Any = plots.coefficients(model, list("abc"), largest=2)
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), np.array([[3.0, 1.0], [-4.0, 0.0]]))
    assert image.get_clim() == (-4.0, 4.0)
    assert texts(ax.get_xticklabels()) == ["c", "a"]
    assert texts(ax.get_yticklabels()) == ["0", "1"]
    zeros: Any = plots.coefficients(LogisticRegressionModel(np.zeros((3, 2)), np.zeros(3), 3))
    zeros.figure.canvas.draw()
    assert zeros.images[0].norm(0.0) == 0.5


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"names": ["a"]}, r"names: expected one for each of 4 features, found shape \(1,\)"),
        ({"deviation": np.ones(5)}, "deviation: expected one for each of 4 features"),
        ({"deviation": 2.0}, r"deviation: .* found shape \(\)"),
        ({"largest": 0}, "largest: expected 1 or more, found 0"),
    ],
    ids=str,
)
def test_names_and_deviations_that_do_not_fit_are_refused(params: dict[str, Any], message):
    with pytest.raises(ValueError, match=message):
        plots.coefficients(LINEAR, **params)


# --- the confusion matrix -----------------------------------------------------------------------


def draw(k):
    """Labels and predictions of 500 rows, right half of the time; class 0 is rare."""
    rng = np.random.default_rng(0)
    label = rng.integers(1, k, 500)
    label[:5] = 0
    return label, np.where(rng.random(500) < 0.5, label, rng.integers(0, k, 500))


@pytest.mark.parametrize("counted_by", ["Spark", "scikit-learn"])
def test_a_confusion_matrix_is_scikit_learns(spark, counted_by):
    label, prediction = draw(4)
    expected = metrics.confusion_matrix(label, prediction)
    predictions: Any = expected
    if counted_by == "Spark":
        rows = zip(label.tolist(), map(float, prediction), strict=True)
        predictions = spark.createDataFrame(list(rows), "`a.b` int, guess double")
    ax: Any = plots.confusion_matrix(
        predictions, list("wxyz"), labelCol="a.b", predictionCol="guess"
    )
    found = np.array(texts(ax.texts), dtype=int).reshape(4, 4)
    np.testing.assert_array_equal(found, expected)
    shares = metrics.confusion_matrix(label, prediction, normalize="true")
    np.testing.assert_allclose(ax.images[0].get_array(), shares, rtol=1e-15)
    assert texts(ax.get_xticklabels()) == texts(ax.get_yticklabels()) == list("wxyz")


def test_a_class_without_rows_has_a_place_in_the_matrix(spark):
    df = spark.createDataFrame([(True, 0.0), (True, 1.0)], ["label", "prediction"])
    ax = plots.confusion_matrix(df, ["no", "yes", "never"])
    assert texts(ax.texts) == "0 0 0 1 1 0 0 0 0".split()
    ax = plots.confusion_matrix(df)
    assert texts(ax.texts) == "0 0 1 1".split()
    assert texts(ax.get_xticklabels()) == ["0", "1"]


def test_a_large_matrix_is_drawn_without_numbers():
    ax = plots.confusion_matrix(np.eye(figures.NUMBERED_CLASSES + 1))
    assert not ax.texts
    assert ax.images[0].get_array().shape == (31, 31)


def test_what_are_not_classes_is_refused(spark):
    for label, error, message in (
        ("id", ValueError, "label column 'id': expected classes 0, 1, ... below 500, found"),
        ("id / 2", ValueError, "expected classes 0, 1, ... below 500, found 0.5"),
        ("id - 2", ValueError, "expected classes 0, 1, ... below 500, found -"),
        ("if(id > 0, id, null)", ValueError, "found nan"),
        ("string(id)", TypeError, "label column 'id': expected a numeric type, found string"),
    ):
        n = 600 if label == "id" else 3
        df = spark.range(n).selectExpr(label, "0 as prediction")
        with pytest.raises(error, match=message):
            plots.confusion_matrix(df, labelCol=df.columns[0])
    df = spark.range(3).selectExpr("0 as label", "id as prediction")
    with pytest.raises(ValueError, match=r"label column 'lable': .*did you mean 'label'"):
        plots.confusion_matrix(df, labelCol="lable")
    with pytest.raises(ValueError, match="classes: expected 3 names, found 2"):
        plots.confusion_matrix(df, ["a", "b"])
    with pytest.raises(ValueError, match="predictions: expected rows, found none"):
        plots.confusion_matrix(df.limit(0))
    with pytest.raises(ValueError, match=r"expected counts \(k, k\), found shape \(2, 3\)"):
        plots.confusion_matrix(np.ones((2, 3)))


# --- what predictions are worth ------------------------------------------------------------------


def test_curves_of_predictions_are_scikit_learns(spark):
    rng = np.random.default_rng(1)
    label = (rng.random(200) < 0.4).astype(float)
    score = expit(rng.normal(size=200) + label)
    rows = list(zip(label.tolist(), (1 - score).tolist(), score.tolist(), strict=True))
    df = spark.createDataFrame(rows, "truth double, a double, b double").select(
        "truth", array_to_vector(F.array("a", "b")).alias("probability")
    )
    ax: Any = plots.roc_curve(df, ["no", "yes"], labelCol="truth")
    chance, line = ax.lines
    np.testing.assert_array_equal(chance.get_xdata(), chance.get_ydata())
    expected = metrics.roc_curve(label, score, drop_intermediate=False)[:2]
    np.testing.assert_allclose(line.get_xydata().T, expected, rtol=1e-12)
    assert line.get_label() == f"yes: area {metrics.roc_auc_score(label, score):.4f}"

    bins = score_bins(df, labelCol="truth")  # of several pictures, counted once
    precision, recall, _ = metrics.precision_recall_curve(label, score)
    _, line = plots.precision_recall_curve(bins).lines
    points: Any = np.asarray(line.get_xydata())[1:].T
    np.testing.assert_allclose(points, [recall[-2::-1], precision[-2::-1]], rtol=1e-12)
    _, line = plots.calibration_curve(bins).lines
    share, mean = calibration_curve(label, score, n_bins=10)
    np.testing.assert_allclose(np.asarray(line.get_xydata()).T, [mean, share], rtol=1e-12)
    with pytest.raises(ValueError, match="predictions: expected rows of 2 to 10 classes"):
        plots.roc_curve(df.limit(0), labelCol="truth")


def test_residuals_are_drawn_by_prediction_and_by_size(spark):
    df = spark.range(100).selectExpr("2.0 * id as label", "2.0 * id + id % 5 as prediction")
    ax: Any = plots.residuals(df)
    counts = np.asarray(ax.images[0].get_array()) ** 2
    assert (counts > 0).any(axis=1).sum() == 5  # five residuals: 0, -1, ..., -4
    assert list(ax.images[0].get_extent()) == [0, 202, -4, 0]
    ax = plots.residuals(df, against="rows")
    assert sorted(bar.get_height() for bar in ax.patches)[-6:] == [0, 20, 20, 20, 20, 20]
    with pytest.raises(ValueError, match="against: expected 'prediction' or 'rows', found 'label'"):
        plots.residuals(df, against="label")


def test_what_a_fit_cost_is_drawn_from_its_history():
    partitions = [PartitionReport(i, "here", 5 + i, 40, 0.1 * (1 + i)) for i in range(3)]
    round_ = Round(0.5, 300, 100, tuple(partitions), 2)
    history = [
        replace(record, rounds=(round_,), seconds=0.75, gradient_norm=10.0**-record.iteration)
        for record in halving({2: Stop("enough")})[:3]
    ]
    ax: Any = plots.round_times(history)
    heights = np.array([bar.get_height() for bar in ax.patches]).reshape(3, 3)
    np.testing.assert_allclose(heights, [[300] * 3, [200] * 3, [250] * 3])  # ms
    assert texts(ax.get_legend().get_texts()) == ["compute", "latency of Spark", "driver"]
    ax = plots.round_bytes(history)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.3] * 3 + [0.1] * 3)  # kB
    ax = plots.partition_skew(history)
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.9, 0.6, 0.3])
    assert texts(ax.get_xticklabels()) == ["2", "1", "0"]
    ax = plots.partition_skew(history, of="rows")
    assert [bar.get_height() for bar in ax.patches] == [7, 6, 5]
    ax = plots.gradient_norm(history)
    assert ax.get_yscale() == "log"
    assert ax.lines[0].get_ydata() == pytest.approx([1, 0.1, 0.01])
    assert texts(ax.texts) == ["stop: enough"]
    ax = plots.cluster_sizes([3, 1, 2])
    assert [bar.get_height() for bar in ax.patches] == [3, 1, 2]
    with pytest.raises(ValueError, match="expected the records of an algorithm with a gradient"):
        plots.gradient_norm(halving({1: Stop()}))
    with pytest.raises(ValueError, match="sizes: expected one for each of 0 clusters"):
        plots.cluster_sizes([])


def test_rows_held_out_have_a_loss_of_their_own():
    history = [replace(record, validation_loss=9.0) for record in halving({2: Stop()})]
    ax: Any = plots.loss_curve(history)
    assert [line.get_label() for line in ax.lines if len(line.get_xdata()) > 2] == [
        "training rows",
        "rows held out",
    ]
    assert len(plots.loss_curve(history, optimum=0.5).lines) == 2  # the loss, and a mark


# --- matplotlib ---------------------------------------------------------------------------------


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for plot in (
        lambda: plots.loss_curve(halving({5: Stop()})),
        lambda: plots.coefficients(LINEAR),
        lambda: plots.confusion_matrix(np.eye(2)),
    ):
        with pytest.raises(ImportError, match=r"pip install 'mllib_ext\[plots\]'"):
            plot()


# --- the recall ---------------------------------------------------------------------------------


def test_a_recall_curve_shows_where_the_model_stands():
    shares = np.array([0.1, 0.2, 1.0])
    curve = Recall(5, np.array([1, 2, 8]), np.array([0.8, 0.9, 1.0]), shares - 0.05, shares)
    model = SimpleNamespace(recallCurve=curve, nprobe=2, nlist=8)
    ax = plots.recall_curve(model, label="digits")
    line, dot = ax.lines
    np.testing.assert_array_equal(line.get_xydata(), np.column_stack([shares, curve.recall]))
    assert dot.get_xydata().tolist() == [[0.2, 0.9]]
    assert texts(ax.texts) == ["2 of 8 cells: 0.900"]
    assert (ax.get_xscale(), ax.get_ylabel()) == ("log", "recall of 5 neighbours")
    assert texts(ax.get_legend().get_texts()) == ["digits"]
    assert plots.recall_curve(model, ax=ax) is ax
