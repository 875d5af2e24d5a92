"""Rows come out of every kind of source with their own text intact."""

import base64
import csv
import datetime
import decimal
import gzip
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.data import formats as files
from nncift.data.rows import json_text
from nncift.data.sources import open_source
from nncift.errors import DataError

ROWS = [
    {
        "prompt": "Größe?\n",
        "response": "a\u2028b 😀 \x00",
        "n": 2**80,
        "x": 1.10,
        "deep": {"b": [1, {"a": None}], "a": True},
    },
    {"response": "first key last", "prompt": "q", "tools": []},
]


def rows_of(source, **options):
    return list(open_source(source, **options).rows())


def write_text(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=5)


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.gz"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_json_lines(tmp_path, suffix, bom):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path = write_text(tmp_path / f"pool{suffix}", bom + f"{lines[0]}\r\n \n{lines[1]}".encode())
    rows = rows_of(path)
    assert [row.values for row in rows] == ROWS
    assert [row.text for row in rows] == lines
    assert [row.number for row in rows] == [1, 3]
    assert {row.file for row in rows} == {str(path)}


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
@pytest.mark.parametrize("indent", [None, 0, 1])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_json_array(tmp_path, suffix, indent, bom):
    path = write_text(tmp_path / f"pool{suffix}", bom + json.dumps(ROWS, ensure_ascii=False, indent=indent).encode())
    rows = rows_of(path)
    assert [json.loads(row.text) for row in rows] == [row.values for row in rows] == ROWS
    assert [row.number for row in rows] == [1, 2]
    assert not any("\n" in row.text for row in rows)


def test_text_of_a_row_is_the_files_own(tmp_path):
    text = '{"prompt":"\\u0041\\/",  "response" : 1.10e2,"big":123456789012345678901234567890,"a":1,"a":2,"far":1e999}'
    spread = text.replace(",", "\r\n  ,").replace(" :", "\n:\t")
    assert [row.text for row in rows_of(write_text(tmp_path / "a.jsonl", text))] == [text]
    [row] = rows_of(write_text(tmp_path / "a.json", f"[\n{spread}\n]"))
    assert json.loads(row.text, parse_float=str) == json.loads(text, parse_float=str)
    assert row.text == text.replace(",", " ,").replace(" :", " :\t")


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(json_objects, max_size=6), indent=st.sampled_from([None, 0, 3]), ascii_only=st.booleans())
def test_json_round_trip_in_small_chunks(tmp_path_factory, rows, indent, ascii_only):
    """The array reader equals json.load wherever its buffer ends."""
    folder = tmp_path_factory.mktemp("json")
    array = write_text(folder / "a.json", json.dumps(rows, indent=indent, ensure_ascii=ascii_only))
    lines = write_text(folder / "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows))
    for chunk in (1, 2, 7, files._CHUNK):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "_CHUNK", chunk)
            assert [json.loads(row.text) for row in rows_of(array)] == rows
    assert [json.loads(row.text) for row in rows_of(lines)] == rows
    assert [list(json.loads(row.text)) for row in rows_of(array)] == [list(row) for row in rows]


