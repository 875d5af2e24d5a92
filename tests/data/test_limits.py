"""Long rows, deep nesting, and values that Python or JSON have not."""

import gzip
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nncift.data.files.formats import file_rows
from nncift.data.pool import load_pool
from nncift.data.rows import json_text
from nncift.errors import ConfigError, DataError
from nncift.run.options.amounts import parse_bytes

GOOD = b'{"prompt": "a", "response": "b"}'
LONG = 24 << 20


@pytest.mark.parametrize(
    ("name", "start", "end", "numbers"),
    [
        ("a.jsonl.gz", GOOD + b'\n{"prompt": "', b'"}\n' + GOOD, [1, 2, 3]),
        ("a.jsonl.gz", b'{"prompt": "', b'"}\n' + GOOD, [1, 2]),
        ("a.json.gz", b"[" + GOOD + b', {"prompt": "', b'\\"]}"}, ' + GOOD + b"]", [1, 2, 3]),
        ("a.json.gz", b"[" + GOOD + b', ["', b'"], ' + GOOD + b"]", [1, 2, 3]),
        ("a.csv.gz", b"p,r\na,b\nc,", b"\nd,e\n", [1, 2, 3]),
        ("a.csv.gz", b'p,r\na,b\nc,"', b'"\nd,e\n', [1, 2, 3]),
    ],
)
def test_a_long_row_is_a_bad_row_and_memory_is_flat(tmp_path, name, start, end, numbers):
    with gzip.open(tmp_path / name, "wb", 1) as file:
        file.write(start)
        for _ in range(LONG >> 20):
            file.write(b"x" * (1 << 20))
        file.write(end)
    tracemalloc.start()
    rows = list(file_rows(tmp_path / name, "a", limit=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LONG
    bad = [row for row in rows if row.values is None]
    assert [row.number for row in rows] == numbers
    assert len(bad) == 1
    assert bad[0].reason == "24 MiB, more than `max_row_bytes` (1 MiB)"
    assert len(bad[0].text) <= 8000


def test_empty_lines_are_counted(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", 1) as file:
        file.write(GOOD + b"\n" * 1_200_000 + GOOD)
    assert [row.number for row in file_rows(tmp_path / "a.jsonl.gz", "a")] == [1, 1_200_001]
    with gzip.open(tmp_path / "b.jsonl.gz", "wb", 1) as file:
        file.write(b"\n" * 1_200_000 + GOOD + b"\n" + GOOD)
    assert [row.number for row in file_rows(tmp_path / "b.jsonl.gz", "a")] == [1_200_001, 1_200_002]


def test_the_limit_is_an_option(tmp_path):
    rows = [{"prompt": "p", "response": "r"}, {"prompt": "x" * 3000, "response": "s"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for source in (tmp_path / "a.jsonl", tmp_path / "a.parquet", rows, pa.Table.from_pylist(rows)):
        assert len(load_pool(source)) == 2
        assert len(load_pool(source, max_row_bytes="1KiB", skip_bad_rows=True)) == 1
        with pytest.raises(DataError, match=r"row 2: 3 KiB, more than `max_row_bytes` \(1 KiB\)"):
            load_pool(source, max_row_bytes=1024)


def test_numbers_of_bytes():
    texts = {"64MiB": 64 << 20, "1.5 GB": 1_500_000_000, "67_108_864": 67_108_864, "1k": 1000, 7: 7}
    assert {text: parse_bytes("max_row_bytes", text) for text in texts} == texts
    for text in ("x", "", "0", -1, True, "64 XB", "0.1"):
        with pytest.raises(ConfigError, match="`max_row_bytes`"):
            parse_bytes("max_row_bytes", text)


def test_deep_nesting_is_a_bad_row(tmp_path):
    deep = b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n" + deep + b"\n" + GOOD)
    (tmp_path / "a.json").write_bytes(b"[" + GOOD + b"," + deep + b"," + GOOD + b"]")
    for path in (tmp_path / "a.jsonl", tmp_path / "a.json"):
        rows = list(file_rows(path, "a"))
        assert [row.reason for row in rows] == ["", "invalid JSON (thousands of nested brackets)", ""]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (pa.array([10**9], pa.int32()).cast(pa.date32()), "2739877-01-03"),
        (pa.array([10**18], pa.timestamp("us")), "33658-09-27T01:46:40.000000"),
        (pa.array([10**15], pa.timestamp("us", "Mars/Olympus")), "2001-09-09T01:46:40.000000+00:00"),
        (pa.array([10**15], pa.duration("s")), "1000000000000000 s"),
        (pa.array([[{"at": 10**18}]], pa.list_(pa.struct([("at", pa.timestamp("us"))]))), None),
    ],
)
def test_values_that_python_has_not_are_text(values, text):
    pool = load_pool(pa.table({"prompt": ["a"], "response": ["b"], "x": values}))
    expected = [{"at": "33658-09-27T01:46:40.000000"}] if text is None else text
    assert json.loads(pool[0]["original"]) == {"prompt": "a", "response": "b", "x": expected}


def test_a_json_column_that_is_no_json_is_text():
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', "{bad", None]))
    rows = [pa.array(list("abc")), pa.array(list("def")), column]
    pool = load_pool(pa.table(rows, names=["prompt", "response", "x"]))
    assert [json.loads(text)["x"] for text in pool["original"]] == [{"a": 1}, "{bad", None]


@pytest.mark.parametrize("offsets", [(0, 3, 6_000_000), (0, -3, 6), (0, 6, 3)])
def test_damaged_offsets_are_bad_rows(tmp_path, offsets):
    table = pa.table({"prompt": ["abc", "def"], "response": ["b", "c"]})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    good, bad = (np.array(each, np.int32).tobytes() for each in ((0, 3, 6), offsets))
    data = (tmp_path / "a.arrow").read_bytes()
    assert data.count(good) == 1
    (tmp_path / "a.arrow").write_bytes(data.replace(good, bad))
    rows = list(file_rows(tmp_path / "a.arrow", "a"))
    assert any(row.reason.startswith("a damaged value") for row in rows)


def test_json_has_no_infinity():
    text = json_text({"a": float("inf"), "b": [1e300 * 1e300, {"c": np.float32("nan")}], "d": np.array([np.inf])})
    assert text == '{"a": null, "b": [null, {"c": null}], "d": [null]}'
