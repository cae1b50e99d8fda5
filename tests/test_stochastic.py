"""The solvers sgd and adam of the linear models: where they end, and what they refuse."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.errors import PythonException
from pyspark.ml.linalg import Vectors
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

from mllib_ext import fitting
from mllib_ext.blocks import Blocks
from mllib_ext.classification import (
    LinearSVC,
    LogisticRegression,
    MultilayerPerceptronClassifier,
)
from mllib_ext.optimizers.loop import Checkpoint, Restore
from mllib_ext.regression import LinearRegression, LinearSVR

CANCER, DIABETES, IRIS = load_breast_cancer(), load_diabetes(), load_iris()
W = np.random.default_rng(0).integers(0, 4, 600).astype(float)

pytestmark = pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")


@pytest.fixture(scope="module")
def frames(spark):
    """Rows in three partitions, of which one has no rows."""
    made = {}
    for name, data in (("cancer", CANCER), ("diabetes", DIABETES), ("iris", IRIS)):
        rows = [
            (Vectors.dense(x), float(y), w)
            for x, y, w in zip(data.data[:, :8], data.target, W.tolist(), strict=False)
        ]
        context = spark.sparkContext
        parts = [context.parallelize(part, 1) for part in (rows[::3], [], rows[1::3] + rows[2::3])]
        made[name] = spark.createDataFrame(context.union(parts), ["features", "label", "w"])
        made[name].persist()
    yield made
    for df in made.values():
        df.unpersist()


MODELS: dict[str, tuple[Any, str]] = {
    "logistic": (LogisticRegression(regParam=0.02), "cancer"),
    "multinomial": (LogisticRegression(regParam=0.02), "iris"),
    "least squares": (LinearRegression(regParam=0.5, solver="l-bfgs"), "diabetes"),
    "squared hinge": (LinearSVC(regParam=0.02, loss="squared_hinge"), "cancer"),
    "hinges": (LinearSVC(regParam=0.02), "iris"),
    "squared epsilon-insensitive": (
        LinearSVR(regParam=0.5, loss="squared_epsilon_insensitive", epsilon=10.0), "diabetes"
    ),
}  # fmt: skip
# A coefficient of the diabetes is about 20, where Adam goes a hundredth of 1 a step unless told.
WAYS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.7},
    "sgd local": {"updates": "local", "outerMomentum": 0.3, "miniBatchFraction": 0.05},
    "adam": {},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_it_ends_near_the_other_solvers_optimum(frames, name, way):
    estimator, data = MODELS[name]
    best = estimator.copy().setTol(1e-10).setWeightCol("w").fit(frames[data])
    params = {"solver": way.split()[0], "maxIter": 40, "tol": 0.0, "weightCol": "w", **WAYS[way]}
    if way == "adam":
        params["stepSize"] = 2.0 if data == "diabetes" else 0.05
    model = estimator.copy()._set(**params).fit(frames[data])
    losses = [[record.loss for record in m.history] for m in (model, best)]
    fall = losses[1][0] - min(losses[1])
    # Hinges have kinks, about which a rate has to fall further than 40 passes take it.
    share = 1e-2 if name == "hinges" else 2e-3
    assert 0 <= losses[0][-1] - min(losses[1]) + 1e-9 * fall <= share * fall
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-9)


@pytest.mark.parametrize("updates", ["synchronous", "local"])
def test_block_files_give_the_bits_of_the_drivers_blocks_also_when_one_is_lost(
    frames, monkeypatch, updates
):
    estimator = LogisticRegression(
        solver="sgd", momentum=0.5, miniBatchFraction=0.3, updates=updates, maxIter=3
    )
    here = estimator.fit(frames["cancer"])
    again = estimator.copy().setSeed(1).fit(frames["cancer"])
    assert np.abs(again.coefficients.toArray() - here.coefficients.toArray()).max() > 1e-6
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    lost: list[Path] = []

    def lose(state, record):
        if record.iteration == 1:
            (partition,) = [p for p in record.rounds[-1].partitions if p.partition == 2]
            assert partition.rows == 379
            blocks = record.rounds[-1].partitions
            assert sum(p.rows for p in blocks) == 569
            files = list(Path(lost[0]).rglob("part-00002-*.arrow"))
            assert len(files) == 1
            files[0].unlink()
            lost.append(files[0])

    # Session-wide local directory of the workers: where the block files stand.
    lost.append(Path(frames["cancer"].sparkSession.conf.get("spark.local.dir")))
    there = estimator.setCallbacks([lose]).fit(frames["cancer"])
    assert len(lost) == 2
    np.testing.assert_array_equal(there.coefficients.toArray(), here.coefficients.toArray())
    assert there.intercept == here.intercept
    rounds = there.history[2].rounds
    per_pass = 4 if updates == "synchronous" else 1
    assert len(rounds) == per_pass + 1
    # Nine parameters: what goes up is a gradient or a move and a weight from each partition, and
    # the number of an attempt where momentum stays there.
    numbers = 9 + 1 if updates == "synchronous" else 9 + 1 + 1
    assert all(r.bytes_up == 2 * numbers * 8 for r in rounds[:-1])
    assert rounds[-1].bytes_up == 2 * 8


def lose_a_state(df):
    """A callback that deletes the states of partition 2 after the first pass."""
    directory = Path(df.sparkSession.conf.get("spark.local.dir"))

    def lose(state, record):
        if record.iteration == 1:
            states = list(directory.rglob("state-*-00002-*"))
            assert len(states) == 2  # the committed one, and that of the round before
            for path in states:
                path.unlink()

    return lose


@pytest.mark.parametrize("compression", ["top-k", "powersgd"])
def test_a_compressed_run_in_block_files_is_that_on_the_driver_and_sends_little(
    frames, monkeypatch, compression
):
    estimator = LogisticRegression(
        solver="sgd", momentum=0.5, miniBatchFraction=0.5, maxIter=3, stepSize=0.1,
        compression=compression, compressionShare=0.1, compressionRank=1,
    )  # fmt: skip
    here = estimator.fit(frames["iris"])
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    there = estimator.fit(frames["iris"])
    np.testing.assert_array_equal(
        there.coefficientMatrix.toArray(), here.coefficientMatrix.toArray()
    )
    # A state that is lost takes the run back to its start, from where it goes on to the bit.
    lost = estimator.setCallbacks([lose_a_state(frames["iris"])]).fit(frames["iris"])
    expected = [record.loss for record in there.history]
    assert [record.loss for record in lost.history] == [*expected[:2], *expected[1:3]]
    # Two rounds and the objective; of 15 parameters 2 entries of 8 bytes, or factors of 4 and 3
    # and the 3 intercepts in single precision; a weight and the number of an attempt.
    message = 16 if compression == "top-k" else 40
    rounds = there.history[2].rounds
    assert [r.bytes_up for r in rounds] == [2 * (message + 8 + 8)] * 2 + [2 * 8]
    assert max(r.bytes_down for r in rounds[:2]) < rounds[2].bytes_down


def test_asynchronous_rounds_are_concurrent_jobs_and_end_near_the_optimum(frames, monkeypatch):
    estimator = LogisticRegression(
        solver="sgd", updates="asynchronous", miniBatchFraction=0.5, maxIter=12, stepSize=0.3
    )
    here = estimator.fit(frames["iris"])
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    model = estimator.fit(frames["iris"])
    # Two groups, one for each partition with rows, with two shares of a pass each.
    for record in model.history[1:]:
        assert sorted(len(r.partitions) for r in record.rounds) == [1, 1, 1, 1, 3]
        assert sum(r.partitions[0].rows for r in record.rounds if len(r.partitions) == 1) == 300
    # Arrivals differ from run to run, what they lead to hardly.
    losses = [m.history[-1].loss for m in (model, here)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] < 0.4 * model.history[0].loss


def test_what_fails_under_way_is_raised_where_it_is_waited_for(frames):
    with Blocks.of(frames["iris"], "features") as blocks:
        with blocks.flights() as flights:
            flights.send(0, fail)
            with pytest.raises(PythonException, match="of no use"):
                flights.receive()
        with blocks.flights() as flights:
            flights.send(1, count)
            flights.send(0, count)
            arrived = dict(flights.receive() for _ in range(2))
        assert arrived == {0: (50,), 1: (100,)}


def fail(block):
    raise ValueError("of no use")


def count(block):
    return (block.n,)


def test_solver_options_of_stochastic_descent_are_checked_before_any_job(frames):
    for params, message in (
        ({"momentum": 1.0}, r"param momentum: expected a number in \[0, 1\), found 1.0"),
        ({"miniBatchFraction": 0.0}, r"param miniBatchFraction: .* \(0, 1\], found 0.0"),
        ({"schedule": "linear"}, "param schedule: expected one of .*cosine.*, found 'linear'"),
        ({"updates": "hogwild"}, "param updates: expected one of .*local.*, found 'hogwild'"),
        ({"warmUp": -1.0}, "param warmUp: expected a number of 0 or more, found -1.0"),
        ({"decay": float("nan")}, "param decay: expected a number of 0 or more, found nan"),
        ({"solver": "adam", "momentum": 0.9}, "param momentum: expected 0 with solver adam"),
        ({"nesterov": True}, "param nesterov: expected false without momentum, found True"),
        ({"localSteps": 3}, "param localSteps: expected 0 with synchronous updates, found 3"),
        ({"outerMomentum": 0.3}, "param outerMomentum: expected 0 with synchronous updates"),
        ({"compression": "zip"}, "param compression: expected one of .*'top-k'.*, found 'zip'"),
        ({"compressionShare": 0.0}, r"param compressionShare: .* \(0, 1\], found 0.0"),
        ({"compressionRank": 0}, "param compressionRank: expected 1 or more, found 0"),
        ({"maxStaleness": -1}, "param maxStaleness: expected a number of 0 or more, found -1"),
        (
            {"updates": "asynchronous", "compression": "qsgd"},
            "param compression: expected none with asynchronous updates, found 'qsgd'",
        ),
        # Nothing that was asked for is left out in silence.
        (
            {"solver": "auto", "validationFraction": 0.2},
            "param validationFraction: expected 0.0 with solver 'auto', found 0.2",
        ),
        (
            {"solver": "l-bfgs", "compression": "top-k"},
            "param compression: expected 'none' with solver 'l-bfgs', found 'top-k'",
        ),
    ):
        for estimator in (LogisticRegression(), LinearSVC(), LinearRegression(), LinearSVR()):
            with pytest.raises(ValueError, match=message):
                estimator._set(**{"solver": "sgd", **params}).fit(frames["cancer"])
    with pytest.raises(ValueError, match=r"param solver: .* elasticNetParam above 0, found 'sgd'"):
        LogisticRegression(solver="sgd", elasticNetParam=0.5).fit(frames["cancer"])
    network = MultilayerPerceptronClassifier(layers=[8, 2], batchSize=64)
    with pytest.raises(ValueError, match="param batchSize: expected 0 with solver 'l-bfgs'"):
        network.fit(frames["cancer"])


def test_a_run_with_states_in_files_is_restored_where_it_was(frames, monkeypatch):
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    seen = []

    def steer(state, record):
        seen.append((state.epoch, state.v))
        return {3: Checkpoint("here"), 5: Restore("here")}.get(record.iteration)

    LogisticRegression(
        solver="adam", updates="local", miniBatchFraction=0.25, schedule="constant", maxIter=6
    ).setCallbacks([steer]).fit(frames["cancer"])
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3, 4, 5, 4]
    np.testing.assert_array_equal(seen[6][1], seen[4][1])


def test_all_files_lost_under_concurrent_rounds_are_written_again_once(frames, monkeypatch, caplog):
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    df = frames["iris"]
    directory = Path(df.sparkSession.conf.get("spark.local.dir"))

    def lose(state, record):
        if record.iteration == 2:
            for path in directory.rglob("mllib_ext-*"):
                shutil.rmtree(path, ignore_errors=True)

    model = (
        LogisticRegression(
            solver="sgd", updates="asynchronous", miniBatchFraction=0.5, maxIter=6, stepSize=0.3
        )
        .setCallbacks([lose])
        .fit(df)
    )
    assert model.n_iter == 6
    assert model.history[-1].loss < 0.5 * model.history[0].loss
    told = [r for r in caplog.records if "building all blocks again" in r.getMessage()]
    assert len(told) == 1
