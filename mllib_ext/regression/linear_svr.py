r"""Linear support vector regression.

.. math::

    \min_{\beta, b} \frac1W \sum_i w_i \max(0, |x_i \cdot \beta + b - y_i| - \epsilon)^p
    + \frac\lambda2 \sum_j s_j^2 \beta_j^2

for p = 1 or 2, the intercept free, and :math:`s_j` the standard deviation of feature j with
``standardization``, else 1. The label is taken as it is. scikit-learn's ``LinearSVR`` minimises
this times ``C W`` for :math:`\lambda = 1 / (C W)`, where it has no intercept to regularise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pyspark import keyword_only
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasAggregationDepth,
    HasFitIntercept,
    HasMaxBlockSizeInMB,
    HasMaxIter,
    HasRegParam,
    HasStandardization,
    HasTol,
    HasWeightCol,
)
from pyspark.ml.regression import Regressor

from mllib_ext.base import frozen
from mllib_ext.blockfile import Block
from mllib_ext.blocks import Blocks
from mllib_ext.hinges import EpsilonInsensitive, SquaredEpsilonInsensitive
from mllib_ext.linear import centred
from mllib_ext.linear_svm import Piecewise, SVMEstimator, SVMParams, gap_of
from mllib_ext.losses import Loss
from mllib_ext.moments import Summary, merge, moments_with_label
from mllib_ext.persistence import SavesParams
from mllib_ext.regression.linear_predictor import LinearPredictor


class LinearSVRParams(
    SVMParams,
    HasMaxIter,
    HasRegParam,
    HasTol,
    HasFitIntercept,
    HasStandardization,
    HasWeightCol,
    HasAggregationDepth,
    HasMaxBlockSizeInMB,
):
    """Parameters of the estimator and its model."""

    epsilon: Param[float] = Param(
        Params._dummy(),
        "epsilon",
        "residuals up to this size cost nothing (>= 0), in units of the label",
        typeConverter=TypeConverters.toFloat,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(loss="epsilon_insensitive", epsilon=0.0)

    def getEpsilon(self) -> float:
        """The size of residuals that cost nothing."""
        return self.getOrDefault(self.epsilon)


class LinearSVRModel(LinearPredictor, LinearSVRParams):  # type: ignore[misc]
    """Model fitted by :class:`LinearSVR`.

    Parameters
    ----------
    coefficients : ndarray, shape (d,)
    intercept : float
    gap : float
        See :attr:`gap`.
    """

    _arrays = ("coefficients", "intercept", "gap")

    def __init__(self, coefficients: Any, intercept: Any, gap: Any = np.nan) -> None:
        super().__init__(coefficients, intercept)
        self._gap = frozen(gap)

    @property
    def gap(self) -> float:
        """The objective is proved to be at most so much above its minimum; NaN if nothing is."""
        return float(self._gap)


class LinearSVR(SVMEstimator, LinearSVRParams, Regressor[LinearSVRModel], SavesParams):
    """Linear support vector regression, with the parameters of pyspark.ml's linear models.

    Parameters
    ----------
    featuresCol : str or list of str
        A vector column, an array column, or a list of numeric columns.
    loss : {"epsilon_insensitive", "squared_epsilon_insensitive"}
    epsilon : float
        Residuals up to this size cost nothing, 0 or more, in units of the label.
    regParam : float
        The strength of the penalty, 0 or more.
    solver : {"auto", "interior-point", "bundle", "newton", "l-bfgs", "tron", "sgd", "adam"}
        As in :class:`mllib_ext.classification.LinearSVC`: the first two for
        ``epsilon_insensitive``, the others for its square, the last two for both.
    standardization : bool
        Whether the penalty is on the coefficients of standardised features.
    stepSize, momentum, nesterov, miniBatchFraction, schedule, decay, warmUp
        Steps of the solvers ``sgd`` and ``adam``, for which ``maxIter`` counts passes. Unless
        ``stepSize`` is set, ``sgd`` begins with one over the number of parameters of an output,
        ``adam`` with 0.01.
    updates, localSteps, outerMomentum, maxStaleness, seed
        How these steps are shared among the partitions: :mod:`mllib_ext.optimizers.sgd`.
    compression, compressionShare, compressionRank
        How what is sent is made small: :mod:`mllib_ext.compression`.
    validationFraction, patience
        Early stopping of the solvers ``sgd`` and ``adam``: the share of the rows held out, 0 for
        none, and after how many passes without a better loss of theirs to stop. The model is the
        one that had the best.

    Raises
    ------
    ValueError
        From ``fit``: a parameter that is out of range or does not go with another; what
        :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Examples
    --------
    >>> from mllib_ext.regression import LinearSVR
    >>> model = LinearSVR(regParam=0.01, epsilon=0.1).fit(df)  # doctest: +SKIP
    >>> model.coefficients, model.gap  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]
    _losses = ("epsilon_insensitive", "squared_epsilon_insensitive")

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str | list[str] = "features",
        labelCol: str = "label",
        predictionCol: str = "prediction",
        maxIter: int = 100,
        regParam: float = 0.0,
        tol: float = 1e-6,
        fitIntercept: bool = True,
        standardization: bool = True,
        weightCol: str | None = None,
        aggregationDepth: int = 2,
        maxBlockSizeInMB: float = 0.0,
        featuresCols: list[str] | None = None,
        loss: str = "epsilon_insensitive",
        epsilon: float = 0.0,
        solver: str = "auto",
        stepSize: float = 1.0,
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
        seed: int = 0,
        checkpointInterval: int = 10,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def setEpsilon(self, value: float) -> LinearSVR:
        """Set the size of residuals that cost nothing."""
        return self._set(epsilon=value)

    def _refuse_params(self) -> None:
        self._refuse_common()
        if not 0 <= self.getEpsilon() < np.inf:
            raise ValueError(
                f"param epsilon: expected a number of 0 or more, found {self.getEpsilon()!r}"
            )

    def _first_round(self) -> Any:
        return moments_and_range, merge_moments_and_range

    def _fit_blocks(self, blocks: Blocks) -> LinearSVRModel:
        lowest, highest, *summed = blocks.reduce(moments_and_range, merge_moments_and_range)
        summary, d = Summary(*summed), blocks.n_features
        mean, deviation = summary.mean, np.sqrt(summary.variance())
        coordinates = centred(self, mean[:d], deviation[:d])
        loss = self._loss(lowest, highest, deviation[d] or max(abs(mean[d]), 1.0))
        coef, intercept, result = self._fit_margins(blocks, loss, coordinates, mean[d])
        return LinearSVRModel(coef, intercept, gap_of(result))._trained(self, result)

    def _loss(self, lowest: float, highest: float, unit: float) -> Loss | Piecewise:
        epsilon = self.getEpsilon()
        if self._squared:
            return SquaredEpsilonInsensitive(epsilon)
        far = epsilon + unit
        return Piecewise(
            EpsilonInsensitive(epsilon), np.array([[highest + far], [lowest - far]]), unit
        )


def moments_and_range(block: Block) -> tuple[Any, ...]:
    """One block's lowest and highest label, and the moments of its features and label."""
    return block.y.min(), block.y.max(), *moments_with_label(block)


def merge_moments_and_range(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    """Both together, for ``Blocks.reduce``."""
    joined = merge(left[2:], right[2:])  # type: ignore[arg-type]
    return min(left[0], right[0]), max(left[1], right[1]), *joined