@pytest.mark.parametrize(
    "text",
    [
        "[{}",
        "[{},",
        "[{},]",
        "[{}] x",
        "[{} {}]",
        '[{"a": }]',
        "[,]",
        '[{"a": "b]',
        "[{}, nul]",
        '["\\u12"]',
        "[" * 5000,
    ],
)
@pytest.mark.parametrize("chunk", [1, files._CHUNK])
def test_broken_array_is_an_error(tmp_path, text, chunk, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK", chunk)
    with pytest.raises(DataError, match=r"invalid JSON .*the rest of the array cannot be read") as caught:
        rows_of(write_text(tmp_path / "a.json", text))
    assert caught.value.row in (1, 2)


def test_error_in_a_long_array_is_found_without_reading_on(tmp_path):
    handle = io.StringIO('[{"a": 1, b: 2}' + ', {"c": 3}' * (files._CHUNK // 2) + "]")
    with pytest.raises(json.JSONDecodeError):
        list(files._array_items(handle))
    assert handle.tell() <= files._CHUNK


def test_bad_json_rows_are_told_and_passed(tmp_path):
    lines = [
        b'{"a": 1}',
        b'{"a": "\xff"}',
        b"{'a': 1}",
        b"[1]",
        b"null",
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100000,
        b'{"b": 2}',
    ]
    rows = rows_of(write_text(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert [row.values is not None for row in rows] == [True, *[False] * 6, True]
    reasons = [row.reason for row in rows]
    assert reasons[1] == "invalid UTF-8 (byte 8 of the line)"
    assert reasons[2].startswith("invalid JSON (Expecting property name")
    assert reasons[3:5] == ["a list, not an object", "null, not an object"]
    assert all(reason.startswith("invalid JSON") for reason in reasons[5:7])
    assert rows[1].text == '{"a": "\ufffd"}'
    array = rows_of(write_text(tmp_path / "a.json", b'[{"a": "\xff"}, 3, {"b": 2}]'))
    assert [row.reason for row in array] == ["invalid UTF-8", "a number, not an object", ""]


def test_json_file_with_one_object_is_refused(tmp_path):
    with pytest.raises(DataError, match="one JSON object, not rows"):
        rows_of(write_text(tmp_path / "a.json", json.dumps({"data": ROWS}, indent=1)))


cells = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(records=st.lists(st.tuples(cells, cells, cells), max_size=5), end=st.sampled_from(["\n", "\r\n"]))
def test_csv_round_trip(tmp_path_factory, records, end):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with open(path, "w", encoding="utf-8-sig", newline="") as handle:
        writer = csv.writer(handle, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([("prompt", "a,\nb", "größe"), *records])
    rows = rows_of(path)
    assert [tuple(row.values.values()) for row in rows] == records
    assert all(json.loads(row.text) == row.values for row in rows)
    assert [row.number for row in rows] == list(range(1, len(records) + 1))


def test_csv_bad_records(tmp_path):
    data = b'prompt,response\na,b\n\nc\n"d"x,e\n\xff,f\ng,"h\ni"\n"open,j\nk,l\n'
    rows = rows_of(write_text(tmp_path / "a.csv.gz", data))
    assert [(row.number, row.values) for row in rows if row.values] == [
        (1, {"prompt": "a", "response": "b"}),
        (5, {"prompt": "g", "response": "h\ni"}),
    ]
    bad = [(row.number, row.text, row.reason) for row in rows if not row.values]
    assert bad[0] == (2, "c", "1 fields where the header has 2")
    assert bad[1][:2] == (3, '"d"x,e')
    assert bad[1][2].startswith("invalid CSV")
    assert bad[2] == (4, "\ufffd,f", "invalid UTF-8")
    assert bad[3][:2] == (6, '"open,j\nk,l')
    assert bad[3][2] == "invalid CSV (unexpected end of data)"


def test_csv_field_beyond_the_modules_limit(tmp_path):
    [row] = rows_of(write_text(tmp_path / "a.csv", "prompt,response\nq," + "x" * 200_000))
    assert len(row.values["response"]) == 200_000


@pytest.mark.parametrize(
    ("header", "message"), [("a,b,a", "two columns"), ('"a"b,c', "header is invalid CSV"), (b"a,\xff", "invalid UTF-8")]
)
def test_csv_header(tmp_path, header, message):
    with pytest.raises(DataError, match=message):
        rows_of(write_text(tmp_path / "a.csv", header))


def test_parquet_values_that_json_lacks(tmp_path):
    table = pa.table(
        {
            "prompt": ["q", None],
            "when": pa.array([datetime.datetime(2024, 2, 29, 12, 30), None]),
            "day": pa.array([datetime.date(2024, 2, 29), None]),
            "raw": [b"\x00\xff", b""],
            "price": [decimal.Decimal("1.10"), decimal.Decimal("2.00")],
            "score": [float("nan"), float("inf")],
            "nested": [{"x": [float("nan"), 2.5]}, {"x": []}],
            "big": pa.array([2**64 - 1, 0], pa.uint64()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    first, second = [json.loads(row.text) for row in rows_of(tmp_path / "a.parquet")]
    assert first == {
        "prompt": "q",
        "when": "2024-02-29T12:30:00",
        "day": "2024-02-29",
        "raw": base64.b64encode(b"\x00\xff").decode(),
        "price": "1.10",
        "score": None,
        "nested": {"x": [None, 2.5]},
        "big": 2**64 - 1,
    }
    assert second["score"] is None
    assert second["prompt"] is None
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert [row.text for row in rows_of(tmp_path / "b.parquet.gz")] == [
        row.text for row in rows_of(tmp_path / "a.parquet")
    ]


def test_parquet_text_that_is_not_utf8(tmp_path):
    text = pa.array([b"good", b"\xff", b"fine"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": text}), tmp_path / "a.parquet")
    rows = rows_of(tmp_path / "a.parquet")
    assert [row.values for row in rows] == [{"prompt": "good"}, None, {"prompt": "fine"}]
    assert (rows[1].number, rows[1].reason) == (2, "invalid UTF-8")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.json.gz", "a.parquet", "a.parquet.gz"])
def test_damaged_files(tmp_path, name):
    packed = gzip.compress(json.dumps([{"a": str(np.random.default_rng(0).random(1000).tolist())}]).encode())
    (tmp_path / name).write_bytes(packed[: len(packed) // 2] if name.endswith(".gz") else b"PAR1 no PAR1")
    with pytest.raises(DataError, match=r"cannot be read|not a readable Parquet") as caught:
        rows_of(tmp_path / name)
    assert caught.value.file == str(tmp_path / name)


def test_folder_of_files(tmp_path):
    for name in ("b/c.csv", "a.jsonl", "z.json.gz", ".hidden/x.jsonl", "notes.txt", "dataset_info.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        text = {"c.csv": "prompt\nfrom csv", "z.json.gz": '[{"prompt": "from z"}]'}.get(
            path.name, '{"prompt": "from a"}'
        )
        write_text(path, text)
    rows = rows_of(str(tmp_path))
    assert [row.values["prompt"] for row in rows] == ["from a", "from csv", "from z"]
    assert [row.file for row in rows] == [str(tmp_path / name) for name in ("a.jsonl", "b/c.csv", "z.json.gz")]
    assert [row.number for row in rows] == [1, 1, 1]


def test_saved_datasets(tmp_path):
    dataset = datasets.Dataset.from_list([{"prompt": "p", "n": 1}, {"prompt": "q", "n": None}])
    dataset.select([1, 0]).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, test=dataset.select([1])).save_to_disk(tmp_path / "two")
    datasets.DatasetDict(only=dataset).save_to_disk(tmp_path / "three")
    expected = [{"prompt": "q", "n": None}, {"prompt": "p", "n": 1}]
    assert [row.values for row in rows_of(tmp_path / "one")] == expected
    assert [row.values for row in rows_of(tmp_path / "one", split="train")] == expected
    assert [row.values for row in rows_of(tmp_path / "two", split="test")] == expected[:1]
    assert [row.values for row in rows_of(tmp_path / "two", prefer="test")] == expected[:1]
    assert len(rows_of(tmp_path / "three")) == 2
    assert len(rows_of(datasets.load_from_disk(tmp_path / "two"), split="test")) == 1
    with pytest.raises(DataError, match="several splits: choose one with --split: train, test"):
        rows_of(tmp_path / "two")
    with pytest.raises(DataError, match="no split 'valid': choose one with --split: train, test"):
        rows_of(tmp_path / "two", split="valid")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot load this saved dataset"):
        rows_of(tmp_path / "one")


def test_data_in_memory():
    dataset = datasets.Dataset.from_list([{"prompt": "p"}, {"prompt": "q"}])
    assert [row.values["prompt"] for row in rows_of(dataset.select([1, 0]))] == ["q", "p"]
    assert [row.values["prompt"] for row in rows_of(dataset.to_iterable_dataset())] == ["p", "q"]
    rows = rows_of([{"a": np.float32("nan"), "b": np.arange(2), "c": (1, {"d"})}, 3, {(1,): 2}])
    assert json.loads(rows[0].text) == {"a": None, "b": [0, 1], "c": [1, "{'d'}"]}
    assert [row.reason for row in rows[1:]] == [
        "a number, not an object",
        "cannot be written as JSON (keys must be str, int, float, bool or None, not tuple)",
    ]
    assert {row.file for row in rows} == {"<dataset>"}


def test_json_typed_columns_of_a_dataset_are_parsed():
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ["b"]}], "deep": {"x": 1}}]
    features = datasets.Features(
        messages=datasets.List(datasets.Json()), deep={"x": datasets.Json(), "y": datasets.Value("string")}
    )
    dataset = datasets.Dataset.from_list(rows, features=features)
    assert [row.values for row in rows_of(dataset)] == [rows[0] | {"deep": {"x": 1, "y": None}}]


def test_half_a_surrogate_pair_can_still_be_written():
    text = json_text({"a": "\ud83d", "b": "ü"})
    assert json.loads(text.encode()) == {"a": "\ud83d", "b": "ü"}


@pytest.mark.parametrize(
    "name", ["nowhere.jsonl", "data/pool.parquet.gz", "./pool", "/no/where", "~/nowhere", "org/pool.json"]
)
def test_missing_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file or folder: check the path") as caught:
        open_source(name)
    assert caught.value.file == name


def test_what_is_neither(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("alpaca", "csv", "a/b/c", "org/name with space"):
        with pytest.raises(DataError, match="nor a hub id"):
            open_source(name)
    with pytest.raises(DataError, match="no such file"):
        open_source(Path("org/name"))
    with pytest.raises(DataError, match=r"unknown format: known are \.jsonl"):
        rows_of(write_text(tmp_path / "a.txt", "x"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data in this folder"):
        open_source(tmp_path / "empty")


def test_a_folder_named_like_a_hub_id_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "pool").mkdir(parents=True)
    write_text(tmp_path / "org" / "pool" / "a.jsonl", '{"prompt": "p"}')
    assert [row.file for row in rows_of("org/pool")] == ["org/pool/a.jsonl"]


def test_stamps_tell_change(tmp_path):
    path = write_text(tmp_path / "a.jsonl", '{"a": 1}')
    before = open_source(path).stamps
    assert before == open_source(path).stamps
    write_text(path, '{"a": 12}')
    assert before != open_source(path).stamps
    rows = [{"a": i} for i in range(3000)]
    dataset = datasets.Dataset.from_list(rows)
    assert open_source(rows).stamps == open_source(dataset).stamps == open_source(list(rows)).stamps
    assert open_source(rows).stamps != open_source(rows[:-1]).stamps
    assert open_source(rows).stamps != open_source([{"a": -1}, *rows[1:]]).stamps


# --- the hub, without a network ------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache that holds the hub dataset "org/pool" with two splits, as `datasets` itself leaves it there."""
    source = tmp_path / "source"
    source.mkdir()
    for split in ("train", "test"):
        write_text(source / f"{split}.jsonl", json.dumps({"prompt": split, "response": "r"}))
    cache = tmp_path / "cache"
    datasets.load_dataset(
        "json", data_files={s: str(source / f"{s}.jsonl") for s in ("train", "test")}, cache_dir=str(cache)
    )
    [made] = (cache / "json").glob("*/*/*/")
    target = cache / "org___pool" / "main" / "0.0.0" / made.name
    target.parent.mkdir(parents=True)
    made.rename(target)
    info = json.loads((target / "dataset_info.json").read_text())
    info |= {"builder_name": "json", "dataset_name": "pool", "config_name": "main"}
    (target / "dataset_info.json").write_text(json.dumps(info))
    for file in target.glob("json-*.arrow"):
        file.rename(target / file.name.replace("json-", "pool-"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_hub_id_from_the_cache(hub_cache):
    assert [(row.values["prompt"], row.file) for row in rows_of("org/pool", split="test")] == [("test", "org/pool")]
    assert [row.values["prompt"] for row in rows_of("org/pool:main", split="train")] == ["train"]
    assert [row.values["prompt"] for row in rows_of("org/pool", prefer="test")] == ["test"]
    with pytest.raises(DataError, match="several splits: choose one with --split: train, test"):
        rows_of("org/pool")
    with pytest.raises(DataError, match="cannot load it from the hub"):
        rows_of("org/pool", split="valid")
    with pytest.raises(DataError, match="cannot load it from the hub"):
        rows_of("org/pool:other")


def test_hub_is_not_asked_before_reading():
    assert open_source("org/no-such-pool", split="train").stamps == [{"file": "org/no-such-pool", "split": "train"}]


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (datasets.exceptions.DatasetNotFoundError("Dataset 'org/x' is a gated dataset on the Hub."), "hf auth login"),
        (
            ValueError("Config name is missing.\nPlease pick one among the available configs: ['main']"),
            "org/name:config",
        ),
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "check the name"),
        (ConnectionError("Couldn't reach 'org/x' on the Hub"), "check the network"),
        (datasets.exceptions.DatasetGenerationError(), "check the name"),
    ],
)
def test_hub_failures_are_one_line(monkeypatch, error, fix):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=fix) as caught:
        rows_of("org/x")
    assert str(error).partition("\n")[0] in str(caught.value)
    assert str(caught.value).startswith("org/x: cannot load it from the hub")


def test_no_network_is_one_line(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"org/none: cannot load it from the hub \(Couldn't reach.*check the network"):
        rows_of("org/none")
