"""A fit that was killed goes on to the bits of one that was not; another fit's is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline

import kept_fits
from mllib_ext import fitting
from mllib_ext.anomaly import OneClassSVM
from mllib_ext.checkpoints import CheckpointWarning
from mllib_ext.classification import KernelSVC, LinearSVC, LogisticRegression
from mllib_ext.clustering import BisectingKMeans, KMeans
from mllib_ext.monitor import read_run
from mllib_ext.optimizers.loop import Change, Checkpoint, ConvergenceWarning, Restore, Stop
from mllib_ext.regression import LinearRegression, LinearSVR

pytestmark = pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")


@pytest.fixture(scope="module")
def frame(spark):
    df = kept_fits.rows(spark).cache()
    df.count()
    yield df
    df.unpersist()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What a driver process left that was killed while all fits were in their third round."""
    directory = tmp_path_factory.mktemp("killed")
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, kept_fits.__file__, str(directory)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return directory


def learnt(model):
    """All arrays of a model as bytes, and the losses of its history."""
    arrays = [np.asarray(getattr(model, f"_{name}")).tobytes() for name in model._arrays]
    return arrays, model.n_iter, model.reason, [record.loss for record in model.history]


@pytest.mark.parametrize("name", kept_fits.estimators())
def test_a_killed_fit_goes_on_to_the_bits_of_an_uninterrupted_one(frame, killed, monkeypatch, name):
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    estimator = kept_fits.estimators()[name]
    uninterrupted = estimator.fit(frame)
    seen = []
    resumed = kept_fits.prepared(
        estimator, str(killed / name), lambda state, record: seen.append(record.iteration)
    ).fit(frame)
    assert learnt(resumed) == learnt(uninterrupted)
    assert seen[0] == kept_fits.KILLED_AT - 1  # what was kept before it was killed is not again


