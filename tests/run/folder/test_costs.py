"""The table of costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nncift.errors import RunError
from nncift.run.folder.costs import Costs


def test_costs_add_up_over_resumed_runs(tmp_path: Path):
    for _ in range(2):
        costs = Costs(tmp_path / "costs.json")
        with costs.stage("labels") as cost:
            cost.forward_tokens += 10
    stored = json.loads((tmp_path / "costs.json").read_text())["stages"]["labels"]
    assert stored["forward_tokens"] == 20
    assert stored["seconds"] > 0
    assert stored["peak_memory"] > 1_000_000
    (tmp_path / "costs.json").write_text("{}")
    with pytest.raises(RunError, match=r"costs\.json is not a valid table"):
        Costs(tmp_path / "costs.json")
