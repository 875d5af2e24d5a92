"""Checksums: every damage is found, and a kill at any step leaves files that are whole."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from nncift.errors import RunError
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.repair import repair
from nncift.run.storage import checksums
from nncift.run.storage.checksums import (
    CHECKSUMS,
    begin,
    checksum_line,
    content_hash,
    cut_torn_line,
    parse_line,
    sealed_files,
    verify,
    verify_folder,
)
from nncift.run.storage.files import (
    read_array,
    read_json,
    read_table,
    read_tensors,
    write_array,
    write_json,
    write_tensors,
)

STEPS = ("write", "fsync", "replace")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    begin(tmp_path)
    return tmp_path


def flip(path: Path, place: int) -> None:
    """Change one byte, and neither size nor time."""
    status, data = path.stat(), bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << place % 8
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("damage", [lambda p: flip(p, 7), lambda p: flip(p, -1), lambda p: p.write_bytes(b"")])
@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("facts.json", lambda path: write_json(path, {"rows": 12}), read_json),
        ("features/pool.npy", lambda path: write_array(path, np.arange(6.0)), read_array),
        ("m.safetensors", lambda path: write_tensors(path, {"a": np.arange(6.0)}), read_tensors),
    ],
)
def test_a_damaged_file_is_named_with_its_repair(run, name, write, read, damage):
    write(run / name)
    read(run / name)
    damage(run / name)
    with pytest.raises(RunError, match=rf"{name} is damaged.*run nncift repair \S*{run.name}, then the same command"):
        read(run / name)
    with pytest.raises(RunError, match=rf"{name} is damaged"):
        verify_folder(run)
    write(run / name)  # an earlier checksum counts too
    read(run / name)


def test_a_folder_is_recorded_file_by_file_and_shards_are_left_to_their_readers(run):
    from nncift.run.storage.files import atomic_write

    with atomic_write(run / "network") as temporary:
        temporary.mkdir()
        write_json(temporary / "config.json", {})
        assert read_json(temporary / "config.json") == {}
        (temporary / "README.md").write_text("a card")
    write_array(run / "features" / "pool-000000.npy", np.zeros(3))
    flip(run / "features" / "pool-000000.npy", 5)
    verify_folder(run)
    assert "partial" not in (run / CHECKSUMS).read_text()
    flip(run / "network" / "README.md", 2)
    with pytest.raises(RunError, match=r"network/README\.md is damaged"):
        verify_folder(run)


def test_damage_of_the_list_itself_is_found_at_every_byte(run):
    write_json(run / "a.json", 1)
    write_json(run / "ü.json", 2)
    whole = (run / CHECKSUMS).read_bytes()
    for place in range(len(whole)):
        flip(run / CHECKSUMS, place)
        with pytest.raises(RunError, match=rf"{CHECKSUMS}"):
            [verify(run / name) for name in ("a.json", "ü.json")]
        (run / CHECKSUMS).write_bytes(whole)
    verify_folder(run)


def test_lines():
    line = checksum_line("features/\udcff.npy", "0f" * 16).encode()
    assert parse_line(line) == ("features/\udcff.npy", "0f" * 16)
    for other in (b"", b"[]", b"[1, 2, 3]", b"[" * 99999, line[:-1], line.replace(b"0f", b"0e", 1)):
        assert parse_line(other) is None


def test_a_torn_last_line_is_no_damage(run):
    write_json(run / "a.json", 1)
    whole = (run / CHECKSUMS).read_bytes()
    (run / CHECKSUMS).write_bytes(whole + whole[:-9])
    verify_folder(run)
    cut_torn_line(run)
    assert (run / CHECKSUMS).read_bytes() == whole
    write_json(run / "b.json", 2)
    verify_folder(run)


def test_without_a_list_nothing_is_checked(tmp_path: Path):
    write_json(tmp_path / "a.json", 1)
    flip(tmp_path / "a.json", 0)
    verify(tmp_path / "a.json")
    verify_folder(tmp_path)


def test_content_is_hashed_again_when_only_it_has_changed(tmp_path: Path):
    (tmp_path / "x.npy").write_bytes(b"abc")
    before = content_hash(tmp_path / "x.npy")
    flip(tmp_path / "x.npy", 1)
    assert content_hash(tmp_path / "x.npy") != before


def _killed_at(step: int, path: Path, value: object) -> bool:
    """Write a file in a child that kills itself before its `step`-th call of the system; whether it got so far."""
    if (child := os.fork()) == 0:
        left = step

        def deadly(plain):
            def call(*arguments):
                nonlocal left
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return plain(*arguments)

            return call

        os.write, os.fsync = deadly(os.write), deadly(os.fsync)
        Path.replace, Path.write_bytes = deadly(Path.replace), deadly(Path.write_bytes)
        write_json(path, value)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_killed_between_any_two_steps_the_old_or_the_new_file_is_whole(run):
    path, step, seen = run / "rounds.json", 0, []
    write_json(path, "old")
    while _killed_at(step, path, f"new {step}"):
        cut_torn_line(run)
        verify_folder(run)
        seen.append(read_json(path))
        step += 1
    assert step == 5  # write, fsync, line, fsync, rename
    assert set(seen) == {"old"}
    assert read_json(path) == "new 5"
    write_json(path, "newest")
    assert read_json(path) == "newest"


def test_tables_are_checked(run):
    import pyarrow as pa

    from nncift.run.storage.files import write_table

    write_table(run / "labels.parquet", pa.table({"a": [1, 2]}))
    flip(run / "labels.parquet", 20)
    with pytest.raises(RunError, match=r"labels\.parquet is damaged"):
        read_table(run / "labels.parquet")


def test_a_damaged_end_of_the_list_is_not_taken_for_a_torn_line(tmp_path):
    with RunFolder(tmp_path / "run").open({}):
        write_json(tmp_path / "run/summary.json", {"selected": 3})
    listed = tmp_path / "run/checksums.jsonl"
    whole = listed.read_bytes()
    listed.write_bytes(whole[:-1] + b"\x1a")
    with pytest.raises(RunError, match=r"checksums\.jsonl is damaged"), RunFolder(tmp_path / "run").open({}):
        pass
    listed.write_bytes(whole[:-1])  # as a kill leaves it
    with RunFolder(tmp_path / "run").open({}):
        pass


def test_a_damaged_list_is_repaired_for_every_file(tmp_path: Path):
    """Also for those that not every run has: without a line a file could not be read, nor repaired."""
    run = RunFolder(tmp_path / "run")
    with run.open({"budget": 1}):
        paths = (run.taken, run.models, run.reasons)
        arrays = (run.prefix, run.explorer.map, run.embeddings.array("pool"), run.vectors.array("pool"))
        for path in paths:
            write_json(path, {})
        for path in arrays:
            write_array(path, np.arange(3))
    listed = tmp_path / "run" / CHECKSUMS
    listed.write_bytes(listed.read_bytes().replace(b"[", b"{"))
    assert "was damaged and is written again" in repair(run.path)[0]
    for path in (run.config, *paths, *arrays):
        verify(path)


@pytest.fixture
def another_process(monkeypatch):
    """What another process does just before a file is hashed, once, by the file's name."""
    actions, hashed = {}, checksums.content_hash

    def content_hash(path: Path) -> str:
        if (action := actions.pop(path.name, None)) is not None:
            action(path)
        return hashed(path)

    monkeypatch.setattr(checksums, "content_hash", content_hash)
    return actions


