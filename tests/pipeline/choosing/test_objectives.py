"""Objectives, maximisers and near-duplicates in runs: what is chosen, reported, planned and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from builders import word_rows, write_rows
from nncift import select
from nncift.cli import main
from nncift.errors import ConfigError
from nncift.pipeline.choosing import near_duplicates
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.plan import plan
from nncift.report.terminal import summary_text
from nncift.selection.maximizers import partitioned_greedy

BM25 = {"influence": "bm25", "budget": 12}


def with_near_duplicates(n: int = 60) -> list[dict]:
    """Distinct rows, and at the end the first six again with another full stop; a third is of task a."""
    rows = word_rows(n)
    again = [row | {"id": f"again-{k}", "response": row["response"] + "!"} for k, row in enumerate(rows[:6])]
    return [row | {"task": "abb"[k % 3]} for k, row in enumerate([*rows, *again])]


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("pool") / "pool.jsonl", with_near_duplicates())


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> str:
    return write_rows(tmp_path_factory.mktemp("target") / "target.jsonl", word_rows(7, 200))


@pytest.mark.parametrize("objective", ["graph-cut", "log-determinant"])
def test_objectives_of_features_on_exact_influence(objective, pool, target, tmp_path: Path):
    for name, more in {"own": {}, "target": {"target": target, "quota": "task=equal"}}.items():
        selection = select(pool, objective=objective, output=tmp_path / name, **more, **BM25)
        assert len(selection) == 12
        assert selection.objective == objective
        assert selection.certificate.bound >= selection.value
    assert sorted(row["task"] for row in selection.dataset) == ["a"] * 6 + ["b"] * 6
    assert objective in (tmp_path / "own/report.html").read_text()


@pytest.mark.parametrize("objective", ["graph-cut", "log-determinant"])
def test_objectives_of_features_on_estimates_and_a_measured_shortlist(
    objective, pool, target, small_encoder, tmp_path: Path
):
    options = {
        "influence": "builders:EstimatedCosine",
        "labels": 60,
        "verify": 2,
        "budget": 5,
        "encoder": small_encoder,
    }
    options |= {"features": "sentence", "device": "cpu", "target": target, "objective": objective}
    selection = select(pool, near_duplicates=0.98, output=tmp_path / "run", **options)
    assert len(selection) == 5
    left_out = [json.loads(line) for line in (tmp_path / "run/pool/near_duplicates.jsonl").read_text().splitlines()]
    assert not {each["pool_row"] for each in left_out} & {*selection.indices.tolist()}


def test_maximizers(pool, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(partitioned_greedy, "PART", 30)
    lazy = select(pool, output=tmp_path / "lazy", **BM25)
    known = write_rows(tmp_path / "known.jsonl", word_rows(9, 300))
    for maximizer, more in {"stochastic": {}, "threshold": {"known": known}, "partitioned": {"known": known}}.items():
        found = select(pool, maximizer=maximizer, output=tmp_path / maximizer, **more, **BM25)
        assert len({*found.indices.tolist()}) == 12
        assert found.value <= found.certificate.bound
        assert more or 0.8 * lazy.value <= found.value <= lazy.value * 1.1
    again = select(pool, maximizer="stochastic", output=tmp_path / "again", **BM25)
    assert again.certificate.share > 0.8
    files = (tmp_path / name / "selection.parquet" for name in ("again", "stochastic"))
    assert next(files).read_bytes() == next(files).read_bytes()


def test_near_duplicates_are_not_chosen_and_listed_with_their_twins(pool, minilm, tmp_path: Path, capsys):
    options = {"near_duplicates": 0.93, "encoder": minilm, "device": "cpu", "influence": "bm25"}
    everything = select(pool, budget=60, output=tmp_path / "all", **options)
    listed = [json.loads(line) for line in (tmp_path / "all/pool/near_duplicates.jsonl").read_text().splitlines()]
    twins = {each["id"]: each["same_as"] for each in listed}
    assert {f"again-{k}": f"row-{k}" for k in range(6)}.items() == twins.items()
    assert all(0.93 <= each["cosine"] <= 1 for each in listed)
    assert not {*twins} & {row["id"] for row in everything.dataset}
    assert not (tmp_path / "all/embeddings").exists()
    line = (
        f"{len(listed)} near-duplicates of a kept sample not to be chosen (cosine of the sentence embeddings at least"
    )
    assert line in (text := summary_text(tmp_path / "all"))
    assert "of the optimal value (upper bound" in text  # among all that are kept, not of a shortlist
    page = (tmp_path / "all/report.html").read_text()
    assert "near-duplicates of another (cosine at least 0.93)" in page
    assert "pool/near_duplicates.jsonl" in page
    summary = json.loads((tmp_path / "all/summary.json").read_text())
    assert summary["near_duplicates"] == {"threshold": 0.93, "rows": 6}
    before = (tmp_path / "all/pool/near_duplicates.jsonl").read_bytes()
    for lost in ("pool/near_duplicates.jsonl", "selection.parquet"):  # the same call computes it again
        (tmp_path / "all" / lost).unlink()
    again = select(pool, budget=60, output=tmp_path / "all", **options)
    assert again.indices.tolist() == everything.indices.tolist()
    assert (tmp_path / "all/pool/near_duplicates.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match=r"without near-duplicates 60 of the pool's 66 samples remain, and `budget`"):
        select(pool, budget=66, output=tmp_path / "much", **options)
    quota = select(pool, budget=59, quota="task=b:40", output=tmp_path / "quota", **options)
    assert sum(row["task"] == "b" for row in quota.dataset) == 40
    with pytest.raises(ConfigError, match=r"`quota` task=b:41 is 41 samples, and the pool has 40"):
        select(pool, budget=59, quota="task=b:41", output=tmp_path / "quota-much", **options)
    planned = plan(make_config(pool, budget=9, output=tmp_path / "plan", **options))
    assert planned.seconds["near-duplicates"] > 0
    capsys.readouterr()


def test_a_token_budget_holds_without_near_duplicates(tiny_model, tmp_path: Path, monkeypatch):
    rows = word_rows(30)
    rows[7] |= {"prompt": "a", "response": "b"}  # the shortest
    rows[8] |= {"prompt": "a b", "response": "b"}
    pool = write_rows(tmp_path / "pool.jsonl", rows)
    given = {"influence": "bm25", "model": tiny_model, "near_duplicates": 0.9}
    embeddings = np.eye(30, dtype=np.float32)
    embeddings[7] = embeddings[0]
    monkeypatch.setattr(near_duplicates, "_embeddings", lambda run, count: embeddings)
    select(pool, budget="200tok", output=tmp_path / "first", **given)
    shortest, next_one = np.sort(np.load(tmp_path / "first/tokens.npy"))[:2]
    assert shortest < next_one
    with pytest.raises(ConfigError, match=f"`budget` {shortest}tok is less than the shortest sample has"):
        select(pool, budget=f"{shortest}tok", output=tmp_path / "none", **given)
    found = select(pool, budget=f"{next_one}tok", output=tmp_path / "one", **given)
    assert found.indices.tolist() == [8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--maximizer", "greedy"], "--maximizer"),
        (["--maximizer", "threshold", "--objective", "graph-cut"], "the --maximizer threshold needs gains that only"),
        (["--maximizer", "partitioned", "--quota", "task=equal"], "the --maximizer partitioned chooses in parts"),
        (["--near-duplicates", "95"], "--near-duplicates is 95"),
        (["--redundancy", "1"], "--redundancy needs the --objective graph-cut, not facility-location"),
        (["--redundancy", "-1", "--objective", "graph-cut"], "--redundancy is -1"),
        (
            ["--objective", "graph-cut", "--known", "POOL"],
            "--known needs the --objective facility-location-conditional",
        ),
        (
            ["--objective", "graph-cut", "--influence", "random"],
            "random has scores alone, and the --objective graph-cut",
        ),
    ],
)
def test_refusals_in_one_line(options, message, pool, tmp_path: Path, capsys):
    given = [pool if option == "POOL" else option for option in options]
    influence = [] if "--influence" in options else ["--influence", "bm25"]
    for dry in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as stopped:
            main(["select", pool, "--budget", "9", *influence, *given, *dry, "--output", str(tmp_path / "run")])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_the_vectors_of_samples_follow_the_rows_of_a_shortlist(pool, tmp_path: Path):
    selection = select(pool, objective="graph-cut", redundancy=0.0, output=tmp_path / "run", **BM25)
    means = np.load(tmp_path / "run/influence.npy")
    assert selection.indices.tolist() == np.argsort(-np.maximum(means, 0), kind="stable")[:12].tolist()
