"""The rows of CSV: separated by commas, semicolons, tabs or bars, which the first records show.

A column without a name, as pandas and spreadsheets write them, has the name that pandas gives it, "Unnamed: 0", in rows
where it is not empty. Empty cells beyond the header are left out.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

from nncift.data.files.streams import BLOCK, SHOWN, Stream, shown, too_long
from nncift.data.rows import Row, is_unicode
from nncift.errors import DataError

_SEPARATORS = ",;\t|"
_RECORDS = 20  # that the separator is recognised by


class _TooLong(Exception):
    """A record is longer than the limit."""


class _Lines(Iterator[str]):
    """The lines of a text with their ends; those of the current record are kept for the list of bad rows."""

    def __init__(self, stream: Stream, limit: int) -> None:
        reader = io.BufferedReader(stream, BLOCK)
        # Newlines untranslated; invalid UTF-8 becomes lone surrogates, which valid UTF-8 cannot encode.
        self._text = io.TextIOWrapper(reader, encoding="utf-8", errors="surrogateescape", newline="")
        self._limit = limit
        self.begin_record()

    def begin_record(self) -> None:
        self.record: list[str] = []
        self.size = 0

    def __next__(self) -> str:
        line = self._text.readline(self._limit + 1)
        self.size += len(line)
        if self.size > self._limit:  # in characters: close enough, and at no cost
            if not self.record:
                self.record.append(line[:SHOWN])
            while line and not line.endswith(("\n", "\r")):
                line = self._text.readline(BLOCK)
                self.size += len(line)
            raise _TooLong
        if not line:
            raise StopIteration
        self.record.append(line)
        return line


def csv_rows(stream: Stream, name: str, limit: int) -> Iterator[Row]:
    """The rows of CSV in UTF-8 with a header; `limit` is the bytes of a row.

    Raises:
        DataError: the header cannot be used.
    """
    csv.field_size_limit(2**31 - 1)  # the default rejects fields beyond 128 kB; the limit is global
    separator = separator_of(stream.head())
    lines = _Lines(stream, limit)
    # strict: an open quote is an error, not the rest of the file
    records = csv.reader(lines, delimiter=separator, strict=True)
    header = _header(records, name)
    number = 0
    while True:
        lines.begin_record()
        reason = ""
        try:
            cells = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            cells, reason = ["?"], f"invalid CSV ({error})"
        except _TooLong:
            cells, reason = ["?"], too_long(lines.size, limit)
        if not cells:  # an empty line
            continue
        number += 1
        original = "".join(lines.record).rstrip("\r\n")
        if not reason and not is_unicode(original):
            reason = "invalid UTF-8"
        values = _values(header, cells)
        if not reason and values is None:
            reason = f"{len(cells)} fields where the header has {len(header)}"
        if reason or values is None:
            yield Row(name, number, None, shown(original[:SHOWN].encode("utf-8", "surrogateescape")), reason)
        else:
            yield Row(name, number, values, json.dumps(values, ensure_ascii=False))


def _values(header: list[str], cells: list[str]) -> dict[str, str] | None:
    """The fields of a record; None where it does not match the header."""
    if len(cells) == len(header) and "" not in header:  # nearly always
        return dict(zip(header, cells, strict=True))
    if len(cells) < len(header):
        if any(header[len(cells) :]):
            return None
        cells = cells + [""] * (len(header) - len(cells))
    elif any(cells[len(header) :]):
        return None
    named = zip(header, cells, strict=False)
    return {field or f"Unnamed: {i}": cell for i, (field, cell) in enumerate(named) if field or cell}


def _header(records: Iterator[list[str]], name: str) -> list[str]:
    try:
        header = next((cells for cells in records if cells), [])
    except csv.Error as error:
        raise DataError(f"the header is invalid CSV ({error})", "correct it", file=name) from error
    except _TooLong as error:
        raise DataError("the header is too long", "check that the file is CSV", file=name) from error
    if not is_unicode("".join(header)):
        raise DataError("the header is invalid UTF-8", "save the file as UTF-8", file=name)
    twice = next((field for i, field in enumerate(header) if field and field in header[:i]), None)
    if twice is not None:
        raise DataError("two columns have this name", "rename one", file=name, field=twice)
    return header


def separator_of(head: bytes) -> str:
    """The separator that gives the first records the most alike numbers of fields; a comma where none does."""
    text = head.decode("utf-8", "replace")
    counts = {separator: _widths(text, separator) for separator in _SEPARATORS}
    return max(counts, key=lambda separator: counts[separator])


def _widths(text: str, separator: str) -> tuple[float, int]:
    """The share of the first records as wide as the header, where that has several fields, and its fields."""
    widths = []
    try:
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
            if cells:
                widths.append(len(cells))
            if len(widths) > _RECORDS:
                break
    except csv.Error:  # an open quote at the end of the head too
        pass
    if not widths or widths[0] < 2:
        return 0.0, 0
    return sum(width == widths[0] for width in widths) / len(widths), widths[0]
