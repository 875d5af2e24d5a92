"""The documentation as a site: it builds without a warning, is complete, and asks nobody outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import nncift
from chromium import Browser, axe_core, chromium, serious, served_folder
from nncift.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Loaded(HTMLParser):
    """What a page loads by itself, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id") or "")
        self.urls += [given[name] or "" for name in ("src", "srcset") if name in given]
        if tag == "link":
            self.urls.append(given.get("href") or "")


def read(page: Path) -> Loaded:
    loaded = Loaded()
    loaded.feed(page.read_text(encoding="utf-8"))
    return loaded


def test_no_page_loads_anything_from_outside(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        for url in read(page).urls:
            assert not re.match(r"(https?:)?//", url), f"{page.name} loads {url}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_the_reference_has_every_public_name_once(site):
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    written = re.findall(r"^::: nncift\.(\w+)$", pages, re.MULTILINE)
    public = {name for name in nncift.__all__ if name != "__version__"}
    assert sorted(written) == sorted(public)
    anchors = set().union(*(read(page).ids for page in (site / "reference").glob("*.html")))
    assert {f"nncift.{name}" for name in public} <= anchors


def test_the_page_of_the_command_line_has_every_command_and_option(site):
    text = re.sub(r"<[^>]+>", "", (site / "cli.html").read_text(encoding="utf-8"))
    for command in app:
        if command in ("--help", "-h", "--version", "env"):  # of all; another name of doctor
            continue
        assert f"nncift {command}" in text
        options = app[command].assemble_argument_collection(parse_docstring=False)
        assert [option.name for option in options if option.show and option.name not in text] == []


def test_formulas_are_drawn_and_named(site):
    page = (site / "methods.html").read_text(encoding="utf-8")
    assert "arithmatex" not in page
    assert page.count('<svg role="img" aria-label="') > 30
    assert r'aria-label="\sum_j \max_{i \in S} s_{ij}"' in page


def test_the_search_index_has_pages_and_notebooks(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert {"faq.html", "notebooks/influence.html"} <= {entry["location"] for entry in index["docs"]}


def test_every_page_is_in_the_navigation():
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_Loader)
    listed = set(_pages(settings["nav"]))
    found = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert found <= listed
    assert listed - found == {"notebooks/quickstart.md", "notebooks/influence.md"}  # made of the notebooks


class _Loader(yaml.SafeLoader):
    """With tags of Python objects as nothing."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def _pages(entries):
    for entry in entries:
        if isinstance(entry, dict):
            (part,) = entry.values()
            yield from _pages(part) if isinstance(part, list) else [part]
        else:
            yield entry


# Leaves the first parts of a page, among which all kinds of text are: axe-core takes seconds for a long page.
BEGINNING = "[...document.querySelector('article').children].slice(30).forEach(part => part.remove())"


def test_axe_has_no_serious_finding_on_each_kind_of_page(site, tmp_path):
    """Text with code, the command line, formulas, tables, the reference; a notebook in light and dark colours."""
    axe, program = axe_core(), chromium()
    if axe is None or program is None:
        pytest.skip("axe-core or chromium is not installed")
    pages = ["index.html", "cli.html", "methods.html", "represent.html", "reference/errors.html", "404.html"]
    browser = Browser(program, tmp_path)
    try:
        with served_folder(site) as address:
            for name in [*pages, "notebooks/quickstart.html"]:
                browser.open(f"{address}/{name}")
                browser.wait("document.querySelector('.md-search').ariaLabel")  # site.js was there
                browser.evaluate(BEGINNING)
                part = "document" if name in ("index.html", "404.html") else "document.querySelector('article')"
                assert serious(browser.findings(axe, part)) == [], name  # what frames a page is the same around each
                assert [asked for asked in browser.requests if not asked.startswith((address, "data:"))] == []
        at_once = "<style>* { transition: none !important }</style>"
        browser.evaluate(f"document.head.insertAdjacentHTML('beforeend', {json.dumps(at_once)})")
        browser.evaluate("document.body.dataset.mdColorScheme = 'slate'")
        assert serious(browser.findings(axe)) == []
    finally:
        browser.close()
