"""pyspark.ml's own examples, run with this package's classes in place of Spark's."""

import doctest
import importlib
import warnings
from pathlib import Path

import numpy as np
import pyspark
import pytest

DATA = Path(pyspark.__file__).parent / "data" / "mllib"
# Not LinearSVC: its example shows where OWL-QN stands after five iterations (intercept 2.58), which
# is not at the optimum (2.50).
CLASSES = {
    "LogisticRegression": "classification",
    "LinearRegression": "regression",
    "KMeans": "clustering",
    "MultilayerPerceptronClassifier": "classification",
    # Not BisectingKMeans: its example shows the numbers of clusters, which mean nothing.
}
# Where classes are told apart without error nothing fixes the margins of a network: any as large
# will do.
FREE = {"DenseVector([-16.208, 16.344])": "DenseVector([-...])"}


@pytest.mark.parametrize("name", CLASSES)
def test_the_examples_of_a_class_hold_for_its_stand_in(spark, tmp_path, name):
    theirs = importlib.import_module(f"pyspark.ml.{CLASSES[name]}")
    ours = importlib.import_module(f"mllib_ext.{CLASSES[name]}")
    names = {**vars(theirs), "spark": spark, "sc": spark.sparkContext, "temp_path": str(tmp_path)}
    # A model is called after its estimator, or after what the estimator does.
    models = (f"{name}Model", f"{name.removesuffix('Classifier')}ClassificationModel")
    names |= {n: getattr(ours, n) for n in (name, *models) if hasattr(ours, n)}
    text = getattr(theirs, name).__doc__.replace("data/mllib/", f"{DATA}/")
    for shown, as_good in FREE.items():
        text = text.replace(shown, as_good)
    example = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    assert len(example.examples) > 20
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with warnings.catch_warnings(), np.printoptions(legacy="1.13"):  # as where they are tested
        warnings.simplefilter("ignore")  # examples stop early and use what Spark deprecates
        failed, _ = runner.run(example, out=report.append)
    assert not failed, "".join(report)
