"""Callbacks that hand a run on to TensorBoard and MLflow.

They see the events of :mod:`mllib_ext.monitor.events`, in the thread that writes run directories:
a tracking server that is slow or gone costs a warning, not a fit.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mllib_ext.monitor.fits import Monitor
from mllib_ext.optimizers.loop import Record

logger = logging.getLogger(__name__)

# Between two calls of a tracking server.
SECONDS = 1.0
# What MLflow takes in one call.
MOST_METRICS = 1_000


class Tracker(ABC):
    """A callback that is told of a fit's beginning and end, too: for ``setCallbacks``."""

    def __call__(self, state: Any, record: Record) -> tuple[()]:
        """No action: rounds reach it as events."""
        return ()

    def around(self, fit: Callable[[Any], Any], estimator: Any) -> Any:
        """What ``fit`` makes of the estimator, told to the tracker."""
        sink = self._sink(estimator)
        model, status = None, "FAILED"
        try:
            model = Monitor(lambda description: sink).fit(estimator, fit)
            status = "FINISHED"
            return model
        finally:
            try:
                if not sink.broken:  # a server that is gone has been waited for once
                    sink.close(status, model)
            except Exception as error:
                message = "the end of the run is not recorded: %s: %s"
                logger.warning(message, type(error).__name__, error)

    @abstractmethod
    def _sink(self, estimator: Any) -> Sink:
        """Where the events of one fit go."""


class Sink(ABC):
    """Takes events in place of a run directory."""

    path = ""
    look_seconds = float("inf")
    seconds = SECONDS

    def __init__(self) -> None:
        self._step = -1
        self.broken = False

    def pause(self, age: float) -> float:
        return self.seconds

    def append(self, lines: str) -> None:
        metrics = []
        for line in lines.splitlines():
            event = json.loads(line)
            if event["event"] == "round":
                self._step += 1  # counts on over the starts of an algorithm
                metrics.append((self._step, event["time"], scalars(event)))
        self.broken = True  # until it has come back
        self.write(metrics)
        self.broken = False

    def take(self) -> list[str]:
        return []

    @abstractmethod
    def write(self, rounds: list[tuple[int, float, dict[str, float]]]) -> None:
        """Hand on the step, the time and the metrics of some rounds."""

    @abstractmethod
    def close(self, status: str, model: Any) -> None:
        """The fit has ended."""


def scalars(event: dict[str, Any]) -> dict[str, float]:
    """The numbers of a round by the names of metrics."""
    names = ("loss", "gradient_norm", "step_size", "bytes_down", "bytes_up", "skew")
    found = {name: event.get(name) for name in names}
    found |= {f"seconds/{name}": event[name] for name in ("latency", "compute", "driver")}
    found |= {f"settings/{name}": value for name, value in event["settings"].items()}
    found |= {f"state/{name}": value for name, value in event["state"].items()}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


class TensorBoard(Tracker):
    """Write scalars that ``tensorboard --logdir LOG_DIR`` shows while the fit goes on.

    Parameters
    ----------
    log_dir : str
        On a local disk. Each fit gets a directory of its own in it.

    Raises
    ------
    ImportError
        Without the extra ``[tensorboard]``.

    Examples
    --------
    >>> KMeans(k=3).setCallbacks([TensorBoard("runs")]).fit(df)  # doctest: +SKIP
    """

    def __init__(self, log_dir: str) -> None:
        _needs("tensorboard")
        self.log_dir = log_dir

    def _sink(self, estimator: Any) -> Sink:
        name = f"{estimator.uid}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        return _Scalars(Path(self.log_dir) / name, estimator)


