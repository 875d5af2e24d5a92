"""The rows of data in memory: datasets, Arrow and pandas tables, and Python mappings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nncift.data.files.streams import ROW_BYTES
from nncift.data.rows import BATCH, Row, arrow_rows, mapping_rows
from nncift.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def is_table(source: object) -> bool:
    """Whether this is a dataset, or a table of pandas, polars or Arrow."""
    return any(hasattr(source, name) for name in ("with_format", "to_arrow", "__arrow_c_stream__", "itertuples"))


def detached(samples: Dataset) -> Dataset:
    """These samples alone, no longer mapped from a file, as they travel to another process."""
    from datasets import Dataset

    return Dataset(samples.with_format("arrow")[:], info=samples.info)


def repeatable(source: Any) -> Any:
    """The source, as a list where it can be read only once."""
    return list(source) if isinstance(source, Iterator) else source


def dataset_rows(dataset: Any, name: str, limit: int = ROW_BYTES) -> Iterator[Row]:
    """Rows of a dataset, a table, or an iterable of mappings; one of more than `limit` bytes is a bad row.

    Raises:
        DataError: the table has no rows that can be read.
    """
    if hasattr(dataset, "with_format"):
        if not hasattr(dataset, "__len__"):  # an IterableDataset
            return mapping_rows(dataset, name, limit)
        return arrow_rows(dataset.with_format("arrow").iter(BATCH), name, limit)  # Python rows would decode images
    if hasattr(dataset, "itertuples"):
        return mapping_rows(_records(dataset), name, limit)
    if is_table(dataset):
        return arrow_rows(_batches(dataset), name, limit)
    return mapping_rows(dataset, name, limit)


def _records(frame: Any) -> Iterator[dict[str, Any]]:
    """The rows of a pandas DataFrame; of Python objects, since Arrow would merge theirs."""
    columns = list(map(str, frame.columns))
    twice = next((column for i, column in enumerate(columns) if column in columns[:i]), None)
    if twice is not None:
        raise DataError("two columns have this name", "rename one", field=twice)
    for values in frame.itertuples(index=False, name=None):
        yield {column: None if _is_missing(value) else value for column, value in zip(columns, values, strict=True)}


def _is_missing(value: Any) -> bool:
    return (isinstance(value, float) and value != value) or type(value).__name__ in ("NAType", "NaTType")


def _batches(table: Any) -> Iterator[Any]:
    import pyarrow as pa

    try:
        arrow = table.to_arrow() if hasattr(table, "to_arrow") else pa.table(table)
        yield from arrow.to_batches(max_chunksize=BATCH)
    except (pa.ArrowException, TypeError) as error:
        raise DataError(f"this table cannot be read ({error})", "give a list of dicts") from error
