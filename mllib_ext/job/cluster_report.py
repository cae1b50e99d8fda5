"""How large the clusters are that rows were assigned to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mllib_ext.columns import quoted


def cluster_report(predictions: DataFrame, columns: Mapping[str, str]) -> dict[str, Any]:
    """Rows and, where there are weights, weight of every cluster that has any: one Spark job.

    Parameters
    ----------
    predictions : DataFrame
        What a model's ``transform`` gave.
    columns : mapping of str to str
        ``predictionCol`` and, where there is one, ``weightCol``.

    Returns
    -------
    dict
        ``labels``, ``sizes`` and perhaps ``weights``, one value a cluster.
    """
    weight = columns.get("weightCol")
    counts = [F.count("*").alias("rows")]
    counts += [F.sum(quoted(weight).cast("double")).alias("weight")] if weight else []
    grouped = predictions.groupBy(quoted(columns["predictionCol"]).alias("label"))
    rows = sorted(grouped.agg(*counts).collect(), key=lambda row: row["label"])
    report = {"labels": [row["label"] for row in rows], "sizes": [row["rows"] for row in rows]}
    return report | ({"weights": [row["weight"] for row in rows]} if weight else {})
