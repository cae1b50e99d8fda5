"""Figures as inline SVG: text that a page styles by its own classes, without a script.

A drawing is :data:`WIDTH` units wide, about the width of a telephone, so that its text keeps its
size there. Colours are classes (``s0``, ``s1``, ... for series, ``heat``, ``cold``), which the
page gives a meaning in light and dark. All text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from mllib_ext.figures import Axis, Bars, Figure, Line, Mark, Matrix, Point

WIDTH, HEIGHT = 380, 250
TOP, RIGHT, BOTTOM = 12, 14, 40
LETTER = 7.0  # the mean width of one at the size of ticks, in a wide font
LONGEST, LONGEST_SLANTED = 24, 12  # letters of a name beside an axis, below one
SERIES = 10  # classes s0, ..., s9
LEAST_CELL = 19  # units that a number in a cell needs
# Above this share of the colour, a number on it is written in the other shade.
DEEP = 0.63

Scale = Callable[[float], float]


def legend(figure: Figure) -> list[tuple[str, str]]:
    """The class and the name of everything that has one, to be listed beside the drawing."""
    found, series = [], 0
    for part in figure.parts:
        match part:
            case Line(label=label, reference=reference):
                name = "reference" if reference else f"s{series % SERIES}"
                series += not reference
                if label:
                    found.append((name, label))
            case Bars(labels=labels):
                found += [(f"s{i % SERIES}", label) for i, label in enumerate(labels)]
    return found


def draw(figure: Figure, key: str) -> str:
    """The drawing of a figure.

    Parameters
    ----------
    figure : Figure
    key : str
        An identifier that no other drawing of the page has.
    """
    frame = _Frame.of(figure)
    body: list[str] = []
    series = 0
    for part in figure.parts:
        match part:
            case Line():
                name = "reference" if part.reference else f"s{series % SERIES}"
                series += not part.reference
                body += _line(part, frame, name)
            case Bars():
                body += _bars(part, frame)
            case Matrix():
                body += _matrix(part, frame, figure)
            case Mark():
                body += _mark(part, frame)
            case Point():
                body += _point(part, frame)
    label = f'aria-labelledby="{key}-title {key}-text"'
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {frame.height}" role="img" {label}>',
            f'<title id="{key}-title">{escape(figure.title)}</title>',
            f'<desc id="{key}-text">{escape(figure.text)}</desc>',
            *_axes(figure, frame),
            *body,
            "</svg>",
        ]
    )


# --- the frame -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """Where the data are drawn: its edges, and what takes values there."""

    left: float
    right: float
    top: float
    bottom: float
    height: int
    x: Scale
    y: Scale
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    slanted: bool

    @classmethod
    def of(cls, figure: Figure) -> _Frame:
        horizontal = any(isinstance(p, Bars) and p.horizontal for p in figure.parts)
        cells = next((p for p in figure.parts if isinstance(p, Matrix) and p.extent is None), None)
        x_range, y_range = _ranges(figure)
        flipped = horizontal or cells is not None  # the first place on top
        rows = len(figure.y.names or ()) if figure.y.names else 0
        y_ticks = _ticks(figure.y, y_range)
        longest = max((len(_cut(text)) for _, text in y_ticks), default=0)
        left = 24 + LETTER * longest if figure.y.label else 10 + LETTER * longest
        across = WIDTH - RIGHT - left
        x_ticks = _ticks(figure.x, x_range)
        slanted = False
        if figure.x.names is not None and x_ticks:
            widest = LETTER * max(len(_cut(text)) for _, text in x_ticks)
            slanted = widest + 4 > across / len(x_ticks)
        tall = float(BOTTOM)
        if slanted:
            tall += LETTER * max(len(_cut(t, LONGEST_SLANTED)) for _, t in x_ticks) - 8
        if cells is not None and figure.x.names == figure.y.names:
            inside = across  # square cells
        elif cells is not None:
            inside = max(120.0, 18.0 * cells.values.shape[0])
        elif horizontal:
            inside = max(60.0, 17.0 * rows)
        else:
            inside = HEIGHT - TOP - BOTTOM
        bottom = TOP + inside
        x = _scale(figure.x, x_range, left, WIDTH - RIGHT)
        ends = (TOP, bottom) if flipped else (bottom, TOP)
        y = _scale(figure.y, y_range, *ends)
        height = math.ceil(bottom + tall)
        return cls(left, WIDTH - RIGHT, TOP, bottom, height, x, y, x_ticks, y_ticks, slanted)


def _ranges(figure: Figure) -> tuple[tuple[float, float], tuple[float, float]]:
    """What both axes reach over."""
    xs: list[np.ndarray] = []
    ys: list[np.ndarray] = []
    zero = False
    for part in figure.parts:
        match part:
            case Line():
                xs.append(part.x)
                ys += [v for v in (part.y, part.low, part.high) if v is not None]
            case Bars():
                n = part.heights.shape[1]
                edges = np.array([-0.5, n - 0.5]) if part.edges is None else part.edges
                along, up = (ys, xs) if part.horizontal else (xs, ys)
                along.append(edges)
                up += [part.heights.sum(axis=0), np.zeros(1)]
                zero = zero or not part.horizontal
            case Matrix(extent=None):
                rows, columns = part.values.shape
                xs.append(np.array([-0.5, columns - 0.5]))
                ys.append(np.array([-0.5, rows - 0.5]))
            case Point():
                xs.append(np.array([part.x]))
                ys.append(np.array([part.y]))
    exact_y = figure.y.names is not None
    exact_x = figure.x.names is not None or any(
        isinstance(p, Bars) and not p.horizontal for p in figure.parts
    )
    return (
        _range(figure.x, xs, 0.0 if exact_x else 0.03, False),
        _range(figure.y, ys, 0.0 if exact_y else 0.06, zero),
    )


def _range(
    axis: Axis, values: Sequence[np.ndarray], room: float, zero: bool
) -> tuple[float, float]:
    if axis.limits is not None:
        return axis.limits
    known = np.concatenate([np.ravel(v).astype(np.float64) for v in values] or [np.zeros(1)])
    known = known[np.isfinite(known) & ((known > 0) | (not axis.log))]
    low, high = (float(known.min()), float(known.max())) if len(known) else (1.0, 1.0)
    if axis.log:
        low, high = math.log10(low), math.log10(high)
    if not high - low > 1e-12 * max(abs(low), abs(high)):
        low, high = (low - 0.5, high + 0.5) if not zero else (min(low, 0.0), high or 1.0)
    space = room * (high - low)
    starts = zero and low == 0  # bars stand on the axis
    low, high = (low if starts else low - space), high + space
    return (10**low, 10**high) if axis.log else (low, high)


def _scale(axis: Axis, ends: tuple[float, float], start: float, stop: float) -> Scale:
    low, high = (math.log10(v) for v in ends) if axis.log else ends

    def place(value: float) -> float:
        if axis.log:
            value = math.log10(value) if value > 0 else -math.inf
        return start + (stop - start) * (value - low) / (high - low)

    return place


def _ticks(axis: Axis, ends: tuple[float, float], most: int = 6) -> list[tuple[float, str]]:
    """Places on an axis and what is written there."""
    if axis.names is not None:
        # So many that they do not touch, the first among them.
        every = -(-len(axis.names) // 30)
        return [(i, name) for i, name in enumerate(axis.names) if i % every == 0]
    low, high = ends
    if axis.log:
        powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
        if len(powers) >= 2:
            every = -(-len(powers) // most)
            return [(10.0**p, _number(10.0**p)) for p in powers if p % every == 0]
        inner = [m * 10.0**p for p in range(powers.start - 1, powers.stop + 1) for m in (1, 2, 5)]
        return [(v, _number(v)) for v in inner if low <= v <= high]
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * (1 - 1e-9))
    if axis.integer:
        step = max(1.0, float(math.ceil(step)))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [((first + i) * step, _number((first + i) * step)) for i in range(count)]


def _number(value: float) -> str:
    """A number that is short enough for a tick."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.6g}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:.4g}{letter}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _cut(name: str, longest: int = LONGEST) -> str:
    """The name without its middle: both the column and the category of a feature are to be seen."""
    if len(name) <= longest:
        return name
    end = longest // 2
    return f"{name[: longest - end - 1]}…{name[-end:]}"


