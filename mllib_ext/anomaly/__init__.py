"""Anomaly detection, by the interface of ``pyspark.ml``, which has none."""

from mllib_ext.anomaly.one_class_svm import OneClassSVM, OneClassSVMModel

__all__ = ["OneClassSVM", "OneClassSVMModel"]

# A saved model records this path: files may move below it without breaking what users saved.
for _name in __all__:
    globals()[_name].__module__ = __name__
