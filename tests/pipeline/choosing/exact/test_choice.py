"""Exact influence of every pair: the choice is that by the function itself, without labels and network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nncift
import references
from nncift.data.pool import load_pool
from nncift.influence.base import InfluenceFunction, Setup
from nncift.influence.catalogue import BUILT_IN, is_factored
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.report.terminal import summary_text
from nncift.run.options.registry import resolve
from pipeline_runs import EXACT_FILES, contents

FACTORED = [name for name in BUILT_IN if is_factored(name)]
DRAWN = ["random", "stratified-random"]
SCORES = ["ifd", "perplexity"]
PAIRWISE = [name for name in FACTORED if name not in (*DRAWN, *SCORES)]  # scores have an objective of their own


def function_of(name: str, common: dict) -> InfluenceFunction:
    setup = Setup((ModelSpec(common["model"], device="cpu"),), EncoderSpec(common["encoder"], device="cpu"))
    return resolve(name, BUILT_IN, "nncift.influence").build(setup)


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_choice_is_that_by_the_functions_own_values(files, common, tmp_path: Path, name):
    run = tmp_path / "run"
    selection = nncift.select(files["pool"], target=files["target"], influence=name, output=run, **common)
    pool, target, function = load_pool(files["pool"]), load_pool(files["target"]), function_of(name, common)
    function.check(pool, target)
    function.prepare(pool, target)
    exact = function(pool, target)
    np.testing.assert_allclose(np.load(run / "influence.npy"), exact.mean(axis=1), rtol=1e-4, atol=1e-6)
    chosen: list[int] = []  # plain greedy
    for row, gain in zip(selection.indices.tolist(), selection.gains, strict=True):
        before = references.coverage_and_ranks(exact, chosen) if chosen else 0
        gains = {i: references.coverage_and_ranks(exact, [*chosen, i]) - before for i in {*range(40)} - {*chosen}}
        assert gains[row] == pytest.approx(max(gains.values()), rel=1e-4)
        assert gain == pytest.approx(gains[row], rel=1e-4)
        chosen.append(row)
    assert f"Influence: {name}, exact for every pair (240)" in summary_text(run)
    rows = [json.loads(line) for line in (run / "subset.jsonl").read_text().splitlines()]
    measured = [row["nncift_influence"] for row in rows]
    np.testing.assert_allclose(measured, exact[selection.indices].mean(axis=1), rtol=1e-4, atol=1e-6)
    assert not any((run / part).exists() for part in ("labels", "network", "features", "fidelity.json"))
    assert list(json.loads((run / "costs.json").read_text())["stages"]) == ["read", "influence", "select", "report"]
    tokens = json.loads((run / "costs.json").read_text())["stages"]["influence"]["forward_tokens"]
    assert tokens == (function.tokens(pool, target) or 0)
    before = contents(run)
    again = nncift.select(files["pool"], target=files["target"], influence=name, output=run, **common)
    np.testing.assert_array_equal(again.indices, selection.indices)
    assert {n: c for n, c in contents(run).items() if n in EXACT_FILES or "vectors" in n} == {
        n: c for n, c in before.items() if n in EXACT_FILES or "vectors" in n
    }


@pytest.mark.parametrize("name", PAIRWISE)
def test_streamed_is_held(files, common, tmp_path: Path, monkeypatch, name):
    """Without a target, over known samples and turns of chats."""
    given = {**common, "influence": name, "known": files["known"], "turns": "all"}
    held = nncift.select(files["chats"], output=tmp_path / "held", **given)
    monkeypatch.setattr("nncift.pipeline.choosing.exact.HELD", 0)
    monkeypatch.setattr("nncift.matrix.selectors.TILE", 50)
    streamed = nncift.select(files["chats"], output=tmp_path / "streamed", **given)
    np.testing.assert_allclose(streamed.gains, held.gains, rtol=1e-4, atol=1e-5)
    pool, known = load_pool(files["chats"], turns="all"), load_pool(files["known"])
    function = function_of(name, common)
    function.check(pool, pool)
    from datasets import concatenate_datasets

    function.prepare(concatenate_datasets([pool, known]), pool)  # all on one scale
    covered = function(known, pool).max(axis=0)
    np.testing.assert_allclose(np.load(tmp_path / "held/known.npy"), covered, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "held/summary.json").read_text())["known"]["rows"] == 9


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_every_sample_are_computed(files, common, tmp_path: Path, name):
    run = tmp_path / "run"
    given = {**common, "influence": name, "turns": "all", "output": run}
    selection = nncift.select(files["chats"], **given)
    pool, function = load_pool(files["chats"], turns="all"), function_of(name, common)
    function.check(pool, pool)
    function.prepare(pool, pool)
    exact = function(pool, pool.select([0]))[:, 0]
    np.testing.assert_allclose(np.load(run / "influence.npy"), exact, rtol=1e-4)
    assert sorted(selection.indices) == sorted(np.argsort(-exact)[:5])
    assert selection.objective == "mean-influence"
    assert not any((run / part).exists() for part in ("labels", "network", "features", "fidelity.json"))
    assert f"Influence: {name}, exact for every pair (441)" in summary_text(run)
    costs = json.loads((run / "costs.json").read_text())["stages"]
    assert costs["influence"]["forward_tokens"] == function.tokens(pool, pool)
    assert list(nncift.select(files["chats"], **given).indices) == list(selection.indices)
    grown = nncift.select(from_run=run, append=files["known"], output=tmp_path / "grown", budget=5, device="cpu")
    more = json.loads((tmp_path / "grown/costs.json").read_text())["stages"]
    assert 0 < more["influence"]["forward_tokens"] < costs["influence"]["forward_tokens"]
    assert len(grown) == 5


def test_a_pool_as_its_own_target_serves_others(files, common, tmp_path: Path):
    selection = nncift.select(files["pool"], influence="embedding-similarity", output=tmp_path / "run", **common)
    pool, function = load_pool(files["pool"]), function_of("embedding-similarity", common)
    exact = function(pool, pool)
    np.fill_diagonal(exact, -1)
    best = exact[selection.indices].argmax(axis=1)
    assert selection.served.served == len(set(best.tolist()))
    assert selection.served.most == max(np.bincount(best))


def test_phases_and_weights_of_an_exact_choice(files, common, tmp_path: Path):
    given = {**common, "influence": "bm25", "phases": 2, "weights": True}
    selection = nncift.select(files["pool"], output=tmp_path / "run", **given)
    assert selection.phase is not None
    assert selection.weights.mean() == pytest.approx(1)
    assert not (tmp_path / "run/labels").exists()