def _axes(figure: Figure, f: _Frame) -> Iterable[str]:
    gridded = not any(isinstance(p, Matrix) for p in figure.parts)
    for value, text in f.y_ticks:
        y = f.y(value)
        if gridded and figure.y.names is None:
            yield f'<path class="grid" d="M{f.left:.1f} {y:.1f}H{f.right:.1f}"/>'
        yield _text(text, f.left - 5, y + 3.5, "tick", "end", longest=LONGEST)
    for value, text in f.x_ticks:
        x = f.x(value)
        if gridded and figure.x.names is None:
            yield f'<path class="grid" d="M{x:.1f} {f.top:.1f}V{f.bottom:.1f}"/>'
        if f.slanted:
            turn = f' transform="rotate(-90 {x + 3.5:.1f} {f.bottom + 6:.1f})"'
            yield _text(text, x + 3.5, f.bottom + 6, "tick", "end", turn, LONGEST_SLANTED)
        else:
            yield _text(text, x, f.bottom + 15, "tick", "middle", longest=LONGEST)
    yield f'<path class="axis" d="M{f.left:.1f} {f.top:.1f}V{f.bottom:.1f}H{f.right:.1f}"/>'
    if figure.x.label:
        yield _text(figure.x.label, (f.left + f.right) / 2, f.height - 6, "name", "middle")
    if figure.y.label:
        middle = (f.top + f.bottom) / 2
        turn = f' transform="rotate(-90 11 {middle:.1f})"'
        yield _text(figure.y.label, 11, middle, "name", "middle", turn)


