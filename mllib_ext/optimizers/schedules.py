r"""Learning-rate schedules: the rate of a step by how far a run has come.

With :math:`\eta_0` the first rate, t the steps and p the passes so far, P all passes:

========  ====================================================================================
constant  :math:`\eta_0`
inverse   :math:`\eta_0 / (1 + \lambda \eta_0 t)` (Bottou 2012)
cosine    :math:`\frac12 \eta_0 (1 + \cos(\pi p / P))` (Loshchilov & Hutter 2017, eq. 5)
step      :math:`\eta_0 / 10^{\lfloor 3 p / P \rfloor}`: a tenth after each third of the passes
========  ====================================================================================

and each of them times :math:`\min(1, p / p_0)` over ``warm_up`` passes :math:`p_0` (Goyal et al.
2017, section 2.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEDULES = ("constant", "inverse", "cosine", "step")


@dataclass(frozen=True)
class Schedule:
    """The rate by steps and passes.

    Attributes
    ----------
    name : str
        One of :data:`SCHEDULES`.
    eta0 : float
    decay : float
        :math:`\\lambda` of ``inverse``.
    n_passes : int
        P, above 0.
    warm_up : float
        In passes; 0 is without.
    """

    name: str
    eta0: float
    decay: float = 0.0
    n_passes: int = 1
    warm_up: float = 0.0

    def rate(self, steps: float, passes: float) -> float:
        """Of the step after ``steps`` others; ``passes`` is its middle, so that none is 0."""
        eta0, share = self.eta0, min(1.0, passes / self.n_passes)
        eta = {
            "constant": eta0,
            "inverse": eta0 / (1.0 + self.decay * eta0 * steps),
            "cosine": 0.5 * eta0 * (1.0 + math.cos(math.pi * share)),
            "step": eta0 / 10.0 ** min(2, int(3.0 * share)),
        }[self.name]
        return eta * min(1.0, passes / self.warm_up) if self.warm_up > 0 else eta
