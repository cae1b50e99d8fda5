import numpy as np
import pytest

from arrays import Arrays
from mllib_ext.classification import LinearSVC
from mllib_ext.linear import OWL_QN_PARAMETERS, auto_solver, centred, penalties


def test_an_l1_penalty_on_very_many_parameters_goes_to_owl_qn():
    data = Arrays.of(np.ones((2, 1)))
    assert auto_solver(data, OWL_QN_PARAMETERS, l1=True) == "l-bfgs"
    assert auto_solver(data, OWL_QN_PARAMETERS + 1, l1=True) == "owl-qn"
    assert auto_solver(data, OWL_QN_PARAMETERS + 1) == "l-bfgs"


@pytest.mark.parametrize("ridge_factor", [1.0, 0.01])
def test_a_penalty_on_coefficients_as_they_are_counts_in_the_scale_of_parameters(ridge_factor):
    mean, deviation = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1e-4, 1.0, 0.0, 30.0])
    svc = LinearSVC(regParam=0.04, standardization=False)
    seen = centred(svc, mean, deviation, ridge_factor=ridge_factor)
    curvature = deviation**2 + 0.04 * ridge_factor  # of squares and the penalty, by coefficients
    np.testing.assert_allclose(seen.scale**2, np.where(deviation > 0, curvature, 0.0))
    # What is penalised are still the coefficients as they are.
    coef = np.array([3.0, -2.0, 0.0, 0.5])
    smooth, _ = penalties(svc, seen, ridge_factor)
    value = 0.5 * float(smooth.scale @ (seen.scale * coef) ** 2)
    assert value == pytest.approx(0.5 * ridge_factor * float(coef @ coef))
    whole = centred(svc.setStandardization(True), mean, deviation, ridge_factor=ridge_factor)
    np.testing.assert_array_equal(whole.scale, deviation)
