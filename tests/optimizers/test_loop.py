from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any

import pytest

from mllib_ext.optimizers.loop import (
    Change,
    Checkpoint,
    ConvergenceWarning,
    DivergenceError,
    Restore,
    Settings,
    State,
    Stop,
    gradient_is_small,
    iterate,
    loss_is_flat,
    setting,
)


@dataclass(frozen=True)
class Rates(Settings):
    step_size: float = setting(0.1, low=0, low_open=True)
    mode: str = setting("plain", choices=("plain", "fancy"))
    depth: int = setting(3, low=1, high=9, tunable=False)


@dataclass(frozen=True)
class At(State):
    x: float = 0.0


def at(x, step_size=0.0):
    """The parabola ``1 + x**2 / 2`` at x: its loss never is 0."""
    return At(loss=1 + x * x / 2, gradient_norm=abs(x), step_size=step_size, x=x)


def descend(state, settings):
    return at(state.x - settings.step_size * state.x, settings.step_size)


def run(*callbacks, step=descend, start=10.0, **settings):
    return iterate(step, at(start), Rates(**{"tol": 0.0, **settings}), callbacks)


def on(iteration, *answer):
    """A callback that gives an answer after one iteration."""
    return lambda state, record: answer if record.iteration == iteration else None


END = on(12, Stop("end of the test"))


# --- stopping rules -----------------------------------------------------------------------------


def test_the_loop_stops_where_the_gradient_is_small():
    result = run(step_size=0.5, tol=1e-3, max_iter=1000)
    assert (result.converged, result.reason) == (True, "gradient")
    # x halves every time: 10 / 2**14 = 0.0006 is the first below tol * loss = 0.001
    assert result.n_iter == 14
    assert result.state.gradient_norm <= 1e-3 < result.history[-2].gradient_norm


def test_the_loop_stops_where_the_loss_is_flat():
    losses = [100.0, 50.0] + [50.0 - 1e-4 * i for i in range(30)]

    def step(state, settings):
        return At(loss=losses[state.x + 1], gradient_norm=1.0, x=state.x + 1)

    start = At(loss=losses[0], gradient_norm=1.0, x=0)
    # Ten losses in a row differ by 9e-4 at most, 1e-5 of the first loss: the first such ten end at
    # iteration 10.
    result = iterate(step, start, Settings(tol=1e-5))
    assert (result.converged, result.reason, result.n_iter) == (True, "loss", 10)


def test_a_rising_loss_is_not_taken_for_a_flat_one():
    state = At(loss=500.0, gradient_norm=1.0)
    assert not loss_is_flat([1.0, 500.0], state, Settings(tol=1e-3))
    assert not loss_is_flat([1.0, 500.0, 500.0], state, Settings(tol=1e-3))
    # A step of 2.5 sends x to -1.5 x: it must end in an error, not in a "converged" model.
    with pytest.raises(DivergenceError):
        run(step_size=2.5, tol=1e-6)


def test_one_loss_alone_is_not_flat():
    assert not loss_is_flat([1.0], At(loss=1.0), Settings(tol=1.0))


def test_the_gradient_is_measured_against_the_loss_and_a_loss_of_0_can_be_reached():
    tol = Settings(tol=1e-3)
    assert gradient_is_small([], At(loss=-100.0, gradient_norm=0.09), tol)
    assert not gradient_is_small([], At(loss=-100.0, gradient_norm=0.11), tol)
    assert gradient_is_small([], At(loss=0.0, gradient_norm=1e-11), tol)
    assert not gradient_is_small([], At(loss=0.0, gradient_norm=2e-11), tol)
    assert not gradient_is_small([], At(loss=1.0, gradient_norm=math.nan), tol)


def test_the_loop_stops_where_the_algorithm_finds_no_better_point():
    def step(state, settings):
        return dataclasses.replace(state, stalled=True)

    result = iterate(step, at(10.0), Settings(tol=0.0), stopping={})
    assert (result.converged, result.reason, result.n_iter) == (True, "precision", 1)


