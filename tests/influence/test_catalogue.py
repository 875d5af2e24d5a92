"""The table of influence functions: complete, the same on the terminal and in the docs, true of the functions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nncift.errors import ConfigError
from nncift.influence.catalogue import BUILT_IN, CATALOGUE, explain, markdown, overview
from nncift.run.registry import resolve

DOCS = Path(__file__).resolve().parents[2] / "docs" / "influences.md"


def test_each_built_in_has_its_line():
    assert [about.name for about in CATALOGUE] == list(BUILT_IN)


@pytest.mark.parametrize("about", CATALOGUE, ids=lambda about: about.name)
def test_a_line_is_true_of_its_function(about):
    kind = resolve(about.name, BUILT_IN, "nncift.influence")
    assert kind.name == about.name
    assert about.kind == ("pointwise" if getattr(kind, "pointwise", False) else "pairwise")
    for field in ("formula", "source", "scale", "per_sample", "per_pair", "good_for"):
        text = getattr(about, field)
        assert text
        assert "|" not in text  # it ends a cell of the table
        assert "\n" not in text


def test_the_docs_hold_the_same_table():
    assert markdown() in DOCS.read_text(encoding="utf-8"), f"paste nncift.influence.catalogue.markdown() into {DOCS}"


def test_the_overview_holds_everything_that_the_table_does():
    words = " ".join(overview().split())
    for about in CATALOGUE:
        for field in ("name", "formula", "source", "kind", "target", "scale", "per_sample", "per_pair", "good_for"):
            # where a line is broken at a hyphen, a space stands in the words
            assert getattr(about, field).replace(" ", "") in words.replace(" ", "")
    assert max(map(len, overview().splitlines())) <= 100


def test_one_function_at_length():
    text = explain("selectit")
    assert "good for" in text
    assert "sentence level" in text  # its module
    assert "alpha: how much disagreement" in text  # its class
    with pytest.raises(ConfigError, match="did you mean 'selectit'"):
        explain("selectiit")
    assert explain("fractions:Fraction").startswith("Fraction, infinite-precision")  # any class can be named


def test_the_overview_loads_no_heavy_library():
    code = "import sys; from nncift.cli import main; main(['influences']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.strip() == overview()
