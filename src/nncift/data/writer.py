"""Write the samples of a pool to an Arrow file, and the removed rows to lists next to it.

The file is an Arrow stream, the native format of `datasets`, so it can be memory-mapped. Rows are buffered into batches
by count and size. Without a folder the stream goes to memory and nothing is listed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from nncift.data.reader import Sample
from nncift.data.rows import json_text
from nncift.run.folder.parts import SampleFolder
from nncift.run.storage.checksums import verify
from nncift.run.storage.files import atomic_write

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("id", "prompt", "response", "messages", "tools", "turns", "source", "source_row", "original")
_ROWS = 1000  # in a batch
_SIZE = 1 << 22  # characters in a batch, about


class PoolWriter:
    """Takes samples and removed rows one by one; `finish` returns the pool.

    Leaving the context before `finish` removes the files; without `files` the pool is in memory.
    """

    def __init__(self, files: SampleFolder | None) -> None:
        self.files = files
        self.rows = 0
        self._read = 0  # rows of the sources of samples that were copied
        self._copied_duplicates: Path | None = None
        self.rejected: IO[str] | None = None
        self._excluded: IO[str] | None = None
        self._duplicates: IO[str] | None = None  # with row numbers of the pool in place of ids
        self._batch: list[tuple[Any, ...]] = []
        self._size = 0

    def __enter__(self) -> PoolWriter:
        import pyarrow as pa

        self._open = contextlib.ExitStack()
        self._sink = pa.BufferOutputStream()
        if self.files is not None:
            self.rejected = self._open.enter_context(_text_file(self.files.rejected))
            self._excluded = self._open.enter_context(_text_file(self.files.excluded))
            self._sink = self._open.enter_context(_file(self.files.samples, "wb"))
            self._duplicates = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self.files.path)
        types = {"source_row": pa.int64(), "turns": pa.list_(pa.int32())}
        self._columns = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
        self._stream = self._open.enter_context(pa.ipc.new_stream(self._sink, self._columns))
        return self

    def __exit__(self, *error: Any) -> None:
        if self._duplicates is not None:
            self._duplicates.close()
        self._open.__exit__(*error)

    def copy(self, files: SampleFolder, pool: Dataset, *, source: str, read: int) -> None:
        """Begin with the samples and the removed rows of another pool.

        Args:
            files: of that pool.
            pool: its samples.
            source: their name in the column `source`, where they have none.
            read: rows of their source, which the positions of those after them continue.
        """
        import pyarrow as pa

        for start in range(0, len(pool), _ROWS):
            part = pool.data.table.slice(start, _ROWS).combine_chunks()
            columns = []
            for field in self._columns:
                there = field.name in part.column_names
                column = part.column(field.name).cast(field.type) if there else pa.nulls(len(part), field.type)
                columns.append(column.fill_null(source) if field.name == "source" else column)
            self._stream.write_table(pa.table(columns, schema=self._columns))
        self.rows, self._read = len(pool), read
        for handle, path in ((self.rejected, files.rejected), (self._excluded, files.excluded)):
            if handle is not None and path.is_file():
                _copy_text(path, handle)
        self._copied_duplicates = files.duplicates

    def keep(self, sample: Sample, identity: str) -> None:
        """Add a sample to the pool under this id."""
        text, row = sample.text, sample.row
        self._batch.append((identity, *text, row.source, self._read + sample.position, row.text))
        self._size += len(text.prompt) + len(text.response) + len(text.messages or "") + len(row.text)
        self.rows += 1
        if len(self._batch) == _ROWS or self._size > _SIZE:
            self._flush()

    def exclude(self, sample: Sample, why: str, test_id: str, test_file: str) -> None:
        """List a sample that also occurs in a test set."""
        if self._excluded is not None:
            _write(self._excluded, _place(sample) | {"why": why, "test_id": test_id, "test_file": test_file})

    def drop_duplicate(self, sample: Sample, pool_row: int) -> None:
        """List a sample that is already in the pool, as its row `pool_row`."""
        if self._duplicates is not None:
            _write(self._duplicates, _place(sample) | {"same_as": pool_row})

    def finish(self) -> Dataset:
        """Close the files and open the pool."""
        from datasets import Dataset

        self._flush()
        self._open.close()
        if self.files is None or self._duplicates is None:
            return Dataset.from_buffer(self._sink.getvalue())
        pool = Dataset.from_file(str(self.files.samples))
        ids = pool.data.column("id")
        self._duplicates.seek(0)
        with _text_file(self.files.duplicates) as listed:
            if self._copied_duplicates is not None and self._copied_duplicates.is_file():
                _copy_text(self._copied_duplicates, listed)
            for line in self._duplicates:
                entry = json.loads(line)
                _write(listed, entry | {"same_as": ids[entry["same_as"]].as_py()})
        return pool

    def _flush(self) -> None:
        import pyarrow as pa

        if self._batch:
            columns = zip(*self._batch, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, self._columns, strict=True)]
            self._stream.write_batch(pa.record_batch(arrays, schema=self._columns))
            self._batch, self._size = [], 0


def _place(sample: Sample) -> dict[str, Any]:
    return {"id": sample.identity, "row": sample.row.number, "file": sample.row.file}


def _copy_text(path: Path, to: IO[str]) -> None:
    verify(path)
    with open(path, encoding="utf-8", newline="") as lines:
        shutil.copyfileobj(lines, to)


def _write(file: IO[str], entry: dict[str, Any]) -> None:
    file.write(json_text(entry) + "\n")


@contextlib.contextmanager
def _file(path: Path, mode: str, **options: str) -> Iterator[IO[Any]]:
    with atomic_write(path) as temporary, open(temporary, mode, **options) as handle:  # type: ignore[call-overload]
        yield handle


_text_file = functools.partial(_file, mode="w", encoding="utf-8", newline="\n")
