"""K-means, the interface of ``pyspark.ml.clustering``: :mod:`mllib_ext.lloyd`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from pyspark import SparkContext, keyword_only
from pyspark.ml.clustering import _KMeansParams
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.util import GeneralMLWriter
from pyspark.ml.wrapper import JavaWrapper
from pyspark.mllib.common import _py2java
from pyspark.mllib.linalg import _convert_to_vector

from mllib_ext import lloyd
from mllib_ext.base import HasCheckpoints, HasFeatures, unsigned_seed
from mllib_ext.blocks import Blocks
from mllib_ext.clustering.clusterer import SEED, Clusterer, ClusteringModel, HasInitialCenters
from mllib_ext.optimizers.loop import Result, S, Settings
from mllib_ext.persistence import ArraysOrPmmlWriter, SavesParams
from mllib_ext.seeding import k_means_parallel, random_rows
from mllib_ext.space import Space
from mllib_ext.summaries import HasKMeansSummary

INIT_MODES = ("k-means||", "random")
SOLVERS = ("auto", "row", "block")


class KMeansParams(HasInitialCenters, HasFeatures, HasCheckpoints, _KMeansParams):
    """The parameters of ``pyspark.ml``'s k-means, and those added here."""

    nInit: Param[int] = Param(
        Params._dummy(),
        "nInit",
        "how often to start from other centers; the run of least cost is kept",
        typeConverter=TypeConverters.toInt,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(nInit=1, seed=SEED)

    def getNInit(self) -> int:
        """How often to start from other centers."""
        return self.getOrDefault(self.nInit)


class KMeansModel(HasKMeansSummary, ClusteringModel, KMeansParams):
    """Model fitted by :class:`KMeans`.

    Attributes
    ----------
    cost : float
        Of the training rows at these centers; ``history`` has that of every round as ``loss``,
        and the largest distance that a center moved as ``step_size``.
    """

    def write(self) -> GeneralMLWriter:
        """A writer; ``model.write().format("pmml").save(path)`` writes PMML.

        PMML is of euclidean distances: with others ``save`` is a ValueError.
        """
        return ArraysOrPmmlWriter(self, self._java_model)

    def _java_model(self) -> Any:
        if self.getDistanceMeasure() != "euclidean":
            raise ValueError(
                "param distanceMeasure: expected euclidean for PMML, "
                f"found {self.getDistanceMeasure()!r}"
            )
        context: Any = SparkContext._active_spark_context
        centers = [_convert_to_vector(center) for center in self.clusterCenters()]
        clusters = JavaWrapper._new_java_obj(
            "org.apache.spark.mllib.clustering.KMeansModel", _py2java(context, centers)
        )
        return JavaWrapper._new_java_obj(
            "org.apache.spark.ml.clustering.KMeansModel", self.uid, clusters
        )


class StartsFromCenters(Clusterer, KMeansParams):
    """Setters, checks and the start of k-means by whole passes or by samples."""

    def setTol(self, value: float) -> Self:
        """Set the distance that every center has to move less than at the end."""
        return self._set(tol=value)

    def setInitMode(self, value: str) -> Self:
        """Set where to start: k-means|| or random."""
        return self._set(initMode=value)

    def setInitSteps(self, value: int) -> Self:
        """Set the rounds of k-means|| that draw candidates."""
        return self._set(initSteps=value)

    def setNInit(self, value: int) -> Self:
        """Set how often to start from other centers."""
        return self._set(nInit=value)

    def setMaxBlockSizeInMB(self, value: float) -> Self:
        """Set the size of blocks in MB; 0 means a size that suits the processor's cache."""
        return self._set(maxBlockSizeInMB=value)

    def _refuse_params(self) -> None:
        super()._refuse_params()
        self._refuse_below(1, "initSteps", "nInit")
        self._refuse_below(0, "tol", "maxBlockSizeInMB")
        self._refuse_other("initMode", INIT_MODES)

    def _starts(self, blocks: Blocks, space: Space) -> list[np.ndarray]:
        """Centers (k, d) to start from, one for each run."""
        k = self.getK()
        if self.isSet(self.initialCenters):
            return [self._initial_centers(k, blocks.n_features)]
        seeds = [[unsigned_seed(self), run] for run in range(self.getNInit())]
        if self.getInitMode() == "random":
            return [random_rows(blocks, space, k, seed) for seed in seeds]
        steps = self.getInitSteps()
        return [k_means_parallel(blocks, space, k, steps, seed) for seed in seeds]

    def _best(
        self,
        blocks: Blocks,
        space: Space,
        fit: Callable[[np.ndarray], Result[S]],
        cost: Callable[[S], float],
    ) -> tuple[Result[S], float]:
        """The run of least cost among those from all starts, and its cost."""
        runs = [fit(centers) for centers in self._starts(blocks, space)]
        costs = [cost(run.state) for run in runs]
        best = int(np.argmin(costs))
        return runs[best], costs[best]


class KMeans(StartsFromCenters, SavesParams):
    """K-means, the interface of ``pyspark.ml``'s.

    Parameters are those of ``pyspark.ml.clustering.KMeans`` and:

    Parameters
    ----------
    featuresCol : str or list of str
        A vector column, an array column, or a list of numeric columns.
    k : int
        The number of clusters, 1 or more. Fewer distinct rows give fewer clusters and a warning.
    solver : {"auto", "row", "block"}
        All compute block by block; pyspark.ml's have the same results as well.
    nInit : int
        How often to start from other centers; the run of least cost is kept.
    initialCenters : array-like, shape (k, d)
        Centers to start from; also by ``setInitialModel(model)``.

    Notes
    -----
    A cluster that loses all its rows takes over a row that lies far from its own center; in
    pyspark.ml it stays empty. Callbacks see ``centers``, ``sizes`` (summed weights), ``loss``
    (the cost) and ``shift`` of each round's state.

    Raises
    ------
    ValueError
        From ``fit``: a parameter out of its range; rows of zeros under the cosine distance; what
        :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Examples
    --------
    >>> from mllib_ext.clustering import KMeans
    >>> model = KMeans(k=10, maxIter=100).fit(df)  # doctest: +SKIP
    >>> model.clusterCenters(), model.cost, model.converged  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str | list[str] = "features",
        predictionCol: str = "prediction",
        k: int = 2,
        initMode: str = "k-means||",
        initSteps: int = 2,
        tol: float = 1e-4,
        maxIter: int = 20,
        seed: int | None = None,
        distanceMeasure: str = "euclidean",
        weightCol: str | None = None,
        solver: str = "auto",
        maxBlockSizeInMB: float = 0.0,
        featuresCols: list[str] | None = None,
        nInit: int = 1,
        initialCenters: Any = None,
        checkpointInterval: int = 10,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def setSolver(self, value: str) -> KMeans:
        """Set the solver: auto, row or block."""
        return self._set(solver=value)

    def setIntermediateStorageLevel(self, value: str) -> KMeans:
        """Set what pyspark.ml caches data by; blocks are files on local disks whatever it says."""
        return self._set(intermediateStorageLevel=value)

    def _refuse_params(self) -> None:
        super()._refuse_params()
        self._refuse_other("solver", SOLVERS)

    def _fit_blocks(self, blocks: Blocks) -> KMeansModel:
        space = self._space(blocks)
        settings = Settings(max_iter=self.getMaxIter(), tol=self.getTol())

        def fit(centers: np.ndarray) -> Result[lloyd.Clusters]:
            return lloyd.fit(blocks, space, centers, settings, self.getCallbacks())

        best, _ = self._best(blocks, space, fit, lambda state: state.loss)
        state = lloyd.without_needless(blocks, space, best.state)
        self._warn_of_few(blocks, len(state.centers))
        return KMeansModel(state.centers, state.sizes, state.loss)._trained(self, best)
