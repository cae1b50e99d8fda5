"""What is asked of every estimator that the package exports.

A new estimator gets these checks by an entry under its name in ``ENTRIES``; without one, they fail.
"""

from __future__ import annotations

import copy
import gc
import importlib
import importlib.util
import inspect
import json
import pickle
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.ml import Estimator, Model, Pipeline, PipelineModel
from pyspark.ml import classification as mllib_classification
from pyspark.ml import clustering as mllib_clustering
from pyspark.ml import regression as mllib_regression
from pyspark.ml.classification import OneVsRest
from pyspark.ml.evaluation import MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Matrices, Vector, Vectors
from pyspark.ml.param import Params
from pyspark.ml.tuning import CrossValidator, TrainValidationSplit
from pyspark.sql import functions as F
from sklearn.datasets import load_diabetes

import mllib_ext
from data_frames import every_kind_of_features
from mllib_ext import fitting
from mllib_ext.blocks import Blocks
from mllib_ext.classification import LinearSVC

N = 150
DATA = load_diabetes(scaled=False)
X = DATA.data[:N, [2, 3, 4, 8]]  # body mass index, blood pressure, two serum measurements
X[np.random.default_rng(0).random(X.shape) < 0.5] = 0.0
Y = DATA.target[:N]
COLUMNS = ["x0", "x1", "x2", "x3"]


@pytest.fixture(scope="module")
def frame(spark):
    tertile = np.digitize(Y, np.quantile(Y, [1 / 3, 2 / 3]))
    others = {"number": Y, "two": np.median(Y) < Y, "three": tertile, "w": 1 + np.arange(N) % 3}
    with every_kind_of_features(spark, X, **others) as df:
        yield df


@dataclass(frozen=True)
class Entry:
    """What the checks have to know of an estimator.

    Attributes
    ----------
    fit : dict
        Keywords of a fit on the frame above.
    values : dict
        Of the parameters without a default, for their setters.
    state : tuple of str
        Attributes of its model that make it what it is.
    twin : type or None
        The class of pyspark.ml that it stands for.
    more : dict
        Its parameters beyond the twin's, and their defaults.
    evaluator : callable or None
        Makes what its models are judged by; for supervised estimators.
    columns : tuple of str
        Its parameters that name a column of the input, and are no list: the first one is taken
        for a parameter of any kind.
    same_optimum : bool
        The twin reaches the optimum. Not with a hinge: OWL-QN stops short of where it has no
        gradient; nor of a network, which has many. Tests of the estimator itself compare
        objectives instead.
    """

    fit: dict[str, Any]
    values: dict[str, Any]
    state: tuple[str, ...]
    twin: Any = None
    more: dict[str, Any] = field(default_factory=dict)
    evaluator: Callable[[], Any] | None = None
    columns: tuple[str, ...] = ("labelCol", "weightCol")
    same_optimum: bool = True


SUPERVISED = {"weightCol": "w", "featuresCols": ["a", "b"]}
TIGHT = {"tol": 1e-12, "maxIter": 300}
CHECKPOINTS = {"checkpointInterval": 10}
STOCHASTIC = {
    **CHECKPOINTS,
    "stepSize": 1.0,
    "momentum": 0.0,
    "nesterov": False,
    "miniBatchFraction": 0.1,
    "schedule": "cosine",
    "decay": 1e-4,
    "warmUp": 0.0,
    "updates": "synchronous",
    "localSteps": 0,
    "outerMomentum": 0.0,
    "maxStaleness": 1,
    "compression": "none",
    "compressionShare": 0.01,
    "compressionRank": 2,
    "validationFraction": 0.0,
    "patience": 5,
    "seed": 0,
}
DESCENT = {**STOCHASTIC, "lineSearch": "barzilai-borwein"}

CENTERS = Matrices.dense(2, 2, [0.0, 1.0, 2.0, 3.0])
CLUSTERING: dict[str, Any] = {
    "fit": {"featuresCol": "dense", "weightCol": "w", "k": 3, "maxIter": 100},
    "values": {"weightCol": "w", "featuresCols": ["a", "b"], "seed": 7},
    "state": ("clusterCenters", "clusterWeights", "cost"),
    "columns": ("weightCol",),
}

