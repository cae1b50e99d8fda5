"""What the estimators of clusters and their models share."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Self

import numpy as np
from pyspark.ml.linalg import DenseMatrix, Matrix, Vector
from pyspark.ml.param import Param, Params
from pyspark.sql import DataFrame

from mllib_ext.base import HasCallbacks, HasFeatures, Trained, as_row, frozen
from mllib_ext.blocks import Blocks
from mllib_ext.columns import Matrix as Rows
from mllib_ext.distances import squared_norms
from mllib_ext.fitting import FitsOverBlocks
from mllib_ext.nearest import distances
from mllib_ext.prediction import Output, with_predictions
from mllib_ext.space import SPACES, Space

# HasSeed's own default is the hash of the class's name, another one in each session.
SEED = 0


def to_centers(value: Any) -> DenseMatrix:
    """Centers (k, d) of a model, or anything like an array, as Spark's matrix; else TypeError."""
    if isinstance(value, DenseMatrix):
        return value
    if isinstance(value, Matrix):
        value = value.toArray()
    elif hasattr(value, "clusterCenters"):
        value = value.clusterCenters()
    try:
        centers = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        centers = np.empty(0)
    if centers.ndim != 2:
        raise TypeError(f"expected a model or centers of the shape (k, d), found {value!r}")
    k, d = centers.shape
    return DenseMatrix(k, d, centers.ravel().tolist(), isTransposed=True)


class HasInitialCenters(Params):
    """Centers to start from, in place of chosen ones."""

    initialCenters: Param[Any] = Param(
        Params._dummy(),
        "initialCenters",
        "centers (k, d) to start from; initMode, initSteps and nInit then have no say",
        typeConverter=to_centers,
    )

    def setInitialCenters(self, value: Any) -> Self:
        """Set the centers to start from: anything like an array (k, d)."""
        return self._set(initialCenters=value)

    def getInitialCenters(self) -> DenseMatrix:
        """The centers to start from (k, d)."""
        return self.getOrDefault(self.initialCenters)

    def setInitialModel(self, model: Any) -> Self:
        """Start from the centers of a fitted model, this package's or Spark's."""
        return self.setInitialCenters(model)

    def _initial_centers(self, k: int, d: int) -> np.ndarray:
        """The centers to start from; ValueError unless they are (k, d) and finite."""
        centers = self.getInitialCenters().toArray()
        if centers.shape != (k, d):
            raise ValueError(
                f"param initialCenters: expected the shape {(k, d)}, k by features, "
                f"found {centers.shape}"
            )
        if not np.isfinite(centers).all():
            raise ValueError("param initialCenters: expected finite numbers, found others")
        return centers


class ClusteringModel(Trained):
    """Centers, and the cluster of a row.

    Parameters
    ----------
    centers : ndarray, shape (k, d)
    sizes : ndarray, shape (k,)
        Summed weights of the training rows of each cluster.
    cost : float
        What the fit minimised: weighted sum of the squared distances of training rows to their
        centers, or of their cosine distances.
    """

    _arrays: tuple[str, ...] = ("centers", "sizes", "cost")

    def __init__(self, centers: Any, sizes: Any, cost: Any) -> None:
        super().__init__()
        self._centers, self._sizes, self._cost = frozen(centers), frozen(sizes), frozen(cost)

    def setPredictionCol(self, value: str) -> Self:
        """Set the column of predicted clusters."""
        return self._set(predictionCol=value)

    def clusterCenters(self) -> list[np.ndarray]:
        """The centers, k arrays (d,): copies."""
        return list(self._centers.copy())

    @property
    def clusterWeights(self) -> np.ndarray:
        """Summed weights of the training rows of each cluster, (k,), read-only."""
        return self._sizes

    @property
    def cost(self) -> float:
        """Weighted sum of the training rows' distances to their centers (squared if euclidean)."""
        return float(self._cost)

    @property
    def numFeatures(self) -> int:
        """Number of features."""
        return int(self._centers.shape[1])

    def predict(self, value: Vector) -> int:
        """The cluster of one row."""
        return int(self._predict_function("prediction")(self._row(value))["prediction"][0])

    def _row(self, value: Any) -> np.ndarray:
        return as_row(value, self.numFeatures)

    def _space(self: Any) -> Space:
        """Where this model measures distances, in float64."""
        if self.getOrDefault("distanceMeasure") == "cosine":
            return Space(np.zeros(self.numFeatures), unit=True)
        return Space(self._centers.mean(axis=0))

    def _predict_function(self, name: str) -> Any:
        """``predict(X) -> columns``, free of the model itself."""
        return partial(_predict, self._space(), self._centers, name)

    def _transform(self: Any, dataset: DataFrame) -> DataFrame:
        name = self.getOrDefault("predictionCol")
        nominal = {"num_vals": len(self._centers), "type": "nominal"}
        outputs = {name: Output("integer", nominal)}
        predict = self._predict_function(name)
        return with_predictions(self, dataset, self.numFeatures, outputs, predict)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: uid={self.uid}, k={len(self._centers)}, "
            f"numFeatures={self.numFeatures}"
        )


