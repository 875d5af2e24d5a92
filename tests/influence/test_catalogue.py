"""The table of influence functions: complete, consistent with the functions, the terminal and the docs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nncift.errors import ConfigError
from nncift.influence.catalogue import BUILT_IN, CATALOGUE, explain, markdown, overview
from nncift.run.options.registry import resolve

DOCS = Path(__file__).resolve().parents[2] / "docs" / "influences.md"


def test_each_built_in_has_its_row():
    assert [about.name for about in CATALOGUE] == list(BUILT_IN)


@pytest.mark.parametrize("about", CATALOGUE, ids=lambda about: about.name)
def test_a_row_is_consistent_with_its_function(about):
    kind = resolve(about.name, BUILT_IN, "nncift.influence")
    assert kind.name == about.name
    assert about.kind == ("pointwise" if kind.traits.pointwise else "pairwise")
    for field in ("formula", "source", "scale", "per_sample", "per_pair", "good_for"):
        text = getattr(about, field)
        assert text
        assert "|" not in text  # ends a cell
        assert "\n" not in text


def test_the_docs_contain_the_table():
    assert markdown() in DOCS.read_text(encoding="utf-8"), f"paste nncift.influence.catalogue.markdown() into {DOCS}"


def test_the_overview_has_the_content_of_the_table():
    words = " ".join(overview().split())
    for about in CATALOGUE:
        for field in ("name", "formula", "source", "kind", "target", "scale", "per_sample", "per_pair", "good_for"):
            # lines also break at hyphens
            assert getattr(about, field).replace(" ", "") in words.replace(" ", "")
    assert max(map(len, overview().splitlines())) <= 100


def test_one_function_in_full():
    text = explain("selectit")
    assert "good for" in text
    assert "sentence level" in text  # its module
    assert "alpha: penalty on disagreement" in text  # its class
    with pytest.raises(ConfigError, match="did you mean 'selectit'"):
        explain("selectiit")
    assert explain("fractions:Fraction").startswith("Fraction, infinite-precision")  # any class can be named


def test_the_overview_imports_no_heavy_library():
    code = (
        "import sys; from nncift.cli import main; main(['influences']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.strip() == overview()