NETWORK = {"maxIter": 50, "tol": 0.1}  # a path that rounding has not driven apart yet

ENTRIES = {
    "CalibratedClassifier": Entry(
        fit={
            "classifier": LinearSVC(featuresCol="dense", loss="squared_hinge"),
            "labelCol": "three",
            "numFolds": 2,
        },
        values={"classifier": LinearSVC(regParam=0.5), "weightCol": "w"},
        state=("sigmoids", "numClasses"),
    ),
    "ClassBalancer": Entry(
        fit={"labelCol": "three", "outputCol": "balanced"},
        values={"weightCol": "w"},
        state=("labels", "factors"),
    ),
    "KNeighborsClassifier": Entry(
        fit={"featuresCol": "dense", "labelCol": "three"},
        values={**SUPERVISED, "thresholds": [0.25, 0.75]},
        state=("features", "labels", "itemWeights", "numClasses"),
    ),
    "KNeighborsRegressor": Entry(
        fit={"featuresCol": "dense", "labelCol": "number"},
        values=SUPERVISED,
        state=("features", "labels", "itemWeights"),
    ),
    "KernelSVC": Entry(
        fit={"featuresCol": "dense", "labelCol": "three", "C": 10.0},
        values={**SUPERVISED, "classWeight": "balanced"},
        state=("supportVectors", "dualCoef", "intercepts", "numClasses"),
    ),
    "OneClassSVM": Entry(
        fit={"featuresCol": "dense", "weightCol": "w", "nu": 0.2},
        values={"weightCol": "w", "featuresCols": ["a", "b"]},
        state=("supportVectors", "dualCoef", "offset"),
        columns=("weightCol",),
    ),
    "Nystroem": Entry(
        fit={"inputCol": "dense", "nComponents": 5},
        values={"inputCols": ["a", "b"]},
        state=("landmarkRows", "normalization"),
        columns=("inputCol",),
    ),
    "RandomFourierFeatures": Entry(
        fit={"inputCol": "dense", "nComponents": 5},
        values={"inputCols": ["a", "b"]},
        state=("weights", "offsets"),
        columns=("inputCol",),
    ),
    "BisectingKMeans": Entry(
        **CLUSTERING,
        twin=mllib_clustering.BisectingKMeans,
        more={"seed": 0, **CHECKPOINTS},
    ),
    "KMeans": Entry(
        **CLUSTERING | {"values": CLUSTERING["values"] | {"initialCenters": CENTERS}},
        twin=mllib_clustering.KMeans,
        more={"nInit": 1, "seed": 0, **CHECKPOINTS},
    ),
    "MiniBatchKMeans": Entry(
        **CLUSTERING
        | {
            "fit": CLUSTERING["fit"] | {"miniBatchFraction": 0.5, "tol": 2.0},
            "values": CLUSTERING["values"]
            | {"initialCenters": CENTERS, "initialWeights": Vectors.dense(1.0, 2.0)},
        },
    ),
    "LinearRegression": Entry(
        fit={"featuresCol": "dense", "labelCol": "number", "regParam": 0.5, **TIGHT},
        values=SUPERVISED,
        state=("coefficients", "intercept", "scale"),
        twin=mllib_regression.LinearRegression,
        more=DESCENT,
        evaluator=lambda: RegressionEvaluator(labelCol="number"),
    ),
    "LinearSVC": Entry(
        # The twin does not reach the optimum in 300 iterations of 0.1 s either.
        fit={"featuresCol": "dense", "labelCol": "two", "regParam": 0.02, "maxIter": 40},
        values=SUPERVISED,
        state=("coefficientMatrix", "interceptVector", "numClasses"),
        twin=mllib_classification.LinearSVC,
        more={"loss": "hinge", "solver": "auto", "multiClass": "ovr", **STOCHASTIC},
        evaluator=lambda: MulticlassClassificationEvaluator(labelCol="two", metricName="accuracy"),  # type: ignore[arg-type]
        same_optimum=False,
    ),
    "LinearSVR": Entry(
        # Squared: without a gradient any intercept between two residuals may be the best.
        fit={
            "featuresCol": "dense",
            "labelCol": "number",
            "loss": "squared_epsilon_insensitive",
            "regParam": 0.5,
            **TIGHT,
        },
        values=SUPERVISED,
        state=("coefficients", "intercept"),
        evaluator=lambda: RegressionEvaluator(labelCol="number"),
    ),
    "LogisticRegression": Entry(
        fit={"featuresCol": "dense", "labelCol": "two", "regParam": 0.02, **TIGHT},
        values={
            **SUPERVISED,
            "thresholds": [0.25, 0.75],
            "lowerBoundsOnCoefficients": Matrices.sparse(1, 2, [0, 0, 1], [0], [-1.0]),
            "upperBoundsOnCoefficients": Matrices.dense(1, 2, [1.0, np.inf]),
            "lowerBoundsOnIntercepts": Vectors.dense([0.0]),
            "upperBoundsOnIntercepts": Vectors.sparse(2, [1], [1.0]),
        },
        state=("coefficientMatrix", "interceptVector", "numClasses"),
        twin=mllib_classification.LogisticRegression,
        more={"solver": "auto", **DESCENT},
        evaluator=lambda: MulticlassClassificationEvaluator(labelCol="two", metricName="logLoss"),  # type: ignore[arg-type]
    ),
    "MultilayerPerceptronClassifier": Entry(
        fit={"featuresCol": "dense", "labelCol": "three", "layers": [4, 5, 3], **NETWORK},
        values={
            **SUPERVISED,
            "layers": [3, 4, 2],
            "initialWeights": Vectors.dense(1.0, 2.0),
            "thresholds": [0.25, 0.75],
            "seed": 7,
        },
        state=("weights", "getLayers", "numClasses"),
        twin=mllib_classification.MultilayerPerceptronClassifier,
        more={
            "activation": "sigmoid",
            "regParam": 0.0,
            "dropout": 0.0,
            "batchSize": 0,
            **STOCHASTIC,
            "stepSize": 0.03,
        },
        evaluator=lambda: MulticlassClassificationEvaluator(labelCol="three", metricName="logLoss"),  # type: ignore[arg-type]
        same_optimum=False,
    ),
    "MultilayerPerceptronRegressor": Entry(
        fit={"featuresCol": "dense", "labelCol": "number", "layers": [4, 5, 1], **NETWORK},
        values={
            **SUPERVISED,
            "layers": [3, 4, 1],
            "initialWeights": Vectors.dense(1.0, 2.0),
            "seed": 7,
        },
        state=("weights", "getLayers"),
        evaluator=lambda: RegressionEvaluator(labelCol="number"),
    ),
}
if importlib.util.find_spec("torch"):
    ENTRIES["TorchEstimator"] = Entry(
        fit={
            "featuresCol": "dense",
            "labelCol": "three",
            "module": "torch.nn.Linear",
            "moduleArgs": {"in_features": 4, "out_features": 3},
            "maxIter": 2,
        },
        values={**SUPERVISED, "module": "a.net", "moduleArgs": {"n": 1}, "loss": "a.loss"},
        state=("numFeatures", "numClasses"),
    )


