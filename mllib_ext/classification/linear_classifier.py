"""What the models of linear classification share: a row of coefficients, or one for each class."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from pyspark.ml.classification import ClassificationModel
from pyspark.ml.linalg import DenseVector, SparseMatrix, Vector, Vectors
from pyspark.ml.linalg import Matrix as SparkMatrix
from pyspark.sql import DataFrame

from mllib_ext.base import Trained, as_row, compressed_matrix, dense, frozen
from mllib_ext.prediction import class_outputs, with_predictions


class LinearClassifier(Trained, ClassificationModel):  # type: ignore[misc]
    """Coefficients and intercepts.

    Parameters
    ----------
    coefficients : ndarray, shape (k, d)
        One row, which tells two classes apart, or a row for each class.
    intercepts : ndarray, shape (k,)
    n_classes : int
    """

    # What `_predict_function` is asked for by these names for one row; the class is the last.
    _outputs: tuple[str, ...] = ("raw", "prediction")

    def __init__(self, coefficients: Any, intercepts: Any, n_classes: Any) -> None:
        super().__init__()
        self._coefficients, self._intercepts = frozen(coefficients), frozen(intercepts)
        self._n_classes = frozen(n_classes)

    @property
    def numClasses(self) -> int:
        """Number of classes."""
        return int(self._n_classes)

    @property
    def numFeatures(self) -> int:
        """Number of features."""
        return int(self._coefficients.shape[1])

    @property
    def coefficientMatrix(self) -> SparkMatrix:
        """Coefficients (1, d), or (k, d) where each class has its own.

        As in pyspark.ml, sparse if that takes less space; so are the coefficients.
        """
        return compressed_matrix(self._coefficients)

    @property
    def interceptVector(self) -> DenseVector:
        """Intercepts, one for each row of the matrix."""
        return dense(self._intercepts)

    @property
    def coefficients(self) -> Vector:
        """Coefficients (d,) of two classes; ValueError where each class has its own."""
        self._refuse_several("coefficients", "coefficientMatrix")
        matrix = self.coefficientMatrix
        if isinstance(matrix, SparseMatrix):
            return Vectors.sparse(self.numFeatures, matrix.rowIndices, matrix.values)
        return dense(self._coefficients[0])

    @property
    def intercept(self) -> float:
        """Intercept of two classes; ValueError where each class has its own."""
        self._refuse_several("intercept", "interceptVector")
        return float(self._intercepts[0])

    @property
    def _is_multinomial(self) -> bool:
        """Whether each class has coefficients of its own."""
        return len(self._coefficients) > 1

    def _refuse_several(self, name: str, other: str) -> None:
        if self._is_multinomial:
            raise ValueError(
                f"{name}: expected a model with one row of coefficients, found one row for each "
                f"of {self.numClasses} classes: use {other}"
            )

    def predictRaw(self, value: Vector) -> Vector:
        """Margins of one row, one for each class."""
        return dense(self._predict_row(value)["raw"][0])

    def predict(self, value: Vector) -> float:
        """The class of one row."""
        return float(self._predict_row(value)["prediction"][0])

    def _predict_row(self, value: Vector) -> dict[str, np.ndarray]:
        predicted: dict[str, np.ndarray] = self._predict_function(self._outputs)(
            as_row(value, self.numFeatures)
        )
        return predicted

    @abstractmethod
    def _predict_function(self, names: tuple[str, ...]) -> Any:
        """``predict(X) -> columns`` by these names, free of the model itself."""

    def _output_columns(self) -> tuple[str, ...]:
        """The names of the columns in the order of ``_outputs``."""
        return self.getRawPredictionCol(), self.getPredictionCol()

    def _transform(self, dataset: DataFrame) -> DataFrame:
        names = self._output_columns()
        outputs = class_outputs(names, self.numClasses)
        predict = self._predict_function(names)
        return with_predictions(self, dataset, self.numFeatures, outputs, predict)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: uid={self.uid}, numClasses={self.numClasses}, "
            f"numFeatures={self.numFeatures}"
        )
