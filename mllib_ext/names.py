"""The nearest name to one that is not there, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)``, or nothing where no name is near."""
    by_case = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_case, n=1)
    return f" (did you mean {by_case[close[0]]!r}?)" if close else ""
