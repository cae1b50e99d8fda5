"""What runs in Spark's Python workers is imported there without pyspark.ml and pandas."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import mllib_ext

# Where Spark's parameters, models and evaluators come in: the driver imports these.
OF_THE_DRIVER = {
    "base", "checkpoints", "curves", "figures", "fitting", "kernel_estimator", "kernel_params",
    "linear", "linear_svm", "multilayer_perceptron", "persistence", "plots", "stochastic_params",
    "summaries",
}  # fmt: skip


def modules():
    """The modules of the lower layers, with the mathematics and the stage functions."""
    for package in ("", "neighbors.", "optimizers."):
        place = [f"{path}/{package.rstrip('.')}" for path in mllib_ext.__path__]
        for info in pkgutil.iter_modules(place):
            if not info.ispkg and info.name not in OF_THE_DRIVER:
                yield f"mllib_ext.{package}{info.name}"


def test_stage_functions_bring_neither_pyspark_ml_nor_pandas_into_a_worker():
    names = list(modules())
    assert {"mllib_ext.lloyd", "mllib_ext.neighbors.plans", "mllib_ext.optimizers.sgd"} <= {*names}
    code = (
        "import sys, importlib, pyspark.worker\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    slow = {'pandas', 'pyspark.ml'} & {*sys.modules}\n"
        "    assert not slow, (name, slow)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
