"""The README: its tables are held against what there is, and its examples run."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import mllib_ext

ROOT = Path(mllib_ext.__path__[0]).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table(head):
    """The cells of each row of the table with that head."""
    text = README.split(head, 1)[1]
    lines = text.splitlines()[2:]  # the head's end and the line under it
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def code(cell):
    """The words in backticks."""
    return re.findall(r"`([^`]+)`", cell)


CAPABILITIES = [(code(module)[0], code(names), text) for module, names, text in table("| from |")]


def public_modules():
    """The names that each module of the package exports, for those that say so."""
    names = [f"mllib_ext.{module.name}" for module in pkgutil.iter_modules(mllib_ext.__path__)]
    modules = {name: importlib.import_module(name) for name in names}
    return {name: module.__all__ for name, module in modules.items() if hasattr(module, "__all__")}


def test_the_table_has_every_name_that_is_exported_and_no_other():
    exported = public_modules()
    assert {"mllib_ext.classification", "mllib_ext.regression"} <= exported.keys()
    for module, names in exported.items():
        listed = [name for m, row, _ in CAPABILITIES if m == module for name in row]
        assert sorted(listed) == sorted(names), module
    for module, names, _ in CAPABILITIES:
        for name in names:
            assert pkgutil.resolve_name(f"{module}.{name}") is not None


def test_the_table_has_the_solvers_of_each_estimator_and_no_other(spark):
    checked = 0
    for module, names, text in CAPABILITIES:
        for name in names:
            estimator: Any = getattr(importlib.import_module(module), name, None)
            if name.endswith("Model") or not hasattr(estimator, "setSolver"):
                continue
            with pytest.raises(ValueError, match="param solver: expected one of") as refusal:
                estimator(solver="none").fit(spark.range(1))
            known = set(re.findall(r"'([^']+)'", str(refusal.value).split("found")[0]))
            assert set(code(text.partition("solvers ")[2])) == known - {"auto"}, name
            checked += 1
    assert checked >= 2


def test_the_table_has_every_job_and_no_other():
    jobs = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("jobs/*.py"))
    assert sorted(code(row[0])[0] for row in table("| job |")) == jobs


def test_files_that_are_linked_or_named_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    named = re.findall(r"(?<![\w/:])(?:jobs|conf|docs|notebooks|tests)/[\w./-]+\w", README)
    assert links
    assert named
    assert [path for path in links + named if not (ROOT / path).exists()] == []


def test_the_python_examples_run(spark):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) > 1
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    model = namespace["model"]
    assert model.converged
    # Of the five rows the last lies among those of the other class.
    assert model.transform(namespace["df"]).where("label != prediction").count() == 1
