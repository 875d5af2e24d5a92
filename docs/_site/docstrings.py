"""An extension of griffe, which reads docstrings for the reference: the options of `select` become lists."""

from __future__ import annotations

import re
from typing import Any

import griffe


class OptionLists(griffe.Extension):
    """Headings and `name: text` below `**options` as Markdown."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Rewrite the docstring of `select`."""
        if func.path == "nncift.pipeline.select.select" and func.docstring is not None:
            text = re.sub(r"^( {8})([A-Z][\w, ]+)$", r"\1**\2**\n", func.docstring.value, flags=re.MULTILINE)
            func.docstring.value = re.sub(r"^( {8})(\w+): ", r"\1- `\2`: ", text, flags=re.MULTILINE)
