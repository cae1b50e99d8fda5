"""The cascade in memory: exact whatever its nodes hold."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from arrays import Arrays
from mllib_ext import cascade
from mllib_ext.cascade import CascadeSettings, Problem, TooManySupportVectors
from mllib_ext.classes import merge_class_moments
from mllib_ext.kernel_machine import votes
from mllib_ext.kernels import Kernel, scale_gamma
from mllib_ext.optimizers.loop import Change, ConvergenceWarning

CANCER = load_breast_cancer()
DIGITS = load_digits()
DATA = {
    "breast_cancer": (StandardScaler().fit_transform(CANCER.data), CANCER.target),
    "digits": (DIGITS.data, DIGITS.target),
}
ORACLES = {name: SVC(tol=1e-10).fit(*data) for name, data in DATA.items()}
ORDERS = {
    "shuffled": lambda y: np.random.default_rng(0).permutation(len(y)),
    "by class": lambda y: np.argsort(y, kind="stable"),
}


def problem(X: Any, y: np.ndarray, C: float = 1.0, limit: int = 10_000, **more: Any) -> Problem:
    values = X if isinstance(X, np.ndarray) else X.toarray()
    labels = np.unique(y).astype(float)
    kernel = Kernel("rbf", scale_gamma(values.var(), X.shape[1]))
    return Problem(kernel, labels, np.full(len(labels), C), limit, **{"sample": 30, **more})


def fitted(X: Any, y: np.ndarray, nodes: int = 2, w: Any = None, **params: Any) -> Any:
    settings = CascadeSettings(**{"tol": 1e-9, **params})
    return cascade.fit(Arrays.of(X, y, w, parts=nodes), problem(X, y), settings)


def decisions(result: Any, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    asked = problem(X, y)
    values = result.state.machine.decisions(asked.kernel, X)
    return values[:, 0] if len(asked.labels) == 2 else votes(values, len(asked.labels))


def oracle_dual(name: str) -> float:
    """The dual objective of scikit-learn's solution, of all pairs together."""
    (X, y), svc = DATA[name], ORACLES[name]
    K = problem(X, y).kernel(svc.support_vectors_, svc.support_vectors_)
    own = y[svc.support_]
    k, total = len(svc.classes_), 0.0
    for i in range(k):
        for j in range(i + 1, k):
            row = np.where(own == i, j - 1, i) if k > 2 else np.zeros(len(own), int)
            coef = svc.dual_coef_[row, np.arange(len(own))] * np.isin(own, [i, j])
            total += np.abs(coef).sum() - 0.5 * coef @ K @ coef
    return float(total)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("nodes", [1, 2, 5])
@pytest.mark.parametrize("order", ORDERS)
def test_decision_values_and_the_dual_objective_are_scikit_learns(name, nodes, order):
    X, y = DATA[name]
    places = ORDERS[order](y)
    result = fitted(X[places], y[places], nodes)
    assert (result.converged, result.reason) == (True, "kkt")
    # Both solve to 1e-9, by kernels in single precision.
    np.testing.assert_allclose(
        decisions(result, X, y), ORACLES[name].decision_function(X), atol=1e-5
    )
    assert result.state.dual_objective == pytest.approx(oracle_dual(name), rel=1e-6)
    assert result.state.n_support_vectors == len(ORACLES[name].support_)


def test_one_pass_is_not_exact_and_every_pass_raises_the_dual_objective():
    X, y = DATA["breast_cancer"]
    result = fitted(X, y, nodes=5)
    duals = [-record.loss for record in result.history]
    assert (np.diff(duals) > 0).all()
    assert duals[1] < (1 - 1e-4) * duals[-1]
    worst = [record.gradient_norm for record in result.history]
    assert worst[1] > 1e-3
    assert worst[-1] <= 1e-9


def test_few_violators_a_pass_take_more_passes_to_the_same_optimum():
    X, y = DATA["breast_cancer"]
    few = problem(X, y, most_violators=5)
    result = cascade.fit(Arrays.of(X, y, parts=2), few, CascadeSettings(tol=1e-9))
    assert result.n_iter > fitted(X, y).n_iter
    assert result.state.dual_objective == pytest.approx(oracle_dual("breast_cancer"), rel=1e-6)


def test_twice_the_same_rows_are_rows_of_twice_the_bound():
    X, y = DATA["breast_cancer"]
    doubled = cascade.fit(
        Arrays.of(np.vstack([X, X]), np.append(y, y), parts=3),
        problem(X, y, C=0.5),
        CascadeSettings(tol=1e-9),
    )
    found = decisions(doubled, X, y)
    np.testing.assert_allclose(found, ORACLES["breast_cancer"].decision_function(X), atol=1e-5)


