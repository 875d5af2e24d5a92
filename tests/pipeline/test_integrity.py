"""Damage anywhere in a finished run is found and repaired; a lost file is computed again, with the same bytes."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import nncift
from builders import word_rows, write_rows
from nncift.errors import ConfigError, ModelError, NNCIFTError, RunError
from nncift.report.html import write_report
from nncift.run.folder.repair import repair
from nncift.run.storage.checksums import CHECKSUMS
from nncift.run.storage.files import write_json
from nncift.selection.selection import Selection

# What two runs do not have in common: times, and what shows them.
EXEMPT = {"costs.json", "run.log", ".lock", "summary.json", "report.html", CHECKSUMS}
OPTIONS = {"target": "target.jsonl", "features": "pool.npy", "target_features": "target.npy", "budget": 6}


def files_of(run: Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def results(run: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(run).items() if name not in EXEMPT}


def choose(output: Path | str, **options) -> nncift.Selection:
    return nncift.select(
        "pool.jsonl", **{"influence": "builders:EstimatedBM25", "labels": 150, **OPTIONS, **options}, output=output
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    write_rows(folder / "pool.jsonl", [*word_rows(50), *word_rows(2)])
    write_rows(folder / "target.jsonl", word_rows(12, 100))
    rng = np.random.default_rng(0)
    for name, n in (("pool", 52), ("target", 12)):
        np.save(folder / f"{name}.npy", rng.random((n, 4), dtype=np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        choose("run")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, in the folder of its data."""
    monkeypatch.chdir(finished)
    shutil.copytree("run", tmp_path / "run")
    return tmp_path / "run"


def damage(path: Path, seed: int = 0) -> None:
    """Flip bits of one byte; size and time stay."""
    status, data, rng = path.stat(), bytearray(path.read_bytes()), np.random.default_rng(seed)
    data[rng.integers(len(data))] ^= rng.integers(1, 256)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_flipped_byte_is_found_in_every_file(run):
    for seed, (name, data) in enumerate(files_of(run).items()):
        if not data or name in (".lock", "run.log"):
            continue
        damage(run / name, seed)
        with pytest.raises(RunError, match=rf"{name} is (damaged|not valid).*run nncift repair \S*run, then the same"):
            choose(run)
        assert any(name in line for line in repair(run))
        if name == CHECKSUMS:
            assert repair(run)[0].startswith("Nothing is damaged")
        shutil.rmtree(run)
        shutil.copytree("run", run)


def test_repaired_and_run_again_it_ends_with_the_same_bytes(run):
    before = results(run)
    for seed, (name, data) in enumerate(files_of(run).items()):
        if data and name not in (".lock", "run.log", CHECKSUMS):
            damage(run / name, seed)
    assert len(repair(run)) > 15
    choose(run)
    assert results(run) == before
    assert repair(run)[0].startswith("Nothing is damaged")


@pytest.mark.parametrize(
    "lost",
    [
        ["config.json", "function.json", "costs.json", "features/pool.npy", "pool/facts.json", "subset.jsonl"],
        ["features/target.json", "pool/samples.arrow", "labels/plan.json", "selection.parquet"],
        ["network/model.safetensors", "labels/labels.parquet", "influence.npy", "target/rejected.jsonl"],
    ],
)
def test_lost_files_are_computed_again(run, lost):
    before = results(run)
    for name in lost:
        (run / name).unlink()
    choose(run)
    assert results(run) == before


class SharedWords:
    """How many words two samples share."""

    name = "shared-words"

    def __call__(self, pool_rows, target_rows):
        sides = [
            [set(f"{row['prompt']} {row['response']}".split()) for row in rows] for rows in (pool_rows, target_rows)
        ]
        return np.array([[len(i & j) for j in sides[1]] for i in sides[0]], np.float32).reshape(*map(len, sides))


