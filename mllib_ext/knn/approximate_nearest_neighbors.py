"""Approximate nearest neighbours by an inverted file: :mod:`mllib_ext.neighbors.ivf`.

The names are those of ``spark_rapids_ml.knn``. There each partition has an index of its own; here
there is one, so that the answer does not depend on partitions.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from pyspark import keyword_only
from pyspark.ml.base import Estimator
from pyspark.ml.util import MLReadable, MLReader, MLWriter
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mllib_ext import storage
from mllib_ext.base import unsigned_seed
from mllib_ext.blocks import Blocks
from mllib_ext.columns import Features, quoted, refuse_no_dataframe
from mllib_ext.knn.answers import (
    PACKED,
    answer_columns,
    ordered_queries,
    pairs,
    refuse_duplicates,
    whole_row,
)
from mllib_ext.knn.index_files import IndexWriter, read_index
from mllib_ext.knn.params import UNIQUE_ID, ApproximateParams
from mllib_ext.knn.search_model import SearchModel
from mllib_ext.neighbors.cells import CELL, CelledItems, default_n_cells, trained_cells, with_cells
from mllib_ext.neighbors.items import Codes, Items, refuse_directionless
from mllib_ext.neighbors.ivf import Cells, InvertedFile, Recall
from mllib_ext.neighbors.plans import Index, Probes, with_neighbors
from mllib_ext.persistence import ParamsReader, SavesParams, restored


class ApproximateNearestNeighbors(
    Estimator["ApproximateNearestNeighborsModel"], ApproximateParams, SavesParams
):
    """Approximate nearest neighbours, the interface of ``spark_rapids_ml.knn``.

    k-means cuts space into cells; a query is compared with the items of the nearest few. What it
    finds there is exact: distances are computed in float64, the order is (distance, id), and the
    answer does not depend on the partitions of either side.

    Parameters
    ----------
    k : int
        Neighbours of each query; all items where there are fewer. A query whose cells hold fewer
        looks at more of them.
    inputCol, inputCols, idCol
        As of :class:`NearestNeighbors`.
    metric : {"euclidean", "sqeuclidean", "cosine", "inner_product"}
        Under ``inner_product`` a query looks at the cells whose centroids have the largest product
        with it: where the lengths of the items differ much, many of them.
    algorithm : {"ivfflat"}
    algoParams : dict, optional
        ``nlist``: the number of cells, by default twice the square root of that of the items.
        ``nprobe``: how many a query looks at, in place of ``targetRecall``.
    targetRecall : float
        The share of the true neighbours that queries find on average. It chooses ``nprobe`` from
        the curve that is measured on sampled items (``model.recallCurve``), by its lower bound.
        Queries that are distributed otherwise than the items may find fewer.
    seed : int

    Raises
    ------
    ValueError
        From ``fit``: a parameter out of range, and as :class:`NearestNeighbors`.
    TypeError
        From ``fit``: a column of an unsuitable type.

    References
    ----------
    Jégou, Douze and Schmid (2011), Product quantization for nearest neighbor search.

    Examples
    --------
    >>> from mllib_ext.knn import ApproximateNearestNeighbors
    >>> index = ApproximateNearestNeighbors(
    ...     k=10, inputCol="features", idCol="id", targetRecall=0.9
    ... ).fit(items)  # doctest: +SKIP
    >>> index.nprobe, index.recallCurve  # doctest: +SKIP
    >>> _, _, knn_df = index.where("price < 10").kneighbors(queries)  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        k: int = 5,
        inputCol: str | list[str] | None = None,
        inputCols: list[str] | None = None,
        idCol: str | None = None,
        metric: str = "euclidean",
        algorithm: str = "ivfflat",
        algoParams: dict[str, int] | None = None,
        targetRecall: float = 0.95,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def _fit(self, dataset: DataFrame) -> ApproximateNearestNeighborsModel:
        refuse_no_dataframe(dataset)
        rule = self._checked()
        model = ApproximateNearestNeighborsModel()
        model._resetUid(self.uid)
        self._copyValues(model)
        items = model._with_ids(dataset)
        kind = model._id_kind(items)
        with Blocks.of(items, model._input(), id=model._id_name()) as blocks:
            if rule.name == "cosine":
                refuse_directionless(blocks)
            n_cells = self.getAlgoParams().get("nlist", default_n_cells(blocks.n_rows))
            cells = trained_cells(blocks, n_cells, rule, unsigned_seed(self))
            celled = CelledItems.collected(blocks, kind, cells)
        model._hold(items, celled, cells)
        if "nprobe" not in self.getAlgoParams():
            model._measure()
        return model