def _predict(space: Space, centers: np.ndarray, name: str, X: Rows) -> dict[str, np.ndarray]:
    """The clusters (n,) of rows X (n, d)."""
    refuse_zeros(space, X)
    labels, _ = distances(X, space, centers)
    return {name: labels.astype(np.int32)}


def refuse_zeros(space: Space, X: Rows) -> None:
    """ValueError for rows without a direction, where that matters."""
    if space.unit and (squared_norms(X) == 0).any():
        raise ValueError(
            "features: expected rows of a length above 0 for the cosine distance, "
            "found a row of zeros"
        )


class Clusterer(FitsOverBlocks, HasFeatures, HasCallbacks):
    """Setters and checks of an estimator of clusters."""

    setFeaturesCol = HasFeatures.setFeaturesCol

    def setK(self, value: int) -> Self:
        """Set the number of clusters."""
        return self._set(k=value)

    def setMaxIter(self, value: int) -> Self:
        """Set the largest number of iterations."""
        return self._set(maxIter=value)

    def setDistanceMeasure(self, value: str) -> Self:
        """Set the distance: euclidean or cosine."""
        return self._set(distanceMeasure=value)

    def setPredictionCol(self, value: str) -> Self:
        """Set the column of predicted clusters."""
        return self._set(predictionCol=value)

    def setSeed(self, value: int) -> Self:
        """Set the seed of all random choices."""
        return self._set(seed=value)

    def setWeightCol(self, value: str) -> Self:
        """Set the column of row weights."""
        return self._set(weightCol=value)

    def _refuse_params(self) -> None:
        """ValueError for params out of their range."""
        self._refuse_below(1, "k")
        self._refuse_below(0, "maxIter")
        self._refuse_other("distanceMeasure", tuple(SPACES))

    def _refuse_below(self, least: float, *names: str) -> None:
        for name in names:
            found = self.getOrDefault(name)
            if not (found >= least and np.isfinite(found)):
                raise ValueError(
                    f"param {name}: expected a number of {least} or more, found {found!r}"
                )

    def _refuse_other(self, name: str, known: tuple[str, ...]) -> None:
        found = self.getOrDefault(name)
        if found not in known:
            raise ValueError(f"param {name}: expected one of {known}, found {found!r}")

    def _first_round(self) -> Any:
        return SPACES[self.getOrDefault("distanceMeasure")][1], None

    def _space(self, blocks: Blocks) -> Space:
        return SPACES[self.getOrDefault("distanceMeasure")][0](blocks)

    def _warn_of_few(self, blocks: Blocks, n_clusters: int, what: str = "distinct rows") -> None:
        k = self.getOrDefault("k")
        if n_clusters < k:
            warnings.warn(
                f"{blocks.features.label}: fewer {what} than k = {k}: "
                f"the model has {n_clusters} centers",
                stacklevel=5,
            )

    def _finish(self, model: Any, dataset: DataFrame) -> Any:
        return model._trained_on(dataset)
