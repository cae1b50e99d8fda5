"""An index of cells as files.

=====================  ==========================================================================
``metadata/``          parameters, as of every model
``manifest.json``      version, sizes, and the recall that was measured
``centroids/``         Parquet: ``cell``, ``centroid``, ``items`` (how many)
``items/``             Parquet: the items' columns and their cell, clustered by it
=====================  ==========================================================================

A directory is written whole or not at all (:mod:`mllib_ext.storage`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from mllib_ext import storage
from mllib_ext.knn.search_model import SearchWriter
from mllib_ext.neighbors.cells import CELL, with_cells
from mllib_ext.neighbors.ivf import Recall

MANIFEST, CENTROIDS, ITEMS = "manifest.json", "centroids", "items"
VERSION = 1


class IndexWriter(SearchWriter):
    """Writes an index."""

    def saveImpl(self, path: str) -> None:
        model: Any = self.instance
        self.save_metadata(path, {})
        file = model._index.file
        items = model._celled_df
        if items is None:
            side = model._side(model._items_df, model.numFeatures)
            items = with_cells(model._items_df, side, file.cells)
        clustered = items.repartitionByRange(CELL).sortWithinPartitions(CELL)
        clustered.write.parquet(f"{path}/{ITEMS}")
        k, d = file.cells.centroids.shape
        offsets = np.arange(0, (k + 1) * d, d, dtype=np.int32)
        centroids = pa.ListArray.from_arrays(offsets, file.cells.centroids.ravel())
        table = pa.table({"cell": np.arange(k), "centroid": centroids, "items": file.sizes})
        one = self.sparkSession.createDataFrame(table).coalesce(1)
        one.write.parquet(f"{path}/{CENTROIDS}")
        manifest = {
            "version": VERSION,
            "algorithm": model.getAlgorithm(),
            "metric": file.cells.metric.name,
            "n_items": len(file.ids),
            "n_features": d,
            "nlist": k,
            "nprobe": model.nprobe,
            "recall": model.recallCurve.as_json(),
        }
        storage.write_text(f"{path}/{MANIFEST}", json.dumps(manifest, indent=2) + "\n")


@dataclass(frozen=True)
class StoredIndex:
    """What is read of an index.

    Attributes
    ----------
    items : DataFrame
        With their cells.
    n_items : int
    centroids : ndarray, shape (n_cells, d)
    recall : Recall
    """

    items: DataFrame
    n_items: int
    centroids: np.ndarray
    recall: Recall


def read_index(spark: SparkSession, path: str) -> StoredIndex:
    """An index that :class:`IndexWriter` wrote; ValueError for one of a later version."""
    manifest = json.loads(storage.read_text(f"{path}/{MANIFEST}"))
    if manifest["version"] != VERSION:
        raise ValueError(
            f"{path}: expected an index of version {VERSION}, found {manifest['version']}"
        )
    table = spark.read.parquet(f"{path}/{CENTROIDS}").orderBy("cell").toArrow()
    flat = table["centroid"].combine_chunks().flatten().to_numpy()
    return StoredIndex(
        items=spark.read.parquet(f"{path}/{ITEMS}"),
        n_items=manifest["n_items"],
        centroids=flat.reshape(manifest["nlist"], manifest["n_features"]),
        recall=Recall.of_json(manifest["recall"]),
    )
