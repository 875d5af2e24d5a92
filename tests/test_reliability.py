"""The short version of the campaign in benchmarks/reliability: kills, full disks, mutated inputs, damaged folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).resolve().parents[1] / "benchmarks" / "reliability"


@pytest.fixture(scope="module")
def campaign(tiny_model, tmp_path_factory) -> dict[str, dict]:
    """Figures by part, of a process of its own."""
    folder = tmp_path_factory.mktemp("campaign")
    command = [sys.executable, str(CAMPAIGN), "--short", "--model", tiny_model, "--json", "figures.json"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert (folder / "figures.json").exists(), done.stdout + done.stderr
    return json.loads((folder / "figures.json").read_text())


@pytest.mark.parametrize("part", ["kills", "space", "inputs", "damage"])
def test_the_short_campaign_finds_nothing(campaign, part):
    assert campaign[part]["failures"] == []
    assert campaign[part]["table"]
