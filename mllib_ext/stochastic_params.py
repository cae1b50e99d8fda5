"""The parameters of stochastic gradient descent, for every estimator that has its solvers."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasSeed, HasSolver, HasStepSize

from mllib_ext.base import unsigned_seed
from mllib_ext.blocks import Blocks
from mllib_ext.compression import COMPRESSIONS
from mllib_ext.optimizers import sgd
from mllib_ext.optimizers.schedules import SCHEDULES

# Rules by the solver that takes them, and the rate of one whose stepSize is not set. Gradient
# descent's is one over the mean square of a standardised row with its 1 for the intercept.
SOLVERS = ("sgd", "adam")
ADAM_STEP = 0.01


class StochasticParams(HasSeed, HasStepSize, HasSolver):
    """How the solvers ``sgd`` and ``adam`` go through the data."""

    momentum: Param[float] = Param(
        Params._dummy(),
        "momentum",
        "solver sgd: momentum, in [0, 1)",
        typeConverter=TypeConverters.toFloat,
    )
    nesterov: Param[bool] = Param(
        Params._dummy(),
        "nesterov",
        "solver sgd: whether the momentum is Nesterov's",
        typeConverter=TypeConverters.toBoolean,
    )
    miniBatchFraction: Param[float] = Param(
        Params._dummy(),
        "miniBatchFraction",
        "solvers sgd and adam: the share of the rows in a step, in (0, 1]; with local updates of "
        "the rows of a partition",
        typeConverter=TypeConverters.toFloat,
    )
    schedule: Param[str] = Param(
        Params._dummy(),
        "schedule",
        "solvers sgd and adam: how the rate falls over maxIter passes: constant, inverse, cosine, "
        "step",
        typeConverter=TypeConverters.toString,
    )
    decay: Param[float] = Param(
        Params._dummy(),
        "decay",
        "schedule inverse: the rate is stepSize / (1 + decay stepSize t) after t steps (>= 0)",
        typeConverter=TypeConverters.toFloat,
    )
    warmUp: Param[float] = Param(
        Params._dummy(),
        "warmUp",
        "solvers sgd and adam: passes over which the rate rises to the schedule's (>= 0)",
        typeConverter=TypeConverters.toFloat,
    )
    updates: Param[str] = Param(
        Params._dummy(),
        "updates",
        "solvers sgd and adam: synchronous (a step a round), local (steps on each partition, then "
        "a mean) or asynchronous (a step whenever a group of partitions answers)",
        typeConverter=TypeConverters.toString,
    )
    localSteps: Param[int] = Param(
        Params._dummy(),
        "localSteps",
        "local updates: about how many steps a partition takes in a round, more than a pass has "
        "being whole passes; 0 is one pass",
        typeConverter=TypeConverters.toInt,
    )
    outerMomentum: Param[float] = Param(
        Params._dummy(),
        "outerMomentum",
        "local updates: momentum of the mean moves, in [0, 1)",
        typeConverter=TypeConverters.toFloat,
    )
    maxStaleness: Param[int] = Param(
        Params._dummy(),
        "maxStaleness",
        "asynchronous updates: how many shares of a pass a group may be ahead of another (>= 0)",
        typeConverter=TypeConverters.toInt,
    )
    compression: Param[str] = Param(
        Params._dummy(),
        "compression",
        "solvers sgd and adam: what is sent as few bytes: none, float16, qsgd, top-k, powersgd",
        typeConverter=TypeConverters.toString,
    )
    compressionShare: Param[float] = Param(
        Params._dummy(),
        "compressionShare",
        "compression top-k: the share of the entries that are sent, in (0, 1]",
        typeConverter=TypeConverters.toFloat,
    )
    compressionRank: Param[int] = Param(
        Params._dummy(),
        "compressionRank",
        "compression powersgd: the rank of the factors that are sent (>= 1)",
        typeConverter=TypeConverters.toInt,
    )

    validationFraction: Param[float] = Param(
        Params._dummy(),
        "validationFraction",
        "solvers sgd and adam: the share of the rows held out to stop by their loss, in [0, 1); "
        "0 is none",
        typeConverter=TypeConverters.toFloat,
    )
    patience: Param[int] = Param(
        Params._dummy(),
        "patience",
        "solvers sgd and adam: passes without a better loss after which to stop (>= 1)",
        typeConverter=TypeConverters.toInt,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(
            stepSize=1.0,
            momentum=0.0,
            nesterov=False,
            miniBatchFraction=0.1,
            schedule="cosine",
            decay=1e-4,
            warmUp=0.0,
            updates="synchronous",
            localSteps=0,
            outerMomentum=0.0,
            maxStaleness=1,
            compression="none",
            compressionShare=0.01,
            compressionRank=2,
            validationFraction=0.0,
            patience=sgd.PATIENCE,
            seed=0,
        )

    def getMomentum(self) -> float:
        """The momentum of solver sgd."""
        return self.getOrDefault(self.momentum)

    def getNesterov(self) -> bool:
        """Whether the momentum is Nesterov's."""
        return self.getOrDefault(self.nesterov)

    def getMiniBatchFraction(self) -> float:
        """The share of the rows in a step."""
        return self.getOrDefault(self.miniBatchFraction)

    def getSchedule(self) -> str:
        """How the rate falls."""
        return self.getOrDefault(self.schedule)

    def getDecay(self) -> float:
        """What schedule inverse falls by."""
        return self.getOrDefault(self.decay)

    def getWarmUp(self) -> float:
        """Passes over which the rate rises."""
        return self.getOrDefault(self.warmUp)

    def getUpdates(self) -> str:
        """How a step is shared among the partitions."""
        return self.getOrDefault(self.updates)

    def getLocalSteps(self) -> int:
        """Steps of a partition in a round."""
        return self.getOrDefault(self.localSteps)

    def getOuterMomentum(self) -> float:
        """The momentum of the mean moves."""
        return self.getOrDefault(self.outerMomentum)

    def getMaxStaleness(self) -> int:
        """How far a group of partitions may be ahead."""
        return self.getOrDefault(self.maxStaleness)

    def getCompression(self) -> str:
        """How what is sent is made small."""
        return self.getOrDefault(self.compression)

    def getCompressionShare(self) -> float:
        """The share of the entries that top-k sends."""
        return self.getOrDefault(self.compressionShare)

    def getCompressionRank(self) -> int:
        """The rank of powersgd's factors."""
        return self.getOrDefault(self.compressionRank)

    def getValidationFraction(self) -> float:
        """The share of the rows held out to stop by."""
        return self.getOrDefault(self.validationFraction)

    def getPatience(self) -> int:
        """Passes without a better loss after which to stop."""
        return self.getOrDefault(self.patience)


