"""Regression by the mean label of the nearest rows (:mod:`mllib_ext.neighbors.votes`)."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

from pyspark import keyword_only
from pyspark.ml.linalg import Vector
from pyspark.ml.regression import RegressionModel, Regressor

from mllib_ext.blocks import Blocks
from mllib_ext.knn.predictors import KNeighborsEstimator, KNeighborsModel
from mllib_ext.neighbors.votes import LabelledRows, mean_label
from mllib_ext.persistence import SavesParams
from mllib_ext.prediction import Output


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
        return partial(mean_label, names)

    def predict(self, value: Vector) -> float:
        """The prediction of one row."""
        return float(self._predict_row(value)["prediction"][0])


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
