"""The page of a job's report, without Spark: whole, self-contained, safe, and it shows the data."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from mllib_ext import figures
from mllib_ext.blocks import PartitionReport, Round
from mllib_ext.curves import Residuals, ScoreBins
from mllib_ext.optimizers.loop import Record, Settings
from mllib_ext.report import Page, Section, Table, render, shown
from mllib_ext.report.svg import WIDTH, draw, legend

EVIL = "<script>alert(\"1\")</script> & 'co'"
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Balanced(HTMLParser):
    """Fails on tags that do not close in order; gathers all tags, attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(text):
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def history(n, partitions=4, actions=()):
    """Records of a fit whose partition 2 is slow."""
    records = []
    for i in range(n):
        parts = [PartitionReport(p, "one", 10 + p, 80, 0.1 + (p == 2)) for p in range(partitions)]
        r = Round(1.5, 100, 40, tuple(parts), 2)
        loss = 1 / (1 + i)
        records.append(Record(i, loss, loss / 7, 1.0, 1.75, (r,), Settings(), actions))
    return records


SCORES = ScoreBins(EVIL, np.array([0.9, 0.1]), np.array([3.0, 1.0]), np.array([1.0, 5.0]),
                   np.array([[4.0, 3.0, 3.6], [6.0, 1.0, 0.6]]))  # fmt: skip
RESIDUALS = Residuals(np.linspace(-1, 1, 4), np.linspace(0, 5, 3), np.arange(6.0).reshape(3, 2),
                      0.1, 0.5, False)  # fmt: skip
FIGURES = [
    figures.loss_curve(history(9, actions=(f"change {EVIL}",))),
    figures.gradient_norm(history(1)),
    figures.round_times(history(450)),
    figures.round_bytes(history(2)),
    figures.partition_skew(history(2)),
    figures.partition_skew(history(1, partitions=300), "rows"),
    figures.confusion_matrix(np.eye(3) * 5, ["a", EVIL, "c"]),
    figures.confusion_matrix(np.ones((60, 60))),
    figures.roc_curve([SCORES]),
    figures.precision_recall_curve([SCORES, SCORES]),
    figures.calibration_curve([SCORES]),
    *figures.residuals(RESIDUALS),
    figures.sizes("Cluster sizes", [0, 1], [5, 0], "cluster", "rows"),
    figures.sizes("Cluster sizes", range(300), np.zeros(300), "cluster", "rows"),
]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.title)
def test_a_drawing_is_xml_within_its_frame_and_says_what_it_shows(figure):
    svg: Any = ElementTree.fromstring(draw(figure, "key"))
    assert svg.get("role") == "img"
    names = {svg.find(f"*[@id='{key}']").text for key in svg.get("aria-labelledby").split()}
    assert names == {figure.title, figure.text}
    _, _, width, height = map(float, svg.get("viewBox").split())
    assert width == WIDTH
    numbers = 0
    for element in svg.iter():
        for name, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            if element.get(name) is not None:
                assert -1 <= float(element.get(name)) <= limit + 1
                numbers += 1
        for x, y in re.findall(r"[ML](\S+) (\S+?)(?=[MLHVZ]|$)", element.get("d", "")):
            assert -1 <= float(x) <= width + 1
            assert -1 <= float(y) <= height + 1
            numbers += 1
    assert numbers > 4
    assert legend(figure) == [] or all(name and kind for kind, name in legend(figure))


def line_points(text):
    """The points (n, 2) of a drawing's first line."""
    svg: Any = ElementTree.fromstring(text)
    (line,) = [e for e in svg.iter("path") if e.get("class") == "s0 line"]
    return np.array([p.split() for p in line.get("d")[1:].split("L")], dtype=float)


def test_a_drawing_has_the_data():
    svg: Any = ElementTree.fromstring(draw(figures.confusion_matrix([[7, 1], [0, 2]]), "key"))
    cells = [e for e in svg.iter("text") if "on" in e.get("class").split()]
    assert [cell.text for cell in cells] == ["7", "1", "0", "2"]
    shades = [float(e.get("fill-opacity")) for e in svg.iter("rect")]
    assert shades == pytest.approx([0.875, 0.125, 0, 1], abs=1e-3)

    bars: Any = ElementTree.fromstring(draw(figures.sizes("", [0, 1, 2], [4, 1, 2], "", ""), "key"))
    heights = [float(e.get("height")) for e in bars.iter("rect")]
    assert np.array(heights) / heights[0] == pytest.approx([1, 0.25, 0.5], abs=0.01)

    rates = np.array(SCORES.roc())
    points = line_points(draw(FIGURES[8], "key")).T
    for drawn, rate in zip(points, rates, strict=True):  # a straight scale of each axis
        assert np.polyfit(rate, drawn, 1, full=True)[1] == pytest.approx(0, abs=0.02)


