"""Runs that are resumed: killed at every file, of another precision, of an earlier version."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import nncift
import nncift.pipeline.plan
from builders import write_rows
from nncift.cli import main
from nncift.errors import ConfigError, RunError
from nncift.run.storage.files import write_json
from pipeline_runs import SAME_BYTES, arithmetic


def killed_at(file: Path, when: str, arguments: list[str]) -> None:
    """Run the command in a child that kills itself, as `kill -9` would, just before or after the file is renamed."""
    if (child := os.fork()) == 0:
        torch.set_num_threads(1)  # others are not there after a fork, and would be waited for
        Path.replace, Path.rename = (deadly(plain, file, when) for plain in (Path.replace, Path.rename))
        try:
            main(arguments)
        finally:
            os._exit(1)  # not killed
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), (file, when, status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def deadly(plain, file: Path, when: str):
    def rename(self, destination):
        if Path(destination) == file and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = plain(self, destination)
        if Path(destination) == file and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    return rename


KILLED_AT = (
    ("config.json", "before"),
    ("pool/samples.arrow", "before"),
    ("features/pool-000000.safetensors", "after"),
    ("labels/plan.json", "after"),
    ("labels/block-000001.parquet", "before"),
    ("labels/labels.parquet", "after"),
    ("fidelity.json", "before"),
    ("network", "before"),
    ("influence.npy", "after"),
    ("selection.parquet", "after"),
    ("report.html", "before"),
)


def test_killed_in_every_stage_it_ends_with_the_same_bytes(pool, target, tiny_model, small_encoder, tmp_path: Path):
    def arguments(run: Path) -> list[str]:
        given = f"select {pool} --target {target} --output {run} --model {tiny_model} --encoder {small_encoder}"
        return f"{given} --influence delift --labels 200 --budget 10% --device cpu --quiet".split()

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with pytest.raises(SystemExit, match="0"):
        main(arguments(whole))  # here, so that what it imports is there for each child
    for name, when in KILLED_AT:
        killed_at(killed / name, when, arguments(killed))
        assert not (killed / "report.html").exists()
    with pytest.raises(SystemExit, match="0"):
        main(arguments(killed))
    for name in SAME_BYTES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    left = {path.relative_to(killed) for path in killed.rglob("*") if path.is_file()}
    assert left == {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}


def test_another_config_or_a_changed_pool_in_the_same_folder_is_refused(pool, target, options, tmp_path: Path):
    options = {**options, "target": target, "output": tmp_path / "run", "influence": "builders:EstimatedCosine"}
    nncift.select(pool, **options)
    with pytest.raises(ConfigError, match=r"budget: '0\.1' there, '0\.2' now"):
        nncift.select(pool, **{**options, "budget": 0.2})
    write_rows(Path(pool), arithmetic(61))
    with pytest.raises(RunError, match=r"pool\.jsonl"):
        nncift.select(pool, **options)


def test_labels_begun_in_another_precision_are_not_resumed(pool, target, options, tmp_path: Path):
    run = tmp_path / "run"
    options = {**options, "target": target, "labels": 60, "influence": "builders:EstimatedIFD"}
    nncift.select(pool, output=run, **options)
    function = json.loads((run / "function.json").read_text())
    write_json(run / "function.json", function | {"dtype": "bfloat16"})
    nncift.select(pool, output=run, **options)  # nothing is left to label
    (run / "labels/labels.parquet").unlink()
    with pytest.raises(ConfigError, match=r"bfloat16.*`dtype`"):
        nncift.select(pool, output=run, **options)


def test_the_number_of_cut_samples_survives_a_kill(pool, target, options, tmp_path: Path):
    run = tmp_path / "run"
    rows = [{"id": f"long-{i}", "question": f"river {i} " * 200, "answer": "stone"} for i in range(30)]
    options = {**options, "target": target, "labels": 60, "output": run}
    nncift.select(write_rows(tmp_path / "long.jsonl", rows), influence="delift", **options)
    noted, summary = (run / "labels/notes.json").read_bytes(), json.loads((run / "summary.json").read_text())
    assert summary["language_model"]["cut"] == len(json.loads(noted)["cut"]) > 2
    for name in ("summary.json", "report.html"):
        (run / name).unlink()
    nncift.select(tmp_path / "long.jsonl", influence="delift", **options)
    assert json.loads((run / "summary.json").read_text())["language_model"] == summary["language_model"]
    assert (run / "labels/notes.json").stat().st_mtime_ns <= (run / "labels/labels.parquet").stat().st_mtime_ns


def test_a_time_budget_for_labels_becomes_a_stored_plan(pool, target, options, tmp_path: Path):
    options = {**options, "labels": "2s", "influence": "builders:EstimatedCosine", "target": target}
    nncift.select(pool, output=tmp_path / "run", **options)
    plan = json.loads((tmp_path / "run/labels/plan.json").read_text())
    assert plan["rate"]["row"] > 0
    assert plan["rate"]["pair"] > 0
    labels = nncift.LabelledPairs.load(tmp_path / "run/labels/labels.parquet")
    assert set(labels.pool_index) == set(plan["rows"])
    assert set(labels.target_index) == set(plan["columns"])


class SharedWords:
    """How many words two samples share."""

    name = "shared-words"

    def __call__(self, pool_rows, target_rows):
        sides = (
            [set(f"{p} {r}".split()) for p, r in zip(rows["prompt"], rows["response"], strict=True)]
            for rows in (pool_rows, target_rows)
        )
        pool, target = sides
        return np.array([[len(i & j) for j in target] for i in pool], np.float32).reshape(len(pool), len(target))


def test_a_run_of_version_0_1_is_resumed_reported_and_reused(tmp_path: Path, monkeypatch):
    """The folder `stored` was written before files were typed records; it has rounds, probes and a shortlist."""
    shutil.copytree(Path(__file__).parent / "stored", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for side in ("pool", "target"):  # as when the run read them
        (stamp,) = json.loads(Path(f"run/{side}/facts.json").read_text())["files"]
        os.utime(f"{side}.jsonl", ns=(stamp["modified"],) * 2)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    options = {"target": "target.jsonl", "features": "pool.npy", "target_features": "target.npy", "device": "cpu"}
    options |= {"labels": "auto", "fidelity": 0.9, "verify": 2, "probes": 2, "budget": 4, "influence": SharedWords()}
    selection, stored = nncift.select("pool.jsonl", output="run", **options), pq.read_table("run/selection.parquet")
    assert selection.indices.tolist() == [1, 2, 4, 6]
    exempt = {Path("run") / name for name in ("costs.json", "summary.json")}
    assert {path: path.read_bytes() for path in before if path not in exempt} == {
        path: content for path, content in before.items() if path not in exempt
    }
    assert "0.9" in Path("run/report.html").read_text()
    for name in ("selection.parquet", "subset.jsonl", "verify/verify.json", "fidelity.json", "influence.npy"):
        Path("run", name).unlink()
    again = nncift.select("pool.jsonl", output="run", **options)  # from the stored labels and network
    assert again.indices.tolist() == selection.indices.tolist()
    found = pq.read_table("run/selection.parquet")  # whose metadata have grown since, and gains have less of relevance
    assert found.drop_columns("gain").equals(stored.drop_columns("gain"))
    reused = nncift.select("pool.jsonl", network="run", features="pool.npy", budget=4, output="reused", device="cpu")
    assert len(reused.indices) == 4
    assert len(nncift.LabelledPairs.load(Path("run/labels/labels.parquet"))) > 0
