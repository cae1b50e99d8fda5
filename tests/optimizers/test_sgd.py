"""Stochastic gradient descent on data in memory: samples, distribution, convergence; no Spark."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from arrays import Arrays, block, handle_of, slopes
from mllib_ext.compression import Uncompressed, Wire
from mllib_ext.hinges import CrammerSinger, EpsilonInsensitive, Hinge, SquaredHinge, Subgradient
from mllib_ext.losses import Logistic, Multinomial, SquaredError
from mllib_ext.objective import Coordinates, Objective, Shifted
from mllib_ext.optimizers import newton, sgd
from mllib_ext.optimizers.loop import Change, Checkpoint, DivergenceError, Restore
from mllib_ext.optimizers.smooth import minimize
from mllib_ext.partials import StateLost
from mllib_ext.penalties import L2
from mllib_ext.sampling import Draw, batches, held_out
from mllib_ext.stochastic import GradientFlights, Stochastic, moved

N, D = 400, 5
RNG = np.random.default_rng(3)
THIRDS = [[1.0, -1.0, 0.0], [0.0, 0.5, -0.5]]
X = RNG.standard_normal((N, D)) * [1.0, 2.0, 0.5, 1.0, 10.0] + [0, 1, 0, -2, 5]
Y = (RNG.random(N) < 1 / (1 + np.exp(-(X[:, 0] - 0.2 * X[:, 4] + 1)))).astype(float)
W = RNG.uniform(0.0, 2.0, N)
W[::7] = 0.0
CLASS = (X[:, :2] @ THIRDS + RNG.gumbel(size=(N, 3))).argmax(axis=1).astype(float)


def objective(loss=None, y=Y, w=W, parts=3, reg=0.05, X=X) -> Any:
    loss = loss or Logistic()
    coordinates = Coordinates(X.mean(axis=0), X.std(axis=0), loss.n_outputs, True)
    return Objective(Arrays.of(X, y, w, parts), loss, coordinates, L2(reg, np.ones(X.shape[1])))


def optimum(problem):
    settings = newton.SETTINGS(reg_param=problem.penalty.strength, tol=1e-12)
    start = problem.coordinates.zeros()
    return minimize(newton, problem.regularized, start, settings).state


def descended(problem, callbacks=(), **settings):
    stochastic = Stochastic.of(problem)
    chosen = sgd.SETTINGS(**{"reg_param": problem.penalty.strength, "tol": 0.0} | settings)
    start = problem.coordinates.zeros()
    return minimize(sgd, stochastic.regularized, start, chosen, callbacks)


# --- samples ------------------------------------------------------------------------------------


def test_the_shares_of_a_pass_are_disjoint_and_make_up_the_block():
    rows = replace(block(X, Y, W), partition=2, start=50)
    for count in (1, 7, N, 3 * N):
        shares = [Draw(5, 1, index, count).rows(rows) for index in range(count)]
        assert sorted(np.concatenate(shares)) == list(range(N))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    first, again = (Draw(5, 1, 2, 7).rows(rows) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    for other in (Draw(6, 1, 2, 7), Draw(5, 2, 2, 7)):
        assert not np.array_equal(first, other.rows(rows))
    assert not np.array_equal(first, Draw(5, 1, 2, 7).rows(replace(rows, partition=3)))
    assert not np.array_equal(first, Draw(5, 1, 2, 7).rows(replace(rows, start=0)))


@pytest.mark.parametrize("wide", [False, True])
def test_mini_batches_hold_each_row_that_is_drawn_once(wide):
    kind = sp.csr_array if wide else np.asarray
    cuts = [(0, 130), (130, 137), (137, N)]
    parts = [replace(block(kind(X[i:j]), Y[i:j], W[i:j]), start=i) for i, j in cuts]
    if wide:  # a CSR block of very many columns knows which of them it stores
        parts = [replace(p, columns=np.arange(D), places=p.X.indices) for p in parts]
    seen, passes = [], []
    for index in range(2):
        for batch, at in batches(0.1, Draw(0, 4, index, 2), N, parts):
            assert 0 < batch.n <= 40
            assert batch.columns is None
            rows = batch.X.toarray() if wide else batch.X
            seen.append(np.column_stack([rows, batch.y, batch.w]))
            passes.append(at)
    found, expected = np.vstack(seen), np.column_stack([X, Y, W])
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    assert 4 < passes[0] < passes[-1] < 5
    assert passes == sorted(passes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_a_row_is_decides_whether_it_is_held_out(dtype):
    rows = np.random.default_rng(0).integers(0, 256, (20_000, 6)).astype(dtype)
    out = held_out(rows, 0.25, 3)
    # Four standard deviations of a share of 20,000 independent rows.
    assert abs(out.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 20_000)
    order = np.random.default_rng(1).permutation(len(rows))
    np.testing.assert_array_equal(held_out(rows[order], 0.25, 3), out[order])
    np.testing.assert_array_equal(held_out(sp.csr_array(rows), 0.25, 3), out)
    assert 0.55 < (held_out(rows, 0.25, 4) == out).mean() < 0.7  # by chance 5 in 8
    assert not held_out(rows, 0.0, 3).any()
    assert held_out(rows, 1.0, 3).all()


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
@pytest.mark.parametrize("updates", sgd.UPDATES)
def test_no_round_draws_a_row_held_out(updates):
    # Those that are would take the run elsewhere: their labels are wrong.
    out = held_out(X, 0.3, 0)
    wrong = np.where(out, 1 - Y, Y)
    way = {"updates": updates, "step_size": 0.3, "mini_batch_fraction": 0.2, "max_iter": 2}
    runs = [
        descended(objective(y=y), validation_fraction=0.3, patience=9, **way) for y in (Y, wrong)
    ]
    for one, other in zip(*(run.history for run in runs), strict=True):
        assert one.loss == other.loss
        assert one.iteration == 0 or one.validation_loss < other.validation_loss
    alone = replace(objective(y=Y[~out], w=W[~out], X=X[~out]), coordinates=objective().coordinates)
    end = runs[0].state
    assert end.loss == pytest.approx(Stochastic.of(alone).value(end.v), rel=1e-12)


# --- the model and its estimates ----------------------------------------------------------------

LOSSES = {
    "squared error": (SquaredError(), Y),
    "logistic": (Logistic(), Y),
    "multinomial": (Multinomial(3), CLASS),
    "hinge": (Subgradient(Hinge()), Y),
    "hinges": (Subgradient(Hinge(3)), CLASS),
    "crammer & singer": (Subgradient(CrammerSinger(3)), CLASS),
    "epsilon-insensitive": (Subgradient(EpsilonInsensitive(epsilon=0.3)), Y),
    "squared hinge": (SquaredHinge(), Y),
}


def estimate(stochastic, v, draw):
    gradient, _ = stochastic.gradient(v, draw)
    assert gradient is not None
    return gradient


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_linear_models_gradient_is_that_of_its_loss(name, shifted):
    problem = objective(*LOSSES[name])
    if shifted:
        origin = X.mean(axis=0)
        seen = replace(problem.coordinates, mean=np.zeros(D))
        problem = replace(problem, blocks=Shifted(problem.blocks, origin), coordinates=seen)
    stochastic = Stochastic.of(problem)
    v = 0.3 * np.random.default_rng(1).standard_normal(len(problem.coordinates.zeros()))
    gradient = estimate(stochastic, v, Draw(0, 0, 0, 1)) + stochastic.pull(v)
    # The hinges have kinks, of which no row is within 1e-6 here.
    np.testing.assert_allclose(gradient, slopes(stochastic.value, v), rtol=1e-6, atol=1e-8)
    assert stochastic.value(v) == pytest.approx(problem.value_and_gradient(v)[0], rel=1e-12)


def test_an_estimate_divides_by_the_weight_drawn_whatever_the_partitions():
    v = np.linspace(-1, 1, D + 1)
    draw = Draw(0, 0, 3, 10)
    problem = objective(parts=7)
    rows = [(b, draw.rows(b)) for b in problem.blocks.blocks]
    drawn = [(b.X[r], b.y[r], b.w[r]) for b, r in rows]
    alone = replace(
        problem, blocks=Arrays.of(*(np.concatenate(parts) for parts in zip(*drawn, strict=True)))
    )
    expected = estimate(Stochastic.of(alone), v, Draw(0, 0, 0, 1))
    found = estimate(Stochastic.of(problem), v, draw)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    unweighted = objective(w=np.zeros(N))
    assert Stochastic.of(unweighted).gradient(v, draw) == (None, None)


def test_local_moves_are_a_mean_by_weight_of_what_partitions_do_alone():
    problem = objective(parts=4)
    settings = sgd.SETTINGS(step_size=0.1, mini_batch_fraction=0.2, updates="local", momentum=0.5)
    steps = sgd.Steps(settings.rule, settings.rates, 0.2)
    v, draw = np.full(D + 1, 0.1), Draw(0, 0, 0, 1)
    stochastic = Stochastic.of(problem)
    found, _ = stochastic.moves(v, draw, steps)
    ridge = 0.05 * stochastic.ridge
    alone = [
        moved(stochastic.model, steps, ridge, handle_of([b]), [b], v, draw.packed)
        for b in problem.blocks.blocks
    ]
    weights = [weight for _, weight in alone]
    assert weights == pytest.approx([b.w.sum() for b in problem.blocks.blocks])
    assert found is not None
    np.testing.assert_allclose(found, sum(far for far, _ in alone) / W.sum(), rtol=1e-12)


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
def test_a_whole_batch_is_gradient_descent():
    problem = objective()
    v = problem.coordinates.zeros()
    result = descended(
        problem, step_size=0.3, mini_batch_fraction=1.0, schedule="constant", max_iter=8
    )
    for _ in range(8):
        v = v - 0.3 * problem.value_and_gradient(v)[1]
    np.testing.assert_allclose(result.state.v, v, rtol=1e-10)
    assert result.state.loss == pytest.approx(problem.value_and_gradient(v)[0], rel=1e-12)


# --- convergence --------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "synchronous": {"step_size": 0.5},
    "synchronous momentum": {"step_size": 0.1, "momentum": 0.8},
    "synchronous nesterov": {"step_size": 0.1, "momentum": 0.8, "rule_name": "nesterov"},
    "synchronous adagrad": {"step_size": 0.5, "rule_name": "adagrad"},
    "synchronous adam": {"step_size": 0.1, "rule_name": "adam"},
    "asynchronous": {"step_size": 0.5, "updates": "asynchronous", "staleness": 3},
    "asynchronous adam": {"step_size": 0.03, "updates": "asynchronous", "rule_name": "adam"},
    "local": {"step_size": 0.2, "updates": "local"},
    "local, a few steps": {"step_size": 0.2, "updates": "local", "local_steps": 3},
    "local, several passes": {"step_size": 0.2, "updates": "local", "local_steps": 30},
    "local, outer momentum": {"step_size": 0.1, "updates": "local", "outer_momentum": 0.5},
    "local adam": {"step_size": 0.05, "updates": "local", "rule_name": "adam"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["logistic", "multinomial", "squared hinge"])
@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
def test_a_run_with_a_falling_rate_ends_near_the_optimum(way, name):
    problem = objective(*LOSSES[name])
    best = optimum(problem).loss
    at_start = problem.value_and_gradient(problem.coordinates.zeros())[0]
    result = descended(
        problem, max_iter=60, schedule="cosine", mini_batch_fraction=0.1, **WAYS[way]
    )
    # The noise of the gradients goes with the rate, and with it all but a share of the first gap.
    assert 0 <= result.state.loss - best <= 2e-3 * (at_start - best)


# --- asynchronous updates -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
def test_one_group_alone_is_never_stale():
    settings = {"step_size": 0.3, "momentum": 0.5, "max_iter": 3, "schedule": "inverse"}
    found, expected = (
        descended(objective(parts=1), updates=updates, **settings).state.v
        for updates in ("asynchronous", "synchronous")
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
@pytest.mark.parametrize(("parts", "mean"), [(1, 0.0), (3, 1.0)])
def test_in_step_a_share_is_as_stale_as_the_shares_before_it(parts, mean):
    settings: dict[str, Any] = {"updates": "asynchronous", "staleness": 0, "max_iter": 1}
    settings |= {"mini_batch_fraction": 0.5}  # a draw without rows is no step
    assert descended(objective(parts=parts), **settings).state.mean_staleness == mean


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
def test_no_group_gets_further_ahead_of_a_slow_one_than_the_bound(staleness, monkeypatch):
    sends: list[tuple[int, int]] = []
    done, ahead = [0, 0, 0], []
    originals = GradientFlights.send, GradientFlights.receive

    def send(self, group, v, draw):
        sends.append((group, draw.index))
        ahead.append(draw.index - min(done))
        originals[0](self, group, v, draw)

    def receive(self):
        group, gradient = originals[1](self)
        done[group] += 1
        return group, gradient

    monkeypatch.setattr(GradientFlights, "send", send)
    monkeypatch.setattr(GradientFlights, "receive", receive)
    problem = objective(parts=3)
    problem.blocks.durations = [1.0, 7.0, 1.5]
    settings: dict[str, Any] = {
        "updates": "asynchronous", "staleness": staleness, "max_iter": 1, "mini_batch_fraction": 0.1
    }  # fmt: skip
    first = descended(problem, **settings).state.v
    assert sorted(sends) == [(group, index) for group in range(3) for index in range(10)]
    assert max(ahead) == staleness
    np.testing.assert_array_equal(descended(problem, **settings).state.v, first)


def test_asynchronous_updates_are_refused_where_they_would_not_be_compressed():
    settings = sgd.SETTINGS(compression="qsgd", updates="local")
    with pytest.raises(ValueError, match="'compression': expected 'none' with asynchronous"):
        settings.change(updates="asynchronous")


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
def test_groups_of_other_weights_and_speeds_bias_nothing():
    problem = objective(parts=4)
    problem.blocks.durations = [1.0, 4.0, 0.3, 2.0]
    best = optimum(problem).loss
    at_start = problem.value_and_gradient(problem.coordinates.zeros())[0]
    result = descended(
        problem, updates="asynchronous", staleness=5, step_size=0.5, mini_batch_fraction=0.1,
        max_iter=60, schedule="cosine",
    )  # fmt: skip
    assert 0 <= result.state.loss - best <= 2e-3 * (at_start - best)


# --- compression --------------------------------------------------------------------------------

COMPRESSED: dict[str, dict[str, Any]] = {
    "float16": {"compression": "float16"},
    "qsgd": {"compression": "qsgd"},
    "top-k": {"compression": "top-k", "share": 0.2},
    "powersgd": {"compression": "powersgd", "rank": 1},
}


@pytest.mark.parametrize("updates", ["synchronous", "local"])
@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
def test_a_compressed_run_ends_where_the_other_does(name, updates):
    problem = objective(*LOSSES["multinomial"])
    best = optimum(problem).loss
    at_start = problem.value_and_gradient(problem.coordinates.zeros())[0]
    result = descended(
        problem, max_iter=60, schedule="cosine", mini_batch_fraction=0.1, step_size=0.2,
        updates=updates, local_steps=0 if updates == "synchronous" else 2, **COMPRESSED[name],
    )  # fmt: skip
    assert 0 <= result.state.loss - best <= 2e-3 * (at_start - best)


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
def test_without_error_feedback_top_k_does_not_come_near():
    problem = objective(*LOSSES["multinomial"])
    best = optimum(problem).loss
    at_start = problem.value_and_gradient(problem.coordinates.zeros())[0]
    gaps = []
    for feedback in (1, 0):
        result = descended(
            problem, max_iter=60, schedule="cosine", mini_batch_fraction=0.1, step_size=0.2,
            compression="top-k", share=0.05, feedback=feedback,
        )  # fmt: skip
        gaps.append((result.state.loss - best) / (at_start - best))
    assert gaps[0] < 2e-3
    assert gaps[1] > 10 * gaps[0]


def test_uncompressed_states_change_nothing_but_where_things_are():
    """A rule that remembers, where only one round is run: from the same state the same moves."""
    problem = objective(parts=4)
    stochastic = Stochastic.of(problem)
    v, draw = np.full(D + 1, 0.1), Draw(0, 0, 1, 5)
    wire = Wire(Uncompressed(), Uncompressed())
    plain = sgd.SETTINGS(updates="local", step_size=0.1)
    steps = sgd.Steps(plain.rule, plain.rates, 0.05)
    for one, other in (
        (stochastic.gradient(v, draw), stochastic.gradient(v, draw, wire, None)),
        (stochastic.moves(v, draw, steps), stochastic.moves(v, draw, steps, wire, None)),
    ):
        assert one[0] is not None
        assert other[0] is not None
        np.testing.assert_allclose(one[0], other[0], rtol=1e-12)
        assert one[1] is None
        np.testing.assert_array_equal(other[1].there, v)
    # The next round sends a difference, and partitions have the parameters up to rounding.
    _, link = stochastic.gradient(v + 0.3, draw, wire, other[1])
    np.testing.assert_allclose(link.there, v + 0.3, rtol=1e-12)
    np.testing.assert_allclose(link.kept.states[2][0], link.there, rtol=1e-12)


@pytest.mark.parametrize("updates", ["synchronous", "local"])
@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
def test_a_lost_state_takes_the_run_back_to_its_anchor_and_the_bits_are_the_same(
    updates, monkeypatch, caplog
):
    settings = {
        "updates": updates, "compression": "top-k", "share": 0.3, "momentum": 0.5,
        "step_size": 0.1, "max_iter": 5, "schedule": "constant", "mini_batch_fraction": 0.5,
    }  # fmt: skip
    monkeypatch.setattr(sgd, "ANCHOR", 2)
    expected = [record.loss for record in descended(objective(), **settings).history]
    problem = objective()
    calls = []
    original = problem.blocks.update

    def update(*arguments):
        calls.append(1)
        if len(calls) == {"synchronous": 8, "local": 4}[updates]:  # in the fourth pass
            raise StateLost("the states of partitions [1] are lost")
        return original(*arguments)

    monkeypatch.setattr(problem.blocks, "update", update)
    found = [record.loss for record in descended(problem, **settings).history]
    assert "partitions [1] are lost: back to pass 2" in caplog.text
    # Passes 0 to 3, then the third once more in place of the fourth.
    assert found == expected[:4] + expected[3:5]


# --- steering and stopping ----------------------------------------------------------------------


def test_a_pass_has_its_rounds_and_one_for_the_objective():
    problem = objective(parts=2)
    local: dict[str, Any] = {"mini_batch_fraction": 0.1, "updates": "local"}
    for settings, counts, iterations in (
        ({"mini_batch_fraction": 0.1}, {"sampled_gradient": 20, "value": 3}, [0, 1, 2]),
        ({"mini_batch_fraction": 0.3}, {"sampled_gradient": 8, "value": 3}, [0, 1, 2]),
        (local, {"moved": 2, "value": 3}, [0, 1, 2]),
        ({**local, "local_steps": 4}, {"moved": 6, "value": 3}, [0, 1, 2]),
        ({**local, "local_steps": 20}, {"moved": 1, "value": 2}, [0, 2]),
        # No more passes than are left.
        ({**local, "local_steps": 100}, {"moved": 1, "value": 2}, [0, 2]),
    ):
        problem.blocks.rounds.clear()
        with pytest.warns(match="not converged in maxIter = 2"):
            result = descended(problem, max_iter=2, step_size=0.01, **settings)
        assert dict(problem.blocks.rounds) == counts
        assert [record.iteration for record in result.history] == iterations
        assert result.state.epoch == 2


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_several_passes_in_a_round_of_one_partition_are_the_passes_one_by_one(rule):
    settings: dict[str, Any] = {
        "updates": "local", "mini_batch_fraction": 0.1, "step_size": 0.1, "max_iter": 5,
        "schedule": "cosine", "rule_name": rule, "momentum": 0.5 if rule == "sgd" else 0.0,
    }  # fmt: skip
    one_by_one = descended(objective(parts=1), **settings)
    together = descended(objective(parts=1), local_steps=20, **settings)
    np.testing.assert_allclose(together.state.v, one_by_one.state.v, rtol=1e-9)
    assert [record.iteration for record in together.history] == [0, 2, 4, 5]
    assert together.state.step_size == pytest.approx(one_by_one.state.step_size)


@pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")
def test_a_restored_run_draws_the_same_rows_again_and_changes_apply_between_passes():
    seen = []

    def steer(state, record):
        seen.append(state.v)
        match record.iteration:
            case 1:
                return Checkpoint("one")
            case 2:
                return Restore("one")
            case 3:
                return Change(reg_param=2.0)

    settings: dict[str, Any] = {
        "step_size": 0.2, "momentum": 0.5, "schedule": "constant", "max_iter": 4
    }  # fmt: skip
    result = descended(objective(), [steer], **settings)
    np.testing.assert_array_equal(seen[2], seen[3])
    assert not np.array_equal(seen[1], seen[2])
    # A change of the penalty keeps the place in the sequence of samples, and forgets momentum.
    plain = Stochastic.of(objective())
    harder = plain.regularized(2.0)
    chosen = sgd.SETTINGS(reg_param=2.0, **settings)
    at_change = sgd.step(plain, sgd.start(plain, seen[0], chosen), chosen)
    at_change = sgd.step(plain, at_change, chosen)
    np.testing.assert_array_equal(at_change.v, seen[3])
    expected = sgd.step(harder, sgd.again(harder, at_change, chosen), chosen)
    np.testing.assert_array_equal(result.state.v, expected.v)
    assert result.state.epoch == 3
    assert result.state.loss == pytest.approx(harder.value(result.state.v))


def test_a_rate_that_is_too_large_is_an_error_that_names_it():
    for way in ("synchronous", "local"):
        with pytest.raises(DivergenceError, match="in round 1 with step size 10000:"):
            descended(objective(SquaredError()), step_size=1e4, schedule="constant", updates=way)


def test_a_run_stops_once_five_passes_brought_nothing_and_not_before_a_schedule_ends():
    result = descended(
        objective(), step_size=0.5, schedule="inverse", decay=1.0, tol=1e-3, max_iter=200
    )
    losses = [record.loss for record in result.history]
    assert (result.converged, result.reason) == (True, "loss")
    assert 6 <= result.n_iter < 60
    assert min(losses[:-5]) - min(losses[-5:]) <= 1e-3 * losses[0]
    assert min(losses[:-6]) - min(losses[-6:-1]) > 1e-3 * losses[0]
    result = descended(objective(), step_size=0.5, schedule="cosine", tol=1e-3, max_iter=30)
    assert (result.n_iter, result.reason) == (30, "loss")