def test_the_loop_knows_the_rules_it_is_given_alone():
    rules = {"far": lambda losses, state, settings: state.x < 2.0}
    result = iterate(descend, at(10.0), Rates(step_size=0.5, tol=1e9), stopping=rules)
    assert (result.reason, result.n_iter) == ("far", 3)


def test_a_start_that_is_the_optimum_takes_no_step():
    result = run(start=0.0, step=None)
    assert (result.converged, result.reason, result.n_iter) == (True, "gradient", 0)
    assert len(result.history) == 1


def test_the_last_iteration_without_convergence_is_a_warning_that_names_maxIter():
    with pytest.warns(ConvergenceWarning, match=r"maxIter = 3 .*loss is 27\.57.*gradient 7\.29"):
        result = run(max_iter=3)
    assert (result.converged, result.reason, result.n_iter) == (False, "max_iter", 3)
    assert result.state.x == pytest.approx(7.29, rel=1e-14)


def test_convergence_in_the_last_iteration_is_not_a_warning():
    result = run(step_size=0.5, tol=1e-3, max_iter=14)
    assert result.converged


def test_no_iterations_give_the_start_without_a_warning():
    result = run(max_iter=0, step=None)
    assert (result.converged, result.reason, result.n_iter) == (False, "max_iter", 0)
    assert result.state == at(10.0)
    assert [record.iteration for record in result.history] == [0]


# --- history ------------------------------------------------------------------------------------


def test_the_history_holds_every_state_from_the_start_on():
    result = run(END)
    assert [record.iteration for record in result.history] == list(range(13))
    for i, record in enumerate(result.history):
        state = at(10 * 0.9**i)
        assert record.loss == pytest.approx(state.loss, rel=1e-13)
        assert record.gradient_norm == pytest.approx(state.gradient_norm, rel=1e-13)
        assert record.step_size == (0.1 if i else 0.0)
        assert record.seconds >= 0
        assert record.settings == Rates(tol=0.0)
    assert result.history[-1].loss == result.state.loss


def test_callbacks_see_each_state_with_its_record_in_order():
    seen = []

    def watch(state, record):
        seen.append((record.iteration, state.loss, record.loss))

    result = run(watch, END)
    assert seen == [(r.iteration, r.loss, r.loss) for r in result.history]


def test_each_record_carries_the_rounds_run_since_the_one_before():
    rounds = ["start"]

    def step(state, settings):
        rounds.extend(["gradient", "along"])
        return descend(state, settings)

    def drain():
        taken = tuple(rounds)
        rounds.clear()
        return taken

    result = iterate(step, at(10.0), Rates(tol=0.0), (END,), drain=drain)
    assert result.history[0].rounds == ("start",)
    assert all(record.rounds == ("gradient", "along") for record in result.history[1:])


# --- actions ------------------------------------------------------------------------------------


def test_a_callback_changes_the_step_at_round_5_and_stops_at_round_9_and_the_record_says_so():
    result = run(on(5, Change(step_size=0.01)), on(9, Stop("enough")))
    assert (result.converged, result.reason, result.n_iter) == (False, "enough", 9)
    assert [record.step_size for record in result.history] == [0.0] + [0.1] * 5 + [0.01] * 4
    assert [record.settings.step_size for record in result.history] == [0.1] * 6 + [0.01] * 4
    said = {record.iteration: record.actions for record in result.history if record.actions}
    assert said == {5: ("change step_size=0.01",), 9: ("stop: enough",)}
    assert result.state.x == pytest.approx(10 * 0.9**5 * 0.99**4, rel=1e-14)


def test_stop_at_the_start_takes_no_step():
    result = run(on(0, Stop()), step=None)
    assert (result.n_iter, result.reason) == (0, "stopped by a callback")


