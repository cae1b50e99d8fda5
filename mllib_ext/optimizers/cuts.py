r"""Cutting planes of a convex risk, and the lower bound that they prove.

Lines :math:`a_t \cdot u + c_t \cdot b + o_t \le R(u, b)` bound the regularised risk with free
intercepts b from below (Teo et al. 2010, section 2.3; Franc & Sonnenburg 2009):

.. math::

    \min_{u, b} \; R(u, b) + \tfrac12 u \cdot S u \;\ge\;
    \max_{\tau \ge 0} \; o \cdot \tau - \tfrac12 \tau \cdot A S^{-1} A^T \tau
    \quad \text{with} \quad \textstyle\sum_t \tau_t = 1, \; \sum_t \tau_t c_t = 0

Any such :math:`\tau` proves its value. The quadratic program has a variable for each cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.optimize import nnls


class Line(Protocol):
    """A cut: slopes (g, p) and (g, q), offsets (g,), by groups with a bound of their own."""

    @property
    def slopes(self) -> np.ndarray: ...

    @property
    def shifts(self) -> np.ndarray: ...

    @property
    def offsets(self) -> np.ndarray: ...


class Bound(NamedTuple):
    """What cuts prove.

    Attributes
    ----------
    value : float
    coefs : ndarray, shape (g, p)
        The minimum of the regularised cuts: coefficients by groups,
    intercepts : ndarray, shape (g, q)
        and intercepts.
    """

    value: float
    coefs: np.ndarray
    intercepts: np.ndarray


@dataclass(frozen=True)
class Cuts:
    """Cuts of one risk, which is the sum of one for each group.

    Attributes
    ----------
    first : tuple of Line
        Kept, as they make a bound finite.
    last : tuple of Line
        The latest ones, oldest first.
    """

    first: tuple[Any, ...] = ()
    last: tuple[Any, ...] = ()

    def joined(self, cuts: Sequence[Line], memory: int) -> Cuts:
        """With some more; of more than ``memory`` the oldest go."""
        return Cuts(self.first, (*self.last, *cuts)[-memory:])

    def bound(self, curvature: np.ndarray) -> Bound:
        """What no value of the regularised risk is below, and where the cuts have that value.

        Parameters
        ----------
        curvature : ndarray, shape (p,)
            The diagonal of S. Where it is 0, so are all slopes.
        """
        lines = (*self.first, *self.last)
        inverse = np.divide(1.0, curvature, out=np.zeros_like(curvature), where=curvature > 0)
        value, u, b = 0.0, [], []
        for group in range(len(lines[0].offsets)):
            A = np.array([line.slopes[group] for line in lines])  # (m, p)
            shifts = np.array([line.shifts[group] for line in lines])  # (m, q)
            offsets = np.array([line.offsets[group] for line in lines])
            proved, t, intercepts = largest((A * inverse) @ A.T, offsets, shifts)
            value += proved
            u.append(-inverse * (t @ A))
            b.append(intercepts)
        return Bound(value, np.array(u), np.array(b))


def largest(Q: np.ndarray, o: np.ndarray, C: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The maximum of ``o @ t - t @ Q @ t / 2`` for ``t >= 0, sum(t) = 1, t @ C = 0``.

    By an active set (Nocedal & Wright 2006, algorithm 16.3). Returned with ``t`` and the
    intercepts (q,), which are the multipliers of the last constraint; minus infinity where no ``t``
    meets them.

    Parameters
    ----------
    Q : ndarray, shape (m, m)
        Semidefinite.
    o : ndarray, shape (m,)
    C : ndarray, shape (m, q)
    """
    m = len(o)
    E = np.column_stack([np.ones(m), C])  # (m, 1 + q)
    t, residual = nnls(E.T, np.eye(E.shape[1])[0])
    if residual > 1e-10:
        return -np.inf, t, np.zeros(C.shape[1])
    first, free = t, t > 0
    unit = max(float(np.abs(o).max()), 1e-300)
    ridge = np.diag(1e-12 * Q.diagonal() + 1e-15 * unit)  # lines that coincide leave Q singular
    multipliers = np.zeros(E.shape[1])
    for _ in range(10 * m):
        r = o - Q @ t
        p, multipliers = _towards(Q + ridge, r, E, free, unit)
        ahead = t + p
        if (ahead >= 0).all():
            t = ahead
            reduced = np.where(free, -np.inf, (o - Q @ t) - E @ multipliers)
            if reduced.max() <= 1e-12 * unit:
                break
            free[reduced.argmax()] = True
            continue
        steps = np.divide(t, -p, out=np.full(m, np.inf), where=p < 0)
        hit = int(steps.argmin())
        t = np.maximum(t + steps[hit] * p, 0.0)
        t[hit], free[hit] = 0.0, False
    if np.abs(t @ E - np.eye(E.shape[1])[0]).max() > 1e-9:
        t = first
    return float(o @ t - 0.5 * t @ Q @ t), t, -multipliers[1:]


def _towards(
    Q: np.ndarray, r: np.ndarray, E: np.ndarray, free: np.ndarray, unit: float
) -> tuple[np.ndarray, np.ndarray]:
    """The move (m,) to the maximum over the free variables alone, and multipliers (1 + q,)."""
    f, q = np.flatnonzero(free), E.shape[1]
    scale = 1.0 / np.sqrt(np.maximum(Q.diagonal()[f], unit))  # steep lines meet flat ones
    K = np.zeros((len(f) + q, len(f) + q))
    K[: len(f), : len(f)] = Q[np.ix_(f, f)] * np.outer(scale, scale)
    K[: len(f), len(f) :] = scale[:, None] * E[f]
    K[len(f) :, : len(f)] = K[: len(f), len(f) :].T
    solution = np.linalg.lstsq(K, np.append(scale * r[f], np.zeros(q)), rcond=1e-15)[0]
    p = np.zeros(len(r))
    p[f] = scale * solution[: len(f)]
    return p, solution[len(f) :]
