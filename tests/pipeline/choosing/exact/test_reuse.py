"""Exact influence of every pair: killed, damaged and earlier runs; vectors are computed once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import nncift
from builders import EstimatedBM25
from nncift.errors import ConfigError, RunError
from nncift.influence.bm25 import BM25
from nncift.pipeline.configuration.configure import make_config
from nncift.pipeline.plan import plan
from nncift.run.folder.repair import repair
from nncift.run.storage.files import write_json
from pipeline_runs import EXACT_FILES, contents, stopped_at


@pytest.mark.parametrize("name", ["response-similarity", "bm25"])
def test_killed_at_every_file_it_ends_with_the_same_bytes(files, common, tmp_path: Path, monkeypatch, name):
    monkeypatch.setattr("nncift.run.shards.SHARD", 16)
    given = {**common, "target": files["target"], "influence": name}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    nncift.select(files["pool"], output=whole, **given)
    vectors = sorted(path.relative_to(whole).as_posix() for path in (whole / "vectors").iterdir())
    shards = [f"vectors/prepared/{name}-{k:06d}.safetensors" for k in (0, 2)] if name != "bm25" else []
    first = [file for file in vectors if file.endswith("notes.json")]
    then = sorted((file for file in vectors if file not in first), key=lambda file: "statistics" not in file)
    stops = ["function.json", *first, *shards, *then]
    for stop in (*stops, "influence.npy", "selection.parquet", "summary.json"):
        for after in (0, 1):
            with stopped_at(killed / stop, after=bool(after)):
                nncift.select(files["pool"], output=killed, **given)
    nncift.select(files["pool"], output=killed, **given)
    assert contents(killed).keys() == contents(whole).keys()
    for file in (*EXACT_FILES, *vectors):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file


def test_vectors_are_taken_where_they_hold(files, common, tmp_path: Path):
    options = {**common, "influence": "embedding-similarity"}
    nncift.select(files["pool"], target=files["target"], output=tmp_path / "first", **options)

    def notes(folder: Path) -> dict[str, str]:
        return json.loads((folder / "taken.json").read_text())["notes"]

    again = nncift.select(files["pool"], from_run=tmp_path / "first", budget=7, output=tmp_path / "second")
    fresh = nncift.select(files["pool"], target=files["target"], output=tmp_path / "fresh", **options | {"budget": 7})
    np.testing.assert_array_equal(again.indices, fresh.indices)
    assert notes(tmp_path / "second")["vectors pool"] == "vectors of the pool: taken"
    nncift.select(files["pool"], from_run=tmp_path / "first", target=files["known"], output=tmp_path / "third")
    assert notes(tmp_path / "third")["vectors pool"] == "vectors of the pool: taken"
    assert notes(tmp_path / "third")["vectors target"] == "vectors of the target: computed anew (other target samples)"
    nncift.select(files["pool"], from_run=tmp_path / "first", influence="bm25", output=tmp_path / "fourth")
    assert "computed anew (the influence function differs" in notes(tmp_path / "fourth")["vectors pool"]
    nncift.select(files["pool"], from_run=tmp_path / "fourth", target=files["known"], output=tmp_path / "fifth")
    assert "computed anew (other target samples)" in notes(tmp_path / "fifth")["vectors pool"]  # it is relative


def test_another_target_takes_a_pass_over_its_own_samples_alone(files, common, tmp_path: Path):
    def tokens(folder: Path) -> int:
        return json.loads((folder / "costs.json").read_text())["stages"]["influence"]["forward_tokens"]

    pool, options = files["pool"], {**common, "influence": "gradient-sketch"}
    nncift.select(pool, target=files["target"], output=tmp_path / "first", **options)
    other = {"from_run": tmp_path / "first", "target": files["known"]}
    planned = plan(make_config(pool, output=str(tmp_path / "other"), **other))
    for stop in ("vectors/pool.npy", "vectors/statistics.safetensors", "vectors/target.npy", "influence.npy"):
        with stopped_at(tmp_path / "other" / stop, after=True):
            nncift.select(pool, output=tmp_path / "other", **other)
    nncift.select(pool, output=tmp_path / "other", **other)
    notes = json.loads((tmp_path / "other/taken.json").read_text())["notes"]
    assert notes["vectors pool"] == "vectors of the pool: taken"
    fresh = nncift.select(pool, target=files["known"], output=tmp_path / "fresh", **options)
    assert fresh.indices.tolist() == nncift.Selection.load(tmp_path / "other").indices.tolist()
    for side in ("pool", "target"):
        found, wanted = (np.load(tmp_path / run / f"vectors/{side}.npy") for run in ("other", "fresh"))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert tokens(tmp_path / "other") < 0.3 * tokens(tmp_path / "fresh")  # 9 of 49 samples
    assert planned.tokens < 0.3 * tokens(tmp_path / "fresh")
    # Known samples are part of what the whitening is of.
    nncift.select(pool, from_run=tmp_path / "first", known=files["known"], output=tmp_path / "known")
    notes = json.loads((tmp_path / "known/taken.json").read_text())["notes"]
    assert notes["vectors pool"] == "vectors of the pool: computed anew (other known samples)"


def test_an_earlier_run_that_estimated_leaves_its_labels(files, common, tmp_path: Path):
    options = {**common, "influence": "builders:EstimatedBM25", "labels": 60, "features": "sentence", "seed": 3}
    nncift.select(files["pool"], output=tmp_path / "estimated", **options)
    nncift.select(files["pool"], from_run=tmp_path / "estimated", influence=BM25(), output=tmp_path / "exact")
    config = json.loads((tmp_path / "exact/config.json").read_text())
    assert (config["labels"], config["features"], config["seed"]) == (None, None, 3)
    back = {"influence": EstimatedBM25(), "labels": 60, "features": "sentence"}
    nncift.select(files["pool"], from_run=tmp_path / "exact", output=tmp_path / "back", **back)
    assert (tmp_path / "back/network").exists()


def test_damaged_vectors_are_computed_again(files, common, tmp_path: Path):
    run, given = tmp_path / "run", {**common, "influence": "response-similarity"}
    nncift.select(files["pool"], output=run, **given)
    before = {name: content for name, content in contents(run).items() if name in EXACT_FILES or "vectors" in name}
    (run / "vectors/pool.npy").write_bytes(b"broken")
    with pytest.raises(RunError, match="nncift repair"):
        nncift.select(files["pool"], output=run, **given)
    assert repair(run) == ["vectors/pool.npy was damaged and is removed: the same command writes it again."]
    nncift.select(files["pool"], output=run, **given)
    assert {name: content for name, content in contents(run).items() if name in before} == before
    for name in ("function.json", "models.json"):
        lost = (run / name).read_bytes()
        (run / name).unlink()
        nncift.select(files["pool"], output=run, **given)
        assert (run / name).read_bytes() == lost
    (run / "vectors/notes.json").write_bytes(b"broken")
    assert "the report lacks the number of truncated samples" in repair(run)[0]
    nncift.select(files["pool"], output=run, **given)


def test_another_precision_is_not_mixed_in(files, common, tmp_path: Path):
    run, given = tmp_path / "run", {**common, "influence": "representation-similarity"}
    nncift.select(files["pool"], target=files["target"], output=run, **given)
    function = json.loads((run / "function.json").read_text())
    write_json(run / "function.json", function | {"dtype": "bfloat16"})
    nncift.select(files["pool"], target=files["target"], output=run, **given)  # nothing is left to compute
    (run / "vectors/target.npy").unlink()
    with pytest.raises(ConfigError, match=r"bfloat16.*`dtype`"):
        nncift.select(files["pool"], target=files["target"], output=run, **given)
    shutil.rmtree(run)


def test_weights_that_changed_while_a_run_was_killed_are_named(files, common, tmp_path: Path, caplog):
    model = shutil.copytree(common["model"], tmp_path / "model")
    given = {**common, "model": str(model), "target": files["target"], "influence": "gradient-sketch"}
    with stopped_at(tmp_path / "run/vectors/pool.npy", after=True):
        nncift.select(files["pool"], output=tmp_path / "run", **given)
    weights = model / "model.safetensors"
    save_file({name: 1.1 * tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    with caplog.at_level("WARNING", "nncift"):
        nncift.select(files["pool"], output=tmp_path / "run", **given)
    assert "have changed since" in caplog.text
    caplog.clear()
    nncift.select(files["pool"], output=tmp_path / "run", **given)  # nothing is left to compute
    assert "have changed since" not in caplog.text
