"""Reading a pool: ids, duplicates, bad rows, real data."""

import gzip
import json

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import json_objects, write_jsonl
from nncift.data.chats.context import CONTEXT
from nncift.data.facts import PoolFacts
from nncift.data.pool import ReadOptions, load_pool, read_pool
from nncift.data.sources.sampling import RowEstimate
from nncift.data.sources.sources import open_source
from nncift.errors import DataError


def row(i, **more):
    return {"prompt": f"p{i}", "response": f"r{i}", **more}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_columns(tmp_path):
    pool = load_pool(write_jsonl(tmp_path / "a.jsonl", [row(0, id="x", extra=[1]), row(1)]))
    assert isinstance(pool, datasets.Dataset)
    types = {"source_row": datasets.Value("int64"), "turns": datasets.List(datasets.Value("int32"))}
    assert dict(pool.features) == {name: types.get(name, datasets.Value("string")) for name in pool[0]}
    original = '{"prompt": "p0", "response": "r0", "id": "x", "extra": [1]}'
    unused = dict.fromkeys(("messages", "tools", "turns", "source"))
    values = {"id": "x", "prompt": "p0", "response": "r0", **unused, "source_row": 0, "original": original}
    assert list(pool[0].items()) == list(values.items())


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(json_objects, min_size=1, max_size=5))
def test_original_rows_are_unchanged(tmp_path_factory, rows):
    """Any JSON object with the two fields, from a file and from memory; keys stay in order."""
    folder = tmp_path_factory.mktemp("pool")
    reserved = ("id", "messages", "conversations", "label", "kto_tag", *CONTEXT)
    rows = [{**extra, **row(i)} for i, extra in enumerate(rows)]
    rows = [{key: value for key, value in each.items() if key not in reserved} for each in rows]
    for source in (write_jsonl(folder / "a.jsonl", rows), rows):
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


def test_ids_are_kept_or_hashes_of_the_content():
    given = ("a", 7, None, "", float("nan"))
    rows = [*(row(i, id=value) for i, value in enumerate(given)), row(5), row(6, id={"$oid": "x"})]
    ids = load_pool(rows)["id"][:]
    assert ids[:2] == ["a", "7"]
    assert ids[6] == '{"$oid": "x"}'
    hashes = load_pool([row(i) for i in (5, 4, 3, 2)])["id"][:]
    assert ids[2:6] == hashes[::-1]
    assert len(set(hashes)) == 4
    assert all(len(each) == 15 for each in hashes)


