"""Probabilities for any classifier with raw predictions: by a sigmoid or isotonic regression.

Raw predictions of rows that a classifier was not trained on, and their labels, give a monotone
function from the one to the probability of the other (Platt 1999; Zadrozny & Elkan 2002). More
than two classes have a function each, and their values are divided by their sum.
"""

from __future__ import annotations

from functools import partial, reduce
from itertools import pairwise
from typing import Any, Self

import numpy as np
from pyspark import keyword_only
from pyspark.ml.base import Estimator, Model
from pyspark.ml.functions import vector_to_array
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasLabelCol,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasSeed,
    HasWeightCol,
)
from pyspark.ml.regression import IsotonicRegression
from pyspark.ml.util import DefaultParamsReader, MLReader, MLWriter
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import IntegralType
from scipy.special import expit

from mllib_ext.base import Fitted, frozen
from mllib_ext.blocks import Blocks
from mllib_ext.calibration import fit_sigmoids, normalised, overview, scores
from mllib_ext.classes import class_weights, merge_class_moments
from mllib_ext.columns import Matrix, data_type, number, quoted, refuse_no_dataframe
from mllib_ext.fitting import DRIVER_BYTES
from mllib_ext.names import did_you_mean
from mllib_ext.persistence import ArraysReader, ArraysWriter, SavesParams
from mllib_ext.prediction import class_outputs, with_predictions

METHODS = ("sigmoid", "isotonic")