def test_a_file_that_another_process_replaces_or_removes_meanwhile_is_no_damage(run, another_process):
    names = ("a.json", "b.json")
    for name in names:
        write_json(run / name, {"rows": 1})
    another_process |= {"a.json": lambda path: replaced(path, {"rows": 2}), "b.json": Path.unlink}
    verify_folder(run)
    assert not another_process
    another_process["a.json"] = lambda path: replaced(path, {"rows": 3})
    assert read_json(run / "a.json") == {"rows": 3}
    another_process["a.json"] = lambda path: flip(path, 3)
    with pytest.raises(RunError, match=r"a\.json is damaged"):
        verify_folder(run)


def replaced(path: Path, value: dict) -> None:
    """Write a file as another process does: of what this one has read and hashed it knows nothing."""
    child = os.fork()
    if not child:
        write_json(path, value)
        os._exit(0)
    os.waitpid(child, 0)


def test_repair_leaves_what_another_process_replaces_or_removes_meanwhile(tmp_path, another_process):
    run = RunFolder(tmp_path / "run")
    with run.open({}):
        names = [f"choices/{letter}.json" for letter in "abc"]
        for name in names:
            write_json(run.path / name, {"rows": 1})
    flip(run.path / "choices/c.json", 3)
    another_process |= {"a.json": lambda path: replaced(path, {"rows": 2}), "b.json": Path.unlink}
    assert repair(run.path) == ["choices/c.json was damaged and is removed: the same command writes it again."]
    assert not another_process
    assert read_json(run.path / "choices/a.json") == {"rows": 2}


def test_costs_of_every_folder_have_their_checksum_inside(tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.open({}):
        path = run.path / "exact" / "less" / "costs.json"
        write_json(path, {"stages": {}}, sealed=True)
        write_json(run.path / "runs/less/costs.json", {"stages": {}})
        begin(run.path / "runs/less")
    assert "exact" not in (run.path / CHECKSUMS).read_text()
    assert sealed_files(run.path) == [path]
    with open(run.path / CHECKSUMS, "a") as file:  # as an earlier version listed it
        file.write(checksum_line("exact/less/costs.json", "0" * 32) + "\n")
    verify_folder(run.path)
    assert repair(run.path)[0].startswith("Nothing is damaged")
    flip(path, 30)
    assert repair(run.path) == [
        "exact/less/costs.json was damaged and is removed: times and tokens are counted from now on."
    ]
