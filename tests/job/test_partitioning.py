"""Groups in the emptiest partition: no fuller than Graham's bound."""

import numpy as np
import pytest

from mllib_ext.job.partitioning import emptiest_first


@pytest.mark.parametrize("seed", range(5))
def test_the_fullest_partition_is_within_grahams_bound_of_the_least_possible(seed):
    rng = np.random.default_rng(seed)
    sizes = np.sort(rng.zipf(1.6, 200).clip(max=1000))[::-1]
    places = np.array(emptiest_first(sizes.tolist(), 7))
    filled = np.bincount(places, weights=sizes, minlength=7)
    least = max(sizes[0], sizes.sum() / 7)  # no way of dividing them does better
    assert filled.max() <= (4 / 3 - 1 / 21) * least
    assert filled.sum() == sizes.sum()


def test_ties_go_to_the_first():
    assert emptiest_first([3, 3, 2, 2, 2], 2) == [0, 1, 0, 1, 0]
