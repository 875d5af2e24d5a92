"""A hook of mkdocs: leaves pages out of the navigation that are not written yet, and mends a link of the CLI's page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger

PLANNED = ("clusters.md", "explore.md", "handover.md", "report.md")


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
        if isinstance(entry, dict):
            (title, part), *_ = entry.items()
            if isinstance(part, list):
                kept.append({title: _without(part, pages)})
            elif part not in pages:
                kept.append(entry)
        elif entry not in pages:
            kept.append(entry)
    return kept


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Cyclopts joins the dashes of an anchor, where ours are those of GitHub."""
    if page.file.src_uri != "cli.md":
        return markdown
    return markdown.replace("(#nncift-install-completion)", "(#nncift---install-completion)")
