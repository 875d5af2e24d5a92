"""The short version of the campaign in benchmarks/reliability: kills, full disks, mutated inputs, damaged folders."""

from __future__ import annotations

import json
import multiprocessing
import runpy
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).resolve().parents[1] / "benchmarks" / "reliability"


@pytest.fixture(scope="module")
def campaign(tiny_model, small_encoder, tmp_path_factory) -> dict[str, dict]:
    """Figures by part, of a process of its own."""
    figures = tmp_path_factory.mktemp("campaign") / "figures.json"
    models = ["--model", tiny_model, "--encoder", small_encoder]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(CAMPAIGN), "--short", *models, "--json", str(figures)])
        given = {"target": runpy.run_path, "args": (str(CAMPAIGN), None, "__main__")}
        process = multiprocessing.get_context("fork").Process(**given)  # the libraries are imported
        process.start()
        process.join()
    assert figures.exists(), process.exitcode
    return json.loads(figures.read_text())


@pytest.mark.parametrize("part", ["kills", "space", "inputs", "damage"])
def test_the_short_campaign_finds_nothing(campaign, part):
    assert campaign[part]["failures"] == []
    assert campaign[part]["table"]
