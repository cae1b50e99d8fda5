"""Where PyTorch is not installed: its estimator can be made and saved, and says what is missing."""

from __future__ import annotations

import sys

import pytest

from mllib_ext.torch import TorchEstimator


def test_a_fit_without_pytorch_names_the_extra_that_brings_it(spark, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    df = spark.createDataFrame([([1.0], 0.0)], "features array<float>, label double")
    estimator = TorchEstimator(module="torch.nn.Linear", moduleArgs={"in_features": 1})
    with pytest.raises(ImportError, match=r"pip install 'mllib_ext\[torch\]'"):
        estimator.fit(df)
