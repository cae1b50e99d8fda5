"""The page ``report.html`` of each job: what was done to what, how good it is, how to go on.

Its numbers are those of ``metrics.json``, from the same mapping. A page that cannot be made is one
warning: a result that took hours is not lost for it.
"""

from __future__ import annotations

import datetime
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.types import StructType

from mllib_ext import figures, storage
from mllib_ext.figures import Figure
from mllib_ext.job import outputs, yamlfile
from mllib_ext.job.config import (
    EvaluateConfig,
    JobConfig,
    NeighborsConfig,
    PredictConfig,
    PrepareConfig,
    TrainConfig,
    TuneConfig,
)
from mllib_ext.job.config.section import listed
from mllib_ext.job.metrics import METRICS
from mllib_ext.job.rows import described
from mllib_ext.job.scores import Measured
from mllib_ext.job.summary import CANDIDATES_SHOWN, loading
from mllib_ext.monitor.directory import run_paths
from mllib_ext.monitor.events import params_of, versions
from mllib_ext.monitor.run import read_run
from mllib_ext.optimizers.loop import Record
from mllib_ext.plain import plain
from mllib_ext.report import Page, Section, Table, render

logger = logging.getLogger(__name__)

Parts = list[tuple[str, Callable[[], Section | None]]]
# Of the values of a parameter or a list of columns: more is in the config, which is there too.
LONGEST = 300
# Of a table: a page is read by people.
MOST_ROWS = 100


def write(directory: str, make: Callable[[], Page]) -> None:
    """Write the page beside the other results; one warning where it cannot be made."""
    path = f"{directory}/{outputs.REPORT}"
    try:
        storage.write_text(path, render(make()))
    except Exception as error:
        first = str(error).partition("\n")[0]
        logger.warning("no %s: %s: %s", outputs.REPORT, type(error).__name__, first)
        try:
            storage.delete(path)  # what a full disk cut off
        except OSError:
            logger.warning("%s is not whole", outputs.REPORT)


# --- jobs that train -----------------------------------------------------------------------------


def training(
    spark: SparkSession,
    config: TrainConfig,
    result: dict[str, Any],
    measured: Measured,
    estimator: Any,
    model: Any,
    schema: StructType,
    run: str | None,
) -> Page:
    """The page of a training job.

    Parameters
    ----------
    spark : SparkSession
    config : TrainConfig
    result : dict
        What goes into ``metrics.json``.
    measured : Measured
    estimator, model : Estimator, Model
        The last stage, before and after the fit.
    schema : StructType
        Of the rows that it saw.
    run : str or None
        The run directory of the fit.
    """
    fit = result["fit"]
    tiles = [*_best(measured), ("training rows", result["rows"]["train"])]
    tiles += [("iterations", fit["n_iter"])] if fit.get("n_iter") else []
    tiles += [("seconds of the fit", _rounded(fit["seconds"]))]
    history = getattr(model, "history", ())
    parts: Parts = [
        ("Data", partial(_data, config, result, model)),
        *_quality(measured, result["rows"]),
        ("Coefficients", partial(_coefficients, model, schema)),
        ("Training", partial(_training, fit, history)),
        *_after_a_fit(spark, config, estimator, model, history, run),
    ]
    return _page(config, f"{_name(config)} trained on {described(config.input)}", tiles, parts)


def tuning(
    spark: SparkSession,
    config: TuneConfig,
    result: dict[str, Any],
    measured: Measured,
    table: Sequence[Mapping[str, Any]],
    estimator: Any,
    model: Any,
    schema: StructType,
    run: str | None,
) -> Page:
    """The page of a search: its candidates, and the best one as in :func:`training`."""
    search = result["search"]
    tiles = [
        *_best(measured),
        (f"{search['metric']} over the folds", search["best"]["mean"]),
        ("candidates", search["candidates"]),
        ("seconds of the search", _rounded(search["seconds"])),
    ]
    history = getattr(model, "history", ())
    parts: Parts = [
        ("Search", partial(_search, search, table)),
        ("Data", partial(_data, config, result, model)),
        *_quality(measured, result["rows"]),
        ("Coefficients", partial(_coefficients, model, schema)),
        ("Training of the best", partial(_training, {}, history)),
        *_after_a_fit(spark, config, estimator, model, history, run),
    ]
    return _page(config, f"a search for the best {_name(config)}", tiles, parts)


