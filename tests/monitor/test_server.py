"""Runs over HTTP, as a browser and a script ask for them, and who is refused."""

from __future__ import annotations

import http.client
import json
import shutil
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pandas as pd
import pytest
from sklearn.datasets import load_iris

from mllib_ext.classification import LogisticRegression
from mllib_ext.clustering import KMeans
from mllib_ext.monitor.__main__ import main
from mllib_ext.monitor.server import STATIC, Directory, Server

X, Y = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def run(spark):
    """A fit that goes on until it is stopped, some milliseconds a round."""
    rows = pd.DataFrame({"features": list(X), "label": Y.astype(float)})
    df = spark.createDataFrame(rows).coalesce(1)
    estimator = LogisticRegression(
        solver="gd", lineSearch="none", stepSize=0.001, tol=0.0, maxIter=10**9
    )
    run = estimator.setCallbacks([lambda state, record: time.sleep(0.02)]).fitAsync(df)
    while run.state == "starting":
        time.sleep(0.05)
    yield run
    run.stop()
    run.result(60)


@pytest.fixture(scope="module")
def server(run):
    with run.serve() as server:
        yield server


class Client:
    """A client that sends what it is told and nothing else."""

    def __init__(self, server, **headers):
        self.port = server.port
        self.headers = {"X-Run-Key": server.key, **headers}

    def __call__(self, path, body=None, **more):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {k: v for k, v in {**self.headers, **more}.items() if v is not None}
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data, answer.headers

    def json(self, path, **command):
        body = json.dumps(command) if command else None
        status, data, _ = self(path, body)
        return status, json.loads(data)

    @contextmanager
    def stream(self, path, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path, headers={**self.headers, **headers})
        answer = connection.getresponse()
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        try:
            yield messages(answer)
        finally:
            connection.close()


def messages(answer):
    """``(id, events)`` of each message of a stream."""
    number = None
    for line in answer:
        name, _, value = line.decode().strip().partition(": ")
        if name == "id":
            number = int(value)
        if name == "data":
            yield number, json.loads(value)


@pytest.fixture
def client(server):
    return Client(server)


# --- what is served ------------------------------------------------------------------------------


def test_a_snapshot_has_the_description_the_state_and_the_events(client, run):
    status, runs = client.json("/api/runs")
    assert status == 200
    assert [(one["run"], one["state"]) for one in runs] == [(".", "running")]
    _, found = client.json("/api/run")
    assert found["description"]["params"]["stepSize"] == 0.001
    ids = [event["id"] for event in found["events"]]
    assert ids == list(range(1, len(ids) + 1))
    _, later = client.json(f"/api/run?after={ids[-1]}")
    assert all(event["id"] > ids[-1] for event in later["events"])
    assert client.json("/api/run?run=../other")[0] == 404


def test_a_stream_begins_with_what_was_and_goes_on_where_it_broke_off(client):
    seen = []
    with client.stream("/api/stream") as stream:
        for number, events in stream:
            seen += [event["id"] for event in events]
            assert number == seen[-1]
            if len(seen) > 10:
                break
    assert seen == list(range(1, len(seen) + 1))
    with client.stream("/api/stream", **{"Last-Event-ID": str(seen[-1])}) as stream:
        _, events = next(stream)
    assert events[0]["id"] == seen[-1] + 1


def test_a_command_takes_effect_within_a_round_and_half_a_second(client, run):
    with client.stream(f"/api/stream?after={int(run.events.id.max())}") as stream:
        sent = time.time()
        status, answer = client.json("/api/command", command="set", values={"stepSize": 0.002})
        assert status == 202
        events = (event for _, batch in stream for event in batch)
        applied = next(event for event in events if event.get("key") == answer["key"])
        assert applied["status"] == "applied"
        assert applied["origin"].startswith("page: ")
        after = next(event for event in events if event["event"] == "round")
        while after["iteration"] <= applied["iteration"]:
            after = next(event for event in events if event["event"] == "round")
        assert after["iteration"] == applied["iteration"] + 1
        assert after["step_size"] == 0.002
    assert applied["time"] - sent < 5  # 0.5 s by the contract, on a machine that is not shared


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ({"command": "set", "values": {"stepSize": -1}}, "expected a number in (0, inf], found -1"),
        ({"command": "sett"}, "did you mean 'set'"),
        ({"command": "restore"}, "expected one of the checkpoints []"),
        ({"command": "set", "values": {"self": 1}}, "setting 'self': expected one of"),
        ({"command": "note", "values": {"text": "\ud800"}}, "note: expected text"),
    ],
)
def test_a_wrong_command_is_refused_in_words(client, command, message):
    status, answer = client.json("/api/command", **command)
    assert status == 400
    assert message in answer["error"]


