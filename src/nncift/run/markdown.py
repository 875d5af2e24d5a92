"""Text from data and models in Markdown: printed as it is, whatever it holds."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from nncift.errors import printable


def escaped(text: object) -> str:
    """`text` on one line, with the marks of Markdown, of its tables and of HTML escaped."""
    found = html.escape(printable(text), quote=False)
    for mark in "\\`*_[]|#":
        found = found.replace(mark, f"\\{mark}")
    return found


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table, its cells escaped."""
    lines = [tuple(map(escaped, header)), tuple("---" for _ in header), *(tuple(map(escaped, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
