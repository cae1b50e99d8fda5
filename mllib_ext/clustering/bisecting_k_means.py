"""Bisecting k-means: :mod:`mllib_ext.bisecting`, behind the interface of ``pyspark.ml``."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Self

import numpy as np
from pyspark import keyword_only
from pyspark.ml.clustering import _BisectingKMeansParams
from pyspark.sql import DataFrame

from mllib_ext.base import HasCheckpoints, HasFeatures, frozen, unsigned_seed
from mllib_ext.bisecting import Descent, fit, leaf_statistics
from mllib_ext.blocks import Blocks
from mllib_ext.clustering.clusterer import SEED, Clusterer, ClusteringModel, refuse_zeros
from mllib_ext.columns import Matrix
from mllib_ext.fitting import DRIVER_BYTES
from mllib_ext.nearest import distances
from mllib_ext.optimizers.loop import Settings
from mllib_ext.persistence import SavesParams
from mllib_ext.space import Space
from mllib_ext.summaries import HasBisectingKMeansSummary


class BisectingKMeansParams(HasFeatures, HasCheckpoints, _BisectingKMeansParams):
    """The parameters of ``pyspark.ml``'s bisecting k-means."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(seed=SEED)


class BisectingKMeansModel(HasBisectingKMeansSummary, ClusteringModel, BisectingKMeansParams):
    """Model fitted by :class:`BisectingKMeans`: clusters are the leaves of a tree, left to right.

    Parameters
    ----------
    nodes : ndarray, shape (m, d)
        Centers of the nodes, the root first.
    children : ndarray, shape (m, 2)
        Of each node; -1 for a leaf.
    weights : ndarray, shape (m,)
        Summed weights of the training rows of each node.
    cost : float
    """

    _arrays = ("nodes", "children", "weights", "cost")

    def __init__(self, nodes: Any, children: Any, weights: Any, cost: Any) -> None:
        self._nodes, self._children, self._weights = map(frozen, (nodes, children, weights))
        leaves = self._descent.leaves
        super().__init__(self._nodes[leaves], self._weights[leaves], cost)

    @property
    def _descent(self) -> Descent:
        return Descent(self._children.astype(np.intp))

    def computeCost(self: Any, dataset: DataFrame) -> float:
        """The cost of other rows, each of weight 1.

        Deprecated in pyspark.ml, which names ClusteringEvaluator and ``summary.trainingCost``.
        """
        warnings.warn(
            "computeCost is deprecated since Spark 3.0: use ClusteringEvaluator, or cost for the "
            "training rows",
            FutureWarning,
            stacklevel=2,
        )
        with Blocks.of(dataset, self._features(), driver_bytes=DRIVER_BYTES) as blocks:
            stage_of = (self._space(), self._nodes, self._descent)
            return float(blocks.sum(leaf_statistics, *stage_of)[2].sum())

    def _predict_function(self, name: str) -> Any:
        return partial(_predict, self._space(), self._nodes, self._descent, name)


def _predict(
    space: Space, nodes: np.ndarray, descent: Descent, name: str, X: Matrix
) -> dict[str, np.ndarray]:
    """The clusters (n,) of rows X (n, d)."""
    refuse_zeros(space, X)
    numbers = np.full(len(nodes), -1, np.int32)
    numbers[descent.leaves] = np.arange(len(descent.leaves))
    labels, _ = distances(X, space, nodes, descent)
    return {name: numbers[labels]}


class BisectingKMeans(Clusterer, BisectingKMeansParams, SavesParams):
    """Bisecting k-means, the interface of ``pyspark.ml``'s.

    Parameters are those of ``pyspark.ml.clustering.BisectingKMeans`` and ``featuresCol`` may be a
    list of numeric columns. A weight of w equals w copies of a row, but for
    ``minDivisibleClusterSize``, which counts rows, of whatever weight above 0. Fewer leaves than
    ``k``, where no more can be split, are a warning.

    Notes
    -----
    pyspark.ml splits along the diagonal of the feature space, by an amount that depends on the
    distance from 0; here the split follows the data. Levels end early where no center moves.

    Examples
    --------
    >>> from mllib_ext.clustering import BisectingKMeans
    >>> model = BisectingKMeans(k=8).fit(df)  # doctest: +SKIP
    """

    # Levels build on the levels before, whose ends another maxIter would move.
    _resumes_with = ()
    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str | list[str] = "features",
        predictionCol: str = "prediction",
        maxIter: int = 20,
        seed: int | None = None,
        k: int = 4,
        minDivisibleClusterSize: float = 1.0,
        distanceMeasure: str = "euclidean",
        weightCol: str | None = None,
        featuresCols: list[str] | None = None,
        checkpointInterval: int = 10,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def setMinDivisibleClusterSize(self, value: float) -> Self:
        """Set the least number of rows of a cluster that is split; below 1 a share of all."""
        return self._set(minDivisibleClusterSize=value)

    def _refuse_params(self) -> None:
        super()._refuse_params()
        size = self.getMinDivisibleClusterSize()
        if not (size > 0 and np.isfinite(size)):
            raise ValueError(
                f"param minDivisibleClusterSize: expected a number above 0, found {size!r}"
            )

    def _fit_blocks(self, blocks: Blocks) -> BisectingKMeansModel:
        result = fit(
            blocks,
            self._space(blocks),
            self.getK(),
            self.getMinDivisibleClusterSize(),
            Settings(max_iter=self.getMaxIter(), tol=0.0),
            unsigned_seed(self),
            self.getCallbacks(),
        )
        tree = result.state
        if result.reason == "leaves":
            self._warn_of_few(blocks, len(tree.descent.leaves), "clusters that could be split")
        model = BisectingKMeansModel(tree.centers, tree.children, tree.sizes, tree.loss)
        return model._trained(self, result)
