"""Support vector machines with a kernel, trained by a cascade: :mod:`mllib_ext.cascade`."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from pyspark import keyword_only
from pyspark.ml.classification import ClassificationModel, Classifier
from pyspark.ml.linalg import Vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasAggregationDepth,
    HasMaxBlockSizeInMB,
    HasMaxIter,
    HasTol,
    HasWeightCol,
)
from pyspark.sql import DataFrame

from mllib_ext import cascade
from mllib_ext.base import (
    HasCallbacks,
    HasFeatures,
    Output,
    Trained,
    as_row,
    dense,
    frozen,
    with_predictions,
)
from mllib_ext.blocks import Blocks
from mllib_ext.cascade import CascadeSettings, Problem
from mllib_ext.classes import class_weights, declared_classes, merge_class_moments
from mllib_ext.columns import Matrix, data_type, number
from mllib_ext.fitting import FitsOverBlocks
from mllib_ext.kernel_machine import Machine, Rows, votes
from mllib_ext.kernel_params import HasKernel, SetsKernel
from mllib_ext.kernels import Kernel
from mllib_ext.mapped import Mapped
from mllib_ext.persistence import SavesParams

# A pass over more bytes is worth the executors: it takes kernels, not products.
DRIVER_BYTES = 1 << 20
# From here on predictions are slow, and rows that are support vectors by this share are many.
MANY_SUPPORT_VECTORS = 1_000
LARGE_SHARE = 0.3


class KernelSVCParams(
    HasKernel,
    HasFeatures,
    HasMaxIter,
    HasTol,
    HasWeightCol,
    HasAggregationDepth,
    HasMaxBlockSizeInMB,
):
    """Parameters of the estimator and its model."""

    C: Param[float] = Param(
        Params._dummy(),
        "C",
        "weight of the rows' losses against the penalty, above 0",
        TypeConverters.toFloat,
    )
    classWeight: Param[str] = Param(
        Params._dummy(),
        "classWeight",
        "balanced: C of a class is inverse to the weight of its rows",
        TypeConverters.toString,
    )
    maxSupportVectors: Param[int] = Param(
        Params._dummy(),
        "maxSupportVectors",
        "more support vectors than this are an error",
        TypeConverters.toInt,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            C=1.0,
            tol=1e-3,
            maxIter=100,
            maxSupportVectors=20_000,
            aggregationDepth=3,
            maxBlockSizeInMB=64.0,
        )

    def getC(self) -> float:
        """The weight of the rows' losses."""
        return self.getOrDefault(self.C)

    def getClassWeight(self) -> str:
        """How classes are weighted."""
        return self.getOrDefault(self.classWeight)

    def getMaxSupportVectors(self) -> int:
        """The largest number of support vectors."""
        return self.getOrDefault(self.maxSupportVectors)


