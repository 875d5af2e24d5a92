"""The first rows of a source, and an estimate of how many it has: a dry run of a large pool reads no more.

The number of rows is exact for a source that ends before the limit, for Parquet and for data in memory. Of other files
it is the size of the files over that of a row. While a source is read as a whole, `RowEstimate` is the total of the
progress bar.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from nncift.data.files.streams import PACKINGS, suffix
from nncift.data.rows import Row
from nncift.data.sources.sources import Source

_FIRST = 1000  # rows that all count in an estimate
_EACH = 100  # of those after them, one counts
_COLUMNS = (".csv", ".tsv")  # the names of the fields stand in the first line alone


class FirstRows:
    """At most so many rows of a source.

    Args:
        source: the source.
        limit: rows that are read at most.

    Attributes:
        source: the source of the first rows, to be read once.
        read: rows read so far.
        ended: whether these are all.
    """

    def __init__(self, source: Source, limit: int) -> None:
        self._whole, self._limit = source, limit
        self._known = _known_rows(source)
        self._size = sum(path.stat().st_size for path in source.paths)
        limited = self._known is not None or self._size > 0  # of others the number stays unknown
        self.source = replace(source, rows=self._rows, hash_files=list) if limited else source
        self.read, self.ended = 0, not limited
        self._texts: list[str] = []

    def _rows(self) -> Iterator[Row]:
        rows = self._whole.rows()
        self.read, self._texts = 0, []
        for row in islice(rows, self._limit):
            self.read += 1
            self._texts.append(_stored(row))
            yield row
        self.ended = next(iter(rows), None) is None

    @property
    def rows(self) -> int:
        """Rows of the whole source, estimated."""
        if self.ended:
            return self.read
        if self._known is not None:
            return max(self._known, self.read)
        text = "\n".join(self._texts).encode(errors="replace")
        packed = any(path.suffix.lower() in PACKINGS for path in self._whole.paths)
        size = len(zlib.compress(text, 6)) if packed else len(text) + 1
        return max(round(self._size * self.read / size), self.read)


class RowEstimate:
    """How many rows a source has, while it is read from start to end.

    Args:
        source: the source.

    Attributes:
        rows: of the whole source; None as long as nothing is known.
    """

    def __init__(self, source: Source) -> None:
        self.rows = _known_rows(source)
        self._size = 0 if self.rows is not None else sum(path.stat().st_size for path in source.paths)
        self._packed = any(path.suffix.lower() in PACKINGS for path in source.paths)
        self._first: list[str] = []  # texts of rows that are looked at, until the first estimate
        self._looked_at, self._bytes, self._ratio = 0, 0, 1.0

    def look(self, row: Row, read: int) -> None:
        """Take a row into account: the first ones, then every hundredth; `read` rows were read with it."""
        if not self._size or (read > _FIRST and read % _EACH):
            return
        text = _stored(row)
        self._looked_at += 1
        self._bytes += len(text.encode(errors="replace")) + 1
        if read < _FIRST:
            self._first.append(text)
        elif read == _FIRST and self._packed:
            packed = zlib.compress("\n".join(self._first).encode(errors="replace"), 6)
            self._ratio = len(packed) / max(self._bytes, 1)
        if read >= _FIRST:
            self._first.clear()
            self.rows = max(round(self._size * self._looked_at / (self._bytes * self._ratio)), read)


def _stored(row: Row) -> str:
    """The row about as its file has it."""
    if row.values is not None and suffix(Path(row.file)) in _COLUMNS:
        return ",".join(str(value) for value in row.values.values())
    return row.text


def _known_rows(source: Source) -> int | None:
    """The number of rows where the source has it without being read."""
    if source.count is not None:
        return source.count
    if not source.paths or any(path.suffix.lower() != ".parquet" for path in source.paths):
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return sum(int(pq.read_metadata(path).num_rows) for path in source.paths)
    except (pa.ArrowException, OSError):  # reading it names what is wrong
        return None
