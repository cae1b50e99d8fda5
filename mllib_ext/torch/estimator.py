"""Any PyTorch module, trained in the rounds of :mod:`mllib_ext.optimizers.sgd`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import numpy as np
from pyspark import keyword_only
from pyspark.ml.linalg import Vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasLabelCol,
    HasMaxIter,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
    HasRegParam,
    HasTol,
    HasWeightCol,
)
from pyspark.ml.util import MLReader, MLWriter
from pyspark.sql import DataFrame

from mllib_ext import storage
from mllib_ext.base import (
    HasCallbacks,
    HasCheckpoints,
    HasFeatures,
    Trained,
    as_row,
    dense,
    unsigned_seed,
)
from mllib_ext.blocks import Blocks
from mllib_ext.classes import (
    chosen,
    class_weights,
    declared_classes,
    labels_of,
    merge_labels,
)
from mllib_ext.columns import Matrix
from mllib_ext.fitting import FitsOverBlocks
from mllib_ext.losses import softmax
from mllib_ext.mapped import Mapped, Shipped
from mllib_ext.optimizers import sgd
from mllib_ext.optimizers.smooth import minimize
from mllib_ext.persistence import ParamsReader, ParamsWriter, SavesParams, restored
from mllib_ext.prediction import Output, with_predictions
from mllib_ext.stochastic_params import SOLVERS, BatchSizeEstimator, BatchSizeParams
from mllib_ext.torch.functions import factory, found, loads_again, to_function
from mllib_ext.torch.needs import torch_package
from mllib_ext.torch.network import TASKS, State, TorchNetwork, drawing, refuse_state

# Data of a megabyte or less are trained on the driver: a row may cost much.
DRIVER_BYTES = 1 << 20
LOSSES = {"classification": "cross_entropy", "regression": "mse_loss"}
WEIGHTS = "weights.safetensors"


def to_arguments(value: Any) -> dict[str, Any]:
    """Keyword arguments that JSON knows; TypeError otherwise."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"expected keyword arguments by their names, found {value!r}")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected values that JSON knows, found {value!r}: {error}") from None
    return plain


class TorchParams(
    HasFeatures,
    BatchSizeParams,
    HasCheckpoints,
    HasMaxIter,
    HasTol,
    HasRegParam,
    HasLabelCol,
    HasWeightCol,
    HasPredictionCol,
    HasProbabilityCol,
    HasRawPredictionCol,
):
    """Parameters of the estimator and its model."""

    module: Param[str] = Param(
        Params._dummy(),
        "module",
        "a function that returns a torch.nn.Module, or its dotted path",
        typeConverter=to_function,
    )
    moduleArgs: Param[dict[str, Any]] = Param(
        Params._dummy(),
        "moduleArgs",
        "keyword arguments of module, as JSON knows them",
        typeConverter=to_arguments,
    )
    loss: Param[str] = Param(
        Params._dummy(),
        "loss",
        "a function of outputs and labels that returns the loss of each row, or its dotted path",
        typeConverter=to_function,
    )
    task: Param[str] = Param(
        Params._dummy(),
        "task",
        "what labels are: classes (classification) or numbers (regression)",
        typeConverter=TypeConverters.toString,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            moduleArgs={},
            task="classification",
            solver="adam",
            stepSize=1e-3,
            batchSize=128,
            updates="local",
            maxIter=10,
            tol=1e-6,
            regParam=0.0,
        )

    def getModule(self) -> str:
        """The dotted path of the function that makes the module."""
        return self.getOrDefault(self.module)

    def getModuleArgs(self) -> dict[str, Any]:
        """The keyword arguments of that function."""
        return self.getOrDefault(self.moduleArgs)

    def getLoss(self) -> str:
        """The dotted path of the loss."""
        return self.getOrDefault(self.loss)

    def getTask(self) -> str:
        """What labels are."""
        return self.getOrDefault(self.task)

    def setModule(self, value: str | Callable[..., Any]) -> Self:
        """Set the function that makes the module, or its dotted path."""
        return self._set(module=value)

    def _network(self, loss: Callable[..., Any] | None) -> TorchNetwork:
        make = factory(self.getModule())
        return TorchNetwork.of(
            make, self.getModuleArgs(), loss, self.getTask(), unsigned_seed(self)
        )