class _Scalars(Sink):
    def __init__(self, directory: Path, estimator: Any) -> None:
        super().__init__()
        self._directory, self._estimator = directory, estimator
        self._writer: Any = None

    def write(self, rounds: list[tuple[int, float, dict[str, float]]]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._writer is None and rounds:
            self._writer = EventFileWriter(str(self._directory))
            self._writer.add_event(self._params())
        for step, wall_time, metrics in rounds:
            values = [Summary.Value(tag=tag, simple_value=v) for tag, v in metrics.items()]
            event = Event(wall_time=wall_time, step=step, summary=Summary(value=values))
            self._writer.add_event(event)
        if rounds:
            self._writer.flush()

    def _params(self) -> Any:
        """The parameters as a table, as text summaries are."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        rows = [f"| {name} | {value} |" for name, value in _params(self._estimator).items()]
        text = "\n".join(["| param | value |", "| --- | --- |", *rows]).encode()
        plugin = SummaryMetadata.PluginData(plugin_name="text")
        value = Summary.Value(
            tag="params/text_summary",
            metadata=SummaryMetadata(plugin_data=plugin),
            tensor=TensorProto(dtype=DT_STRING, string_val=[text]),
        )
        return Event(wall_time=time.time(), step=0, summary=Summary(value=[value]))

    def close(self, status: str, model: Any) -> None:
        if self._writer is not None:
            self._writer.close()


class MLflow(Tracker):
    """Make an MLflow run of each fit: parameters, metrics of every round, the model as artifact.

    Parameters
    ----------
    experiment : str, optional
        The name of an experiment, made where there is none; unless given, the active one.
    tracking_uri : str, optional
        Unless given, MLflow's own setting.
    log_model : bool
        Save the model as the artifact ``model``, for ``Model.load``.

    Raises
    ------
    ImportError
        Without the extra ``[mlflow]``.

    Notes
    -----
    Inside ``mlflow.start_run()`` the runs of fits are children of that run.
    """

    def __init__(
        self,
        experiment: str | None = None,
        tracking_uri: str | None = None,
        log_model: bool = True,
    ) -> None:
        _needs("mlflow")
        self.experiment, self.tracking_uri, self.log_model = experiment, tracking_uri, log_model

    def _sink(self, estimator: Any) -> Sink:
        return _Run(self, estimator)


class _Run(Sink):
    def __init__(self, tracker: MLflow, estimator: Any) -> None:
        super().__init__()
        import mlflow

        self._tracker, self._estimator = tracker, estimator
        self._client: Any = None
        self._id = ""
        # Which run is active is a matter of the thread that fits.
        active: Any = mlflow.active_run()
        self._parent = active.info.run_id if active is not None else None
        self._experiment = active.info.experiment_id if active is not None else None

    def write(self, rounds: list[tuple[int, float, dict[str, float]]]) -> None:
        from mlflow.entities import Metric

        if self._client is None and rounds:
            self._begin()
        metrics = [
            Metric(name, value, int(1000 * at), step)
            for step, at, found in rounds
            for name, value in found.items()
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + MOST_METRICS])

    def _begin(self) -> None:
        import mlflow
        from mlflow.entities import Param

        client = mlflow.MlflowClient(self._tracker.tracking_uri)
        experiment = self._experiment
        if self._tracker.experiment is not None:
            known = client.get_experiment_by_name(self._tracker.experiment)
            experiment = (
                known.experiment_id
                if known is not None
                else client.create_experiment(self._tracker.experiment)
            )
        tags = {"mllib_ext.estimator": type(self._estimator).__name__}
        if self._parent is not None:
            tags["mlflow.parentRunId"] = self._parent
        run = client.create_run(
            # What mlflow.set_experiment chose; there is no public name for it.
            str(experiment or mlflow.tracking.fluent._get_experiment_id()),
            tags=tags,
            run_name=self._estimator.uid,
        )
        self._id = run.info.run_id
        params = [Param(name, str(v)[:500]) for name, v in _params(self._estimator).items()]
        client.log_batch(self._id, params=params[:100])
        self._client = client

    def close(self, status: str, model: Any) -> None:
        if self._client is None:
            if model is None:
                return  # refused before its first round
            self._begin()  # a closed form has no rounds
        if model is not None and self._tracker.log_model:
            with tempfile.TemporaryDirectory() as directory:
                model.write().save(Path(directory, "model").as_uri())
                self._client.log_artifacts(self._id, f"{directory}/model", "model")
        self._client.set_terminated(self._id, status)


def _params(estimator: Any) -> dict[str, Any]:
    from mllib_ext.monitor.events import description

    found: dict[str, Any] = description(estimator)["params"]
    return found


def _needs(package: str) -> None:
    """ImportError with the extra that brings a package, where it is missing."""
    try:
        __import__(package)
    except ImportError as error:
        raise ImportError(
            f"expected {package} to hand runs on to, found it missing: "
            f"pip install 'mllib_ext[{package}]'"
        ) from error
