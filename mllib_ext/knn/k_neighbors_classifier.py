"""Classification by a vote of the nearest rows (:mod:`mllib_ext.neighbors.votes`)."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import numpy as np
from pyspark import keyword_only
from pyspark.ml.classification import ProbabilisticClassificationModel, ProbabilisticClassifier
from pyspark.ml.linalg import Vector

from mllib_ext.base import dense
from mllib_ext.blocks import Blocks
from mllib_ext.classes import (
    class_weights,
    declared_classes,
    refuse_number_of_thresholds,
)
from mllib_ext.knn.predictors import KNeighborsEstimator, KNeighborsModel
from mllib_ext.neighbors.votes import LabelledRows, classified
from mllib_ext.persistence import SavesParams
from mllib_ext.prediction import Output, class_outputs


class KNeighborsClassificationModel(KNeighborsModel, ProbabilisticClassificationModel):  # type: ignore[misc]
    """Model fitted by :class:`KNeighborsClassifier`.

    Parameters
    ----------
    rows : LabelledRows
    n_classes : int
    """

    _outputs_of_a_row = ("raw", "probability", "prediction")

    def __init__(self, rows: LabelledRows, n_classes: int) -> None:
        super().__init__(rows)
        self._n_classes = n_classes

    @classmethod
    def _of(cls, rows: LabelledRows, metadata: dict[str, Any]) -> Self:
        return cls(rows, metadata["numClasses"])

    def _extra(self) -> dict[str, Any]:
        return {"numClasses": self._n_classes}

    @property
    def numClasses(self) -> int:
        """Number of classes."""
        return self._n_classes

    def _outputs(self) -> dict[str, Output]:
        names = self.getRawPredictionCol(), self.getProbabilityCol(), self.getPredictionCol()
        return class_outputs(names, self._n_classes)

    def _answer(self, names: Any) -> Any:
        thresholds = np.array(self.getThresholds()) if self.isDefined("thresholds") else None
        return partial(classified, self._n_classes, thresholds, names)

    def predictRaw(self, value: Vector) -> Vector:
        """The votes of one row, for each class."""
        return dense(self._predict_row(value)["raw"][0])

    def predictProbability(self, value: Vector) -> Vector:
        """Class probabilities of one row."""
        return dense(self._predict_row(value)["probability"][0])

    def predict(self, value: Vector) -> float:
        """The class of one row."""
        return float(self._predict_row(value)["prediction"][0])


class KNeighborsClassifier(KNeighborsEstimator, ProbabilisticClassifier, SavesParams):  # type: ignore[misc]
    """Classification by the k nearest training rows, a predictor as in ``pyspark.ml``.

    Parameters
    ----------
    featuresCol : str or list of str
        A vector column, an array column, or a list of numeric columns.
    labelCol : str
        Classes 0, 1, ..., as ``StringIndexer`` gives them.
    k : int
        All training rows vote where there are fewer.
    metric : {"euclidean", "sqeuclidean", "cosine", "inner_product", "manhattan"}
    weights : {"uniform", "distance"}
        ``distance``: a vote counts 1 / distance; rows at distance 0 outvote all others.
    weightCol : str, optional
        Multiplies a row's vote; a row still takes one place among the k. Rows of weight 0 are as if
        they were not there.
    predictionCol, probabilityCol, rawPredictionCol : str
        The class with the largest vote (the lowest of several), the votes' shares, the votes.
    thresholds : list of float, optional
        As in pyspark.ml: the class with the largest probability / threshold.

    Raises
    ------
    ValueError
        From ``fit``: a parameter out of range; labels that are not 0, 1, ...; what
        :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Examples
    --------
    >>> from mllib_ext.knn import KNeighborsClassifier
    >>> KNeighborsClassifier(k=3).fit(df).transform(df)  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str | list[str] = "features",
        labelCol: str = "label",
        predictionCol: str = "prediction",
        probabilityCol: str = "probability",
        rawPredictionCol: str = "rawPrediction",
        k: int = 5,
        metric: str = "euclidean",
        weights: str = "uniform",
        weightCol: str | None = None,
        thresholds: list[float] | None = None,
        maxBlockSizeInMB: float = 0.0,
        featuresCols: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def _fit_blocks(self, blocks: Blocks) -> KNeighborsClassificationModel:
        rows = self._rows(blocks)
        labels, index = np.unique(rows.y, return_inverse=True)
        declared = declared_classes(blocks.label_metadata)
        by_label = np.bincount(index, rows.w)
        n_classes = len(class_weights(self.getLabelCol(), labels, by_label, declared))
        if self.isDefined("thresholds"):
            refuse_number_of_thresholds(self.getThresholds(), n_classes)
        model: KNeighborsClassificationModel = self._taken_over(
            KNeighborsClassificationModel(rows, n_classes)
        )
        return model
