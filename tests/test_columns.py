from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from pyspark.ml.linalg import SparseVector, Vectors, VectorUDT
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    StringType,
    StructType,
)

from mllib_ext.columns import BadRow, Features, data_type, number, numbers, quoted

SCHEMA = (
    StructType()
    .add("features", VectorUDT())
    .add("singles", ArrayType(FloatType()))
    .add("doubles", ArrayType(DoubleType()))
    .add("longs", ArrayType(LongType()))
    .add("age", IntegerType())
    .add("height", FloatType())
    .add("width", FloatType())
    .add("price", DecimalType(10, 2))
    .add("member", BooleanType())
    .add("name", StringType())
    .add("a.b", DoubleType())
)

VECTOR = Features("vector", ("features",), "float64")
ARRAY = Features("array", ("x",), "float64")
COLUMNS = Features("columns", ("a", "b", "c"), "float64")


def vectors(*rows):
    """What Arrow carries of a vector column: sizes, indices, values."""
    sparse = [isinstance(row, SparseVector) for row in rows]
    sizes = [row.size if s else None for row, s in zip(rows, sparse, strict=True)]
    indices = [row.indices.tolist() if s else [] for row, s in zip(rows, sparse, strict=True)]
    values = [None if row is None else row.values.tolist() for row in rows]
    return [
        pa.array(sizes, pa.int32()),
        pa.array(indices, pa.list_(pa.int32())),
        pa.array(values, pa.list_(pa.float64())),
    ]


def lists(*rows, kind=None):
    return [pa.array(rows, pa.list_(kind or pa.float64()))]


# --- resolving --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("features", Features("vector", ("features",), "float64")),
        ("singles", Features("array", ("singles",), "float32")),
        ("doubles", Features("array", ("doubles",), "float64")),
        (["age", "height"], Features("columns", ("age", "height"), "float64")),
        (["height", "width"], Features("columns", ("height", "width"), "float32")),
        (("price", "member"), Features("columns", ("price", "member"), "float64")),
        (["a.b"], Features("columns", ("a.b",), "float64")),
    ],
)
def test_three_kinds_of_features_keep_their_precision(features, expected):
    assert Features.of(SCHEMA, features) == expected


@pytest.mark.parametrize(
    ("features", "near"), [("featurs", "features"), (["age", "hieght"], "height"), ("a_b", "a.b")]
)
def test_a_missing_column_is_told_with_the_nearest_name(features, near):
    with pytest.raises(ValueError, match=rf"did you mean '{near}'\?") as error:
        Features.of(SCHEMA, features)
    wrong = features if isinstance(features, str) else features[-1]
    assert f"features column {wrong!r}: expected one of ['features'" in str(error.value)


def test_a_missing_column_like_no_other_gives_no_hint():
    with pytest.raises(ValueError, match=r"found no such column$"):
        data_type(SCHEMA, "zzzzzz", "label")


@pytest.mark.parametrize(
    ("features", "found"),
    [
        ("name", "features column 'name': .* found string"),
        ("age", "features column 'age': .* list of numeric columns.*found int"),
        ("longs", "features column 'longs': .* found array<bigint>"),
        (["age", "name"], "features column 'name': expected a numeric type, found string"),
        (["age", "features"], "features column 'features': expected a numeric type, found "),
    ],
)
def test_a_features_column_of_another_type_is_refused_with_what_was_found(features, found):
    with pytest.raises(TypeError, match=found):
        Features.of(SCHEMA, features)


def test_no_features_columns_at_all_are_refused():
    with pytest.raises(ValueError, match="expected at least one column name, found none"):
        Features.of(SCHEMA, [])


@pytest.mark.parametrize("name", ["name", "features", "doubles"])
def test_a_label_that_is_no_number_is_refused(name):
    with pytest.raises(TypeError, match=f"label column '{name}': expected a numeric type, found "):
        number(SCHEMA, name, "label")


