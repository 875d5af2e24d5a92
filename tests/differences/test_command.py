"""`nncift diff`: what it prints and writes, and folders that are no finished runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from builders import called


def test_the_command_prints_and_writes(capsys, runs, found, tmp_path):
    code, out, err = called(
        capsys, "diff", runs["exact"], runs["estimated"], "--output", tmp_path / "diff.json", "--quiet"
    )
    assert (code, err) == (0, "")
    for part in ("Overlap", "Only in subset 1", "Composition", "Pearson", "By the influence of run 2"):
        assert part in out
    assert json.loads((tmp_path / "diff.json").read_text())["overlap"]["common_rows"] == found.overlap.common_rows


def unfinished(folder: Path) -> None:
    (folder / "selection.parquet").unlink()


def damaged(folder: Path) -> None:
    path = folder / "selection.parquet"
    path.write_bytes(path.read_bytes()[:-40])


def damaged_pool(folder: Path) -> None:
    path = folder / "pool" / "samples.arrow"
    path.write_bytes(path.read_bytes()[:200])


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


def comparison(folder: Path) -> None:
    for file in folder.rglob("*.jsonl"):
        file.unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"test": {"name": "test.jsonl"}}))


def config_of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unfinished, "is not finished: run its command again"),
        (damaged, "selection.parquet"),
        (damaged_pool, "samples.arrow"),
        (emptied, "is not the folder of a run"),
        (removed, "there is no folder"),
        (comparison, "holds an evaluation or comparison"),
        (config_of_another_kind, "config.json"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_one_line_and_exit_code_2(capsys, runs, tmp_path, spoil, message):
    copy = tmp_path / "run"
    shutil.copytree(runs["own"], copy)
    spoil(copy)
    code, out, err = called(capsys, "diff", runs["own"], copy)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
