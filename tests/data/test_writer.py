"""The folder of a pool: resuming, changed sources, full disks, memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from builders import write_jsonl
from nncift.data import writer
from nncift.data.facts import open_pool
from nncift.data.pool import ReadOptions, load_pool, read_pool
from nncift.errors import RunError

NAMES = ["duplicates.jsonl", "excluded.jsonl", "facts.json", "rejected.jsonl", "samples.arrow"]
SKIP = ReadOptions(skip_bad_rows=True)


def row(i):
    return {"prompt": f"p{i}", "response": f"r{i}"}


BAD = [row(0), {"prompt": "p"}, "{not json}", "[1]", "", row(1)]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_folder_and_memory_are_equal_and_bytes_reproducible(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*BAD, row(0), *map(row, range(3000))])
    options = ReadOptions(skip_bad_rows=True, exclude=[row(1)])
    pool, facts = read_pool(path, options, folder=tmp_path / "pool", progress=True)
    other, other_facts = read_pool(path, options)
    assert pool.to_list() == other.to_list()
    assert facts == other_facts
    assert sorted(contents(tmp_path / "pool")) == NAMES
    assert facts.read == facts.rows + facts.duplicates + facts.excluded + facts.rejected
    assert pool.cache_files == [{"filename": str(tmp_path / "pool" / "samples.arrow")}]
    stored = json.loads((tmp_path / "pool" / "facts.json").read_text())
    assert facts.to_dict().items() <= stored.items()
    opened, opened_facts = open_pool(tmp_path / "pool")
    assert opened.to_list() == pool.to_list()
    assert opened_facts == facts
    read_pool(path, options, folder=tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "pool")


def test_a_finished_folder_takes_a_source_of_the_same_content(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [row(0), row(0)])
    pool, facts = read_pool(path, folder=tmp_path / "pool")
    os.utime(path, ns=(1, 1))
    again, same = read_pool(path, folder=tmp_path / "pool")
    assert again.to_list() == pool.to_list()
    assert same == facts


def test_a_source_changed_with_the_same_size_and_time_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [row(0), row(1)])
    read_pool(path, folder=tmp_path / "pool")
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b"p0", b"xx"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(RunError, match=f"{path} has changed since"):
        read_pool(path, folder=tmp_path / "pool")


def test_stamps_of_the_version_before_are_compared_by_size_and_time(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [row(0), row(1)])
    read_pool(path, folder=tmp_path / "pool")
    facts, stat = tmp_path / "pool" / "facts.json", path.stat()
    stored = json.loads(facts.read_text())
    stored["files"] = [{"file": str(path), "size": stat.st_size, "modified": stat.st_mtime_ns}]
    for later in ("notes", "max_row_bytes"):
        del stored[later]
    facts.write_text(json.dumps(stored))
    assert len(read_pool(path, folder=tmp_path / "pool")[0]) == 2
    os.utime(path, ns=(1, 1))
    with pytest.raises(RunError, match="has changed"):
        read_pool(path, folder=tmp_path / "pool")


def test_a_changed_source_is_refused(tmp_path):
    data, folder = tmp_path / "data", tmp_path / "pool"
    data.mkdir()
    path, test = write_jsonl(data / "a.jsonl", [row(0)]), write_jsonl(tmp_path / "t.jsonl", [row(5)])
    options = ReadOptions(exclude=test)
    read_pool(data, options, folder=folder)
    write_jsonl(data / "b.jsonl", [row(1)])
    with pytest.raises(RunError, match=f"{data}/b.jsonl is new since {folder} was written: remove it, or"):
        read_pool(data, options, folder=folder)
    path.rename(data / "b.jsonl")
    with pytest.raises(RunError, match=f"{data}/a.jsonl is gone since .*: restore it, or"):
        read_pool(data, options, folder=folder)
    (data / "b.jsonl").rename(path)
    read_pool(data, options, folder=folder)
    write_jsonl(test, [row(55)])
    with pytest.raises(RunError, match=f"{test} has changed"):
        read_pool(data, options, folder=folder)
    read_pool([row(0), row(1)], folder=tmp_path / "other")
    with pytest.raises(RunError, match="<dataset> has changed"):
        read_pool([row(0), row(2)], folder=tmp_path / "other")


def test_a_folder_of_another_pool_or_a_damaged_one_is_refused(tmp_path):
    path, folder = write_jsonl(tmp_path / "a.jsonl", [row(0)]), tmp_path / "pool"
    read_pool(path, folder=folder)
    with pytest.raises(RunError, match=r"keep_duplicates: False there, True now"):
        read_pool(path, ReadOptions(keep_duplicates=True), folder=folder)
    with pytest.raises(RunError, match=r"source: '.*a.jsonl' there, '<dataset>' now"):
        read_pool([row(0)], folder=folder)
    (folder / "samples.arrow").unlink()
    assert len(read_pool(path, folder=folder)[0]) == 1  # a lost file is written again
    (folder / "samples.arrow").write_bytes(b"no stream")
    with pytest.raises(RunError, match="damaged"):
        read_pool(path, folder=folder)
    (folder / "facts.json").write_text("{}")
    with pytest.raises(RunError, match="not valid"):
        open_pool(folder)
    with pytest.raises(RunError, match="does not exist"):
        open_pool(tmp_path / "none")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("full", ["samples.arrow", "rejected.jsonl", "duplicates.jsonl"])
def test_a_full_disk_raises_and_leaves_no_facts(tmp_path, monkeypatch, full):
    def no_space(path, mode, **options):
        return open("/dev/full" if path.name.endswith(full) else path, mode, **options)

    path, folder = write_jsonl(tmp_path / "a.jsonl", [*BAD, row(0), *map(row, range(3000))]), tmp_path / "pool"
    monkeypatch.setattr(writer, "open", no_space, raising=False)
    with pytest.raises(RunError, match="no space left on the disk while writing"):
        read_pool(path, SKIP, folder=folder)
    assert not any(file.name in ("facts.json", full) or "partial" in file.name for file in folder.iterdir())
    monkeypatch.undo()
    assert len(load_pool(path, folder=folder, skip_bad_rows=True)) == 3000


# Reads a pool in a child process that is left alone; in others, which are killed; and to the end where these were.
KILLED = """
import datasets, os, pyarrow, signal, sys, time
from pathlib import Path
from nncift.data.pool import ReadOptions, read_pool
source, whole, killed = sys.argv[1:]
def begin(folder):
    if (child := os.fork()) == 0:
        read_pool(source, ReadOptions(skip_bad_rows=True), folder=Path(folder))
        os._exit(0)
    return child
