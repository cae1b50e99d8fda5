"""Support vector machines with a kernel, trained by a cascade: :mod:`mllib_ext.cascade`."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Self

import numpy as np
from pyspark import keyword_only
from pyspark.ml.classification import ClassificationModel, Classifier
from pyspark.ml.linalg import Vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.sql import DataFrame

from mllib_ext import cascade
from mllib_ext.base import HasCallbacks, HasFeatures, as_row, dense, frozen
from mllib_ext.blocks import Blocks
from mllib_ext.cascade import CascadeSettings, Problem
from mllib_ext.classes import class_weights, declared_classes, merge_class_moments
from mllib_ext.columns import Matrix
from mllib_ext.kernel_estimator import (
    KernelEstimator,
    KernelParams,
    SupportVectors,
    integers,
    parts_of,
    warn_of_many,
)
from mllib_ext.kernel_machine import Machine, Rows, votes
from mllib_ext.kernels import Kernel
from mllib_ext.mapped import Mapped
from mllib_ext.persistence import SavesParams
from mllib_ext.prediction import class_outputs, with_predictions


def to_class_weight(value: Any) -> str | dict[int, float]:
    """The name of a rule, or weights by label. A saved dict has its labels as strings."""
    if not isinstance(value, dict):
        return TypeConverters.toString(value)
    return {TypeConverters.toInt(float(c)): TypeConverters.toFloat(w) for c, w in value.items()}


class KernelSVCParams(KernelParams):
    """Parameters of the estimator and its model."""

    C: Param[float] = Param(
        Params._dummy(),
        "C",
        "weight of the rows' losses against the penalty, above 0",
        TypeConverters.toFloat,
    )
    classWeight: Param[Any] = Param(
        Params._dummy(),
        "classWeight",
        "what C of a class is multiplied by: balanced (inverse to the weight of its rows), or "
        "numbers by label",
        to_class_weight,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(C=1.0)

    def getC(self) -> float:
        """The weight of the rows' losses."""
        return self.getOrDefault(self.C)

    def getClassWeight(self) -> str | dict[int, float]:
        """What C of a class is multiplied by: balanced, or numbers by label."""
        weight: str | dict[int, float] = self.getOrDefault(self.classWeight)
        return weight


class KernelSVCModel(SupportVectors, KernelSVCParams, ClassificationModel):  # type: ignore[misc]
    """Model fitted by :class:`KernelSVC`.

    ``history`` has the dual objective of each pass as ``loss``, as it is minimised (negative), the
    worst violation of a KKT condition as ``gradient_norm``, and in ``values`` ``n_support_vectors``
    and ``n_violators``, the rows that violate one by more than ``tol``.

    Parameters
    ----------
    values, indices, indptr : ndarray
        The support vectors: (n_sv, d), or the parts of a CSR matrix.
    n_features : int
    y : ndarray, shape (n_sv,)
        Their classes, as places in ``classes``.
    alpha : ndarray, shape (n_sv, k)
        As in :class:`mllib_ext.kernel_machine.Machine`, and so the intercepts.
    intercepts : ndarray, shape (k (k - 1) / 2,)
    classes : ndarray, shape (k,)
        The labels that had rows.
    n_classes : int
    gamma_value, dual_objective : float
    """

    _arrays = (
        "values",
        "indices",
        "indptr",
        "n_features",
        "y",
        "alpha",
        "intercepts",
        "classes",
        "n_classes",
        "gamma_value",
        "dual_objective",
    )

    def __init__(
        self,
        values: Any,
        indices: Any,
        indptr: Any,
        n_features: Any,
        y: Any,
        alpha: Any,
        intercepts: Any,
        classes: Any,
        n_classes: Any,
        gamma_value: Any,
        dual_objective: Any,
    ) -> None:
        super().__init__()
        self._hold(values, indices, indptr, n_features, gamma_value, dual_objective)
        self._y, self._classes = integers(y, np.intp), integers(classes, np.intp)
        self._alpha, self._intercepts = frozen(alpha), frozen(intercepts)
        self._n_classes = frozen(n_classes)

    @classmethod
    def _of(
        cls, machine: Machine, classes: np.ndarray, n_classes: int, gamma: float, dual: float
    ) -> Self:
        return cls(
            *parts_of(machine.rows.X),
            machine.rows.y,
            machine.alpha,
            machine.intercepts,
            classes,
            n_classes,
            gamma,
            dual,
        )

    @property
    def numClasses(self) -> int:
        """Number of classes."""
        return int(self._n_classes)

    @property
    def nSupport(self) -> np.ndarray:
        """Number of support vectors of each class, (k,)."""
        return np.bincount(self._classes[self._y], minlength=self.numClasses)

    @property
    def dualCoef(self) -> np.ndarray:
        """Dual coefficients with signs: scikit-learn's ``dual_coef_``, (k - 1, n_sv)."""
        return self._machine.dual_coef

    @property
    def intercepts(self) -> np.ndarray:
        """Of each pair of classes: scikit-learn's ``intercept_``, (k (k - 1) / 2,)."""
        return self._machine.intercept

    @property
    def _machine(self) -> Machine:
        m = len(self._y)
        rows = Rows(np.arange(m), self.supportVectors, self._y, np.empty(m))
        return Machine(rows, self._alpha, self._intercepts)

    @property
    def _predictor(self) -> tuple[Machine, Kernel, np.ndarray, int]:
        kernel = self._kernel(self.gammaValue)
        return self._machine, kernel, self._classes, self.numClasses

    def predictRaw(self, value: Vector) -> Vector:
        """Decision values of one row, one for each class."""
        machine, kernel, classes, k = self._predictor
        row = as_row(value, self.numFeatures)
        return dense(raw_predictions(machine, kernel, classes, k, row)[0])

    def predict(self, value: Vector) -> float:
        """The class of one row."""
        return float(np.argmax(self.predictRaw(value).toArray()))

    def _transform(self, dataset: DataFrame) -> DataFrame:
        names = self.getRawPredictionCol(), self.getPredictionCol()
        predict = partial(_predict, self._shipped(dataset), names)
        outputs = class_outputs(names, self.numClasses)
        return with_predictions(self, dataset, self.numFeatures, outputs, predict)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: uid={self.uid}, numClasses={self.numClasses}, "
            f"numFeatures={self.numFeatures}, numSupportVectors={self.numSupportVectors}"
        )