class StochasticEstimator(StochasticParams):
    """Setters, checks and settings of an estimator with these solvers."""

    def setStepSize(self, value: float) -> Self:
        """Set the step of gradient descent; unset, solvers sgd and adam take one of their own."""
        return self._set(stepSize=value)

    def setMomentum(self, value: float) -> Self:
        """Set the momentum of solver sgd."""
        return self._set(momentum=value)

    def setNesterov(self, value: bool) -> Self:
        """Set whether the momentum is Nesterov's."""
        return self._set(nesterov=value)

    def setMiniBatchFraction(self, value: float) -> Self:
        """Set the share of the rows in a step."""
        return self._set(miniBatchFraction=value)

    def setSchedule(self, value: str) -> Self:
        """Set how the rate falls: constant, inverse, cosine or step."""
        return self._set(schedule=value)

    def setDecay(self, value: float) -> Self:
        """Set what schedule inverse falls by."""
        return self._set(decay=value)

    def setWarmUp(self, value: float) -> Self:
        """Set the passes over which the rate rises."""
        return self._set(warmUp=value)

    def setUpdates(self, value: str) -> Self:
        """Set how steps are shared among partitions: synchronous, local or asynchronous."""
        return self._set(updates=value)

    def setLocalSteps(self, value: int) -> Self:
        """Set the steps of a partition in a round, a share of a pass or several; 0 is one pass."""
        return self._set(localSteps=value)

    def setOuterMomentum(self, value: float) -> Self:
        """Set the momentum of the mean moves."""
        return self._set(outerMomentum=value)

    def setMaxStaleness(self, value: int) -> Self:
        """Set how far a group of partitions may be ahead, in shares of a pass."""
        return self._set(maxStaleness=value)

    def setCompression(self, value: str) -> Self:
        """Set how what is sent is made small: none, float16, qsgd, top-k or powersgd."""
        return self._set(compression=value)

    def setCompressionShare(self, value: float) -> Self:
        """Set the share of the entries that top-k sends."""
        return self._set(compressionShare=value)

    def setCompressionRank(self, value: int) -> Self:
        """Set the rank of powersgd's factors."""
        return self._set(compressionRank=value)

    def setValidationFraction(self, value: float) -> Self:
        """Set the share of the rows held out to stop by; 0 is none."""
        return self._set(validationFraction=value)

    def setPatience(self, value: int) -> Self:
        """Set after how many passes without a better loss to stop."""
        return self._set(patience=value)

    def setSeed(self, value: int) -> Self:
        """Set the seed of the samples."""
        return self._set(seed=value)

    def _refuse_stochastic(self) -> None:
        """ValueError for params out of their range, and for some that do not go together."""
        below_1 = "a number in [0, 1)", lambda x: 0 <= x < 1
        from_0 = "a number of 0 or more", lambda x: 0 <= x < np.inf
        expected: dict[str, tuple[str, Any]] = {
            "stepSize": ("a number above 0", lambda x: 0 < x < np.inf),
            "momentum": below_1,
            "miniBatchFraction": ("a number in (0, 1]", lambda x: 0 < x <= 1),
            "schedule": (f"one of {SCHEDULES}", SCHEDULES.__contains__),
            "decay": from_0,
            "warmUp": from_0,
            "updates": (f"one of {sgd.UPDATES}", sgd.UPDATES.__contains__),
            "localSteps": from_0,
            "outerMomentum": below_1,
            "maxStaleness": from_0,
            "compression": (f"one of {COMPRESSIONS}", COMPRESSIONS.__contains__),
            "compressionShare": ("a number in (0, 1]", lambda x: 0 < x <= 1),
            "compressionRank": ("1 or more", lambda x: x >= 1),
            "validationFraction": below_1,
            "patience": ("1 or more", lambda x: x >= 1),
        }
        if self.getSolver() == "adam":
            expected["momentum"] = "0 with solver adam", lambda x: x == 0
        if self.getMomentum() == 0:
            expected["nesterov"] = "false without momentum", lambda x: not x
        if (updates := self.getUpdates()) != "local":
            for name in ("localSteps", "outerMomentum"):
                expected[name] = f"0 with {updates} updates", lambda x: x == 0
        if updates == "asynchronous":
            expected["compression"] = "none with asynchronous updates", lambda x: x == "none"
        for name, (words, holds) in expected.items():
            found = self.getOrDefault(name)
            if not holds(found):
                raise ValueError(f"param {name}: expected {words}, found {found!r}")
        if self.getSolver() not in SOLVERS:
            # Not the rate, which gd has too and pyspark.ml's networks take with any solver.
            self._refuse_unused(*expected.keys() - {"stepSize"})

    def _refuse_unused(self, *names: str) -> None:
        """ValueError for params that the solver would not look at, unless they say the default."""
        for name in sorted(names):
            default = self._defaultParamMap[self.getParam(name)]
            found = self.getOrDefault(name)
            if found != default:
                raise ValueError(
                    f"param {name}: expected {default!r} with solver {self.getSolver()!r}, "
                    f"found {found!r}"
                )

    def _stochastic_settings(self, n_parameters: int) -> dict[str, Any]:
        """What :class:`~mllib_ext.optimizers.sgd.StochasticSettings` are made of.

        Parameters
        ----------
        n_parameters : int
            Of one output of a linear predictor: what the rate is by that was not set.
        """
        solver, eta = self.getSolver(), self.getStepSize()
        if not self.isSet("stepSize"):
            eta = ADAM_STEP if solver == "adam" else 1.0 / max(1, n_parameters)
        return {
            "rule_name": "nesterov" if self.getNesterov() else solver,
            "step_size": eta,
            "momentum": self.getMomentum(),
            "mini_batch_fraction": self.getMiniBatchFraction(),
            "schedule": self.getSchedule(),
            "decay": self.getDecay(),
            "warm_up": self.getWarmUp(),
            "updates": self.getUpdates(),
            "local_steps": self.getLocalSteps(),
            "outer_momentum": self.getOuterMomentum(),
            "staleness": self.getMaxStaleness(),
            "compression": self.getCompression(),
            "share": self.getCompressionShare(),
            "rank": self.getCompressionRank(),
            "validation_fraction": self.getValidationFraction(),
            "patience": self.getPatience(),
            "seed": unsigned_seed(self),
        }


