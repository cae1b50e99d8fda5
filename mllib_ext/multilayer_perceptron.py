"""What the networks' estimators share: their parameters, what they refuse, fit and prediction."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Self

import numpy as np
from pyspark.ml.linalg import DenseVector, Vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import (
    HasBlockSize,
    HasMaxIter,
    HasRegParam,
    HasSeed,
    HasSolver,
    HasStepSize,
    HasTol,
    HasWeightCol,
)

from mllib_ext.base import (
    HasCallbacks,
    HasCheckpoints,
    HasFeatures,
    Trained,
    as_row,
    dense,
    frozen,
    unsigned_seed,
)
from mllib_ext.blocks import Blocks
from mllib_ext.fitting import FitsOverBlocks
from mllib_ext.linear import precision
from mllib_ext.losses import Loss
from mllib_ext.mapped import Shipped
from mllib_ext.network import ACTIVATIONS, ROWS, Network, margins
from mllib_ext.network_objective import NetworkModel, NetworkObjective
from mllib_ext.optimizers import gd, lbfgs, sgd
from mllib_ext.optimizers.loop import Result
from mllib_ext.optimizers.smooth import minimize
from mllib_ext.stochastic_params import SOLVERS as STOCHASTIC
from mllib_ext.stochastic_params import BatchSizeEstimator, BatchSizeParams

MINIMIZERS: dict[str, ModuleType] = {
    "l-bfgs": lbfgs,
    "gd": gd,
    **dict.fromkeys(STOCHASTIC, sgd),
}
SOLVERS = tuple(MINIMIZERS)

SEED = 0
# Of the solvers whose stepSize is not set: Kingma & Ba's (2015), and what units of the size of 1
# bear without momentum.
STEPS = {"adam": 1e-3, "sgd": 0.1}
# A gradient of so many operations takes a core about as long as a Spark job's 25 ms.
DRIVER_FLOP = 1e9


class MultilayerPerceptronParams(
    HasFeatures,
    BatchSizeParams,
    HasCheckpoints,
    HasSeed,
    HasMaxIter,
    HasTol,
    HasStepSize,
    HasSolver,
    HasBlockSize,
    HasRegParam,
    HasWeightCol,
):
    """Parameters of the estimators and their models: pyspark.ml's, and those added here."""

    layers: Param[list[int]] = Param(
        Params._dummy(),
        "layers",
        "units of each layer: the number of features first, then those of the hidden layers, "
        "the number of outputs last",
        typeConverter=TypeConverters.toListInt,
    )
    activation: Param[str] = Param(
        Params._dummy(),
        "activation",
        "the activation of the hidden layers: sigmoid, tanh, relu or gelu",
        typeConverter=TypeConverters.toString,
    )
    initialWeights: Param[Vector] = Param(
        Params._dummy(),
        "initialWeights",
        "weights to start from, in the layout of the model's weights",
        typeConverter=TypeConverters.toVector,
    )

    dropout: Param[float] = Param(
        Params._dummy(),
        "dropout",
        "solvers sgd and adam: the share of the hidden activations left out of a step, in [0, 1)",
        typeConverter=TypeConverters.toFloat,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            dropout=0.0,
            batchSize=0,
            maxIter=100,
            tol=1e-6,
            blockSize=ROWS,
            stepSize=0.03,
            solver="l-bfgs",
            regParam=0.0,
            activation="sigmoid",
            seed=SEED,
        )

    def getLayers(self) -> list[int]:
        """The units of each layer."""
        return self.getOrDefault(self.layers)

    def getActivation(self) -> str:
        """The activation of the hidden layers."""
        return self.getOrDefault(self.activation)

    def getInitialWeights(self) -> Vector:
        """The weights to start from."""
        return self.getOrDefault(self.initialWeights)

    def getDropout(self) -> float:
        """The share of the hidden activations left out of a step."""
        return self.getOrDefault(self.dropout)

    @property
    def _network(self) -> Network:
        return Network(tuple(self.getLayers()), self.getActivation())


class MultilayerPerceptronModel(Shipped, Trained, MultilayerPerceptronParams):
    """A fitted network.

    Parameters
    ----------
    weights : ndarray, shape (n_weights,)
        Flat: :class:`mllib_ext.network.Network`.
    """

    _arrays = ("weights",)

    def __init__(self, weights: Any) -> None:
        super().__init__()
        self._weights = frozen(weights)

    @property
    def weights(self) -> DenseVector:
        """Weights and biases, in the layout of pyspark.ml's.

        Layer by layer the weights, those of the first input to all outputs first, then the biases.
        """
        return dense(self._weights)

    @property
    def numFeatures(self) -> int:
        """Number of features."""
        return self.getLayers()[0]

    @property
    def _predictor(self) -> tuple[Network, np.ndarray]:
        return self._network, self._weights

    def _row_margins(self, value: Vector) -> np.ndarray:
        """Outputs of one row, (1, k)."""
        return outputs(self._predictor, as_row(value, self.numFeatures))

    def __repr__(self) -> str:
        layers = self.getLayers() if self.isDefined("layers") else None
        return f"{type(self).__name__}: uid={self.uid}, layers={layers}"


def outputs(model: tuple[Network, np.ndarray], X: Any) -> np.ndarray:
    """Outputs (n, k) of rows X (n, d) in double precision."""
    network, weights = model
    return margins(network, network.split(weights), X)