def test_a_run_with_probes_and_a_shortlist_is_repaired(finished, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(finished)
    options = {"influence": SharedWords(), "probes": 2, "verify": 1}
    choose(tmp_path / "run", **options)
    before = results(tmp_path / "run")
    for name in ("labels/labels.parquet", "verify/verify.json", "probes/plan.json", "verify/choice/plan.json"):
        damage(tmp_path / "run" / name)
    with pytest.raises(RunError, match="and so are 3 other files: run nncift repair"):
        choose(tmp_path / "run", **options)
    assert len(repair(tmp_path / "run")) == 4
    choose(tmp_path / "run", **options)
    assert results(tmp_path / "run") == before


class SlowWords(SharedWords):
    """As many pairs as fit into a time are few."""

    name = "slow-words"

    def __call__(self, pool_rows, target_rows):
        time.sleep(0.002 * len(pool_rows) * len(target_rows))
        return super().__call__(pool_rows, target_rows)


def test_labels_by_time_are_measured_anew_without_their_plan(finished, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(finished)
    options = {"influence": SlowWords(), "labels": "0.2s"}
    choose(tmp_path / "run", **options)
    (tmp_path / "run/labels/plan.json").unlink()
    with pytest.raises(RunError, match=r"plan\.json was removed.*run nncift repair"):
        choose(tmp_path / "run", **options)
    assert "labels and all results" in repair(tmp_path / "run")[-1]
    choose(tmp_path / "run", **options)


def test_what_reads_a_finished_run_checks_it(run, tmp_path: Path):
    options = {"network": run, "target": None, "target_features": None, "influence": None, "labels": None}
    damage(run / "selection.parquet")
    with pytest.raises(RunError, match=r"selection\.parquet is damaged"):
        Selection.load(run)
    with pytest.raises(RunError, match=r"selection\.parquet is damaged"):
        write_report(run)
    damage(run / "network/model.safetensors")
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        choose(tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()
    shutil.rmtree(run)
    shutil.copytree("run", run)
    damage(run / "target/samples.arrow")
    with pytest.raises(RunError, match=r"samples\.arrow is damaged"):
        choose(tmp_path / "other", **options)


def test_a_pool_or_features_that_changed_are_refused_by_name(run, finished, tmp_path: Path, monkeypatch):
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    damage(Path("target.npy"))
    with pytest.raises(RunError, match=r"target\.npy has changed since this run read it"):
        choose("run")
    shutil.copy(finished / "target.npy", "target.npy")
    write_rows(Path("pool.jsonl"), word_rows(50, 1000))
    Path("run/pool/facts.json").unlink()  # which knows the pool
    for _ in range(2):
        with pytest.raises(RunError, match="the pool has changed since run was written"):
            choose("run")
    shutil.copy2(finished / "pool.jsonl", "pool.jsonl")
    choose("run")
    assert results(Path("run")) == results(finished / "run")


def test_without_its_config_a_run_belongs_to_the_same_options(run):
    (run / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json was removed, and these are not the options"):
        choose(run, budget=5)
    assert not (run / "config.json").exists()
    choose(run)


def test_a_refused_run_leaves_nothing_that_it_made(finished, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(finished)
    for wrong in ({"labels": 1}, {"network": "pool.npy", "influence": None, "labels": None}, {"features": "none.npy"}):
        with pytest.raises(NNCIFTError):
            choose(tmp_path / "a/b/run", **wrong)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    with pytest.raises(NNCIFTError):
        choose(tmp_path / "run", labels=1)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_folder_that_is_removed_under_the_run(finished, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(finished)

    class Destroyer(SharedWords):
        name = "destroyer"

        def __call__(self, pool_rows, target_rows):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            return super().__call__(pool_rows, target_rows)

    with pytest.raises(RunError, match="run was removed while the run was working in it: run the same command again"):
        choose(tmp_path / "run", influence=Destroyer())
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_an_earlier_version_is_repaired_by_what_can_be_read(tmp_path: Path):
    shutil.copytree(Path(__file__).parent / "stored" / "run", tmp_path / "run")
    (tmp_path / "run/notes.json").write_text("the user's own")
    assert repair(tmp_path / "run")[0].startswith("Nothing is damaged")
    for name in ("probes/labels.parquet", "pool/samples.arrow", "features/pool.json"):
        (tmp_path / "run" / name).write_bytes((tmp_path / "run" / name).read_bytes()[:-20])
    assert len(repair(tmp_path / "run")) == 3
    assert (tmp_path / "run/notes.json").exists()
    with pytest.raises(RunError, match="is not the folder of a run"):
        repair(tmp_path)


def test_a_hostile_network_is_refused_before_any_work(run, tmp_path: Path):
    write_json(run / "network/config.json", [])
    with pytest.raises(ModelError, match=r"has no InfluenceNetwork of this version \(config.json is not a mapping\)"):
        choose(tmp_path / "other", network=run, influence=None, labels=None)
    assert not (tmp_path / "other").exists()
