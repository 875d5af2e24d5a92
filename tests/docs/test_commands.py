"""Every `nncift ...` command in the documentation is parsed by the real command line: it and its options exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import cyclopts
import pytest

from nncift.cli import app
from nncift.errors import ConfigError, NNCIFTError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = [*sorted((ROOT / "examples").glob("*.py")), *sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))]
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`(nncift [^`\n]+(?:\n[^`\n]+)?)`(?!`)")
ENDS = re.compile(r"\s(?:[|>&]|&&|;|2>)\s|;$")


def commands(text: str) -> Iterator[str]:
    """Lines of code blocks that run nncift, continued ones joined, without what follows the command."""
    for block in [*FENCED.findall(text), *re.findall(r"(?:^ {4}\S.*\n)+", text, re.MULTILINE)]:
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if found := re.match(r"\s*(?:\$ )?(?:\w+=\S+ )*(nncift\s.*)$", line):
                yield ENDS.split(found[1])[0]


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)[1:]


def parse(arguments: list[str]) -> None:
    """As `nncift` does it, without running anything; a file of `--config` need not be there, and may name the pool."""
    if "--config" in arguments:
        place = arguments.index("--config")
        arguments = [*arguments[:place], *arguments[place + 2 :], "--pool", "pool.jsonl"]
    if arguments and not {"--help", "--version"} & set(arguments):
        app.parse_args(arguments, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_page_exist(path):
    text = path.read_text(encoding="utf-8")
    for command in commands(text):
        try:
            parse(words(command))
        except (cyclopts.CycloptsError, NNCIFTError) as error:
            pytest.fail(f"{path.name}: {command!r}: {error}")
    for span in SPAN.findall(FENCED.sub("", text)):
        if "..." in span:
            continue
        try:
            parse(words(" ".join(span.split())))
        except cyclopts.MissingArgumentError:
            pass  # a command in a sentence need not be complete
        except ConfigError as error:
            assert "is empty" in str(error), f"{path.name}: {span!r}: {error}"  # noqa: PT017
        except cyclopts.CycloptsError as error:
            pytest.fail(f"{path.name}: {span!r}: {error}")


def test_the_examples_of_the_help_and_of_the_scripts_exist():
    found = []
    for command in app:
        found += re.findall(r"`(nncift .*)`", app[command].help_epilogue or "")
    for script in SCRIPTS:
        found += commands(script.read_text(encoding="utf-8"))
    assert len(found) > 20
    for command in found:
        parse(words(command))


def test_wrong_commands_would_be_noticed():
    assert list(commands("```console\n$ A=1 nncift select a.jsonl \\\n    --budget 3 | head  # three\n```")) == [
        "nncift select a.jsonl  --budget 3"
    ]
    assert list(commands("Text\n\n    nncift diff a b   # compare\n")) == ["nncift diff a b   # compare"]
    for wrong in ("select a.jsonl --buget 3", "selekt a.jsonl", "diff a", "select a --seed x"):
        with pytest.raises(cyclopts.CycloptsError):
            parse(wrong.split())
    with pytest.raises(NNCIFTError):
        parse(words("nncift select a.jsonl --budget 0"))
