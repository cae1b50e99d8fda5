r"""A bundle method for regularised risks (BMRM: Teo, Vishwanathan, Smola & Le 2010, algorithm 1).

An iteration finds the minimum of the cutting planes so far, which is a quadratic program of the
size of their number, and takes new planes on the way there from the best point, as OCAS does (Franc
& Sonnenburg 2009), at a few steps that one round evaluates together. The gap between the best
objective and that minimum is a certificate, and what stops the run. For parameters too many for
a Hessian; where there are few, :mod:`mllib_ext.optimizers.interior_point` needs far fewer rounds.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from mllib_ext.optimizers.certificate import STOPPING as STOPPING
from mllib_ext.optimizers.certificate import Certified
from mllib_ext.optimizers.cuts import Cuts
from mllib_ext.optimizers.smooth import SmoothSettings

SETTINGS = SmoothSettings
# Shares of the way to the minimum of the planes, which is too far while they are few.
STEPS = np.array([1.0, 0.5, 0.2, 0.05])
MEMORY = 200


class Risk(Protocol):
    """What this optimizer sees of a risk: :class:`mllib_ext.interior.Risk`."""

    def subgradients(self, points: np.ndarray) -> tuple[np.ndarray, list[Any]]: ...

    def far_cuts(self) -> list[Any]: ...

    def curvature(self) -> np.ndarray: ...

    def flat(self, coefs: np.ndarray, intercepts: np.ndarray) -> np.ndarray: ...


def start(risk: Risk, v: np.ndarray, settings: SmoothSettings) -> Certified:
    """The planes at the starting point, and those that bound the intercepts."""
    state = Certified(np.inf, cuts=Cuts(tuple(risk.far_cuts())))
    return reached(risk, state, v[:, None])


def step(risk: Risk, state: Certified, settings: SmoothSettings) -> Certified:
    """The planes between the best point and the minimum of the planes."""
    assert state.bound is not None
    p = risk.flat(state.bound.coefs, state.bound.intercepts) - state.v
    return reached(risk, state, state.v[:, None] + np.multiply.outer(p, STEPS))


def reached(risk: Risk, state: Certified, points: np.ndarray) -> Certified:
    """The state after the planes at these points."""
    values, cuts = risk.subgradients(points)
    best = int(values.argmin())
    return state.met(values[best], points[:, best]).with_cuts(risk.curvature(), cuts, MEMORY)
