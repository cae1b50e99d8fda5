"""A job's result as one page: a self-contained HTML file that asks for no script and no network.

A page is its title, a few numbers that matter most, and sections of facts, tables, figures and
code. What fails to be made leaves a sentence in its place; the rest of the page stands. All text
is escaped by the template.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from mllib_ext.figures import Figure
from mllib_ext.report.svg import draw, legend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """A table: ``rows`` of text, numbers and None, one for each of ``head``.

    ``title`` is its caption. Columns that hold numbers alone are set to the right.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        columns: Iterable[Sequence[Any]] = [[] for _ in self.head]
        if self.rows:
            columns = zip(*self.rows, strict=True)
        return [
            all(isinstance(v, int | float | None) and not isinstance(v, bool) for v in column)
            for column in columns
        ]


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading of its own; ``folded`` shows the heading alone at first."""

    title: str
    text: Sequence[str] = ()
    facts: Sequence[tuple[str, Any]] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    code: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes
    ----------
    title, subtitle : str
    tiles : sequence of (str, value)
        The numbers that matter most, with their names.
    sections : sequence of (str, callable)
        The title of each section and what makes it; None for one that there is nothing to say in.
    """

    title: str
    subtitle: str
    tiles: Sequence[tuple[str, Any]] = ()
    sections: Sequence[tuple[str, Callable[[], Section | None]]] = ()


def render(page: Page) -> str:
    """The page as HTML. Parts that fail are named in one warning."""
    environment = _environment()
    section = environment.get_template("section.html")
    sections: list[Markup] = []
    failed: list[str] = []
    for number, (title, make) in enumerate(page.sections):
        key = f"part-{number}"
        try:
            one = make()
            if one is not None:
                sections.append(Markup(section.render(one=one, key=key)))
        except Exception as error:
            first = str(error).partition("\n")[0]
            failed.append(f"{title} ({type(error).__name__}: {first})")
            one = Section(title, ["This part could not be made; the log of the job says why."])
            sections.append(Markup(section.render(one=one, key=key)))
    if failed:
        logger.warning("the report goes without %s", "; ".join(failed))
    return environment.get_template("page.html").render(page=page, sections=sections)


@cache
def _environment() -> Environment:
    here = files(__name__)  # in a zip, too
    environment = Environment(
        loader=FunctionLoader(lambda name: here.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    environment.globals["draw"] = lambda figure, key: Markup(draw(figure, key))
    environment.globals["legend"] = legend
    return environment


def shown(value: Any) -> str:
    """A value as text: numbers in six digits, as the last words of a job have them."""
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1e4 else f"{value:.6g}"
        case list() | tuple():
            return ", ".join(map(shown, value))
        case dict():
            return ", ".join(f"{key}: {shown(item)}" for key, item in value.items())
    return str(value)
