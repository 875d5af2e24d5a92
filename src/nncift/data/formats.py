"""The rows of one file: JSON Lines, a JSON array, CSV, Parquet, or any of these with `.gz`.

Each format is streamed: memory has a row, a chunk of an array or a batch of Parquet, never the file. A row that cannot
be parsed is yielded with the reason, and reading continues; only damage that hides the start of the next row (a syntax
error in an array, a broken `.gz` or Parquet) raises. The encoding is UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from nncift.data.rows import BATCH, Row, arrow_rows, is_unicode, json_row, object_row
from nncift.errors import DataError

_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20  # characters of a JSON array, or bytes of a Parquet column, per read


def is_known(path: Path) -> bool:
    """Whether the suffix is that of a known format."""
    return _suffix(path) in _READERS


def known_formats() -> str:
    """The known suffixes, for messages."""
    return ", ".join(_READERS) + ", any with .gz"


def file_rows(path: Path, name: str) -> Iterator[Row]:
    """Read the rows of a file, which rows and messages call `name`.

    Raises:
        DataError: the format is unknown, or the file is damaged beyond single rows.
    """
    reader = _READERS.get(_suffix(path))
    if reader is None:
        raise DataError("unknown format", f"known are {known_formats()}", file=name)
    try:
        yield from reader(path, name)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"the file cannot be read ({error})", "check it or download it again", file=name) from error


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if _is_packed(path) else open(path, "rb")  # type: ignore[return-value]


def _open_text(path: Path) -> IO[str]:
    """Text with newlines untranslated; invalid UTF-8 becomes lone surrogates, which valid UTF-8 cannot encode."""
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors="surrogateescape", newline="")


def _shown(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# --- JSON ----------------------------------------------------------------------------------------------


def _json_lines(path: Path, name: str) -> Iterator[Row]:
    with _open(path) as handle:
        for number, line in enumerate(handle, 1):
            stripped = (line.removeprefix(_BOM) if number == 1 else line).strip(b" \t\r\n")
            if not stripped:
                continue
            try:
                text = stripped.decode()
            except UnicodeDecodeError as error:
                shown = stripped.decode("utf-8", "replace")
                yield Row(name, number, None, shown, f"invalid UTF-8 (byte {error.start + 1} of the line)")
            else:
                yield json_row(name, number, text)


def _json(path: Path, name: str) -> Iterator[Row]:
    """A `.json` file is an array of rows or JSON Lines, by its first character."""
    with _open(path) as handle:
        head = handle.read(1 << 16).removeprefix(_BOM).lstrip()
    if head.startswith(b"["):
        with _open_text(path) as text:
            yield from _json_array(text, name)
    elif head.splitlines()[:1] == [b"{"]:
        raise DataError("one JSON object, not rows", "give an array of objects, or one object per line", file=name)
    else:
        yield from _json_lines(path, name)


def _json_array(text: IO[str], name: str) -> Iterator[Row]:
    number = 0
    try:
        for values, original in _array_items(text):
            number += 1
            if is_unicode(original):
                yield object_row(name, number, values, original)
            else:
                yield Row(name, number, None, _shown(original), "invalid UTF-8")
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(
            f"invalid JSON ({reason}), so the rest of the array cannot be read",
            "correct it, or convert the file to JSON Lines, where a bad row can be skipped",
            file=name,
            row=number + 1,
        ) from error


_SPACE = re.compile(r"[ \t\r\n]*")
_LINE_BREAK = re.compile(r"[\r\n][ \t\r\n]*")  # always between tokens: in a JSON string it is escaped


def _array_items(text: IO[str]) -> Iterator[tuple[Any, str]]:
    """Each item of a JSON array with its original text on one line; the buffer grows only for longer items."""
    decoder = json.JSONDecoder()
    buffer, at = "", 0

    def more() -> bool:
        nonlocal buffer, at
        read = text.read(max(_CHUNK, len(buffer) - at))  # doubles: linear time for a long item
        buffer, at = buffer[at:] + read, 0
        return bool(read)

    def symbol() -> str:
        """Skip white space and return the next character; empty at the end."""
        nonlocal at
        while True:
            at = _SPACE.match(buffer, at).end()  # type: ignore[union-attr]
            if at < len(buffer) or not more():
                return buffer[at : at + 1]

    def expect(allowed: str) -> str:
        nonlocal at
        found = symbol()
        if not found or found not in allowed:
            raise json.JSONDecodeError(f"{' or '.join(allowed)} expected, not {found or 'the end'}", buffer, at)
        at += 1
        return found

    expect("[")
    closed = symbol() == "]" and expect("]") == "]"
    while not closed:
        symbol()
        try:
            value, end = decoder.raw_decode(buffer, at)
        except json.JSONDecodeError as error:
            if _may_be_cut(error, buffer) and more():
                continue
            raise
        if end == len(buffer) and more():  # a number may continue
            continue
        yield value, _LINE_BREAK.sub(" ", buffer[at:end])
        at = end
        closed = expect(",]") == "]"
    if symbol():
        raise json.JSONDecodeError("something follows it", buffer, at)


def _may_be_cut(error: json.JSONDecodeError, buffer: str) -> bool:
    """Whether the buffer's end may cause the error: in an open string, or within a literal."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer.rstrip()) - 16


# --- CSV -----------------------------------------------------------------------------------------------


def _csv(path: Path, name: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default rejects fields beyond 128 kB; the limit is global
    with _open_text(path) as text:
        lines: list[str] = []  # of the current record, for the list of bad rows

        def recorded() -> Iterator[str]:
            for line in text:
                lines.append(line)
                yield line

        records = csv.reader(recorded(), strict=True)  # strict: an open quote is an error, not the rest of the file
        header = _csv_header(records, name)
        number = 0
        while True:
            lines.clear()
            try:
                cells = next(records)
                reason = ""
            except StopIteration:
                return
            except csv.Error as error:
                cells, reason = ["?"], f"invalid CSV ({error})"
            if not cells:  # an empty line
                continue
            number += 1
            original = "".join(lines).rstrip("\r\n")
            if not is_unicode(original):
                reason = "invalid UTF-8"
            elif not reason and len(cells) != len(header):
                reason = f"{len(cells)} fields where the header has {len(header)}"
            if reason:
                yield Row(name, number, None, _shown(original), reason)
            else:
                values = dict(zip(header, cells, strict=True))
                yield Row(name, number, values, json.dumps(values, ensure_ascii=False))


def _csv_header(records: Iterator[list[str]], name: str) -> list[str]:
    try:
        header = next((cells for cells in records if cells), [])
    except csv.Error as error:
        raise DataError(f"the header is invalid CSV ({error})", "correct it", file=name) from error
    if not is_unicode("".join(header)):
        raise DataError("the header is invalid UTF-8", "save the file as UTF-8", file=name)
    twice = next((field for i, field in enumerate(header) if field in header[:i]), None)
    if twice is not None:
        raise DataError("two columns have this name", "rename one", file=name, field=twice)
    return header


# --- Parquet -------------------------------------------------------------------------------------------


def _parquet(path: Path, name: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as stack:
        handle: IO[bytes] = stack.enter_context(_open(path))
        if _is_packed(path):  # Parquet needs random access, so it is decompressed to disk
            packed, handle = handle, stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(packed, handle)
        try:
            file = pq.ParquetFile(handle, pre_buffer=False, buffer_size=_CHUNK)
            yield from arrow_rows(file.iter_batches(BATCH), name)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"not a readable Parquet file ({reason})", "write it again", file=name) from error


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
