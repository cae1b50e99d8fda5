"""Runs over HTTP: a snapshot and a stream of each, commands to it, and the page that uses them.

====================================  ==========================================================
``GET .``                             the page
``GET api/runs``                      the runs: name, estimator, state, when started
``GET api/run?run=NAME&after=ID``     description, state and events of a run as JSON
``GET api/stream?run=NAME&after=ID``  events as they come (server-sent events): lists of them, the
                                      id of the last one as that of the message
``POST api/command?run=NAME``         ``{"command": "set", "values": {"stepSize": 0.01}}``
====================================  ==========================================================

Without the key every request is refused. It comes as the query parameter ``key`` of the first
visit, which leaves a cookie, or as the header ``X-Run-Key``. A page of another origin can neither
read nor send: names of hosts and origins are checked, and no header allows it.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import hmac
import json
import re
import secrets
import socket
import threading
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any, Protocol
from urllib.parse import urlsplit

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
except ImportError as error:
    raise ImportError(
        "expected starlette and uvicorn to serve runs with, found them missing: "
        "pip install 'mllib_ext[live]'"
    ) from error

from mllib_ext.monitor.controls import Command
from mllib_ext.monitor.directory import run_directory
from mllib_ext.monitor.run import find_runs, parsed, state_of

LOCAL = ("127.0.0.1", "localhost", "[::1]")
STATIC = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "view.css": "text/css",
    "view.js": "text/javascript",
    "uPlot.iife.min.js": "text/javascript",
    "uPlot.min.css": "text/css",
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",  # the first address has the key
    "X-Content-Type-Options": "nosniff",
}
# A message of the stream: small enough that a slow client holds little.
BATCH = 250
# Of older rounds a page shows curves alone: without what they have of partitions and clusters, ten
# thousand of them are two megabytes.
WHOLE = 100
LOOK_SECONDS = 0.1
BEAT_SECONDS = 15.0
LONGEST_BODY = 10_000


class Source(Protocol):
    """A run as the server sees it."""

    def description(self) -> dict[str, Any]: ...

    def events(self, after: int) -> list[dict[str, Any]]: ...

    def state(self) -> str: ...

    def send(self, command: Command) -> None: ...


class Recorded:
    """A run by its directory: its events are read once, whoever asks for them."""

    def __init__(self, path: str) -> None:
        self._directory = run_directory(path)
        self.version = self._directory.version()
        self._description: dict[str, Any] = self._directory.description()
        if not isinstance(self._description, dict):
            raise ValueError(f"{path}: expected the description of a run, found none")
        self._lines: list[str] = []  # a tenth of what they are as dicts
        self._ids: list[int] = []
        self._told: list[dict[str, Any]] = []  # what says which state it is in
        self._position, self._looked = 0, 0.0
        self._lock = threading.Lock()

    def current(self) -> bool:
        """Whether no other run was begun at the same path since."""
        return bool(self._directory.version() == self.version)

    def description(self) -> dict[str, Any]:
        return self._description

    def events(self, after: int) -> list[dict[str, Any]]:
        with self._lock:
            self._read()
            lines = self._lines[bisect_right(self._ids, after) :]
        return parsed("\n".join(lines))

    def state(self) -> str:
        with self._lock:
            self._read()
            return state_of(self._description, self._told)

    def _read(self) -> None:
        if time.monotonic() - self._looked < max(LOOK_SECONDS, self._directory.look_seconds):
            return
        text = ""
        with suppress(OSError):  # a run that somebody deleted stays what it was
            text, self._position = self._directory.read(self._position)
        for line in text.splitlines():
            for event in parsed(line):
                self._lines.append(line)
                self._ids.append(event["id"])
                if event["event"] in ("state", "end"):
                    self._told.append(event)
        self._looked = time.monotonic()

    def send(self, command: Command) -> None:
        if (state := self.state()) not in ("starting", "running", "paused"):
            raise ValueError(f"expected a run that goes on, found one that is {state}")
        self._directory.send(f"{time.time_ns():020d}-{command.key}", command.text())


class Directory:
    """The runs at a path and below it, looked for again each time."""

    def __init__(self, path: str) -> None:
        self._path = path.rstrip("/") or "/"
        self._known: dict[str, Recorded] = {}

    def __call__(self) -> dict[str, Source]:
        found: dict[str, Recorded] = {}
        for path in find_runs(self._path):
            name = path[len(self._path) :].strip("/") or "."
            with suppress(OSError, ValueError):  # it is being written, or deleted
                known = self._known.get(name)
                found[name] = known if known and known.current() else Recorded(path)
        self._known = found
        return dict(found)


class Key:
    """What a request has to show before it is heard: middleware of the application."""

    def __init__(self, app: Any, key: str, hosts: Sequence[str]) -> None:
        self._app, self._key, self._hosts = app, key, {host.lower() for host in (*LOCAL, *hosts)}
        # Cookies do not know ports: two servers of one user must not overwrite each other's.
        self._cookie = f"mllib_ext_{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refusal = self._refusal(request)
        if refusal is not None:
            await JSONResponse({"error": refusal}, 403, HEADERS)(scope, receive, send)
            return
        first = request.query_params.get("key", "")

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start" and first:
                value = f"{self._cookie}={self._key}; HttpOnly; SameSite=Strict"
                message["headers"] = [*message["headers"], (b"set-cookie", value.encode())]
            await send(message)

        await self._app(scope, receive, answer)

    def _refusal(self, request: Request) -> str | None:
        """Why a request is refused, or None."""
        if self._host(request.headers.get("host", "")) not in self._hosts:
            return "the name in this address is not one that the server was told of (hosts)"
        origin = request.headers.get("origin")
        try:
            foreign = origin is not None and self._host(urlsplit(origin).netloc) not in self._hosts
        except ValueError:  # no address
            foreign = True
        if foreign:
            return "the request comes from a page of another site"
        if request.headers.get("sec-fetch-site") == "cross-site" and request.method != "GET":
            return "the request comes from a page of another site"
        shown = (
            request.query_params.get("key"),
            request.headers.get("x-run-key"),
            request.cookies.get(self._cookie),
        )
        if not any(s and hmac.compare_digest(s.encode(), self._key.encode()) for s in shown):
            return "the key is missing or wrong: open the address that the server printed"
        return None

    @staticmethod
    def _host(name: str) -> str:
        return re.sub(r":\d+$", "", name).lower()


class Server:
    """An HTTP server in a thread of this process.

    Parameters
    ----------
    sources : callable
        Returns the runs by name.
    host : str
        The address to listen at; the default can be reached from this machine alone.
    port : int
        0 takes one that is free.
    hosts : sequence of str
        Names beyond those of this machine under which a browser may ask, as that of a proxy.

    Attributes
    ----------
    key : str
    url : str
        With the key, for the first visit.
    """

    def __init__(
        self,
        sources: Callable[[], dict[str, Source]],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        hosts: Sequence[str] = (),
    ) -> None:
        self.key = secrets.token_urlsafe(24)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
        except OSError as error:
            listening.close()
            raise OSError(
                f"expected an address to listen at, found {host} port {port}: {error.strerror}"
            ) from None
        listening.listen(64)  # from here on a browser waits instead of being refused
        self.port: int = listening.getsockname()[1]
        name = f"[{host}]" if family == socket.AF_INET6 else host
        self.url = f"http://{name}:{self.port}/?key={self.key}"
        own = () if name in LOCAL else (name,)
        self._sources = sources
        app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/static/{name}", self._static),
                Route("/api/runs", self._runs),
                Route("/api/run", self._run),
                Route("/api/stream", self._stream),
                Route("/api/command", self._command, methods=["POST"]),
            ],
            middleware=[Middleware(Key, key=self.key, hosts=(*hosts, *own))],  # type: ignore[arg-type]
        )
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._listening = listening
        self._thread = threading.Thread(target=self._serve, name="mllib_ext page", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        self._server.run(sockets=[self._listening])

    def wait(self) -> None:
        """Wait until it is closed."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Stop listening; streams end."""
        self._server.should_exit = True
        self._thread.join(5)
        self._listening.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Server({self.url})"

    def _repr_html_(self) -> str:
        return f'<a href="{self.url}" target="_blank">the page of the runs</a>'

    # --- what is asked ---

    async def _page(self, request: Request) -> Response:
        return _file("page.html")

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            return JSONResponse({"error": f"no such file: {name}"}, 404, HEADERS)
        return _file(name)

    async def _runs(self, request: Request) -> Response:
        def found() -> list[dict[str, Any]]:
            return [
                {
                    "run": name,
                    "estimator": source.description().get("estimator", ""),
                    "started": source.description().get("started"),
                    "state": source.state(),
                }
                for name, source in self._sources().items()
            ]

        return JSONResponse(await asyncio.to_thread(found), headers=HEADERS)

    async def _run(self, request: Request) -> Response:
        source = await self._source(request)
        if source is None:
            return _no_run(request)
        after = _number(request.query_params.get("after"))
        events = await asyncio.to_thread(source.events, after)
        found = {"description": source.description(), "state": source.state(), "events": events}
        return JSONResponse(found, headers=HEADERS)

    async def _stream(self, request: Request) -> Response:
        source = await self._source(request)
        if source is None:
            return _no_run(request)
        after = request.headers.get("last-event-id") or request.query_params.get("after")
        headers = {**HEADERS, "X-Accel-Buffering": "no"}
        messages = self._messages(source, _number(after))
        return StreamingResponse(messages, media_type="text/event-stream", headers=headers)

    async def _messages(self, source: Source, after: int) -> AsyncIterator[str]:
        """Each client asks for what it has not had, as fast as it reads: nothing waits for it."""
        spoke = time.monotonic()
        yield "retry: 1000\n\n"
        closing = False
        while not closing:
            closing = self._server.should_exit  # before the last look
            events = await asyncio.to_thread(source.events, after)
            for start in range(0, len(events), BATCH):
                batch = events[start : start + BATCH]
                whole = len(events) - WHOLE - start
                shown = [e if i >= whole else _curves(e) for i, e in enumerate(batch)]
                after = batch[-1]["id"]
                spoke = time.monotonic()
                yield f"id: {after}\ndata: {json.dumps(shown)}\n\n"
            if time.monotonic() - spoke > BEAT_SECONDS:
                spoke = time.monotonic()
                yield ": still here\n\n"
            await asyncio.sleep(LOOK_SECONDS)

    async def _command(self, request: Request) -> Response:
        source = await self._source(request)
        if source is None:
            return _no_run(request)
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            # A form of another site cannot send this type.
            return JSONResponse({"error": "expected application/json"}, 415, HEADERS)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LONGEST_BODY:
                return JSONResponse({"error": "expected a short command"}, 413, HEADERS)
        try:
            text = body.decode("utf-8", errors="replace")
            command = Command.parse(text, origin=f"page: {getpass.getuser()}")
            await asyncio.to_thread(source.send, command)
        except (ValueError, OSError) as error:
            return JSONResponse({"error": str(error)}, 400, HEADERS)
        return JSONResponse({"key": command.key}, 202, HEADERS)

    async def _source(self, request: Request) -> Source | None:
        sources = await asyncio.to_thread(self._sources)
        return sources.get(request.query_params.get("run", "."))


def _file(name: str) -> Response:
    data = files("mllib_ext.monitor").joinpath("static", name).read_bytes()
    return Response(data, media_type=STATIC[name], headers=HEADERS)


def _no_run(request: Request) -> Response:
    name = request.query_params.get("run", ".")
    return JSONResponse({"error": f"expected a run, found none of the name {name!r}"}, 404, HEADERS)


def _number(text: str | None) -> int:
    return int(text) if text and re.fullmatch("[0-9]{1,18}", text) else 0


def _curves(event: dict[str, Any]) -> dict[str, Any]:
    """A round without what it has of every partition and cluster."""
    if event["event"] != "round":
        return event
    state = {n: v for n, v in event["state"].items() if not isinstance(v, list)}
    return {n: v for n, v in event.items() if n != "partitions"} | {"state": state}
