"""Columns made for training: what ``pyspark.ml.feature`` lacks."""

from mllib_ext.feature.class_balancer import ClassBalancer, ClassBalancerModel
from mllib_ext.feature.nystroem import Nystroem, NystroemModel
from mllib_ext.feature.random_fourier_features import (
    RandomFourierFeatures,
    RandomFourierFeaturesModel,
)

__all__ = [
    "ClassBalancer",
    "ClassBalancerModel",
    "Nystroem",
    "NystroemModel",
    "RandomFourierFeatures",
    "RandomFourierFeaturesModel",
]

# A saved model records this path: files may move below it without breaking what users saved.
for _name in __all__:
    globals()[_name].__module__ = __name__
