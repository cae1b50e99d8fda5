"""What the models of linear regression share: the prediction of a row is a line."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from pyspark.ml.linalg import Vector
from pyspark.ml.regression import RegressionModel
from pyspark.sql import DataFrame

from mllib_ext.base import Trained, as_row, compressed, frozen
from mllib_ext.columns import Matrix
from mllib_ext.prediction import Output, with_predictions


class LinearPredictor(Trained, RegressionModel[Vector]):  # type: ignore[misc]
    """Coefficients and an intercept.

    Parameters
    ----------
    coefficients : ndarray, shape (d,)
    intercept : float
    """

    def __init__(self, coefficients: Any, intercept: Any) -> None:
        super().__init__()
        self._coefficients, self._intercept = frozen(coefficients), frozen(intercept)

    @property
    def numFeatures(self) -> int:
        """Number of features."""
        return len(self._coefficients)

    @property
    def coefficients(self) -> Vector:
        """Coefficients (d,); as in pyspark.ml, sparse if that takes much less space."""
        return compressed(self._coefficients)

    @property
    def intercept(self) -> float:
        """Intercept."""
        return float(self._intercept)

    def predict(self, value: Vector) -> float:
        """The prediction for one row."""
        X = as_row(value, self.numFeatures)
        return float(_predict(self._coefficients, self.intercept, "y", X)["y"][0])

    def _transform(self, dataset: DataFrame) -> DataFrame:
        name = self.getPredictionCol()
        predict = partial(_predict, self._coefficients, self.intercept, name)
        outputs = {name: Output("double", {})}
        return with_predictions(self, dataset, self.numFeatures, outputs, predict)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: uid={self.uid}, numFeatures={self.numFeatures}"


def _predict(coefficients: np.ndarray, intercept: float, name: str, X: Matrix) -> dict[str, Any]:
    return {name: X @ coefficients + intercept}
