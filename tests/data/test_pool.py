"""The pool as a whole: ids, duplicates, test sets, bad rows, the folder, resuming, real data."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.data import writer as pool_writer
from nncift.data.pool import PoolFacts, load_pool, open_pool, read_pool
from nncift.errors import DataError, RunError

NAMES = ["duplicates.jsonl", "excluded.jsonl", "facts.json", "rejected.jsonl", "samples.arrow"]


def row(i, **more):
    return {"prompt": f"p{i}", "response": f"r{i}", **more}


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_columns(tmp_path):
    pool = load_pool(write(tmp_path / "a.jsonl", [row(0, id="x", extra=[1]), row(1)]))
    assert isinstance(pool, datasets.Dataset)
    assert pool.features == datasets.Features(
        {name: datasets.Value("int64" if name == "source_row" else "string") for name in pool.column_names}
    )
    assert pool.column_names == ["id", "prompt", "response", "messages", "source_row", "original"]
    assert pool[0] == {
        "id": "x",
        "prompt": "p0",
        "response": "r0",
        "messages": None,
        "source_row": 0,
        "original": '{"prompt": "p0", "response": "r0", "id": "x", "extra": [1]}',
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(), json_values, max_size=5), min_size=1, max_size=5))
def test_original_rows_come_out_unchanged(tmp_path_factory, rows):
    """Any JSON object with the two fields, from a file and from memory; keys stay in order."""
    folder = tmp_path_factory.mktemp("pool")
    rows = [{**extra, **row(i)} for i, extra in enumerate(rows)]
    rows = [
        {key: value for key, value in each.items() if key not in ("id", "messages", "conversations")} for each in rows
    ]
    for source in (write(folder / "a.jsonl", rows), rows):
        pool = load_pool(source, prompt_field="prompt", response_field="response")
        originals = [json.loads(text) for text in pool["original"]]
        assert originals == rows
        assert [list(each) for each in originals] == [list(each) for each in rows]
        assert pool["prompt"][:] == [each["prompt"] for each in rows]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz", "csv.gz", "parquet.gz"])
def test_every_format_gives_the_same_pool(tmp_path, suffix):
    rows = [row(i, note=f'n{i}, "ü"\n') for i in range(5)]
    dataset = datasets.Dataset.from_list(rows)
    path = tmp_path / f"pool.{suffix}"
    bare = path.with_suffix("") if suffix.endswith(".gz") else path
    if "json" in suffix:
        dataset.to_json(bare, lines="jsonl" in suffix, force_ascii=False)
    else:
        {"csv": dataset.to_csv, "parquet": dataset.to_parquet}[suffix.removesuffix(".gz")](bare)
    if bare != path:
        path.write_bytes(gzip.compress(bare.read_bytes()))
        bare.unlink()
    dataset.save_to_disk(tmp_path / "saved")
    expected = load_pool(rows).to_list()
    for source in (path, str(path), tmp_path / "saved", dataset):
        pool = load_pool(source).to_list()
        assert [json.loads(sample.pop("original")) for sample in pool] == rows
        assert pool == [{key: value for key, value in sample.items() if key != "original"} for sample in expected]
    path.rename(tmp_path / "saved" / path.name)
    (tmp_path / "saved" / "state.json").unlink()
    assert load_pool(tmp_path / "saved")["id"][:] == [sample["id"] for sample in expected]


# --- ids and duplicates --------------------------------------------------------------------------------


def test_ids_are_kept_or_made_from_content():
    rows = [
        row(0, id="a"),
        row(1, id=7),
        row(2, id=None),
        row(3, id=""),
        row(4, id=float("nan")),
        row(5),
        row(6, id={"$oid": "x"}),
    ]
    ids = load_pool(rows)["id"][:]
    assert ids[:2] == ["a", "7"]
    assert ids[6] == '{"$oid": "x"}'
    made = load_pool([row(i) for i in (5, 4, 3, 2)])["id"][:]
    assert ids[2:6] == made[::-1]
    assert len(set(made)) == 4
    assert all(len(each) == 15 for each in made)


def test_exact_duplicates_are_kept_once_and_listed(tmp_path):
    rows = [row(0, id="a"), row(1), row(0, id="b", more=1), row(1), row(0, id="a"), row(0) | {"response": "r0 "}]
    path = write(tmp_path / "a.jsonl", rows)
    pool, facts = read_pool(path, folder=tmp_path / "pool")
    made = load_pool([row(1)])["id"][0]
    assert pool["source_row"][:] == [0, 1, 5]
    assert (facts.read, facts.rows, facts.duplicates) == (6, 3, 3)
    assert lines(tmp_path / "pool" / "duplicates.jsonl") == [
        {"id": "b", "row": 3, "file": str(path), "same_as": "a"},
        {"id": made, "row": 4, "file": str(path), "same_as": made},
        {"id": "a", "row": 5, "file": str(path), "same_as": "a"},
    ]
    assert read_pool(path)[1] == facts


def test_duplicates_can_be_kept():
    rows = [row(0), row(0), row(1, id="a"), row(1, id="a"), row(1, id="b"), row(0)]
    pool, facts = read_pool(rows, keep_duplicates=True)
    made = pool["id"][0]
    assert pool["id"][:] == [made, f"{made}#2", "a", "a#2", "b", f"{made}#3"]
    assert (facts.rows, facts.duplicates) == (6, 0)


def test_chats_are_duplicates_when_all_their_messages_are():
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    system = [{"role": "system", "content": "s"}, *chat]
    pool, facts = read_pool([{"messages": m} for m in (chat, system, [*chat, chat[0]], chat)])
    assert pool["source_row"][:] == [0, 1]
    assert facts.duplicates == 2


def test_an_id_for_two_different_rows_is_bad(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(0, id=1), row(1, id="1"), row(0, id=1)])
    with pytest.raises(DataError, match=r"row 2, field 'id': '1' is the id of an earlier row with other content"):
        load_pool(path)
    pool, facts = read_pool(path, skip_bad_rows=True)
    assert (pool["source_row"][:], facts.rejected, facts.duplicates) == ([0], 1, 1)


@settings(max_examples=50, deadline=None)
@given(picks=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_dedup_law(picks):
    """Each distinct pair once, where it first stands."""
    rows = [{"prompt": f"p{a}", "response": f"r{b}"} for a, b in picks]
    pool, facts = read_pool(rows)
    first = sorted({pick: i for i, pick in reversed(list(enumerate(picks)))}.values())
    assert pool["source_row"][:] == first
    assert facts.read == len(picks) == facts.rows + facts.duplicates
    assert len(set(pool["id"][:])) == len(pool)


# --- bad rows ------------------------------------------------------------------------------------------

BAD = [
    row(0),
    {"prompt": "p"},
    {"prompt": "p", "response": 3},
    {"prompt": "p", "response": " "},
    "{not json}",
    "[1]",
    {"prompt": None, "response": "r"},
    "",
    row(1),
]


def test_bad_rows_are_named_and_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", BAD)
    with pytest.raises(DataError) as caught:
        load_pool(path, folder=tmp_path / "pool")
    assert str(caught.value) == (
        f"{path}: 6 of 8 rows cannot be used: row 2, field 'response': missing; row 3, field 'response': a number, not "
        "text; row 4, field 'response': empty; row 5: invalid JSON (Expecting property name enclosed in double quotes "
        "at character 2); row 6: a list, not an object; and 1 more: correct them, or leave them out with "
        "--skip-bad-rows"
    )
    assert list((tmp_path / "pool").iterdir()) == []


def test_one_bad_row_is_an_error_with_file_row_and_field(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(0), {"prompt": "p", "response": ""}])
    with pytest.raises(DataError) as caught:
        load_pool(path)
    error = caught.value
    assert (error.file, error.row, error.field, error.problem) == (str(path), 2, "response", "empty")


def test_bad_rows_of_a_folder_name_their_file(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", [row(name), "oops"])
    with pytest.raises(
        DataError, match=rf"{tmp_path}/a.jsonl row 2: invalid JSON .*; {tmp_path}/b.jsonl row 2: invalid"
    ):
        load_pool(tmp_path)
    pool = load_pool(tmp_path, skip_bad_rows=True)
    assert pool["source_row"][:] == [0, 2]


def test_skipped_rows_are_listed_with_their_reason(tmp_path):
    path = write(tmp_path / "a.jsonl", BAD)
    with path.open("ab") as handle:
        handle.write(b'{"prompt": "\xff"}\n' + b"x" * 5000)
    pool, facts = read_pool(path, skip_bad_rows=True, folder=tmp_path / "pool")
    assert pool["prompt"][:] == ["p0", "p1"]
    assert pool["source_row"][:] == [0, 7]
    assert (facts.read, facts.rows, facts.rejected) == (10, 2, 8)
    listed = lines(tmp_path / "pool" / "rejected.jsonl")
    assert [(entry["row"], entry["field"]) for entry in listed] == [
        (2, "response"), (3, "response"), (4, "response"), (5, None), (6, None), (7, "prompt"), (10, None), (11, None),
    ]  # fmt: skip
    assert listed[1] == {
        "file": str(path),
        "row": 3,
        "field": "response",
        "reason": "a number, not text",
        "raw": '{"prompt": "p", "response": 3}',
    }
    assert listed[-2]["reason"].startswith("invalid UTF-8")
    assert listed[-2]["raw"] == '{"prompt": "\ufffd"}'
    assert listed[-1]["raw"] == "x" * 2000


def test_hostile_text_does_not_reach_the_terminal(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"\x1b[2J\n": "x", "prompt": "p"}])
    with pytest.raises(DataError) as caught:
        load_pool(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("skip", [False, True])
def test_nothing_left(tmp_path, skip):
    with pytest.raises(DataError, match="there is no row in it"):
        load_pool(write(tmp_path / "a.jsonl", ["", " "]), skip_bad_rows=skip)
    with pytest.raises(DataError, match="there is no row in it"):
        load_pool([], skip_bad_rows=skip)
    with pytest.raises(DataError, match=r"2 of 2 rows cannot be used: row 1: invalid JSON .*: correct them$"):
        load_pool(write(tmp_path / "a.jsonl", ["x", "y"]), skip_bad_rows=skip)
    with pytest.raises(DataError, match=r"row 1, field 'response': empty: correct it$"):
        load_pool(write(tmp_path / "a.csv", ["prompt,response", "a,"]), skip_bad_rows=skip)
    with pytest.raises(DataError, match=r"no row is left for the target: 2 of 2 also stand in a test set"):
        load_pool([row(0), row(0)], exclude=[row(0)], skip_bad_rows=skip, name="target")


# --- test sets -----------------------------------------------------------------------------------------


def test_exclude(tmp_path):
    run = "the quick brown fox jumps over the lazy dog and then sleeps well"
    rows = [
        row(0),
        {"prompt": "P1!", "response": "x"},
        {"prompt": "x", "response": f"so {run}"},
        row(0),
        row(3),
        row(0),
    ]
    path = write(tmp_path / "a.jsonl", rows)
    first = write(tmp_path / "t1.jsonl", [{"question": "p1", "answer": "?"}, {"question": run, "answer": "?"}])
    second = write(tmp_path / "t2.csv", ["instruction,output,id", "p0,r,seven"])
    pool, facts = read_pool(path, exclude=[first, second], folder=tmp_path / "pool")
    assert pool["source_row"][:] == [4]
    assert (facts.read, facts.rows, facts.excluded, facts.duplicates) == (6, 1, 5, 0)
    listed = lines(tmp_path / "pool" / "excluded.jsonl")
    assert [(entry["row"], entry["why"]) for entry in listed] == [
        (1, "same prompt"),
        (2, "same prompt"),
        (3, f"13 shared words in the response: {run}"),
        (4, "same prompt"),
        (6, "same prompt"),
    ]
    assert listed[0] == {
        "id": load_pool([row(0)])["id"][0],
        "row": 1,
        "file": str(path),
        "why": "same prompt",
        "test_id": "seven",
        "test_file": str(second),
    }
    assert listed[2]["test_id"] == load_pool(first)["id"][1]


def test_exclude_takes_any_source(tmp_path):
    rows = [row(i) for i in range(4)]
    tests = datasets.Dataset.from_list([row(1)])
    path = write(tmp_path / "t.jsonl", [row(2)])
    for exclude, left in [
        (str(path), [0, 1, 3]),
        (path, [0, 1, 3]),
        ([path, tests], [0, 3]),
        (tests, [0, 2, 3]),
        ([row(0)], [1, 2, 3]),
        (datasets.DatasetDict(train=datasets.Dataset.from_list([row(3)]), test=tests), [0, 2, 3]),
        ((), [0, 1, 2, 3]),
    ]:
        assert load_pool(rows, exclude=exclude)["source_row"][:] == left


def test_named_fields_are_looked_for_in_test_sets_too():
    rows = [{"ask": "p0", "reply": "r"}, {"ask": "p1", "reply": "r"}, {"ask": "p2", "reply": "r"}]
    pool = load_pool(
        rows, prompt_field="ask", response_field="reply", exclude=[[rows[0]], [{"question": "p1", "answer": "r"}]]
    )
    assert pool["source_row"][:] == [2]


def test_a_bad_test_set_is_an_error(tmp_path):
    path = write(tmp_path / "t.jsonl", [row(0), {"prompt": "p", "response": ""}])
    with pytest.raises(DataError, match=f"{path}, row 2, field 'response': empty"):
        load_pool([row(1)], exclude=path)
    with pytest.raises(DataError, match="no such file"):
        load_pool([row(1)], exclude=str(tmp_path / "none.jsonl"))
    assert len(load_pool([row(0), row(1)], exclude=path, skip_bad_rows=True)) == 1


# --- the folder ----------------------------------------------------------------------------------------


def test_folder_and_memory_give_the_same(tmp_path):
    path = write(tmp_path / "a.jsonl", [*BAD, row(0)])
    pool, facts = read_pool(path, folder=tmp_path / "pool", skip_bad_rows=True, exclude=[row(1)], progress=True)
    other, other_facts = read_pool(path, skip_bad_rows=True, exclude=[row(1)])
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


def test_same_bytes_each_time(tmp_path):
    path = write(tmp_path / "a.jsonl", [*BAD, *map(row, range(3000))])
    for name in "ab":
        read_pool(path, folder=tmp_path / name, skip_bad_rows=True, exclude=[row(1)])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_finished_folder_is_not_read_again(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(0), row(0)])
    pool, facts = read_pool(path, folder=tmp_path / "pool")
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b"p0", b"xx"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again, same = read_pool(path, folder=tmp_path / "pool")
    assert again.to_list() == pool.to_list()
    assert same == facts


def test_changed_source_is_refused(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    path, test = write(data / "a.jsonl", [row(0)]), write(tmp_path / "t.jsonl", [row(5)])
    folder = tmp_path / "pool"
    read_pool(data, folder=folder, exclude=test)
    write(data / "b.jsonl", [row(1)])
    with pytest.raises(RunError, match=f"{data}/b.jsonl is new since {folder} was made"):
        read_pool(data, folder=folder, exclude=test)
    path.rename(data / "b.jsonl")
    with pytest.raises(RunError, match=f"{data}/a.jsonl is gone"):
        read_pool(data, folder=folder, exclude=test)
    (data / "b.jsonl").rename(path)
    read_pool(data, folder=folder, exclude=test)
    write(test, [row(55)])
    with pytest.raises(RunError, match=f"{test} has changed"):
        read_pool(data, folder=folder, exclude=test)
    rows = [row(0), row(1)]
    read_pool(rows, folder=tmp_path / "other")
    with pytest.raises(RunError, match="<dataset> has changed"):
        read_pool([row(0), row(2)], folder=tmp_path / "other")


def test_folder_of_another_pool_is_refused(tmp_path):
    path, folder = write(tmp_path / "a.jsonl", [row(0)]), tmp_path / "pool"
    read_pool(path, folder=folder)
    with pytest.raises(RunError, match=r"keep_duplicates: False there, True now"):
        read_pool(path, folder=folder, keep_duplicates=True)
    with pytest.raises(RunError, match=r"source: '.*a.jsonl' there, '<dataset>' now"):
        read_pool([row(0)], folder=folder)


def test_damaged_folder(tmp_path):
    path, folder = write(tmp_path / "a.jsonl", [row(0)]), tmp_path / "pool"
    read_pool(path, folder=folder)
    (folder / "samples.arrow").unlink()
    with pytest.raises(RunError, match="damaged"):
        read_pool(path, folder=folder)
    (folder / "facts.json").write_text("{}")
    with pytest.raises(RunError, match="damaged"):
        open_pool(folder)
    with pytest.raises(RunError, match="does not exist"):
        open_pool(tmp_path / "none")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("full", ["samples.arrow", "rejected.jsonl", "duplicates.jsonl"])
def test_full_disk_is_one_line_and_leaves_no_facts(tmp_path, monkeypatch, full):
    def no_space(path, mode, **options):
        return open("/dev/full" if path.name.endswith(full) else path, mode, **options)

    path, folder = write(tmp_path / "a.jsonl", [*BAD, row(0), *map(row, range(3000))]), tmp_path / "pool"
    monkeypatch.setattr(pool_writer, "open", no_space, raising=False)
    with pytest.raises(RunError, match="no space left on the disk while writing"):
        read_pool(path, folder=folder, skip_bad_rows=True)
    assert not any(file.name in ("facts.json", full) or "partial" in file.name for file in folder.iterdir())
    monkeypatch.undo()
    assert len(load_pool(path, folder=folder, skip_bad_rows=True)) == 3000


def test_killed_at_any_moment_ends_with_the_same_bytes(tmp_path):
    path = write(tmp_path / "a.jsonl", [*BAD, *(row(i % 20_000) for i in range(60_000))])
    code = (
        "import datasets, pyarrow, sys; from nncift.data.pool import read_pool; from pathlib import Path\n"
        "print('ready', flush=True)\n"
        f"read_pool({str(path)!r}, folder=Path(sys.argv[1]), skip_bad_rows=True)"
    )
    command = [sys.executable, "-c", code]
    subprocess.run([*command, tmp_path / "whole"], check=True, stdout=subprocess.DEVNULL)
    folder, killed = tmp_path / "killed", 0
    for pause in (0.0, 0.1, 0.5):
        with subprocess.Popen([*command, folder], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        if (folder / "facts.json").exists():
            break
    assert killed >= 2
    subprocess.run([*command, folder], check=True, stdout=subprocess.DEVNULL)
    after = {name: data for name, data in contents(folder).items() if not name.startswith(".partial-")}
    assert after == contents(tmp_path / "whole")


def test_memory_does_not_grow_with_the_text(tmp_path):
    """A pool of 120 MB is read into a folder with far less than that, in each format that is read as a stream."""
    text = "word " * 20_000
    path = tmp_path / "a.jsonl"
    with path.open("w") as handle:
        for i in range(1200):
            handle.write(json.dumps({"prompt": f"p{i}", "response": text}) + "\n")
    array = tmp_path / "a.json"
    with array.open("w") as handle:
        handle.write("[" + ",\n".join(path.read_text().splitlines()) + "]")
    code = (
        "import datasets, pyarrow, sys, resource; from nncift.data.pool import read_pool; from pathlib import Path\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak(); pool, _ = read_pool(sys.argv[1], folder=Path(sys.argv[2])); print(len(pool), peak() - before)"
    )
    for source in (path, array):
        command = [sys.executable, "-c", code, source, tmp_path / f"pool{source.suffix}"]
        rows, grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert int(rows) == 1200
        assert float(grown) < 80


# --- real data -----------------------------------------------------------------------------------------


def test_p3(shared_data, tmp_path):
    path = shared_data / "p3_pool.jsonl.gz"
    pool, facts = read_pool(path, folder=tmp_path / "pool")
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        texts = [line.rstrip("\n") for line in handle]
    rows = [json.loads(text) for text in texts]
    assert facts == PoolFacts(str(path), "prompt/response", ("prompt", "response"), 14000, 14000, 0, 0, 0)
    for column in ("id", "prompt", "response"):
        assert pool[column][:] == [each[column] for each in rows]
    assert pool["original"][:] == texts


def test_alpaca(shared_data):
    path = shared_data / "alpaca_en.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    pool, facts = read_pool(path)
    first: dict[tuple, dict] = {}
    for each in rows:
        first.setdefault((each["instruction"], each["input"], each["output"]), each)
    kept = list(first.values())
    assert [json.loads(text) for text in pool["original"]] == kept
    assert (facts.schema, facts.read, facts.duplicates) == ("Alpaca", 700, 700 - len(kept))
    assert len(kept) < 700
    assert pool["prompt"][:] == ["\n\n".join(filter(None, (r["instruction"], r["input"]))) for r in kept]


def test_gsm8k_as_datasets_reads_it(shared_data, tmp_path):
    path = shared_data / "gsm8k_test.jsonl.gz"
    peer = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path))
    for pool in (load_pool(path), load_pool(peer)):
        assert pool["prompt"][:] == peer["question"][:]
        assert pool["response"][:] == peer["answer"][:]


def test_a_test_set_hidden_in_a_pool_is_found(shared_data):
    """40 GSM8K test questions, reworded in case and punctuation, among 500 training questions."""
    train = load_pool(shared_data / "gsm8k_train.jsonl.gz").select(range(500)).to_list()
    test = shared_data / "gsm8k_test.jsonl.gz"
    hidden = [
        {"question": sample["prompt"].upper().replace(".", " ;"), "answer": "unknown"}
        for sample in load_pool(test).select(range(40)).to_list()
    ]
    clean = [{"question": sample["prompt"], "answer": sample["response"]} for sample in train]
    pool, facts = read_pool([*clean, *hidden], exclude=test)
    assert set(range(500, 540)).isdisjoint(pool["source_row"][:])
    assert 40 <= facts.excluded <= 45