class MultilayerPerceptronEstimator(
    FitsOverBlocks, MultilayerPerceptronParams, BatchSizeEstimator, HasCallbacks
):
    """Setters, checks and the fit of a network's estimator."""

    # Spark's estimators have one of their own, nearer in the method resolution order.
    setFeaturesCol = HasFeatures.setFeaturesCol

    def setLayers(self, value: list[int]) -> Self:
        """Set the units of each layer."""
        return self._set(layers=value)

    def setActivation(self, value: str) -> Self:
        """Set the activation of the hidden layers: sigmoid, tanh, relu or gelu."""
        return self._set(activation=value)

    def setInitialWeights(self, value: Vector) -> Self:
        """Set the weights to start from."""
        return self._set(initialWeights=value)

    def setMaxIter(self, value: int) -> Self:
        """Set the largest number of iterations."""
        return self._set(maxIter=value)

    def setTol(self, value: float) -> Self:
        """Set the tolerance of the stopping rules."""
        return self._set(tol=value)

    def setSeed(self, value: int) -> Self:
        """Set the seed of the initial weights, and of what the solvers sgd and adam draw."""
        return self._set(seed=value)

    def setStepSize(self, value: float) -> Self:
        """Set the step of solvers gd, sgd and adam; unset, the last two take one of their own."""
        return self._set(stepSize=value)

    def setSolver(self, value: str) -> Self:
        """Set the solver: l-bfgs, gd, sgd or adam."""
        return self._set(solver=value)

    def setBlockSize(self, value: int) -> Self:
        """Set how many rows pass through the layers together."""
        return self._set(blockSize=value)

    def setRegParam(self, value: float) -> Self:
        """Set the strength of the L2 penalty on the weights."""
        return self._set(regParam=value)

    def setWeightCol(self, value: str) -> Self:
        """Set the column of row weights."""
        return self._set(weightCol=value)

    def setDropout(self, value: float) -> Self:
        """Set the share of the hidden activations left out of a step."""
        return self._set(dropout=value)

    def _driver_bytes(self) -> int:
        # Two operations a weight forward and four back, for a row of doubles.
        rows = DRIVER_FLOP / (6 * self._network.n_weights)
        return min(super()._driver_bytes(), round(8 * rows * self.getLayers()[0]))

    def _refuse_params(self: Any) -> None:
        for name, choices in (("solver", SOLVERS), ("activation", tuple(ACTIVATIONS))):
            value = self.getOrDefault(name)
            if value not in choices:
                raise ValueError(f"param {name}: expected one of {choices}, found {value!r}")
        if not self.isDefined("layers"):
            raise ValueError("param layers: expected the units of each layer, found none")
        layers = self.getLayers()
        if len(layers) < 2 or min(layers) < 1:
            raise ValueError(
                f"param layers: expected two numbers or more, each of 1 or more, found {layers!r}"
            )
        for name in ("maxIter", "tol", "regParam"):
            value = self.getOrDefault(name)
            if not 0 <= value < np.inf:
                raise ValueError(f"param {name}: expected a number of 0 or more, found {value!r}")
        self._refuse_stochastic()
        stochastic = self.getSolver() in STOCHASTIC
        for name in ("dropout", "batchSize"):
            value = self.getOrDefault(name)
            if not stochastic and value != 0:
                raise ValueError(
                    f"param {name}: expected 0 with {self.getSolver()}, found {value!r}"
                )
        if not 0 <= self.getDropout() < 1:
            raise ValueError(
                f"param dropout: expected a number in [0, 1), found {self.getDropout()!r}"
            )
        if self.getBlockSize() < 1:
            raise ValueError(f"param blockSize: expected 1 or more, found {self.getBlockSize()!r}")
        if self.isDefined("initialWeights"):
            self._refuse_initial_weights(self.getInitialWeights().toArray())

    def _refuse_initial_weights(self, weights: np.ndarray) -> None:
        expected = self._network.n_weights
        if len(weights) != expected:
            raise ValueError(
                f"param initialWeights: expected {expected} numbers, as layers "
                f"{self.getLayers()} have, found {len(weights)}"
            )
        if not np.isfinite(weights).all():
            raise ValueError("param initialWeights: expected finite numbers, found others")

    def _start(self, blocks: Blocks) -> np.ndarray:
        """Flat weights to start from: those that are set, or random ones."""
        if blocks.n_features != self.getLayers()[0]:
            raise ValueError(
                f"param layers: expected the first to be {blocks.n_features}, the number of "
                f"features in {blocks.features.label}, found {self.getLayers()!r}"
            )
        if self.isDefined("initialWeights"):
            weights: np.ndarray = self.getInitialWeights().toArray()
            return weights
        return self._network.initial(np.random.default_rng(unsigned_seed(self)))

    def _fit_network(self, blocks: Blocks, loss: Loss, start: np.ndarray) -> Result[Any]:
        """Minimise the mean loss from a start; the result's state has the weights as ``v``."""
        solver = self.getSolver()
        method: Any = MINIMIZERS[solver]
        settings: dict[str, Any] = {
            "max_iter": self.getMaxIter(),
            "tol": self.getTol(),
            "reg_param": self.getRegParam(),
        }
        if method is gd:  # a fixed step, as pyspark.ml's
            settings |= {"step_size": self.getStepSize(), "line_search": "none"}
        rows = self.getBlockSize()
        if method is sgd:
            settings |= self._stochastic_settings(len(start))
            if not self.isSet("stepSize"):
                settings["step_size"] = STEPS[solver]
            settings["mini_batch_fraction"] = self._fraction(blocks)
            model = NetworkModel(self._network, loss, rows, self.getDropout())
            objective: Any = model.over(blocks)
        else:
            objective = NetworkObjective(
                blocks, self._network, loss, precision=precision(blocks), rows=rows
            )
        return minimize(
            method,
            objective.regularized,
            start,
            method.SETTINGS(**settings),
            self.getCallbacks(),
            blocks.drain,
        )
