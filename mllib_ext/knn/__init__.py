"""Nearest neighbours: the interface of ``spark_rapids_ml.knn``."""

from mllib_ext.knn.approximate_nearest_neighbors import (
    ApproximateNearestNeighbors,
    ApproximateNearestNeighborsModel,
)
from mllib_ext.knn.graph import kneighborsGraph
from mllib_ext.knn.k_neighbors_classifier import (
    KNeighborsClassificationModel,
    KNeighborsClassifier,
)
from mllib_ext.knn.k_neighbors_regressor import KNeighborsRegressionModel, KNeighborsRegressor
from mllib_ext.knn.nearest_neighbors import NearestNeighbors, NearestNeighborsModel

__all__ = [
    "ApproximateNearestNeighbors",
    "ApproximateNearestNeighborsModel",
    "KNeighborsClassificationModel",
    "KNeighborsClassifier",
    "KNeighborsRegressionModel",
    "KNeighborsRegressor",
    "NearestNeighbors",
    "NearestNeighborsModel",
    "kneighborsGraph",
]

# A saved model records this path: files may move below it without breaking what users saved.
for _name in __all__:
    globals()[_name].__module__ = __name__
