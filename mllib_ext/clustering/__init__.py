"""Clustering: the interface of ``pyspark.ml.clustering``."""

from mllib_ext.clustering.k_means import KMeans, KMeansModel

__all__ = ["KMeans", "KMeansModel"]

# A saved model records this path: files may move below it without breaking what users saved.
for _name in __all__:
    globals()[_name].__module__ = __name__
