r"""Linear support vector machines for two classes and for more.

.. math::

    \min_{\beta, b} \frac1W \sum_i w_i \, \ell(y_i, x_i \cdot \beta + b)
    + \frac\lambda2 \sum_j s_j^2 \|\beta_j\|_2^2

with a hinge or its square (:mod:`mllib_ext.hinges`), the intercept free, and :math:`s_j` the
standard deviation of feature j with ``standardization``, else 1: the objective of
``pyspark.ml.classification.LinearSVC``. LIBLINEAR's is this one times ``C W`` for
:math:`\lambda = 1 / (C W)`, where it has no intercept to regularise.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
from pyspark import keyword_only
from pyspark.ml.classification import Classifier, _LinearSVCParams
from pyspark.ml.linalg import Vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.sql import DataFrame

from mllib_ext.base import dense, frozen
from mllib_ext.blocks import Blocks
from mllib_ext.classes import (
    class_moments,
    class_weights,
    declared_classes,
    merge_class_moments,
)
from mllib_ext.classification.linear_classifier import LinearClassifier
from mllib_ext.columns import Matrix
from mllib_ext.hinges import CrammerSinger, Hinge, LargestLine, SquaredHinge
from mllib_ext.linear import centred
from mllib_ext.linear_svm import Piecewise, SVMEstimator, SVMParams, gap_of
from mllib_ext.losses import Loss
from mllib_ext.moments import Summary
from mllib_ext.persistence import SavesParams
from mllib_ext.summaries import HasLinearSVCSummary

# Without coefficients every row is then one hinge's width beyond its margin, on this side or that.
FAR = 3.0


class LinearSVCParams(SVMParams):
    """How more than two classes are told apart."""

    multiClass: Param[str] = Param(
        Params._dummy(),
        "multiClass",
        "more than two classes: ovr (each against the rest) or crammer_singer",
        typeConverter=TypeConverters.toString,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(loss="hinge", multiClass="ovr", threshold=0.0)

    def getMultiClass(self) -> str:
        """How more than two classes are told apart."""
        return self.getOrDefault(self.multiClass)


class LinearSVCModel(HasLinearSVCSummary, LinearClassifier, LinearSVCParams, _LinearSVCParams):
    """Model fitted by :class:`LinearSVC`.

    Parameters
    ----------
    coefficients : ndarray, shape (k, d)
        One row for two classes, else a row for each.
    intercepts : ndarray, shape (k,)
    n_classes : int
    gap : float
        See :attr:`gap`.
    """

    _arrays = ("coefficients", "intercepts", "n_classes", "gap")

    def __init__(
        self, coefficients: Any, intercepts: Any, n_classes: Any, gap: Any = np.nan
    ) -> None:
        super().__init__(coefficients, intercepts, n_classes)
        self._gap = frozen(gap)

    @property
    def coefficients(self) -> Vector:
        """Coefficients (d,) of two classes, dense as in pyspark.ml; ValueError for more."""
        return dense(super().coefficients.toArray())

    def setThreshold(self, value: float) -> LinearSVCModel:
        """Set what a margin has to exceed for class 1; of two classes."""
        return self._set(threshold=value)

    @property
    def gap(self) -> float:
        """The objective is proved to be at most so much above its minimum; NaN if nothing is."""
        return float(self._gap)

    def _predict_function(self, names: tuple[str, ...]) -> Any:
        return partial(_predict, self._coefficients, self._intercepts, self.getThreshold(), names)


class LinearSVC(
    SVMEstimator,
    LinearSVCParams,
    Classifier[LinearSVCModel],
    _LinearSVCParams,
    SavesParams,
):
    """Linear support vector machine, the interface of ``pyspark.ml``'s.

    Parameters are those of ``pyspark.ml.classification.LinearSVC`` and:

    Parameters
    ----------
    featuresCol : str or list of str
        A vector column, an array column, or a list of numeric columns.
    loss : {"hinge", "squared_hinge"}
    solver : {"auto", "interior-point", "bundle", "newton", "l-bfgs", "tron", "sgd", "adam"}
        For ``hinge`` the first two, whose models have a certificate (``gap``, relative to the
        objective at most ``tol``): ``auto`` takes the interior point up to 1,024 parameters. For
        ``squared_hinge`` the others: ``auto`` takes ``newton`` up to 1,024 parameters, ``tron``
        beyond. ``sgd`` and ``adam`` take both losses, of a hinge a subgradient, and have no
        certificate.
    multiClass : {"ovr", "crammer_singer"}
        More than two classes: each against the rest, all in the same rounds, or the loss of
        Crammer & Singer (2001), with ``hinge`` alone.
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
        From ``fit``: a parameter that is out of range or does not go with another; labels that are
        not 0, 1, ..., k-1; what :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Notes
    -----
    With ``regParam=0`` the hinge gets a ridge of 1e-8 on the standardised coefficients (1e-6 in
    single precision), which the reported objective contains: ``gap`` then bounds what another
    model could win by up to half the ridge times its squared norm.

    Examples
    --------
    >>> from mllib_ext.classification import LinearSVC
    >>> model = LinearSVC(regParam=0.01).fit(df)  # doctest: +SKIP
    >>> model.coefficients, model.gap  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]
    _losses = ("hinge", "squared_hinge")

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
        rawPredictionCol: str = "rawPrediction",
        fitIntercept: bool = True,
        standardization: bool = True,
        threshold: float = 0.0,
        weightCol: str | None = None,
        aggregationDepth: int = 2,
        maxBlockSizeInMB: float = 0.0,
        featuresCols: list[str] | None = None,
        loss: str = "hinge",
        solver: str = "auto",
        multiClass: str = "ovr",
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

    def setThreshold(self, value: float) -> LinearSVC:
        """Set what a margin has to exceed for class 1; of two classes."""
        return self._set(threshold=value)

    def setMultiClass(self, value: str) -> LinearSVC:
        """Set how more than two classes are told apart: ovr or crammer_singer."""
        return self._set(multiClass=value)

    def _refuse_params(self) -> None:
        self._refuse_common()
        if self.getMultiClass() not in ("ovr", "crammer_singer"):
            raise ValueError(
                f"param multiClass: expected ovr or crammer_singer, found {self.getMultiClass()!r}"
            )
        if self.getMultiClass() == "crammer_singer" and self._squared:
            raise ValueError(
                "param multiClass: expected ovr with loss squared_hinge, found 'crammer_singer'"
            )
        if np.isnan(self.getThreshold()):
            raise ValueError("param threshold: expected a number, found nan")

    def _first_round(self) -> Any:
        return class_moments, merge_class_moments

    def _fit_blocks(self, blocks: Blocks) -> LinearSVCModel:
        declared = declared_classes(blocks.label_metadata)
        labels, by_label, *summed = blocks.reduce(class_moments, merge_class_moments)
        counts = class_weights(self.getLabelCol(), labels, by_label, declared)
        summary, n_classes = Summary(*summed), max(2, len(counts))
        if np.count_nonzero(counts) == 1 and self.getFitIntercept():
            return self._constant(int(np.flatnonzero(counts)[0]), n_classes, blocks.n_features)
        k = 1 if n_classes == 2 else n_classes
        coordinates = centred(self, summary.mean, np.sqrt(summary.variance()), k)
        coef, intercept, result = self._fit_margins(blocks, self._loss(k), coordinates, 0.0)
        coef, intercept = np.atleast_2d(coef.T), np.atleast_1d(intercept)
        if self.getMultiClass() == "crammer_singer" and self.getFitIntercept() and k > 1:
            intercept = intercept - intercept.mean()  # only differences matter
        model = LinearSVCModel(coef, intercept, n_classes, gap_of(result))
        return model._trained(self, result)

    def _finish(self, model: Any, dataset: DataFrame) -> Any:
        return model._trained_on(dataset)

    def _loss(self, k: int) -> Loss | Piecewise:
        if self._squared:
            return SquaredHinge(k)
        if k > 1 and self.getMultiClass() == "crammer_singer":
            loss: LargestLine = CrammerSinger(k)
            return Piecewise(loss, FAR * np.eye(k))
        return Piecewise(Hinge(k), FAR * np.array([np.ones(k), -np.ones(k)]))

    def _constant(self, label: int, n_classes: int, d: int) -> LinearSVCModel:
        warnings.warn(
            f"label column {self.getLabelCol()!r} holds {label} alone: "
            "the model predicts it always, and its coefficients are 0",
            stacklevel=5,
        )
        rows = 1 if n_classes == 2 else n_classes
        intercepts = -np.ones(rows)  # every row lies on its margin
        if rows > 1 or label == 1:
            intercepts[label if rows > 1 else 0] = 1.0
        model = LinearSVCModel(np.zeros((rows, d)), intercepts, n_classes, 0.0)
        return model._trained(self, None, "constant_label")


def _predict(
    coefficients: np.ndarray,
    intercepts: np.ndarray,
    threshold: float,
    names: tuple[str, ...],
    X: Matrix,
) -> dict[str, np.ndarray]:
    """Raw predictions (n, k) and classes (n,) of rows X (n, d)."""
    z = X @ coefficients.T + intercepts  # (n, 1) or (n, k)
    if z.shape[1] == 1:
        raw, chosen = np.hstack([-z, z]), z[:, 0] > threshold
    else:
        raw, chosen = z, z.argmax(axis=1)
    return dict(zip(names, (raw, chosen.astype(np.float64)), strict=True))
