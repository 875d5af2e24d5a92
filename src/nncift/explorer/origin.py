"""The columns that the rows of the source had beside their texts, as far as each holds a single short value."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.run.options.quotas import value_text
from nncift.run.progress import advance

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

MOST_COLUMNS = 20
_LONGEST = 80  # characters of a value
_BATCH = 4096
_NAME = 40  # characters of a column's name
_UNSAFE = re.compile(r"[^\w .\-]|^_+")  # of a name: DuckDB and the page take the others as they are


def source_columns(pool: Dataset, taken: Iterable[str], texts: Iterable[str] = ()) -> dict[str, pa.ChunkedArray]:
    """The columns whose values are numbers, truth values and short texts, by a name that is not taken.

    A column with numbers alone stays one, less NaN and infinities, which have no place in a histogram; any other holds
    texts. Of more than `MOST_COLUMNS`, the first.

    Args:
        pool: as `load_pool` returns it.
        taken: names of other columns; letters count alike in upper and lower case.
        texts: fields that the samples are made of, which are left out, as the id is.
    """
    import pyarrow as pa

    chunks: dict[str, list[pa.Array]] = {}
    refused = {"id", *texts}
    done = 0
    some = pool.select_columns(["original"])
    for start in range(0, len(pool), _BATCH):
        rows = [json.loads(text) for text in some[start : start + _BATCH]["original"]]
        for name in dict.fromkeys(name for row in rows for name in row):
            if name in refused or (name not in chunks and len(chunks) == MOST_COLUMNS):
                continue
            values = [row.get(name) for row in rows]
            if not all(_is_short(value) for value in values):
                refused.add(name)
                chunks.pop(name, None)
                continue
            chunks.setdefault(name, [pa.nulls(done)] if done else []).append(_array(values))
        done += len(rows)
        for known in chunks.values():
            if sum(map(len, known)) < done:
                known.append(pa.nulls(len(rows)))
        advance(len(rows))
    names = {name.casefold() for name in taken}
    found = {}
    for name, parts in chunks.items():
        if any(part.null_count < len(part) for part in parts):
            found[_free_name(name, names)] = _joined(parts)
    return found


def _is_short(value: Any) -> bool:
    return not isinstance(value, list | dict) and (not isinstance(value, str) or len(value) <= _LONGEST)


def _array(values: list[Any]) -> pa.Array:
    """Numbers where all values are, else texts."""
    import pyarrow as pa

    if all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values):
        with contextlib.suppress(OverflowError):  # JSON's whole numbers have no end
            numbers = np.array([np.nan if value is None else float(value) for value in values], np.float64)
            return pa.array(numbers, mask=~np.isfinite(numbers))
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    return value_text(value).encode("utf-8", "replace").decode("utf-8")  # a lone surrogate


def _joined(parts: list[pa.Array]) -> pa.ChunkedArray:
    import pyarrow as pa

    types = {part.type for part in parts if not pa.types.is_null(part.type)}
    common = pa.float64() if types == {pa.float64()} else pa.string()
    return pa.chunked_array([_as_text(part) if common == pa.string() else part.cast(common) for part in parts])


def _as_text(part: pa.Array) -> pa.Array:
    """Numbers as JSON writes them."""
    import pyarrow as pa

    if pa.types.is_floating(part.type):
        values = (None if v is None else int(v) if v.is_integer() else v for v in part.to_pylist())
        return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
    return part.cast(pa.string())


def _free_name(name: str, taken: set[str]) -> str:
    """A name that DuckDB takes, other than those taken, which it joins."""
    plain = _UNSAFE.sub("_", name)[:_NAME].strip(" _") or "column"
    found, number = plain, 1
    if found.casefold() in taken:
        plain = found = f"source {plain}"
    while found.casefold() in taken:
        number += 1
        found = f"{plain} {number}"
    taken.add(found.casefold())
    return found