class TorchModel(Shipped, Trained, TorchParams):  # type: ignore[misc]
    """A trained module.

    Parameters
    ----------
    state : dict of str to ndarray
        What the module's ``state_dict`` has.
    num_features : int
    num_classes : int
        1 for numbers.

    Notes
    -----
    ``save`` writes the weights as safetensors, and of the function that makes the module its
    dotted path and arguments: nothing is pickled, and nothing of the file is executed. Where
    another session does not find the function by its path (a lambda, one of a notebook), give it:
    ``TorchModel.load(path).setModule(make_net)``.
    """

    def __init__(self, state: State, num_features: int, num_classes: int) -> None:
        super().__init__()
        self._state, self._num_features, self._num_classes = state, num_features, num_classes
        self._sent: TorchNetwork | None = None

    @property
    def numFeatures(self) -> int:
        """Number of features."""
        return self._num_features

    @property
    def numClasses(self) -> int:
        """Number of classes; 1 for a regression."""
        return self._num_classes

    @property
    def state(self) -> State:
        """The weights, read-only arrays, by their names in the module's ``state_dict``."""
        return dict(self._state)

    def to_torch(self) -> Any:
        """The trained ``torch.nn.Module``, one's own, in evaluation mode."""
        torch = torch_package()
        refuse_state(self._network(None), self._state)
        with drawing(unsigned_seed(self)):
            module = factory(self.getModule())(**self.getModuleArgs())
        module.load_state_dict({name: torch.tensor(array) for name, array in self._state.items()})
        return module.eval()

    def predictRaw(self, value: Vector) -> Vector:
        """Outputs for one row, one for each class."""
        return dense(self._row_outputs(value)[0])

    def predict(self, value: Vector) -> float:
        """The class of one row, or its number."""
        outputs = self._row_outputs(value)
        if self.getTask() == "regression":
            return float(outputs[0, 0])
        return float(chosen(softmax(outputs), None)[0])

    def _row_outputs(self, value: Vector) -> np.ndarray:
        network, state = self._predictor
        return network.outputs(as_row(value, self.numFeatures), state)

    def _shipped(self, dataset: DataFrame) -> Mapped:
        network = self._network(None)
        if network != self._sent:  # a model that was loaded may be told its function
            self._mapped, self._sent = None, network
        return super()._shipped(dataset)

    @property
    def _predictor(self) -> tuple[TorchNetwork, State]:
        network = self._network(None)
        refuse_state(network, self._state)
        return network, self._state

    def _transform(self, dataset: DataFrame) -> DataFrame:
        names = self.getRawPredictionCol(), self.getProbabilityCol(), self.getPredictionCol()
        k = self.numClasses
        if self.getTask() == "regression":
            columns = {names[2]: Output("double", {})}
        else:
            vector = Output("vector", {"num_attrs": k})
            nominal = Output("double", {"num_vals": k, "type": "nominal"})
            columns = dict(zip(names, (vector, vector, nominal), strict=True))
        predict = partial(_predict, self._shipped(dataset), self.getTask(), names)
        return with_predictions(self, dataset, self.numFeatures, columns, predict)

    def write(self) -> MLWriter:
        """A writer: ``model.write().overwrite().save(path)``."""
        return TorchWriter(self)

    @classmethod
    def read(cls) -> MLReader[Any]:
        """A reader: ``TorchModel.read().load(path)``."""
        return TorchReader(cls)

    def __repr__(self) -> str:
        module = self.getModule() if self.isDefined("module") else None
        return f"TorchModel: uid={self.uid}, module={module}"


def _predict(
    mapped: Mapped, task: str, names: tuple[str, str, str], X: Matrix
) -> dict[str, np.ndarray]:
    """Raw predictions (n, k), probabilities (n, k) and classes (n,) of rows X; or numbers (n,)."""
    network, state = mapped.open()
    raw = network.outputs(X, state)
    if task == "regression":
        return {names[2]: raw[:, 0]}
    probability = softmax(raw)
    return dict(zip(names, (raw, probability, chosen(probability, None)), strict=True))


