"""Rounds and joins on a standalone cluster that loses files, executors and a machine."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

import mllib_ext
from standalone import Standalone

SCRIPT = Path(__file__).parent / "cluster_rounds.py"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    root = str(Path(mllib_ext.__path__[0]).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
        with Standalone(tmp_path_factory.mktemp("cluster")) as running:
            yield running


def seen(cluster, scenario):
    pids = [str(pid) for pid in cluster.workers]
    done = cluster.submit(SCRIPT, scenario, *pids, timeout=240)
    assert done.returncode == 0, done.stderr[-5_000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def speculation(cluster):
    return seen(cluster, "speculation")


@pytest.fixture(scope="module")
def neighbors(cluster):
    return seen(cluster, "neighbors")


@pytest.fixture(scope="module")
def losses(cluster, speculation, neighbors):  # after the others: it ends with one worker
    return seen(cluster, "losses")


def executor_of(path):
    """The local directory of the executor that wrote a block file."""
    return path.split("/mllib_ext-")[0]


# --- speculation ------------------------------------------------------------------------------


def test_second_attempts_do_not_change_a_result(speculation):
    first = speculation["first"]["bits"]
    for name in ("slow 0", "slow 1", "slow 2", "last"):
        assert speculation[name]["bits"] == first
    assert speculation["last"]["rows"] == 6_000
    assert speculation["last"]["in_order"]
    assert all(rows == [1_000] * 6 for rows in speculation["rounds"])


def test_second_attempts_leave_nothing(speculation):
    assert speculation["left"] == []
    assert speculation["driver files"] == []
    assert speculation["persisted"] == 0


# --- neighbours -------------------------------------------------------------------------------


def test_a_lazy_answer_survives_the_loss_of_an_executor(neighbors):
    expected = neighbors["first"]["broadcast_items"]
    assert len(expected) == 600
    assert all(row[0] == row[1][0] and row[2][0] == 0 for row in expected)
    for answers in (neighbors["first"], neighbors["killed"]):
        assert set(answers) == {"broadcast_items", "broadcast_queries", "exchange", "index"}
        assert all(rows == expected for rows in answers.values())


# --- losses -----------------------------------------------------------------------------------


def test_rounds_stay_on_the_executor_that_holds_the_file(losses):
    first, second = losses["first"], losses["second"]
    assert first["paths"] == second["paths"]
    assert second["jobs"] == 1
    expected = [[p, executor_of(path)] for p, path in enumerate(second["paths"])]
    assert second["places"] == expected
    assert len({directory for _, directory in expected}) == 2, "both executors hold blocks"


def test_an_executor_killed_between_rounds_does_not_change_the_result(losses):
    assert losses["killed"]["bits"] == losses["first"]["bits"]
    assert losses["killed"]["rows"] == 6_000
    assert losses["killed"]["in_order"]


def test_rounds_after_a_kill_run_on_all_data_in_one_job(losses):
    for name in ("after the kill", "later"):
        assert losses[name]["bits"] == losses["first"]["bits"]
        assert losses[name]["in_order"]
    assert losses["later"]["jobs"] == 1


def test_a_file_removed_on_an_executor_is_written_again(losses):
    found = losses["file removed"]
    assert found["bits"] == losses["first"]["bits"]
    assert found["in_order"]


def test_a_machine_that_does_not_come_back_does_not_change_the_result(losses):
    for name in ("machine lost", "one machine"):
        assert losses[name]["bits"] == losses["first"]["bits"]
        assert losses[name]["in_order"]
    assert losses["one machine"]["jobs"] == 1
    assert len({directory for _, directory in losses["one machine"]["places"]}) == 1


def test_after_losses_nothing_is_left(cluster, losses):
    assert losses["left"] == []
    assert losses["driver files"] == []
    assert losses["persisted"] == 0
    # The worker deletes what an executor that was killed has left, when the application ends.
    place = cluster.local_directory(0)
    deadline = time.monotonic() + 20
    while (left := list(place.rglob("mllib_ext-*"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
