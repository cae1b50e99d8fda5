"""Clustering: the interface of ``pyspark.ml.clustering``."""

from mllib_ext.clustering.bisecting_k_means import BisectingKMeans, BisectingKMeansModel
from mllib_ext.clustering.k_means import KMeans, KMeansModel
from mllib_ext.clustering.mini_batch_k_means import MiniBatchKMeans, MiniBatchKMeansModel

__all__ = [
    "BisectingKMeans",
    "BisectingKMeansModel",
    "KMeans",
    "KMeansModel",
    "MiniBatchKMeans",
    "MiniBatchKMeansModel",
]

# A saved model records this path: files may move below it without breaking what users saved.
for _name in __all__:
    globals()[_name].__module__ = __name__
