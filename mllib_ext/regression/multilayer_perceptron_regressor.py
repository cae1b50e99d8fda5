r"""Regression by a multilayer perceptron.

.. math::

    \min_\theta \frac1W \sum_i \frac{w_i}2 (z(x_i; \theta) - y_i)^2
    + \frac\lambda2 \sum_l \|W_l\|^2

with the one output z of :mod:`mllib_ext.network`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from pyspark import keyword_only
from pyspark.ml.linalg import Vector
from pyspark.ml.regression import RegressionModel, Regressor
from pyspark.sql import DataFrame

from mllib_ext.blockfile import Block
from mllib_ext.blocks import Blocks
from mllib_ext.columns import Matrix
from mllib_ext.losses import SquaredError
from mllib_ext.mapped import Mapped
from mllib_ext.multilayer_perceptron import (
    MultilayerPerceptronEstimator,
    MultilayerPerceptronModel,
    outputs,
)
from mllib_ext.persistence import SavesParams
from mllib_ext.prediction import Output, with_predictions


class MultilayerPerceptronRegressionModel(  # type: ignore[misc]
    MultilayerPerceptronModel, RegressionModel[Vector]
):
    """Model fitted by :class:`MultilayerPerceptronRegressor`.

    Parameters
    ----------
    weights : ndarray, shape (n_weights,)
        In the layout of :class:`mllib_ext.network.Network`.
    """

    def predict(self, value: Vector) -> float:
        """The prediction for one row."""
        return float(self._row_margins(value)[0, 0])

    def _transform(self, dataset: DataFrame) -> DataFrame:
        name = self.getPredictionCol()
        predict = partial(_predict, self._shipped(dataset), name)
        columns = {name: Output("double", {})}
        return with_predictions(self, dataset, self.numFeatures, columns, predict)


def _predict(mapped: Mapped, name: str, X: Matrix) -> dict[str, np.ndarray]:
    return {name: outputs(mapped.open(), X)[:, 0]}


def label_sum(block: Block) -> tuple[float]:
    """The block's weighted sum of labels."""
    return (float(block.w @ block.y),)


class MultilayerPerceptronRegressor(  # type: ignore[misc]
    MultilayerPerceptronEstimator, Regressor, SavesParams
):
    """Regression by a multilayer perceptron, with the parameters of the classifier.

    Parameters
    ----------
    featuresCol, activation, regParam, weightCol, solver, blockSize, initialWeights, seed, dropout,
    batchSize, and those of the solvers ``sgd`` and ``adam``
        As of :class:`mllib_ext.classification.MultilayerPerceptronClassifier`. Without
        ``initialWeights`` the output's bias starts at the mean label.
    layers : list of int
        Units of each layer: the number of features, the hidden layers, 1.
    labelCol : str
        A number. Where labels are far from 1 in size, scale them: the steps of ``gd`` and the
        penalty depend on it.

    Raises
    ------
    ValueError
        From ``fit``: a parameter that is out of range, or layers that do not fit the data; what
        :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Examples
    --------
    >>> from mllib_ext.regression import MultilayerPerceptronRegressor
    >>> model = MultilayerPerceptronRegressor(layers=[10, 20, 1]).fit(df)  # doctest: +SKIP
    >>> model.weights, model.converged  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str | list[str] = "features",
        labelCol: str = "label",
        predictionCol: str = "prediction",
        maxIter: int = 100,
        tol: float = 1e-6,
        seed: int | None = None,
        layers: list[int] | None = None,
        blockSize: int = 128,
        stepSize: float = 0.03,
        solver: str = "l-bfgs",
        initialWeights: Vector | None = None,
        weightCol: str | None = None,
        featuresCols: list[str] | None = None,
        regParam: float = 0.0,
        activation: str = "sigmoid",
        dropout: float = 0.0,
        batchSize: int = 0,
        momentum: float = 0.0,
        nesterov: bool = False,
        miniBatchFraction: float = 0.1,
        schedule: str = "cosine",
        decay: float = 1e-4,
        warmUp: float = 0.0,
        updates: str = "synchronous",
        localSteps: int = 0,
        outerMomentum: float = 0.0,
        maxStaleness: int = 1,
        compression: str = "none",
        compressionShare: float = 0.01,
        compressionRank: int = 2,
        validationFraction: float = 0.0,
        patience: int = 5,
        checkpointInterval: int = 10,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def _refuse_params(self) -> None:
        super()._refuse_params()
        if self.getLayers()[-1] != 1:
            raise ValueError(f"param layers: expected the last to be 1, found {self.getLayers()!r}")

    def _first_round(self) -> Any:
        return label_sum, None

    def _fit_blocks(self, blocks: Blocks) -> MultilayerPerceptronRegressionModel:
        start = self._start(blocks)
        if not self.isDefined("initialWeights"):
            (total,) = blocks.sum(label_sum)
            start[-1] = total / blocks.weight_sum  # the output's bias
        result = self._fit_network(blocks, SquaredError(), start)
        return MultilayerPerceptronRegressionModel(result.state.v)._trained(self, result)
