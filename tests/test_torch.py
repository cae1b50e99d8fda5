"""Modules of PyTorch: gradients and steps are its own, whatever runs them.

Not part of the default suite: run where PyTorch is installed.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F
from sklearn.datasets import load_digits

import mllib_ext
from data_frames import every_kind_of_features
from mllib_ext import fitting
from mllib_ext.blockfile import Block
from mllib_ext.losses import Multinomial
from mllib_ext.monitor import read_run
from mllib_ext.network import Network, value_and_gradient
from mllib_ext.torch import TorchEstimator, TorchModel, convolutional
from mllib_ext.torch.network import TorchNetwork

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip(
        "torch", reason="PyTorch is not installed: pip install 'mllib_ext[torch]'"
    )
pytestmark = pytest.mark.filterwarnings("ignore::mllib_ext.optimizers.loop.ConvergenceWarning")

RNG = np.random.default_rng(0)
N, D, K = 240, 6, 3
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(float) + (X[:, 2] > 1)
NUMBER = X @ RNG.normal(size=D) + 0.1 * RNG.normal(size=N)
W = 1.0 + np.arange(N) % 3


def net(hidden: int = 5, dropout: float = 0.0, outputs: int = K) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(D, hidden),
        torch.nn.Tanh(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(hidden, outputs),
    )


def normalized(features: int = D) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(features, 5),
        torch.nn.BatchNorm1d(5),
        torch.nn.ReLU(),
        torch.nn.Linear(5, 4),
        torch.nn.BatchNorm1d(4),
        torch.nn.Linear(4, K),
    )


class Counting(torch.nn.Module):
    """A buffer that training changes, and which no mean of partitions would be right for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(D, K)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, rows):
        self.calls += 1
        return self.layer(rows)


@pytest.fixture(scope="module")
def frame(spark):
    others = {"label": Y, "number": NUMBER, "w": W}
    with every_kind_of_features(spark, X, **others) as df:
        yield df.withColumn("features", F.col("float"))


def new(**params: Any) -> TorchEstimator:
    return TorchEstimator(**{"module": net, "maxIter": 3, "batchSize": 16, "tol": 0.0, **params})


def predicted(model, df, name="rawPrediction"):
    rows = model.transform(df).orderBy("i").select(name).collect()
    return np.array([row[0].toArray() if hasattr(row[0], "toArray") else row[0] for row in rows])


def block(y=Y, w=W):
    return Block(X, y, w, np.empty(0))


def flat(module):
    with torch.no_grad():
        return np.concatenate([p.numpy().ravel() for p in module.parameters()])


def test_the_gradient_is_that_of_the_same_network_in_numpy():
    network = TorchNetwork.of(net, {}, torch.nn.functional.cross_entropy, "classification", 3)
    layers = Network((D, 5, K), "tanh")
    v = layers.initial(np.random.default_rng(1))
    parts = layers.split(v)
    # A layer of PyTorch has its weights by outputs first.
    turned = np.concatenate([a for M, b in parts for a in (M.T.ravel(), b)])
    value, slope = value_and_gradient(
        layers, Multinomial(K), [(M.astype("f4"), b.astype("f4")) for M, b in parts], X, Y, W
    )
    found, gradient = network(block(), turned)
    assert found == pytest.approx(value, rel=1e-5)
    expected = np.concatenate([a for M, b in slope for a in (M.T.ravel(), b)])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert network.value(block(), turned) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("updates", ["synchronous", "local"])