class KernelSVCModel(Trained, KernelSVCParams, ClassificationModel):  # type: ignore[misc]
    """Model fitted by :class:`KernelSVC`.

    ``history`` has the dual objective of each pass as ``loss``, as it is minimised (negative), and
    the worst violation of a KKT condition as ``gradient_norm``.

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
        self._values, self._alpha = frozen(values), frozen(alpha)
        self._indices, self._indptr = _integers(indices, np.int32), _integers(indptr, np.int32)
        self._y, self._classes = _integers(y, np.intp), _integers(classes, np.intp)
        self._n_features, self._n_classes = frozen(n_features), frozen(n_classes)
        self._intercepts, self._gamma_value = frozen(intercepts), frozen(gamma_value)
        self._dual_objective = frozen(dual_objective)
        self._mapped: Mapped | None = None

    @classmethod
    def _of(
        cls, machine: Machine, classes: np.ndarray, n_classes: int, gamma: float, dual: float
    ) -> Self:
        X = machine.rows.X
        parts: tuple[Any, Any, Any] = (X, [], [])
        if not isinstance(X, np.ndarray):
            parts = (X.data, X.indices, X.indptr)
        return cls(
            *parts,
            X.shape[1],
            machine.rows.y,
            machine.alpha,
            machine.intercepts,
            classes,
            n_classes,
            gamma,
            dual,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}  # a broadcast belongs to its session

    @property
    def numClasses(self) -> int:
        """Number of classes."""
        return int(self._n_classes)

    @property
    def numFeatures(self) -> int:
        """Number of features."""
        return int(self._n_features)

    @property
    def numSupportVectors(self) -> int:
        """Number of support vectors."""
        return len(self._y)

    @property
    def supportVectors(self) -> Matrix:
        """The support vectors (n_sv, d), by class; CSR where the training data were."""
        if self._values.ndim == 2:
            return self._values
        parts = (self._values, self._indices, self._indptr)
        return sp.csr_array(parts, shape=(len(self._y), self.numFeatures))

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
    def gammaValue(self) -> float:
        """The coefficient of the kernel as a number, whatever rule gave it."""
        return float(self._gamma_value)

    @property
    def dualObjective(self) -> float:
        """The dual objective, of all pairs together."""
        return float(self._dual_objective)

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
        if self._mapped is None:
            self._mapped = Mapped(dataset.sparkSession.sparkContext, self._predictor)
        k = self.numClasses
        names = self.getRawPredictionCol(), self.getPredictionCol()
        kinds = (
            Output("vector", {"num_attrs": k}),
            Output("double", {"num_vals": k, "type": "nominal"}),
        )
        predict = partial(_predict, self._mapped, names)
        outputs = dict(zip(names, kinds, strict=True))
        return with_predictions(self, dataset, self.numFeatures, outputs, predict)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: uid={self.uid}, numClasses={self.numClasses}, "
            f"numFeatures={self.numFeatures}, numSupportVectors={self.numSupportVectors}"
        )


def _integers(values: Any, dtype: Any) -> np.ndarray:
    array = np.array(values, dtype=dtype)
    array.flags.writeable = False
    return array


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
    FitsOverBlocks, HasCallbacks, SetsKernel, KernelSVCParams, Classifier, SavesParams
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
    classWeight : {"balanced"}, optional
        ``balanced`` multiplies C of class c by W / (k W_c), W being summed weights.
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
        classWeight: str | None = None,
        weightCol: str | None = None,
        tol: float = 1e-3,
        maxIter: int = 100,
        maxSupportVectors: int = 20_000,
        aggregationDepth: int = 3,
        maxBlockSizeInMB: float = 64.0,
        featuresCols: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def setC(self, value: float) -> Self:
        """Set the weight of the rows' losses."""
        return self._set(C=value)

    def setClassWeight(self, value: str) -> Self:
        """Set how classes are weighted: balanced."""
        return self._set(classWeight=value)

    def setWeightCol(self, value: str) -> Self:
        """Set the column of row weights."""
        return self._set(weightCol=value)

    def setTol(self, value: float) -> Self:
        """Set by how much a KKT condition may be violated."""
        return self._set(tol=value)

    def setMaxIter(self, value: int) -> Self:
        """Set the largest number of passes."""
        return self._set(maxIter=value)

    def setMaxSupportVectors(self, value: int) -> Self:
        """Set the largest number of support vectors."""
        return self._set(maxSupportVectors=value)

    def setAggregationDepth(self, value: int) -> Self:
        """Set the levels on which support vectors are merged."""
        return self._set(aggregationDepth=value)

    def setMaxBlockSizeInMB(self, value: float) -> Self:
        """Set the size of a block in MB."""
        return self._set(maxBlockSizeInMB=value)

    def _driver_bytes(self) -> int:
        return min(DRIVER_BYTES, super()._driver_bytes())

    def _refuse(self, dataset: DataFrame) -> None:
        self._refuse_kernel()
        if self.isDefined("classWeight") and self.getClassWeight() != "balanced":
            raise ValueError(
                f"param classWeight: expected balanced, found {self.getClassWeight()!r}"
            )
        for name in ("C", "tol"):
            value = self.getOrDefault(name)
            if not 0 < value < np.inf:
                raise ValueError(f"param {name}: expected a number above 0, found {value!r}")
        lowest = {"maxIter": 0, "maxSupportVectors": 2}
        for name, low in {**lowest, "aggregationDepth": 2, "maxBlockSizeInMB": 0}.items():
            value = self.getOrDefault(name)
            if not value >= low:
                raise ValueError(f"param {name}: expected {low} or more, found {value!r}")
        data_type(dataset.schema, self.getLabelCol(), "label")
        if self.isDefined("weightCol") and self.getWeightCol():
            number(dataset.schema, self.getWeightCol(), "weight")

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
        bounds = np.full(len(classes), self.getC())
        if self.isDefined("classWeight"):
            bounds *= counts.sum() / (len(classes) * counts[classes])
        kernel = self._kernel(gamma)
        problem = Problem(kernel, classes.astype(float), bounds, self.getMaxSupportVectors())
        settings = CascadeSettings(max_iter=self.getMaxIter(), tol=self.getTol())
        result = cascade.fit(blocks, problem, settings, self.getCallbacks())
        state = result.state
        if len(state.machine) > max(MANY_SUPPORT_VECTORS, LARGE_SHARE * blocks.n_rows):
            warnings.warn(
                f"{len(state.machine)} of {blocks.n_rows} rows are support vectors, and each is "
                "part of every prediction: scale the features, change C or gamma, or use a kernel "
                "approximation with LinearSVC",
                stacklevel=4,
            )
        found = (state.machine, classes, n_classes, gamma, state.dual_objective)
        return KernelSVCModel._of(*found)._trained(self, result)

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
