"""Columns made for training: what ``pyspark.ml.feature`` lacks."""

from mllib_ext.feature.class_balancer import ClassBalancer, ClassBalancerModel

__all__ = ["ClassBalancer", "ClassBalancerModel"]

# A saved model records this path: files may move below it without breaking what users saved.
for _name in __all__:
    globals()[_name].__module__ = __name__