class TorchWriter(ParamsWriter):
    """Parameters as JSON under ``metadata``, weights as safetensors beside it."""

    def saveImpl(self, path: str) -> None:
        from safetensors.numpy import save

        model = self.instance
        _warn_unless_it_loads_again(model)
        extra = {
            "numFeatures": model.numFeatures,
            "numClasses": model.numClasses,
            "converged": model.converged,
            "reason": model.reason,
            "nIter": model.n_iter,
        }
        self.save_metadata(path, extra)
        storage.put_bytes(f"{path}/{WEIGHTS}", save(dict(model._state)))


class TorchReader(ParamsReader):
    """A model from its weights and parameters."""

    def load(self, path: str) -> Any:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        metadata = self.load_metadata(path)
        try:
            state = load(storage.read_bytes(f"{path}/{WEIGHTS}"))
        except SafetensorError as error:
            raise ValueError(f"{path}/{WEIGHTS}: expected safetensors, found {error}") from None
        for array in state.values():
            array.flags.writeable = False
        model = self.cls(state, metadata["numFeatures"], metadata["numClasses"])
        model = restored(model, metadata)
        model.converged, model.reason = metadata["converged"], metadata["reason"]
        model.n_iter = metadata["nIter"]
        return model


class TorchParamsWriter(ParamsWriter):
    """As :class:`~mllib_ext.persistence.ParamsWriter`."""

    def saveImpl(self, path: str) -> None:
        _warn_unless_it_loads_again(self.instance)
        super().saveImpl(path)


def _warn_unless_it_loads_again(instance: Any) -> None:
    if instance.isDefined("module") and not loads_again(instance.getModule()):
        warnings.warn(
            f"param module: {instance.getModule()} is saved by this name alone, by which another "
            "session does not find a function that is declared to return a torch.nn.Module: what "
            "is loaded there has to be told by setModule(function)",
            UserWarning,
            stacklevel=4,
        )