assert os.waitpid(begin(whole), 0)[1] == 0
deaths = 0
for pause in (0.0, 0.1, 0.5):
    child = begin(killed)
    time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    deaths += os.waitpid(child, 0)[1] == signal.SIGKILL
    if (Path(killed) / "facts.json").exists():
        break
assert deaths >= 2
assert os.waitpid(begin(killed), 0)[1] == 0
"""


def test_killed_and_resumed_has_the_same_bytes(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*BAD, *(row(i % 20_000) for i in range(60_000))])
    subprocess.run([sys.executable, "-c", KILLED, path, tmp_path / "whole", tmp_path / "killed"], check=True)
    after = {name: data for name, data in contents(tmp_path / "killed").items() if not name.startswith(".partial-")}
    assert after == contents(tmp_path / "whole")


def test_memory_is_independent_of_the_size(tmp_path):
    """A pool of 60 MB takes less than 40 MB, in each streamed format."""
    text = "word " * 20_000
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"p{i}", "response": text} for i in range(600)])
    array = tmp_path / "a.json"
    array.write_text("[" + ",\n".join(path.read_text().splitlines()) + "]")
    code = (
        "import datasets, pyarrow, sys, resource; from nncift.data.pool import read_pool; from pathlib import Path\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak(); pool, _ = read_pool(sys.argv[1], folder=Path(sys.argv[2])); print(len(pool), peak() - before)"
    )
    for source in (path, array):
        command = [sys.executable, "-c", code, source, tmp_path / f"pool{source.suffix}"]
        rows, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert int(rows) == 600
        assert float(grown) < 40
