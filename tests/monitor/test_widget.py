"""The view in a notebook: what the kernel's side sends and hears, and what stands in for it."""

from __future__ import annotations

import builtins
import time
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from sklearn.datasets import load_iris

from mllib_ext.classification import LogisticRegression
from mllib_ext.monitor.picture import MOST, picture

X, Y = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def run(spark):
    df = spark.createDataFrame(pd.DataFrame({"features": list(X), "label": Y.astype(float)}))
    estimator = LogisticRegression(
        solver="gd", lineSearch="none", stepSize=0.001, tol=0.0, maxIter=10**9
    )
    run = estimator.setCallbacks([lambda state, record: time.sleep(0.01)]).fitAsync(df)
    while run.state == "starting":
        time.sleep(0.05)
    yield run
    if run.state in ("running", "paused"):
        run.stop()
    run.result(60)


class Page:
    """The page's side of a widget: what arrives there, and what it sends."""

    def __init__(self, widget):
        self.widget, self.arrived = widget, []
        widget.send = self.arrived.append

    def send(self, **message):
        self.widget._heard(self.widget, message, [])

    def events(self):
        return [e for m in list(self.arrived) if m["kind"] == "events" for e in m["events"]]


def until(holds):
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_widget_tells_what_was_and_then_what_comes_until_the_end(run):
    page = Page(run.widget())
    page.send(kind="begin", word="a")
    assert page.arrived[0]["word"] == "a"
    assert page.arrived[0]["description"]["params"]["stepSize"] == 0.001
    n = len(page.events())
    assert n > 0
    until(lambda: len(page.events()) > n + 5)
    assert [e["id"] for e in page.events()] == list(range(1, len(page.events()) + 1))
    page.send(kind="begin", word="b")  # another page, or the same one loaded again
    again = next(i for i, m in enumerate(page.arrived) if m.get("word") == "b")
    assert page.arrived[again + 1]["events"][0]["id"] == 1

    page.send(kind="command", number=1, command="set", values={"stepSize": -1})
    (answer,) = [m for m in page.arrived if m.get("number") == 1]
    assert "expected a number in (0, inf], found -1" in answer["error"]
    page.send(kind="command", number=2, command="set", values={"stepSize": 0.002})
    (answer,) = [m for m in page.arrived if m.get("number") == 2]
    until(lambda: any(e.get("key") == answer["key"] for e in page.events()))
    event = next(e for e in page.events() if e.get("key") == answer["key"])
    assert (event["status"], event["origin"].partition(":")[0]) == ("applied", "widget")

    run.stop()
    run.result(60)
    until(lambda: page.events()[-1]["event"] == "end")
    until(lambda: page.widget._thread is None)


def test_where_there_are_no_widgets_there_is_a_picture(run, monkeypatch, caplog):
    data, _ = run.widget()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "LogisticRegression" in data["image/svg+xml"]

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name in ("anywidget", "mllib_ext.monitor.widget"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    still = run.widget()
    assert "pip install 'mllib_ext[widget]'" in caplog.text
    ElementTree.fromstring(still._repr_svg_())


def test_a_picture_has_the_losses_the_marks_and_the_state():
    rounds = [{"event": "round", "loss": loss} for loss in [4.0, None, 1.0, 2.0] * 1000]
    told = {"event": "command", "status": "applied", "iteration": 2}
    wrong = {**told, "status": "refused"}
    events: list[Any] = [*rounds[:3], told, wrong, *rounds[3:], {"event": "end", "state": "failed"}]
    svg = ElementTree.fromstring(picture({"estimator": "a.<b>"}, events))
    space = "{http://www.w3.org/2000/svg}"
    points = svg.find(f"{space}polyline").get("points").split()
    assert 100 < len(points) <= MOST
    assert points[0] == "70.0,34.0"
    assert len(svg.findall(f"{space}path[@class='mark']")) == 1
    assert svg.find(f"{space}text").text == "<b>, failed: 3999 rounds, loss 2"
    assert "0 rounds" in picture({}, [])
