"""What feature maps share: columns in, a column of vectors or arrays out.

A map of so many components makes a linear model a model with a kernel:
:mod:`mllib_ext.feature.nystroem`, :mod:`mllib_ext.feature.random_fourier_features`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import numpy as np
from pyspark import keyword_only
from pyspark.ml.linalg import DenseVector, Vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasInputCols, HasOutputCol, HasSeed
from pyspark.sql import DataFrame

from mllib_ext.base import Fitted, as_row, dense, with_columns
from mllib_ext.columns import Matrix
from mllib_ext.fitting import FitsOverBlocks
from mllib_ext.mapped import Mapped, Shipped
from mllib_ext.names import did_you_mean
from mllib_ext.persistence import SavesParams
from mllib_ext.prediction import Output, with_predictions

OUTPUT_TYPES = ("vector", "array<float>", "array<double>")
# Rows that are mapped at once: as many as keep each of a few temporaries in this size.
TILE_BYTES = 8 << 20


class FeatureMapParams(HasInputCol, HasInputCols, HasOutputCol, HasSeed):
    """Columns, number of components and seed of a feature map."""

    nComponents: Param[int] = Param(
        Params._dummy(), "nComponents", "number of features to make", TypeConverters.toInt
    )
    outputType: Param[str] = Param(
        Params._dummy(),
        "outputType",
        "type of the output column: vector, array<float> or array<double>",
        TypeConverters.toString,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            inputCol="features",
            outputCol="mapped_features",
            outputType="vector",
            nComponents=100,
            seed=0,
        )

    def getNComponents(self) -> int:
        """The number of features to make."""
        return self.getOrDefault(self.nComponents)

    def getOutputType(self) -> str:
        """The type of the output column."""
        return self.getOrDefault(self.outputType)

    def setInputCol(self, value: str) -> Self:
        """Set the column of the features, a vector or an array."""
        self.clear(self.inputCols)
        return self._set(inputCol=value)

    def setInputCols(self, value: Sequence[str]) -> Self:
        """Set the list of numeric columns that are the features, in place of inputCol."""
        self.clear(self.inputCol)
        return self._set(inputCols=list(value))

    def setOutputCol(self, value: str) -> Self:
        """Set the column of the mapped features."""
        return self._set(outputCol=value)

    def setOutputType(self, value: str) -> Self:
        """Set the type of the output column: vector, array<float> or array<double>."""
        return self._set(outputType=value)

    def copy(self: Any, extra: Any = None) -> Any:
        """A copy with other parameters; a column takes the place of several, and they of it."""
        return with_columns(super().copy(extra), "inputCol", "inputCols", extra)

    def _features(self) -> str | list[str]:
        return self.getInputCols() if self.isSet(self.inputCols) else self.getInputCol()


class FeatureMap(FitsOverBlocks, FeatureMapParams, SavesParams):
    """Setters and checks of an estimator of a feature map."""

    @keyword_only
    def setParams(self, **params: Any) -> Self:
        """Set several parameters at once, by the constructor's keywords."""
        params = {name: value for name, value in params.items() if value is not None}
        for name in params:
            if not self.hasParam(name):
                hint = did_you_mean(name, [param.name for param in self.params])
                raise TypeError(f"{type(self).__name__} has no parameter {name!r}{hint}")
        if "inputCols" in params:
            self.setInputCols(params.pop("inputCols"))
            params.pop("inputCol", None)
        return self._set(**params)

    def setNComponents(self, value: int) -> Self:
        """Set the number of features to make."""
        return self._set(nComponents=value)

    def setSeed(self, value: int) -> Self:
        """Set the seed."""
        return self._set(seed=value)

    def _refuse_params(self) -> None:
        if self.getNComponents() < 1:
            raise ValueError(
                f"param nComponents: expected 1 or more, found {self.getNComponents()!r}"
            )
        _refuse_output_type(self)


def _refuse_output_type(instance: FeatureMapParams) -> None:
    if instance.getOutputType() not in OUTPUT_TYPES:
        raise ValueError(
            f"param outputType: expected one of {OUTPUT_TYPES}, found {instance.getOutputType()!r}"
        )


class FeatureMapModel(Shipped, Fitted, FeatureMapParams):
    """A fitted map; computed in float64, rounded at the end if the output is array<float>."""

    @property
    @abstractmethod
    def _predictor(self) -> Any:
        """``map(X) -> (n, n_components)``, free of the model itself."""

    @property
    @abstractmethod
    def numFeatures(self) -> int:
        """Number of features that go in."""

    @property
    @abstractmethod
    def numComponents(self) -> int:
        """Number of features that come out."""

    def apply(self, value: Vector) -> DenseVector:
        """The mapped features of one row."""
        return dense(self._predictor(as_row(value, self.numFeatures))[0])

    def _transform(self, dataset: DataFrame) -> DataFrame:
        _refuse_output_type(self)
        name, kind = self.getOutputCol(), self.getOutputType()
        attributes = {"num_attrs": self.numComponents} if kind == "vector" else {}
        outputs = {name: Output(kind, attributes)}  # type: ignore[arg-type]
        dtype = "float32" if kind == "array<float>" else "float64"
        apply = partial(_apply, self._shipped(dataset), name, self.numComponents, dtype)
        return with_predictions(self, dataset, self.numFeatures, outputs, apply)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}: uid={self.uid}, numFeatures={self.numFeatures}, "
            f"numComponents={self.numComponents}"
        )


def _apply(
    mapped: Mapped, name: str, n_components: int, dtype: str, X: Matrix
) -> dict[str, np.ndarray]:
    function = mapped.open()
    n, d = X.shape
    Z = np.empty((n, n_components), dtype)
    step = max(1, TILE_BYTES // (8 * max(d, n_components)))
    for start in range(0, n, step):
        Z[start : start + step] = function(X[start : start + step])
    return {name: Z}