def _text(
    text: str, x: float, y: float, kind: str, anchor: str, more: str = "", longest: int = 100
) -> str:
    """A text; what is cut of it shows under the pointer."""
    whole = f"<title>{escape(text)}</title>" if len(text) > longest else ""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>'
        f"{escape(_cut(text, longest))}{whole}</text>"
    )


# --- the parts -----------------------------------------------------------------------------------


def _line(line: Line, f: _Frame, name: str) -> Iterable[str]:
    if line.low is not None and line.high is not None:
        there = _points(line.x, line.high, f)
        back = _points(line.x, line.low, f)[::-1]
        if there and back:
            yield f'<path class="{name} band" d="M{_joined([*there, *back])}Z"/>'
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        point = (f.x(float(x)), f.y(float(y)))
        if np.isfinite(point).all():
            pieces[-1].append(point)
        elif pieces[-1]:
            pieces.append([])
    for points in map(_thinned, pieces):
        if len(points) > 1:
            yield f'<path class="{name} line" d="M{_joined(points)}"/>'
    points = [point for piece in pieces for point in piece]
    if (line.dots and len(points) <= 60) or len(points) == 1:
        circles = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points)
        yield f'<g class="{name} dots">{circles}</g>'


def _points(xs: np.ndarray, ys: np.ndarray, f: _Frame) -> list[tuple[float, float]]:
    points = [(f.x(float(x)), f.y(float(y))) for x, y in zip(xs, ys, strict=True)]
    return [point for point in points if np.isfinite(point).all()]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of the points within one unit's width the first, lowest, highest and last: no less to see."""
    if len(points) <= 2 * WIDTH:
        return points
    columns: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        columns.setdefault(int(point[0]), []).append(point)
    kept = []
    for column in columns.values():
        order = range(len(column))
        least = min(order, key=lambda i: column[i][1])
        most = max(order, key=lambda i: column[i][1])
        kept += [column[i] for i in sorted({0, least, most, len(column) - 1})]
    return kept


