r"""The graph of nearest neighbours: an edge from every row to each of the k rows nearest to it.

.. math::

    E = \{(i, j) : j \in \mathrm{knn}(i), \; j \ne i\}, \qquad
    E_\mathrm{mutual} = \{(i, j) \in E : (j, i) \in E\}
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from mllib_ext.columns import quoted
from mllib_ext.knn.nearest_neighbors import NearestNeighbors


def kneighborsGraph(
    df: DataFrame,
    k: int,
    *,
    inputCol: str | Sequence[str],
    idCol: str,
    metric: str = "euclidean",
    radius: float | None = None,
    mutual: bool = False,
    plan: str = "auto",
) -> DataFrame:
    """Edges between rows and their nearest neighbours; no row is its own.

    Parameters
    ----------
    df : DataFrame
    k : int
        Edges from each row, or fewer.
    inputCol : str or list of str
        A vector column, an array column, or a list of numeric columns.
    idCol : str
        Ids, integers or strings, of each row its own.
    metric, radius, plan
        As of :class:`mllib_ext.knn.NearestNeighbors`.
    mutual : bool
        Only edges that go both ways.

    Returns
    -------
    DataFrame
        ``src``, ``dst`` (ids) and ``distance``; both directions of a mutual edge.

    Raises
    ------
    ValueError, TypeError
        As of :meth:`NearestNeighbors.fit`; rows that share an id.

    Examples
    --------
    >>> from mllib_ext.knn import kneighborsGraph
    >>> edges = kneighborsGraph(df, 10, inputCol="features", idCol="id")  # doctest: +SKIP
    """
    estimator = NearestNeighbors(k=k, idCol=idCol, metric=metric, excludeSelf=True, plan=plan)
    estimator.setInputCol(inputCol)
    if radius is not None:
        estimator.setRadius(radius)
    model = estimator.fit(df)
    model.refuse_duplicates("item", df)
    found = model.kneighbors(df, sort_knn_df_by_query_id=False)[2]
    pairs = found.select(
        quoted(f"query_{idCol}").alias("src"), F.explode(F.arrays_zip("indices", "distances"))
    )
    edges = pairs.select(
        "src", F.col("col.indices").alias("dst"), F.col("col.distances").alias("distance")
    )
    if not mutual:
        return edges
    back = edges.select(F.col("dst").alias("src"), F.col("src").alias("dst"))
    return edges.join(back, ["src", "dst"], "left_semi")
