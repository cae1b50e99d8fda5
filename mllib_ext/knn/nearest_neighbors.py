r"""Exact k nearest neighbours of every query row among item rows.

.. math::

    \mathrm{knn}(q) = \text{the first } k \text{ of all items } x
    \text{ by } \big(d(q, x), \mathrm{id}(x)\big)

The names and results are those of ``spark_rapids_ml.knn``. How the answer is found to be exact is
told in :mod:`mllib_ext.neighbors.top_k`, how rows meet in :mod:`mllib_ext.neighbors.plans`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, Self

from pyspark import keyword_only
from pyspark.ml.base import Estimator
from pyspark.ml.util import MLReadable, MLReader, MLWriter
from pyspark.sql import DataFrame

from mllib_ext import storage
from mllib_ext.blocks import Blocks
from mllib_ext.columns import quoted, refuse_no_dataframe
from mllib_ext.distances import Manhattan, metric
from mllib_ext.knn.answers import (
    PACKED,
    answer_columns,
    ordered_queries,
    pairs,
    refuse_duplicates,
    whole_row,
)
from mllib_ext.knn.params import NearestNeighborsParams
from mllib_ext.knn.search_model import SearchModel, SearchWriter
from mllib_ext.neighbors.items import Items, id_column, refuse_directionless
from mllib_ext.neighbors.plans import (
    GROUP_BYTES,
    Request,
    Side,
    broadcast_queries,
    exchange,
    with_neighbors,
)
from mllib_ext.neighbors.top_k import prepared
from mllib_ext.persistence import ParamsReader, SavesParams, restored

logger = logging.getLogger(__name__)

# A core's seconds for a pair of rows and for a feature of it, measured; scipy's loop for Manhattan.
PAIR_SECONDS, FEATURE_SECONDS, LOOP_SECONDS = 1e-9, 2e-11, 1e-9
# What is worth a warning before it starts, and a count of the queries to know it.
LONG_SECONDS, MANY_QUERIES = 3600, 1_000_000


class NearestNeighbors(Estimator["NearestNeighborsModel"], NearestNeighborsParams, SavesParams):
    """Exact nearest neighbours, the interface of ``spark_rapids_ml.knn.NearestNeighbors``.

    Parameters
    ----------
    k : int
        Neighbours of each query; all items where there are fewer.
    inputCol, inputCols : str or list of str
        A vector column, an array column, or a list of numeric columns.
    idCol : str, optional
        Ids of items and queries: integers or strings. Without it, ``unique_id`` is made by
        ``monotonically_increasing_id``, which is stable as far as the DataFrame's partitions are.
        Ids need not differ: every row counts.
    metric : {"euclidean", "sqeuclidean", "cosine", "inner_product", "manhattan"}
        ``l2``, ``l1`` and ``cityblock`` are other names. Under ``inner_product`` the largest
        product comes first and is what ``distances`` holds. Rows of zeros have no direction: under
        ``cosine`` they are refused.
    radius : float, optional
        Only items up to this distance (under ``inner_product``: from this product on).
    excludeSelf : bool
        Items of the query's own id are not its neighbours.
    plan : {"auto", "broadcast_items", "broadcast_queries", "exchange"}
        See :mod:`mllib_ext.neighbors.plans`.
    broadcastThresholdInMB : float
        What ``auto`` sends to all executors is no larger.

    Raises
    ------
    ValueError
        From ``fit``: a parameter out of range, a missing column, no rows, a null, NaN or infinite
        value, vectors of different lengths, a null id, a row of zeros under ``cosine``.
    TypeError
        From ``fit``: a column of an unsuitable type.

    Examples
    --------
    >>> from mllib_ext.knn import NearestNeighbors
    >>> model = NearestNeighbors(k=2, inputCol="features", idCol="id").fit(items)  # doctest: +SKIP
    >>> _, _, knn_df = model.kneighbors(queries)  # doctest: +SKIP
    >>> knn_df.show()  # doctest: +SKIP
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
        radius: float | None = None,
        excludeSelf: bool = False,
        plan: str = "auto",
        broadcastThresholdInMB: float = 512.0,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def _fit(self, dataset: DataFrame) -> NearestNeighborsModel:
        refuse_no_dataframe(dataset)
        self._request()
        model = NearestNeighborsModel()
        model._resetUid(self.uid)
        self._copyValues(model)
        return model._hold(model._with_ids(dataset))


