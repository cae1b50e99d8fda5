"""The page in Chromium, beside a fit that goes on."""

from __future__ import annotations

import shutil
import time
from typing import Any

import pandas as pd
import pytest
from sklearn.datasets import load_iris

from mllib_ext.clustering import KMeans
from mllib_ext.optimizers.loop import Change

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

PATIENCE = 120_000  # milliseconds, on a machine that others use

X, _ = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root in a container Chromium has no sandbox of its own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(spark):
    df = spark.createDataFrame(pd.DataFrame({"features": list(X)})).repartition(2)
    estimator: Any = KMeans(k=3, tol=0.0, maxIter=10**6).setCallbacks([slow, go_on])
    run = estimator.fitAsync(df)
    yield run
    if run.state in ("starting", "running", "paused"):
        run.stop()
    run.result(60)


def slow(state, record):
    time.sleep(0.05)


def go_on(state, record):
    """Centers that stand would end the fit: a change of settings takes that back."""
    return Change(max_iter=10**6 + record.iteration % 2) if state.step_size == 0 else None


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_draws_a_fit_and_fits_the_screen(browser, run, width, scheme):
    with run.serve() as server:
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console", lambda message: errors.extend([message.text] * (message.type == "error"))
        )
        page.set_default_timeout(PATIENCE)
        page.goto(server.url)
        page.locator("#state.running").wait_for()
        page.locator("#clusters circle").nth(2).wait_for()
        assert "key=" not in page.url
        assert page.locator(".plot canvas").count() >= 4
        assert page.locator("#partitions i").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert errors == []
        page.close()


def test_a_click_pauses_sets_and_stops_the_fit_and_the_page_says_so(browser, run):
    with run.serve() as server:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(server.url)
        page.locator("#set-tol").fill("-1")
        page.keyboard.press("Enter")
        page.locator("#answer.bad", has_text="expected a number in [0, inf], found -1").wait_for()
        page.locator("#set-tol").fill("0.5")
        page.keyboard.press("Enter")
        page.locator("#answer", has_text="set tol 0.5").wait_for()
        page.locator("[data-command=pause]").click()
        page.locator("#state.paused").wait_for()
        assert run.state == "paused"
        n = len(run.rounds)
        time.sleep(0.3)
        assert len(run.rounds) == n
        page.once("dialog", lambda dialog: dialog.accept())
        page.locator("[data-command=stop]").click()
        page.locator("#state.stopped").wait_for()
        assert run.result(60).reason == "stopped by a command"
        page.locator("#actions li").nth(4).wait_for()
        page.close()
