"""Classification: the interface of ``pyspark.ml.classification``."""

from mllib_ext.classification.calibrated_classifier import (
    CalibratedClassifier,
    CalibratedClassifierModel,
)
from mllib_ext.classification.kernel_svc import KernelSVC, KernelSVCModel
from mllib_ext.classification.linear_svc import LinearSVC, LinearSVCModel
from mllib_ext.classification.logistic_regression import (
    LogisticRegression,
    LogisticRegressionModel,
)
from mllib_ext.classification.multilayer_perceptron_classifier import (
    MultilayerPerceptronClassificationModel,
    MultilayerPerceptronClassifier,
)

__all__ = [
    "CalibratedClassifier",
    "CalibratedClassifierModel",
    "KernelSVC",
    "KernelSVCModel",
    "LinearSVC",
    "LinearSVCModel",
    "LogisticRegression",
    "LogisticRegressionModel",
    "MultilayerPerceptronClassificationModel",
    "MultilayerPerceptronClassifier",
]

# A saved model records this path: files may move below it without breaking what users saved.
for _name in __all__:
    globals()[_name].__module__ = __name__