def _joined(points: Iterable[tuple[float, float]]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _bars(bars: Bars, f: _Frame) -> Iterable[str]:
    n = bars.heights.shape[1]
    if bars.edges is None:
        edges = np.column_stack([np.arange(n) - 0.4, np.arange(n) + 0.4])
    else:
        edges = np.column_stack([bars.edges[:-1], bars.edges[1:]])
    base = np.zeros(n)
    for i, heights in enumerate(bars.heights):
        rects = []
        for (start, stop), low, height in zip(edges, base, heights, strict=True):
            if bars.horizontal:
                a, b = f.x(low), f.x(low + height)
                c, d = f.y(start), f.y(stop)
            else:
                a, b = f.x(start), f.x(stop)
                c, d = f.y(low), f.y(low + height)
                if n <= 60 and b - a > 3:
                    a, b = a + 0.5, b - 0.5
            cls = ' class="cold"' if height < 0 else ""
            rects.append(
                f'<rect{cls} x="{min(a, b):.1f}" y="{min(c, d):.1f}" width="{abs(b - a):.1f}" '
                f'height="{abs(d - c):.1f}"/>'
            )
        base = base + heights
        yield f'<g class="s{i % SERIES} bars">{"".join(rects)}</g>'
    if bars.horizontal:
        yield f'<path class="axis" d="M{f.x(0):.1f} {f.top:.1f}V{f.bottom:.1f}"/>'


def _matrix(cells: Matrix, f: _Frame, figure: Figure) -> Iterable[str]:
    rows, columns = cells.values.shape
    if cells.extent is None:
        xs, ys = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    else:
        left, right, low, high = cells.extent
        xs, ys = np.linspace(left, right, columns + 1), np.linspace(low, high, rows + 1)
    across, down = [f.x(float(x)) for x in xs], [f.y(float(y)) for y in ys]
    size = abs(across[1] - across[0])
    longest = max((len(t) for row in cells.texts or () for t in row), default=0)
    written = cells.texts is not None and size >= max(LEAST_CELL, LETTER * longest + 2)
    for (i, j), value in np.ndenumerate(cells.values):
        share = min(abs(float(value)) / cells.limit, 1.0) if np.isfinite(value) else 0.0
        text = cells.texts[i][j] if cells.texts is not None else ""
        if share == 0 and not written:
            continue
        a, b = across[j : j + 2]
        c, d = sorted(down[i : i + 2])
        kind = "cold" if value < 0 else "heat"
        said = ""
        if cells.texts is not None and figure.x.names and figure.y.names:
            said = f"{figure.y.names[i]}, taken for {figure.x.names[j]}: {text}"
            said = f"<title>{escape(said)}</title>"
        yield (
            f'<rect class="{kind}" x="{a:.1f}" y="{c:.1f}" width="{b - a:.1f}" '
            f'height="{d - c:.1f}" fill-opacity="{share:.3g}">{said}</rect>'
        )
        if written:
            deep = "on deep" if share > DEEP else "on"
            yield _text(text, (a + b) / 2, (c + d) / 2 + 3.5, deep, "middle")


def _mark(mark: Mark, f: _Frame) -> Iterable[str]:
    x = f.x(mark.x)
    yield f'<path class="mark" d="M{x:.1f} {f.top:.1f}V{f.bottom:.1f}"/>'
    turn = f' transform="rotate(-90 {x - 3:.1f} {f.top + 2:.1f})"'
    yield _text(mark.text, x - 3, f.top + 2, "marked", "end", turn, 30)


def _point(point: Point, f: _Frame) -> Iterable[str]:
    x, y = f.x(point.x), f.y(point.y)
    yield f'<g class="s0 dots"><circle cx="{x:.1f}" cy="{y:.1f}" r="4"/></g>'
    right = x < (f.left + f.right) / 2
    yield _text(
        point.text, x + (8 if right else -8), y + 14, "pointed", "start" if right else "end"
    )