@pytest.mark.parametrize("name", ["a.b", "a b", "a`b", "`", "x.*", "Größe", "a'b", '"'])
def test_a_column_is_found_by_exactly_its_name(spark, name):
    df = spark.range(3).toDF(name)
    assert df.select(quoted(name).alias("x")).agg({"x": "sum"}).first()[0] == 3


# --- decoding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_an_array_column_is_decoded_without_a_copy(kind):
    (array,) = lists([1, 2], [3, 4], [5, 6], kind=kind)
    X = ARRAY.decode([array], None, None)
    assert X.dtype == kind.to_pandas_dtype()
    assert X.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert np.shares_memory(X, array.values.to_numpy())


def test_a_slice_of_a_batch_gives_its_own_rows():
    (array,) = lists([1, 2], [3, 4], [5, 6], [7, 8])
    assert ARRAY.decode([array[1:3]], 2, None).tolist() == [[3, 4], [5, 6]]
    rows = [
        Vectors.dense(1, 2), Vectors.sparse(2, [1], [3]), Vectors.sparse(2, [], []),
        Vectors.dense(4, 5), Vectors.sparse(2, [0, 1], [6, 7]),
    ]  # fmt: skip
    expected = np.array([row.toArray() for row in rows])
    whole = vectors(*rows)
    for start in range(5):
        for stop in range(start + 1, 6):
            for sparse in (True, False, None):
                X = VECTOR.decode([a[start:stop] for a in whole], 2, sparse)
                X = X.toarray() if sp.issparse(X) else X
                np.testing.assert_array_equal(X, expected[start:stop])


def test_dense_and_sparse_rows_give_one_matrix():
    rows = [Vectors.dense(1, 0, 2), Vectors.sparse(3, [1], [5]), Vectors.sparse(3, [], [])]
    expected = [[1, 0, 2], [0, 5, 0], [0, 0, 0]]
    dense = VECTOR.decode(vectors(*rows), None, False)
    csr = VECTOR.decode(vectors(*rows), None, True)
    assert isinstance(dense, np.ndarray)
    assert dense.tolist() == expected
    assert isinstance(csr, sp.csr_array)
    assert csr.toarray().tolist() == expected
    assert csr.has_canonical_format
    assert isinstance(VECTOR.decode(vectors(*rows), None, None), sp.csr_array)
    assert isinstance(VECTOR.decode(vectors(rows[0]), None, None), np.ndarray)


def test_dense_rows_alone_can_become_csr_and_sparse_rows_alone_dense():
    dense, sparse = Vectors.dense(1, 0, 2), Vectors.sparse(3, [2], [7])
    assert VECTOR.decode(vectors(dense, dense), 3, True).toarray().tolist() == [[1, 0, 2]] * 2
    assert VECTOR.decode(vectors(sparse, sparse), 3, False).tolist() == [[0, 0, 7]] * 2


def test_a_wide_sparse_row_takes_no_more_than_its_values():
    X = VECTOR.decode(vectors(Vectors.sparse(10**9, [3, 10**9 - 1], [1, 2])), None, True)
    assert X.shape == (1, 10**9)
    assert X.nnz == 2


