"""A run as a still picture: where there is neither a page nor a widget."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 640, 220
LEFT, TOP, RIGHT, BOTTOM = 70, 34, 620, 196  # of the curve
# Points of a curve: more than two a pixel are not seen.
MOST = 1_200


def picture(description: dict[str, Any], events: Iterable[dict[str, Any]]) -> str:
    """The loss of every round as SVG, dashed lines where somebody interfered, and the state.

    Parameters
    ----------
    description : dict
        As in ``run.json``.
    events : iterable of dict
        :mod:`mllib_ext.monitor.events`.
    """
    losses: list[float | None] = []
    marks: list[int] = []
    state = "starting"
    for event in events:
        if event["event"] == "round":
            losses.append(event["loss"])
        elif event["event"] in ("state", "end"):
            state = event["state"]
        elif event.get("status") != "refused" and "iteration" in event:
            marks.append(max(0, len(losses) - 1))
    known = [loss for loss in losses if loss is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    across = (RIGHT - LEFT) / max(len(losses) - 1, 1)
    down = (BOTTOM - TOP) / ((high - low) or 1.0)
    every = math.ceil(len(losses) / MOST) or 1
    points = " ".join(
        f"{LEFT + i * across:.1f},{BOTTOM - (loss - low) * down:.1f}"
        for i, loss in enumerate(losses)
        if loss is not None and (i % every == 0 or i == len(losses) - 1)
    )
    name = str(description.get("estimator", "")).rpartition(".")[2]
    title = f"{name}, {state}: {max(len(losses) - 1, 0)} rounds"
    title += f", loss {known[-1]:.6g}" if known else ""
    lines = "".join(
        f'<path class="mark" d="M{LEFT + at * across:.1f} {TOP}V{BOTTOM}"/>' for at in marks[-200:]
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" font-family="system-ui, sans-serif" font-size="12">'
        "<style>.frame{fill:none;stroke:#8888}.mark{stroke:#8a4fc4;stroke-dasharray:4 4}"
        ".loss{fill:none;stroke:#1f6fd1;stroke-width:2}text{fill:#667080}</style>"
        f'<text x="{LEFT}" y="20" font-weight="600">{escape(title)}</text>'
        f'<path class="frame" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>{lines}'
        f'<polyline class="loss" points="{points}"/>'
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{high:.4g}</text>'
        f'<text x="{LEFT - 6}" y="{BOTTOM}" text-anchor="end">{low:.4g}</text>'
        f'<text x="{LEFT}" y="{BOTTOM + 16}">0</text>'
        f'<text x="{RIGHT}" y="{BOTTOM + 16}" text-anchor="end">'
        f"round {max(len(losses) - 1, 0)}</text></svg>"
    )
