"""Rows of every file format with their original text."""

import base64
import csv
import datetime
import decimal
import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import json_objects, write_text
from nncift.data.files import formats, json_scanner
from nncift.data.files.json_files import json_rows
from nncift.data.files.streams import HEAD, Stream
from nncift.data.rows import Row, json_text
from nncift.errors import DataError

DEEP = {"b": [1, {"a": None}], "a": True}
ROWS = [
    {"prompt": "Größe?\n", "response": "a\u2028b 😀 \x00", "n": 2**80, "x": 1.10, "deep": DEEP},
    {"response": "first key last", "prompt": "q", "tools": []},
]


def rows_of(path):
    return list(formats.file_rows(path, str(path)))


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.gz"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_json_lines_and_arrays(tmp_path, suffix, bom):
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    path = write_text(tmp_path / f"pool{suffix}", bom + f"{lines[0]}\r\n \n{lines[1]}".encode())
    assert rows_of(path) == [Row(str(path), k, row, text) for k, row, text in zip((1, 3), ROWS, lines, strict=True)]
    for indent in (None, 0, 1) if suffix.split(".")[1] == "json" else ():
        array = json.dumps(ROWS, ensure_ascii=False, indent=indent).encode()
        rows = rows_of(write_text(path, bom + array))
        assert [json.loads(row.text) for row in rows] == [row.values for row in rows] == ROWS
        assert [row.number for row in rows] == [1, 2]
        assert not any("\n" in row.text for row in rows)


def test_the_text_of_a_row_is_verbatim(tmp_path):
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
    for chunk in (1, 2, 7, json_scanner.CHUNK):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_scanner, "CHUNK", chunk)
            assert [json.loads(row.text) for row in rows_of(array)] == rows
    if len(rows) > 1:  # one object may hold the rows in a list
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
@pytest.mark.parametrize("chunk", [1, json_scanner.CHUNK])
def test_broken_array_is_an_error(tmp_path, text, chunk, monkeypatch):
    monkeypatch.setattr(json_scanner, "CHUNK", chunk)
    with pytest.raises(DataError, match=r"invalid JSON .*the rest of the file cannot be read") as caught:
        rows_of(write_text(tmp_path / "a.json", text))
    assert caught.value.row in (1, 2)


def test_an_error_in_a_long_array_stops_reading(tmp_path):
    text = '[{"a": 1, b: 2}' + ', {"c": 3}' * (json_scanner.CHUNK // 2) + "]"
    handle = io.BytesIO(text.encode())
    with pytest.raises(DataError, match="invalid JSON"):
        list(json_rows(Stream(handle.read), "a.json", 1 << 20))
    assert handle.tell() <= json_scanner.CHUNK + HEAD


def test_bad_json_rows_have_a_reason(tmp_path):
    lines = [b'{"a": 1}', b'{"a": "\xff"}', b"{'a': 1}", b"[1]", b"null", b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100000]
    lines.append(b'{"b": 2}')
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


def test_csv_bad_and_long_records(tmp_path):
    data = b'prompt,response\na,b\n\nc\n"d"x,e\n\xff,f\ng,"h\ni"\n"open,j\nk,l\n'
    rows = rows_of(write_text(tmp_path / "a.csv.gz", data))
    assert [(row.number, row.values or row.text, row.reason.partition(" (")[0]) for row in rows] == [
        (1, {"prompt": "a", "response": "b"}, ""),
        (2, "c", "1 fields where the header has 2"),
        (3, '"d"x,e', "invalid CSV"),
        (4, "\ufffd,f", "invalid UTF-8"),
        (5, {"prompt": "g", "response": "h\ni"}, ""),
        (6, '"open,j\nk,l', "invalid CSV"),
    ]
    assert rows[5].reason == "invalid CSV (unexpected end of data)"
    [row] = rows_of(write_text(tmp_path / "a.csv", "prompt,response\nq," + "x" * 200_000))
    assert len(row.values["response"]) == 200_000  # beyond the default limit of a field


@pytest.mark.parametrize(
    ("header", "message"), [("a,b,a", "two columns"), ('"a"b,c', "header is invalid CSV"), (b"a,\xff", "invalid UTF-8")]
)
def test_csv_header(tmp_path, header, message):
    with pytest.raises(DataError, match=message):
        rows_of(write_text(tmp_path / "a.csv", header))


def test_parquet_values_without_a_json_form(tmp_path):
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
    assert (second["score"], second["prompt"]) == (None, None)
    packed = write_text(tmp_path / "b.parquet.gz", (tmp_path / "a.parquet").read_bytes())
    assert [row.text for row in rows_of(packed)] == [row.text for row in rows_of(tmp_path / "a.parquet")]


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


def test_half_a_surrogate_pair_is_escaped():
    text = json_text({"a": "\ud83d", "b": "ü"})
    assert json.loads(text.encode()) == {"a": "\ud83d", "b": "ü"}
