"""Labelled targets measured as pool samples too: kept, resumed, taken over, and what the network is fitted to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from builders import word_rows, write_rows
from nncift.influence.base import InfluenceFunction, Traits
from nncift.labels.pairs import LabelledPairs
from nncift.pipeline.select import select
from nncift.report.terminal import summary_text
from nncift.run.folder.folder import RunFolder

FILES = ("labels/among-targets/labels.parquet", "labels/labels.parquet", "network/model.safetensors", "influence.npy")


def letters(texts: list[str]) -> np.ndarray:
    """Counts of letters, of length 1."""
    counts = np.array([[text.count(chr(97 + k)) for k in range(26)] for text in texts], np.float32)
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


class Letters(InfluenceFunction):
    """The inner product of counts of letters; keeps what it is prepared with."""

    name = "letters"
    traits = Traits(both_sides=True)

    def __init__(self) -> None:
        self.prepared: list[tuple[int, int]] = []

    def prepare(self, pool, target, folder=None):
        self.prepared.append((len(pool), len(target)))

    def __call__(self, pool_rows, target_rows):
        return letters(pool_rows["prompt"]) @ letters(target_rows["prompt"]).T


@pytest.fixture
def files(tmp_path: Path):
    """A pool, targets, and features that tell something of the letters."""
    rng, given = np.random.default_rng(0), {"influence": Letters(), "budget": 6, "seed": 3}
    for side, rows in (("pool", word_rows(60)), ("target", word_rows(12, offset=100))):
        given[side] = write_rows(tmp_path / f"{side}.jsonl", rows)
        known = letters([row["prompt"] for row in rows])
        features = np.concatenate([known, rng.standard_normal(known.shape)], axis=1).astype(np.float32)
        np.save(tmp_path / f"{side}.npy", features)
        given["features" if side == "pool" else "target_features"] = str(tmp_path / f"{side}.npy")
    return given


def test_they_are_kept_resumed_and_taken_over(files, tmp_path: Path):
    run = tmp_path / "run"
    select(**files, labels=120, output=run)
    labels, among = (LabelledPairs.load(run / name) for name in (FILES[1], FILES[0]))
    targets = np.unique(labels.target_index)
    np.testing.assert_array_equal(np.unique(among.pool_index), targets)
    texts = [row["prompt"] for row in word_rows(12, offset=100)]
    expected = letters(texts) @ letters(texts).T
    np.testing.assert_allclose(among.influence, expected[among.pool_index, among.target_index], atol=1e-6)
    assert len(among) == len(targets) ** 2
    assert files["influence"].prepared == [(len(np.unique(labels.pool_index)), len(targets))]
    assert json.loads((run / "network" / "config.json").read_text())["facts"]["vectors"] is True
    assert "Labels on both sides are used: gradients predict " in summary_text(run)

    folder, before = RunFolder(run), {name: (run / name).read_bytes() for name in FILES}
    for path in (folder.labels.among_targets.parent, folder.network, folder.fidelity, folder.influence):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (folder.selection, folder.summary):
        path.unlink()
    select(**files, labels=120, output=run)
    assert {name: (run / name).read_bytes() for name in FILES} == before

    files["influence"].prepared.clear()
    select(**files | {"budget": 8}, labels=120, output=tmp_path / "more", from_run=run)
    assert {name: (tmp_path / "more" / name).read_bytes() for name in FILES[:3]} == {n: before[n] for n in FILES[:3]}
    assert files["influence"].prepared == []


class Unlike(Letters):
    """The less alike two samples are, the more they help each other: no product of vectors."""

    name = "unlike"

    def __call__(self, pool_rows, target_rows):
        return -super().__call__(pool_rows, target_rows)


def test_a_run_says_where_they_are_not_used(files, tmp_path: Path, caplog):
    run = tmp_path / "run"
    select(**files | {"influence": Unlike()}, labels=120, output=run)
    reason = "abels on both sides are not used: the targets' influence on each other is no inner product of vectors"
    assert [record.levelname for record in caplog.records if reason in record.message] == ["WARNING"]
    assert reason in summary_text(run)
    assert "not used: the targets&#39; influence" in (run / "report.html").read_text(encoding="utf-8")


def test_labelling_in_rounds_has_them_too(files, tmp_path: Path):
    select(**files, labels="auto", output=tmp_path / "run")
    history = json.loads((tmp_path / "run" / "labels" / "rounds.json").read_text())
    among = LabelledPairs.load(tmp_path / "run" / FILES[0])
    assert np.unique(among.target_index).tolist() == history["columns"]
    assert len(history["rounds"]) == 1  # of 24 rows, which reach the target fidelity
