"""Parameters of estimators with a kernel (:mod:`mllib_ext.kernels`): which one, and its numbers."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from pyspark.ml.param import Param, Params, TypeConverters

from mllib_ext.kernels import KERNELS, Kernel, scale_gamma


def to_gamma(value: Any) -> str | float:
    """The name of a rule, or a number."""
    return value if isinstance(value, str) else TypeConverters.toFloat(value)


class HasGamma(Params):
    """The coefficient of a kernel: a rule or a number."""

    gamma: Param[Any] = Param(
        Params._dummy(),
        "gamma",
        "coefficient of rbf, poly and sigmoid: scale (1 / (features * variance)), auto "
        "(1 / features) or a number above 0",
        to_gamma,
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(gamma="scale")

    def getGamma(self) -> str | float:
        """The coefficient of the kernel: a rule or a number."""
        gamma: str | float = self.getOrDefault(self.gamma)
        return gamma

    def _refuse_gamma(self) -> None:
        gamma = self.getGamma()
        if gamma not in ("scale", "auto") and not (isinstance(gamma, float) and 0 < gamma < np.inf):
            raise ValueError(
                f"param gamma: expected scale, auto or a number above 0, found {gamma!r}"
            )

    def _resolved_gamma(self, mean: np.ndarray, scatter: np.ndarray, weight: float) -> float:
        """Gamma as a number, by the moments (d,) of rows that weigh so much together."""
        gamma, d = self.getGamma(), len(mean)
        if gamma == "scale":
            return scale_gamma(float(scatter.sum() / (weight * d) + mean.var()), d)
        return gamma if isinstance(gamma, float) else 1.0 / d


class HasKernel(HasGamma):
    """A kernel."""

    kernel: Param[str] = Param(
        Params._dummy(), "kernel", "rbf, linear, poly or sigmoid", TypeConverters.toString
    )
    degree: Param[int] = Param(
        Params._dummy(), "degree", "degree of the poly kernel", TypeConverters.toInt
    )
    coef0: Param[float] = Param(
        Params._dummy(), "coef0", "constant of poly and sigmoid", TypeConverters.toFloat
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(kernel="rbf", degree=3, coef0=0.0)

    def getKernel(self) -> str:
        """The kernel."""
        return self.getOrDefault(self.kernel)

    def getDegree(self) -> int:
        """The degree of the poly kernel."""
        return self.getOrDefault(self.degree)

    def getCoef0(self) -> float:
        """The constant of poly and sigmoid."""
        return self.getOrDefault(self.coef0)

    def _kernel(self, gamma: float) -> Kernel:
        return Kernel(self.getKernel(), gamma, self.getDegree(), self.getCoef0())

    def _refuse_kernel(self) -> None:
        """A ValueError for a kernel or one of its numbers out of range."""
        if self.getKernel() not in KERNELS:
            raise ValueError(f"param kernel: expected one of {KERNELS}, found {self.getKernel()!r}")
        self._refuse_gamma()
        if not np.isfinite(self.getCoef0()):
            raise ValueError(f"param coef0: expected a finite number, found {self.getCoef0()!r}")
        if not self.getDegree() >= 1:
            raise ValueError(f"param degree: expected 1 or more, found {self.getDegree()!r}")


class SetsGamma(HasGamma):
    """For estimators: a model's gamma is that of its fit."""

    def setGamma(self, value: str | float) -> Self:
        """Set the coefficient of the kernel: scale, auto or a number."""
        return self._set(gamma=value)


class SetsKernel(SetsGamma, HasKernel):
    """For estimators: a model's kernel is that of its fit."""

    def setKernel(self, value: str) -> Self:
        """Set the kernel: rbf, linear, poly or sigmoid."""
        return self._set(kernel=value)

    def setDegree(self, value: int) -> Self:
        """Set the degree of the poly kernel."""
        return self._set(degree=value)

    def setCoef0(self, value: float) -> Self:
        """Set the constant of poly and sigmoid."""
        return self._set(coef0=value)
