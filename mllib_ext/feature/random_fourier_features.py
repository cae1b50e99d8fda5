r"""Random Fourier features (Rahimi & Recht 2007, algorithm 1): the rbf kernel in expectation.

.. math::

    z(x) = \sqrt{2 / m} \, \cos(x W + b), \qquad
    W_{jl} \sim N(0, 2 \gamma), \quad b_l \sim U(0, 2 \pi)

:math:`E \, z(x) \cdot z(x') = e^{-\gamma \|x - x'\|^2}`, with a standard deviation of at most
:math:`1 / \sqrt{m}` for m components. The map does not look at the data beyond the scale of
``gamma``: it is cheaper than the one of :mod:`mllib_ext.feature.nystroem` for as many components,
and needs more of them for the same accuracy (Yang et al. 2012).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from pyspark import keyword_only

from mllib_ext.base import frozen, unsigned_seed
from mllib_ext.blocks import Blocks
from mllib_ext.columns import Matrix
from mllib_ext.feature.feature_map import FeatureMap, FeatureMapModel, FeatureMapParams
from mllib_ext.kernel_params import HasGamma, SetsGamma
from mllib_ext.moments import merge, moments


class RandomFourierFeaturesModel(FeatureMapModel, HasGamma, FeatureMapParams):
    """Model fitted by :class:`RandomFourierFeatures`.

    Parameters
    ----------
    weights : ndarray, shape (d, m)
    offsets : ndarray, shape (m,)
    gamma_value : float
    """

    _arrays = ("weights", "offsets", "gamma_value")

    def __init__(self, weights: Any, offsets: Any, gamma_value: Any) -> None:
        super().__init__()
        self._weights, self._offsets = frozen(weights), frozen(offsets)
        self._gamma_value = frozen(gamma_value)

    @property
    def weights(self) -> np.ndarray:
        """The random directions W, scikit-learn's ``random_weights_``: (d, m), read-only."""
        return self._weights

    @property
    def offsets(self) -> np.ndarray:
        """The random phases b, scikit-learn's ``random_offset_``: (m,), read-only."""
        return self._offsets

    @property
    def gammaValue(self) -> float:
        """The coefficient of the kernel as a number, whatever rule gave it."""
        return float(self._gamma_value)

    @property
    def numFeatures(self) -> int:
        """Number of features that go in."""
        return len(self._weights)

    @property
    def numComponents(self) -> int:
        """Number of features that come out."""
        return len(self._offsets)

    @property
    def _predictor(self) -> Any:
        return partial(waves, self._weights, self._offsets)


def waves(weights: np.ndarray, offsets: np.ndarray, X: Matrix) -> np.ndarray:
    """The map (n, m) of rows X (n, d)."""
    Z: np.ndarray = X @ weights
    Z += offsets
    np.cos(Z, out=Z)
    Z *= np.sqrt(2.0 / len(offsets))
    return Z


class RandomFourierFeatures(FeatureMap, SetsGamma, FeatureMapParams):
    """Random features of the rbf kernel, scikit-learn's ``RBFSampler``; see
    :mod:`mllib_ext.feature.random_fourier_features`.

    Parameters
    ----------
    inputCol : str
        A vector or array column. Scale features first.
    inputCols : list of str
        Numeric columns in place of it.
    outputCol : str
    outputType : {"vector", "array<float>", "array<double>"}
        Vectors for every estimator of Spark's; arrays, which the estimators of this package take as
        well, cross to Python faster. All is computed in float64; ``array<float>`` is rounded.
    gamma : {"scale", "auto"} or float
        ``scale`` is 1 / (d var(X)), ``auto`` 1 / d.
    nComponents : int
    seed : int
        The map depends on it, the number of features and gamma alone.

    Raises
    ------
    ValueError
        From ``fit``: a parameter out of range; what :meth:`mllib_ext.blocks.Blocks.of` refuses.

    Examples
    --------
    >>> from mllib_ext.feature import RandomFourierFeatures
    >>> mapped = RandomFourierFeatures(nComponents=500).fit(df).transform(df)  # doctest: +SKIP
    """

    _input_kwargs: dict[str, Any]

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "features",
        outputCol: str = "mapped_features",
        gamma: str | float = "scale",
        nComponents: int = 100,
        outputType: str = "vector",
        seed: int = 0,
        inputCols: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def _refuse_params(self) -> None:
        super()._refuse_params()
        self._refuse_gamma()

    def _fit_blocks(self, blocks: Blocks) -> RandomFourierFeaturesModel:
        weight, _, _, mean, scatter = blocks.reduce(moments, merge)
        gamma = self._resolved_gamma(mean, scatter, weight)
        d, m = blocks.n_features, self.getNComponents()
        rng = np.random.default_rng(unsigned_seed(self))
        weights = np.sqrt(2.0 * gamma) * rng.standard_normal((d, m))
        offsets = rng.uniform(0.0, 2.0 * np.pi, m)
        model = RandomFourierFeaturesModel(weights, offsets, gamma)
        return model._trained(self, None, "closed_form")
