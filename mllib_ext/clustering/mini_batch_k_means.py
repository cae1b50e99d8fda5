r"""K-means on samples: web-scale k-means (Sculley 2010).

Each round draws a share of the rows, assigns them, and moves every center towards the mean of its
rows by a rate of its own, one over the weight of all rows that it has ever seen:

.. math::

    N_j \leftarrow N_j + n_j, \qquad
    c_j \leftarrow c_j + \frac{1}{N_j} \sum_{i : \, a(i) = j} w_i (x_i - c_j)

which is Sculley's step for all rows of a round at once. A model holds the centers and the
:math:`N_j`: the next batch of a stream goes on from both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from pyspark import keyword_only
from pyspark.ml.linalg import DenseVector, Vectors
from pyspark.ml.param import Param, Params, TypeConverters

from mllib_ext import lloyd
from mllib_ext.base import unsigned_seed
from mllib_ext.blockfile import Block
from mllib_ext.blocks import Blocks
from mllib_ext.clustering.clusterer import ClusteringModel
from mllib_ext.clustering.k_means import KMeansParams, StartsFromCenters
from mllib_ext.lloyd import Rounds, share
from mllib_ext.optimizers.loop import Result, Settings, State, iterate
from mllib_ext.partials import Walk, over
from mllib_ext.persistence import SavesParams
from mllib_ext.space import Space
from mllib_ext.summaries import HasKMeansSummary


@dataclass(frozen=True, kw_only=True)
class Moving(State):
    """Centers that samples move.

    ``loss`` is the sample's cost at these centers, scaled to all rows; ``step_size`` the largest
    distance that a center moved to get here.

    Attributes
    ----------
    centers : ndarray, shape (k, d)
    seen : ndarray, shape (k,)
        Summed weights of the rows that have moved each center.
    sizes, sums : ndarray
        Of the sample that was assigned to these centers, as in
        :class:`mllib_ext.lloyd.Clusters`: the next move.
    round : int
    """

    shown: ClassVar[tuple[str, ...]] = ("sizes", "centers")

    centers: np.ndarray
    seen: np.ndarray
    sizes: np.ndarray
    sums: np.ndarray
    round: int

    @property
    def shift(self) -> float:
        """The largest distance that a center moved to get here."""
        return self.step_size


@dataclass(frozen=True)
class Sampling:
    """How rounds draw rows: each with a probability of ``fraction``."""

    rounds: Rounds
    space: Space
    fraction: float
    seed: int
    weight_sum: float

    def evaluated(self, centers: np.ndarray, seen: np.ndarray, number: int, moved: float) -> Moving:
        """Centers as a state: one round over a sample."""
        stage = over(partial(sample, self.fraction, [self.seed, number]), Walk(share))
        sums, sizes, cost = self.rounds.sum(stage, self.space, centers)
        if not sizes.any():  # a small share of few rows may be none: then all of them
            sums, sizes, cost = self.rounds.sum(Walk(share), self.space, centers)
        return Moving(
            loss=float(cost * self.weight_sum / sizes.sum()),
            step_size=moved,
            centers=centers,
            seen=seen,
            sizes=sizes,
            sums=sums,
            round=number,
        )

    def step(self, state: Moving, settings: Settings) -> Moving:
        """Move the centers by the sample that was assigned to them."""
        seen = state.seen + state.sizes
        C = state.centers - self.space.origin
        total = state.sums + (seen - state.sizes)[:, None] * C
        centers = lloyd.means(self.space, total, seen, state.centers)
        moved = lloyd.shift(self.space, state.centers, centers)
        return self.evaluated(centers, seen, state.round + 1, moved)

    def cost(self, state: Moving) -> float:
        """Of all rows at the centers of a state."""
        if self.fraction == 1:
            return state.loss
        return lloyd.evaluated(self.rounds, self.space, state.centers).loss


def sample(fraction: float, seed: list[int], block: Block) -> Block:
    """A share of a block's rows."""
    rng = np.random.default_rng([*seed, block.partition, block.start])
    drawn = np.flatnonzero(rng.random(block.n) < fraction)
    X = block.X if len(drawn) == block.n else block.X[drawn]
    return replace(block, X=X, w=block.w[drawn])


def fit(
    sampling: Sampling,
    centers: np.ndarray,
    seen: np.ndarray,
    settings: Settings,
    callbacks: Any = (),
) -> Result[Moving]:
    """Move centers (k, d), which have seen rows of these weights (k,), sample by sample."""
    return iterate(
        sampling.step,
        sampling.evaluated(sampling.space.settle(centers), seen, 0, np.nan),
        settings,
        callbacks,
        stopping=lloyd.STOPPING,
        drain=sampling.rounds.drain,
        divergence=np.inf,
    )