class TorchEstimator(  # type: ignore[misc]
    FitsOverBlocks, TorchParams, BatchSizeEstimator, HasCallbacks, SavesParams
):
    """Trains any PyTorch module on the rows of a DataFrame; needs ``pip install mllib_ext[torch]``.

    The module goes through rows in the rounds of the solvers ``sgd`` and ``adam``
    (:mod:`mllib_ext.optimizers.sgd`), one thread a task, with their schedules, compression, early
    stopping, callbacks, run records and checkpoints.

    Parameters
    ----------
    module : callable or str
        A function (or class) that returns a ``torch.nn.Module``, or its dotted path. The module
        takes rows ``(n, d)`` of float32, and returns ``(n, k)`` for k classes, or ``(n,)`` or
        ``(n, 1)`` for numbers; what shape a row has in it is its own business
        (``torch.nn.Unflatten(1, (1, 28, 28))``). Its trainable parameters are float32; others stay
        as the function makes them, which is called in every process, under ``seed``. A path, in a
        config or a saved model, is that of a class of modules or of a function that is declared to
        return one (``-> torch.nn.Module``).
    moduleArgs : dict
        Keyword arguments of that function, as JSON knows them.
    loss : callable or str, optional
        ``loss(outputs, labels)``, the loss of each row, (n,), or the dotted path of such a
        function. One that has a parameter ``reduction``, as those of ``torch.nn.functional`` do, is
        given ``"none"``. Classes come as int64, numbers and their outputs as float32 of shape (n,).
        Unless given ``torch.nn.functional.cross_entropy`` or ``mse_loss``.
    task : {"classification", "regression"}
        Whether labels are classes 0, 1, ..., k-1, or numbers.
    featuresCol : str or list of str
        A vector column (dense or sparse), an array column, or a list of numeric columns.
    weightCol : str, optional
        Weights of rows in the mean loss.
    solver : {"adam", "sgd"}
    stepSize : float
        The first rate. The schedule takes it to 0 at the end of ``maxIter`` passes.
    maxIter : int
        Passes over the rows.
    batchSize : int
        Rows in a step, about; with ``updates="local"`` of each partition. 0 is by
        ``miniBatchFraction``, which may be set in its place.
    regParam : float
        Strength of the L2 penalty (half the squared norm) on parameters of two axes or more.
    momentum, nesterov, schedule, decay, warmUp
        Steps: as of :class:`mllib_ext.classification.MultilayerPerceptronClassifier`.
    updates, localSteps, outerMomentum, maxStaleness
        How steps are shared among the partitions. A whole pass of each by itself, then a mean,
        unless set otherwise.
    compression, compressionShare, compressionRank
        How what is sent is made small: :mod:`mllib_ext.compression`.
    validationFraction, patience
        Early stopping by rows held out; the model is the one that did best on them.
    seed : int
        Of the module's initial parameters, of what it draws in training (dropout), of the samples.

    Raises
    ------
    ImportError
        PyTorch is not installed.
    ValueError
        From ``fit``, before the first round: a parameter that is out of range; a module or a loss
        that does not fit the rows, or each other; labels that are not 0, 1, ..., k-1; what
        :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Notes
    -----
    Batch normalization: every step normalizes by the rows that pass together, ``batchSize`` of one
    partition, 256 or fewer. Running means and variances are computed for the loss of each pass and
    for the model, one round more (:mod:`mllib_ext.torch.network`). Other buffers that training
    changes are refused. Spark's shuffle decides what a partition holds: mix what is sorted.

    Functions travel to the workers by cloudpickle: those of a module that executors cannot import
    have to be shipped (``--py-files``), as for any function on Spark.

    Examples
    --------
    >>> import torch
    >>> from mllib_ext.torch import TorchEstimator
    >>> def net(hidden: int) -> torch.nn.Module:
    ...     return torch.nn.Sequential(
    ...         torch.nn.Linear(4, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 3)
    ...     )
    >>> estimator = TorchEstimator(module=net, moduleArgs={"hidden": 16}, stepSize=0.01)
    >>> model = estimator.fit(df)  # doctest: +SKIP
    >>> model.transform(df).select("probability", "prediction")  # doctest: +SKIP
    >>> model.to_torch()  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        module: str | Callable[..., Any] | None = None,
        moduleArgs: dict[str, Any] | None = None,
        loss: str | Callable[..., Any] | None = None,
        task: str = "classification",
        featuresCol: str | list[str] = "features",
        labelCol: str = "label",
        predictionCol: str = "prediction",
        probabilityCol: str = "probability",
        rawPredictionCol: str = "rawPrediction",
        maxIter: int = 10,
        tol: float = 1e-6,
        seed: int = 0,
        solver: str = "adam",
        stepSize: float = 0.001,
        batchSize: int = 128,
        regParam: float = 0.0,
        weightCol: str | None = None,
        featuresCols: list[str] | None = None,
        momentum: float = 0.0,
        nesterov: bool = False,
        miniBatchFraction: float = 0.1,
        schedule: str = "cosine",
        decay: float = 1e-4,
        warmUp: float = 0.0,
        updates: str = "local",
        localSteps: int = 0,
        outerMomentum: float = 0.0,
        maxStaleness: int = 1,
        compression: str = "none",
        compressionShare: float = 0.01,
        compressionRank: int = 2,
        validationFraction: float = 0.0,
        patience: int = 5,
        checkpointInterval: int = 10,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def setModuleArgs(self, value: dict[str, Any]) -> Self:
        """Set the keyword arguments of the function that makes the module."""
        return self._set(moduleArgs=value)

    def setLoss(self, value: str | Callable[..., Any]) -> Self:
        """Set the loss of each row by outputs and labels, or its dotted path."""
        return self._set(loss=value)

    def setTask(self, value: str) -> Self:
        """Set what labels are: classification or regression."""
        return self._set(task=value)

    def setLabelCol(self, value: str) -> Self:
        """Set the label column."""
        return self._set(labelCol=value)

    def setWeightCol(self, value: str) -> Self:
        """Set the column of row weights."""
        return self._set(weightCol=value)

    def setPredictionCol(self, value: str) -> Self:
        """Set the column of predictions."""
        return self._set(predictionCol=value)

    def setProbabilityCol(self, value: str) -> Self:
        """Set the column of class probabilities."""
        return self._set(probabilityCol=value)

    def setRawPredictionCol(self, value: str) -> Self:
        """Set the column of outputs, one for each class."""
        return self._set(rawPredictionCol=value)

    def setMaxIter(self, value: int) -> Self:
        """Set the largest number of passes over the rows."""
        return self._set(maxIter=value)

    def setTol(self, value: float) -> Self:
        """Set the tolerance of the stopping rules."""
        return self._set(tol=value)

    def setStepSize(self, value: float) -> Self:
        """Set the first rate."""
        return self._set(stepSize=value)

    def setSolver(self, value: str) -> Self:
        """Set the solver: adam or sgd."""
        return self._set(solver=value)

    def setRegParam(self, value: float) -> Self:
        """Set the strength of the L2 penalty on the weights."""
        return self._set(regParam=value)

    def write(self) -> MLWriter:
        """A writer: ``estimator.write().overwrite().save(path)``."""
        return TorchParamsWriter(self)

    def _driver_bytes(self) -> int:
        return min(super()._driver_bytes(), DRIVER_BYTES)

    def _identity(self) -> dict[str, Any]:
        return {"parameters of module": self._training_network().shapes}

    def _training_network(self) -> TorchNetwork:
        return self._network(self._loss_function())

    def _loss_function(self) -> Callable[..., Any]:
        if self.isDefined("loss"):
            return found("loss", self.getLoss())
        function: Callable[..., Any] = getattr(
            torch_package().nn.functional, LOSSES[self.getTask()]
        )
        return function

    def _refuse_params(self) -> None:
        for name, choices in (("solver", SOLVERS), ("task", TASKS)):
            value = self.getOrDefault(name)
            if value not in choices:
                raise ValueError(f"param {name}: expected one of {choices}, found {value!r}")
        if not self.isDefined("module"):
            raise ValueError("param module: expected a function that makes a module, found none")
        for name in ("maxIter", "tol", "regParam"):
            value = self.getOrDefault(name)
            if not 0 <= value < np.inf:
                raise ValueError(f"param {name}: expected a number of 0 or more, found {value!r}")
        self._refuse_stochastic()

    def _refuse(self, dataset: DataFrame) -> None:
        super()._refuse(dataset)
        self._training_network().start()  # it can be made

    def _first_round(self) -> Any:
        return (labels_of, merge_labels) if self.getTask() == "classification" else None

    def _fit_blocks(self, blocks: Blocks) -> TorchModel:
        network = self._training_network()
        k = network.refuse(blocks.n_features)
        if self.getTask() == "classification":
            labels, by_label = blocks.reduce(labels_of, merge_labels)
            declared = declared_classes(blocks.label_metadata)
            counts = class_weights(self.getLabelCol(), labels, by_label, declared)
            if counts[k:].any():
                raise ValueError(
                    f"label column {self.getLabelCol()!r}: expected labels below {k}, the outputs "
                    f"of param module, found {np.flatnonzero(counts).max()}"
                )
        settings = self._stochastic_settings(1) | {
            "max_iter": self.getMaxIter(),
            "tol": self.getTol(),
            "reg_param": self.getRegParam(),
            "step_size": self.getStepSize(),
            "mini_batch_fraction": self._fraction(blocks),
        }
        objective = network.over(blocks)
        result = minimize(
            sgd,
            objective.regularized,
            network.start(),
            sgd.SETTINGS(**settings),
            self.getCallbacks(),
            blocks.drain,
        )
        v = result.state.v
        statistics = objective.statistics(v, self.getValidationFraction(), unsigned_seed(self))
        model = TorchModel(network.state(v, statistics), blocks.n_features, k)
        return model._trained(self, result)
