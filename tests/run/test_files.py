"""Files are complete or absent, never unpickled, and errors of the disk are one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nncift.errors import RunError
from nncift.run.files import atomic_write, fingerprint, read_array, read_table, write_array, write_json


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


def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot write"):
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
