"""What the models that are asked by ``kneighbors`` share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

from pyspark.ml.base import Model
from pyspark.ml.util import MLWritable
from pyspark.sql import DataFrame

from mllib_ext import storage
from mllib_ext.mapped import Shipped
from mllib_ext.persistence import ParamsWriter


class SearchModel(Shipped, Model, MLWritable):
    """Items that the workers map. There is no column to add to a DataFrame: ``knn_df`` is another.

    The file that was sent stays for all calls; what it holds changes by ``_mapped = None``.
    """

    _path: str | None = None  # where it was loaded from
    _item_id: str  # the column of ids that the items were read by

    def _refuse_other_ids(self: Any) -> None:
        """ValueError for another column of ids than that of the items."""
        if self._id_name() != self._item_id:
            raise ValueError(
                f"param idCol: expected {self._item_id!r}, by which the items were read, "
                f"found {self._id_name()!r}"
            )

    @abstractmethod
    def _reread(self, path: str) -> None:
        """Point to the items under ``path`` in place of those that stood there."""

    def copy(self, extra: Any = None) -> Self:
        """A copy with other parameters, over the same items."""
        other = super().copy(extra)
        other._mapped = self._mapped
        return other

    def _transform(self, dataset: DataFrame) -> DataFrame:
        raise TypeError(f"{type(self).__name__}: expected kneighbors to be called, found transform")


class SearchWriter(ParamsWriter):
    """Overwrites a model that is there only when the new one is complete: it may be the same."""

    def save(self, path: str) -> None:
        with storage.atomic_directory(path, overwrite=self.shouldOverwrite) as directory:
            self.saveImpl(directory)
        if self.instance._path == storage.qualified(path):
            self.instance._reread(path)
