"""Row and column selectors of an influence matrix, and the rows that a reduction reads at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Selector = slice | int | np.ndarray

TILE = 1 << 22
"""Entries of the largest block that a reduction reads, unless one row is longer."""


def bounded(selector: Any, n: int) -> Any:
    """`selector` as a slice with both ends and step 1, or as int64 indices in 0 <= i < n."""
    if isinstance(selector, slice):
        start, stop, step = selector.indices(n)
        return slice(start, max(start, stop)) if step == 1 else np.arange(start, stop, step)
    indices = np.atleast_1d(np.asarray(selector))
    if (indices.dtype.kind not in "iu" and indices.size) or indices.ndim != 1:
        raise IndexError(f"a selector is a slice, an integer or a list of integers, not {selector!r}")
    if indices.size and not (indices.min() >= 0 and indices.max() < n):
        raise IndexError(f"index {indices.min() if indices.min() < 0 else indices.max()} is out of range for {n}")
    return np.ascontiguousarray(indices, dtype=np.int64)


def indices_of(selector: Any) -> np.ndarray:
    """What `bounded` returned, as int64 indices."""
    return np.arange(selector.start, selector.stop) if isinstance(selector, slice) else selector


def length(selector: Any) -> int:
    """Rows or columns of what `bounded` returned."""
    return selector.stop - selector.start if isinstance(selector, slice) else len(selector)


def row_slices(rows: int, columns: int) -> Iterator[slice]:
    """Slices over `rows` whose blocks have at most TILE entries, or one row each."""
    step = max(1, TILE // max(1, columns))
    return (slice(top, min(top + step, rows)) for top in range(0, rows, step))
