"""The page and the widget in Chromium, beside fits that go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.datasets import load_iris

from mllib_ext.classification import LogisticRegression
from mllib_ext.clustering import KMeans, MiniBatchKMeans
from mllib_ext.monitor.server import Directory, Server

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

PATIENCE = 120_000  # milliseconds, on a machine that others use
# Where CI looks for what people may want to see.
ARTIFACTS = Path(os.environ.get("MLLIB_EXT_ARTIFACTS", "build/artifacts"))

X, Y = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root in a container Chromium has no sandbox of its own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Open an address; any error that the page reports fails the test."""
    errors: list[str] = []
    pages = []

    def open(url="about:blank", width=1280, scheme="light", expected=()):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda told: errors.extend([told.text] * (told.type == "error")))
        page.goto(url)
        pages.append((page, expected))
        return page

    yield open
    for page, _ in pages:
        page.close()
    expected = [text for _, texts in pages for text in texts]
    assert [error for error in errors if not any(text in error for text in expected)] == []


def going(spark, estimator):
    """A fit in Spark jobs, some hundredths of a second a round, until somebody ends it."""
    df = spark.createDataFrame(pd.DataFrame({"features": list(X), "label": Y.astype(float)}))
    estimator._driver_bytes = lambda: 0
    return estimator.fitAsync(df.repartition(2))


def ended(run):
    if run.state in ("starting", "running", "paused"):
        run.stop()
    run.result(60)


@pytest.fixture(scope="module")
def clusters(spark):
    # Centers of samples never stand.
    estimator = MiniBatchKMeans(k=3, miniBatchFraction=0.2, tol=0.0, maxIter=10**6)
    run = going(spark, estimator.setCallbacks([lambda state, record: time.sleep(0.02)]))
    yield run
    ended(run)


def descent(spark):
    estimator = LogisticRegression(
        solver="gd", lineSearch="none", stepSize=0.001, tol=0.0, maxIter=10**9
    )
    return going(spark, estimator.setCallbacks([lambda state, record: time.sleep(0.02)]))


@pytest.fixture(scope="module")
def steered(spark):
    run = descent(spark)
    yield run
    ended(run)


def set_value(page, name, value):
    page.locator(f"[name={name}]").fill(value)
    page.keyboard.press("Enter")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_draws_a_fit_as_it_goes_and_fits_the_screen(opened, clusters, width, scheme):
    with clusters.serve() as server:
        page = opened(server.url, width, scheme)
        page.locator("[data-state=running]").wait_for()
        page.locator("[data-part=centers] circle").nth(2).wait_for()
        assert "key=" not in page.url
        assert page.locator(".plot canvas").count() >= 4
        assert page.locator("[data-part=seconds] i").count() == 2
        assert page.locator("[data-part=rows] i").count() == 2
        assert page.locator("[data-part=sizes] i").count() == 3
        assert "max − median" in page.locator("[data-note=partitions]").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        cards = "[...document.querySelectorAll('.card')]"
        boxes = f"{cards}.map((card) => JSON.stringify(card.getBoundingClientRect()))"
        before, round_ = page.evaluate(boxes), page.locator("[data-tile=round]").inner_text()
        page.wait_for_function(
            "text => document.querySelector('[data-tile=round]').innerText !== text", arg=round_
        )
        assert page.evaluate(boxes) == before  # nothing jumps
        while len(clusters.rounds) < 50:
            time.sleep(0.05)
        page.wait_for_timeout(500)
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=ARTIFACTS / f"page-{width}-{scheme}.png", full_page=True)


def test_another_step_size_takes_effect_and_a_wrong_one_is_refused_in_words(opened, steered):
    with steered.serve() as server:
        page = opened(server.url, expected=["400 (Bad Request)"])
        set_value(page, "stepSize", "-1")
        page.locator(".answer.bad", has_text="expected a number in (0, inf], found -1").wait_for()
        assert page.locator("[name=stepSize]").input_value() == "-1"  # to be mended
        before = float(page.locator("[data-tile=loss]").inner_text())
        set_value(page, "stepSize", "1.5")
        page.locator(".answer", has_text="set stepSize 1.5").wait_for()
        page.locator(".answer", has_text="after the click").wait_for()
        page.wait_for_function(
            "before => +document.querySelector('[data-tile=loss]').innerText < before / 2",
            arg=before,
        )
        assert page.locator("[data-part=actions] li b").count() == 1  # its mark on the curves


def test_a_checkpoint_is_gone_back_to_from_the_keyboard(opened, steered):
    with steered.serve() as server:
        page = opened(server.url)
        page.locator("[data-form=checkpoint] button:enabled").wait_for()
        assert page.locator("[data-form=restore] button").is_disabled()
        page.locator("[data-form=checkpoint] input").fill("good")
        page.keyboard.press("Enter")
        page.locator("[data-form=restore] button:enabled").wait_for()
        page.locator("[data-form=checkpoint] button").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        page.locator("[data-part=actions] li", has_text="restore good").wait_for()
        page.locator("[data-form=note] input").fill("as before")
        page.keyboard.press("Enter")
        page.locator("[data-part=actions] li", has_text="as before").wait_for()


def test_a_run_is_paused_resumed_and_stopped_and_the_page_says_so(opened, steered):
    with steered.serve() as server:
        page = opened(server.url)
        page.locator("[data-command=pause]").click()
        page.locator("[data-state=paused]").wait_for()
        n = len(steered.rounds)
        time.sleep(0.3)
        assert len(steered.rounds) == n
        assert page.locator("[data-command=pause]").is_disabled()
        set_value(page, "stepSize", "0.77")
        page.locator(".answer", has_text="after the click").wait_for()
        assert page.locator("[name=stepSize]").input_value() == "0.77"
        page.locator("[data-command=resume]").click()
        page.locator("[data-state=running]").wait_for()
        stop = page.locator("[data-command=stop]")
        stop.click()
        assert "Press again" in stop.inner_text()
        assert steered.state == "running"
        stop.click()
        page.locator("[data-state=stopped]").wait_for()
        assert steered.result(60).reason == "stopped by a command"
        page.locator("[data-part=actions] li", has_text="stopped: stopped by a command").wait_for()
        assert stop.is_disabled()
        assert page.title().startswith("stopped")