def test_of_old_rounds_a_stream_has_curves_alone_and_a_snapshot_all(client, run):
    while len(run.rounds) < 110:
        time.sleep(0.1)
    with client.stream("/api/stream") as stream:
        _, events = next(stream)
    rounds = [event for event in events if event["event"] == "round"]
    assert "partitions" not in rounds[0]
    assert "partitions" in rounds[-1]
    _, found = client.json("/api/run")
    rounds = [event for event in found["events"] if event["event"] == "round"]
    assert all("partitions" in event for event in rounds)


def test_the_page_asks_for_nothing_of_another_place_and_is_small(client):
    size = 0
    for name, kind in STATIC.items():
        status, data, headers = client("/" if name == "page.html" else f"/static/{name}")
        assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind)
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        text = data.decode()
        assert name.startswith("uPlot") or "//" not in text.replace("// ", "").replace(
            "http://www.w3.org/2000/svg", ""
        )
        assert 'src="/' not in text
        assert 'href="/' not in text
        size += len(data)
    assert size < 200_000
    assert client("/static/server.py")[0] == client("/static/..%2fserver.py")[0] == 404


# --- who is refused ------------------------------------------------------------------------------


PATHS = ["/", "/api/runs", "/api/run", "/api/stream", "/static/page.js", "/nothing"]


@pytest.mark.parametrize("key", [None, "", "wrong", "ключ".encode()])
def test_nothing_is_said_and_nothing_done_without_the_key(client, run, key):
    for path in PATHS:
        assert client(path, **{"X-Run-Key": key})[0] == 403
    n = len(run.events)
    status, data, _ = client("/api/command", '{"command": "stop"}', **{"X-Run-Key": key})
    assert status == 403
    assert "the key is missing or wrong" in json.loads(data)["error"]
    assert not (run.events.iloc[n:].event == "command").any()


def test_the_address_with_the_key_leaves_a_cookie_that_suffices(server):
    client = Client(server, **{"X-Run-Key": None})
    url = urlsplit(server.url)
    assert (url.hostname, url.port) == ("127.0.0.1", server.port)
    status, _, headers = client(f"/?{url.query}")
    assert status == 200
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert set(attributes) == {"HttpOnly", "SameSite=Strict"}
    assert client("/api/runs", Cookie=cookie)[0] == 200
    assert client("/api/runs", Cookie=cookie[:-1])[0] == 403
    assert "Set-Cookie" not in client("/?key=wrong")[2]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example"])
def test_another_name_of_this_address_is_refused(client, host):
    assert client("/api/runs", Host=host)[0] == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://[bad"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Content-Type": "text/plain"},
    ],
    ids=str,
)
def test_a_page_of_another_site_cannot_send(client, headers):
    status, _, answered = client("/api/command", '{"command": "pause"}', **headers)
    assert status in (403, 415)
    assert not [name for name in answered if name.lower().startswith("access-control")]


def test_a_proxy_has_to_be_named(run):
    with run.serve(hosts=["Hub.Example"]) as server:
        client = Client(server, Host="hub.example")
        origin = {"Origin": "https://hub.example"}
        status, _, _ = client(
            "/api/command", '{"command": "note", "values": {"text": "hi"}}', **origin
        )
        assert status == 202