def exported() -> list[Any]:
    """The estimators that the packages of mllib_ext export; for searches see tests/knn."""
    packages = [
        importlib.import_module(info.name)
        for info in pkgutil.iter_modules(mllib_ext.__path__, "mllib_ext.")
        if info.ispkg and (info.name != "mllib_ext.torch" or "TorchEstimator" in ENTRIES)
    ]
    names = [(package, name) for package in packages for name in getattr(package, "__all__", ())]
    classes = [getattr(package, name) for package, name in names]
    estimators = [c for c in classes if isinstance(c, type) and issubclass(c, Estimator)]
    return [c for c in estimators if hasattr(c, "predictionCol") or c.__name__ in ENTRIES]


@dataclass
class Case:
    """An estimator with its entry, and what has been fitted of it."""

    cls: Any
    entry: Entry
    frame: Any

    def new(self, **params: Any) -> Any:
        return self.cls(**{**self.entry.fit, **params})

    def new_twin(self, **params: Any) -> Any:
        return self.entry.twin(**{**self.entry.fit, **params})

    def state(self, model: Any) -> list[np.ndarray]:
        values = [getattr(model, name) for name in self.entry.state]
        values = [value() if callable(value) else value for value in values]
        return [np.array(v.toArray() if hasattr(v, "toArray") else v) for v in values]

    def assert_same(self, one: Any, other: Any, tolerance: float = 0.0) -> None:
        assert type(one) is type(other)
        for found, expected in zip(self.state(one), self.state(other), strict=True):
            np.testing.assert_allclose(found, expected, rtol=tolerance)

    @cached_property
    def model(self) -> Any:
        return self.new().fit(self.frame)

    @cached_property
    def twin_model(self) -> Any:
        return self.new_twin().fit(self.frame)

    @property
    def grid(self) -> list[dict[Any, Any]]:
        """Three strengths of the penalty, by the parameters of the class, as a tuner has them."""
        return [{self.cls().regParam: value} for value in (0.1, 0.001, 10.0)]