def test_one_callback_may_answer_with_several_actions_and_several_callbacks_may_act():
    result = run(
        on(2, Change(step_size=0.2), Checkpoint("two")),
        lambda state, record: [Change(mode="fancy")] if record.iteration == 2 else [],
        lambda state, record: Stop() if record.iteration == 4 else None,
    )
    assert result.history[2].actions == (
        "change step_size=0.2", "checkpoint 'two'", "change mode='fancy'",
    )  # fmt: skip
    assert result.history[3].settings == Rates(tol=0.0, step_size=0.2, mode="fancy")
    assert result.n_iter == 4


def test_an_iterator_of_actions_is_an_answer():
    result = run(lambda state, record: (Stop(f"at {i}") for i in range(1) if record.iteration == 2))
    assert (result.n_iter, result.reason) == (2, "at 0")


def test_restore_goes_back_to_the_checkpoint_and_counts_on():
    result = run(on(2, Checkpoint("a")), on(5, Restore("a")), on(7, Stop()))
    xs = [10 * 0.9**i for i in (0, 1, 2, 3, 4, 5, 3, 4)]
    assert [r.gradient_norm for r in result.history] == pytest.approx(xs, rel=1e-13)
    assert [r.iteration for r in result.history] == list(range(8))


def test_a_restored_state_hears_what_changed_since_its_checkpoint():
    heard = []

    def changed(state, old, new):
        heard.append((state.x, old.step_size, new.step_size))
        return state

    callbacks = (
        on(2, Checkpoint("a")), on(3, Change(step_size=0.2)), on(5, Restore("a")), on(6, Stop()),
    )  # fmt: skip
    iterate(descend, at(10.0), Rates(tol=0.0), callbacks, changed=changed)
    assert [told[1:] for told in heard] == [(0.1, 0.2)] * 2
    assert [told[0] for told in heard] == pytest.approx([10 * 0.9**3, 10 * 0.9**2], rel=1e-13)


def test_a_later_checkpoint_of_the_same_name_replaces_the_first():
    result = run(on(1, Checkpoint()), on(3, Checkpoint()), on(5, Restore()), on(6, Stop()))
    assert result.state.x == pytest.approx(10 * 0.9**4, rel=1e-13)


def test_restore_of_a_checkpoint_that_is_not_there_names_those_that_are():
    with pytest.raises(ValueError, match=r"restore 'b': expected one of .*\['a'\].*found none"):
        run(on(1, Checkpoint("a")), on(2, Restore("b")))


def test_a_change_takes_back_the_convergence_that_it_was_an_answer_to():
    def sharpen(state, record):
        return Change(tol=1e-6) if 1e-6 < state.gradient_norm <= 1e-3 else None

    rules: dict[str, Any] = {"gradient": gradient_is_small}
    settings = Rates(step_size=0.5, tol=1e-3, max_iter=1000)
    result = iterate(descend, at(10.0), settings, (sharpen,), stopping=rules)
    assert (result.converged, result.reason) == (True, "gradient")
    assert result.history[14].actions == ("change tol=1e-06",)
    assert result.state.gradient_norm <= 1e-6


def test_a_change_of_max_iter_lengthens_or_shortens_the_run():
    longer = run(on(3, Change(max_iter=6)), on(6, Stop("six")), max_iter=3)
    assert (longer.n_iter, longer.reason) == (6, "six")
    with pytest.warns(ConvergenceWarning, match="maxIter = 2 "):
        assert run(on(4, Change(max_iter=2))).n_iter == 4


