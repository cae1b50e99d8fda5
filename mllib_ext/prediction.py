"""Prediction out: columns that a function of the features appends to a DataFrame.

Workers import this module, so it imports pyspark.ml where the driver alone comes by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    DoubleType,
    FloatType,
    IntegerType,
    StructField,
    StructType,
)

from mllib_ext.columns import Features, Matrix, quoted, refuse_no_dataframe

# predict(X) -> {column: values}: (n,) becomes a double or integer column, (n, k) a vector or array.
Predict = Callable[[Matrix], dict[str, np.ndarray]]


class Output(NamedTuple):
    """A prediction column: its type, and what Spark's metadata say of its values.

    Attributes
    ----------
    kind : {"double", "integer", "vector", "array<float>", "array<double>"}
    attributes : dict
        Spark's ``ml_attr``: ``{"num_attrs": k}`` of a vector, ``{}`` of a number.
    """

    kind: Literal["double", "integer", "vector", "array<float>", "array<double>"]
    attributes: dict[str, Any]


def class_outputs(names: Sequence[str], n_classes: int) -> dict[str, Output]:
    """The columns of a classifier: vectors of a value for each class, and last the class."""
    refuse_repeated(names)
    vectors = dict.fromkeys(names[:-1], Output("vector", {"num_attrs": n_classes}))
    return vectors | {names[-1]: Output("double", {"num_vals": n_classes, "type": "nominal"})}


def refuse_repeated(names: Sequence[str]) -> None:
    """ValueError for two output columns of one name."""
    for i, name in enumerate(names):
        if name and name in names[:i]:
            raise ValueError(
                f"output column {name!r}: expected a name of its own, found it for two outputs"
            )


class ReadsFeatures(Protocol):
    """A model that knows the column, or the columns, that it reads."""

    @property
    def uid(self) -> str: ...

    def _features(self) -> str | list[str]: ...


def with_predictions(
    model: ReadsFeatures,
    dataset: DataFrame,
    n_features: int,
    outputs: dict[str, Output],
    predict: Predict,
) -> DataFrame:
    """Append a model's prediction columns: one Arrow UDF, one call of ``predict`` a batch.

    Parameters
    ----------
    model : ReadsFeatures
        For its feature columns.
    dataset : DataFrame
        Batch or streaming.
    n_features : int
        What the model was trained on.
    outputs : dict of str to Output
        By the name of the column; nothing where the name is empty.
    predict : callable
        Made of module-level functions and arrays alone: it travels to the workers, and the plan
        outlives the model.
    """
    from pyspark.ml.functions import array_to_vector

    refuse_no_dataframe(dataset)
    features = Features.of(dataset.schema, model._features())
    if features.kind == "columns" and len(features.names) != n_features:
        raise ValueError(
            f"{features.label}: expected {n_features} columns as in training, "
            f"found {len(features.names)}"
        )
    outputs = {name: output for name, output in outputs.items() if name}
    for name in outputs:
        if name in dataset.columns:
            raise ValueError(
                f"output column {name!r}: expected a name that is free, found it in the input"
            )
    if not outputs:
        return dataset
    kinds = {
        "double": DoubleType(),
        "integer": IntegerType(),
        "vector": ArrayType(DoubleType(), False),
        "array<float>": ArrayType(FloatType(), False),
        "array<double>": ArrayType(DoubleType(), False),
    }
    fields = [StructField(f"c{i}", kinds[o.kind], False) for i, o in enumerate(outputs.values())]
    function = partial(_predict_batch, features, n_features, tuple(outputs), predict)
    udf = F.arrow_udf(annotated(function), StructType(fields))  # type: ignore[call-overload]
    packed = f"{model.uid}_predictions"
    columns = {}
    for i, (name, output) in enumerate(outputs.items()):
        column = F.col(packed)[f"c{i}"]
        column = array_to_vector(column) if output.kind == "vector" else column
        columns[name] = column.alias(name, metadata={"ml_attr": output.attributes})
    predicted = by_rows(dataset).withColumn(packed, udf(*features.expressions()))
    return predicted.withColumns(columns).drop(packed)


def by_rows(dataset: DataFrame) -> DataFrame:
    """The same rows, of which Spark can hand vectors past an Arrow UDF.

    Spark 4.3 hands Parquet's columns past it as they are, and fails where one of them is a vector.
    Above a filter there are rows; this one is always true, which Spark does not see.
    """
    names = [name.casefold() for name in dataset.columns]
    known = [name for name in dataset.columns if names.count(name.casefold()) == 1]
    if known and any('"udt"' in field.dataType.json() for field in dataset.schema):
        return dataset.where(F.hash(F.isnull(quoted(known[0]))) >= -(2**31))
    return dataset


def annotated(function: Callable[..., pa.Array]) -> Callable[..., pa.Array]:
    """A plain function of any number of Arrow arrays, whose kind PySpark reads from its hints."""

    def call(*arrays: pa.Array) -> pa.Array:
        return function(*arrays)

    call.__annotations__ = {"arrays": pa.Array, "return": pa.Array}
    return call


def _predict_batch(
    features: Features, n_features: int, names: Sequence[str], predict: Predict, *arrays: pa.Array
) -> pa.Array:
    X = features.decode(arrays, n_features, None)
    if X.dtype != np.float64:
        X = X.astype(np.float64)  # transfer dwarfs the product: no reason to lose digits
    outputs = predict(X)
    return pa.StructArray.from_arrays(
        [_column(outputs[name]) for name in names], [f"c{i}" for i in range(len(names))]
    )


def _column(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    n, k = values.shape
    offsets = np.arange(0, (n + 1) * k, k, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(values).ravel())