def raw_predictions(
    machine: Machine, kernel: Kernel, classes: np.ndarray, n_classes: int, X: Matrix
) -> np.ndarray:
    """Raw predictions (n, n_classes) of rows X: (-f, f) of two classes, votes of more.

    A class that had no rows has no machine, and -inf.
    """
    values = machine.decisions(kernel, X)
    if n_classes == len(classes) == 2:
        return np.hstack([-values, values])
    raw = np.full((X.shape[0], n_classes), -np.inf)
    raw[:, classes] = votes(values, len(classes))
    return raw


def _predict(mapped: Mapped, names: tuple[str, str], X: Matrix) -> dict[str, np.ndarray]:
    machine, kernel, classes, k = mapped.open()
    raw = raw_predictions(machine, kernel, classes, k, X)
    return dict(zip(names, (raw, raw.argmax(axis=1).astype(np.float64)), strict=True))


class KernelSVC(  # type: ignore[misc]
    KernelEstimator, HasCallbacks, KernelSVCParams, Classifier, SavesParams
):
    r"""Support vector classification with a kernel, exact and distributed.

    .. math::

        \min_{f, b} \frac12 \|f\|^2 + \sum_i C_i \max(0, 1 - s_i (f(x_i) + b))

    for each pair of classes, as scikit-learn's ``SVC``, solved by a cascade of support vector
    machines over the partitions with feedback (Graf et al. 2004, :mod:`mllib_ext.cascade`): passes
    go on until every row that is no support vector satisfies its KKT condition within ``tol``.

    Parameters
    ----------
    featuresCol : str or list of str
        A vector column, an array column, or a list of numeric columns. Scale features first.
    labelCol : str
        Classes 0, 1, ..., as ``StringIndexer`` gives them. More than two are told apart in pairs.
    predictionCol, rawPredictionCol : str
        The class with the largest raw prediction; scikit-learn's ``decision_function``: (-f, f) of
        two classes, of more their votes, to which at most 1/3 is added by their decision values.
    kernel : {"rbf", "linear", "poly", "sigmoid"}
    gamma : {"scale", "auto"} or float
        ``scale`` is 1 / (d var(X)), ``auto`` 1 / d.
    degree : int
        Of ``poly``.
    coef0 : float
        Of ``poly`` and ``sigmoid``.
    C : float
        The bound of a row's dual coefficient, above 0. It is not divided by the number of rows.
    classWeight : {"balanced"} or dict of int to float, optional
        ``balanced`` multiplies C of class c by W / (k W_c), W being summed weights; a dict by the
        number for a class, 1 for those it does not name.
    weightCol : str, optional
        Multiplies C of a row. Rows of weight 0 are as if they were not there.
    tol : float
        By how much a KKT condition may be violated. libsvm's single precision sets a limit at about
        6e-8 of the sum of a pair's dual coefficients.
    maxIter : int
        The largest number of passes.
    maxSupportVectors : int
        More of them, which every node and the driver hold, are an error.
    aggregationDepth : int
        2 merges all on the driver, more merge neighbours on the executors before.
    maxBlockSizeInMB : float
        The size of a block, which is a node of the cascade.

    Raises
    ------
    ValueError
        From ``fit``: a parameter out of range; labels that are not 0, 1, ...; more support vectors
        than ``maxSupportVectors``; what :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Notes
    -----
    More than 30% of the rows as support vectors, and more than 1,000, are a warning: predictions
    are slow, and so are passes, each of which solves the problem of all support vectors.

    Where classes have as many votes the decision values decide, as scikit-learn's ``predict`` does
    with ``break_ties=True``.

    Examples
    --------
    >>> from mllib_ext.classification import KernelSVC
    >>> model = KernelSVC(C=10.0).fit(df)  # doctest: +SKIP
    >>> model.numSupportVectors, model.dualObjective, model.converged  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    # Spark's estimators have one of their own, nearer in the method resolution order.
    setFeaturesCol = HasFeatures.setFeaturesCol

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str | list[str] = "features",
        labelCol: str = "label",
        predictionCol: str = "prediction",
        rawPredictionCol: str = "rawPrediction",
        kernel: str = "rbf",
        gamma: str | float = "scale",
        degree: int = 3,
        coef0: float = 0.0,
        C: float = 1.0,
        classWeight: str | dict[int, float] | None = None,
        weightCol: str | None = None,
        tol: float = 1e-3,
        maxIter: int = 100,
        maxSupportVectors: int = 20_000,
        aggregationDepth: int = 3,
        maxBlockSizeInMB: float = 64.0,
        featuresCols: list[str] | None = None,
        checkpointInterval: int = 10,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def setC(self, value: float) -> Self:
        """Set the weight of the rows' losses."""
        return self._set(C=value)

    def setClassWeight(self, value: str | dict[int, float]) -> Self:
        """Set what C of a class is multiplied by: balanced, or numbers by label."""
        return self._set(classWeight=value)

    def _refuse_params(self) -> None:
        super()._refuse_params()
        weight = self.getClassWeight() if self.isDefined("classWeight") else {}
        if isinstance(weight, str) and weight != "balanced":
            raise ValueError(
                f"param classWeight: expected balanced or numbers by label, found {weight!r}"
            )
        if isinstance(weight, dict) and not all(0 < w < np.inf for w in weight.values()):
            raise ValueError(f"param classWeight: expected numbers above 0, found {weight!r}")
        self._refuse_not_above_0("C")

    def _fit_blocks(self, blocks: Blocks) -> KernelSVCModel:
        labels, by_label, weight, _, _, mean, scatter = blocks.reduce(
            cascade.overview, merge_class_moments
        )
        declared = declared_classes(blocks.label_metadata)
        counts = class_weights(self.getLabelCol(), labels, by_label, declared)
        classes = np.flatnonzero(counts)
        n_classes, d = max(2, len(counts)), blocks.n_features
        gamma = self._resolved_gamma(mean, scatter, weight)
        if len(classes) == 1:
            return self._constant(classes, n_classes, gamma, d)
        bounds = self.getC() * self._class_weights(counts)[classes]
        kernel = self._kernel(gamma)
        problem = Problem(kernel, classes.astype(float), bounds, self.getMaxSupportVectors())
        settings = CascadeSettings(max_iter=self.getMaxIter(), tol=self.getTol())
        result = cascade.fit(blocks, problem, settings, self.getCallbacks())
        state = result.state
        warn_of_many(
            len(state.machine),
            blocks.n_rows,
            "scale the features, change C or gamma, or use an approximation of the kernel "
            "(mllib_ext.feature.Nystroem or RandomFourierFeatures) with LinearSVC",
        )
        found = (state.machine, classes, n_classes, gamma, state.dual_objective)
        return KernelSVCModel._of(*found)._trained(self, result)

    def _class_weights(self, counts: np.ndarray) -> np.ndarray:
        """What C of each class is multiplied by, (k,), for summed weights (k,) of their rows."""
        weight = self.getClassWeight() if self.isDefined("classWeight") else {}
        if isinstance(weight, str):
            present = counts > 0
            return np.divide(
                counts.sum() / present.sum(), counts, out=np.ones_like(counts), where=present
            )
        if unknown := sorted(weight.keys() - range(len(counts))):
            raise ValueError(
                f"param classWeight: expected labels of column {self.getLabelCol()!r}, 0 to "
                f"{len(counts) - 1}, found {unknown}"
            )
        return np.array([weight.get(c, 1.0) for c in range(len(counts))])

    def _constant(
        self, classes: np.ndarray, n_classes: int, gamma: float, d: int
    ) -> KernelSVCModel:
        warnings.warn(
            f"label column {self.getLabelCol()!r} holds {classes[0]} alone: "
            "the model predicts it always, and has no support vectors",
            stacklevel=5,
        )
        nothing = Rows(np.empty(0, int), np.empty((0, d)), np.empty(0, int), np.empty(0))
        machine = Machine(nothing, np.empty((0, 1)), np.empty(0))
        model = KernelSVCModel._of(machine, classes, n_classes, gamma, 0.0)
        return model._trained(self, None, "constant_label")
