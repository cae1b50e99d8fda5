r"""Model summaries: pyspark.ml's own, over the predictions of models that are not Spark's.

Spark computes each metric in Java, from a DataFrame of predictions and the names of its columns.
So a summary is made here by Spark's constructor and wrapped in pyspark.ml's class: its attributes,
their values and the errors they raise are Spark's. Those constructors are private in Scala alone;
their arguments have been the same since Spark 4.1, where summaries ceased to hold a Java model
(SPARK-52035). A label column is to have a name without dots and, for residuals, no booleans.

A training summary is made when it is first asked for, and again after a threshold has changed: no
fit runs a job for it. All it needs from
the fit itself is the diagonal of :math:`(A^T W A)^{-1}`, for standard errors
(:func:`inverse_diagonal`).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import numpy as np
import scipy.linalg
from pyspark import SparkContext
from pyspark.ml.classification import (
    BinaryLogisticRegressionSummary,
    BinaryLogisticRegressionTrainingSummary,
    LinearSVCSummary,
    LinearSVCTrainingSummary,
    LogisticRegressionSummary,
    LogisticRegressionTrainingSummary,
    MultilayerPerceptronClassificationSummary,
    MultilayerPerceptronClassificationTrainingSummary,
    _ClassificationSummary,
    _TrainingSummary,
)
from pyspark.ml.clustering import BisectingKMeansSummary, ClusteringSummary, KMeansSummary
from pyspark.ml.common import _py2java
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import LinearRegressionSummary, LinearRegressionTrainingSummary
from pyspark.ml.util import HasTrainingSummary
from pyspark.ml.wrapper import JavaWrapper
from pyspark.sql import DataFrame

from mllib_ext.columns import refuse_no_dataframe

T = TypeVar("T")
S = TypeVar("S")


class HasSummary(HasTrainingSummary[T], Generic[T]):
    """A model's summary of its training data (T)."""

    _training: _Training | None = None
    # What pyspark.ml divides the objective by, where it standardises the label.
    _objective_unit: float = 1.0

    @property
    def hasSummary(self) -> bool:
        """Whether there is a training summary: after ``fit`` and in a copy, not after ``load``."""
        return self._training is not None

    @property
    def summary(self) -> T:
        """The summary of the training data: columns as in the fit, thresholds as they are now.

        ``objectiveHistory`` has the losses of the model's ``history`` (in units of the label's
        variance for squared error, as in pyspark.ml); it is ``[0.0]`` for a solution without
        iterations. ``featuresCol`` has the names of several columns joined by
        commas.

        Raises
        ------
        RuntimeError
            There is none: the model was loaded, unpickled or made from arrays.
        """
        if self._training is None:
            raise RuntimeError(f"No training summary available for this {type(self).__name__}")
        return self._training.summary(self)

    def _trained_on(self, dataset: DataFrame) -> Self:
        self._training = _Training(self.copy(), dataset)  # type: ignore[attr-defined]
        return self

    def _summarize(self, dataset: DataFrame, history: Sequence[float] | None) -> Any:
        """A training summary where there is a history, else a plain one."""
        raise NotImplementedError


class HasEvaluation(HasSummary[T], Generic[T, S]):
    """A model's summaries: of its training data (T), and of any other data (S)."""

    def evaluate(self, dataset: DataFrame) -> S:
        """The summary of a data set that has the model's features and label columns.

        Raises
        ------
        TypeError
            ``dataset`` is no DataFrame.
        """
        refuse_no_dataframe(dataset)
        return self._summarize(dataset, None)


class HasSummaryMethod(HasEvaluation[T, S], Generic[T, S]):
    """The same where pyspark.ml's ``summary()`` is a method."""

    def summary(self) -> T:  # type: ignore[override]
        """The summary of the training data: see :attr:`HasSummary.summary`."""
        training = HasSummary.summary.fget  # type: ignore[attr-defined]
        found: T = training(self)
        return found


@dataclass
class _Training:
    """What a training summary comes from, and the last one made; a model's copies share it.

    pyspark.ml's has the columns of the fit and predicts by its model, whose thresholds may have
    been set since.
    """

    model: Any  # as it was fitted
    dataset: DataFrame
    thresholds: dict[str, Any] | None = None
    made: Any = None

    def summary(self, asked: Any) -> Any:
        """The summary for the model that is asked: this one, or a copy of it."""
        names = [name for name in ("threshold", "thresholds") if asked.hasParam(name)]
        thresholds = {name: asked.getOrDefault(name) for name in names if asked.isSet(name)}
        if self.thresholds != thresholds:
            model = self.model.copy()
            for name in names:
                model.clear(model.getParam(name))
            history = [record.loss / model._objective_unit for record in model.history]
            self.made = model._set(**thresholds)._summarize(self.dataset, history or [0.0])
            self.thresholds = thresholds
        return self.made

    def __reduce__(self) -> Any:
        return type(None), ()  # a DataFrame belongs to its session: pickled models have none


