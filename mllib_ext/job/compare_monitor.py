"""What it costs a fit to be recorded, shown and steered, and how soon a command takes effect."""

from __future__ import annotations

import itertools
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

from pyspark.sql import DataFrame, SparkSession

from mllib_ext.blocks import Blocks
from mllib_ext.classification import LogisticRegression
from mllib_ext.fitting import training_blocks
from mllib_ext.job.benchmark import Comparison, Line, alternate
from mllib_ext.monitor.controls import Command
from mllib_ext.monitor.fits import Monitor, Served
from mllib_ext.monitor.log import Log
from mllib_ext.monitor.server import Server

ROUNDS, CLIENTS = 60, 10
# Commands to a fit with rounds of so many seconds.
COMMANDS, ROUND_SECONDS = 20, 0.1

# Streams that are read as fast as they come, in another process: its time is not the fit's.
READER = """
import selectors, socket, sys
port, n = int(sys.argv[1]), int(sys.argv[2])
selector = selectors.DefaultSelector()
for _ in range(n):
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(sys.argv[3].encode())
    selector.register(client, selectors.EVENT_READ)
while selector.get_map():
    for ready, _ in selector.select():
        if not ready.fileobj.recv(1 << 20):
            selector.unregister(ready.fileobj)
"""


def compare_monitor(spark: SparkSession, df: DataFrame, repeats: int) -> list[Comparison]:
    """Gradient descent in Spark jobs: recorded and shown, and left alone."""
    with (
        warnings.catch_warnings(),
        training_blocks(_descent(), df) as blocks,
        tempfile.TemporaryDirectory() as directory,
    ):
        warnings.simplefilter("ignore")  # so many rounds are not enough, and are not meant to be
        spent: list[float] = []
        numbers = itertools.count()

        def watched(around: Callable[[Server], Any] | None) -> None:
            path = f"{directory}/{next(numbers)}"
            monitor = Monitor.at(path, keep=around is not None)
            with _timed(Log, "_drain", spent), _timed(Log, "_guarded", spent):
                if around is None:
                    monitor.fit(_descent(), partial(_fit, blocks))
                    return
                source = Served(monitor)
                with Server(lambda: {".": source}) as server, around(server):
                    monitor.fit(_descent(), partial(_fit, blocks))

        runs: dict[str, Callable[[], Any]] = {
            "recorded": partial(watched, None),
            "not watched": lambda: _fit(blocks, _descent()),
            f"recorded, {CLIENTS} pages": partial(watched, _readers),
            f"recorded, {CLIENTS} pages that do not read": partial(watched, _deaf),
            f"recorded, {CLIENTS} pages killed": partial(watched, _killed),
        }
        lines = alternate(runs, repeats)
        spent.clear()
        began = time.perf_counter()
        watched(None)
        lines[0].notes["writing, share of a round"] = sum(spent) / (time.perf_counter() - began)
        lines[0].notes["rounds"] = ROUNDS
        command = _commands(blocks)
    return [
        Comparison(f"{ROUNDS} rounds of gradient descent, blocks there", lines),
        Comparison(
            f"a command, on rounds of {ROUND_SECONDS:g} s, until the page has it", [command]
        ),
    ]


def _descent(**params: Any) -> LogisticRegression:
    rounds = {"solver": "gd", "lineSearch": "none", "stepSize": 1e-3, "tol": 0.0}
    return LogisticRegression(**{**rounds, "maxIter": ROUNDS, **params})


def _fit(blocks: Blocks, estimator: Any) -> Any:
    return estimator._fit_blocks(blocks)


@contextmanager
def _timed(cls: Any, name: str, spent: list[float]) -> Iterator[None]:
    """Add up the processor's seconds in a method."""
    method = getattr(cls, name)

    def timed(*arguments: Any) -> Any:
        began = time.thread_time()
        try:
            return method(*arguments)
        finally:
            spent.append(time.thread_time() - began)

    with mock.patch.object(cls, name, timed):
        yield


# --- pages ---------------------------------------------------------------------------------------


def _head(server: Server) -> str:
    return f"GET /api/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Run-Key: {server.key}\r\n\r\n"


@contextmanager
def _readers(server: Server) -> Iterator[None]:
    command = [sys.executable, "-c", READER, str(server.port), str(CLIENTS), _head(server)]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def _deaf(server: Server) -> Iterator[list[socket.socket]]:
    """Streams that nobody reads."""
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(CLIENTS)]
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(_head(server).encode())
    try:
        yield clients
    finally:
        for client in clients:
            client.close()


@contextmanager
def _killed(server: Server) -> Iterator[None]:
    """Pages whose browser ends while they are drawn."""
    with _deaf(server) as clients:
        for client in clients:
            client.close()
        yield


# --- commands ------------------------------------------------------------------------------------


def _commands(blocks: Blocks) -> Line:
    """Seconds from a request to the moment when its stream tells that the value is in force."""

    def held_up(state: Any, record: Any) -> None:
        time.sleep(max(0.0, ROUND_SECONDS - record.seconds))

    monitor = Monitor(None, keep=True)
    estimator = _descent(maxIter=10**9).setCallbacks([held_up])
    thread = threading.Thread(target=monitor.fit, args=(estimator, partial(_fit, blocks)))
    thread.start()
    source, line, draw = Served(monitor), Line("set stepSize"), random.Random(0)
    rounds: list[int] = []
    with Server(lambda: {".": source}) as server:
        try:
            while source.state() == "starting":
                time.sleep(0.05)
            for number in range(COMMANDS):
                time.sleep(draw.uniform(0, 2 * ROUND_SECONDS))
                seconds, between = _command(server, source, 1e-3 + 1e-5 * number)
                line.seconds.append(seconds)
                rounds.append(between)
        finally:
            source.send(Command("stop"))
            thread.join()
    line.notes = {"max s": max(line.seconds), "rounds that ended before, at most": max(rounds)}
    return line


def _command(server: Server, source: Served, step_size: float) -> tuple[float, int]:
    last = source.events(0)[-1]["id"]
    headers = {"X-Run-Key": server.key}
    address = f"http://127.0.0.1:{server.port}/api"
    stream = urllib.request.Request(f"{address}/stream?after={last}", headers=headers)
    body = json.dumps({"command": "set", "values": {"stepSize": step_size}}).encode()
    headers = {**headers, "Content-Type": "application/json"}
    with urllib.request.urlopen(stream) as answer:
        began, at = time.perf_counter(), time.time()
        request = urllib.request.Request(f"{address}/command", body, headers)
        with urllib.request.urlopen(request) as taken:
            key = json.load(taken)["key"]
        between = 0
        for text in answer:
            if not text.startswith(b"data: "):
                continue
            for event in json.loads(text[6:]):
                between += event["event"] == "round" and event["time"] > at
                if event.get("key") == key:
                    return time.perf_counter() - began, between
    raise RuntimeError("expected the command to be told of, found the end of the stream")
