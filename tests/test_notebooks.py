"""Notebooks run from top to bottom in a fresh kernel, and show what they were committed with."""

from __future__ import annotations

import copy
import re
import shutil

import nbformat
import pytest

from kernel import NOTEBOOKS, clean, run

PICTURES = {
    "01_quickstart.ipynb": 4,
    "02_clustering_and_neighbours.ipynb": 6,
    "03_sgd_and_networks.ipynb": 4,
    "04_watch_and_steer.ipynb": 3,
    "05_support_vectors.ipynb": 3,
}

# Absolute paths, in POSIX's way or Windows's, and addresses.
OF_A_MACHINE = re.compile(r"(?<![\w.])/(?:\w[\w.-]*/)+|\b[A-Z]:\\|\b\d+\.\d+\.\d+\.\d+\b")


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell puts out, but for the numbers in it: names of streams, and MIME types."""
    return [output.get("name") or sorted(output.get("data", {})) for output in cell.outputs]


def test_every_notebook_has_its_number_of_pictures_below():
    assert [path.name for path in NOTEBOOKS] == sorted(PICTURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_puts_out_what_it_was_committed_with(path, tmp_path):
    shutil.copy(path, tmp_path)
    fresh, committed = run(tmp_path / path.name, tmp_path), nbformat.read(path, as_version=4)
    warned = [
        output.text
        for cell in code(fresh)
        for output in cell.outputs
        if output.get("name") == "stderr" and "Warning" in output.text
    ]
    assert not warned
    clean(fresh)
    assert [kinds(cell) for cell in code(fresh)] == [kinds(cell) for cell in code(committed)]
    pictures = [
        output
        for cell in code(fresh)
        for output in cell.outputs
        if {"image/png", "image/svg+xml"} & set(output.get("data", {}))
    ]
    assert len(pictures) == PICTURES[path.name]
    assert [left.name for left in tmp_path.iterdir()] == [path.name], "files are left behind"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_committed_notebook_tells_nothing_of_the_machine_it_ran_on(path):
    notebook = nbformat.read(path, as_version=4)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    texts = [
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for cell in cells
        for output in cell.outputs
    ]
    assert texts
    assert [text for text in texts if OF_A_MACHINE.search(text)] == []
    cleaned = copy.deepcopy(notebook)
    clean(cleaned)
    assert notebook == cleaned


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("saved in /tmp/a/model", True),
        (r"C:\Users", True),
        ("at 10.0.0.7:4040", True),
        ("rows/s 1/2, a/b, 0.9331", False),
        ("[0.1,2.0] 1e-6", False),
    ],
)
def test_paths_and_addresses_are_recognised(text, found):
    assert bool(OF_A_MACHINE.search(text)) is found
