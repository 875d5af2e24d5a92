"""The short version of the campaign in benchmarks/reliability: kills, mutated inputs and damaged run folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).resolve().parents[1] / "benchmarks" / "reliability"


@pytest.mark.parametrize("part", ["kills", "inputs", "damage"])
def test_the_short_campaign_finds_nothing(part, smollm2, tmp_path):
    """A part in a process of its own; the tokenizer of its model is that of SmolLM2, which is cached by now."""
    command = [sys.executable, str(CAMPAIGN), "--short", "--parts", part]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert (done.returncode, failed) == (0, []), done.stdout + done.stderr
