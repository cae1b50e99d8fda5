"""States of partitions: what a task sees, what counts, and what is left when one is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from arrays import block, handle_of
from mllib_ext.blocks import Blocks
from mllib_ext.kept import Kept, updated
from mllib_ext.partials import StateLost

X = np.arange(40.0).reshape(20, 2)


def tally(handle, blocks, state, step):
    """Adds a step a row to a count that the partition keeps."""
    before = 0.0 if state is None else float(state[0])
    after = before + step * sum(b.n for b in blocks)
    return ([(handle.partition, before)],), (np.array(after),)


def both(left, right):
    return (left[0] + right[0],)


def test_attempts_of_a_round_start_from_the_same_state_and_the_committed_one_counts(tmp_path):
    rows = block(X)
    path = tmp_path / "part.arrow"
    path.touch()
    handle = handle_of([rows], str(path))
    # Another fit on the same blocks is at a round of its own, and loses nothing.
    other_run = tmp_path / "state-another-00000-00000000-00000001"
    other_run.touch()

    def attempt(number, kept, step):
        address = None if kept is None else kept.address()
        return updated(tally, ("run", number), handle, [rows], address, step)

    first, _ = attempt(0, None, 1.0)
    kept = Kept("run", 0, first, False)
    # A task that is retried or runs twice: with other steps, to tell the attempts apart.
    (one, values), (other, again) = attempt(1, kept, 10.0), attempt(1, kept, 100.0)
    assert values == again == ([(0, 20.0)],)
    assert one != other
    _, values = attempt(2, Kept("run", 1, other, False), 0.0)
    assert values == ([(0, 20.0 + 2000.0)],)
    # Of the rounds before the committed one nothing is left; of its own, both attempts are.
    kinds = sorted(f.name.split("-")[3] for f in tmp_path.glob("state-run-*"))
    assert kinds == ["00000001", "00000001", "00000002"]
    assert other_run.exists()
    # Without the state, but where the rows are; and on a machine that has neither.
    assert attempt(2, Kept("run", 1, {0: 7}, False), 0.0) == ({0: None}, None)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        attempt(2, Kept("run", 1, {0: 7}, False), 0.0)


@pytest.fixture(scope="module")
def df(spark):
    rows = [(row,) for row in X.tolist()]
    context = spark.sparkContext
    parts = [context.parallelize(part, 1) for part in (rows[:13], [], rows[13:])]
    found = spark.createDataFrame(context.union(parts), "features array<double>").persist()
    yield found
    found.unpersist()


@pytest.mark.parametrize(("driver_bytes", "depth"), [(0, 2), (0, 3), (1 << 20, 2)])
def test_every_partition_goes_on_from_its_own_state(df, driver_bytes, depth):
    with Blocks.of(df, "features", driver_bytes=driver_bytes, depth=depth) as blocks:
        assert blocks.on_driver == (driver_bytes > 0)
        values, first = blocks.update(tally, both, None, 1.0)
        assert values == ([(0, 0.0), (2, 0.0)],)
        values, second = blocks.update(tally, both, first, 2.0)
        assert values == ([(0, 13.0), (2, 7.0)],)
        on_driver = blocks.recall(second)
        assert {p: float(s[0]) for p, s in on_driver.states.items()} == {0: 39.0, 2: 21.0}
        for kept in (second, on_driver):
            values, _ = blocks.update(tally, both, kept, 0.0)
            assert values == ([(0, 39.0), (2, 21.0)],)


def test_a_lost_state_is_told_and_one_on_the_driver_goes_on(df):
    with Blocks.of(df, "features") as blocks:
        _, kept = blocks.update(tally, both, None, 1.0)
        saved = blocks.recall(kept)
        directory = Path(blocks.handles[0].path).parent
        # Blocks that are written again beside their state find it.
        Path(blocks.handles[2].path).unlink()
        values, kept = blocks.update(tally, both, kept, 1.0)
        assert values == ([(0, 13.0), (2, 7.0)],)
        for state in directory.glob("state-*-00002-*"):
            state.unlink()
        for lost in (lambda: blocks.update(tally, both, kept, 1.0), lambda: blocks.recall(kept)):
            with pytest.raises(StateLost, match=r"the states of partitions \[2\] are lost"):
                lost()
        values, kept = blocks.update(tally, both, saved, 1.0)
        assert values == ([(0, 13.0), (2, 7.0)],)
        values, _ = blocks.update(tally, both, kept, 1.0)
        assert values == ([(0, 26.0), (2, 14.0)],)
        shutil.rmtree(directory)
        with pytest.raises(StateLost, match="partitions"):
            blocks.update(tally, both, kept, 1.0)
    assert not directory.exists()
