"""Every table of figures in the documentation has the command that makes them, or a link to the section that has it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
SOURCES = ("measurements.md", "results.md", "reliability.md")
"""Pages that the others link to, whose tables have the commands themselves."""
FIGURE = re.compile(r"\| *\**[+-]?\d[^|]*(?=\|)")  # a cell that begins with a number
COMMAND = re.compile(r"(?:python|pytest|nncift|make) \S|benchmarks/\w+\.py")
LINK = re.compile(r"\((?:docs/)?(?:measurements|results|reliability|evaluation)\.md|\(#[\w-]+\)")
HEADING = re.compile(r"^(#+) (.*)", re.MULTILINE)
TABLE = re.compile(r"(?:^\|.*\n?)+", re.MULTILINE)


def code(text: str) -> str:
    """The text of code blocks and spans."""
    blocks = re.findall(r"^```[^\n]*\n.*?^```|(?:^ {4}\S.*\n?)+|(?<!`)`[^`]+`(?!`)", text, re.MULTILINE | re.DOTALL)
    return "\n".join(blocks)


def sections(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Title and text of each section, and the texts of the sections that it is in."""
    fences = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    blind = fences.sub(lambda found: re.sub("^#", " ", found[0], flags=re.MULTILINE), text)  # comments are no headings
    heads = list(HEADING.finditer(blind))
    outer: list[tuple[int, str]] = []
    for head, after in zip(heads, [*heads[1:], None], strict=True):
        own = text[head.end() : after.start() if after else None]
        while outer and outer[-1][0] >= len(head[1]):
            outer.pop()
        yield head[2], own, [each for _, each in outer]
        outer.append((len(head[1]), own))


def without_source(text: str, *, links: bool = True) -> list[str]:
    """Titles of the sections with a table of figures that have no command, nor a section that they are in.

    Neither counts what is said of the page as a whole. With `links` a link to a section with commands is enough.
    """
    return [
        title
        for title, own, outer in sections(text)
        if any(len(FIGURE.findall(table)) > 2 for table in TABLE.findall(own))
        and not any(COMMAND.search(code(each)) or (links and LINK.search(each)) for each in [own, *outer[1:]])
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_table_of_figures_has_its_command(page):
    text = page.read_text(encoding="utf-8")
    found = without_source(text, links=page.name not in SOURCES)
    assert not found, f"{page.name}: give the command, or a link to the section that has it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_scripts_of_the_commands_exist(page):
    named = set(re.findall(r"\b((?:benchmarks|examples)/[a-z_/0-9]+\.py)\b", page.read_text(encoding="utf-8")))
    assert sorted(name for name in named if not (ROOT / name).is_file()) == []


def test_a_table_without_a_command_would_be_noticed():
    table = "| a | b |\n|---|---|\n| x | 0.5 |\n| y | **0.7** [0.6, 0.8] |\n| z | 1,000 |\n"
    assert without_source(f"# Page\n\n## One\n\nText.\n\n{table}") == ["One"]
    assert without_source(f"# Page\n\n    python page.py\n\n## One\n\n{table}") == ["One"]
    assert without_source(f"# Page\n\n## One\n\n    python a.py\n\n### Two\n\n{table}") == []
    assert without_source(f"# Page\n\n## One\n\n[There](measurements.md#speed)\n\n{table}") == []
    assert without_source(f"# Page\n\n## One\n\n[There](measurements.md#speed)\n\n{table}", links=False) == ["One"]
