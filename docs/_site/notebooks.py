"""A hook of mkdocs: each notebook becomes a page, with its stored outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each notebook; the notebook itself stays to be downloaded."""
    for notebook in sorted(Path(config.docs_dir).glob("notebooks/*.ipynb")):
        page = f"notebooks/{notebook.stem}.md"
        files.append(File.generated(config, page, content=_markdown(notebook)))
    return files


def _markdown(path: Path) -> str:
    import nbformat

    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(f"```python\n{cell.source}\n```")
            parts += [f"```text\n{text}\n```" for output in cell.outputs if (text := _text(output))]
    return "\n\n".join([*parts, f"[This page as a notebook]({path.name}){{ download }}"]) + "\n"


def _text(output: Any) -> str:
    """What an output says as text."""
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    return _COLOUR.sub("", text).rstrip()
