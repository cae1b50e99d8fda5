"""Parameters of the searches and of what is built on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pyspark import keyword_only
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasInputCols, HasSeed
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mllib_ext.base import set_columns, with_columns
from mllib_ext.columns import Features
from mllib_ext.distances import Metric, metric
from mllib_ext.names import did_you_mean
from mllib_ext.neighbors import ivf
from mllib_ext.neighbors.items import id_column
from mllib_ext.neighbors.plans import Request, Side

PLANS = ("auto", "broadcast_items", "broadcast_queries", "exchange")
UNIQUE_ID = "unique_id"
ALGORITHMS = ("ivfflat",)
ALGO_PARAMS = ("nlist", "nprobe")


class HasNeighbors(Params):
    """How many neighbours, and by which metric."""

    k: Param[int] = Param(Params._dummy(), "k", "number of neighbours (>= 1)", TypeConverters.toInt)
    metric: Param[str] = Param(
        Params._dummy(),
        "metric",
        "euclidean, sqeuclidean, cosine, inner_product or manhattan",
        TypeConverters.toString,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(k=5, metric="euclidean")

    def setK(self, value: int) -> Self:
        """Set the number of neighbours."""
        return self._set(k=value)

    def getK(self) -> int:
        """The number of neighbours."""
        return self.getOrDefault(self.k)

    def setMetric(self, value: str) -> Self:
        """Set the metric."""
        return self._set(metric=value)

    def getMetric(self) -> str:
        """The metric."""
        return self.getOrDefault(self.metric)

    def _rule(self) -> Metric:
        """The metric; ValueError for a parameter out of range."""
        if self.getK() < 1:
            raise ValueError(f"param k: expected 1 or more, found {self.getK()}")
        return metric(self.getMetric())


class SearchParams(HasNeighbors, HasInputCol, HasInputCols):
    """Columns of items and queries: features and ids."""

    idCol: Param[str] = Param(
        Params._dummy(),
        "idCol",
        f"column of ids, integers or strings; without it ids are made in {UNIQUE_ID!r}",
        TypeConverters.toString,
    )

    @keyword_only
    def setParams(self, **params: Any) -> Self:
        """Set several parameters at once, by the constructor's keywords."""
        params = {name: value for name, value in params.items() if value is not None}
        for name in ("inputCol", "inputCols"):
            if name in params:
                self.setInputCol(params.pop(name))
        return self._set(**params)

    def copy(self: Any, extra: Any = None) -> Any:
        """A copy with other parameters; a column takes the place of several, and they of it."""
        return with_columns(super().copy(extra), "inputCol", "inputCols", extra)

    def setInputCol(self, value: str | Sequence[str]) -> Self:
        """Set the features column, or the list of numeric columns that are the features."""
        return set_columns(self, "inputCol", "inputCols", value)

    def setInputCols(self, value: Sequence[str]) -> Self:
        """Set the list of numeric columns that are the features."""
        return self.setInputCol(list(value))

    def setIdCol(self, value: str) -> Self:
        """Set the column of ids."""
        return self._set(idCol=value)

    def getIdCol(self) -> str | None:
        """The column of ids; None where they are made."""
        return self.getOrDefault(self.idCol) if self.isDefined(self.idCol) else None

    def _input(self) -> str | list[str]:
        if self.isSet("inputCols"):
            return self.getInputCols()
        if self.isSet("inputCol"):
            return self.getInputCol()
        raise ValueError("param inputCol: expected a features column or a list, found none")

    def _id_name(self) -> str:
        return self.getIdCol() or UNIQUE_ID

    def _with_ids(self, df: DataFrame) -> DataFrame:
        """The rows, with ids made where none are named."""
        if self.getIdCol() is not None:
            return df
        if UNIQUE_ID in df.columns:
            raise ValueError(
                f"column {UNIQUE_ID!r}: expected a name that is free for ids, found it in the "
                "input: name it as idCol"
            )
        return df.select(F.monotonically_increasing_id().alias(UNIQUE_ID), "*")

    def _side(self, df: DataFrame, n_features: int) -> Side:
        features = Features.of(df.schema, self._input())
        if features.kind == "columns" and len(features.names) != n_features:
            raise ValueError(
                f"{features.label}: expected {n_features} columns as in the items, "
                f"found {len(features.names)}"
            )
        return Side(features, n_features, self._id_name(), self._id_kind(df))

    def _id_kind(self, df: DataFrame) -> str:
        return id_column(df.schema, self._id_name())[1]


