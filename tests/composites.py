"""Objectives with an L1 penalty or bounds, over data in memory, and how to minimise them."""

from __future__ import annotations

from typing import Any

import numpy as np

from arrays import Arrays
from mllib_ext.losses import Logistic, Multinomial, SquaredError
from mllib_ext.objective import Coordinates, Objective
from mllib_ext.optimizers.smooth import minimize
from mllib_ext.penalties import L2, L1Box

ROWS = 240


def composite(X, y, loss=None, w=None, *, reg, alpha=1.0, lower=-np.inf, upper=np.inf) -> Any:
    """The elastic net of ``loss`` on standardised features, bounds on their coefficients."""
    loss = loss or SquaredError()
    d, k = X.shape[1], loss.n_outputs
    scale = X.std(axis=0)
    scale[np.ptp(X, axis=0) == 0] = 0.0
    free = np.full(k, np.inf)
    h = L1Box(
        reg,
        np.append(np.full(d * k, alpha), np.zeros(k)),
        np.append(np.broadcast_to(lower, d * k), -free),
        np.append(np.broadcast_to(upper, d * k), free),
    )
    return Objective(
        Arrays.of(X, y, w, 3),
        loss,
        Coordinates(X.mean(axis=0), scale, k, True),
        L2(reg, (1 - alpha) * np.ones(d)),
        nonsmooth=h,
    )


def features(d=8, seed=0):
    """Correlated columns of several scales, off centre."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((ROWS, d)) @ (np.eye(d) + 0.4 * rng.standard_normal((d, d)))
    return X * 10.0 ** rng.uniform(-1, 1, d) + rng.uniform(-3, 3, d)


def standardised(X):
    return (X - X.mean(axis=0)) / X.std(axis=0)


def signal(X):
    return standardised(X) @ np.resize([1.0, -1.0, 0.5, 0.0, 0.0, 0.2], X.shape[1])


def linear(X):
    return signal(X) + 3 + 0.5 * np.random.default_rng(2).standard_normal(len(X))


def coin(X):
    chance = 1 / (1 + np.exp(-signal(X)))
    return (np.random.default_rng(1).random(len(X)) < chance).astype(float)


def three_classes(X):
    z = standardised(X)[:, :3] + np.random.default_rng(4).gumbel(size=(len(X), 3))
    return z.argmax(axis=1).astype(float)


def lasso():
    return composite(features(), linear(features()), reg=0.1)


def elastic_net():
    return composite(features(), linear(features()), reg=0.2, alpha=0.4)


def logistic_lasso():
    return composite(features(), coin(features()), Logistic(), reg=0.03)


def logistic_net():
    w = np.random.default_rng(5).uniform(0, 3, ROWS)
    return composite(features(), coin(features()), Logistic(), w, reg=0.02, alpha=0.5)


def multinomial_lasso():
    return composite(features(4), three_classes(features(4)), Multinomial(3), reg=0.02)


UNBOUNDED = {
    f.__name__: f for f in (lasso, elastic_net, logistic_lasso, logistic_net, multinomial_lasso)
}


def run(method, problem, callbacks=(), start=None, **settings):
    """Minimise with the problem's own strength unless told otherwise."""
    options = {"max_iter": 500, "tol": 1e-12, "reg_param": problem.penalty.strength} | settings
    v = problem.coordinates.zeros() if start is None else start
    return minimize(method, problem.regularized, v, method.SETTINGS(**options), callbacks)


def centred(problem, v):
    """The parameters with intercepts about 0: several classes' may be shifted together."""
    k = problem.loss.n_outputs
    return np.append(v[:-k], v[-k:] - v[-k:].mean()) if k > 1 else v


def value(problem, v):
    """The whole of the objective."""
    return problem.value_and_gradient(v)[0] + problem.nonsmooth.value(v)
