"""Where k-means measures distances: about an origin near the data, or on the unit sphere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mllib_ext.distances import restored, squared_norms, weights_as

if TYPE_CHECKING:
    from mllib_ext.blockfile import Block
    from mllib_ext.blocks import Blocks


@dataclass(frozen=True)
class Space:
    """Where distances are measured.

    Attributes
    ----------
    origin : ndarray, shape (d,)
        Subtracted from rows and centers. Zeros for sparse rows, which it would fill, and where
        that serves as well as the mean.
    unit : bool
        Rows are scaled to length 1, and so are centers: half the squared distance of two of them
        is then their cosine distance.
    """

    origin: np.ndarray
    unit: bool = False

    @property
    def n_features(self) -> int:
        return len(self.origin)

    @property
    def as_is(self) -> bool:
        """Rows stand here as the data have them."""
        return not self.unit and not self.origin.any()

    def placed(self, X: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Dense rows (m, d) as they stand in this space."""
        if self.unit:
            length = np.sqrt(squared_norms(X))  # in float64, where their squares end at 1e308
            return np.divide(X, length[:, None], out=np.empty_like(X) if out is None else out)
        return np.subtract(X, self.origin.astype(X.dtype), out=out)

    def settle(self, centers: np.ndarray) -> np.ndarray:
        """Means of rows (k, d), in the coordinates of the data, as centers of this space."""
        if not self.unit:
            return centers
        length = np.linalg.norm(centers, axis=1, keepdims=True)
        return np.divide(centers, length, out=np.zeros_like(centers), where=length > 0)

    def distance(self, squared: np.ndarray) -> np.ndarray:
        """What the cost adds up, of squared distances here: themselves, or 1 - cosine."""
        return 0.5 * squared if self.unit else squared


def euclidean(blocks: Blocks) -> Space:
    """Squared euclidean distances: about the mean row, as float32 cancels far from the origin.

    About 0 where rows are hardly longer than about their mean: rounding is then at most twice that
    about the mean, and every round spares a copy of the rows.
    """
    total, sums, squares = blocks.sum(moments)
    if not np.isfinite(squares):
        raise ValueError(
            f"{blocks.features.label}: expected numbers whose squares add up to a finite one, "
            "found larger ones"
        )
    mean = sums / total
    if blocks.sparse or mean @ mean <= squares / total / 2:
        return Space(np.zeros_like(mean))
    # As the rows have it: to subtract it from them then costs at most one rounding.
    return Space(mean.astype(blocks.features.dtype).astype(np.float64))


def cosine(blocks: Blocks) -> Space:
    """Cosine distances; ValueError for rows without a direction."""
    zeros, large = blocks.sum(rows_without_direction)
    if large:
        raise ValueError(
            f"{blocks.features.label}: expected numbers whose squares add up to a finite one, "
            f"found larger ones in {large} {'row' if large == 1 else 'rows'}"
        )
    if zeros:
        raise ValueError(
            f"{blocks.features.label}: expected rows of a length above 0 for the cosine distance, "
            f"found {zeros} {'row' if zeros == 1 else 'rows'} of zeros"
        )
    return Space(np.zeros(blocks.n_features), unit=True)


def moments(block: Block) -> tuple[Any, ...]:
    """One block's sums of weights (), of weighted rows (d,) and of their weighted squares ()."""
    w, exponent = weights_as(block.X.dtype, block.w)
    return block.w.sum(), restored(w @ block.X, exponent), block.w @ squared_norms(block.X)


def rows_without_direction(block: Block) -> tuple[Any, ...]:
    """One block's numbers of rows of length 0 and of infinite length, weight or not."""
    squares = squared_norms(block.X)
    return np.count_nonzero(squares == 0), np.count_nonzero(np.isinf(squares))


# By pyspark.ml's names of the distances: the space, and the round that finds it.
SPACES = {"euclidean": (euclidean, moments), "cosine": (cosine, rows_without_direction)}
