"""A hook of mkdocs: formulas in TeX, `$...$` and `$$...$$`, become SVG when the site is built.

So a reader needs neither MathJax nor a network. The same source is typeset by GitHub. What can be written is
matplotlib's mathtext: https://matplotlib.org/stable/users/explain/text/mathtext.html.
"""

from __future__ import annotations

import html
import re
from typing import Any

from mkdocs.exceptions import PluginError

_MARKED = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)  # by pymdownx.arithmatex
_SIZE = 16
_SCALE = 1.1  # of the text: STIX is a small font


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Typeset the formulas of a page."""
    if 'class="arithmatex"' not in content:
        return content
    return _MARKED.sub(lambda found: _typeset(found[1], html.unescape(found[2]), page.file.src_uri), content)


def _typeset(tag: str, marked: str, page: str) -> str:
    """SVG of a formula, which stands in the marks of MathJax, in the colour of the text around it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser
    from matplotlib.textpath import TextPath

    tex = " ".join(marked.strip()[2:-2].split())
    font = FontProperties(size=_SIZE, math_fontfamily="stix")
    try:
        width, height, depth, *_ = MathTextParser("path").parse(f"${tex}$", 72, font)
        outline = TextPath((0, 0), f"${tex}$", size=_SIZE, prop=font)
    except ValueError as error:
        raise PluginError(f"{page}: cannot typeset ${tex}$: {error}") from error
    em = _SCALE / _SIZE
    box = f'viewBox="0 {-height:.2f} {width:.2f} {height + depth:.2f}"'
    style = f"width:{width * em:.3f}em;height:{(height + depth) * em:.3f}em;vertical-align:{-depth * em:.3f}em"
    drawn = f'<path fill="currentColor" d="{_path(outline)}"/>'
    image = f'<svg role="img" aria-label="{html.escape(tex)}" style="{style}" {box}>{drawn}</svg>'
    return f'<{tag} class="formula">{image}</{tag}>'


def _path(outline: Any) -> str:
    """The outline in SVG's commands, whose y grows downward."""
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    parts = []
    for points, code in outline.iter_segments(curves=True, simplify=False):
        numbers = "" if code == 79 else " ".join(f"{x:.2f} {-y:.2f}" for x, y in points.reshape(-1, 2))
        parts.append(letters[code] + numbers)
    return "".join(parts)
