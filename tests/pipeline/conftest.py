"""A pool and a target of sums, and options of a small run."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import write_rows
from pipeline_runs import arithmetic


@pytest.fixture
def pool(tmp_path: Path) -> str:
    return write_rows(tmp_path / "pool.jsonl", arithmetic(60))


@pytest.fixture
def target(tmp_path: Path) -> str:
    return write_rows(tmp_path / "target.jsonl", arithmetic(8, offset=100))


@pytest.fixture
def options(tiny_model, small_encoder):
    return {"model": tiny_model, "encoder": small_encoder, "budget": 0.1, "labels": 300, "device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def quick(quick_runs):
    """No estimate and no picture is judged here."""
