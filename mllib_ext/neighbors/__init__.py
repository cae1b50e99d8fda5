"""The search for nearest neighbours, on arrays and as lazy DataFrames; :mod:`mllib_ext.knn` asks.

Apart from the estimators, because workers import what runs in them: without pyspark.ml.
"""
