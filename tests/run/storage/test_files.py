"""Files are complete or absent, never unpickled, and errors of the disk are one line."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from nncift.errors import RunError
from nncift.run.storage.files import (
    atomic_write,
    fingerprint,
    map_array,
    read_array,
    read_json,
    read_table,
    write_array,
    write_json,
)


def test_atomic_write_leaves_nothing_when_the_writer_fails(tmp_path: Path):
    path = tmp_path / "a" / "file.json"
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half") and 1 // 0
    assert list(path.parent.iterdir()) == []


def test_a_full_disk_is_one_clear_error():
    # /dev/full is a real device on which every write fails with ENOSPC.
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(RunError, match="no space left on the disk"), atomic_write(Path("/tmp/nncift-full")):
        Path("/dev/full").write_text("x" * 10)


def test_a_copy_that_finds_no_room_names_the_file_that_is_written(tmp_path: Path):
    """The system's error names the source first."""
    (tmp_path / "source").write_text("x")
    refused = pytest.raises(RunError, match=r"no space left on the disk while writing .*copy")
    with refused, atomic_write(tmp_path / "run" / "copy"):
        shutil.copyfile(tmp_path / "source", "/dev/full")


def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write .*: work in another folder$"):  # not `output`
        write_json(tmp_path / "file" / "below.json", {})


def test_arrays_are_mapped_and_never_unpickled(tmp_path: Path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    write_array(tmp_path / "a.npy", array)
    assert isinstance(read_array(tmp_path / "a.npy"), np.memmap)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy"), array)
    np.save(tmp_path / "objects.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    with pytest.raises(RunError, match=r"objects\.npy"):
        read_array(tmp_path / "objects.npy")


def test_a_damaged_table_is_named(tmp_path: Path):
    (tmp_path / "labels.parquet").write_bytes(b"")
    with pytest.raises(RunError, match=r"labels\.parquet is damaged"):
        read_table(tmp_path / "labels.parquet")


def test_fingerprint_depends_on_every_part_and_their_borders():
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    assert fingerprint(b"x") != fingerprint(b"y")


def test_json_has_null_in_place_of_numbers_that_json_does_not_have(tmp_path: Path):
    write_json(tmp_path / "a.json", {"r2": float("nan"), "mse": [1e300, float("inf")], "pair": (1, -float("inf"))})
    assert read_json(tmp_path / "a.json") == {"r2": None, "mse": [1e300, None], "pair": [1, None]}


def test_a_name_that_is_not_utf_8_is_kept(tmp_path: Path):
    write_json(tmp_path / "a.json", {"pool": "b\udcffe.jsonl"}, sealed=True)
    assert read_json(tmp_path / "a.json", sealed=True) == {"pool": "b\udcffe.jsonl"}


def test_a_sealed_file_has_its_checksum_inside(tmp_path: Path):
    write_json(tmp_path / "costs.json", {"stages": {"read": 1.5}}, sealed=True)
    text = (tmp_path / "costs.json").read_text()
    for old, new in (("1.5", "2.5"), ("\n", " "), ('"checksum": "', '"checksum": "0')):
        damaged = text.replace(old, new, 1)
        (tmp_path / "costs.json").write_text(damaged)
        with pytest.raises(RunError, match=r"costs\.json is damaged"):
            read_json(tmp_path / "costs.json", sealed=True)
    (tmp_path / "costs.json").write_text('{"stages": {}}')  # of an earlier version
    assert read_json(tmp_path / "costs.json", sealed=True) == {"stages": {}}


@pytest.mark.parametrize(
    ("limit", "write", "message"),
    [
        ("RLIMIT_FSIZE", lambda path: write_json(path, "x" * 9000), "exceeds the largest size of a file.*ulimit -f"),
        ("RLIMIT_FSIZE", lambda path: write_array(path, np.zeros(9000)), "cannot write all of .*ulimit -f"),
        ("RLIMIT_NOFILE", lambda path: write_json(path, "x"), "too many open files.*ulimit -n"),
    ],
)
def test_limits_of_the_system_are_one_clear_error(tmp_path: Path, limit, write, message):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(getattr(resource, limit))
    write(tmp_path / "warm-up")  # imports what it needs
    try:
        resource.setrlimit(getattr(resource, limit), (3 if limit == "RLIMIT_NOFILE" else 4096, before[1]))
        with pytest.raises(RunError) as refused:
            write(tmp_path / "file")
    finally:
        resource.setrlimit(getattr(resource, limit), before)
    assert re.search(message, str(refused.value))
    assert [path.name for path in tmp_path.iterdir()] == ["warm-up"]


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x76\x00{'shape': (-1,)}"])
def test_what_is_no_array_is_a_value_error(tmp_path: Path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError):  # noqa: PT011
        map_array(tmp_path / "a.npy")
