"""Which rows two pools share, by content.

A row is the same where its texts are (those that `data.reader.content_hash` reads), or else where its original row is,
which other options may have read otherwise. Of equal rows in one pool, the first is matched with the other's first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.data.reader import content_hash, short_hash
from nncift.data.schemas import Text
from nncift.run.progress import advance

if TYPE_CHECKING:
    from datasets import Dataset

_TEXTS = ("prompt", "response", "messages", "tools")
_BATCH = 4096


def matched(pool: Dataset, other: Dataset) -> np.ndarray:
    """The row in `pool` of each row of `other`, int64 (n_other,); -1 where it has none.

    Args:
        pool: as `load_pool` returns it.
        other: likewise.
    """
    if len(pool) == len(other) and all(_equal(pool, other, name) for name in (*_TEXTS, "original")):
        return np.arange(len(pool))
    place = _places(_keys(pool, np.arange(len(pool)), _content), _keys(other, np.arange(len(other)), _content))
    missing = np.flatnonzero(place < 0)
    free = np.setdiff1d(np.arange(len(pool)), place)
    if len(missing) and len(free):
        found = _places(_keys(pool, free, _original), _keys(other, missing, _original))
        place[missing] = np.where(found < 0, -1, free[found])
    return place


def _equal(one: Dataset, other: Dataset, column: str) -> bool:
    ours, theirs = (some.data.column(column) if column in some.column_names else None for some in (one, other))
    if ours is None or theirs is None:
        return ours is theirs
    return bool(ours.equals(theirs))


def _content(row: Mapping[str, Any]) -> int:
    return content_hash(Text(*(row.get(name) for name in _TEXTS)))  # type: ignore[arg-type]


def _original(row: Mapping[str, Any]) -> int:
    return short_hash(row["original"])


def _keys(pool: Dataset, rows: np.ndarray, key: Callable[[Mapping[str, Any]], int]) -> Iterator[int]:
    """The key of each of these rows, (n,) ascending."""
    names = [name for name in (*_TEXTS, "original") if name in pool.column_names]
    some = pool.select_columns(names)
    for start in range(0, len(rows), _BATCH):
        batch = some[rows[start : start + _BATCH]]
        for values in zip(*(batch[name] for name in names), strict=True):
            yield key(dict(zip(names, values, strict=True)))
        advance(len(batch["original"]))


def _places(keys: Iterator[int], others: Iterator[int]) -> np.ndarray:
    """Where each of the other keys is among the first ones, each of which is taken once; -1 where it is not."""
    first: dict[int, int] = {}
    known = np.fromiter(keys, np.int64)
    following = np.full(len(known), -1)  # of each row, the next one with its key
    for row in range(len(known) - 1, -1, -1):
        following[row] = first.get(int(known[row]), -1)
        first[int(known[row])] = row
    found = []
    for key in others:
        row = first.get(key, -1)
        found.append(row)
        if row >= 0:
            first[key] = int(following[row])
    return np.array(found, dtype=np.int64)