@pytest.mark.parametrize(
    ("features", "arrays", "d", "message", "row"),
    [
        (ARRAY, lists([1, 2], None), None, "column 'x': .* a vector in every row, found null", 1),
        (ARRAY, lists([1, 2], [3, None]), 2, "'x', element 1: .*a number in every row.* null", 1),
        (ARRAY, lists([1, 2], [3, 4, 5]), None, "'x': .* vectors of length 2, found length 3", 1),
        (ARRAY, lists([1, 2]), 3, "'x': .* vectors of length 3, found length 2", 0),
        (ARRAY, lists([], [1], [2, None]), 2, "'x', element 1", 2),
        (COLUMNS, lists([1, 2, 3], [4, None, 6]), 3, "column 'b': .* found null", 1),
        (VECTOR, vectors(Vectors.dense(1, 2), None), 2, "'features': .* found null", 1),
        (VECTOR, vectors(None, Vectors.dense(1, 2)), None, "'features': .* found null", 0),
        (
            VECTOR,
            vectors(Vectors.dense(1, 2), Vectors.sparse(3, [0], [1])),
            None,
            "length 2, found length 3",
            1,
        ),
        (
            VECTOR,
            vectors(Vectors.sparse(3, [0, 1], [1, 2]), Vectors.dense(1, 2)),
            None,
            "length 3, found length 2",
            1,
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_told_with_its_place(features, arrays, d, message, row):
    for sparse in (True, False) if features is VECTOR else (False,):
        with pytest.raises(BadRow, match=message) as bad:
            features.decode(arrays, d, sparse)
        assert bad.value.row == row


@pytest.mark.parametrize(
    ("features", "arrays"),
    [
        (ARRAY, lists([], [])),
        (VECTOR, vectors(Vectors.dense([]))),
        (VECTOR, vectors(Vectors.sparse(0, [], []))),
    ],
)
def test_vectors_without_elements_are_refused(features, arrays):
    with pytest.raises(BadRow, match="expected at least one feature, found vectors of length 0"):
        features.decode(arrays, None, False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_value_that_is_not_finite_is_named(value):
    X = np.zeros((4, 3))
    X[2, 1] = X[3, 0] = value
    for matrix in (X, sp.csr_array(X), X.astype(np.float32)):
        with pytest.raises(BadRow, match=f"element 1: expected finite numbers, found {value}") as e:
            ARRAY.refuse_non_finite(matrix)
        assert e.value.row == 2
    with pytest.raises(BadRow, match="features column 'b': expected finite"):
        COLUMNS.refuse_non_finite(X)
    ARRAY.refuse_non_finite(np.zeros((4, 3)))


@pytest.mark.parametrize(
    ("values", "found"),
    [([1.0, None], "null"), ([1.0, np.nan], "nan"), ([0.0, np.inf], "inf"), ([0, -np.inf], "-inf")],
)
def test_a_label_that_is_null_or_not_finite_is_named(values, found):
    with pytest.raises(BadRow, match=f"label: expected a number in every row, found {found}") as e:
        numbers(pa.array(values, pa.float64()), "label")
    assert e.value.row == 1


def test_a_bad_row_travels_between_processes():
    bad = pickle.loads(pickle.dumps(BadRow("column", "this", "that", 7)))
    assert str(bad) == "column: expected this, found that"
    assert bad.row == 7


# --- dense or CSR -----------------------------------------------------------------------------


def vector_frame(spark, rows):
    schema = StructType().add("features", VectorUDT())
    return spark.createDataFrame([(row,) for row in rows], schema).coalesce(1)


def judged_sparse(df, column):
    features = Features.of(df.schema, column)
    columns = [c.alias(f"x{i}") for i, c in enumerate(features.expressions())]
    table = df.select(*columns).toArrow().combine_chunks()
    return features.mostly_zero([column.combine_chunks() for column in table.columns])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([Vectors.sparse(9, [1], [1])] * 3, True),
        ([Vectors.dense([0.0] * 9)] * 3, False),  # stored in full, whatever the values
        ([Vectors.sparse(3, [0, 1], [1, 2])] * 3, False),  # 2 of 3 entries: dense is smaller
        ([Vectors.sparse(9, [1], [1])] + [Vectors.dense([1.0] * 9)] * 2, False),
        ([Vectors.sparse(9, [1], [1])] * 3 + [Vectors.dense([1.0] * 9)], True),
        ([None, Vectors.sparse(9, [1], [1])], True),  # refused later, with a better message
        ([None, None], False),
        ([Vectors.sparse(9, [], [])], True),
        ([], False),
    ],
)
def test_csr_is_chosen_where_it_takes_less_memory(spark, rows, expected):
    df = vector_frame(spark, rows)
    assert judged_sparse(df, "features") is expected


def test_array_columns_are_dense(spark):
    assert not judged_sparse(spark.range(1).selectExpr("array(0D, 0D, 0D) x"), "x")