# One for each way from rows to predictions: an Arrow UDF, one that reads a broadcast, a model
# within another, and no UDF at all.
STREAMED = {"LogisticRegression", "KNeighborsClassifier", "CalibratedClassifier", "ClassBalancer"}

CASES = {cls.__name__: cls for cls in exported()}
TWINS = [name for name in CASES if name not in ENTRIES or ENTRIES[name].twin]
PREDICTORS = [name for name in CASES if name not in ENTRIES or ENTRIES[name].evaluator]
REACHED = [n for n in PREDICTORS if n in TWINS and (n not in ENTRIES or ENTRIES[n].same_optimum)]
CLASSIFIERS = [name for name in REACHED if hasattr(CASES[name], "setProbabilityCol")]


@pytest.fixture(scope="module")
def cases(frame):
    return {name: Case(cls, ENTRIES[name], frame) for name, cls in CASES.items()}


@pytest.fixture
def case(request, cases):
    return cases[request.param]


each = pytest.mark.parametrize("case", CASES, indirect=True)
each_twin = pytest.mark.parametrize("case", TWINS, indirect=True)
each_predictor = pytest.mark.parametrize("case", PREDICTORS, indirect=True)
each_twin_at_its_optimum = pytest.mark.parametrize("case", REACHED, indirect=True)
each_classifier = pytest.mark.parametrize("case", CLASSIFIERS, indirect=True)


def params_of(instance: Any) -> dict[str, Any]:
    """The parameters that have a value, by name; those of one that is a stage in its place."""

    def plain(value: Any) -> Any:
        if not isinstance(value, Params):
            return value
        return type(value), value.uid, params_of(value)

    return {param.name: plain(value) for param, value in instance.extractParamMap().items()}


def rows_of(df: Any, *names: str) -> Any:
    """Columns as one array, in the order of the rows."""
    rows = df.orderBy("i").select(*names).collect()
    return np.array([
        np.concatenate([v.toArray() if isinstance(v, Vector) else [v] for v in row]) for row in rows
    ])  # fmt: skip


def new_columns(df: Any, before: Any) -> list[str]:
    return df.columns[len(before.columns) :]


def public(cls: Any) -> dict[str, Any]:
    return {
        name: inspect.getattr_static(cls, name) for name in dir(cls) if not name.startswith("_")
    }


