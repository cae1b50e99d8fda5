"""The config of a job on nearest neighbours: an index, a join, or a graph."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mllib_ext.job.config.job import JobConfig, RowsOutput
from mllib_ext.job.config.section import Section, TextOrList
from mllib_ext.job.config.source import Source
from mllib_ext.job.problems import Wrong, found, refuse

INDEXED = ("euclidean", "sqeuclidean", "cosine", "inner_product")


class Cells(Section):
    """An index of cells (IVF), for approximate neighbours."""

    targetRecall: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="The share of the true neighbours to find: it chooses nprobe from a curve "
        "that is measured. Default: 0.95.",
    )
    nlist: int | None = Field(
        default=None,
        ge=1,
        description="How many cells. Default: twice the square root of the number of items.",
    )
    nprobe: int | None = Field(
        default=None, ge=1, description="How many cells a query looks at, in place of targetRecall."
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Cells:
        if self.targetRecall is not None and self.nprobe is not None:
            refuse([Wrong(["nprobe"], "nothing beside targetRecall", found(self.nprobe))])
        return self


class NeighborsConfig(JobConfig):
    """A job on nearest neighbours: read, index or search, write."""

    task: Literal["index", "join", "graph"] = Field(
        description="index: build an index of the input for approximate search. join: find the "
        "neighbours of every row of the input. graph: edges from every row of the input to the "
        "others nearest to it."
    )
    features: TextOrList = Field(
        default="features",
        description="A vector or array column, or a list of numeric columns: of all inputs.",
    )
    id: str = Field(
        min_length=1,
        description="A column of ids, whole numbers or text: of all inputs. input.derive makes "
        "one: 'monotonically_increasing_id()'.",
    )
    k: int = Field(default=10, ge=1, description="How many neighbours.")
    metric: Literal["euclidean", "sqeuclidean", "cosine", "inner_product", "manhattan"] = Field(
        default="euclidean", description="The distance. An index takes all but manhattan."
    )
    radius: float | None = Field(
        default=None,
        description="Only neighbours up to this distance (inner_product: from this product on). "
        "Not with an index.",
    )
    items: list[Source] | None = Field(
        default=None,
        min_length=1,
        description="Of a join: what neighbours are looked for among. Default: the input itself, "
        "where no row is its own neighbour.",
    )
    index: str | None = Field(
        default=None,
        min_length=1,
        description="Of a join: an index that an earlier job wrote, in place of items.",
    )
    filter: str | None = Field(
        default=None,
        min_length=1,
        description="SQL over the columns of the items: only those that meet it are neighbours. "
        "They are filtered before the search. Of a join.",
    )
    cells: Cells = Field(
        default=Cells(), description="Of an index: how many cells, and how many to look at."
    )
    mutual: bool = Field(default=False, description="Of a graph: only edges that go both ways.")
    output: RowsOutput = Field(
        default=RowsOutput(), description="Where the index, the pairs or the edges go, and how."
    )

    @field_validator("items", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _consistent(self) -> NeighborsConfig:
        wrongs = [
            Wrong([key], f"no such key with task: {self.task}", found(getattr(self, key)))
            for key, task in (
                ("items", "join"),
                ("index", "join"),
                ("filter", "join"),
                ("mutual", "graph"),
                ("cells", "index"),
            )
            if self.task != task and getattr(self, key) != type(self).model_fields[key].default
        ]
        if self.items is not None and self.index is not None:
            wrongs.append(Wrong(["index"], "nothing beside items", found(self.index)))
        if self.task == "index" or self.index is not None:
            if self.radius is not None:
                wrongs.append(Wrong(["radius"], "nothing with an index", found(self.radius)))
            if self.metric not in INDEXED:
                what = f"one of {', '.join(INDEXED)} with an index"
                wrongs.append(Wrong(["metric"], what, found(self.metric)))
        refuse(wrongs)
        return self
