"""The report on how far a choice can be trusted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nncift.report.files import FinishedFiles
from nncift.report.sections.trust import trust
from nncift.run.folder.records import Summary
from report_pages import Page, make_run, with_correlation


@pytest.mark.parametrize(
    ("value", "outcome", "short", "plain"),
    [
        (0.85, "better than", "mostly: r = 0.85", "rely on them"),
        (0.5, "better than", "partly: r = 0.50", "not for a single sample"),
        (0.2, "better than", "hardly: r = 0.20", "verify the choice"),
        (0.2, "not better than", "no better than without labels", "What needs no labels predicts as well"),
        (0.9, "too few samples to tell", "too few samples to tell", "More labelled samples are needed"),
    ],
)
def test_trust_in_one_plain_sentence(tmp_path: Path, value: float, outcome: str, short: str, plain: str):
    folder = make_run(tmp_path)
    with_correlation(folder, value, outcome=outcome)
    found = trust(FinishedFiles(folder))
    assert found.short == short
    assert plain in found.sentence
    (figure,) = found.figures
    assert (figure.name, figure.value) == (
        "Subset-sum correlation within target",
        f"{value:.2f} [{value - 0.1:.2f}, {value + 0.1:.2f}]",
    )
    assert "on 42 new pool samples; 1 is perfect. The best baseline, target mean, has 0." in figure.meaning
    shown = Page(folder)
    assert plain in shown.section("verdict")
    assert figure.value in shown.text


def test_trust_in_exact_influence_and_in_random_rows(tmp_path: Path):
    folder = make_run(tmp_path, exact="gradient-sketch", exact_all_pairs=None, warnings=[])
    folder.fidelity.unlink()
    found = trust(FinishedFiles(folder))
    assert (found.mark, found.short, found.headline) == ("good", "exact influence", "Influence is exact for every pair")
    dataclasses.replace(Summary.load(folder.summary), exact="random").save(folder.summary)
    assert trust(FinishedFiles(folder)).headline == "These rows were drawn at random"
