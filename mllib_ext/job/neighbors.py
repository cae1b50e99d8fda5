"""A job on nearest neighbours from its config to its result: read, index or search, write."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from pyspark.errors import AnalysisException, ParseException
from pyspark.sql import DataFrame, Observation, SparkSession
from pyspark.sql import functions as F

from mllib_ext import storage
from mllib_ext.columns import quoted
from mllib_ext.job import inputs, outputs, report
from mllib_ext.job.config import NeighborsConfig
from mllib_ext.job.errors import first_line
from mllib_ext.job.rows import described
from mllib_ext.job.summary import output_line
from mllib_ext.knn import (
    ApproximateNearestNeighbors,
    ApproximateNearestNeighborsModel,
    NearestNeighbors,
    kneighborsGraph,
)

logger = logging.getLogger(__name__)

MOST_RANKS = 100  # whose mean distance is told


def neighbors(spark: SparkSession, config: NeighborsConfig) -> str:
    """Run a job on nearest neighbours. The summary for its user.

    Raises
    ------
    FileExistsError
        The output exists: before anything is read.
    FileNotFoundError, ValueError, TypeError
        No index or no input there; columns or rows that cannot be used.
    """
    with outputs.output_directory(config.output) as directory:
        data = inputs.read(spark, config.input)
        logger.info("%s of %s", config.task, described(config.input))
        began = time.perf_counter()
        model = None
        if config.task == "index":
            model, found, line = _index(data, config, directory)
        else:
            edges, found = (
                _join(spark, data, config) if config.task == "join" else (_graph(data, config), {})
            )
            found |= _write(edges, config, directory)
            line = f"{found['rows']:,} rows"
        seconds = time.perf_counter() - began
        head = {"name": config.name, "task": config.task, "k": config.k}
        result = {**head, **found, "seconds": seconds}
        outputs.write_report(directory, config, result)
        report.write(directory, partial(report.neighbors, spark, config, result, model))
    where = outputs.MODEL if config.task == "index" else outputs.NEIGHBORS
    return f"{config.name}: {line} in {seconds:.1f} s\n\n{output_line(config)}/{where}"


def _index(
    data: DataFrame, config: NeighborsConfig, directory: str
) -> tuple[ApproximateNearestNeighborsModel, dict[str, Any], str]:
    """Build and save an index: the index, what is reported of it, and in words."""
    cells = config.cells
    given = {"nlist": cells.nlist, "nprobe": cells.nprobe}
    estimator = ApproximateNearestNeighbors(k=config.k, idCol=config.id, metric=config.metric)
    estimator.setInputCol(config.features)
    estimator.setAlgoParams({key: value for key, value in given.items() if value is not None})
    if cells.targetRecall is not None:
        estimator.setTargetRecall(cells.targetRecall)
    model = estimator.fit(data)
    model.save(f"{directory}/{outputs.MODEL}")
    compared, recall = model.recallCurve.at(model.nprobe)
    found = {
        "rows": model.numItems,
        "features": model.numFeatures,
        "nlist": model.nlist,
        "nprobe": model.nprobe,
        "recall": recall,
        "compared": compared,
        "curve": model.recallCurve.as_json(),
    }
    line = (
        f"{model.numItems:,} rows in {model.nlist:,} cells; a query looks at {model.nprobe} of "
        f"them, {compared:.2%} of the rows, and finds {recall:.1%} of its {config.k} neighbours"
    )
    return model, found, line


def _join(
    spark: SparkSession, data: DataFrame, config: NeighborsConfig
) -> tuple[DataFrame, dict[str, Any]]:
    """``query``, ``item``, ``rank`` (from 1) and ``distance``, and what is reported of the search.

    A query without neighbours has no row.
    """
    told: dict[str, Any] = {}
    if config.index is not None:
        model: Any = _loaded(config.index)
        model.setK(config.k)
        if config.filter is not None:
            model = _filtered(model, config.filter)
        told["nprobe"] = model.nprobe
        model.setInputCol(config.features).setIdCol(config.id)
    else:
        items = inputs.read(spark, config.items) if config.items is not None else data
        items = _filtered(items, config.filter) if config.filter is not None else items
        alone = config.items is None
        estimator = NearestNeighbors(
            k=config.k, idCol=config.id, metric=config.metric, excludeSelf=alone
        )
        estimator.setInputCol(config.features)
        if config.radius is not None:
            estimator.setRadius(config.radius)
        model = estimator.fit(items)
        told["plan"] = model.explain(data).splitlines()
    found = model.kneighbors(data, sort_knn_df_by_query_id=False)[2]
    pairs = found.select(
        quoted(f"query_{config.id}").alias("query"),
        F.posexplode(F.arrays_zip("indices", "distances")).alias("place", "pair"),
    )
    columns = {"item": F.col("pair.indices"), "rank": F.col("place") + 1}
    columns["distance"] = F.col("pair.distances")
    return pairs.select("query", *[c.alias(name) for name, c in columns.items()]), told


def _filtered(items: Any, condition: str) -> Any:
    """Items or an index of them, restricted; ValueError for SQL that does not fit them."""
    try:
        return items.where(condition)
    except (AnalysisException, ParseException) as error:
        raise ValueError(
            f"filter: expected SQL over the columns of the items, found {condition!r}: "
            f"{first_line(error)}"
        ) from None


def _loaded(path: str) -> ApproximateNearestNeighborsModel:
    names = storage.names(path)
    if names is not None and outputs.MODEL in names:
        path = f"{path}/{outputs.MODEL}"
        names = storage.names(path)
    if names is None or "metadata" not in names:
        raise FileNotFoundError(
            f"index: expected the result of a job with task: index, found none at "
            f"{storage.qualified(path)}"
        )
    return ApproximateNearestNeighborsModel.load(path)


def _graph(data: DataFrame, config: NeighborsConfig) -> DataFrame:
    """``src``, ``dst`` and ``distance``."""
    return kneighborsGraph(
        data,
        config.k,
        inputCol=config.features,
        idCol=config.id,
        metric=config.metric,
        radius=config.radius,
        mutual=config.mutual,
    )


def _write(rows: DataFrame, config: NeighborsConfig, directory: str) -> dict[str, Any]:
    """Write rows; how many there were and, of a join, the mean distance by rank."""
    counted, output = Observation(), config.output
    ranks = range(1, min(config.k, MOST_RANKS) + 1) if "rank" in rows.columns else ()
    far = [F.avg(F.when(F.col("rank") == r, F.col("distance"))).alias(str(r)) for r in ranks]
    observed = rows.observe(counted, F.count("*").alias("rows"), *far)
    observed = observed.coalesce(output.files) if output.files is not None else observed
    writer = observed.write.format(output.format).options(**output.options)
    writer.save(f"{directory}/{outputs.NEIGHBORS}")
    found = counted.get
    distances = {"distances": [found[str(r)] for r in ranks]} if ranks else {}
    return {"rows": int(found["rows"]), **distances}