OTHERS: dict[str, Any] = {
    "gd": LogisticRegression(solver="gd", tol=0.0, maxIter=4),
    "owl-qn": LogisticRegression(
        solver="owl-qn", tol=0.0, maxIter=4, regParam=0.01, elasticNetParam=0.5
    ),
    "newton": LogisticRegression(solver="newton", tol=0.0, maxIter=4),
    "proximal": LinearRegression(loss="huber", solver="l-bfgs", tol=0.0, maxIter=4, regParam=0.1),
    "tron": LinearSVR(solver="tron", loss="squared_epsilon_insensitive", tol=0.0, maxIter=4),
    "bundle": LinearSVC(solver="bundle", regParam=0.1, tol=1e-9, maxIter=4),
    "interior point": LinearSVC(solver="interior-point", regParam=0.1, tol=1e-9, maxIter=4),
    "bisecting": BisectingKMeans(k=6, maxIter=3),
    "one class": OneClassSVM(tol=1e-4, nu=0.1, gamma=2.0, maxIter=3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_stopped_fit_goes_on_to_the_bits_of_an_uninterrupted_one(frame, tmp_path, name):
    estimator = OTHERS[name].copy()
    uninterrupted = estimator.fit(frame)
    calls = []

    def stop(state, record):
        calls.append(record.iteration)
        return Stop("for now") if len(calls) == 2 else None

    estimator.setCheckpointDir(str(tmp_path)).setCallbacks([stop])
    assert estimator.fit(frame).reason == "for now"
    assert learnt(estimator.fit(frame)) == learnt(uninterrupted)
    assert calls == [0, 1, *[record.iteration for record in uninterrupted.history[2:]]]


# --- what a checkpoint is refused for -----------------------------------------------------------


def logistic(directory, **params):
    estimator = LogisticRegression(solver="l-bfgs", regParam=0.01, tol=0.0, maxIter=4)
    return estimator.setParams(**params).setCheckpointDir(str(directory))


def test_other_params_and_other_data_are_refused_by_name(frame, tmp_path):
    logistic(tmp_path).fit(frame)
    with pytest.raises(ValueError, match=r"param regParam: 0\.01 there, 0\.5 here"):
        logistic(tmp_path, regParam=0.5).fit(frame)
    with pytest.raises(ValueError, match="rows: 2400 there, 2399 here"):
        logistic(tmp_path).fit(frame.where("id > 0"))
    one = "CASE id WHEN 7 THEN 1 - label ELSE label END AS label"
    flipped = frame.selectExpr("id", "features", one)
    with pytest.raises(ValueError, match=r"\(checksum of all values: [^;]*\)"):
        logistic(tmp_path).fit(flipped)
    with pytest.raises(ValueError, match="estimator: 'LogisticRegression' there, 'KMeans' here"):
        KMeans().setCheckpointDir(str(tmp_path)).fit(frame)
    with pytest.raises(ValueError, match=r"maxIter: expected 4 or more.*found 3"):
        logistic(tmp_path, maxIter=3).fit(frame)


def test_other_partitions_are_a_warning_or_refused_where_a_state_belongs_to_them(frame, tmp_path):
    expected = logistic(tmp_path / "a").fit(frame)
    moved = frame.repartition(2)
    with pytest.warns(CheckpointWarning, match="same rows with other partitions"):
        found = logistic(tmp_path / "a", maxIter=6).fit(moved)
    assert found.n_iter == 6
    assert found.history[4].loss == expected.history[4].loss
    svm = KernelSVC(gamma=2.0, maxIter=1).setCheckpointDir(str(tmp_path / "b"))
    svm.fit(frame)
    with pytest.raises(ValueError, match="expected the partitions"):
        svm.fit(moved)


def test_names_of_columns_and_more_iterations_are_no_other_fit(frame, tmp_path):
    uninterrupted = logistic(None, maxIter=6).setCheckpointDir(None).fit(frame)
    logistic(tmp_path).fit(frame)
    renamed = frame.withColumnRenamed("features", "x").withColumnRenamed("label", "y")
    more = {"maxIter": 6, "featuresCol": "x", "labelCol": "y", "checkpointInterval": 3}
    assert learnt(logistic(tmp_path, **more).fit(renamed)) == learnt(uninterrupted)


def test_levels_of_bisecting_k_means_go_on_with_the_same_max_iter_alone(frame, tmp_path):
    def fit(max_iter):
        return BisectingKMeans(k=4, maxIter=max_iter).setCheckpointDir(str(tmp_path)).fit(frame)

    assert learnt(fit(2)) == learnt(fit(2))
    with pytest.raises(ValueError, match="param maxIter: 2 there, 3 here"):
        fit(3)


# --- files --------------------------------------------------------------------------------------


def files(directory):
    return sorted(path.name for path in (directory / "run-1").iterdir())


def test_the_last_two_are_left_and_a_damaged_one_gives_way_to_the_one_before(frame, tmp_path):
    finished = logistic(tmp_path, checkpointInterval=1).fit(frame)
    assert files(tmp_path) == ["00000003.zip", "00000004.zip"]
    last = tmp_path / "run-1" / "00000004.zip"
    whole = last.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b""):
        last.write_bytes(damaged)
        seen = []
        again = logistic(tmp_path, checkpointInterval=1)
        again.setCallbacks([lambda state, record, seen=seen: seen.append(record.iteration)])
        with pytest.warns(CheckpointWarning, match=r"00000004\.zip cannot be read"):
            assert learnt(again.fit(frame)) == learnt(finished)
        assert seen == [4]
        assert files(tmp_path) == ["00000003.zip", "00000004.zip"]


def test_a_finished_fit_is_not_fitted_again(frame, tmp_path):
    finished = logistic(tmp_path).fit(frame)
    assert files(tmp_path) == ["00000004.zip"]
    seen = []
    again = logistic(tmp_path).setCallbacks([lambda state, record: seen.append(record)])
    with pytest.warns(ConvergenceWarning, match="maxIter = 4"):
        assert learnt(again.fit(frame)) == learnt(finished)
    assert not seen


def test_a_directory_or_an_interval_that_is_none_is_an_error_before_the_fit(frame, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        logistic(tmp_path / "file").fit(frame)
    with pytest.raises(ValueError, match="checkpointInterval: expected 1 or more, or -1"):
        logistic(tmp_path, checkpointInterval=0).fit(frame)
    logistic(tmp_path / "never", checkpointInterval=-1).fit(frame)
    assert not (tmp_path / "never").exists()


def test_what_callbacks_changed_and_remembered_goes_on_too(frame, tmp_path):
    def steer(state, record):
        if record.iteration == 1:
            return [Checkpoint("first"), Change(reg_param=0.1)]
        if record.iteration == 4:
            return Restore("first")
        return None

    def interrupt(state, record):
        return Stop("away") if record.iteration == 2 else None

    params = {"maxIter": 6, "checkpointInterval": 100}
    expected = logistic(tmp_path / "a", **params).setCallbacks([steer]).fit(frame)
    stopped = logistic(tmp_path / "b", **params).setCallbacks([steer, interrupt]).fit(frame)
    assert (stopped.reason, stopped.n_iter) == ("away", 2)
    assert files(tmp_path / "b") == ["00000001.zip", "00000002.zip"]  # asked for, and the end
    resumed = logistic(tmp_path / "b", **params).setCallbacks([steer, interrupt]).fit(frame)
    assert learnt(resumed) == learnt(expected)
    assert resumed.history[-1].settings.reg_param == 0.1


def test_fits_of_a_grid_have_a_directory_each_and_go_on(frame, tmp_path):
    estimator = logistic(tmp_path, checkpointInterval=2)
    grid = [{estimator.regParam: 0.1}, {estimator.regParam: 1.0}, {estimator.maxIter: 3}]
    first = dict(estimator.fitMultiple(frame, grid))
    assert len(list(Path(tmp_path).iterdir())) == 3
    seen = []
    estimator.setCallbacks([lambda state, record: seen.append(record)])
    again = dict(estimator.fitMultiple(frame, grid))
    assert not seen
    assert all(learnt(again[i]) == learnt(first[i]) for i in range(3))


def test_fits_that_share_a_directory_have_one_each_below_it_and_go_on(frame, tmp_path):
    # As a tuner fits a pipeline: by a call of `fit` for every point of the grid.
    estimator = logistic(tmp_path, maxIter=2).setCheckpointDir(str(tmp_path), shared=True)
    pipeline = Pipeline(stages=[estimator])
    grid = [{estimator.regParam: 0.1}, {estimator.regParam: 1.0}]
    folds = [frame.where("id % 2 = 0"), frame.where("id % 2 = 1")]

    def fits():
        return [pipeline.fit(fold, point).stages[0] for fold in folds for point in grid]

    first = fits()
    assert len(list(tmp_path.iterdir())) == 4
    seen = []
    estimator.setCallbacks([lambda state, record: seen.append(record)])
    assert list(map(learnt, fits())) == list(map(learnt, first))
    assert not seen
    estimator.setCheckpointDir(str(tmp_path / "alone"))
    with pytest.raises(ValueError, match=r"of another one.*setCheckpointDir\(path, shared=True\)"):
        fits()


def test_a_fit_that_goes_on_is_recorded_as_one_of_its_own(frame, tmp_path):
    def stop(state, record):
        return Stop("away") if record.iteration == 2 else None

    estimator = logistic(tmp_path / "kept", checkpointInterval=100)
    estimator.setRunDir(str(tmp_path / "run")).setCallbacks([stop]).fit(frame)
    estimator.fit(frame)
    going_on = read_run(str(tmp_path / "run" / "fit-2"))
    assert going_on.rounds.iteration.tolist() == [3, 4]
    assert going_on.state == "finished"
