"""What a file is, by its content: compression, encoding, JSON forms, separators; and what it is not."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import write_text
from nncift.data.files.formats import file_rows
from nncift.errors import DataError

ROWS = [{"prompt": f"où {i}", "response": f"là-bas {i}"} for i in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": lambda b: zstd(b)}


def zstd(data):
    return pa.compress(data, codec="zstd", asbytes=True)


def table(separator, rows=ROWS):
    return "".join(separator.join(cells) + "\n" for cells in [rows[0], *(row.values() for row in rows)])


def read(path):
    rows = list(file_rows(path, path.name))
    assert not any(row.reason for row in rows)
    return [row.values for row in rows]


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("text", [LINES, json.dumps(ROWS, indent=1), table(",")])
def test_compressed_whatever_the_suffix(tmp_path, packing, text):
    kind = ".csv" if text.startswith("prompt") else ".jsonl"
    packed = PACK[packing](text.encode())
    for name in (f"a{kind}{packing}", f"a{kind}"):  # a browser may have decompressed it, or kept the name
        (tmp_path / name).write_bytes(packed)
        assert read(tmp_path / name) == ROWS
    (tmp_path / f"plain{kind}{packing}").write_text(text)
    assert read(tmp_path / f"plain{kind}{packing}") == ROWS
    cut = tmp_path / f"cut{kind}{packing}"
    cut.write_bytes(packed[:-6])
    with pytest.raises(DataError, match=r"cut.*: the file cannot be read"):
        read(cut)


def test_frames_of_zstd_in_one_file(tmp_path):
    half = LINES.encode().index(b"\n") + 1
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(LINES.encode()[:half]) + zstd(LINES.encode()[half:]))
    assert read(tmp_path / "a.jsonl.zst") == ROWS


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        json.dumps(ROWS),
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
        "[" + ",\n".join(map(json.dumps, ROWS)) + "]",
        json.dumps(ROWS, indent=2),
        json.dumps({"version": "1.1", "data": ROWS}),
        json.dumps({"meta": {"a": [1, {}]}, "examples": ROWS, "end": None}, indent=2),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        "".join(json.dumps(row, indent=4) for row in ROWS),
        "\n" * 200_000 + LINES,
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_json_by_content(tmp_path, text, suffix):
    assert read(write_text(tmp_path / f"a{suffix}", text)) == ROWS
    assert read(write_text(tmp_path / f"a{suffix}", text.replace("\n", "\r\n"))) == ROWS


def test_a_wrapper_is_streamed(tmp_path):
    rows = [{"prompt": "x" * 1000, "response": str(i)} for i in range(6000)]  # more than is looked at
    path = write_text(tmp_path / "a.json", json.dumps({"info": {"n": 6000}, "data": rows, "license": "mit"}))
    assert read(path) == rows


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]},
        {"prompt": "q", "response": "r", "tools": [{"name": "x"}]},
        {"chat": [{"from": "human", "value": "q"}]},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "r"}]},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_one_row_is_no_wrapper(tmp_path, row, indent):
    assert read(write_text(tmp_path / "a.json", json.dumps(row, indent=indent))) == [row]


def test_bad_lines_do_not_change_the_form(tmp_path):
    for broken in ('{"prompt": "x', '{"prompt": "x"', "oops", "[1]", "[" * 5000, '{"a": }'):
        rows = list(file_rows(write_text(tmp_path / "a.jsonl", f"{broken}\n{LINES}"), "a"))
        assert [row.values for row in rows] == [None, *ROWS]
        assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_separators(tmp_path, separator, suffix):
    rows = [{"prompt": f"a, b; c {i}", "response": "x | y"} for i in range(3)]
    quoted = [{key: f'"{cell}"' for key, cell in row.items()} for row in rows]
    assert read(write_text(tmp_path / f"a{suffix}", table(separator, quoted))) == rows


def test_columns_without_a_name(tmp_path):
    path = write_text(tmp_path / "a.csv", ",prompt,response,,\n0,p,r,,\n1,q,s,,note\n2,t,u\n3,v,w,,,,\n")
    assert read(path) == [
        {"Unnamed: 0": "0", "prompt": "p", "response": "r"},
        {"Unnamed: 0": "1", "prompt": "q", "response": "s", "Unnamed: 4": "note"},
        {"Unnamed: 0": "2", "prompt": "t", "response": "u"},
        {"Unnamed: 0": "3", "prompt": "v", "response": "w"},
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_unicode_encodings(tmp_path, encoding, name):
    text = {"a.json": json.dumps(ROWS, indent=1, ensure_ascii=False), "a.csv": table(",")}.get(name, LINES)
    data = text.replace("\n", "\r\n").encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read(tmp_path / name) == ROWS


@pytest.mark.parametrize(
    ("encoding", "sentence", "found"),
    [
        ("cp1252", "Où est l'hôtel, près de la bibliothèque ou à côté du théâtre ?", "CP1252"),
        ("gb18030", "图书馆在哪里。学校附近。它在剧院旁边。", "GB"),
        ("shift_jis", "東京の図書館はどこですか。劇場の隣にあります。", "CP932|SHIFT"),
    ],
)
@pytest.mark.parametrize("name", ["my pool.jsonl", "a.json", "a.csv", "a.csv.gz"])
def test_other_encodings_are_named_with_the_command(tmp_path, encoding, sentence, found, name):
    pytest.importorskip("charset_normalizer")
    rows = [{"prompt": f"{sentence} {i}", "response": sentence} for i in range(20)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    text = {"a.json": json.dumps(rows, ensure_ascii=False)}.get(name, table(",", rows) if ".csv" in name else lines)
    data = text.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(
        DataError, match=rf"not UTF-8; it looks like ({found}).*iconv -f ({found}).* -t UTF-8 "
    ) as caught:
        read(tmp_path / name)
    assert "skip" not in str(caught.value)
    command = f"'{tmp_path}/my pool.jsonl' > '{tmp_path}/my pool-utf8.jsonl'"
    assert name != "my pool.jsonl" or command in str(caught.value)


def test_few_bad_bytes_are_bad_rows(tmp_path):
    data = LINES.encode() * 20 + b'{"prompt": "\xff\xfe"}\n' + b'{"prompt": "\xe9"}\n'
    (tmp_path / "a.jsonl").write_bytes(data)
    assert sum(row.values is None for row in file_rows(tmp_path / "a.jsonl", "a")) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (table(",").encode(), "this is CSV, not JSON: rename it: mv .*a.jsonl .*a.csv"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n", "pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html></html>", "a web page"),
        (b"PK\x03\x04" + bytes(30), "a zip archive or a spreadsheet"),
        (b"SQLite format 3\0" + bytes(30), "SQLite database"),
        (json.dumps({"train": ROWS, "test": ROWS}).encode(), r"several lists \(train, test\): keep one: jq .train "),
        (json.dumps({"prompt": ["a", "b"], "response": ["c", "d"]}).encode(), r"columns \(prompt, response\), not of"),
        (json.dumps({"prompt": {"0": "a"}, "response": {"0": "c"}}).encode(), r"of columns \(prompt, response\)"),
    ],
)
def test_what_else_a_file_is(tmp_path, data, message):
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        list(file_rows(tmp_path / "a.jsonl", str(tmp_path / "a.jsonl")))
    assert "skip" not in str(caught.value)


def test_what_a_download_brings_in_place_of_a_file(tmp_path):
    for name in ("a.parquet", "a.csv", "a.json", "a.jsonl"):
        (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n")
        with pytest.raises(DataError, match="pointer of Git LFS"):
            read(tmp_path / name)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(table(",").encode()))
    with pytest.raises(DataError, match=r"rename it: mv \S+/a.json.gz \S+/a.csv.gz"):
        read(tmp_path / "a.json.gz")


def test_tables_by_content(tmp_path):
    rows = pa.Table.from_pylist(ROWS)
    pq.write_table(rows, tmp_path / "a.jsonl")
    with pa.ipc.new_file(tmp_path / "file.arrow", rows.schema) as file:
        file.write_table(rows)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", rows.schema) as stream:
        stream.write_table(rows)
    (tmp_path / "packed.arrow.zst").write_bytes(zstd((tmp_path / "file.arrow").read_bytes()))
    for path in tmp_path.iterdir():
        assert read(path) == ROWS
    for name in ("empty.arrow", "empty.parquet"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(DataError, match="not a readable"):
            read(tmp_path / name)