def test_a_long_history_is_drawn_without_losing_its_peaks():
    records = history(20_000, partitions=1)
    records[12_345] = replace(records[12_345], loss=9.0)
    text = draw(figures.loss_curve(records), "key")
    assert len(text) < 60_000
    points = line_points(text)
    x = points[points[:, 1].argmin(), 0]  # the top of the picture
    first, last = points[0, 0], points[-1, 0]
    assert (x - first) / (last - first) == pytest.approx(12_345 / 19_999, abs=0.003)
    (bars,) = figures.round_times(records).parts
    assert bars.heights.shape[1] <= figures.BARS
    widths = np.diff(np.asarray(bars.edges))
    total = sum(record.seconds for record in records) * 1e3
    assert (bars.heights.sum(axis=0) * widths).sum() == pytest.approx(total, rel=1e-9)


def test_time_and_skew_are_those_of_the_partitions():
    (bars,) = figures.round_times(history(1)).parts
    # 1.4 s of partitions on two tasks cannot be done in less than 1.1, the longest of them.
    assert bars.heights[:, 0] == pytest.approx([1100, 400, 250])
    skew = figures.partition_skew(history(3))
    assert skew.parts[0].heights[0] == pytest.approx([3.3, 0.3, 0.3, 0.3])
    assert (skew.x.names or ())[0] == "2"
    assert "skew 3 s, partition 2 on one" in skew.text


def page(*sections):
    parts = [(one.title, partial(replace, one)) for one in sections]
    return Page(EVIL, EVIL, [(EVIL, 0.5)], parts)


def test_a_page_is_whole_self_contained_and_escapes_what_users_wrote():
    everything = Section(
        EVIL,
        [EVIL],
        [(EVIL, EVIL), ("none", None), ("rows", 12_345)],
        FIGURES,
        [Table([EVIL, "number"], [[EVIL, 0.1234567], ["b", None]], EVIL)],
        EVIL,
        folded=True,
    )
    text = render(page(everything, replace(everything, folded=False)))
    found = parsed(text)
    tags = [tag for tag, _ in found.seen]
    assert tags.count("svg") > 2 * len(FIGURES)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(tags)
    for tag, attributes in found.seen:
        assert not {"src", "href", "style", "xlink:href"} & attributes.keys(), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert not re.search(r"url\(|@import|https?:", text)
    keys = [attributes["id"] for _, attributes in found.seen if "id" in attributes]
    assert len(keys) == len(set(keys))
    named = {a.get("aria-labelledby") for _, a in found.seen} - {None}
    assert {key for name in named for key in name.split()} <= set(keys)
    assert found.text.count(EVIL) > 10
    assert "12,345" in found.text
    assert "0.123457" in found.text


def test_a_part_that_fails_is_one_warning_and_the_rest_stands(caplog):
    def broken():
        raise RuntimeError("no such thing\nand more")

    whole = Section("Whole", ["stands"])
    bad_table = Section("Table", tables=[Table(["a"], [[1], [2, 3]])])
    several = Page("t", "s", (), [
        ("Broken", broken),
        ("Table", lambda: bad_table),
        ("Nothing", lambda: None),
        ("Whole", lambda: whole),
    ])  # fmt: skip
    with caplog.at_level(logging.WARNING):
        found = parsed(render(several))
    assert "stands" in found.text
    assert "Nothing" not in found.text
    assert found.text.count("could not be made") == 2
    (record,) = caplog.records
    assert "Broken (RuntimeError: no such thing)" in record.getMessage()
    assert "and more" not in record.getMessage()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.963888888, "0.963889"),
        (30162.0, "30,162"),
        ([1, 2.5], "1, 2.5"),
        ({"a": [1]}, "a: 1"),
        ("text", "text"),
    ],
)
def test_values_are_shown_as_the_last_words_of_a_job_have_them(value, text):
    assert shown(value) == text