class BatchSizeParams(StochasticParams):
    """The rows of a step as a number, beside :attr:`miniBatchFraction`."""

    batchSize: Param[int] = Param(
        Params._dummy(),
        "batchSize",
        "solvers sgd and adam: rows in a step, about; 0 is by miniBatchFraction",
        typeConverter=TypeConverters.toInt,
    )

    def getBatchSize(self) -> int:
        """Rows in a step; 0 is by miniBatchFraction."""
        return self.getOrDefault(self.batchSize)


class BatchSizeEstimator(BatchSizeParams, StochasticEstimator):
    """Setters, checks and settings of an estimator with it."""

    def setBatchSize(self, value: int) -> Self:
        """Set the rows in a step; 0 is by miniBatchFraction."""
        return self._set(batchSize=value)

    def _refuse_stochastic(self) -> None:
        super()._refuse_stochastic()
        size = self.getBatchSize()
        if size < 0:
            raise ValueError(f"param batchSize: expected a number of 0 or more, found {size!r}")
        if size and self.isSet("batchSize") and self.isSet("miniBatchFraction"):
            raise ValueError(
                f"param batchSize: expected 0 where miniBatchFraction is set, found {size!r}"
            )
        if self.getSolver() not in SOLVERS:
            self._refuse_unused("batchSize")

    def _fraction(self, blocks: Blocks) -> float:
        """``miniBatchFraction``, or that of ``batchSize`` rows, of all or of a mean partition."""
        size = self.getBatchSize()
        if not size or self.isSet("miniBatchFraction"):
            return self.getMiniBatchFraction()
        rows: float = blocks.n_rows
        if self.getUpdates() == "local":
            rows /= sum(handle.n_rows > 0 for handle in blocks.handles)
        return min(1.0, size / rows)