class HasLogisticRegressionSummary(
    HasEvaluation[LogisticRegressionTrainingSummary, LogisticRegressionSummary]
):
    """Summaries of a logistic regression: the binary ones for up to two classes."""

    def _summarize(self, dataset: DataFrame, history: Sequence[float] | None) -> Any:
        model = _with_all_columns(self, "probabilityCol", "predictionCol")
        binary = model.numClasses <= 2
        if history is None:
            cls = BinaryLogisticRegressionSummary if binary else LogisticRegressionSummary
        elif binary:
            cls = BinaryLogisticRegressionTrainingSummary
        else:
            cls = LogisticRegressionTrainingSummary
        return _of_java(
            cls,
            f"org.apache.spark.ml.classification.{cls.__name__}Impl",
            model.transform(dataset),
            model.getProbabilityCol(),
            model.getPredictionCol(),
            model.getLabelCol(),
            _features_name(model),
            # Spark's word for none: a name that the predictions do not have.
            model.getWeightCol() if model.isDefined("weightCol") else "weightCol",
            *([] if history is None else [_doubles(history)]),
        )


class MulticlassLinearSVCSummary(_ClassificationSummary):
    """Summary of a linear support vector machine for more than two classes."""


class MulticlassLinearSVCTrainingSummary(MulticlassLinearSVCSummary, _TrainingSummary):
    """The same of its training data."""


class HasLinearSVCSummary(HasSummaryMethod[Any, Any]):
    """Summaries of a linear support vector machine."""

    def _summarize(self, dataset: DataFrame, history: Sequence[float] | None) -> Any:
        model = _with_all_columns(self, "rawPredictionCol", "predictionCol")
        binary = model.numClasses <= 2
        if binary:
            cls: Any = LinearSVCSummary if history is None else LinearSVCTrainingSummary
            name = cls.__name__
        else:
            plain = history is None
            cls = MulticlassLinearSVCSummary if plain else MulticlassLinearSVCTrainingSummary
            # Spark's multi-class metrics under another model's name: its LinearSVC has two classes.
            name = f"MultilayerPerceptronClassification{'' if plain else 'Training'}Summary"
        return _of_java(
            cls,
            f"org.apache.spark.ml.classification.{name}Impl",
            model.transform(dataset),
            *([model.getRawPredictionCol()] if binary else []),
            model.getPredictionCol(),
            model.getLabelCol(),
            model.getWeightCol() if model.isDefined("weightCol") else "weightCol",
            *([] if history is None else [_doubles(history)]),
        )


class HasMultilayerPerceptronSummary(
    HasSummaryMethod[
        MultilayerPerceptronClassificationTrainingSummary, MultilayerPerceptronClassificationSummary
    ]
):
    """Summaries of a multilayer perceptron that classifies."""

    def _summarize(self, dataset: DataFrame, history: Sequence[float] | None) -> Any:
        model = _with_all_columns(self, "predictionCol")
        cls: Any = MultilayerPerceptronClassificationTrainingSummary
        if history is None:
            cls = MultilayerPerceptronClassificationSummary
        return _of_java(
            cls,
            f"org.apache.spark.ml.classification.{cls.__name__}Impl",
            model.transform(dataset),
            model.getPredictionCol(),
            model.getLabelCol(),
            model.getWeightCol() if model.isDefined("weightCol") else "weightCol",
            *([] if history is None else [_doubles(history)]),
        )


class HasLinearRegressionSummary(
    HasEvaluation[LinearRegressionTrainingSummary, LinearRegressionSummary]
):
    """Summaries of a linear regression."""

    _inverse_diagonal: np.ndarray | None = None

    def _summarize(self, dataset: DataFrame, history: Sequence[float] | None) -> Any:
        model = _with_all_columns(self, "predictionCol")
        cls = LinearRegressionSummary if history is None else LinearRegressionTrainingSummary
        estimates = np.append(model._coefficients, [model.intercept] * model.getFitIntercept())
        # [0.0] is Spark's word for no standard errors.
        known = history is not None and self._inverse_diagonal is not None
        diagonal = self._inverse_diagonal if known else [0.0]
        return _of_java(
            cls,
            f"org.apache.spark.ml.regression.{cls.__name__}",
            model.transform(dataset),
            model.getPredictionCol(),
            model.getLabelCol(),
            _features_name(model),
            model.getWeightCol() if model.isDefined("weightCol") else "",
            model.numFeatures,
            model.getFitIntercept(),
            _doubles(diagonal),
            *([] if history is None else [_doubles(history)]),
            _doubles(estimates),
        )


