"""A hook of mkdocs that mends a link of the command line's page."""

from __future__ import annotations

from typing import Any


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with the anchor that the site has: cyclopts joins the dashes of an anchor, where ours are GitHub's."""
    if page.file.src_uri == "cli.md":
        return markdown.replace("(#nncift-install-completion)", "(#nncift---install-completion)")
    return markdown
