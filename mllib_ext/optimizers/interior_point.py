r"""A primal-dual interior-point method with a certificate, for piecewise linear risks.

Each round gives a cutting plane of the risk. The planes of a run prove a lower bound of the
regularised risk (:mod:`mllib_ext.optimizers.cuts`), the best point so far is an upper one, and the
run ends where the gap between them is within tolerance: the certificate of bundle methods (Teo et
al. 2010; Franc & Sonnenburg 2009). Those take planes by subgradients and need hundreds of rounds
where the penalty is weak. Here the planes are those of the interior point's dual variables, which
need about 15: docs/decisions/0009-hinge-by-interior-point.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from mllib_ext.optimizers import newton
from mllib_ext.optimizers.certificate import STOPPING as STOPPING
from mllib_ext.optimizers.certificate import Certified
from mllib_ext.optimizers.cuts import Cuts
from mllib_ext.optimizers.smooth import SmoothSettings

SETTINGS = SmoothSettings
# What each step makes of mu. With less, rows that were far from their borders run into them. After
# a step that raised mu the root of it, and so on, until such steps are taken as they are.
CENTRING, RECENTRING_ENDS = 0.2, 0.97
# Points that rows are replayed along. After so many the run starts afresh where it stands.
MEMORY = 30
# The last one nearly proves the bound alone; the others make up for what its intercepts lack.
CUTS = 20
LEAST = 1e-15  # share of the first mu, below which rounding rules


class Risk(Protocol):
    """What this optimizer sees of a risk: :class:`mllib_ext.interior.InteriorPoint`."""

    @property
    def mu(self) -> float: ...

    def evaluate(self, path: np.ndarray, mus: np.ndarray) -> Any: ...

    def far_cuts(self) -> list[Any]: ...

    def curvature(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Interior(Certified):
    """A certified point, and the path that the rows are replayed along.

    Attributes
    ----------
    path : ndarray, shape (size, T)
    mus : ndarray, shape (T,)
    end : Evaluation
        Of the end of the path.
    centring : float
        What the next step makes of mu.
    """

    path: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    mus: np.ndarray = field(default_factory=lambda: np.empty(0))
    end: Any = None
    centring: float = CENTRING


def start(risk: Risk, v: np.ndarray, settings: SmoothSettings) -> Interior:
    """Evaluate the starting point, and take the cuts that bound the intercepts."""
    state = Interior(np.inf, cuts=Cuts(tuple(risk.far_cuts())))
    return reached(risk, state, v[:, None], np.array([risk.mu]))


def step(risk: Risk, state: Interior, settings: SmoothSettings) -> Interior:
    """One Newton step towards a smaller mu, or none where it raises mu.

    Such a step went beyond what the equations hold for as lines, as it may where rows can be told
    apart without error and the penalty is slight. Its cut and its value count, and the next one
    aims at a mu nearer to the present one: it leads back to the middle of the borders first.
    """
    end, v = state.end, state.path[:, -1]
    mu = state.centring * end.complementarity
    if mu < LEAST * risk.mu:
        return replace(state, stalled=True)
    p = -newton.solve(end.hessian, end.gradient + mu * end.by_mu)
    if len(state.mus) >= MEMORY:
        path, mus = (v + p)[:, None], np.array([mu])
    else:
        path, mus = np.column_stack([state.path, v + p]), np.append(state.mus, mu)
    after = reached(risk, state, path, mus, 1.0)
    if after.end.complementarity > end.complementarity and state.centring < RECENTRING_ENDS:
        centring = math.sqrt(state.centring)
        return replace(
            after, step_size=0.0, path=state.path, mus=state.mus, end=end, centring=centring
        )
    return replace(after, centring=max(CENTRING, state.centring**2))


def reached(
    risk: Risk, state: Interior, path: np.ndarray, mus: np.ndarray, size: float = 0.0
) -> Interior:
    """The state at the end of a path."""
    end = risk.evaluate(path, mus)
    state = state.met(end.value, path[:, -1]).with_cuts(risk.curvature(), [end.cut], CUTS)
    return replace(state, step_size=size, path=path, mus=mus, end=end)