class NearestNeighborsParams(SearchParams):
    """Parameters of :class:`mllib_ext.knn.NearestNeighbors` and of its model."""

    radius: Param[float] = Param(
        Params._dummy(),
        "radius",
        "only neighbours up to this distance (inner_product: from this product on)",
        TypeConverters.toFloat,
    )
    excludeSelf: Param[bool] = Param(
        Params._dummy(),
        "excludeSelf",
        "items of the query's own id are not its neighbours",
        TypeConverters.toBoolean,
    )
    plan: Param[str] = Param(
        Params._dummy(), "plan", f"how rows meet: {', '.join(PLANS)}", TypeConverters.toString
    )
    broadcastThresholdInMB: Param[float] = Param(
        Params._dummy(),
        "broadcastThresholdInMB",
        "the side that plan auto sends to all executors is no larger",
        TypeConverters.toFloat,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(excludeSelf=False, plan="auto", broadcastThresholdInMB=512.0)

    def setRadius(self, value: float) -> Self:
        """Set the distance up to which items are neighbours."""
        return self._set(radius=value)

    def getRadius(self) -> float | None:
        """The distance up to which items are neighbours; None for any."""
        return self.getOrDefault(self.radius) if self.isDefined(self.radius) else None

    def setExcludeSelf(self, value: bool) -> Self:
        """Set whether items of the query's own id are left out."""
        return self._set(excludeSelf=value)

    def getExcludeSelf(self) -> bool:
        """Whether items of the query's own id are left out."""
        return self.getOrDefault(self.excludeSelf)

    def setPlan(self, value: str) -> Self:
        """Set how queries and items meet."""
        return self._set(plan=value)

    def getPlan(self) -> str:
        """How queries and items meet."""
        return self.getOrDefault(self.plan)

    def setBroadcastThresholdInMB(self, value: float) -> Self:
        """Set what may be sent to all executors."""
        return self._set(broadcastThresholdInMB=value)

    def getBroadcastThresholdInMB(self) -> float:
        """What may be sent to all executors."""
        return self.getOrDefault(self.broadcastThresholdInMB)

    def _request(self) -> Request:
        """What is looked for; ValueError for a parameter out of range."""
        rule, radius = self._rule(), self.getRadius()
        if self.getPlan() not in PLANS:
            raise ValueError(f"param plan: expected one of {PLANS}, found {self.getPlan()!r}")
        if radius is not None and not (radius >= 0 or (rule.sign < 0 and radius == radius)):
            raise ValueError(f"param radius: expected a distance of 0 or more, found {radius}")
        if self.getExcludeSelf() and self.getIdCol() is None:
            raise ValueError("param excludeSelf: expected an idCol to know a row by, found none")
        return Request(self.getK(), rule, radius, self.getExcludeSelf())


class ApproximateParams(SearchParams, HasSeed):
    """Parameters of :class:`mllib_ext.knn.ApproximateNearestNeighbors` and of its model."""

    algorithm: Param[str] = Param(
        Params._dummy(), "algorithm", "the kind of index: ivfflat", TypeConverters.toString
    )
    algoParams: Param[dict[str, int]] = Param(
        Params._dummy(),
        "algoParams",
        "nlist: cells of the index (default: twice the square root of the number of items); "
        "nprobe: cells that a query looks at, in place of targetRecall",
        TypeConverters.identity,
    )
    targetRecall: Param[float] = Param(
        Params._dummy(),
        "targetRecall",
        "share of the true neighbours that queries find on average: it chooses the cells that a "
        "query looks at",
        TypeConverters.toFloat,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(algorithm="ivfflat", algoParams={}, targetRecall=0.95, seed=0)

    def setAlgorithm(self, value: str) -> Self:
        """Set the kind of index: ivfflat."""
        return self._set(algorithm=value)

    def getAlgorithm(self) -> str:
        """The kind of index."""
        return self.getOrDefault(self.algorithm)

    def setAlgoParams(self, value: Mapping[str, int]) -> Self:
        """Set ``nlist``, ``nprobe`` or both."""
        return self._set(algoParams=dict(value))

    def getAlgoParams(self) -> dict[str, int]:
        """The numbers of cells: ``nlist``, ``nprobe``, where they are set."""
        return self.getOrDefault(self.algoParams)

    def setTargetRecall(self, value: float) -> Self:
        """Set the share of the true neighbours that is to be found."""
        return self._set(targetRecall=value)

    def getTargetRecall(self) -> float:
        """The share of the true neighbours that is to be found."""
        return self.getOrDefault(self.targetRecall)

    def setSeed(self, value: int) -> Self:
        """Set the seed of the samples: items for k-means, queries for the recall."""
        return self._set(seed=value)

    def _checked(self) -> Metric:
        """The metric; ValueError for a parameter out of range."""
        rule = self._rule()
        if rule.name not in ivf.METRICS:
            raise ValueError(
                f"param metric: expected one of {ivf.METRICS} for an index of cells, "
                f"found {self.getMetric()!r}"
            )
        if self.getAlgorithm() not in ALGORITHMS:
            raise ValueError(
                f"param algorithm: expected one of {ALGORITHMS}, found {self.getAlgorithm()!r}"
            )
        given = self.getAlgoParams()
        for name, value in given.items():
            if name not in ALGO_PARAMS:
                raise ValueError(
                    f"param algoParams: expected keys of {ALGO_PARAMS}, "
                    f"found {name!r}{did_you_mean(name, ALGO_PARAMS)}"
                )
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"param algoParams: expected a whole number of 1 or more as {name!r}, "
                    f"found {value!r}"
                )
        if "nprobe" in given and self.isSet(self.targetRecall):
            raise ValueError(
                "param targetRecall: expected nothing beside algoParams['nprobe'], which says how "
                f"many cells to look at, found {self.getTargetRecall()}"
            )
        if not 0 < self.getTargetRecall() <= 1:
            raise ValueError(
                f"param targetRecall: expected a number above 0, up to 1, "
                f"found {self.getTargetRecall()}"
            )
        return rule
