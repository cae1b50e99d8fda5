"""Distributed machine learning for PySpark in pure Python, behind the pyspark.ml interface."""

__version__ = "0.1.0"