@contextmanager
def tuner() -> Iterator[None]:
    """PySpark's tuners leave their thread pool open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest.fixture
def built(monkeypatch):
    """The blocks that are built from here on."""
    made: list[Any] = []
    original = Blocks.of

    def of(*arguments: Any, **keywords: Any) -> Any:
        made.append(original(*arguments, **keywords))
        return made[-1]

    monkeypatch.setattr(Blocks, "of", of)
    return made


def count(block):
    return (np.array(block.n),)


def assert_closed(blocks: Any) -> None:
    with pytest.raises(RuntimeError, match="blocks are closed"):
        blocks.sum(count)


# --- pyspark.ml's interface ---------------------------------------------------------------------


def test_every_exported_estimator_has_an_entry():
    assert set(CASES) == set(ENTRIES)
    assert len(CASES) >= 3


@each_twin
def test_parameters_and_their_defaults_are_those_of_pyspark_ml(case):
    estimators = case.cls(), case.entry.twin()
    for ours, theirs in (estimators, (case.model, case.twin_model)):
        assert params_of(ours) == params_of(theirs) | case.entry.more
        found, expected = ({param.name for param in both.params} for both in (ours, theirs))
        assert found == expected | set(case.entry.more) | set(case.entry.values)
        defined = {param.name for param in theirs.params if theirs.isDefined(param)}
        assert all(ours.isDefined(name) == (name in defined) for name in expected)
        ours.explainParams()


@each_twin
def test_all_of_pyspark_mls_public_names_are_there_and_of_the_same_kind(case):
    for ours, theirs in (
        (case.cls, case.entry.twin),
        (type(case.model), type(case.twin_model)),
    ):
        found, expected = public(ours), public(theirs)
        assert expected.keys() <= found.keys()
        for name, attribute in expected.items():
            assert isinstance(found[name], property) == isinstance(attribute, property), name
    keywords, twins = (
        inspect.signature(cls.__init__).parameters for cls in (case.cls, case.entry.twin)
    )
    for name, keyword in twins.items():
        assert keywords[name].default == keyword.default, name
        assert keywords[name].kind == keyword.kind, name


@each
def test_every_keyword_has_a_setter_and_a_getter_that_agree_with_it(case):
    keywords = inspect.signature(case.cls.__init__).parameters
    assert set(case.entry.values) == {
        name for name, keyword in keywords.items() if keyword.default is None
    }
    for name, keyword in keywords.items():
        if name == "self":
            continue
        value = keyword.default
        match value:
            case bool():
                value = not value
            case int() | float():
                value = value + 1
            case str():
                value = f"{value}_"
            case None:
                value = case.entry.values[name]
        suffix = name[0].upper() + name[1:]
        estimator = case.cls()
        assert getattr(estimator, f"set{suffix}")(value) is estimator
        assert getattr(estimator, f"get{suffix}")() == value
        assert type(getattr(estimator, f"get{suffix}")()) is type(value)
        for other in (case.cls(**{name: value}), case.cls().setParams(**{name: value})):
            assert params_of(other) == params_of(estimator)
    for call in (case.cls, case.cls().setParams):
        with pytest.raises(TypeError, match="forces keyword arguments"):
            call("features")
        with pytest.raises(TypeError, match="'lablCol'"):
            call(lablCol="label")


# --- uid, copies, pickles, files ----------------------------------------------------------------


@each
def test_a_model_has_the_uid_and_the_parameters_of_its_estimator_and_so_have_copies(case, frame):
    estimator = case.new()
    param = estimator.getParam(case.entry.columns[0])
    renamed = frame.withColumn("another", F.col(estimator.getOrDefault(param)))
    copied = estimator.copy({param: "another"})
    model = estimator.fit(renamed, {param: "another"})
    for instance in (copied, model, model.copy(), pickle.loads(pickle.dumps(copied))):
        assert instance.uid == estimator.uid
        assert {p.parent for p in instance.params} == {estimator.uid}
        assert instance.getOrDefault(param.name) == "another"
    assert estimator.getOrDefault(param) != "another"
    assert params_of(model) == params_of(copied)
    again = model.copy({param: "third"})
    names = [instance.getOrDefault(param.name) for instance in (again, model)]
    assert names == ["third", "another"]
    case.assert_same(again, model)
    case.assert_same(model, case.model)


@each
def test_a_pickled_or_deeply_copied_model_transforms_the_same(case, frame):
    predicted = case.model.transform(frame)
    names = new_columns(predicted, frame)
    assert names
    for other in (pickle.loads(pickle.dumps(case.model)), copy.deepcopy(case.model)):
        case.assert_same(other, case.model)
        assert params_of(other) == params_of(case.model)
        assert other.transform(frame).columns == predicted.columns
    np.testing.assert_array_equal(
        rows_of(other.transform(frame), *names), rows_of(predicted, *names)
    )


@each
def test_what_is_saved_is_loaded_and_replaced_only_when_asked(case, tmp_path):
    whole = case.cls()
    for name, value in case.entry.values.items():
        whole.set(whole.getParam(name), value)
    column = case.entry.columns[0]
    renamed = case.model.copy({case.model.getParam(column): "other"})
    pairs = ((whole, case.new()), (case.model, renamed))
    for one, other in pairs:
        path = str(tmp_path / type(one).__name__)
        one.save(path)
        with pytest.raises(Exception, match="already exists"):
            other.save(path)
        (part,) = (tmp_path / type(one).__name__ / "metadata").glob("part-*")
        package, _, name = json.loads(part.read_text())["class"].rpartition(".")
        assert package.count(".") == 1, "files may move within a package"
        assert getattr(importlib.import_module(package), name) is type(one)
        loaded = type(one).load(path)
        assert type(loaded) is type(one)
        assert (loaded.uid, params_of(loaded)) == (one.uid, params_of(one))
        assert {p.parent for p in loaded.params} == {one.uid}
        other.write().overwrite().save(path)
        loaded_again = type(one).read().load(path)
        assert loaded_again.getOrDefault(column) == other.getOrDefault(column)
    case.assert_same(loaded, case.model)
    path = str(tmp_path / case.cls.__name__)
    with pytest.raises((ValueError, AssertionError), match=case.cls.__name__):
        type(case.model).load(path)


@each
def test_a_pipeline_around_it_is_fitted_saved_and_loaded(case, frame, tmp_path):
    stages: list[Any] = [VectorAssembler(inputCols=COLUMNS, outputCol="assembled")]
    features = {"featuresCol": "assembled"} if "featuresCol" in case.entry.fit else {}
    stages.append(case.new(**features))
    pipeline = Pipeline(stages=stages)
    pipeline.save(str(tmp_path / "pipeline"))
    loaded = Pipeline.load(str(tmp_path / "pipeline")).getStages()[1]
    assert (type(loaded), loaded.uid) == (case.cls, stages[1].uid)
    assert params_of(loaded) == params_of(stages[1])
    model: Any = pipeline.fit(frame)
    model.save(str(tmp_path / "model"))
    again = PipelineModel.load(str(tmp_path / "model"))
    assert isinstance(again.stages[1], Model)
    assert again.stages[1].uid == stages[1].uid
    found, expected = again.transform(frame), model.transform(frame)
    names = new_columns(expected, frame)[1:]
    np.testing.assert_array_equal(rows_of(found, *names), rows_of(expected, *names))


# --- transform ----------------------------------------------------------------------------------


@each_twin
def test_new_columns_have_pyspark_mls_types_and_metadata_and_the_others_keep_theirs(case, frame):
    given = frame.withColumn("w", F.col("w").alias("w", metadata={"comment": "of a survey"}))
    found, expected = (m.transform(given).schema for m in (case.model, case.twin_model))
    assert [(f.name, f.dataType, f.metadata) for f in found] == [
        (f.name, f.dataType, f.metadata) for f in expected
    ]
    assert found["w"].metadata == {"comment": "of a survey"}


@each_twin_at_its_optimum
@pytest.mark.parametrize("features", ["sparse", "array", COLUMNS], ids=str)
def test_every_kind_of_features_column_is_predicted_the_same(case, frame, features):
    names = new_columns(case.model.transform(frame), frame)
    found = case.model.copy().setFeaturesCol(features).transform(frame)
    expected = case.twin_model.transform(frame)
    # Sums of four products with coefficients that are the same to 1e-6.
    tolerance: Any = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(rows_of(found, *names), rows_of(expected, *names), **tolerance)


@each
def test_a_table_or_a_stream_of_files_is_transformed_like_rows(case, frame, spark, tmp_path):
    """A stream runs, for seconds, only where predictions come in another way than most."""
    source, name = str(tmp_path / "in"), f"of_{case.cls.__name__}"
    # Spark has ways of its own for the columns of Parquet, vectors among them.
    columns = dict.fromkeys(["i", "dense", case.entry.fit[case.entry.columns[0]]])
    frame.select(*columns).coalesce(1).write.parquet(source)
    table = spark.read.parquet(source)
    expected = case.model.transform(frame.select(*columns))
    names = new_columns(expected, table)
    found = case.model.transform(table)
    np.testing.assert_array_equal(rows_of(found, *names), rows_of(expected, *names))
    stream = spark.readStream.schema(table.schema).parquet(source)
    transformed = case.model.transform(stream)
    assert transformed.isStreaming
    assert transformed.schema == found.schema
    if case.cls.__name__ in STREAMED:
        query = (
            transformed.writeStream.format("memory").queryName(name)
            .trigger(availableNow=True).option("checkpointLocation", str(tmp_path / "log")).start()
        )  # fmt: skip
        assert query.awaitTermination(120)
        found = spark.table(name)
        assert found.columns == expected.columns
        np.testing.assert_array_equal(rows_of(found, *names), rows_of(expected, *names))
    if "featuresCol" in case.entry.fit:
        with pytest.raises(ValueError, match="expected a batch DataFrame to train on"):
            case.new().fit(stream)


# --- grids --------------------------------------------------------------------------------------


@each_predictor
def test_fit_multiple_builds_the_blocks_once_and_fits_what_single_fits_do(
    case, frame, built, monkeypatch
):
    estimator, grid = case.new(), case.grid
    singles = [estimator.fit(frame, params) for params in grid]
    del built[:]
    found = dict(estimator.fitMultiple(frame, grid))
    assert sorted(found) == [0, 1, 2]
    assert len(built) == 1
    assert_closed(built[0])
    for index, single in enumerate(singles):
        case.assert_same(found[index], single)
        assert params_of(found[index]) == params_of(single)
        assert found[index].uid == estimator.uid
        assert found[index].n_iter == single.n_iter
    # In block files too, other columns in blocks of their own, and nothing left of half a grid.
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    del built[:]
    weighted = [{**grid[0], estimator.weightCol: "w"}, *grid]
    iterator = estimator.fitMultiple(frame, weighted)
    first = dict([next(iterator), next(iterator)])
    assert len(built) == 2
    assert not any(blocks.on_driver for blocks in built)
    case.assert_same(first[1], singles[0])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        case.assert_same(first[0], singles[0], 1e-6)
    del iterator
    gc.collect()
    for blocks in built:
        assert_closed(blocks)


@each_twin_at_its_optimum
def test_a_cross_validator_has_pyspark_mls_metrics_and_builds_the_blocks_once_a_fold(
    case, frame, built
):
    def validated(estimator, **params):
        validator = CrossValidator(
            estimator=estimator,
            estimatorParamMaps=[
                {estimator.getParam(p.name): v for p, v in params.items()} for params in case.grid
            ],
            evaluator=case.entry.evaluator(),
            numFolds=2,
            seed=1,
            **params,
        )
        with tuner():
            return validator.fit(frame)

    found = validated(case.new(), parallelism=2, collectSubModels=True)
    expected = validated(case.new_twin())
    assert len(built) == 3  # two folds, and the whole for the best model
    for blocks in built:
        assert_closed(blocks)
    # Metrics of optima at tolerance 1e-12.
    assert found.avgMetrics == pytest.approx(expected.avgMetrics, rel=1e-6)
    assert found.stdMetrics == pytest.approx(expected.stdMetrics, rel=1e-4)
    assert found.bestModel.getRegParam() == expected.bestModel.getRegParam()
    penalties = [[model.getRegParam() for model in fold] for fold in found.subModels]
    assert penalties == [[0.1, 0.001, 10.0]] * 2


@each_twin_at_its_optimum
def test_a_train_validation_split_has_pyspark_mls_metrics(case, frame, built):
    found, expected = (
        TrainValidationSplit(
            estimator=estimator,
            estimatorParamMaps=[{estimator.regParam: value} for value in (0.1, 10.0)],
            evaluator=case.entry.evaluator(),
            trainRatio=0.6,
            seed=2,
        )
        for estimator in (case.new(), case.new_twin())
    )
    with tuner():
        metrics = [one.fit(frame).validationMetrics for one in (found, expected)]
    assert len(built) == 2
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-6)


@each_twin_at_its_optimum
def test_a_fold_with_a_single_label_does_not_break_a_cross_validator(case, frame):
    # The models that are trained on the rows of fold 1 know one label.
    fold = frame.withColumn("fold", (F.col("i") % 2).cast("int"))
    label = case.entry.fit["labelCol"]
    df = fold.withColumn(label, F.when(F.col("fold") == 1, 1.0).otherwise(F.col(label)))

    def validated(estimator):
        validator = CrossValidator(
            estimator=estimator,
            estimatorParamMaps=[{estimator.regParam: value} for value in (0.1, 1.0)],
            evaluator=case.entry.evaluator(),
            numFolds=2,
            foldCol="fold",
        )
        with tuner():
            return validator.fit(df)

    with pytest.warns(UserWarning, match=f"label column {label!r} .*: the model predicts it"):
        found = validated(case.new())
    assert found.avgMetrics == pytest.approx(validated(case.new_twin()).avgMetrics, rel=1e-6)


@each_classifier
def test_one_versus_rest_predicts_what_it_does_with_pyspark_mls_classifier(case, frame):
    def fitted(estimator):
        columns = {"featuresCol": "dense", "labelCol": "three", "weightCol": "w"}
        with tuner():
            return OneVsRest(classifier=estimator, parallelism=2, **columns).fit(frame)

    found, expected = fitted(case.new()), fitted(case.new_twin())
    assert [type(model) for model in found.models] == [type(case.model)] * 3
    for one, other in zip(found.models, expected.models, strict=True):
        np.testing.assert_allclose(one.coefficients, other.coefficients, rtol=1e-6)
    for name in ("rawPrediction", "prediction"):
        ours, theirs = (rows_of(m.transform(frame), name) for m in (found, expected))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


# --- bad input ----------------------------------------------------------------------------------


@each
def test_what_is_no_dataframe_and_names_that_are_none_are_refused(case):
    calls = [case.new().fit, case.model.transform]
    if isinstance(case.new(), fitting.FitsOverBlocks):
        calls.append(lambda given: case.new().fitMultiple(given, [{}]))
    for given, kind in (([1.0], "list"), (None, "NoneType"), (pd.DataFrame(), r"pandas\..*")):
        for call in calls:
            with pytest.raises(TypeError, match=f"dataset: expected a DataFrame, found {kind}"):
                call(given)
    if "featuresCol" in case.entry.fit:
        for value in (3, [1, 2], ["x0", None]):
            with pytest.raises(TypeError, match="param featuresCol: expected names of columns"):
                case.cls(featuresCol=value)


@each_predictor
def test_rows_of_weight_0_count_as_absent_and_nothing_else_is_an_error(case, frame):
    df = frame.withColumn("w", F.when(F.col("i") < 40, 0.0).otherwise(1.0))
    found, expected = case.new(weightCol="w").fit(df), case.new().fit(frame.where("i >= 40"))
    case.assert_same(found, expected, 1e-8)
    with pytest.raises(ValueError, match="weight column 'w': expected a weight above 0"):
        case.new(weightCol="w").fit(df.where("i < 40"))
    with pytest.raises(ValueError, match="expected at least one row to train on"):
        case.new().fit(frame.where("i < 0"))


@each
def test_a_missing_column_is_an_error_that_names_the_nearest_there_is(case, frame):
    df = frame.withColumnsRenamed({"dense": "vectors", "w": "weights"})
    roles = {"labelCol": "label", "weightCol": "weight"}
    wrong = {"labelCol": "numbre", "weightCol": "weihgts"}
    nearest = {"labelCol": "number", "weightCol": "weights"}
    for name in ("featuresCol", "inputCol"):
        roles[name], wrong[name], nearest[name] = "features", "vector", "vectors"
    read = {"featuresCol", "inputCol"} & case.entry.fit.keys()
    base = dict.fromkeys(read, "vectors")
    for name in (*case.entry.columns, *base):
        message = f"{roles[name]} column '{wrong[name]}': .*did you mean '{nearest[name]}'"
        with pytest.raises(ValueError, match=message):
            case.new(**{**base, name: wrong[name]}).fit(df)
    if base:
        with pytest.raises(ValueError, match="features column 'dense': expected one of"):
            case.model.transform(df)
