"""A support vector machine of one class, trained by a cascade: :mod:`mllib_ext.cascade`."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import numpy as np
from pyspark import keyword_only
from pyspark.ml.base import Estimator
from pyspark.ml.linalg import Vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasPredictionCol, HasRawPredictionCol
from pyspark.sql import DataFrame

from mllib_ext import cascade
from mllib_ext.base import HasCallbacks, as_row, frozen
from mllib_ext.blockfile import Block
from mllib_ext.blocks import Blocks
from mllib_ext.cascade import CascadeSettings, TooManySupportVectors
from mllib_ext.columns import Matrix
from mllib_ext.kernel_estimator import (
    KernelEstimator,
    KernelParams,
    SupportVectors,
    parts_of,
    warn_of_many,
)
from mllib_ext.kernel_machine import Rows
from mllib_ext.kernels import Kernel
from mllib_ext.mapped import Mapped
from mllib_ext.moments import merge, moments
from mllib_ext.one_class import OneClassMachine, OneClassProblem
from mllib_ext.persistence import SavesParams
from mllib_ext.prediction import Output, refuse_repeated, with_predictions


class OneClassSVMParams(KernelParams, HasPredictionCol, HasRawPredictionCol):
    """Parameters of the estimator and its model."""

    nu: Param[float] = Param(
        Params._dummy(),
        "nu",
        "largest share of the training rows that are outside, and smallest share of support "
        "vectors: above 0 and below 1",
        TypeConverters.toFloat,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(nu=0.5)

    def getNu(self) -> float:
        """The largest share of the training rows that are outside."""
        return self.getOrDefault(self.nu)

    def setPredictionCol(self, value: str) -> Self:
        """Set the column of predictions, 1 or -1."""
        return self._set(predictionCol=value)

    def setRawPredictionCol(self, value: str) -> Self:
        """Set the column of decision values."""
        return self._set(rawPredictionCol=value)


class OneClassSVMModel(SupportVectors, OneClassSVMParams):
    """Model fitted by :class:`OneClassSVM`.

    ``history`` has the dual objective of each pass as ``loss``, as it is minimised, the worst
    violation of a KKT condition as ``gradient_norm``, and in ``values`` ``n_support_vectors`` and
    ``n_violators``, the rows that violate one by more than ``tol``.

    Parameters
    ----------
    values, indices, indptr : ndarray
        The support vectors: (n_sv, d), or the parts of a CSR matrix.
    n_features : int
    alpha : ndarray, shape (n_sv,)
        Their dual coefficients.
    offset, gamma_value, dual_objective : float
    """

    _arrays = (
        "values",
        "indices",
        "indptr",
        "n_features",
        "alpha",
        "offset",
        "gamma_value",
        "dual_objective",
    )

    def __init__(
        self,
        values: Any,
        indices: Any,
        indptr: Any,
        n_features: Any,
        alpha: Any,
        offset: Any,
        gamma_value: Any,
        dual_objective: Any,
    ) -> None:
        super().__init__()
        self._hold(values, indices, indptr, n_features, gamma_value, dual_objective)
        self._alpha, self._offset = frozen(alpha), frozen(offset)

    @property
    def dualCoef(self) -> np.ndarray:
        """Dual coefficients (n_sv,), read-only: the row of scikit-learn's ``dual_coef_``."""
        return self._alpha

    @property
    def offset(self) -> float:
        """scikit-learn's ``offset_``: a score from which on a row is inside."""
        return float(self._offset)

    @property
    def _predictor(self) -> tuple[OneClassMachine, Kernel]:
        X, m = self.supportVectors, self.numSupportVectors
        rows = Rows(np.arange(m), X, np.zeros(m, np.intp), np.empty(m))
        return OneClassMachine(rows, self._alpha, self.offset), self._kernel(self.gammaValue)

    def predictRaw(self, value: Vector) -> float:
        """The decision value of one row: 0 or more inside."""
        machine, kernel = self._predictor
        return float(machine.decisions(kernel, as_row(value, self.numFeatures))[0])

    def predict(self, value: Vector) -> float:
        """1 for a row inside, -1 outside."""
        return 1.0 if self.predictRaw(value) >= 0 else -1.0

    def _transform(self, dataset: DataFrame) -> DataFrame:
        names = self.getRawPredictionCol(), self.getPredictionCol()
        refuse_repeated(names)
        outputs = {name: Output("double", {}) for name in names}
        predict = partial(_predict, self._shipped(dataset), names)
        return with_predictions(self, dataset, self.numFeatures, outputs, predict)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: uid={self.uid}, numFeatures={self.numFeatures}, "
            f"numSupportVectors={self.numSupportVectors}"
        )


def _predict(mapped: Mapped, names: tuple[str, str], X: Matrix) -> dict[str, np.ndarray]:
    machine, kernel = mapped.open()
    raw = machine.decisions(kernel, X)
    return dict(zip(names, (raw, np.where(raw >= 0, 1.0, -1.0)), strict=True))


