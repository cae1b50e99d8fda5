r"""A smooth function plus one that has no gradient but a proximal operator, :math:`F = f + h`.

What the minimizers of it share. ``f`` is what an objective's callables evaluate; ``h`` is its
``nonsmooth`` part, known to the driver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from mllib_ext.optimizers.line_search import Differentiable
from mllib_ext.penalties import L1Box


class Composite(Differentiable, Protocol):
    """What these optimizers see of an objective."""

    @property
    def nonsmooth(self) -> L1Box | None: ...

    @property
    def along(
        self,
    ) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]: ...


def nonsmooth(objective: Composite, size: int) -> L1Box:
    """The part without a gradient; one of zeros where there is none."""
    return objective.nonsmooth or L1Box.unbounded(0.0, np.zeros(size))


def low_enough(change: Any, slopes: Any, fall: Any, noise: float) -> Any:
    """Whether the objective falls enough on the way to each of several points, shape () or (s,).

    Parameters
    ----------
    change : float or ndarray
        Of the objective.
    slopes : float or ndarray
        The same by the trapezoid rule for ``f``, from its slopes at both ends.
    fall : float or ndarray
        What is asked for, below 0.
    noise : float
        Rounding error of the objective. Near the optimum values no longer tell: there, slopes do
        (Hager & Zhang 2005, eq. 4.1, which this is where ``h`` is 0).
    """
    return np.isfinite(change) & ((change <= fall) | ((change <= noise) & (slopes <= fall)))
