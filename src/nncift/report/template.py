"""The HTML pages' common part: a Jinja environment that escapes all it prints, and how figures are written.

Data may be hostile, so everything is escaped, and invisible characters (control characters, bidirectional overrides)
are written as escapes.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nncift.run.folder.costs import duration
from nncift.run.folder.records import counted, percent

if TYPE_CHECKING:
    from jinja2 import Template


@functools.cache  # to compile the templates of a page takes longer than to fill them in
def template(name: str, *filters: Callable[..., Any]) -> Template:
    """A page's template, which may use those filters, by the names of the functions, beside the common ones."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        # Everything that is printed passes through here, then it is escaped.
        finalize=lambda value: value if hasattr(value, "__html__") else visible(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,.0f}".format,
        "counted": counted,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "duration": duration,
        "memory": _memory,
        "share": percent,
        "value": shown_value,
        "signed": signed,
        **{function.__name__: function for function in filters},
    }
    return environment.get_template(name)


def visible(text: str) -> str:
    r"""`text` with every invisible character written as its escape, such as `\x1b` or `\u202e`.

    Line breaks, tabs, spaces of any kind and the joiners of scripts and emoji are kept.
    """
    return "".join(
        c
        if c.isprintable() or c in "\n\t\u200c\u200d" or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode("ascii")
        for c in text.replace("\r\n", "\n")
    )


def _memory(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def shown_value(number: float | None, decimals: int | None = None, significant: int = 4) -> str:
    """A measured value with `decimals`, or with that many significant digits; a dash when it is undefined."""
    if number is None or not math.isfinite(number):
        return "\u2013"
    if decimals is None:
        decimals = max(0, significant - 1 - math.floor(math.log10(abs(number)))) if number else 0
    return f"{number:,.{min(decimals, 12)}f}".replace("-", "\u2212")


def signed(number: float | None) -> str:
    """A difference with its sign and three decimals."""
    return ("+" if number is not None and 0 < number < math.inf else "") + shown_value(number, 3)
