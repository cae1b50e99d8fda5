"""Run directories: on a local disk, and on any Hadoop file system.

Both hold ``run.json``, the events, and ``control/`` with one file a command. A local directory is
readable by its owner alone, and events are appended to one file. File systems without append get
segments, each written whole; a command on them is a file that the run deletes as it takes it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from pyspark import SparkContext
from pyspark.sql import SparkSession

from mllib_ext import storage

DESCRIPTION, EVENTS, SEGMENTS, CONTROL = "run.json", "events.jsonl", "events", "control"
# Events of a segment are a file: many of them slow a NameNode down. A hundred, then fewer, until
# one comes every half minute.
SEGMENT_SECONDS, MOST_SEGMENT_SECONDS = 2.0, 30.0
DEPTH = 4  # of runs below a directory: folds, their points, a fit again


class RunDirectory(Protocol):
    """Where a run is recorded, and where commands for it arrive."""

    path: str
    look_seconds: float  # between two looks for commands

    def make(self, description: dict[str, Any]) -> bool:
        """Begin a run here; False where there is one already."""

    def reserve(self) -> bool:
        """Make a directory for runs below; False where there is one already."""

    def append(self, lines: str) -> None:
        """Write more events."""

    def pause(self, age: float) -> float:
        """Seconds between two writes of a run of this age."""

    def take(self) -> list[str]:
        """The commands that have arrived, in the order of their names; each is taken once."""

    def send(self, name: str, text: str) -> None:
        """Leave a command for the run."""

    def description(self) -> dict[str, Any]:
        """What ``run.json`` says; FileNotFoundError where there is no run."""

    def version(self) -> Any:
        """Another value where another run was begun at the same path."""

    def read(self, position: int) -> tuple[str, int]:
        """Whole lines of events after a position (0 at first), and the position after them."""


def run_directory(path: str) -> RunDirectory:
    """The directory at a path, which may have a scheme (``hdfs:``, ``s3a:``, ``file:``).

    A path without one is on Spark's default file system while a session runs, as with
    ``model.save``, and else on the local disk.
    """
    scheme = re.match(r"([A-Za-z][\w+.-]*):/", path)
    if scheme is None:
        if SparkContext._active_spark_context is None:
            return LocalDirectory(path)
        path = storage.qualified(path)
        scheme = re.match(r"([A-Za-z][\w+.-]*):/", path)
    if scheme is not None and scheme[1] == "file":
        return LocalDirectory(path.removeprefix("file:"))  # Hadoop's paths have no %20
    if SparkContext._active_spark_context is None:
        builder: Any = SparkSession.builder
        builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    return HadoopDirectory(path)


def resolved(path: str) -> str:
    """The whole path of a run directory: whatever the working directory becomes, and with a scheme,
    so that nobody asks the JVM for it again."""
    path = run_directory(path).path
    return f"file:{path}" if path.startswith("/") else path


class LocalDirectory:
    """A run on a local disk, which no other user can read or steer."""

    look_seconds = 0.0

    def __init__(self, path: str) -> None:
        self._path = (
            Path("/" + path.lstrip("/")) if path.startswith("//") else Path(path).absolute()
        )
        self.path = str(self._path)

    def make(self, description: dict[str, Any]) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.mkdir(mode=0o700, exist_ok=True)
        try:
            (self._path / CONTROL).mkdir(mode=0o700)  # of two runs one succeeds
        except FileExistsError:
            return False
        self._write(self._path / EVENTS, "")
        self._write(self._path / DESCRIPTION, json.dumps(description, indent=1) + "\n")
        return True

    def reserve(self) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._path.mkdir(mode=0o700)
        except FileExistsError:
            return False
        return True

    def append(self, lines: str) -> None:
        # Not created anew: a file that somebody deleted stays deleted.
        file = os.open(self._path / EVENTS, os.O_WRONLY | os.O_APPEND)
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            stream.write(lines)

    def pause(self, age: float) -> float:
        return 0.0

    def take(self) -> list[str]:
        texts = []
        for name in sorted(os.listdir(self._path / CONTROL)):
            file = self._path / CONTROL / name
            if name.endswith(".json") and file.is_file():
                texts.append(file.read_text("utf-8", errors="replace"))
                file.unlink()
        return texts

    def send(self, name: str, text: str) -> None:
        self._write(self._path / CONTROL / f"{name}.json", text)

    def description(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._path / DESCRIPTION).read_text("utf-8"))
        return found

    def version(self) -> Any:
        found = os.stat(self._path / DESCRIPTION)
        return found.st_ino, found.st_mtime_ns

    def read(self, position: int) -> tuple[str, int]:
        with open(self._path / EVENTS, "rb") as stream:
            stream.seek(position)
            data = stream.read()
        data = data[: data.rfind(b"\n") + 1]  # the last line may be half written
        return data.decode("utf-8", errors="replace"), position + len(data)

    def _write(self, path: Path, text: str) -> None:
        """A file of the owner alone, whole or not at all."""
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            stream.write(text)
        beside.replace(path)


class HadoopDirectory:
    """A run on a Hadoop file system; who may read and steer it is up to the file system."""

    look_seconds = SEGMENT_SECONDS

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/")
        self._segments = 0

    def make(self, description: dict[str, Any]) -> bool:
        try:
            storage.put_text(f"{self.path}/{DESCRIPTION}", json.dumps(description, indent=1) + "\n")
        except FileExistsError:
            return False
        return True

    def reserve(self) -> bool:
        return True  # the first file in it makes it

    def append(self, lines: str) -> None:
        self._segments += 1
        storage.put_text(f"{self.path}/{SEGMENTS}/{self._segments:06d}.jsonl", lines)

    def pause(self, age: float) -> float:
        return min(max(SEGMENT_SECONDS, age / 100), MOST_SEGMENT_SECONDS)

    def take(self) -> list[str]:
        texts = []
        for name in storage.names(f"{self.path}/{CONTROL}") or ():
            if name.endswith(".json"):
                texts.append(storage.read_text(f"{self.path}/{CONTROL}/{name}"))
                storage.delete(f"{self.path}/{CONTROL}/{name}")
        return texts

    def send(self, name: str, text: str) -> None:
        storage.put_text(f"{self.path}/{CONTROL}/{name}.json", text)

    def description(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(storage.read_text(f"{self.path}/{DESCRIPTION}"))
        return found

    def version(self) -> Any:
        return storage.modified(f"{self.path}/{DESCRIPTION}")

    def read(self, position: int) -> tuple[str, int]:
        names = storage.names(f"{self.path}/{SEGMENTS}") or []
        names = [name for name in names if name.endswith(".jsonl")][position:]
        text = "".join(storage.read_text(f"{self.path}/{SEGMENTS}/{name}") for name in names)
        return text, position + len(names)


# --- many runs -----------------------------------------------------------------------------------


def claimed(path: str, description: dict[str, Any]) -> RunDirectory:
    """Begin a run at a path or, where there is one already, at ``fit-2``, ``fit-3``, ... below."""
    for candidate in itertools.chain([path], (f"{path}/fit-{n}" for n in itertools.count(2))):
        directory = run_directory(candidate)
        if directory.make(description):
            return directory
    raise AssertionError("the numbers do not end")


def of_a_run(name: str) -> bool:
    """Whether this is what is in the directory of a run or of several: a file's name or below."""
    files = (DESCRIPTION, EVENTS, SEGMENTS, CONTROL)
    return name in files or re.fullmatch("(fit|fold|point)-[0-9]+", name) is not None


def names_below(path: str) -> list[str] | None:
    """The names in a directory; None where there is none."""
    directory = run_directory(path)
    if isinstance(directory, HadoopDirectory):
        return storage.names(path)
    try:
        return sorted(os.listdir(directory.path))
    except OSError:  # none, or deleted just now, or of somebody else
        return None


def run_paths(path: str, depth: int = DEPTH, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """The runs at a path and below it, links to what is above (real paths) left out."""
    if (real := os.path.realpath(run_directory(path).path)) in above:
        return
    names = names_below(path) or []
    if DESCRIPTION in names:
        yield path
    if depth:
        for name in names:
            if name not in (CONTROL, SEGMENTS, EVENTS, DESCRIPTION) and not name.startswith("."):
                yield from run_paths(f"{path.rstrip('/')}/{name}", depth - 1, above | {real})