def _after_a_fit(
    spark: SparkSession,
    config: TrainConfig,
    estimator: Any,
    model: Any,
    history: Sequence[Record],
    run: str | None,
) -> Parts:
    return [
        ("Interventions", partial(_interventions, history, run)),
        ("Time and bytes", partial(_costs, history)),
        ("Load the model", lambda: Section("Load the model", code="\n".join(loading(config)))),
        ("Parameters", partial(_parameters, estimator)),
        *_closing(spark, config),
    ]


def _name(config: TrainConfig) -> str:
    return config.estimator.class_.rpartition(".")[2]


def _data(config: TrainConfig, result: dict[str, Any], model: Any) -> Section:
    split = config.split
    facts: list[tuple[str, Any]] = [
        ("input", described(config.input)),
        *((f"{side} rows", count) for side, count in result["rows"].items()),
        ("features", _short(", ".join(listed(config.features)))),
    ]
    for attribute, what in (("numFeatures", "number of features"), ("numClasses", "classes")):
        if isinstance(value := getattr(model, attribute, None), int):
            facts.append((what, value))
    facts += [("label", config.label_column)] if config.label_column is not None else []
    facts += [("weight", config.weight)] if config.weight is not None else []
    if split.test:
        by = f", by {', '.join(split.by)}" if split.by else ""
        facts.append(("split", f"{split.test:.0%} for testing, seed {split.seed}{by}"))
    if config.encode is not None:
        encoded = config.encode.model_dump(exclude_defaults=True)
        facts += [(f"encode.{key}", _short(_listing(value))) for key, value in encoded.items()]
    facts += [(f"stage {i}", stage.class_) for i, stage in enumerate(config.stages)]
    return Section("Data", facts=facts)


def _listing(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} ({item})" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _search(search: Mapping[str, Any], table: Sequence[Mapping[str, Any]]) -> Section:
    keys = list(table[0]["params"])
    rows = [
        [row["rank"], row["mean"], row["deviation"], *(row["params"][key] for key in keys)]
        for row in table[:CANDIDATES_SHOWN]
    ]
    drawn = len([row for row in table if row["mean"] is not None]) > 1
    return Section(
        "Search",
        facts=[("folds", search["folds"]), ("metric", search["metric"])],
        figures=[figures.candidates(table, search["metric"])] if drawn else [],
        tables=[
            Table(
                ["rank", search["metric"], "deviation", *keys],
                rows,
                f"The best of {len(table)}; candidates.csv has all"
                if len(table) > len(rows)
                else "All candidates",
            )
        ],
    )


def _training(fit: Mapping[str, Any], history: Sequence[Record]) -> Section | None:
    names = {
        "n_iter": "iterations",
        "converged": "converged",
        "reason": "ended by",
        "loss": "objective at the end",
        "cost": "cost",
        "rounds": "rounds over the data",
    }
    facts = [(name, fit[key]) for key, name in names.items() if fit.get(key) is not None]
    pictures = _possible(figures.loss_curve, figures.gradient_norm, history=history)
    return Section("Training", facts=facts, figures=pictures) if facts or pictures else None