def test_full_batches_of_one_partition_step_as_torchs_own_optimizer(frame, updates):
    seen = []
    estimator = new(
        solver="sgd", momentum=0.9, stepSize=0.1, schedule="constant", miniBatchFraction=1.0,
        updates=updates, weightCol="w", regParam=0.01, maxIter=6,
    )  # fmt: skip
    estimator.clear(estimator.batchSize)
    estimator.setCallbacks([lambda state, record: seen.append((state.v, record.loss))])
    model = estimator.fit(frame.coalesce(1).sortWithinPartitions("i"))
    torch.manual_seed(estimator.getSeed())
    module = net()
    weights = [p for p in module.parameters() if p.ndim > 1]
    biases = [p for p in module.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    x, y, w = torch.tensor(X), torch.tensor(Y, dtype=torch.int64), torch.tensor(W)
    for v, loss in seen:
        losses = torch.nn.functional.cross_entropy(module(x), y, reduction="none")
        mean = (losses * w).sum() / w.sum()
        with torch.no_grad():
            penalty = 0.005 * sum(float((p * p).sum()) for p in weights)
        np.testing.assert_allclose(v, flat(module), rtol=1e-5, atol=1e-5)
        assert loss == pytest.approx(float(mean.detach()) + penalty, rel=1e-5)
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
    assert len(seen) == 7
    np.testing.assert_allclose(flat(model.to_torch()), seen[-1][0], rtol=1e-6)


@pytest.mark.parametrize("updates", ["synchronous", "local"])
def test_dropout_is_the_same_on_executors_and_on_the_driver_and_another_by_the_seed(
    frame, monkeypatch, updates
):
    params: dict[str, Any] = {"moduleArgs": {"dropout": 0.4}, "updates": updates, "maxIter": 2}

    def weights(**more):
        return flat(new(**params, **more).fit(frame).to_torch())

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    here = weights()
    assert torch.rand(1) == expected  # a fit draws nothing of its caller's
    whole = new(updates=updates, maxIter=2, moduleArgs={"dropout": 0.0}).fit(frame)
    assert np.abs(flat(whole.to_torch()) - here).max() > 1e-4
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    np.testing.assert_array_equal(weights(), here)
    assert np.abs(weights(seed=1) - here).max() > 1e-4


def test_it_learns_with_codecs_groups_under_way_at_once_and_early_stopping(
    frame, monkeypatch, tmp_path
):
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    ways: list[dict[str, Any]] = [
        {"compression": "powersgd", "featuresCol": "sparse"},
        {"compression": "qsgd", "updates": "synchronous", "batchSize": 60},
        {"updates": "asynchronous", "batchSize": 60},
        {"validationFraction": 0.2, "patience": 2, "schedule": "constant", "maxIter": 60},
    ]
    for number, way in enumerate(ways):
        params = {"stepSize": 0.05, "maxIter": 6, "moduleArgs": {"hidden": 12}, **way}
        model = new(**params).setRunDir(str(tmp_path / str(number))).fit(frame)
        losses = [record.loss for record in model.history]
        assert min(losses) < 0.8 * losses[0], way
        run = read_run(str(tmp_path / str(number)))
        assert run.params["module"] == f"{__name__}.net"
        assert list(run.rounds["loss"]) == pytest.approx(losses)
    assert (model.reason, model.n_iter < 60) == ("validation", True)


def test_batch_normalization_has_the_statistics_of_the_rows_by_the_final_parameters(
    frame, monkeypatch
):
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)
    halves = frame.repartition(2).cache()  # as many rows in each
    parts = halves.rdd.glom().map(lambda rows: [row.i for row in rows]).collect()
    seen = []
    estimator = new(module=normalized, stepSize=0.02)
    estimator.setCallbacks([lambda state, record: seen.append((state.v, record.loss))])
    model = estimator.fit(halves)
    halves.unpersist()
    module = model.to_torch()
    np.testing.assert_allclose(flat(module), seen[-1][0], rtol=1e-6)
    oracle = copy.deepcopy(module)
    torch.optim.swa_utils.update_bn([torch.tensor(X[part]) for part in parts], oracle)
    state, expected = module.state_dict(), oracle.state_dict()
    for name in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
        np.testing.assert_allclose(state[name], expected[name], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        outputs = module(torch.tensor(X))
        loss = torch.nn.functional.cross_entropy(outputs, torch.tensor(Y, dtype=torch.int64))
    np.testing.assert_allclose(predicted(model, frame), outputs, rtol=1e-4, atol=1e-5)
    assert seen[-1][1] == pytest.approx(float(loss), rel=1e-5)


def test_numbers_are_learnt_by_a_loss_of_ones_own_and_rows_count_by_their_weight(frame):
    def absolute(outputs, labels):
        return (outputs - labels).abs()

    params: dict[str, Any] = {
        "moduleArgs": {"outputs": 1}, "task": "regression", "loss": absolute, "labelCol": "number",
        "solver": "sgd", "updates": "synchronous", "miniBatchFraction": 1.0, "stepSize": 0.3,
    }  # fmt: skip
    estimator = TorchEstimator(module=net, maxIter=20, **params)
    model = estimator.setWeightCol("w").fit(frame)
    losses = np.abs(predicted(model, frame, "prediction") - NUMBER)
    assert model.history[-1].loss == pytest.approx(np.average(losses, weights=W), rel=1e-5)
    assert model.history[-1].loss < 0.6 * model.history[0].loss
    repeated = frame.selectExpr("features", "number", "explode(sequence(1, cast(w as int)))")
    again = TorchEstimator(module=net, maxIter=20, **params).fit(repeated)
    np.testing.assert_allclose(flat(again.to_torch()), flat(model.to_torch()), rtol=1e-3, atol=1e-4)


def test_a_saved_model_has_safetensors_and_a_path_and_loads_without_anything_else(frame, tmp_path):
    estimator = TorchEstimator(
        module="torch.nn.Linear", moduleArgs={"in_features": D, "out_features": K}, maxIter=1
    )
    pipeline = Pipeline(stages=[estimator])
    pipeline.save(str(tmp_path / "pipeline"))
    model: Any = Pipeline.load(str(tmp_path / "pipeline")).fit(frame)
    model.save(str(tmp_path / "model"))
    (place,) = (tmp_path / "model" / "stages").iterdir()
    content = (place / "weights.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {"weight", "bias"} == header.keys() - {"__metadata__"}
    again = PipelineModel.load(str(tmp_path / "model"))
    for name in ("rawPrediction", "probability", "prediction"):
        np.testing.assert_array_equal(predicted(again, frame, name), predicted(model, frame, name))
    last: Any = again.stages[0]
    assert (last.numFeatures, last.numClasses) == (D, K)
    np.testing.assert_allclose(last.predictRaw(Vectors.dense(X[0])), predicted(model, frame)[0])
    (place / "weights.safetensors").write_bytes(content[:40])
    with pytest.raises(ValueError, match=r"weights.safetensors: expected safetensors, found"):
        TorchModel.load(str(place))


def test_what_another_session_cannot_import_is_told_when_saved_and_given_when_loaded(
    frame, tmp_path
):
    model = new(module=lambda: net(), moduleArgs={}, maxIter=1).fit(frame)
    with pytest.warns(UserWarning, match=r"<lambda> is saved by this name alone"):
        model.save(str(tmp_path / "model"))
    loaded = TorchModel.load(str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"param module: .*<lambda>.*setModule takes the function"):
        loaded.transform(frame)
    with pytest.raises(ValueError, match="param module: expected one with the weights of this mo"):
        loaded.setModule(normalized).transform(frame)
    given = loaded.copy({loaded.module: net})
    np.testing.assert_array_equal(predicted(given, frame), predicted(model, frame))
    loaded.setModule(net)
    np.testing.assert_array_equal(predicted(loaded, frame), predicted(model, frame))


def test_a_fit_goes_on_from_its_checkpoint_to_the_same_bits(frame, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "DRIVER_BYTES", 0)

    def kept(path, **params):
        estimator = new(**{"moduleArgs": {"dropout": 0.3}, **params}).setCheckpointInterval(1)
        return estimator.setCheckpointDir(str(path))

    class Killed(Exception):
        pass

    def kill(state, record):
        if record.iteration == 2:
            raise Killed

    whole = kept(tmp_path / "whole", maxIter=4).fit(frame)
    with pytest.raises(Killed):
        kept(tmp_path / "part", maxIter=4).setCallbacks([kill]).fit(frame)
    resumed = kept(tmp_path / "part", maxIter=4).fit(frame)
    np.testing.assert_array_equal(flat(resumed.to_torch()), flat(whole.to_torch()))
    with pytest.raises(ValueError, match=r"expected a checkpoint of this fit.*param module"):
        kept(tmp_path / "part", maxIter=4, module=normalized, moduleArgs={}).fit(frame)


def losses_together(outputs, labels):
    return torch.nn.functional.cross_entropy(outputs, labels.long())


def told_of_another(outputs, labels):
    raise RuntimeError("no such thing")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"module": None}, "param module: expected a function that makes a module, found none"),
        ({"module": "torch.nn.Linaer"}, "param module: expected the dotted path .*'torch.nn.Lin"),
        ({"module": "subprocess.check_output"}, "param module: .* declared to return one"),
        ({"module": lambda: net()(torch.zeros(1, D))}, "param module: expected a function that re"),
        ({"module": torch.nn.Linear(D, K)}, "param module: expected .*, found the Linear itself"),
        ({"module": torch.nn.ReLU}, "param module: expected one with trainable parameters"),
        ({"module": lambda: net().double()}, "parameters of torch.float32 on the CPU, found 0.w"),
        ({"module": lambda: torch.nn.LazyLinear(K)}, "found weight, which is lazy"),
        ({"module": Counting}, "no buffer that training changes .* found calls"),
        ({"moduleArgs": {"depth": 2}}, "param module: expected one that can be made of .*depth"),
        ({"module": convolutional}, "param module: expected one that takes rows of 6 features"),
        ({"moduleArgs": {"outputs": 1}}, r"outputs of shape \(n, k\), .* found shape \(2, 1\)"),
        ({"moduleArgs": {"outputs": 2}}, "label column 'label': expected labels below 2, .* found"),
        ({"task": "regression"}, r"one output for each row, .* found shape \(2, 3\)"),
        ({"task": "clustering"}, "param task: expected one of"),
        ({"loss": losses_together}, r"the loss of each row, shape \(2,\) .* found shape \(\)"),
        (
            {"loss": told_of_another},
            "param loss: expected a function .*Error: no such thing",
        ),
        ({"loss": lambda o, y: torch.zeros(2)}, "param loss: expected one that has a gradient"),
        ({"solver": "l-bfgs"}, r"param solver: expected one of \('sgd', 'adam'\)"),
        ({"batchSize": -1}, "param batchSize: expected a number of 0 or more"),
        ({"miniBatchFraction": 0.5}, "param batchSize: expected 0 where miniBatchFraction is set"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_used_is_refused_before_any_round(frame, params, message):
    calls = []
    estimator = new(**{"module": net, **params}).setCallbacks([lambda *a: calls.append(a)])
    if params.get("module", net) is None:
        estimator.clear(estimator.module)
    with pytest.raises(ValueError, match=message):
        estimator.fit(frame)
    assert not calls


def test_arguments_are_what_json_knows():
    with pytest.raises(TypeError, match=r"moduleArgs.*expected values that JSON knows"):
        TorchEstimator(moduleArgs={"x": torch.zeros(1)})
    with pytest.raises(TypeError, match=r"module.*expected a function or the dotted path of one"):
        TorchEstimator().setParams(module=3)


def test_a_convolutional_network_takes_images_by_its_path(spark):
    rng = np.random.default_rng(0)
    images = rng.random((40, 8, 8)).astype(np.float32) * 0.1
    images[:20, 2:5, 2:5] += 1.0
    images[20:, 3:6, :] += 1.0
    rows = [(images[i].ravel().tolist(), float(i >= 20)) for i in range(40)]
    df = spark.createDataFrame(rows, "features array<float>, label double")
    model = TorchEstimator(
        module="mllib_ext.torch.convolutional",
        moduleArgs={"height": 8, "width": 8, "classes": 2, "filters": 4, "hidden": 8},
        maxIter=8, stepSize=0.02, batchSize=8,
    ).fit(df)  # fmt: skip
    assert model.transform(df).where("label != prediction").count() == 0


def test_the_example_in_the_documentation_runs(spark):
    text = (Path(mllib_ext.__path__[0]).parent / "docs" / "sgd.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    digits = load_digits()
    rows = [((x / 16).tolist(), float(y)) for x, y in zip(digits.data, digits.target, strict=True)]
    df = spark.createDataFrame(rows, "features array<float>, label double").repartition(2).cache()
    namespace: dict[str, Any] = {"__name__": "__main__", "df": df}
    exec(compile(example, "sgd.md", "exec"), namespace)
    wrong = namespace["model"].transform(df).where("label != prediction").count()
    df.unpersist()
    assert wrong < 0.03 * len(rows)
