"""The rows of one file: JSON Lines, JSON, CSV, Parquet or Arrow, also compressed.

Each format is streamed: memory has a row, a block or a batch of Parquet, never the file. A row that cannot be parsed is
yielded with the reason, and reading continues; only damage that hides the start of the next row (a syntax error in an
array, a broken `.gz` or Parquet) raises. The format is recognised by content, since suffixes are often wrong.
"""

from __future__ import annotations

import contextlib
import lzma
import re
import shlex
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from nncift.data.files.csv_files import csv_rows, separator_of
from nncift.data.files.json_files import json_rows
from nncift.data.files.streams import (
    BLOCK,
    PACKINGS,
    ROW_BYTES,
    Stream,
    as_utf8,
    open_stream,
    seekable,
    skip_blank,
    suffix,
)
from nncift.data.rows import BATCH, Row, arrow_rows
from nncift.errors import DataError, first_line

_JSON = (".jsonl", ".ndjson", ".json")
_CSV = (".csv", ".tsv")
_TABLES = (".parquet", ".arrow")


def is_known(path: Path) -> bool:
    """Whether the suffix is that of a known format."""
    return suffix(path) in (*_JSON, *_CSV, *_TABLES)


def known_formats() -> str:
    """The known suffixes, for messages."""
    return f"{', '.join((*_JSON, *_CSV, *_TABLES))}, any with {', '.join(PACKINGS)}"


def file_rows(
    path: Path, name: str, *, limit: int = ROW_BYTES, hashed: Callable[[str], None] | None = None
) -> Iterator[Row]:
    """Read the rows of a file.

    Args:
        path: the file.
        name: what rows and messages call it.
        limit: bytes of the longest row; a longer one is a bad row.
        hashed: takes the hash of the content (`run.storage.checksums.content_hash`) when all rows are read.

    Raises:
        DataError: the format is unknown, or the file is damaged beyond single rows.
    """
    if not is_known(path):
        raise DataError("unknown format", f"known are {known_formats()}", file=name)
    try:
        with open_stream(path, hashed) as stream:
            yield from _rows(stream, path, name, limit)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
        raise DataError(f"the file cannot be read ({error})", "check it or download it again", file=name) from error


def _rows(stream: Stream, path: Path, name: str, limit: int) -> Iterator[Row]:
    head = stream.head()
    _refuse_page(head, name)
    if head.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")) or suffix(path) in _TABLES:
        yield from _tables(stream, path, name, limit)
        return
    _refuse_binary(head, name)
    text = as_utf8(stream, path, name)
    skipped = skip_blank(text)
    head = text.head()
    is_json = _is_json(head)
    if suffix(path) in _CSV and not is_json:
        yield from csv_rows(text, name, limit)
    else:
        if not is_json:
            _refuse_csv(head, path, name)
        yield from json_rows(text, name, limit, skipped + 1)


# --- what else a file may be ---------------------------------------------------------------------------

_BINARY = {
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "unpack it, or save it as CSV"),
    b"\x1f\x8b": ("compressed twice", "decompress it once"),
    b"SQLite format 3": ("an SQLite database", "export a table as CSV"),
    b"\x89HDF": ("HDF5", "convert it to Parquet"),
    b"\x80\x04": ("a pickle", "convert it to Parquet"),
    b"%PDF": ("a PDF", "give the data as text"),
}
_PAGES = re.compile(rb"(?i)<!doctype html|<html")


def _refuse_binary(head: bytes, name: str) -> None:
    for magic, (what, fix) in _BINARY.items():
        if head.startswith(magic):
            raise DataError(f"this is {what}", fix, file=name)


def _is_json(head: bytes) -> bool:
    """Whether a text is JSON: an array of objects, or an object in its first line."""
    start = head.lstrip()
    if start.startswith(b"["):
        return start[1:].lstrip()[:1] in (b"{", b"]", b"")
    return re.match(rb'\{\s*(?:"|\}|$)', start) is not None


def _refuse_page(head: bytes, name: str) -> None:
    """Refuse what a download may bring in place of any file."""
    start = head.lstrip()
    if start.startswith(b"version https://git-lfs"):
        raise DataError("this is a pointer of Git LFS, not the data", "fetch it: git lfs pull", file=name)
    if _PAGES.match(start):
        raise DataError("this is a web page, not data", "download the file itself", file=name)


def _refuse_csv(head: bytes, path: Path, name: str) -> None:
    """Refuse CSV in a file of another name, where its first lines show it."""
    lines = [line for line in head.lstrip().split(b"\n")[:20] if line.strip()]
    if any(line.lstrip().startswith((b"{", b"[")) for line in lines) or len(lines) < 2:
        return
    separator = separator_of(head)
    if all(separator.encode() in line for line in lines[:2]):
        new = path.with_name(re.sub(rf"(?i){re.escape(suffix(path))}(?=\.\w+$|$)", ".csv", path.name))
        command = f"mv {shlex.quote(str(path))} {shlex.quote(str(new))}"
        raise DataError("this is CSV, not JSON", f"rename it: {command}", file=name)


# --- Parquet and Arrow ---------------------------------------------------------------------------------


def _tables(stream: Stream, path: Path, name: str, limit: int) -> Iterator[Row]:
    import pyarrow as pa

    with contextlib.ExitStack() as stack:
        head = stream.head(8)
        handle: IO[bytes] = stack.enter_context(open(path, "rb"))
        if handle.read(len(head)) != head:  # compressed
            handle = stack.enter_context(seekable(stream))
        handle.seek(0)
        try:
            is_arrow = suffix(path) == ".arrow" and not head.startswith(b"PAR1")
            yield from arrow_rows(_batches(handle, head, is_stream=is_arrow), name, limit)
        except (pa.ArrowException, OSError, MemoryError) as error:
            what = "Parquet" if suffix(path) == ".parquet" else "Arrow"
            raise DataError(f"not a readable {what} file ({first_line(error)})", "write it again", file=name) from error


def _batches(handle: IO[bytes], head: bytes, *, is_stream: bool) -> Iterator[Any]:
    """The record batches of a Parquet file, an Arrow file or an Arrow stream."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if head.startswith(b"ARROW1"):
        reader = pa.ipc.open_file(handle)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    elif is_stream or head.startswith(b"\xff\xff\xff\xff"):
        batches = iter(pa.ipc.open_stream(handle))
    else:
        yield from pq.ParquetFile(handle, pre_buffer=False, buffer_size=BLOCK).iter_batches(BATCH)
        return
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            yield batch.slice(start, BATCH)