C = TypeVar("C", bound=ClusteringSummary)


class HasClusteringSummary(HasSummary[C], Generic[C]):
    """The training summary of a clustering."""

    _summaryCls: type[C]

    def _summarize(self, dataset: DataFrame, history: Sequence[float] | None) -> Any:
        model: Any = _with_all_columns(self, "predictionCol")
        cls: Any = self._summaryCls
        return _of_java(
            cls,
            f"org.apache.spark.ml.clustering.{cls.__name__}",
            model.transform(dataset),
            model.getPredictionCol(),
            _features_name(model),
            len(model.clusterCenters()),
            self._rounds(),
            model.cost,
        )

    def _rounds(self: Any) -> int:
        """What ``summary.numIter`` is."""
        return int(self.n_iter)


class HasKMeansSummary(HasClusteringSummary[KMeansSummary]):
    """The training summary of k-means."""

    _summaryCls = KMeansSummary


class HasBisectingKMeansSummary(HasClusteringSummary[BisectingKMeansSummary]):
    """The training summary of bisecting k-means."""

    _summaryCls = BisectingKMeansSummary

    def _rounds(self: Any) -> int:
        return int(self.getMaxIter())  # as in pyspark.ml; n_iter counts what all levels took


def inverse_diagonal(
    gram: np.ndarray, divisor: np.ndarray, weight_sum: float, mean: np.ndarray | None
) -> np.ndarray | None:
    r"""Diagonal of :math:`(A^T W A)^{-1}`, A being the features and a column of 1 for an intercept.

    Times the variance of the residuals it is the squared standard errors of the coefficients and,
    last, of the intercept. A penalty in ``gram`` counts as curvature, as in pyspark.ml.

    Parameters
    ----------
    gram : ndarray, shape (d, d)
        Mean products of the divided features (plus penalty), about their mean if there is an
        intercept.
    divisor : ndarray, shape (d,)
        What the features were divided by. A constant feature, which has 0, has an infinite
        variance if a penalty makes ``gram`` regular.
    weight_sum : float
    mean : ndarray, shape (d,), or None
        Of the divided features; None without an intercept.

    Returns
    -------
    ndarray, shape (d,) or (d + 1,), or None
        None for a singular ``gram``: dependent features have no standard errors.
    """
    diagonal = gram.diagonal()
    if not (diagonal > 0).all():
        return None
    scale = np.sqrt(diagonal)  # to unit diagonal: pivots are then free of units
    try:
        factor = scipy.linalg.cholesky(gram / np.outer(scale, scale), lower=True)
    except scipy.linalg.LinAlgError:
        return None
    # The bound on the condition number that mllib_ext.optimizers.newton.solve trusts Cholesky to.
    if factor.diagonal().min() ** 2 <= 1e-11:
        return None
    root, _ = scipy.linalg.lapack.dtrtri(factor, lower=1)  # inverse of gram = root.T @ root, scaled
    root /= scale
    with np.errstate(divide="ignore"):
        variances = np.einsum("ij,ij->j", root, root) / divisor**2
    if mean is not None:
        variances = np.append(variances, 1.0 + np.sum((root @ mean) ** 2))
    return variances / weight_sum


def _with_all_columns(model: Any, *names: str) -> Any:
    """The model, or a copy with temporary names for those of these columns that are set to ""."""
    absent = [name for name in names if not model.getOrDefault(name)]
    temporary = {model.getParam(name): f"{name[:-3]}_{uuid.uuid4()}" for name in absent}
    return model.copy(temporary) if absent else model


def _features_name(model: Any) -> str:
    features = model._features()
    return features if isinstance(features, str) else ",".join(features)


def _doubles(values: Any) -> Any:
    """Numbers as a Java ``double[]``, in one call."""
    context: Any = SparkContext._active_spark_context
    return _py2java(context, Vectors.dense(np.asarray(values).tolist())).toArray()


def _of_java(cls: Any, name: str, *arguments: Any) -> Any:
    return cls(JavaWrapper._new_java_obj(name, *arguments))
