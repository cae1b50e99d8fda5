import numpy as np

from arrays import Arrays
from mllib_ext.linear import OWL_QN_PARAMETERS, auto_solver


def test_an_l1_penalty_on_very_many_parameters_goes_to_owl_qn():
    data = Arrays.of(np.ones((2, 1)))
    assert auto_solver(data, OWL_QN_PARAMETERS, l1=True) == "l-bfgs"
    assert auto_solver(data, OWL_QN_PARAMETERS + 1, l1=True) == "owl-qn"
    assert auto_solver(data, OWL_QN_PARAMETERS + 1) == "l-bfgs"
