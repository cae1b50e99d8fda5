r"""Weights that make every class count the same.

.. math::

    w'_i = w_i \, \frac{W}{k \, W_{y_i}}, \qquad
    W_c = \sum_{i : y_i = c} w_i, \quad W = \sum_c W_c

for k classes: each has the weight W / k then, and the whole still has the weight W, so that a
penalty's strength keeps its meaning. King & Zeng (2001), Logistic Regression in Rare Events Data;
``class_weight="balanced"`` in scikit-learn.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from pyspark import keyword_only
from pyspark.ml.base import Estimator, Model
from pyspark.ml.param.shared import HasLabelCol, HasOutputCol, HasWeightCol
from pyspark.ml.util import (
    DefaultParamsReadable,
    DefaultParamsReader,
    DefaultParamsWritable,
    DefaultParamsWriter,
    MLReadable,
    MLReader,
    MLWritable,
    MLWriter,
)
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from mllib_ext.base import frozen
from mllib_ext.columns import number, refuse_no_dataframe

# So many classes go to the driver and into the plan of every transform; a label with more is more
# likely a number to predict.
MOST_CLASSES = 10_000


class _ClassBalancerParams(HasLabelCol, HasWeightCol, HasOutputCol):
    """Columns of :class:`ClassBalancer` and of its model."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(outputCol="class_weight")

    def setLabelCol(self, value: str) -> Self:
        """Set the column of the classes."""
        return self._set(labelCol=value)

    def setWeightCol(self, value: str) -> Self:
        """Set the column of the weights to start from; without it, every row has 1."""
        return self._set(weightCol=value)

    def setOutputCol(self, value: str) -> Self:
        """Set the column of the new weights."""
        return self._set(outputCol=value)

    def _weight(self, dataset: DataFrame) -> Column:
        if self.isDefined(self.weightCol) and self.getWeightCol():
            return number(dataset.schema, self.getWeightCol(), "weight")
        return F.lit(1.0)


class ClassBalancer(
    Estimator["ClassBalancerModel"],
    _ClassBalancerParams,
    DefaultParamsWritable,
    DefaultParamsReadable["ClassBalancer"],
):
    """Weights by which every class weighs the same; see :mod:`mllib_ext.feature.class_balancer`.

    Parameters
    ----------
    labelCol : str
        The column of the classes, numeric.
    weightCol : str or None
        Weights to start from, not negative; without it, every row has 1.
    outputCol : str
        The column of the new weights.

    Raises
    ------
    ValueError
        From ``fit``: no rows, a label that is null or NaN, a weight that is negative, null or not
        finite, no weight above 0 in a class, too many classes.
    TypeError
        From ``fit``: a column that is not numeric.

    Examples
    --------
    >>> from mllib_ext.feature import ClassBalancer
    >>> weighted = ClassBalancer().fit(df).transform(df)  # doctest: +SKIP
    >>> LogisticRegression(weightCol="class_weight").fit(weighted)  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        labelCol: str = "label",
        weightCol: str | None = None,
        outputCol: str = "class_weight",
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    @keyword_only
    def setParams(
        self,
        *,
        labelCol: str = "label",
        weightCol: str | None = None,
        outputCol: str = "class_weight",
    ) -> Self:
        """Set several parameters at once, by the constructor's keywords."""
        return self._set(**self._input_kwargs)

    def _fit(self, dataset: DataFrame) -> ClassBalancerModel:
        refuse_no_dataframe(dataset)
        y = number(dataset.schema, self.getLabelCol(), "label").alias("y")
        w: Any = self._weight(dataset).alias("w")
        bad = w.isNull() | F.isnan(w) | (w < 0) | (w == float("inf"))
        rows = (
            dataset.select(y, w)
            .groupBy("y")
            .agg(F.sum("w").alias("w"), F.count_if(bad).alias("bad"), F.count("*").alias("n"))
            .limit(MOST_CLASSES + 1)
            .collect()
        )
        self._refuse(rows)
        rows.sort(key=lambda row: float(row["y"]))
        totals = np.array([row["w"] for row in rows])  # (k,)
        model = ClassBalancerModel(
            [row["y"] for row in rows], totals.sum() / (len(totals) * totals)
        )
        model._resetUid(self.uid)
        return self._copyValues(model)

    def _refuse(self, rows: list[Any]) -> None:
        """A ValueError for what cannot be balanced."""
        label = f"label column {self.getLabelCol()!r}: expected"
        if not rows:
            raise ValueError(f"{label} at least one row, found no rows")
        if len(rows) > MOST_CLASSES:
            raise ValueError(f"{label} classes, at most {MOST_CLASSES}, found more")
        for row in rows:
            if row["y"] is None or np.isnan(row["y"]):
                found = "null" if row["y"] is None else "NaN"
                raise ValueError(f"{label} a number in every row, found {found} in {row['n']}")
        bad = sum(row["bad"] for row in rows)
        if bad:
            raise ValueError(
                f"weight column {self.getWeightCol()!r}: expected finite weights of at least 0, "
                f"found another in {bad} rows"
            )
        for row in rows:
            if row["w"] == 0:
                raise ValueError(
                    f"weight column {self.getWeightCol()!r}: expected weights above 0 in every "
                    f"class, found only 0 in class {row['y']:g}"
                )


