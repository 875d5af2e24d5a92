"""Exact influence of every pair: what report, terminal and plan say of it."""

from __future__ import annotations

import dataclasses
import html
import json
from pathlib import Path

import numpy as np
import pytest

import nncift
import nncift.pipeline.plan as planning
from builders import write_rows
from nncift.cli import main
from nncift.data.pool import load_pool
from nncift.influence.base import InfluenceFunction, Traits
from nncift.pipeline.configuration.configure import make_config
from nncift.report.html import write_report
from nncift.report.terminal import summary_text


@dataclasses.dataclass
class Loud(InfluenceFunction):
    """Samples whose first target has higher values than the others."""

    name = "loud"
    traits = Traits(factored=True)

    def vectors(self, rows) -> np.ndarray:
        number = np.array([int(text.split()[-1]) for text in rows["prompt"]], np.float32)
        return np.stack([np.ones_like(number), number % 7], axis=1)

    def target_vectors(self, rows) -> np.ndarray:
        values = np.full((len(rows), 2), 0.1, np.float32)
        values[:, 0] = np.linspace(2, 1, len(rows))
        return values


@pytest.mark.parametrize("held", [1 << 20, 0])
def test_the_targets_that_a_choice_serves_are_reported(files, common, tmp_path: Path, monkeypatch, held):
    monkeypatch.setattr("nncift.pipeline.choosing.exact.HELD", held)
    given = {**common, "influence": Loud(), "output": tmp_path / "run"}
    selection = nncift.select(files["pool"], target=files["target"], **given)
    assert vars(selection.served) == {
        **{"targets": 6, "selected": 5, "served": 1, "target": 0, "most": 5.0},
        **{"covered": 6, "covering": 1, "widest": 6},
    }
    warning = "5 of the 5 selected samples have the same top target, 'row-100' (100.0 %)"
    assert warning in summary_text(tmp_path / "run")
    assert warning in html.unescape((tmp_path / "run/report.html").read_text()).replace("\u00a0", " ")
    assert json.loads((tmp_path / "run/summary.json").read_text())["served"]["id"] == "row-100"
    again = nncift.select(files["pool"], target=files["target"], **given)
    assert again.served == selection.served


@pytest.mark.parametrize("budget", [5, "300tok"])
def test_the_certificate_of_a_choice_is_reported(files, common, tmp_path: Path, budget):
    given = {**common, "influence": Loud(), "output": tmp_path / "run", "budget": budget}
    selection = nncift.select(files["pool"], target=files["target"], **given)
    found = selection.certificate
    assert (found.value, found.among) == (selection.value, len(selection.pool))
    assert 1 - 1 / np.e < found.share <= 1
    least = "" if found.share > 1 - 1e-6 else "at least "
    line = f"{least}{found.percent} of the optimal value (upper bound {found.bound:.4g})"
    assert f", {line}".replace("\u00a0", " ") in summary_text(tmp_path / "run")
    assert line in html.unescape((tmp_path / "run/report.html").read_text())
    assert json.loads((tmp_path / "run/summary.json").read_text())["certificate"]["share"] == found.share
    again = nncift.select(files["pool"], target=files["target"], **given)
    assert again.certificate == found


def test_report_terminal_and_plan_say_that_it_is_exact(files, common, tmp_path: Path, capsys):
    run = tmp_path / "run"
    given = {**common, "influence": "embedding-similarity"}
    nncift.select(files["pool"], output=run, **given)
    text, page = summary_text(run), (run / "report.html").read_text(encoding="utf-8")
    assert "Influence: embedding-similarity, exact for every pair (1,600): nothing was estimated" in text
    assert "Influence is exact for every pair" in page
    assert "Map of the pool" in page
    assert not any(word in page for word in ("fidelity-title", "labelled exactly", "Estimated value"))
    again = write_report(run).read_bytes()
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(run)])
    assert (run / "report.html").read_bytes() == again
    nncift.select(files["pool"], output=tmp_path / "words", influence="bm25", **common)
    assert "Map of the pool" not in (tmp_path / "words/report.html").read_text(encoding="utf-8")
    plan = planning.plan(make_config(files["pool"], output=tmp_path / "plan", **{**given, "budget": "5"}))
    assert (plan.pairs, plan.all_pairs, plan.exact_seconds, set(plan.seconds)) == (
        *(1600, 1600, None),
        {"influence", "select"},
    )
    assert "Labels: none; embedding-similarity is exact for every pair\n" in str(plan)
    assert "Measure exactly: 1,600 of 1,600 pairs (100.0 %)" in str(plan)
    whole = planning.plan(
        make_config(files["pool"], known=files["known"], **common | {"budget": "5", "influence": "bm25"})
    )
    assert whole.known == 9


def test_truncated_texts_are_reported(common, tmp_path: Path):
    rows = [{"prompt": f"river {k} " * (200 if k < 6 else 1), "response": "stone"} for k in range(12)]
    pool = write_rows(tmp_path / "pool.jsonl", rows)
    nncift.select(pool, influence="embedding-similarity", output=tmp_path / "run", **common)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["encoder"] == {"name": common["encoder"], "truncated": 6, "width": 384}
    assert "6 of 12 texts exceed the encoder's maximum length and were truncated." in summary["warnings"]
    assert json.loads((tmp_path / "run/vectors/notes.json").read_text())["cut"] == sorted(
        row["id"] for row in load_pool(pool) if len(row["prompt"]) > 100
    )
    nncift.select(pool, from_run=tmp_path / "run", budget=3, output=tmp_path / "again")
    assert json.loads((tmp_path / "again/summary.json").read_text())["encoder"] == summary["encoder"]
