"""Write the samples of a pool to an Arrow file, and beside it the lists of the rows that were left out.

The file is an Arrow stream, the format of `datasets` itself, so that it is memory-mapped as it is. Rows are
buffered to batches by count and by size. Without a folder the stream goes to memory and nothing is listed.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from nncift.data.reader import Sample
from nncift.run.files import atomic_write

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLES = "samples.arrow"
_ROWS = 1000  # in a batch
_SIZE = 1 << 22  # characters in a batch, about


class PoolWriter:
    """Takes samples and left-out rows one by one; `finish` gives the pool.

    Used as a context: leaving it before `finish` leaves no file behind.

    Args:
        folder: where the files go; None for memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rows = 0
        self.rejected: IO[str] | None = None
        self._excluded: IO[str] | None = None
        self._duplicates: IO[str] | None = None  # with the pool's row number, until the ids can be looked up
        self._batch: list[tuple[Any, ...]] = []
        self._size = 0

    def __enter__(self) -> PoolWriter:
        import pyarrow as pa

        self._files = contextlib.ExitStack()
        self._sink = pa.BufferOutputStream()
        if self.folder is not None:
            self.rejected = self._files.enter_context(_text_file(self.folder / "rejected.jsonl"))
            self._excluded = self._files.enter_context(_text_file(self.folder / "excluded.jsonl"))
            self._sink = self._files.enter_context(_file(self.folder / SAMPLES))
            self._duplicates = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self.folder)
        self._columns = pa.schema(
            [
                ("id", pa.string()),
                ("prompt", pa.string()),
                ("response", pa.string()),
                ("messages", pa.string()),
                ("source_row", pa.int64()),
                ("original", pa.string()),
            ]
        )
        self._stream = self._files.enter_context(pa.ipc.new_stream(self._sink, self._columns))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._duplicates is not None:
            self._duplicates.close()
        self._files.__exit__(kind, error, trace)

    def keep(self, sample: Sample, identity: str) -> None:
        """Add a sample to the pool under this id."""
        text = sample.text
        self._batch.append((identity, text.prompt, text.response, text.messages, sample.position, sample.row.text))
        self._size += len(text.prompt) + len(text.response) + len(text.messages or "") + len(sample.row.text)
        self.rows += 1
        if len(self._batch) == _ROWS or self._size > _SIZE:
            self._flush()

    def exclude(self, sample: Sample, why: str, test_id: str, test_file: str) -> None:
        """List a sample that also stands in a test set."""
        if self._excluded is not None:
            _write(self._excluded, _place(sample) | {"why": why, "test_id": test_id, "test_file": test_file})

    def drop_duplicate(self, sample: Sample, pool_row: int) -> None:
        """List a sample that is already in the pool, as its row `pool_row`."""
        if self._duplicates is not None:
            _write(self._duplicates, _place(sample) | {"same_as": pool_row})

    def finish(self) -> Dataset:
        """Complete the files and open the pool."""
        from datasets import Dataset

        self._flush()
        self._files.close()
        if self.folder is None or self._duplicates is None:
            return Dataset.from_buffer(self._sink.getvalue())
        pool = Dataset.from_file(str(self.folder / SAMPLES))
        ids = pool.data.column("id")
        self._duplicates.seek(0)
        with _text_file(self.folder / "duplicates.jsonl") as listed:
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


def _write(file: IO[str], entry: dict[str, Any]) -> None:
    file.write(json.dumps(entry, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def _file(path: Path) -> Iterator[IO[bytes]]:
    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        yield handle


@contextlib.contextmanager
def _text_file(path: Path) -> Iterator[IO[str]]:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as handle:
        yield handle