class ClassBalancerModel(Model, _ClassBalancerParams, MLWritable, MLReadable["ClassBalancerModel"]):
    """Model fitted by :class:`ClassBalancer`.

    Parameters
    ----------
    labels : array-like, shape (k,)
    factors : array-like, shape (k,)
        What the weight of a row of each class is multiplied by.

    Notes
    -----
    A row of a class that was not there in ``fit`` keeps its weight: the factor of a row is 1 on
    average. Without a label column, as in prediction, ``transform`` adds nothing.
    """

    def __init__(self, labels: Any, factors: Any) -> None:
        super().__init__()
        self._labels, self._factors = frozen(labels), frozen(factors)

    @property
    def labels(self) -> np.ndarray:
        """The classes, ascending, shape (k,), read-only."""
        return self._labels

    @property
    def factors(self) -> np.ndarray:
        """What the weight of a row of each class is multiplied by, shape (k,), read-only."""
        return self._factors

    def _transform(self, dataset: DataFrame) -> DataFrame:
        refuse_no_dataframe(dataset)
        if self.getLabelCol() not in dataset.columns:
            return dataset
        name = self.getOutputCol()
        if name in dataset.columns:
            raise ValueError(
                f"output column {name!r}: expected a name that is free, found it in the input"
            )
        factors = F.map_from_arrays(F.lit(self._labels.tolist()), F.lit(self._factors.tolist()))
        y = number(dataset.schema, self.getLabelCol(), "label")
        factor = F.coalesce(factors[y], F.lit(1.0))
        return dataset.withColumn(name, self._weight(dataset) * factor)

    def write(self) -> MLWriter:
        """A writer: ``model.write().overwrite().save(path)``."""
        return _Writer(self)

    @classmethod
    def read(cls) -> MLReader[ClassBalancerModel]:
        """A reader: ``ClassBalancerModel.read().load(path)``."""
        return _Reader()

    def __repr__(self) -> str:
        return f"ClassBalancerModel: uid={self.uid}, numClasses={len(self._labels)}"


class _Writer(MLWriter):
    """A few numbers, exact in JSON: they stand beside the parameters."""

    def __init__(self, model: ClassBalancerModel) -> None:
        super().__init__()
        self.model = model

    def saveImpl(self, path: str) -> None:
        extra = {"labels": self.model.labels.tolist(), "factors": self.model.factors.tolist()}
        DefaultParamsWriter.saveMetadata(self.model, path, self.sparkSession, extraMetadata=extra)


class _Reader(MLReader[ClassBalancerModel]):
    def load(self, path: str) -> ClassBalancerModel:
        name = f"{ClassBalancerModel.__module__}.{ClassBalancerModel.__name__}"
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession, name)
        model = ClassBalancerModel(metadata["labels"], metadata["factors"])
        model._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(model, metadata)
        return model
