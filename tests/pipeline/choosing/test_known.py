"""Continual selection: what known samples cover is left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

import nncift
import nncift.pipeline.plan
from builders import word_rows, write_rows
from nncift.config import Config
from nncift.errors import ConfigError, DataError
from nncift.estimator.network import InfluenceNetwork
from pipeline_runs import arithmetic


def test_known_samples_leave_what_they_cover_to_others(pool, options, tmp_path: Path):
    """Continual selection: what is gained over known samples, with and without a target."""

    def other(n: int, offset: int = 0) -> list[dict]:
        rows = word_rows(n, offset)
        return [{"id": row["id"], "question": row["prompt"], "answer": row["response"]} for row in rows]

    options = {**options, "influence": "builders:EstimatedCosine", "budget": 6}
    known = write_rows(tmp_path / "known.jsonl", arithmetic(30, offset=300))
    mixed = write_rows(tmp_path / "mixed.jsonl", [*arithmetic(30), *other(30)])
    run = tmp_path / "run"
    selection = nncift.select(mixed, known=known, output=run, **options)
    plain = nncift.select(mixed, output=tmp_path / "plain", **options)
    new = [np.mean(chosen.indices >= 30) for chosen in (selection, plain)]
    assert new[0] > max(new[1], 0.5)
    assert selection.objective == "facility-location-conditional-gain"
    features = [np.load(run / f"features/{side}.npy") for side in ("known", "pool")]
    network = InfluenceNetwork.from_pretrained(run / "network")
    covered = network.estimate(*features).column_max()
    np.testing.assert_allclose(np.load(run / "known.npy"), covered, rtol=1e-5)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["known"]["rows"] == 30
    assert "Known" in (run / "report.html").read_text()
    plan = nncift.pipeline.plan.plan(Config(mixed, known=known, **{**options, "budget": "6", "labels": "300"}))
    assert plan.known == 30
    assert "known: 30" in str(plan)
    again = nncift.select(mixed, known=known, output=run, **options)
    np.testing.assert_array_equal(again.indices, selection.indices)
    target = write_rows(tmp_path / "target.jsonl", [*arithmetic(4, offset=500), *other(4, 500)])
    both = nncift.select(mixed, known=known, target=target, output=tmp_path / "both", nu=0.5, **options)
    assert (both.objective, both.objective_options) == ("facility-location-reciprocal-rank", {"nu": 0.5, "eta": 0.01})


def test_known_samples_have_a_split_of_their_own(pool, options, tmp_path: Path):
    DatasetDict(
        {"old": Dataset.from_list(arithmetic(9, 300)), "new": Dataset.from_list(arithmetic(9, 400))}
    ).save_to_disk(tmp_path / "known")
    options = {
        **options,
        "influence": "builders:EstimatedBM25",
        "known": tmp_path / "known",
        "output": tmp_path / "run",
    }
    with pytest.raises(DataError, match="`known_split`"):
        nncift.select(pool, **options)
    nncift.select(pool, known_split="old", **options)
    assert json.loads((tmp_path / "run/summary.json").read_text())["known"]["rows"] == 9


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"influence": "bm25", "verify": 2}, "bm25 is computed exactly for every pair, so `verify` 2 has no use"),
        ({"influence": "builders:EstimatedBM25", "verify": 2}, "is estimated, which exact values by `verify` 2"),
        ({"influence": "builders:EstimatedBM25", "probes": 8}, "is estimated, which exact values by `probes` 8"),
        ({"influence": "delift", "labels": 0, "verify": 2}, "is by gradient-sketch, which exact values by"),
    ],
)
def test_exact_values_of_the_pool_alone_are_refused(pool, tmp_path: Path, given, reason):
    with pytest.raises(ConfigError, match=reason):
        nncift.select(pool, known=pool, output=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