def _costs(history: Sequence[Record]) -> Section | None:
    """Where time and bytes went, and how evenly the partitions shared the work."""
    if not any(record.rounds for record in history):
        return None
    total = figures.totals(history)
    facts: list[tuple[str, Any]] = [
        ("seconds of all iterations", _rounded(sum(record.seconds for record in history))),
        ("rounds over the data", total["rounds"]),
        ("sent to the tasks", figures.in_bytes(total["bytes_down"])),
        ("sent back", figures.in_bytes(total["bytes_up"])),
    ]
    if total.get("slowest"):
        slow = total["slowest"]
        count = len({p.partition for h in history for r in h.rounds for p in r.partitions})
        facts += [("partitions", count)]
        if count > 1:
            where = f"{slow['partition']} on {slow['host']}, {slow['seconds']:.3g} s"
            facts += [
                ("skew (most less median)", f"{total['skew']:.3g} s"),
                ("slowest partition", where),
            ]
    pictures = _possible(
        figures.round_times,
        figures.round_bytes,
        figures.partition_skew,
        partial(figures.partition_skew, of="rows"),
        history=history,
    )
    return Section("Time and bytes", facts=facts, figures=pictures)


def _possible(*makers: Callable[..., Figure], history: Sequence[Record]) -> list[Figure]:
    """The figures that a history has the data for."""
    found = []
    for make in makers:
        try:
            found.append(make(history))
        except ValueError as error:  # it says what the history lacks
            logger.debug("left out of the report: %s", error)
    return found


def _interventions(history: Sequence[Record], run: str | None) -> Section | None:
    """What was changed while the fit ran: by commands and callbacks, with time and origin."""
    rows: list[list[Any]] = []
    paths = run_paths(run, depth=1) if run is not None else ()  # folds and points lie deeper
    recorded = [read_run(path) for path in paths]
    if recorded:
        # Several where a job went on from checkpoints.
        recorded.sort(key=lambda one: one.description["started"])
        for event in [event for one in recorded for event in one.actions.to_dict("records")]:
            values = ", ".join(f"{k}={v}" for k, v in event["values"].items())
            command = event["event"] == "command"
            what = event["command"] if command else "change"
            status = event["status"] if command else "applied"
            if command and status == "refused":
                status = f"refused: {event['reason']}"
            at = _clock(event["time"])
            who = event["origin"] if command else "callback"
            rows.append([int(event["iteration"]), at, f"{what} {values}".strip(), who, status])
        head = ["after iteration", "time", "what", "origin", "outcome"]
    else:
        rows = [
            [record.iteration, ", ".join(record.actions)] for record in history if record.actions
        ]
        head = ["after iteration", "what"]
    if not rows:
        if not history:
            return None
        return Section("Interventions", ["None: the parameters stayed as they were."])
    title = f"The last {MOST_ROWS} of {len(rows)}" if len(rows) > MOST_ROWS else ""
    return Section("Interventions", tables=[Table(head, rows[-MOST_ROWS:], title)])


