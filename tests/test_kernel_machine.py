"""Machines of small problems, against scikit-learn's SVC."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.datasets import load_iris
from sklearn.svm import SVC

from mllib_ext.kernel_machine import Machine, Rows, votes
from mllib_ext.kernels import KERNELS, Kernel

IRIS = load_iris()
X = IRIS.data[:, :2] - 4.0  # sepals alone: classes that overlap
Y = IRIS.target
TOL = 1e-10


def rows(X: Any, y: np.ndarray, bound: Any = 1.0) -> Rows:
    return Rows(np.arange(len(y)), X, y, np.full(len(y), bound, dtype=float))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("kind", [np.asarray, sp.csr_array])
def test_a_machine_has_scikit_learns_coefficients_and_decision_values(name, k, kind):
    kept = (k + Y) > 2  # of two classes those that overlap
    A, y = kind(X[kept]), Y[kept] - (3 - k)
    kernel = Kernel(name, 0.1, 2, 0.5)
    svc = SVC(kernel=name, gamma=0.1, degree=2, coef0=0.5, tol=TOL).fit(A, y)
    machine = Machine.solved(kernel, rows(A, y), k, TOL)
    assert len(machine) == len(svc.support_)
    # libsvm's single precision; the rbf rows were centred before they were solved.
    dual = svc.dual_coef_ if kind is np.asarray else svc.dual_coef_.toarray()
    np.testing.assert_allclose(machine.dual_coef, dual, atol=1e-4)
    np.testing.assert_allclose(machine.intercept, svc.intercept_, atol=1e-5)
    values = machine.decisions(kernel, A)
    found = values[:, 0] if k == 2 else votes(values, k)
    np.testing.assert_allclose(found, svc.decision_function(A), atol=1e-5)


def test_votes_are_ordered_within_thirds_by_decision_values():
    values = np.array([[2.0, -1.0, 0.5], [-1.0, -1.0, -1.0], [9.0, 9.0, 9.0]])
    found = votes(values, 3)
    assert np.round(found).tolist() == [[1, 1, 1], [2, 1, 0], [0, 1, 2]]
    assert (np.abs(found - np.round(found)) < 1 / 3).all()


def test_violations_are_those_of_the_worst_pair_of_a_row():
    kernel = Kernel("rbf", 0.5)
    part = np.arange(0, 150, 3)
    machine = Machine.solved(kernel, rows(X[part], Y[part]), 3, TOL)
    values = machine.decisions(kernel, X)  # (0, 1), (0, 2), (1, 2)
    margins = {0: -values[:, [0, 1]], 1: values[:, [0, 2]] * [1, -1], 2: values[:, [1, 2]]}
    expected = [1 - margins[y][i].min() for i, y in enumerate(Y)]
    found = machine.violations(kernel, X, Y)
    # They forgive what single precision leaves open, 6e-8 of some 30 coefficients.
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found <= expected).all()
    assert (found > 0.1).any()


def test_the_dual_objective_is_that_of_its_formula():
    kernel = Kernel("rbf", 0.5)
    machine = Machine.solved(kernel, rows(X, Y), 3, TOL)
    expected = 0.0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        y = machine.rows.y
        alpha = np.where(y == i, machine.alpha[:, j], np.where(y == j, machine.alpha[:, i], 0.0))
        signed = np.where(y == j, alpha, -alpha)
        K = kernel(machine.rows.X, machine.rows.X)
        assert signed.sum() == pytest.approx(0.0, abs=1e-9)
        expected += alpha.sum() - 0.5 * signed @ K @ signed
    assert machine.dual_objective(kernel) == pytest.approx(expected, rel=1e-12)


def test_decision_values_of_a_row_have_the_same_bits_whatever_stands_beside_it():
    kernel = Kernel("rbf", 0.5)
    machine = Machine.solved(kernel, rows(X, Y), 3, TOL)
    whole = machine.decisions(kernel, X)
    for start, stop in ((0, 1), (3, 80), (149, 150)):
        np.testing.assert_array_equal(machine.decisions(kernel, X[start:stop]), whole[start:stop])