class MiniBatchKMeansParams(KMeansParams):
    """The parameters of :class:`MiniBatchKMeans`."""

    miniBatchFraction: Param[float] = Param(
        Params._dummy(),
        "miniBatchFraction",
        "the share of the rows that a round draws, in (0, 1]",
        typeConverter=TypeConverters.toFloat,
    )
    initialWeights: Param[Any] = Param(
        Params._dummy(),
        "initialWeights",
        "what the initial centers weigh against rows to come: the weights of those they have seen",
        typeConverter=TypeConverters.toVector,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(miniBatchFraction=0.1, maxIter=100)

    def getMiniBatchFraction(self) -> float:
        """The share of the rows that a round draws."""
        return self.getOrDefault(self.miniBatchFraction)

    def getInitialWeights(self) -> DenseVector:
        """What the initial centers weigh against rows to come."""
        return self.getOrDefault(self.initialWeights)


class MiniBatchKMeansModel(HasKMeansSummary, ClusteringModel, MiniBatchKMeansParams):
    """Model fitted by :class:`MiniBatchKMeans`.

    Attributes
    ----------
    clusterWeights : ndarray, shape (k,)
        Summed weights of the rows that have moved each center, those of earlier batches included.
    cost : float
        Of all training rows at these centers; ``history`` has estimates from the samples.
    """


class MiniBatchKMeans(StartsFromCenters, MiniBatchKMeansParams, SavesParams):
    """K-means on samples, for data too large for many passes and for streams.

    Parameters are those of :class:`~mllib_ext.clustering.KMeans` (without ``solver``, which names
    ways to make a whole pass) and:

    Parameters
    ----------
    miniBatchFraction : float
        The share of the rows that a round draws, each row by itself.
    initialWeights : vector, shape (k,)
        What ``initialCenters`` weigh against rows to come; 0 each unless given, so that the first
        rows replace them. ``setInitialModel`` sets both.

    Notes
    -----
    A round reads all blocks and computes with its sample. Rates fall, so that centers come to
    rest without an optimum being reached; a center without rows stays where it is.

    Examples
    --------
    Every batch of a stream refines the model of the one before:

    >>> estimator = MiniBatchKMeans(k=8, miniBatchFraction=1.0, maxIter=1)
    >>> def refine(batch, number):
    ...     estimator.setInitialModel(estimator.fit(batch))
    >>> stream.writeStream.foreachBatch(refine).start()  # doctest: +SKIP
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
        maxIter: int = 100,
        seed: int | None = None,
        distanceMeasure: str = "euclidean",
        weightCol: str | None = None,
        maxBlockSizeInMB: float = 0.0,
        featuresCols: list[str] | None = None,
        nInit: int = 1,
        initialCenters: Any = None,
        miniBatchFraction: float = 0.1,
        initialWeights: Any = None,
        checkpointInterval: int = 10,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def setMiniBatchFraction(self, value: float) -> Self:
        """Set the share of the rows that a round draws."""
        return self._set(miniBatchFraction=value)

    def setInitialWeights(self, value: Any) -> Self:
        """Set what the initial centers weigh against rows to come."""
        return self._set(initialWeights=value)

    def setInitialModel(self, model: Any) -> Self:
        """Go on from the centers of a fitted model and the weights of the rows they have seen."""
        if not hasattr(model, "clusterWeights"):
            raise TypeError(
                f"expected a model that has clusterWeights, found {type(model).__name__}: "
                "setInitialCenters takes centers alone"
            )
        super().setInitialModel(model)
        return self.setInitialWeights(Vectors.dense(model.clusterWeights.tolist()))

    def _refuse_params(self) -> None:
        super()._refuse_params()
        fraction = self.getMiniBatchFraction()
        if not 0 < fraction <= 1:
            raise ValueError(
                f"param miniBatchFraction: expected a number in (0, 1], found {fraction!r}"
            )

    def _fit_blocks(self, blocks: Blocks) -> MiniBatchKMeansModel:
        space = self._space(blocks)
        seen = self._initial_weights()
        sampling = Sampling(
            blocks, space, self.getMiniBatchFraction(), unsigned_seed(self), blocks.weight_sum
        )
        settings = Settings(max_iter=self.getMaxIter(), tol=self.getTol())

        def run(centers: np.ndarray) -> Result[Moving]:
            return fit(sampling, centers, seen, settings, self.getCallbacks())

        best, cost = self._best(blocks, space, run, sampling.cost)
        centers, seen = best.state.centers, best.state.seen
        if not seen.all():
            whole = lloyd.evaluated(blocks, space, centers)
            needed = lloyd.without_needless(blocks, space, whole)
            if len(needed.centers) < len(centers):
                centers, seen = needed.centers, seen[whole.sizes > 0]
        self._warn_of_few(blocks, len(centers))
        model = MiniBatchKMeansModel(centers, seen, cost)
        return model._trained(self, best)

    def _initial_weights(self) -> np.ndarray:
        """What the centers to start from weigh (k,); ValueError unless that suits them."""
        k = self.getK()
        if not self.isSet(self.initialWeights):
            return np.zeros(k)
        weights = self.getInitialWeights().toArray()
        if not self.isSet(self.initialCenters):
            raise ValueError("param initialWeights: expected initialCenters beside it, found none")
        if weights.shape != (k,) or not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(
                f"param initialWeights: expected {k} numbers of 0 or more, found {weights.tolist()}"
            )
        return weights