def _moments(block: Block) -> tuple[Any, ...]:
    """The weight of a block's rows, and moments of those that have one, each row counted once."""
    counted = Block(block.X, block.y, (block.w > 0).astype(np.float64), block.id)
    return float(block.w.sum()), *moments(counted)


def _merge_moments(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    return left[0] + right[0], *merge(left[1:], right[1:])  # type: ignore[arg-type]


class OneClassSVM(  # type: ignore[misc]
    KernelEstimator, HasCallbacks, OneClassSVMParams, Estimator[OneClassSVMModel], SavesParams
):
    r"""Anomaly detection by a support vector machine of one class, exact and distributed.

    .. math::

        \min_{f, \rho} \frac12 \|f\|^2 - \nu n \rho + \sum_i \max(0, \rho - f(x_i))

    (Schoelkopf et al. 2001), as scikit-learn's ``OneClassSVM``: a region that holds all but a share
    ``nu`` of the rows. A cascade over the partitions solves it, as of
    :class:`~mllib_ext.classification.KernelSVC`: passes go on until every row that is no support
    vector satisfies its KKT condition within ``tol``.

    Parameters
    ----------
    featuresCol : str or list of str
        A vector column, an array column, or a list of numeric columns. Scale features first.
    predictionCol : str
        1 for a row inside, -1 for an anomaly, as scikit-learn's ``predict``.
    rawPredictionCol : str
        A number: scikit-learn's ``decision_function``, the lower the more of an anomaly, negative
        outside. Spark's ``BinaryClassificationEvaluator`` reads it.
    kernel : {"rbf", "linear", "poly", "sigmoid"}
    gamma : {"scale", "auto"} or float
        ``scale`` is 1 / (d var(X)), ``auto`` 1 / d.
    degree : int
        Of ``poly``.
    coef0 : float
        Of ``poly`` and ``sigmoid``.
    nu : float
        Above 0 and below 1. At most this share of the training rows is outside, and at least as
        many are support vectors, which every node and the driver hold.
    weightCol : str, optional
        How often a row counts. Rows of weight 0 are as if they were not there.
    tol : float
        By how much a KKT condition may be violated; decision values grow with ``nu`` and the number
        of rows, and libsvm's single precision sets a limit at about 6e-8 of these: below it the
        solver may not end, as with a linear kernel on few columns, and scikit-learn's does not.
    maxIter : int
        The largest number of passes.
    maxSupportVectors : int
        More of them are an error.
    aggregationDepth : int
        2 merges all on the driver, more merge neighbours on the executors before.
    maxBlockSizeInMB : float
        The size of a block, which is a node of the cascade.

    Raises
    ------
    ValueError
        From ``fit``: a parameter out of range; more support vectors than ``maxSupportVectors``;
        what :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Examples
    --------
    >>> from mllib_ext.anomaly import OneClassSVM
    >>> model = OneClassSVM(nu=0.05).fit(df)  # doctest: +SKIP
    >>> model.transform(df).where("prediction = -1").show()  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str | list[str] = "features",
        predictionCol: str = "prediction",
        rawPredictionCol: str = "rawPrediction",
        kernel: str = "rbf",
        gamma: str | float = "scale",
        degree: int = 3,
        coef0: float = 0.0,
        nu: float = 0.5,
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

    def setNu(self, value: float) -> Self:
        """Set the largest share of the training rows that are outside."""
        return self._set(nu=value)

    def _refuse_params(self) -> None:
        super()._refuse_params()
        if not 0 < self.getNu() < 1:
            # At 1 all coefficients are at their bounds, and any offset is as good that is larger.
            raise ValueError(
                f"param nu: expected a number above 0 and below 1, found {self.getNu()!r}"
            )

    def _fit_blocks(self, blocks: Blocks) -> OneClassSVMModel:
        weight, n, _, _, mean, scatter = blocks.reduce(_moments, _merge_moments)
        gamma = self._resolved_gamma(mean, scatter, n)
        most = self.getMaxSupportVectors()
        problem = OneClassProblem(self._kernel(gamma), self.getNu() * float(weight), most)
        weighted = self.isDefined("weightCol") and self.getWeightCol()
        share = self.getNu() * n
        if not weighted and share > most:
            raise TooManySupportVectors(
                f"param maxSupportVectors: expected up to {most} support vectors, and nu = "
                f"{self.getNu():g} of {n:.0f} rows makes at least {share:.0f}: {problem.remedy}"
            )
        settings = CascadeSettings(max_iter=self.getMaxIter(), tol=self.getTol())
        result = cascade.fit(blocks, problem, settings, self.getCallbacks())
        machine = result.state.machine
        warn_of_many(len(machine), blocks.n_rows, "make nu smaller, or gamma")
        model = OneClassSVMModel(
            *parts_of(machine.rows.X),
            machine.alpha,
            machine.offset,
            gamma,
            result.state.dual_objective,
        )
        return model._trained(self, result)
