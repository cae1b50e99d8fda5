"""Regression by the mean label of the nearest rows (:mod:`mllib_ext.knn.votes`)."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import numpy as np
from pyspark import keyword_only
from pyspark.ml.linalg import Vector
from pyspark.ml.regression import RegressionModel, Regressor

from mllib_ext.base import Output
from mllib_ext.blocks import Blocks
from mllib_ext.knn.predictors import KNeighborsEstimator, KNeighborsModel
from mllib_ext.knn.votes import LabelledRows
from mllib_ext.persistence import SavesParams


class KNeighborsRegressionModel(KNeighborsModel, RegressionModel):  # type: ignore[misc]
    """Model fitted by :class:`KNeighborsRegressor`.

    Parameters
    ----------
    rows : LabelledRows
    """

    @classmethod
    def _of(cls, rows: LabelledRows, metadata: dict[str, Any]) -> Self:
        return cls(rows)

    def _extra(self) -> dict[str, Any]:
        return {}

    def _outputs(self) -> dict[str, Output]:
        return {self.getPredictionCol(): Output("double", {})}

    def _answer(self, names: Any) -> Any:
        return partial(_average, names)

    def predict(self, value: Vector) -> float:
        """The prediction of one row."""
        return float(self._predict_row(value)["prediction"][0])


def _average(names: tuple[str], labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    (name,) = names
    return {name: (weights * labels).sum(axis=1) / weights.sum(axis=1)}


class KNeighborsRegressor(KNeighborsEstimator, Regressor, SavesParams):  # type: ignore[misc]
    """Regression by the mean label of the k nearest training rows, as a pyspark.ml predictor.

    Parameters
    ----------
    featuresCol, k, metric, weights, weightCol
        As of :class:`mllib_ext.knn.KNeighborsClassifier`.
    labelCol : str
        A number.
    predictionCol : str

    Raises
    ------
    ValueError
        From ``fit``: a parameter out of range; what :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Examples
    --------
    >>> from mllib_ext.knn import KNeighborsRegressor
    >>> KNeighborsRegressor(weights="distance").fit(df).transform(df)  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        featuresCol: str | list[str] = "features",
        labelCol: str = "label",
        predictionCol: str = "prediction",
        k: int = 5,
        metric: str = "euclidean",
        weights: str = "uniform",
        weightCol: str | None = None,
        maxBlockSizeInMB: float = 0.0,
        featuresCols: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def _fit_blocks(self, blocks: Blocks) -> KNeighborsRegressionModel:
        model: KNeighborsRegressionModel = self._taken_over(
            KNeighborsRegressionModel(self._rows(blocks))
        )
        return model
