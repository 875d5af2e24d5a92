"""A hook of mkdocs: pages that are not written yet, public names that no page has, and a link of the CLI's page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger

PLANNED = ("clusters.md", "explore.md", "handover.md", "report.md")
"""Pages of the navigation that may be missing."""
_ROOT = Path(__file__).parents[2]


def on_config(config: Any) -> Any:
    """Drop what is planned and missing from the navigation."""
    missing = [page for page in PLANNED if not (Path(config.docs_dir) / page).is_file()]
    for page in missing:
        get_plugin_logger(__name__).info("not written yet: %s", page)
    config.nav = _without(config.nav, missing)
    return config


def _without(entries: list[Any], pages: list[str]) -> list[Any]:
    kept = []
    for entry in entries:
        part = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(part, list):
            kept.append({next(iter(entry)): _without(part, pages)})
        elif part not in pages:
            kept.append(entry)
    return kept


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Complete the reference, and mend an anchor."""
    if page.file.src_uri == "reference/index.md":
        return markdown + "".join(f"\n\n::: nncift.{name}" for name in _unwritten())
    if page.file.src_uri == "cli.md":  # cyclopts joins the dashes of an anchor, where ours are those of GitHub
        return markdown.replace("(#nncift-install-completion)", "(#nncift---install-completion)")
    return markdown


def _unwritten() -> list[str]:
    """Public names that no page of the reference has."""
    public = re.findall(r"^from .* import \w+ as (\w+)$", _text(_ROOT / "src/nncift/__init__.pyi"), re.MULTILINE)
    pages = "\n".join(map(_text, (_ROOT / "docs/reference").glob("*.md")))
    written = re.findall(r"^::: nncift\.(\w+)$", pages, re.MULTILINE)
    return [name for name in public if name not in written]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