def test_the_state_hears_of_a_change_and_losses_before_it_do_not_count():
    heard = []

    def changed(state, old, new):
        heard.append((old.step_size, new.step_size))
        return dataclasses.replace(state, loss=1e6)  # another objective: no divergence

    callbacks = (on(3, Change(step_size=0.2)), on(5, Stop()))
    start = At(loss=1.5, gradient_norm=1.0, x=1.0)

    def step(state, settings):
        return dataclasses.replace(state, loss=state.loss * 0.9)

    result = iterate(step, start, Rates(tol=0.0), callbacks, changed=changed)
    assert heard == [(0.1, 0.2)]
    assert [record.loss for record in result.history[4:]] == pytest.approx([9e5, 8.1e5])


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_sise": 0.1}, r"setting 'step_sise': expected one of \['max_iter', .*\], "
                             r"found 'step_sise' \(did you mean 'step_size'\?\)"),
        ({"depth": 4}, "setting 'depth': expected one of"),  # declared, but not tunable
        ({"step_size": 0.0}, r"setting 'step_size': expected a number in \(0, inf\], found 0.0"),
        ({"step_size": -1}, "'step_size'.*found -1"),
        ({"step_size": math.inf}, "'step_size'.*found inf"),
        ({"step_size": math.nan}, "'step_size'.*found nan"),
        ({"step_size": "0.1"}, "'step_size'.*found '0.1'"),
        ({"step_size": None}, "'step_size'.*found None"),
        ({"step_size": True}, "'step_size'.*found True"),
        ({"tol": -1e-9}, r"'tol': expected a number in \[0, inf\]"),
        ({"max_iter": 2.5}, "'max_iter': expected an integer"),
        ({"max_iter": -1}, "'max_iter'.*found -1"),
        ({"mode": "fast"}, r"'mode': expected one of \['plain', 'fancy'\], found 'fast'"),
        ({"mode": 3}, "'mode'.*found 3"),
    ],
)  # fmt: skip
def test_a_change_to_what_is_not_allowed_never_reaches_the_algorithm(change, message):
    iterations = []

    def step(state, settings):
        iterations.append(settings)
        return descend(state, settings)

    with pytest.raises(ValueError, match=message):
        run(on(2, Change(**change)), step=step)
    assert iterations == [Rates(tol=0.0)] * 2


def test_settings_are_checked_when_they_are_made_and_keep_plain_types():
    with pytest.raises(ValueError, match=r"setting 'depth': expected an integer in \[1, 9\]"):
        Rates(depth=10)
    given: dict[str, Any] = {"max_iter": 7.0, "tol": 1}
    settings: Any = Rates(**given)
    assert (settings.max_iter, type(settings.max_iter), type(settings.tol)) == (7, int, float)
    assert set(Rates.tunables()) == {"max_iter", "tol", "step_size", "mode"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.tol = 2.0


@pytest.mark.parametrize("rubbish", [3, "stop", True, Stop, [Stop(), "stop"], {"step_size": 1}])
def test_a_callback_that_answers_with_rubbish_is_a_type_error_that_shows_it(rubbish):
    with pytest.raises(TypeError, match="expected Stop, Change, Checkpoint or Restore, found"):
        run(lambda state, record: rubbish)


def test_an_error_in_a_callback_ends_the_run():
    def broken(state, record):
        raise ZeroDivisionError("my own")

    with pytest.raises(ZeroDivisionError, match="my own"):
        run(broken)


# --- divergence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1.1e3 * 51])
def test_divergence_is_an_error_that_names_the_step_size_and_the_round(loss):
    def step(state, settings):
        following = descend(state, settings)
        late = following.x < 10 * 0.9**3.5
        return dataclasses.replace(following, loss=loss) if late else following

    with pytest.raises(DivergenceError, match=r"in round 4 with step size 0\.1: .* from 51 to "):
        run(step=step)


def test_a_rise_below_a_thousandfold_is_not_divergence():
    def step(state, settings):
        return dataclasses.replace(state, loss=state.loss * 990 if state.loss < 1e3 else 51.0)

    assert run(END, step=step).n_iter == 12


def test_a_start_without_a_finite_loss_is_divergence_in_round_0():
    with pytest.raises(DivergenceError, match="round 0"):
        iterate(descend, At(loss=math.nan), Rates())


def test_no_callback_is_told_of_a_diverged_state():
    told = []
    with pytest.raises(DivergenceError):
        run(lambda state, record: told.append(record.loss), step_size=1e9)
    assert told == [51.0]


def test_a_run_that_ends_well_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(step_size=0.5, tol=1e-3)