class Wire:
    """What lies between a browser and a server, and can be cut."""

    def __init__(self, port):
        self._to, self._sockets = port, []
        self.cut = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if self.cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._to))
                self._sockets += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        self._close(source, target)

    def drop(self):
        """Cut everything, until :attr:`cut` is false again."""
        self.cut = True
        self._close(*self._sockets)

    def close(self):
        self.drop()
        self._close(self._listening)

    @staticmethod
    def _close(*sockets):
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def test_a_page_goes_on_after_its_connection_was_cut(opened, clusters):
    with clusters.serve() as server, contextlib.closing(Wire(server.port)) as wire:
        url = server.url.replace(f":{server.port}", f":{wire.port}")
        page = opened(url, expected=["net::ERR_", "Failed to load"])
        page.locator("[data-part=centers] circle").nth(2).wait_for()
        wire.drop()
        page.locator("#trouble", has_text="does not answer").wait_for()
        n = len(clusters.rounds)
        wire.cut = False
        page.locator("#trouble").wait_for(state="hidden")
        page.wait_for_function(
            "n => +document.querySelector('[data-tile=round]').firstChild.data.replace(/\\D/g, '')"
            " > n",
            arg=n,
        )


def test_without_the_key_there_is_no_page(opened, clusters):
    with clusters.serve() as server:
        page = opened(server.url[:-1] + "-", expected=["403"])
        assert "the key is missing or wrong" in page.inner_text("body")


def test_runs_that_ended_are_chosen_and_laid_over_each_other(spark, opened, tmp_path):
    df = spark.createDataFrame(pd.DataFrame({"features": list(X)}))
    for k in (2, 3):
        KMeans(k=k, tol=0.0).setRunDir(f"{tmp_path}/k{k}").fit(df)
    with Server(Directory(str(tmp_path))) as server:
        page = opened(server.url)
        page.locator("[data-state=finished]").wait_for()
        page.select_option("#run", "k2")
        page.select_option("#other", "k3")
        legend = page.locator("[data-plot=loss] .u-legend")
        page.wait_for_function(
            "() => document.querySelector('.u-legend')?.innerText.includes('k3')"
        )
        assert "k2" in legend.inner_text()
        page.reload()  # the address remembers what is looked at
        page.locator("[data-plot=loss] .u-legend", has_text="k3").wait_for()
        assert page.locator("#run").input_value() == "k2"
        assert page.locator("[data-part=sizes] i").count() == 2


def test_another_fit_at_the_same_place_is_shown_from_its_start(spark, opened, tmp_path):
    df = spark.createDataFrame(pd.DataFrame({"features": list(X)}))
    KMeans(k=2).setRunDir(f"{tmp_path}/one").fit(df)
    with Server(Directory(str(tmp_path))) as server:
        page = opened(server.url)
        page.locator("[data-part=sizes] i").nth(1).wait_for()
        shutil.rmtree(tmp_path / "one")
        KMeans(k=4).setRunDir(f"{tmp_path}/one").fit(df)
        page.locator("[data-part=sizes] i").nth(3).wait_for()
        assert page.locator("[data-part=actions] li", has_text="finished").count() == 1


HOST = """
async ([source, style]) => {
  const listeners = [];
  const model = {
    on: (name, listener) => listeners.push(listener),
    send: (message) => window.heard(message),
  };
  const sheet = document.createElement("style");
  sheet.textContent = style;
  document.head.append(sheet);
  const made = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const widget = await made.default();
  await widget.initialize({ model });
  for (let view = 0; view < 2; view++) {
    const el = document.createElement("div");
    document.body.append(el);
    await widget.render({ model, el });
  }
  const pull = async () => {
    const messages = await window.pulled();
    for (const message of messages) for (const listener of listeners) listener(message);
    setTimeout(pull, 50);
  };
  pull();
}
"""


def test_the_widget_shows_a_fit_in_every_view_and_steers_it(spark, opened):
    run = descent(spark)
    widget: Any = run.widget()
    sent: list[Any] = []
    widget.send = sent.append
    page = opened()

    def pulled():
        taken = sent[:]
        del sent[: len(taken)]
        return taken

    page.expose_function("heard", lambda message: widget._heard(widget, message, []))
    page.expose_function("pulled", pulled)
    page.evaluate(HOST, [widget._esm, widget._css])
    page.locator("[data-state=running]").nth(1).wait_for()
    # As in JupyterLab, where Enter by itself sends no form.
    page.evaluate("addEventListener('keypress', (event) => event.preventDefault(), true)")
    first, second = page.locator(".runview").all()
    first.locator("[name=stepSize]").fill("0")
    page.keyboard.press("Enter")
    first.locator(".answer.bad", has_text="refused: setting 'step_size'").wait_for()
    first.locator("[name=stepSize]").fill("0.5")
    page.keyboard.press("Enter")
    first.locator(".answer", has_text="set stepSize 0.5").wait_for()
    second.locator("[data-part=actions] li", has_text="set stepSize 0.5 (widget").wait_for()
    first.locator("[data-command=pause]").click()
    second.locator("[data-command=resume]:enabled").wait_for()
    assert run.state == "paused"
    ended(run)
    page.locator("[data-state=stopped]").nth(1).wait_for()