def test_exact_duplicates_are_kept_once_and_listed(tmp_path):
    rows = [row(0, id="a"), row(1), row(0, id="b", more=1), row(1), row(0, id="a"), row(0) | {"response": "r0 "}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    pool, facts = read_pool(path, folder=tmp_path / "pool")
    hashed = load_pool([row(1)])["id"][0]
    assert pool["source_row"][:] == [0, 1, 5]
    assert (facts.read, facts.rows, facts.duplicates) == (6, 3, 3)
    assert lines(tmp_path / "pool" / "duplicates.jsonl") == [
        {"id": "b", "row": 3, "file": str(path), "same_as": "a"},
        {"id": hashed, "row": 4, "file": str(path), "same_as": hashed},
        {"id": "a", "row": 5, "file": str(path), "same_as": "a"},
    ]
    assert read_pool(path)[1] == facts


def test_duplicates_can_be_kept():
    rows = [row(0), row(0), row(1, id="a"), row(1, id="a"), row(1, id="b"), row(0)]
    pool, facts = read_pool(rows, ReadOptions(keep_duplicates=True))
    hashed = pool["id"][0]
    assert pool["id"][:] == [hashed, f"{hashed}#2", "a", "a#2", "b", f"{hashed}#3"]
    assert (facts.rows, facts.duplicates) == (6, 0)


def test_chats_are_duplicates_when_all_their_messages_are():
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    system = [{"role": "system", "content": "s"}, *chat]
    pool, facts = read_pool([{"messages": m} for m in (chat, system, [*chat, chat[0]], chat)])
    assert pool["source_row"][:] == [0, 1]
    assert facts.duplicates == 2


def test_ids_that_repeat_are_made_unique_and_counted(tmp_path):
    rows = [row(0, id=1), row(1, id="1"), row(0, id=1), row(2, id="1#2"), row(3, id=1), row(1, id="1")]
    pool, facts = read_pool(write_jsonl(tmp_path / "a.jsonl", rows))
    assert pool["id"][:] == ["1", "1#2", "1#2#2", "1#3"]
    assert pool["source_row"][:] == [0, 1, 3, 4]
    assert (facts.rejected, facts.duplicates) == (0, 2)
    assert facts.notes == ("the ids of 3 samples repeat those of others and were made unique (#2, #3, ...)",)
    restarting = [row(f"{part}{i}", id=i) for part in "ab" for i in range(20)]
    pool, facts = read_pool(restarting)
    assert pool["id"][:] == [str(i) for i in range(20)] + [f"{i}#2" for i in range(20)]
    assert facts.rows == 40
    kept = load_pool([row(0, id=1), row(1, id=1), row(0, id=1), row(2, id="1#3")], keep_duplicates=True)
    assert kept["id"][:] == ["1", "1#2", "1#3", "1#3#2"]


@settings(max_examples=50, deadline=None)
@given(picks=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_each_distinct_pair_is_kept_at_its_first_row(picks):
    rows = [{"prompt": f"p{a}", "response": f"r{b}"} for a, b in picks]
    pool, facts = read_pool(rows)
    first = sorted({pick: i for i, pick in reversed(list(enumerate(picks)))}.values())
    assert pool["source_row"][:] == first
    assert facts.read == len(picks) == facts.rows + facts.duplicates
    assert len(set(pool["id"][:])) == len(pool)


# --- bad rows ------------------------------------------------------------------------------------------

BAD = [row(0), {"prompt": "p"}, {"prompt": "p", "response": 3}, {"prompt": "p", "response": " "}, "{not json}", "[1]"]
BAD += [{"prompt": None, "response": "r"}, "", row(1)]


def test_bad_rows_are_named_and_counted(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", BAD)
    with pytest.raises(DataError) as caught:
        load_pool(path, folder=tmp_path / "pool")
    assert str(caught.value) == (
        f"{path}: 6 of 8 rows cannot be used: row 2, field 'response': missing; row 3, field 'response': a number, not "
        "text; row 4, field 'response': empty; row 5: invalid JSON (Expecting property name enclosed in double quotes "
        "at character 2); row 6: a list, not an object; and 1 more: correct them"
    )
    assert list((tmp_path / "pool").iterdir()) == []


def test_bad_rows_of_a_folder_name_their_file(tmp_path):
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", [row(name), "oops"])
    message = rf"{tmp_path}/a.jsonl row 2: invalid JSON .*; {tmp_path}/b.jsonl row 2: invalid"
    with pytest.raises(DataError, match=message):
        load_pool(tmp_path)
    assert load_pool(tmp_path, skip_bad_rows=True)["source_row"][:] == [0, 2]


def test_skipped_rows_are_listed_with_their_reason(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", BAD)
    with path.open("ab") as handle:
        handle.write(b'{"prompt": "\xff"}\n' + b"x" * 5000)
    pool, facts = read_pool(path, ReadOptions(skip_bad_rows=True), folder=tmp_path / "pool")
    assert pool["prompt"][:] == ["p0", "p1"]
    assert pool["source_row"][:] == [0, 7]
    assert (facts.read, facts.rows, facts.rejected) == (10, 2, 8)
    listed = lines(tmp_path / "pool" / "rejected.jsonl")
    assert [(entry["row"], entry["field"]) for entry in listed] == [
        (2, "response"), (3, "response"), (4, "response"), (5, None), (6, None), (7, "prompt"), (10, None), (11, None),
    ]  # fmt: skip
    third = {"file": str(path), "row": 3, "field": "response", "reason": "a number, not text"}
    assert listed[1] == third | {"raw": '{"prompt": "p", "response": 3}'}
    assert listed[-2]["reason"].startswith("invalid UTF-8")
    assert listed[-2]["raw"] == '{"prompt": "\ufffd"}'
    assert listed[-1]["raw"] == "x" * 2000


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"\x1b[2J\n": "x", "prompt": "p"}])
    with pytest.raises(DataError) as caught:
        load_pool(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("skip", [False, True])
def test_no_row_remains(tmp_path, skip):
    with pytest.raises(DataError, match="there is no row in it"):
        load_pool(write_jsonl(tmp_path / "a.jsonl", ["", " "]), skip_bad_rows=skip)
    with pytest.raises(DataError, match="there is no row in it"):
        load_pool([], skip_bad_rows=skip)
    with pytest.raises(DataError, match=r"2 of 2 rows cannot be used: row 1: invalid JSON .*: correct them$"):
        load_pool(write_jsonl(tmp_path / "a.jsonl", ["x", "y"]), skip_bad_rows=skip)
    with pytest.raises(DataError, match=r"row 1, field 'response': empty: correct it$"):
        load_pool(write_jsonl(tmp_path / "a.csv", ["prompt,response", "a,"]), skip_bad_rows=skip)
    with pytest.raises(DataError, match=r"no row of the target remains: 2 of 2 also occur in a test set"):
        load_pool([row(0), row(0)], exclude=[row(0)], skip_bad_rows=skip, name="target")


# --- test sets -----------------------------------------------------------------------------------------


def test_p3(shared_data, tmp_path):
    path = shared_data / "p3_pool.jsonl.gz"
    pool, facts = read_pool(path, folder=tmp_path / "pool")
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        texts = [line.rstrip("\n") for line in handle]
    rows = [json.loads(text) for text in texts]
    schema, counts = "prompt/response", {"schemas": {"prompt/response": 14000}}
    assert facts == PoolFacts(str(path), schema, ("prompt", "response"), 14000, 14000, 0, 0, 0, **counts)
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


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_the_number_of_rows_is_estimated_while_they_are_read(tmp_path, packing):
    """For the time left, within a third where rows of different lengths are mixed."""
    rng = np.random.default_rng(0)
    rows = [{"prompt": "word " * int(rng.integers(1, 40)), "response": str(rng.integers(1e9))} for _ in range(4000)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / f"pool.jsonl{packing}"
    path.write_bytes(gzip.compress(text) if packing else text)
    estimate = RowEstimate(open_source(str(path)))
    found = []
    for number, row in enumerate(open_source(str(path)).rows(), 1):
        estimate.look(row, number)
        found.append(estimate.rows)
    assert found[998] is None
    assert min(found[999:]) > 4000 / 1.34
    assert max(found[999:]) < 4000 * 1.34
    assert RowEstimate(open_source(rows)).rows == 4000