def _clock(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _parameters(estimator: Any) -> Section:
    values = params_of(estimator)
    given = [name for name in values if estimator.isSet(name)]
    rows = [[name, _short(_text(values[name])), "set"] for name in given]
    rows += [[n, _short(_text(v)), "default"] for n, v in values.items() if n not in given]
    table = Table(["parameter", "value", "from"], rows)
    return Section("Parameters", tables=[table], folded=len(rows) > 12)


def _text(value: Any) -> str:
    return str(value) if not isinstance(value, str) else value or "(empty)"


# --- how good it is ------------------------------------------------------------------------------


def _best(measured: Measured) -> list[tuple[str, Any]]:
    """The first metrics of the rows that judge the model."""
    values = measured.report["metrics"][measured.side]
    return [(f"{name}, {measured.side} rows", value) for name, value in list(values.items())[:3]]


def _quality(measured: Measured, rows: Mapping[str, int]) -> Parts:
    return [
        ("Metrics", partial(_metrics, measured, rows)),
        ("Classes", partial(_classes, measured)),
        ("Residuals", partial(_residuals, measured)),
        ("Clusters", partial(_clusters, measured)),
    ]


def _metrics(measured: Measured, rows: Mapping[str, int]) -> Section | None:
    sides: Mapping[str, Mapping[str, Any]] = measured.report["metrics"]
    names = list(next(iter(sides.values())))
    if not names:
        return None
    heads = ["metric", *(f"{side} ({rows[side]:,} rows)" for side in sides)]
    cells = [[name, *(values[name] for values in sides.values())] for name in names]
    return Section("Metrics", tables=[Table(heads, cells)])


def _classes(measured: Measured) -> Section | None:
    if "classes" not in measured.report:
        return None
    report = measured.report["classes"][measured.side]
    labels = [str(label) for label in report["labels"]]
    drawn = []
    if "confusion" in report:
        drawn.append(figures.confusion_matrix(report["confusion"], labels))
    if measured.bins:
        drawn += [figures.roc_curve(measured.bins), figures.precision_recall_curve(measured.bins)]
        if all(one.believed is not None for one in measured.bins):
            drawn.append(figures.calibration_curve(measured.bins))
    rows = zip(*([plain(v) for v in report[c]] for c in _PER_CLASS), strict=True)
    cells = [[label, *row] for label, row in zip(labels, rows, strict=True)]
    order = sorted(range(len(cells)), key=lambda i: -(cells[i][-1] or 0))[:MOST_ROWS]
    title = (
        f"The {MOST_ROWS} most frequent of {len(cells)} classes" if len(cells) > MOST_ROWS else ""
    )
    table = Table(["class", *_PER_CLASS], [cells[i] for i in sorted(order)], title)
    return Section(f"Classes of the {measured.side} rows", figures=drawn, tables=[table])


_PER_CLASS = ("precision", "recall", "f1", "support")


def _residuals(measured: Measured) -> Section | None:
    if measured.residuals is None:
        return None
    pair = figures.residuals(measured.residuals)
    return Section(f"Residuals of the {measured.side} rows", figures=pair)


def _clusters(measured: Measured) -> Section | None:
    if "clusters" not in measured.report:
        return None
    report, side = measured.report["clusters"][measured.side], measured.side
    facts = [
        (name, measured.report["metrics"][side][name])
        for name in METRICS["clustering"]
        if name in measured.report["metrics"][side]
    ]
    drawn = [
        figures.sizes(title, report["labels"], report[key], "cluster", unit)
        for key, title, unit in (
            ("sizes", "Cluster sizes", "rows"),
            ("weights", "Cluster weights", "weight"),
        )
        if key in report
    ]
    return Section(f"Clusters of the {side} rows", facts=facts, figures=drawn)


def _coefficients(model: Any, schema: StructType) -> Section | None:
    # A class attribute: asking a model of several classes for a vector is an error.
    if not any(hasattr(type(model), name) for name in ("coefficients", "coefficientMatrix")):
        return None
    if getattr(model, "numClasses", 2) > MOST_ROWS:
        return None
    names = _feature_names(schema, model)
    return Section("Coefficients", figures=[figures.coefficients(model, names)])


def _feature_names(schema: StructType, model: Any) -> list[str] | None:
    """What an assembler called the features; None where nothing did."""
    column = model.getOrDefault("featuresCol")
    attributes = schema[column].metadata.get("ml_attr", {}) if column in schema.names else {}
    groups = attributes.get("attrs", {}).values()
    names = {one["idx"]: one.get("name", str(one["idx"])) for group in groups for one in group}
    n = model.numFeatures
    return [names.get(i, str(i)) for i in range(n)] if names and max(names) < n else None


# --- jobs that do not ----------------------------------------------------------------------------


def evaluation(
    spark: SparkSession, config: EvaluateConfig, result: dict[str, Any], measured: Measured
) -> Page:
    """The page of an evaluation job."""
    tiles = [*_best(measured), ("rows", result["rows"]), ("seconds", _rounded(result["seconds"]))]
    facts = [("model", config.model), ("input", described(config.input)), ("rows", result["rows"])]
    parts: Parts = [
        ("Data", lambda: Section("Data", facts=facts)),
        *_quality(measured, {measured.side: result["rows"]}),
        *_closing(spark, config),
    ]
    return _page(config, f"{config.model} evaluated on {described(config.input)}", tiles, parts)


def prediction(spark: SparkSession, config: PredictConfig, result: dict[str, Any]) -> Page:
    """The page of a prediction job."""
    tiles = [("rows", result["rows"]), ("seconds", _rounded(result["seconds"]))]
    facts = [("model", config.model), ("input", described(config.input)), ("rows", result["rows"])]
    parts: Parts = [
        ("Data", lambda: Section("Data", facts=facts)),
        ("Predictions", partial(_predicted, result)),
        ("Columns", partial(_columns, result)),
        ("Read the predictions", partial(_reading, config, outputs.PREDICTIONS, "predictions")),
        *_closing(spark, config),
    ]
    return _page(config, f"predictions for {described(config.input)}", tiles, parts)


def _predicted(result: Mapping[str, Any]) -> Section | None:
    found = result.get("predicted")
    if not found:
        return None
    if "labels" in found:
        drawn = figures.sizes(
            "Rows by prediction", found["labels"], found["rows"], "prediction", "rows"
        )
        return Section("Predictions", figures=[drawn])
    return Section("Predictions", facts=list(found.items()))


def _columns(result: Mapping[str, Any]) -> Section:
    rows = [[name, _short(kind)] for name, kind in result["columns"].items()]
    title = f"The first {MOST_ROWS} of {len(rows)}" if len(rows) > MOST_ROWS else ""
    return Section("Columns", tables=[Table(["column", "type"], rows[:MOST_ROWS], title)])


def preparation(spark: SparkSession, config: PrepareConfig, result: dict[str, Any]) -> Page:
    """The page of a preparation job."""
    broken = sum(side["broken"] for side in result["inputs"].values())
    tiles = [
        ("rows", result["rows"]),
        ("broken rows", broken),
        ("columns", len(result["columns"])),
        ("seconds", _rounded(result["seconds"])),
    ]
    parts: Parts = [
        ("Inputs", partial(_inputs, config, result)),
        ("Classes", partial(_balance, result)),
        ("Partitions", partial(_partitions, result)),
        ("Columns", partial(_columns, result)),
        ("Read the data", lambda: Section("Read the data", code=_code(config, outputs.DATA, "df"))),
        *_closing(spark, config),
    ]
    return _page(config, f"{described(config.input)} prepared", tiles, parts)


def _inputs(config: PrepareConfig, result: Mapping[str, Any]) -> Section:
    sources = {"input": config.input}
    sources |= {f"join.{i}.input": [join.input] for i, join in enumerate(config.join)}
    rows = [
        [name, described(sources[name]), side["rows"], side["broken"]]
        for name, side in result["inputs"].items()
    ]
    reasons = [
        [name, reason, count]
        for name, side in result["inputs"].items()
        for reason, count in side["reasons"].items()
    ]
    tables = [Table(["input", "from", "rows", "broken"], rows)]
    if reasons:
        tables.append(Table(["input", "reason", "rows"], reasons, "Why rows are broken"))
    return Section("Inputs", tables=tables)


def _balance(result: Mapping[str, Any]) -> Section | None:
    if "classes" not in result:
        return None
    drawn = [
        figures.sizes(f"Classes {when}", list(counts), list(counts.values()), "class", "rows")
        for when, counts in result["classes"].items()
    ]
    return Section("Classes", figures=drawn)


def _partitions(result: Mapping[str, Any]) -> Section:
    keys = ("partitions", "least", "most", "skew")
    rows = [[when, *(skew[key] for key in keys)] for when, skew in result["partitions"].items()]
    head = ["", "partitions", "least rows", "most rows", "skew (most over mean)"]
    return Section("Partitions", tables=[Table(head, rows)])


def neighbors(
    spark: SparkSession, config: NeighborsConfig, result: dict[str, Any], model: Any
) -> Page:
    """The page of a job on nearest neighbours; ``model`` is its index, where it makes one."""
    index = config.task == "index"
    tiles: list[tuple[str, Any]] = [
        ("rows in the index" if index else "rows written", result["rows"]),
        ("neighbours (k)", result["k"]),
        ("seconds", _rounded(result["seconds"])),
    ]
    tiles += [("recall", result["recall"])] if index else []
    facts: list[tuple[str, Any]] = [
        ("task", config.task),
        ("input", described(config.input)),
        ("metric", config.metric),
    ]
    names = {"features": "features", "nlist": "cells", "nprobe": "cells looked at"}
    facts += [(name, result[key]) for key, name in names.items() if key in result]
    facts += [("filter", config.filter)] if config.filter is not None else []

    def search() -> Section:
        drawn = []
        if model is not None:
            drawn = [figures.recall_curve(model.recallCurve, model.nprobe, model.nlist)]
        if any(value is not None for value in result.get("distances", ())):
            drawn = [figures.distances(result["distances"], config.metric)]
        return Section("Search", result.get("plan", ()), facts, drawn)

    reading: tuple[str, Callable[[], Section | None]]
    if index:
        load = (
            "from mllib_ext.knn import ApproximateNearestNeighborsModel\n"
            f'model = ApproximateNearestNeighborsModel.load("{_path(config)}/{outputs.MODEL}")'
        )
        reading = ("Load the index", lambda: Section("Load the index", code=load))
    else:
        what = "pairs" if config.task == "join" else "edges"
        make = partial(_reading, config, outputs.NEIGHBORS, what)
        reading = (f"Read the {what}", make)
    parts: Parts = [("Search", search), reading, *_closing(spark, config)]
    return _page(config, f"{config.task} of {described(config.input)}", tiles, parts)


# --- every job -----------------------------------------------------------------------------------


def _page(config: JobConfig, subtitle: str, tiles: Sequence[tuple[str, Any]], parts: Parts) -> Page:
    written = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return Page(config.name, f"{subtitle} · {written}", tiles, parts)


def _closing(spark: SparkSession, config: JobConfig) -> Parts:
    return [
        ("Environment", partial(_environment, spark)),
        (
            "Config",
            lambda: Section("Config", code=yamlfile.dump(config.resolved()), folded=True),
        ),
    ]


def _environment(spark: SparkSession) -> Section:
    context: Any = spark.sparkContext
    java: Any = context._jvm.java.lang.System
    facts = [
        *versions().items(),
        ("Spark", spark.version),
        ("Java", java.getProperty("java.version")),
        ("master", context.master),
        ("cores", context.defaultParallelism),
        ("executors", max(context._jsc.sc().getExecutorMemoryStatus().size() - 1, 1)),
        ("application", context.applicationId),
        ("driver", f"{platform.node()}, {platform.system()} {platform.machine()}"),
    ]
    return Section("Environment", facts=facts)


def _path(config: JobConfig) -> str:
    return storage.qualified(config.output.path)


def _reading(config: PredictConfig | NeighborsConfig, name: str, what: str) -> Section:
    # What a csv was written with, as header, it is read with.
    code = _code(config, name, what, config.output.format, config.output.options)
    return Section(f"Read the {what}", code=code)


def _code(
    config: JobConfig,
    directory: str,
    name: str,
    kind: str = "parquet",
    options: Mapping[str, Any] | None = None,
) -> str:
    given = f"options(**{dict(options)!r})." if options else ""
    return f'{name} = spark.read.{given}{kind}("{_path(config)}/{directory}")'


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.3g}")
