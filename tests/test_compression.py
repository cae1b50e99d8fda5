"""Codecs by themselves: what they keep, their bytes, and what error feedback makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from mllib_ext.compression import (
    BUCKET,
    COMPRESSIONS,
    LEVELS,
    QSGD,
    ErrorFeedback,
    Float16,
    PowerSGD,
    TopK,
    Uncompressed,
    codec,
)

VECTORS = {
    "normal": np.random.default_rng(1).standard_normal(1300),
    "far apart": np.random.default_rng(2).standard_normal(700) * np.logspace(-9, 5, 700),
    "one": np.array([-3e-300]),
    "zeros": np.zeros(600),
}


def sent(method, x, memory=None, seed=0):
    memory = method.start(len(x)) if memory is None else memory
    message, memory = method.encode(x, memory, np.random.default_rng(seed))
    return method.decode(message, len(x)), memory, len(message)


@pytest.mark.parametrize("name", VECTORS)
def test_nothing_is_lost_uncompressed_and_half_precision_rounds(name):
    x = VECTORS[name]
    found, _, n_bytes = sent(Uncompressed(), x)
    np.testing.assert_array_equal(found, x)
    assert n_bytes == 8 * len(x)
    found, _, n_bytes = sent(Float16(), x)
    assert (np.abs(found - x) <= 2.0**-11 * np.abs(x) + 2.0**-25 * np.abs(x).max()).all()
    assert n_bytes == 2 * len(x) + 8


def test_qsgd_is_unbiased_and_an_entrys_variance_is_within_the_bound():
    x = VECTORS["normal"]
    draws = np.array([sent(QSGD(), x, seed=seed)[0] for seed in range(4000)])
    starts = range(0, len(x), BUCKET)
    unit = np.repeat([np.abs(x[i : i + BUCKET]).max() for i in starts], BUCKET)[: len(x)] / LEVELS
    # Between two levels a spread is at most half their distance: six standard errors of that.
    assert (np.abs(draws.mean(axis=0) - x) <= 6 * 0.55 * unit / np.sqrt(len(draws))).all()
    spread = draws.std(axis=0)
    # The bound, but for the error of 4000 draws; it does round.
    assert (spread <= 0.505 * unit).all()
    assert (spread > 0.1 * unit).mean() > 0.9
    assert sent(QSGD(), x)[2] == 1300 + 8 * 3
    for name in ("zeros", "one", "far apart"):
        found = sent(QSGD(), VECTORS[name])[0]
        assert np.isfinite(found).all()
    assert sent(QSGD(), VECTORS["one"])[0] == pytest.approx(VECTORS["one"])


@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
def test_top_k_contracts_as_much_as_promised(share):
    for x in (VECTORS["normal"], VECTORS["far apart"]):
        found, _, n_bytes = sent(TopK(share), x)
        k = round(share * len(x))
        assert np.count_nonzero(found) == k == n_bytes // 8
        # Single precision adds 2**-24 to each entry that is sent.
        assert np.sum((x - found) ** 2) <= (1 - k / len(x) + 2.0**-46) * (x @ x)
        assert np.abs(x[found == 0]).max(initial=0) <= np.abs(found[found != 0]).min() * (1 + 1e-6)
    assert sent(TopK(0.01), np.array([0.0, 2.0, -1.0]))[0].tolist() == [0, 2, 0]


def test_powersgd_is_exact_at_full_rank_and_comes_to_the_best_one_below():
    rng = np.random.default_rng(4)
    M, N = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 20)), rng.standard_normal((9, 12))
    x = np.concatenate([[7.0], M.ravel(), [1.0, 2.0], N.ravel()])
    places = ((1, 30, 20), (603, 9, 12))
    found, _, n_bytes = sent(PowerSGD(2, places), x)
    assert n_bytes == 4 * (3 + 2 * 50 + 2 * 21)
    np.testing.assert_allclose(found[:603], x[:603], atol=1e-5)
    memory = None
    errors = []
    for _ in range(60):
        found, memory, _ = sent(PowerSGD(2, places), x, memory)
        errors.append(np.linalg.norm(found - x))
    assert errors[0] < np.linalg.norm(N)  # a projection
    assert errors[-1] < 0.95 * errors[0]  # the warm start
    best = np.linalg.norm(np.linalg.svd(N)[1][2:])
    assert errors[-1] == pytest.approx(best, rel=1e-3)
    assert not sent(PowerSGD(2, places), np.zeros(len(x)))[0].any()


@pytest.mark.parametrize(
    "inner", [TopK(0.02), PowerSGD(1, ((0, 30, 40),)), Float16(), QSGD()], ids=repr
)
def test_error_feedback_loses_nothing(inner):
    rng, method = np.random.default_rng(6), ErrorFeedback(inner)
    memory, arrived, given = method.start(1300), np.zeros(1300), np.zeros(1300)
    for i in range(40):
        x = rng.standard_normal(1300)
        found, memory, _ = sent(method, x, memory, i)
        arrived, given = arrived + found, given + x
    np.testing.assert_allclose(arrived + memory[0], given, atol=1e-12)


def test_a_constant_gradient_arrives_in_the_mean_with_error_feedback_alone():
    x = np.linspace(0.1, 1.0, 50)
    plain, fed = TopK(0.1), ErrorFeedback(TopK(0.1))
    memory, sums = fed.start(50), [np.zeros(50), np.zeros(50)]
    for i in range(200):
        found, memory, _ = sent(fed, x, memory, i)
        sums[0] += found
        sums[1] += sent(plain, x)[0]
    np.testing.assert_allclose(sums[0] / 200, x, rtol=0.35, atol=0.05)
    assert np.count_nonzero(sums[1]) == 5


def test_momentum_is_gathered_while_an_entry_waits_and_lost_when_it_is_sent():
    method = ErrorFeedback(TopK(0.5), momentum=0.9)
    found, memory, _ = sent(method, np.array([1.0, 2.0]))
    assert found.tolist() == [0, 2]
    waiting, velocity, _ = memory
    assert waiting.tolist() == [1, 0]
    assert velocity.tolist() == [1, 0]
    found, (waiting, velocity, _), _ = sent(method, np.array([0.0, 1.0]), memory)
    # 1 waits, and its momentum goes on: 0.9 more, as it would have moved the driver's parameters.
    assert found == pytest.approx([1.9, 0])
    assert velocity.tolist() == [0, 1]
    assert waiting.tolist() == pytest.approx([0, 1], abs=1e-6)


def test_momentum_may_be_changed_between_messages():
    x = np.array([1.0, 3.0])
    _, memory, _ = sent(ErrorFeedback(TopK(0.5)), x)
    found, memory, _ = sent(ErrorFeedback(TopK(0.5), momentum=0.9), x, memory)
    assert found.tolist() == [0, 3]
    assert memory[1].tolist() == [1, 0]
    found, _, _ = sent(ErrorFeedback(TopK(0.5)), 2 * x, memory)
    assert found.tolist() == [0, 6]


def test_codecs_have_names():
    for name in COMPRESSIONS:
        found = sent(codec(name, 0.5, 2, ((0, 2, 3),)), np.arange(6.0))[0]
        assert np.abs(found - np.arange(6.0)).max() <= 2
    with pytest.raises(ValueError, match=r"expected one of .*'powersgd'.*, found 'zip'"):
        codec("zip", 0.1, 1, ())