def test_rows_of_weight_0_are_as_if_they_were_not_there():
    X, y = DATA["breast_cancer"]
    w = np.ones(len(y))
    w[::3] = 0.0
    part = w > 0
    kernel = problem(X, y).kernel
    expected = SVC(gamma=kernel.gamma, tol=1e-10).fit(X[part], y[part]).decision_function(X)
    np.testing.assert_allclose(decisions(fitted(X, y, 3, w), X, y), expected, atol=1e-5)


def test_sparse_rows_have_the_machine_of_dense_ones():
    X, y = DATA["digits"]
    result = fitted(sp.csr_array(X), y, 2, tol=1e-6)
    np.testing.assert_allclose(
        decisions(result, X, y), ORACLES["digits"].decision_function(X), atol=1e-4
    )


def test_overviews_have_the_variance_of_all_values_of_weighted_rows():
    X, y = DATA["breast_cancer"]
    w = np.arange(len(y)) % 3.0
    X = X + 1e3
    parts = Arrays.of(X, y, w, parts=3)
    labels, by_label, n, _, _, mean, scatter = parts.reduce(cascade.overview, merge_class_moments)
    assert labels.tolist() == [0, 1]
    assert by_label == pytest.approx([w[y == 0].sum(), w[y == 1].sum()])
    variance = scatter.sum() / (n * X.shape[1]) + mean.var()
    assert variance == pytest.approx(X[w > 0].var(), rel=1e-9)


def test_the_sample_has_up_to_so_many_rows_of_each_class():
    X, y = DATA["digits"]
    kept = (y != 3) | (np.cumsum(y == 3) <= 7)
    X, y = X[kept], y[kept]
    places = ORDERS["by class"](y)
    asked = problem(X, y, sample=20)
    stages = (partial(stage, asked) for stage in (cascade.drawn, cascade.sampled))
    *_, rows = Arrays.of(X[places], y[places], parts=4).reduce(*stages)
    assert np.bincount(rows.y).tolist() == [20, 20, 20, 7, 20, 20, 20, 20, 20, 20]
    assert len(np.unique(rows.id)) == len(rows)


def test_more_support_vectors_than_allowed_are_an_error_that_names_a_way_out():
    X, y = DATA["digits"]
    match = "maxSupportVectors: expected up to 200 support vectors, found .* approximation"
    with pytest.raises(TooManySupportVectors, match=match):
        cascade.fit(Arrays.of(X, y, parts=2), problem(X, y, limit=200), CascadeSettings())


def test_support_vectors_that_moved_are_an_error():
    X, y = DATA["breast_cancer"]
    data = Arrays.of(X, y, parts=2)
    asked = problem(X, y)
    machine = cascade.fit(data, asked, CascadeSettings()).state.machine
    first, *others = data.blocks
    for A in (first.X[::-1], sp.csr_array(first.X[::-1])):
        data.blocks = [replace(first, X=A, y=first.y[::-1]), *others]
        if not isinstance(A, np.ndarray):
            moved = replace(machine, rows=replace(machine.rows, X=sp.csr_array(machine.rows.X)))
            data.blocks = data.blocks[:1]
        else:
            moved = machine
        with pytest.raises(RuntimeError, match="not where they were found"):
            cascade.evaluated(data, asked, moved, 1e-3)


def test_passes_end_at_max_iter_with_a_warning_and_the_state_tells_of_violators():
    X, y = DATA["breast_cancer"]
    with pytest.warns(ConvergenceWarning, match="maxIter = 1"):
        result = fitted(X, y, nodes=5, max_iter=1)
    assert not result.converged
    assert result.state.n_violators > 0
    assert result.state.worst_violation > 1e-3


def test_the_tolerance_of_a_run_is_not_to_be_changed():
    X, y = DATA["breast_cancer"]
    with pytest.raises(ValueError, match="setting 'tol'"):
        cascade.fit(Arrays.of(X, y), problem(X, y), CascadeSettings(), [lambda *_: Change(tol=1.0)])


@pytest.mark.parametrize("violators", [5, 5_000])
def test_unions_that_are_solved_or_thinned_out_on_the_way_come_to_the_same_optimum(violators):
    X, y = DATA["breast_cancer"]
    places = ORDERS["by class"](y)
    asked = problem(X, y, most_waiting=20, most_violators=violators)
    data = Arrays.of(X[places], y[places], parts=4)
    result = cascade.fit(data, asked, CascadeSettings(tol=1e-6))
    assert result.converged
    # Violations of 1e-6 are 1e-6 of an objective of about 50 at most.
    assert result.state.dual_objective == pytest.approx(oracle_dual("breast_cancer"), rel=1e-6)