def test_a_command_that_is_too_long_is_refused(client):
    assert client("/api/command", b"x" * 20_000)[0] == 413


# --- runs on disk --------------------------------------------------------------------------------


def test_recorded_runs_are_served_and_steered_through_their_directories(spark, tmp_path):
    rows = pd.DataFrame({"features": list(X)})
    df = spark.createDataFrame(rows).coalesce(1)
    KMeans(k=2).setRunDir(f"{tmp_path}/old").fit(df)
    with Server(Directory(str(tmp_path))) as server:
        client = Client(server)
        _, runs = client.json("/api/runs")
        assert [(one["run"], one["state"]) for one in runs] == [("old", "finished")]
        status, answer = client.json("/api/command?run=old", command="pause")
        assert (status, "found one that is finished" in answer["error"]) == (400, True)

        steered = [lambda state, record: time.sleep(0.02)]
        live = LogisticRegression(
            solver="gd", lineSearch="none", stepSize=1e-3, tol=0.0, maxIter=10**9
        )
        labelled = spark.createDataFrame(rows.assign(label=Y.astype(float))).coalesce(1)
        run = live.setCallbacks(steered).setRunDir(f"{tmp_path}/live").fitAsync(labelled)
        while not (tmp_path / "live" / "run.json").exists():
            time.sleep(0.05)
        status, answer = client.json("/api/command?run=live", command="stop")
        assert status == 202
        assert run.result(60).reason == "stopped by a command"
        state = "running"
        while state == "running":  # what was read is not read again within a tenth of a second
            _, found = client.json("/api/run?run=live")
            state = found["state"]
        assert state == "stopped"
        assert answer["key"] in [event.get("key") for event in found["events"]]


def test_a_fit_recorded_at_the_place_of_another_is_shown_alone(spark, tmp_path):
    df = spark.createDataFrame(pd.DataFrame({"features": list(X)})).coalesce(1)
    with Server(Directory(str(tmp_path))) as server:
        client = Client(server)
        for k in (2, 3):
            KMeans(k=k).setRunDir(f"{tmp_path}/one").fit(df)
            assert client.json("/api/runs")[0] == 200
            _, found = client.json("/api/run?run=one")
            assert found["description"]["params"]["k"] == k
            assert [event["id"] for event in found["events"]] == [
                *range(1, len(found["events"]) + 1)
            ]
            shutil.rmtree(tmp_path / "one")


def test_what_is_no_run_hides_no_other(spark, tmp_path):
    df = spark.createDataFrame(pd.DataFrame({"features": list(X)})).coalesce(1)
    KMeans(k=2).setRunDir(f"{tmp_path}/one").fit(df)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "run.json").write_text("null")
    (tmp_path / "loop").symlink_to(tmp_path)
    with open(tmp_path / "one" / "events.jsonl", "a") as file:
        file.write("3\n")
    with Server(Directory(str(tmp_path))) as server:
        client = Client(server)
        _, runs = client.json("/api/runs")
        assert [one["run"] for one in runs] == ["one"]
        assert client.json(f"/api/run?run=one&after={'9' * 5000}")[0] == 200


def test_an_address_that_cannot_be_listened_at_is_named(tmp_path, capsys):
    with Server(dict, host="::1") as server:
        assert server.url.startswith("http://[::1]:")
    with Server(dict) as server, pytest.raises(OSError, match=f"127.0.0.1 port {server.port}"):
        Server(dict, port=server.port)
    with pytest.raises(SystemExit):
        main(["serve", str(tmp_path), "--port", "99999"])
    assert "expected a port from 0 to 65535, found '99999'" in capsys.readouterr().err


def test_slow_clients_and_many_of_them_do_not_hold_a_fit_up(client, run):
    connections = []
    for _ in range(10):  # that never read
        connection = http.client.HTTPConnection("127.0.0.1", client.port)
        connection.request("GET", "/api/stream", headers=client.headers)
        connections.append(connection)
    n = len(run.rounds)
    began = time.monotonic()
    while len(run.rounds) < n + 20:
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    for connection in connections:
        connection.close()