class ApproximateNearestNeighborsModel(
    SearchModel, ApproximateParams, MLReadable["ApproximateNearestNeighborsModel"]
):
    """Model fitted by :class:`ApproximateNearestNeighbors`: the index.

    The driver holds it and sends it to the executors as one file, which their workers map: its
    pages are shared, and those that no query needs are never read.
    """

    _items_df: DataFrame
    _celled_df: DataFrame | None  # the items with their cells, where these are stored
    _index: Index
    _recall: Recall | None = None

    def _hold(self, items: DataFrame, celled: CelledItems, cells: Cells) -> None:
        """Take over items: as a DataFrame, which may have their cells, and in memory."""
        self._point_to(items)
        self._item_id = self._id_name()
        codes, ids = Codes.of(celled.ids)
        self._index = Index(InvertedFile.of(cells, celled.X, ids, celled.cells), codes)
        self._recall = self._mapped = None

    def _point_to(self, items: DataFrame) -> None:
        self._celled_df = items if CELL in items.columns else None
        self._items_df = items.drop(CELL)

    def _copied(self) -> Self:
        """A model with the same parameters that is to hold other items."""
        other = super().copy()
        other._recall = other._mapped = None
        return other

    # --- what is known ---

    @property
    def nlist(self) -> int:
        """Number of cells."""
        return len(self._cells)

    @property
    def nprobe(self) -> int:
        """Number of cells that a query looks at: as asked for, or what targetRecall takes."""
        asked = self.getAlgoParams().get("nprobe")
        if asked is not None:
            return min(asked, self.nlist)
        return self.recallCurve.probes_for(self.getTargetRecall())

    @property
    def recallCurve(self) -> Recall:
        """The recall by the number of cells that a query looks at, measured for this ``k``."""
        if self._recall is None or self._recall.k != self._recall_k:
            self._measure()
        assert self._recall is not None
        return self._recall

    @property
    def _recall_k(self) -> int:
        return min(self.getK(), self.numItems - 1)

    @property
    def numItems(self) -> int:
        """Number of items."""
        return len(self._index.file.ids)

    @property
    def _cells(self) -> Cells:
        return self._index.file.cells

    @property
    def numFeatures(self) -> int:
        """Number of features."""
        return int(self._index.file.X.shape[1])

    def _measure(self) -> None:
        self._recall = self._index.file.recall(self.getK(), unsigned_seed(self))

    # --- answers ---

    def kneighbors(
        self, query_df: DataFrame, sort_knn_df_by_query_id: bool = True
    ) -> tuple[DataFrame, DataFrame, DataFrame]:
        """Near items of every query.

        Parameters
        ----------
        query_df : DataFrame
            With the same input and id columns as the items; may be a streaming one.
        sort_knn_df_by_query_id : bool
            Order ``knn_df``; a streaming one is never ordered.

        Returns
        -------
        items_with_id, queries_with_id, knn_df : DataFrame
            As of :meth:`NearestNeighborsModel.kneighbors`.
        """
        queries, name = self._with_ids(query_df), self._id_name()
        asked = queries
        if sort_knn_df_by_query_id and not query_df.isStreaming:
            asked = ordered_queries(queries, name, self._side(queries, self.numFeatures).features)
        found = self._streamed(asked)
        columns = quoted(name).alias(f"query_{name}"), *answer_columns()
        return self._items_df, queries, found.select(*columns)

    def approxSimilarityJoin(self, query_df: DataFrame, distCol: str = "distCol") -> DataFrame:
        """A row for every pair of a query and an item that is near it.

        Parameters
        ----------
        query_df : DataFrame
        distCol : str
            The name of the distance column.

        Returns
        -------
        DataFrame
            As of :meth:`NearestNeighborsModel.exactNearestNeighborsJoin`.

        Raises
        ------
        ValueError
            Items that share an id.
        """
        queries, name = self._with_ids(query_df), self._id_name()
        file = self._index.file
        held = Items(file.X, file.ids, self._index.codes)
        refuse_duplicates("item", self._items_df, name, held)
        whole = whole_row(queries, "query_df")
        found = self._streamed(queries).select(whole, *answer_columns())
        return pairs(found, self._items_df, name, distCol)

    def _streamed(self, queries: DataFrame) -> DataFrame:
        """The queries with their neighbours as one more column."""
        rule = self._checked()
        if rule.name != self._cells.metric.name:
            raise ValueError(
                f"param metric: expected {self._cells.metric.name!r}, by which the index was "
                f"made, found {self.getMetric()!r}"
            )
        self._refuse_other_ids()
        side = self._side(queries, self.numFeatures)
        lookup = Probes(min(self.getK(), self.numItems), self.nprobe, rule)
        kind = self._id_kind(self._items_df)
        return with_neighbors(queries, side, self._shipped(queries), kind, lookup, PACKED)

    @property
    def _predictor(self) -> Index:
        return self._index

    # --- other items ---

    def where(self, condition: str | Column) -> Self:
        """The same cells with those items alone that meet a condition: filtered before the search.

        A query has k neighbours among them, if there are so many; its cells are more where the
        condition is rare. With ``targetRecall`` the recall is measured anew.

        Parameters
        ----------
        condition : str or Column
            SQL or a column over the items' columns, as of ``DataFrame.where``.

        Raises
        ------
        ValueError
            No item meets it.
        """
        whole = self._items_df if self._celled_df is None else self._celled_df
        kept = whole.where(condition)
        model = self._copied()
        model._hold(kept, self._read(kept, self._cells), self._cells)
        return model

    def append(self, items: DataFrame) -> Self:
        """A model with more items in the same cells.

        Parameters
        ----------
        items : DataFrame
            The columns of the items that are there, ids included where they were named.

        Raises
        ------
        ValueError, TypeError
            Other columns; items that ``fit`` would refuse.
        """
        self._refuse_other_columns(items)
        if self.getIdCol() is None:
            last = int(self._index.file.ids.max())
            made = F.monotonically_increasing_id() + F.lit(last + 1)
            items = items.withColumn(UNIQUE_ID, made)
        more = self._read(items, self._cells)
        whole = self._items_df.unionByName(items)
        if self._celled_df is not None:
            celled = with_cells(items, self._side(items, self.numFeatures), self._cells)
            whole = self._celled_df.unionByName(celled)
        model = self._copied()
        model._hold(whole, self._celled() + more, self._cells)
        return model

    def _celled(self) -> CelledItems:
        file = self._index.file
        cells = np.repeat(np.arange(self.nlist), file.sizes)
        return CelledItems(file.X, self._index.codes.decode(file.ids), cells)

    def _refuse_other_columns(self, items: DataFrame) -> None:
        expected = set(self._items_df.columns) - ({UNIQUE_ID} if self.getIdCol() is None else set())
        if set(items.columns) != expected:
            raise ValueError(
                f"items: expected the columns {sorted(expected)} as in the index, "
                f"found {sorted(items.columns)}"
            )
        kinds: list[str] = [
            Features.of(df.schema, self._input()).kind for df in (self._items_df, items)
        ]
        if kinds[0] != kinds[1]:
            raise TypeError(
                f"features {self._input()!r}: expected {kinds[0]} as in the index, found {kinds[1]}"
            )
        if self.getIdCol() is not None:
            kinds = [self._id_kind(df) for df in (self._items_df, items)]
            if kinds[0] != kinds[1]:
                raise TypeError(
                    f"id column {self._id_name()!r}: expected {kinds[0]} as in the index, "
                    f"found {kinds[1]}"
                )

    def _read(self, items: DataFrame, cells: Cells | None) -> CelledItems:
        """Items in memory, with the cells that are stored with them or their nearest."""
        stored = CELL if CELL in items.columns else None
        with Blocks.of(items, self._input(), id=self._id_name(), label=stored) as blocks:
            d = blocks.n_features if cells is None else cells.centroids.shape[1]
            if blocks.n_features != d:
                raise ValueError(
                    f"{blocks.features.label}: expected vectors of length {d} as in the index, "
                    f"found length {blocks.n_features}"
                )
            if self.getMetric() == "cosine":
                refuse_directionless(blocks)
            return CelledItems.collected(blocks, self._id_kind(items), None if stored else cells)

    # --- files ---

    def _reread(self, path: str) -> None:
        self._point_to(read_index(self._items_df.sparkSession, path).items)

    def write(self) -> MLWriter:
        """A writer: ``model.write().overwrite().save(path)``.

        What is written is told in :mod:`mllib_ext.knn.index_files`. A loaded model reads the
        items of its joins from its files: overwritten by another model, they are that one's.
        """
        return IndexWriter(self)

    @classmethod
    def read(cls) -> MLReader[ApproximateNearestNeighborsModel]:
        """A reader: ``ApproximateNearestNeighborsModel.read().load(path)``."""
        return _Reader(cls)

    def __repr__(self) -> str:
        return (
            f"ApproximateNearestNeighborsModel: uid={self.uid}, "
            f"numItems={self.numItems}, numFeatures={self.numFeatures}, "
            f"nlist={self.nlist}"
        )


class _Reader(ParamsReader):
    def load(self, path: str) -> ApproximateNearestNeighborsModel:
        model: ApproximateNearestNeighborsModel = restored(self.cls(), self.load_metadata(path))
        stored = read_index(self.sparkSession, path)
        cells = Cells(stored.centroids, model._checked())
        celled = model._read(stored.items, None)
        if len(celled.ids) != stored.n_items:
            raise ValueError(
                f"{path}: expected {stored.n_items:,} items as its manifest says, "
                f"found {len(celled.ids):,}"
            )
        model._hold(stored.items, celled, cells)
        model._recall, model._path = stored.recall, storage.qualified(path)
        return model
