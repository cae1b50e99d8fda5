"""What the models that are asked by ``kneighbors`` share."""

from __future__ import annotations

from typing import Any, Self

from pyspark.ml.base import Model
from pyspark.ml.util import MLWritable
from pyspark.sql import DataFrame

from mllib_ext.mapped import Shipped


class SearchModel(Shipped, Model, MLWritable):
    """Items that the workers map. There is no column to add to a DataFrame: ``knn_df`` is another.

    The file that was sent stays for all calls; what it holds changes by ``_mapped = None``.
    """

    def copy(self, extra: Any = None) -> Self:
        """A copy with other parameters, over the same items."""
        other = super().copy(extra)
        other._mapped = self._mapped
        return other

    def _transform(self, dataset: DataFrame) -> DataFrame:
        raise TypeError(f"{type(self).__name__}: expected kneighbors to be called, found transform")