@dataclass(frozen=True)
class Plan:
    """How a model would answer some queries.

    Attributes
    ----------
    name : str
        ``broadcast_items``, ``broadcast_queries`` or ``exchange``.
    reason : str
    n_items, n_features : int
    item_bytes : int
    n_queries : int or None
        None where nobody counted: of a stream, or where it does not matter.
    seconds : float or None
        A rough estimate of the search on all cores.
    groups : tuple of int
        Groups of queries and of items, for an exchange.
    """

    name: str
    reason: str
    n_items: int
    n_features: int
    item_bytes: int
    n_queries: int | None
    seconds: float | None
    groups: tuple[int, int] = (1, 1)

    def __str__(self) -> str:
        queries = "not counted" if self.n_queries is None else f"{self.n_queries:,}"
        lines = [
            f"plan {self.name}: {self.reason}",
            f"items: {self.n_items:,} x {self.n_features:,}, {self.item_bytes / 2**20:,.1f} MB",
            f"queries: {queries}",
        ]
        if self.name == "exchange":
            h, g = self.groups
            lines.append(f"groups: {h} of queries x {g} of items, {h * g} tasks")
        if self.seconds is not None:
            lines.append(f"estimate: {_duration(self.seconds)}")
        return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:,.1f} hours"


class NearestNeighborsModel(
    SearchModel, NearestNeighborsParams, MLReadable["NearestNeighborsModel"]
):
    """Model fitted by :class:`NearestNeighbors`: the items, ready to be searched."""

    _items_df: DataFrame
    _items: Items | None

    def _hold(self, items: DataFrame) -> Self:
        """Look at the items once: sizes, faults, and the rows themselves where they fit."""
        kind, name = self._id_kind(items), self._id_name()
        with Blocks.of(items, self._input(), id=name) as blocks:
            self._features, self._kind = blocks.features, kind
            self._n_items, self._n_features = blocks.n_rows, blocks.n_features
            self._n_bytes = sum(handle.n_bytes for handle in blocks.handles)
            if self.getMetric() == "cosine":
                refuse_directionless(blocks)
            fits = self.getPlan() == "broadcast_items" or (
                self.getPlan() == "auto" and self._n_bytes <= self._threshold()
            )
            self._items = Items.collected(blocks, kind) if fits else None
        self._items_df, self._item_id = items, name
        return self

    def _threshold(self) -> float:
        return self.getBroadcastThresholdInMB() * 2**20

    def copy(self, extra: Any = None) -> Self:
        """A copy with other parameters, over the same items."""
        other = super().copy(extra)
        names = {"inputCol", "inputCols", "idCol", "metric", "plan", "broadcastThresholdInMB"}
        if extra and names & {param.name for param in extra}:
            other._mapped = None
            other._hold(self._items_df)
        return other

    # --- answers ---

    def kneighbors(
        self, query_df: DataFrame, sort_knn_df_by_query_id: bool = True
    ) -> tuple[DataFrame, DataFrame, DataFrame]:
        """The nearest items of every query.

        Parameters
        ----------
        query_df : DataFrame
            With the same input and id columns as the items; a streaming one under the plan
            ``broadcast_items``.
        sort_knn_df_by_query_id : bool
            Order ``knn_df``; a streaming one is never ordered.

        Returns
        -------
        items_with_id, queries_with_id, knn_df : DataFrame
            ``knn_df`` has a row for every query, one without neighbours too: ``query_<id>``,
            ``indices`` (array of item ids, nearest first) and ``distances`` (array of doubles: in
            spark_rapids_ml they are floats, which would not tell apart what exact distances do).
        """
        queries = self._with_ids(query_df)
        name = self._id_name()
        ordered = sort_knn_df_by_query_id and not query_df.isStreaming
        found = self._found(queries, ordered).withColumnRenamed("query", f"query_{name}")
        return self._items_df, queries, found

    def exactNearestNeighborsJoin(self, query_df: DataFrame, distCol: str = "distCol") -> DataFrame:
        """A row for every pair of a query and one of its neighbours.

        Parameters
        ----------
        query_df : DataFrame
        distCol : str
            The name of the distance column.

        Returns
        -------
        DataFrame
            The structs ``item_df`` and ``query_df``, all columns of either side, and ``distCol``. A
            query without neighbours has one row, with null for the item and the distance.

        Raises
        ------
        ValueError
            Items that share an id; queries that do, under another plan than ``broadcast_items``.
        """
        queries = self._with_ids(query_df)
        name = self._id_name()
        self.refuse_duplicates("item", self._items_df)
        plan, whole = self._plan(queries), whole_row(queries, "query_df")
        if plan.name == "broadcast_items":
            found = self._streamed(queries, PACKED).select(whole, *answer_columns())
        else:
            self.refuse_duplicates("query", queries)
            left = queries.select(whole, id_column(queries.schema, name)[0].alias("query"))
            found = left.join(self._merged(queries, plan), "query", "left")
        return pairs(found, self._items_df, name, distCol)

    def explain(self, query_df: DataFrame) -> str:
        """How these queries would be answered and why, with sizes and an estimate; counts them."""
        return str(self._plan(self._with_ids(query_df), count=True))

    def _found(self, queries: DataFrame, ordered: bool) -> DataFrame:
        plan, name = self._plan(queries), self._id_name()
        if plan.name != "broadcast_items":
            found = self._merged(queries, plan)
            return found.orderBy("query") if ordered else found
        if ordered:
            queries = ordered_queries(queries, name, self._query_side(queries).features)
        found = self._streamed(queries, PACKED)
        return found.select(quoted(name).alias("query"), *answer_columns())

    def _streamed(self, queries: DataFrame, name: str) -> DataFrame:
        """The queries with their neighbours as one more column."""
        side, request = self._query_side(queries), self._capped()
        return with_neighbors(queries, side, self._shipped(queries), self._kind, request, name)

    @property
    def _predictor(self) -> Items:
        if self._items is None:
            with Blocks.of(self._items_df, self._input(), id=self._id_name()) as blocks:
                self._items = Items.collected(blocks, self._kind)
        return replace(self._items, tiles=prepared(self._items.X, self._rule()))

    def _merged(self, queries: DataFrame, plan: Plan) -> DataFrame:
        sides = self._query_side(queries), self._side(self._items_df, self._n_features)
        arguments = queries, sides[0], self._items_df, sides[1], self._capped()
        if plan.name == "broadcast_queries":
            return broadcast_queries(*arguments)
        return exchange(*arguments, plan.groups)

    def _capped(self) -> Request:
        """The request, for no more neighbours than there are items: each takes its place."""
        request = self._request()
        return replace(request, k=min(request.k, self._n_items))

    def _query_side(self, queries: DataFrame) -> Side:
        self._refuse_other_ids()
        side = self._side(queries, self._n_features)
        if self.getExcludeSelf() and side.kind != self._kind:
            raise TypeError(
                f"id column {side.id!r}: expected {self._kind} as in the items to leave out a "
                f"query's own, found {side.kind}"
            )
        return side

    def _plan(self, queries: DataFrame, count: bool = False) -> Plan:
        asked, streaming = self.getPlan(), queries.isStreaming
        cores = queries.sparkSession.sparkContext.defaultParallelism
        rate = self._seconds_per_query(cores)
        large = self._n_bytes > self._threshold()
        wanted = count or asked not in ("auto", "broadcast_items") or (asked == "auto" and large)
        known = wanted or rate * MANY_QUERIES > LONG_SECONDS
        n = queries.count() if known and not streaming else None
        query_bytes = 8 * self._n_features * (n or 0)
        if asked != "auto":
            name, reason = asked, "the param plan says so"
        elif not large:
            name, reason = "broadcast_items", "the items fit the threshold of a broadcast"
        elif streaming:
            name, reason = "broadcast_items", "queries of a stream come one after the other"
        elif query_bytes <= self._threshold():
            name, reason = "broadcast_queries", "the queries fit the threshold, the items do not"
        else:
            name, reason = "exchange", "neither side fits the threshold of a broadcast"
        if streaming and name != "broadcast_items":
            raise ValueError(
                f"param plan: expected broadcast_items for streaming queries, found {name!r}"
            )
        g = -(-self._n_bytes // GROUP_BYTES)
        h = max(-(-query_bytes // GROUP_BYTES), -(-cores // g))
        seconds = None if n is None else rate * n
        if seconds is not None and seconds > LONG_SECONDS:
            logger.warning(
                "%d queries among %d items of %d features will take about %s",
                n, self._n_items, self._n_features, _duration(seconds),
            )  # fmt: skip
        sizes = self._n_items, self._n_features, self._n_bytes
        return Plan(name, reason, *sizes, n, seconds, (h, g))

    def _seconds_per_query(self, cores: int) -> float:
        loop = isinstance(metric(self.getMetric()), Manhattan)
        pair = PAIR_SECONDS + self._n_features * (LOOP_SECONDS if loop else FEATURE_SECONDS)
        return self._n_items * pair / cores

    def refuse_duplicates(self, role: str, df: DataFrame) -> None:
        """ValueError for rows (``role``: item or query) that share an id.

        A join by id would mix them up.
        """
        items = self._items if role == "item" else None
        refuse_duplicates(role, df, self._id_name(), items)

    # --- files ---

    def write(self) -> MLWriter:
        """A writer: ``model.write().overwrite().save(path)``; the items go along as Parquet."""
        return _Writer(self)

    @classmethod
    def read(cls) -> MLReader[NearestNeighborsModel]:
        """A reader: ``NearestNeighborsModel.read().load(path)``."""
        return _Reader(cls)

    def _reread(self, path: str) -> None:
        self._items_df = self._items_df.sparkSession.read.parquet(f"{path}/items")

    def __repr__(self) -> str:
        return (
            f"NearestNeighborsModel: uid={self.uid}, numItems={self._n_items}, "
            f"numFeatures={self._n_features}"
        )


class _Writer(SearchWriter):
    """Parameters as JSON under ``metadata``, the items with their ids under ``items``."""

    def saveImpl(self, path: str) -> None:
        self.save_metadata(path, {})
        self.instance._items_df.write.parquet(f"{path}/items")


class _Reader(ParamsReader):
    def load(self, path: str) -> NearestNeighborsModel:
        model: NearestNeighborsModel = restored(self.cls(), self.load_metadata(path))
        model._path = storage.qualified(path)
        return model._hold(self.sparkSession.read.parquet(f"{path}/items"))
