"""One partition's share of a round: stages over whole blocks, and over some of their rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from arrays import Arrays, block
from mllib_ext.partials import Walk, over

RNG = np.random.default_rng(0)


def totals(block):
    return block.X.sum(axis=0), block.w.sum(), block.n


def share(handle, blocks):
    return tuple(map(sum, zip(*map(totals, blocks), strict=True)))


def every_other_row(block):
    return replace(block, X=block.X[::2], w=block.w[::2])


def test_a_stage_over_some_rows_sees_these_alone_block_by_block_or_partition_by_partition():
    sizes = (5, 4, 3)
    blocks = [
        replace(block(RNG.normal(size=(n, 2)), w=RNG.random(n)), partition=i // 2)
        for i, n in enumerate(sizes)
    ]
    rows = np.concatenate([b.X[::2] for b in blocks])
    weight = sum(b.w[::2].sum() for b in blocks)
    for stage in (totals, Walk(share)):
        found = Arrays(blocks).sum(over(every_other_row, stage))
        np.testing.assert_allclose(found[0], rows.sum(axis=0), rtol=1e-14)
        np.testing.assert_allclose(found[1], weight, rtol=1e-14)
        assert found[2] == len(rows) == 7
