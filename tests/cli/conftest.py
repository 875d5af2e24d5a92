"""A small pool for commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.jsonl"
    rows = [{"prompt": f"What is {i} plus {i % 5}?", "response": f"{i + i % 5}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
