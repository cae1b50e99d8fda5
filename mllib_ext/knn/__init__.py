"""Nearest neighbours: the interface of ``spark_rapids_ml.knn``."""

from mllib_ext.knn.nearest_neighbors import NearestNeighbors, NearestNeighborsModel
from mllib_ext.knn.predictors import (
    KNeighborsClassificationModel,
    KNeighborsClassifier,
    KNeighborsRegressionModel,
    KNeighborsRegressor,
)

__all__ = [
    "KNeighborsClassificationModel",
    "KNeighborsClassifier",
    "KNeighborsRegressionModel",
    "KNeighborsRegressor",
    "NearestNeighbors",
    "NearestNeighborsModel",
]

# A saved model records this path: files may move below it without breaking what users saved.
for _name in __all__:
    globals()[_name].__module__ = __name__
