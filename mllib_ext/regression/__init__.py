"""Regression: the interface of ``pyspark.ml.regression``."""

from mllib_ext.regression.linear_regression import LinearRegression, LinearRegressionModel
from mllib_ext.regression.linear_svr import LinearSVR, LinearSVRModel
from mllib_ext.regression.multilayer_perceptron_regressor import (
    MultilayerPerceptronRegressionModel,
    MultilayerPerceptronRegressor,
)

__all__ = [
    "LinearRegression",
    "LinearRegressionModel",
    "LinearSVR",
    "LinearSVRModel",
    "MultilayerPerceptronRegressionModel",
    "MultilayerPerceptronRegressor",
]

# A saved model records this path: files may move below it without breaking what users saved.
for _name in __all__:
    globals()[_name].__module__ = __name__