class CalibratedClassifierParams(
    HasLabelCol,
    HasWeightCol,
    HasRawPredictionCol,
    HasProbabilityCol,
    HasPredictionCol,
    HasSeed,
):
    """Parameters of the estimator and its model."""

    classifier: Param[Any] = Param(
        Params._dummy(), "classifier", "a classifier to fit, or a model that is fitted already"
    )
    method: Param[str] = Param(
        Params._dummy(), "method", "sigmoid or isotonic", TypeConverters.toString
    )
    numFolds: Param[int] = Param(
        Params._dummy(),
        "numFolds",
        "number of folds, each of which is predicted by a model of the others",
        TypeConverters.toInt,
    )
    foldCol: Param[str] = Param(
        Params._dummy(),
        "foldCol",
        "column with the number of each row's fold, 0 to numFolds - 1; empty: at random",
        TypeConverters.toString,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(method="sigmoid", numFolds=5, foldCol="", seed=0)

    def getClassifier(self) -> Any:
        """The classifier, or the fitted model."""
        return self.getOrDefault(self.classifier)

    def getMethod(self) -> str:
        """The kind of function: sigmoid or isotonic."""
        return self.getOrDefault(self.method)

    def getNumFolds(self) -> int:
        """The number of folds."""
        return self.getOrDefault(self.numFolds)

    def getFoldCol(self) -> str:
        """The column with the number of each row's fold."""
        return self.getOrDefault(self.foldCol)

    def setRawPredictionCol(self, value: str) -> Self:
        """Set the column of the classifier's raw predictions."""
        return self._set(rawPredictionCol=value)

    def setProbabilityCol(self, value: str) -> Self:
        """Set the column of probabilities."""
        return self._set(probabilityCol=value)

    def setPredictionCol(self, value: str) -> Self:
        """Set the column of the most probable class."""
        return self._set(predictionCol=value)

    def _scored(self, model: Any, dataset: DataFrame) -> DataFrame:
        """The rows with the model's raw predictions, and none of its other columns."""
        raw = self.getRawPredictionCol()
        model = _with(model, rawPredictionCol=raw)
        return model.transform(dataset).select(*map(quoted, [*dataset.columns, raw]))


def _with(stage: Any, **values: Any) -> Any:
    """A stage with these parameters, of those that it has; itself where they are so already."""
    changed = {
        stage.getParam(name): value
        for name, value in values.items()
        if stage.hasParam(name)
        and not (stage.isDefined(name) and stage.getOrDefault(name) == value)
    }
    return stage.copy(changed) if changed else stage


class CalibratedClassifierModel(Fitted, CalibratedClassifierParams):
    """Model fitted by :class:`CalibratedClassifier`.

    Parameters
    ----------
    sigmoids : array-like, shape (c, 2)
        A and B of each sigmoid; c is 1 of two classes, their number of more.
    boundaries, probabilities : array-like
        Of all isotonic functions, one after the other.
    starts : array-like, shape (c + 1,)
        Where each function's boundaries begin.
    n_classes : int
    """

    _arrays = ("sigmoids", "boundaries", "probabilities", "starts", "n_classes")
    _model: Any = None

    def __init__(
        self, sigmoids: Any, boundaries: Any, probabilities: Any, starts: Any, n_classes: Any
    ) -> None:
        super().__init__()
        self._sigmoids, self._boundaries = frozen(sigmoids), frozen(boundaries)
        self._probabilities, self._starts = frozen(probabilities), frozen(starts)
        self._n_classes = frozen(n_classes)

    @property
    def model(self) -> Any:
        """The fitted classifier."""
        return self._model

    @property
    def numClasses(self) -> int:
        """Number of classes."""
        return int(self._n_classes)

    @property
    def sigmoids(self) -> np.ndarray:
        """Platt's A and B: of class 1, or of each class where there are more than two, (c, 2)."""
        return self._sigmoids

    @property
    def isotonics(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Boundaries and probabilities there: of class 1, or of each class of more than two."""
        places = self._starts.astype(int)
        return [
            (self._boundaries[start:end], self._probabilities[start:end])
            for start, end in pairwise(places)
        ]

    def _features(self) -> str:
        return self.getRawPredictionCol()

    def _transform(self, dataset: DataFrame) -> DataFrame:
        refuse_no_dataframe(dataset)
        names = self.getProbabilityCol(), self.getPredictionCol()
        k = self.numClasses
        predict = partial(_predict, self._sigmoids, self.isotonics, names)
        outputs = class_outputs(names, k)
        return with_predictions(self, self._scored(self._model, dataset), k, outputs, predict)

    def write(self) -> MLWriter:
        """A writer: ``model.write().overwrite().save(path)``."""
        return _Writer(self)

    @classmethod
    def read(cls) -> MLReader[Any]:
        """A reader: ``CalibratedClassifierModel.read().load(path)``."""
        return _Reader(cls)

    def __repr__(self) -> str:
        return (
            f"CalibratedClassifierModel: uid={self.uid}, method={self.getMethod()}, "
            f"numClasses={self.numClasses}"
        )


class _Writer(ArraysWriter):
    """The fitted classifier beside the functions, under ``model``."""

    def saveImpl(self, path: str) -> None:
        super().saveImpl(path)
        self.instance.model.save(f"{path}/model")


class _Reader(ArraysReader):
    def load(self, path: str) -> Any:
        model = super().load(path)
        model._model = DefaultParamsReader.loadParamsInstance(f"{path}/model", self.sparkSession)
        return model


def _predict(
    sigmoids: np.ndarray,
    isotonics: list[tuple[np.ndarray, np.ndarray]],
    names: tuple[str, str],
    raw: Matrix,
) -> dict[str, np.ndarray]:
    f = scores(raw)
    if isotonics:
        columns = [np.interp(f[:, c], x, y) for c, (x, y) in enumerate(isotonics)]
        calibrated = np.column_stack(columns)
    else:
        calibrated = expit(-(f * sigmoids[:, 0] + sigmoids[:, 1]))
    P = normalised(calibrated)
    return dict(zip(names, (P, P.argmax(axis=1).astype(np.float64)), strict=True))


class CalibratedClassifier(
    Estimator[CalibratedClassifierModel], CalibratedClassifierParams, SavesParams
):
    """Probabilities for any classifier with a column of raw predictions, this package's or Spark's.

    As scikit-learn's ``CalibratedClassifierCV(ensemble=False)``: each fold's rows are scored by a
    model of the other folds, all their scores together give the calibration, and the classifier is
    fitted once more, on all rows. A model that is fitted already is calibrated on the rows given,
    which it should not have been trained on (scikit-learn's ``FrozenEstimator``).

    Parameters
    ----------
    classifier : Estimator or Model
        A classifier, or a pipeline that ends with one. Its features column is its own; label,
        weight and raw prediction columns are set to those given here (of a pipeline they are not).
    method : {"sigmoid", "isotonic"}
        A sigmoid has two parameters (:mod:`mllib_ext.calibration`); isotonic regression, Spark's,
        any monotone shape, and asks for a thousand rows or more.
    numFolds : int
        2 or more.
    foldCol : str
        A column with the number of each row's fold, from 0; empty draws folds at random.
    labelCol : str
        Classes 0, 1, ....
    weightCol : str, optional
    rawPredictionCol, probabilityCol, predictionCol : str
        The classifier's raw predictions; what is made of them; the most probable class.
    seed : int
        Of the folds.

    Raises
    ------
    ValueError
        From ``fit``: a parameter out of range, no classifier, a column that is missing, labels that
        are not classes of the classifier, raw predictions that are not finite, or not as many in
        each fold, as where all rows of a class are in the same one.
    TypeError
        From ``fit``: a classifier that is no estimator or model, a column of another type.

    Notes
    -----
    Of two classes the score is half the difference of the raw predictions. In a grid of a
    ``CrossValidator`` the parameters of the classifier may be searched as well.

    Examples
    --------
    >>> from mllib_ext.classification import CalibratedClassifier, LinearSVC
    >>> model = CalibratedClassifier(classifier=LinearSVC()).fit(df)  # doctest: +SKIP
    >>> model.transform(df).select("probability", "prediction")  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        classifier: Any = None,
        method: str = "sigmoid",
        numFolds: int = 5,
        foldCol: str = "",
        labelCol: str = "label",
        weightCol: str | None = None,
        rawPredictionCol: str = "rawPrediction",
        probabilityCol: str = "probability",
        predictionCol: str = "prediction",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    @keyword_only
    def setParams(self, **params: Any) -> Self:
        """Set several parameters at once, by the constructor's keywords."""
        params = {name: value for name, value in params.items() if value is not None}
        for name in params:
            if not self.hasParam(name):
                hint = did_you_mean(name, [param.name for param in self.params])
                raise TypeError(f"{type(self).__name__} has no parameter {name!r}{hint}")
        return self._set(**params)

    def setClassifier(self, value: Any) -> Self:
        """Set the classifier to fit, or the model that is fitted already."""
        return self._set(classifier=value)

    def setMethod(self, value: str) -> Self:
        """Set the kind of function: sigmoid or isotonic."""
        return self._set(method=value)

    def setNumFolds(self, value: int) -> Self:
        """Set the number of folds."""
        return self._set(numFolds=value)

    def setFoldCol(self, value: str) -> Self:
        """Set the column with the number of each row's fold."""
        return self._set(foldCol=value)

    def setLabelCol(self, value: str) -> Self:
        """Set the column of classes."""
        return self._set(labelCol=value)

    def setWeightCol(self, value: str) -> Self:
        """Set the column of row weights."""
        return self._set(weightCol=value)

    def setSeed(self, value: int) -> Self:
        """Set the seed of the folds."""
        return self._set(seed=value)

    def copy(self, extra: dict[Any, Any] | None = None) -> Self:
        """A copy with other parameters, also of the classifier's."""
        copied = super().copy(extra)
        if copied.isSet(copied.classifier):
            copied.setClassifier(copied.getClassifier().copy(extra))
        return copied

    def _weight(self) -> str | None:
        return self.getWeightCol() or None if self.isDefined("weightCol") else None

    def _refuse(self, dataset: DataFrame) -> None:
        if not self.isSet(self.classifier):
            raise ValueError("param classifier: expected an estimator or a model, found none")
        if not isinstance(self.getClassifier(), Estimator | Model):
            raise TypeError(
                "param classifier: expected an estimator or a model, "
                f"found {type(self.getClassifier()).__name__}"
            )
        if self.getMethod() not in METHODS:
            raise ValueError(f"param method: expected one of {METHODS}, found {self.getMethod()!r}")
        if self.getNumFolds() < 2:
            raise ValueError(f"param numFolds: expected 2 or more, found {self.getNumFolds()!r}")
        number(dataset.schema, self.getLabelCol(), "label")
        if weight := self._weight():
            number(dataset.schema, weight, "weight")
        if fold := self.getFoldCol():
            kind = data_type(dataset.schema, fold, "fold")
            if not isinstance(kind, IntegralType):
                raise TypeError(
                    f"fold column {fold!r}: expected an integer type, found {kind.simpleString()}"
                )

    def _fit(self, dataset: DataFrame) -> CalibratedClassifierModel:
        refuse_no_dataframe(dataset)
        self._refuse(dataset)
        columns = {"labelCol": self.getLabelCol(), "rawPredictionCol": self.getRawPredictionCol()}
        if weight := self._weight():
            columns["weightCol"] = weight
        classifier = _with(self.getClassifier(), **columns)
        if isinstance(classifier, Model):
            model, calibrated = classifier, self._calibrated(self._scored(classifier, dataset))
        else:
            calibrated = self._cross_fitted(classifier, dataset)
            model = classifier.fit(dataset)
        calibrated._model = model
        return calibrated._trained(self, None, "calibrated")

    def _cross_fitted(self, classifier: Any, dataset: DataFrame) -> CalibratedClassifierModel:
        """Calibrated on all rows, each scored by a model of the other folds."""
        n = self.getNumFolds()
        fold = F.floor(F.rand(self.getSeed()) * n)
        if self.getFoldCol():
            fold = quoted(self.getFoldCol())
            found = {row[0] for row in dataset.select(fold).distinct().collect()}
            if found != set(range(n)):
                raise ValueError(
                    f"fold column {self.getFoldCol()!r}: expected the numbers 0 to {n - 1}, each "
                    f"in some rows, found {sorted(found, key=str)[:20]}"
                )
        name = f"{self.uid}_fold"
        # Drawn once: another plan over the same rows might draw others.
        folded = dataset.withColumn(name, fold).persist()
        try:
            self._refuse_classes_within(folded, name)
            parts = []
            for i in range(n):
                inside, outside = (
                    folded.where(rows).drop(name) for rows in (F.col(name) == i, F.col(name) != i)
                )
                parts.append(self._scored(classifier.fit(outside), inside))
            return self._calibrated(reduce(DataFrame.unionAll, parts))
        finally:
            folded.unpersist()

    def _refuse_classes_within(self, folded: DataFrame, fold: str) -> None:
        """ValueError for a class whose rows are all in one fold: its model would not know it."""
        label, numbers = self.getLabelCol(), quoted(fold)
        ranges = folded.groupBy(quoted(label).alias("label")).agg(
            F.min(numbers).alias("first"), F.max(numbers).alias("last")
        )
        alone = ranges.where("first = last AND label IS NOT NULL").take(1)
        if alone:
            raise ValueError(
                f"label column {label!r}: expected rows of every class in two folds or more, found "
                f"all rows of class {alone[0]['label']:g} in fold {alone[0]['first']}: use another "
                "seed, fewer folds, a foldCol or a model that is fitted"
            )

    def _calibrated(self, scored: DataFrame) -> CalibratedClassifierModel:
        """Functions of raw predictions that the labels are explained by."""
        raw, label, weight = self.getRawPredictionCol(), self.getLabelCol(), self._weight()
        names = [raw, label, *([weight] if weight else [])]
        rows = scored.select(*map(quoted, names)).persist()
        try:
            with Blocks.of(
                rows, raw, label=label, weight=weight, driver_bytes=DRIVER_BYTES
            ) as blocks:
                n_classes = blocks.n_features
                labels, by_label, total, _, _, mean, scatter = blocks.reduce(
                    overview, merge_class_moments
                )
                counts = class_weights(label, labels, by_label, None)
                if len(counts) > n_classes:
                    raise ValueError(
                        f"label column {label!r}: expected labels below {n_classes}, the number of "
                        f"raw predictions, found {len(counts) - 1}"
                    )
                counts = np.pad(counts, (0, n_classes - len(counts)))
                if self.getMethod() == "sigmoid":
                    own = counts if n_classes > 2 else counts[1:]
                    sigmoids = fit_sigmoids(blocks, own, mean, np.sqrt(scatter / total))
                    return CalibratedClassifierModel(sigmoids, [], [], [], n_classes)
            return self._isotonic(rows, n_classes)
        finally:
            rows.unpersist()

    def _isotonic(self, rows: DataFrame, n_classes: int) -> CalibratedClassifierModel:
        raw = vector_to_array(quoted(self.getRawPredictionCol()))
        y = number(rows.schema, self.getLabelCol(), "label")
        weight = self._weight()
        w = number(rows.schema, weight, "weight") if weight else F.lit(1.0)
        pairs = [(1, (raw[1] - raw[0]) * 0.5)]
        if n_classes != 2:
            pairs = [(c, raw[c]) for c in range(n_classes)]
        boundaries, probabilities = [], []
        regression = IsotonicRegression(featuresCol="x", labelCol="y", weightCol="w")
        for c, score in pairs:
            points = rows.select(score.alias("x"), (y == c).cast("double").alias("y"), w.alias("w"))
            fitted = regression.fit(points.where("w > 0"))
            boundaries.append(fitted.boundaries.toArray())
            probabilities.append(fitted.predictions.toArray())
        starts = np.cumsum([0, *map(len, boundaries)])
        found = np.concatenate(boundaries), np.concatenate(probabilities)
        return CalibratedClassifierModel(np.empty((0, 2)), *found, starts, n_classes)
