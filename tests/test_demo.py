"""The demo on its embedded parts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from nncift.data.demo import (
    DEMO_FAMILIES,
    DEMO_PER_FAMILY,
    FAMILIES,
    PER_FAMILY,
    TARGET_FAMILIES,
    demo_data,
    embedded_data,
)
from nncift.demo import run_demo


def test_the_embedded_pool_is_as_documented(tmp_path: Path):
    pool, target = embedded_data(tmp_path)
    rows = [json.loads(line) for line in pool.read_text(encoding="utf-8").splitlines()]
    targets = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    families = Counter(row["family"] for row in rows)
    assert len(FAMILIES) == 40
    assert all(families[family] == PER_FAMILY for family in FAMILIES)
    assert sum(families.values()) - 40 * PER_FAMILY > 1200  # the dialogues
    assert Counter(row["family"] for row in targets) == dict.fromkeys(TARGET_FAMILIES, 10)
    assert all(row["prompt"] and row["response"] for row in rows + targets)
    assert len({row["id"] for row in rows}) == len(rows)
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in targets}
    before = pool.read_bytes()
    pool.unlink()
    embedded_data(tmp_path)
    assert pool.read_bytes() == before


def test_the_small_pool_has_all_families_and_the_test_rows_are_new(tmp_path: Path):
    pool, target, test = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in demo_data(tmp_path)
    )
    families = Counter(row["family"] for row in pool)
    assert all(families[family] == DEMO_PER_FAMILY for family in FAMILIES)
    assert 780 <= len(pool) <= 820
    assert Counter(row["family"] for row in test) == dict.fromkeys(DEMO_FAMILIES, 15)
    assert Counter(row["family"] for row in target) == dict.fromkeys(DEMO_FAMILIES, 10)
    assert not {row["prompt"] for row in test} & {row["prompt"] for row in pool + target}


def test_the_demo_runs_on_the_embedded_models(tmp_path: Path, monkeypatch):
    targets = ("chain_sum", "spell_backward")  # short ones
    small = {"DEMO_PER_FAMILY": 1, "DEMO_DIALOGUES": 160, "TARGETS": 2, "DEMO_TESTS": 4, "DEMO_FAMILIES": targets}
    families = (*targets, "basic_arithmetic", "coin_flip", "count_bits", "gcd", "products", "simple_equations")
    for name, value in {**small, "FAMILIES": families}.items():
        monkeypatch.setattr(f"nncift.data.demo.{name}", value)
    for name, value in {"BUDGET": 3, "EPOCHS": 1, "DEMO_FAMILIES": targets}.items():
        monkeypatch.setattr(f"nncift.demo.{name}", value)
    monkeypatch.setattr("nncift.demo.cache_folder", lambda: tmp_path)
    out = run_demo(output=tmp_path / "run")
    assert "share of the 2 target families in 3 rows" in out
    assert "test loss on 4 new samples of these families" in out
    assert all(out.count(f"  {name} ") == 2 for name in ("chosen by influence", "cosine of the embeddings", "random"))
    assert "model as it is" in out
    assert "exact for every pair" in out
    assert len((tmp_path / "run/subset.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert str(tmp_path / "run/report.html") in out
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    assert "Fine-tuned on 3 random rows" in page
    assert "Difference to 3 random rows" in page
