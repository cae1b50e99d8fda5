r"""Classification by a multilayer perceptron.

.. math::

    \min_\theta \frac1W \sum_i w_i \, \ell(y_i, z(x_i; \theta)) + \frac\lambda2 \sum_l \|W_l\|^2

with the multinomial deviance :math:`\ell` of the margins z of :mod:`mllib_ext.network`: hidden
layers with an activation, and softmax above them. Without a penalty it is the objective of
``pyspark.ml.classification``, up to the ends of partitions: there a batch of fewer than
``blockSize`` rows counts as much as a whole one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from pyspark import keyword_only
from pyspark.ml.classification import (
    ProbabilisticClassificationModel,
    ProbabilisticClassifier,
    _MultilayerPerceptronParams,
)
from pyspark.ml.linalg import Vector
from pyspark.sql import DataFrame

from mllib_ext.base import dense
from mllib_ext.blocks import Blocks
from mllib_ext.classes import (
    chosen,
    class_weights,
    declared_classes,
    labels_of,
    merge_labels,
    refuse_number_of_thresholds,
    refuse_thresholds,
)
from mllib_ext.columns import Matrix
from mllib_ext.losses import Multinomial, softmax
from mllib_ext.mapped import Mapped
from mllib_ext.multilayer_perceptron import (
    MultilayerPerceptronEstimator,
    MultilayerPerceptronModel,
    outputs,
)
from mllib_ext.persistence import SavesParams
from mllib_ext.prediction import class_outputs, with_predictions
from mllib_ext.summaries import HasMultilayerPerceptronSummary


class MultilayerPerceptronClassificationModel(  # type: ignore[misc]
    HasMultilayerPerceptronSummary,
    MultilayerPerceptronModel,
    ProbabilisticClassificationModel,
    _MultilayerPerceptronParams,
):
    """Model fitted by :class:`MultilayerPerceptronClassifier`.

    Parameters
    ----------
    weights : ndarray, shape (n_weights,)
        In the layout of pyspark.ml's ``weights``.
    """

    @property
    def numClasses(self) -> int:
        """Number of classes."""
        return self.getLayers()[-1]

    def predictRaw(self, value: Vector) -> Vector:
        """Margins of one row, one for each class."""
        return dense(self._row_margins(value)[0])

    def predictProbability(self, value: Vector) -> Vector:
        """Class probabilities of one row."""
        return dense(softmax(self._row_margins(value))[0])

    def predict(self, value: Vector) -> float:
        """The class of one row."""
        return float(chosen(softmax(self._row_margins(value)), self._rule)[0])

    @property
    def _rule(self) -> np.ndarray | None:
        return np.array(self.getThresholds()) if self.isDefined("thresholds") else None

    def _transform(self, dataset: DataFrame) -> DataFrame:
        names = self.getRawPredictionCol(), self.getProbabilityCol(), self.getPredictionCol()
        predict = partial(_predict, self._shipped(dataset), self._rule, names)
        columns = class_outputs(names, self.numClasses)
        return with_predictions(self, dataset, self.numFeatures, columns, predict)


def _predict(
    mapped: Mapped, thresholds: np.ndarray | None, names: tuple[str, str, str], X: Matrix
) -> dict[str, np.ndarray]:
    """Raw predictions (n, k), probabilities (n, k) and classes (n,) of rows X (n, d)."""
    raw = outputs(mapped.open(), X)
    probability = softmax(raw)
    found = (raw, probability, chosen(probability, thresholds))
    return dict(zip(names, found, strict=True))


class MultilayerPerceptronClassifier(  # type: ignore[misc]
    MultilayerPerceptronEstimator,
    ProbabilisticClassifier,
    _MultilayerPerceptronParams,
    SavesParams,
):
    """Classification by a multilayer perceptron, the interface of ``pyspark.ml``'s.

    Parameters are those of ``pyspark.ml.classification.MultilayerPerceptronClassifier`` and:

    Parameters
    ----------
    featuresCol : str or list of str
        A vector column (dense or sparse), an array column, or a list of numeric columns. Scale
        features first.
    layers : list of int
        Units of each layer: the number of features, the hidden layers, the number of classes.
    activation : {"sigmoid", "tanh", "relu", "gelu"}
        Of the hidden layers; pyspark.ml's is ``sigmoid``. ``gelu`` is the one with tanh.
    regParam : float
        The strength of the L2 penalty on the weights (not the biases), 0 or more: scikit-learn's
        ``alpha`` divided by the number of rows.
    weightCol : str, optional
        Weights of rows. Weights by class are a column of :class:`mllib_ext.feature.ClassBalancer`,
        a stage before this one: what scikit-learn calls ``class_weight="balanced"``.
    solver : {"l-bfgs", "gd", "sgd", "adam"}
        ``gd`` is gradient descent over all rows with the fixed step ``stepSize``. ``sgd`` and
        ``adam`` go by mini-batches, and ``maxIter`` counts their passes over the rows.
    stepSize, momentum, nesterov, schedule, decay, warmUp
        Steps of the solvers ``sgd`` and ``adam``. Unless ``stepSize`` is set, ``sgd`` begins with
        0.1, ``adam`` with 0.001; the schedule takes it to 0 at the end of ``maxIter`` passes.
    batchSize : int
        Rows in a step of these, about. It stands for a ``miniBatchFraction`` of so many among all
        rows, or with ``updates="local"`` among those of a partition of mean size, so that a step
        of all n partitions together sees n times as many. 0 is by ``miniBatchFraction``.
    miniBatchFraction : float
        The share of the rows in a step, in (0, 1]; with local updates of a partition's.
    dropout : float
        The share of the hidden layers' activations that each row leaves out in a step of ``sgd``
        or ``adam``, drawn anew, in [0, 1). Losses and predictions are those of the whole network.
    updates, localSteps, outerMomentum, maxStaleness
        How steps are shared among the partitions: :mod:`mllib_ext.optimizers.sgd`. Most networks
        are best off with ``local``: a round for every step costs more than the step.
    compression, compressionShare, compressionRank
        How what is sent is made small: :mod:`mllib_ext.compression`.
    validationFraction, patience
        Early stopping of ``sgd`` and ``adam``: the share of the rows held out, 0 for none, and
        after how many passes without a better loss of theirs to stop. The model is the one that
        had the best. What a row is decides whether it is held out, equal rows together.
    blockSize : int
        Rows that pass through the layers together. It changes nothing but the speed.
    initialWeights : Vector, optional
        Weights to start from, in the layout of a model's ``weights``, which is pyspark.ml's. Unless
        given they are random by ``seed``: those of Glorot & Bengio (2010) for ``sigmoid`` and
        ``tanh``, of He et al. (2015) for ``relu`` and ``gelu``
        (:meth:`mllib_ext.network.Network.initial`), so that other local minima than pyspark.ml's
        may be found.

    Raises
    ------
    ValueError
        From ``fit``: a parameter that is out of range, or layers that do not fit the data; labels
        that are not 0, 1, ..., k-1; what :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Examples
    --------
    >>> from mllib_ext.classification import MultilayerPerceptronClassifier
    >>> mlp = MultilayerPerceptronClassifier(layers=[64, 32, 10], activation="relu")
    >>> model = mlp.fit(df)  # doctest: +SKIP
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
        probabilityCol: str = "probability",
        rawPredictionCol: str = "rawPrediction",
        thresholds: list[float] | None = None,
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
        if self.isDefined("thresholds"):
            refuse_thresholds(self.getThresholds())
            refuse_number_of_thresholds(self.getThresholds(), self.getLayers()[-1])

    def _first_round(self) -> Any:
        return labels_of, merge_labels

    def _fit_blocks(self, blocks: Blocks) -> MultilayerPerceptronClassificationModel:
        labels, by_label = blocks.reduce(labels_of, merge_labels)
        declared = declared_classes(blocks.label_metadata)
        counts = class_weights(self.getLabelCol(), labels, by_label, declared)
        n_classes = self.getLayers()[-1]
        if counts[n_classes:].any():
            raise ValueError(
                f"label column {self.getLabelCol()!r}: expected labels below {n_classes}, the last "
                f"of param layers, found {np.flatnonzero(counts).max()}"
            )
        result = self._fit_network(blocks, Multinomial(n_classes), self._start(blocks))
        return MultilayerPerceptronClassificationModel(result.state.v)._trained(self, result)

    def _finish(self, model: Any, dataset: DataFrame) -> Any:
        return model._trained_on(dataset)
