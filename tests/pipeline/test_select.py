"""The main job end to end: what it writes, for each kind of data, budget and influence function."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

import nncift
import nncift.pipeline.plan
from builders import write_rows
from nncift.data.pool import load_pool
from nncift.errors import ConfigError
from nncift.features.features import stored_features
from nncift.influence.catalogue import BUILT_IN, is_factored
from nncift.labels.design import PairPlan
from nncift.pipeline.configuration.configure import make_config
from nncift.run.folder.folder import RunFolder
from pipeline_runs import SAME_BYTES, arithmetic


def test_the_main_job_with_the_real_models(target, smollm2, minilm, tmp_path: Path):
    run, pool = tmp_path / "run", write_rows(tmp_path / "pool.jsonl", arithmetic(16))
    options = {"model": smollm2, "encoder": minilm, "influence": "delift", "labels": 16, "device": "cpu"}
    selection = nncift.select(pool, target=target, budget=4, output=run, **options)
    assert len(selection.indices) == 4
    assert all((run / name).exists() for name in (*SAME_BYTES, "report.html", "costs.json", "summary.json"))
    originals = {row["id"]: row for row in arithmetic(16)}
    rows = [json.loads(line) for line in (run / "subset.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["nncift_rank"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        added = {key: row.pop(key) for key in list(row) if key.startswith("nncift_")}
        assert set(added) == {"nncift_rank", "nncift_gain", "nncift_influence"}
        assert row == originals[row["id"]]
        assert list(row) == list(originals[row["id"]])
    assert selection.dataset["id"] == [row["id"] for row in rows]
    # The influence beside a row is its mean over the targets, as the saved network estimates it.
    network = nncift.InfluenceNetwork.from_pretrained(run / "network")
    features, target_features = (
        stored_features(RunFolder(run).features, {"sentence": side, "lm": f"{side}.lm"}) for side in ("pool", "target")
    )
    means = network.estimate(features, target_features).row_means()
    table = pq.read_table(run / "selection.parquet").to_pydict()
    np.testing.assert_allclose(table["influence"], means[table["pool_index"]], rtol=1e-5)
    labels = nncift.LabelledPairs.load(run / "labels/labels.parquet")
    assert 2 <= len(labels) <= 16
    costs = json.loads((run / "costs.json").read_text())["stages"]
    assert costs["labels"]["forward_tokens"] > 16 * 10
    # The same call again recomputes nothing.
    before = {name: (run / name).stat().st_mtime_ns for name in SAME_BYTES}
    again = nncift.select(pool, target=target, budget=4, output=run, **options)
    np.testing.assert_array_equal(again.indices, selection.indices)
    assert again.value == pytest.approx(selection.value)
    assert {name: (run / name).stat().st_mtime_ns for name in SAME_BYTES} == before


def test_without_a_target_the_pool_is_represented(pool, options, tmp_path: Path):
    selection = nncift.select(pool, output=tmp_path / "run", influence="delift", **options)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["objective"] == "facility-location"
    assert summary["target"] is None
    assert summary["all_pairs"] == 60 * 60
    assert len(selection.indices) == 6


@pytest.mark.parametrize("own", [True, False])
def test_delift_labels_each_row_on_targets_of_its_own(tiny_model, small_encoder, own, pool, tmp_path: Path):
    """As many tokens as planned; the held-out samples are the planned ones."""
    target = None if own else write_rows(tmp_path / "target.jsonl", arithmetic(40, offset=100))
    options = {"model": tiny_model, "encoder": small_encoder, "budget": "5", "labels": "120", "device": "cpu"}
    planned = nncift.pipeline.plan.plan(make_config(pool, target=target, influence="delift", **options))
    nncift.select(pool, target=target, output=tmp_path / "run", influence="delift", **options)
    plan = PairPlan.from_dict(json.loads((tmp_path / "run/labels/plan.json").read_text()))
    assert plan.columns.shape == (15, 8)
    assert len(plan.targets) == 30
    labels = nncift.LabelledPairs.load(tmp_path / "run/labels/labels.parquet")
    np.testing.assert_array_equal(labels.pool_index, np.repeat(plan.rows, 8))
    np.testing.assert_array_equal(labels.target_index, plan.columns.ravel())
    costs = json.loads((tmp_path / "run/costs.json").read_text())["stages"]["labels"]
    assert (planned.pairs, planned.tokens) == (120, costs["forward_tokens"])
    fidelity = json.loads((tmp_path / "run/fidelity.json").read_text())
    rows, targets = plan.held_out
    assert fidelity["held_out"] == {"pool": len(rows), "target": len(targets)}
    seen = ~np.isin(labels.pool_index, rows) & ~np.isin(labels.target_index, targets)
    assert fidelity["pairs"]["train"] == seen.sum()
    samples = load_pool(pool)
    others = samples if own else load_pool(target)
    for k in (0, 17, len(labels) - 1):
        i, j = int(labels.pool_index[k]), int(labels.target_index[k])
        exact = nncift.Delift(tiny_model, device="cpu")(samples.select([i]), others.select([j]))
        np.testing.assert_allclose(labels.influence[k], exact[0, 0], atol=1e-5)


def test_a_budget_in_tokens_is_kept(pool, target, options, tmp_path: Path):
    options = {**options, "budget": "100tok", "influence": "builders:EstimatedCosine"}
    nncift.select(pool, target=target, output=tmp_path / "run", **options)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert 60 < summary["tokens_selected"] <= 100


def test_datasets_and_own_influence_functions_are_taken_as_objects(options, tmp_path: Path):
    class ShorterIsBetter:
        name = "shorter"

        def __call__(self, pool_rows, target_rows):
            lengths = np.array([len(text) for text in pool_rows["prompt"]], dtype=np.float32)
            return np.repeat(-lengths[:, None], len(target_rows), axis=1)

    listed = [{"prompt": f"Say {i}.", "response": str(i)} for i in range(20)]
    nncift.select(listed, influence=ShorterIsBetter(), output=tmp_path / "list", **options)
    rows = Dataset.from_list([{"prompt": "word " * (1 + i % 9) + str(i), "response": "yes"} for i in range(40)])
    del options["model"]
    nncift.select(rows, influence=ShorterIsBetter(), output=tmp_path / "run", **options)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert json.loads(config["influence"]) == {"name": "shorter"}
    assert json.loads((tmp_path / "run/fidelity.json").read_text())["influence"] == "shorter"


@pytest.mark.parametrize(  # delift is what the others use
    "influence", [name for name in BUILT_IN if name != "delift" and not is_factored(name)]
)
def test_every_influence_function_serves_a_run(pool, target, options, tmp_path: Path, influence):
    run = tmp_path / "run"
    selection = nncift.select(pool, target=target, influence=influence, output=run, **{**options, "labels": 60})
    assert len(selection.indices) == 6
    labels = nncift.LabelledPairs.load(run / "labels/labels.parquet")
    assert np.ptp(labels.influence) > 0
    assert json.loads((run / "fidelity.json").read_text())["influence"] == influence
    if influence != "lossval":
        assert json.loads((run / "costs.json").read_text())["stages"]["labels"]["forward_tokens"] > 0
    again = nncift.select(pool, target=target, influence=influence, output=run, **{**options, "labels": 60})
    np.testing.assert_array_equal(again.indices, selection.indices)


def test_a_target_of_one_sample_warns(pool, options, tmp_path: Path):
    one = write_rows(tmp_path / "one.jsonl", arithmetic(1, offset=300))
    nncift.select(pool, target=one, output=tmp_path / "run", influence="delift", **options)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert any("one sample" in warning for warning in summary["warnings"])
    fidelity = json.loads((tmp_path / "run/fidelity.json").read_text())
    assert set(fidelity["quadrants"]) == {"Q1", "Q2"}


def test_the_objective_can_be_chosen(pool, target, options, tmp_path: Path):
    options = {**options, "influence": "builders:EstimatedCosine", "target": target}
    selection = nncift.select(pool, objective="facility-location", output=tmp_path / "run", **options)
    assert selection.objective == "facility-location"
    with pytest.raises(ConfigError, match="did you mean 'facility-location'"):
        nncift.select(pool, objective="facility-locaton", output=tmp_path / "none", **options)
    with pytest.raises(ConfigError, match="known"):
        nncift.select(pool, objective="facility-location-conditional-gain", output=tmp_path / "none", **options)
    assert not (tmp_path / "none/features").exists()
