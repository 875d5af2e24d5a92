"""Influence that is stored, entry by entry: reductions read it where it lies, without copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nncift.matrix.compiled import kernels
from nncift.matrix.compiled.entries import Entries, cover_entries, entries_gains
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.selectors import row_slices

_NONE = np.zeros(0, dtype=np.int32)
_TOGETHER = 1 << 18  # entries that a thread reads at a time


class EntriesMatrix(InfluenceMatrix):
    """A matrix whose entries are stored: all of them, or those that a sparse one has.

    Args:
        shape: (n_pool, n_target).
        function: as of `InfluenceMatrix`.
        entries: where they lie.
    """

    def __init__(self, shape: tuple[int, int], function: Callable[[Any, Any], np.ndarray], entries: Entries) -> None:
        super().__init__(shape, function)
        self._entries = entries

    @property
    def stored(self) -> Entries:
        """Where the entries lie."""
        return self._entries

    def coverage_gains(self, rows: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """As `InfluenceMatrix.coverage_gains`; bitwise where all entries are stored."""
        rows, covered = self._checked(rows, covered)
        gains = np.empty(len(rows), dtype=np.float64)
        together = max(_TOGETHER // max(self.row_width, 1), 1)
        kernels.share(
            lambda piece: entries_gains(self._entries, rows[piece], covered, gains[piece]), len(rows), together
        )
        return gains

    def cover(self, rows: np.ndarray, covered: np.ndarray) -> None:
        """As `InfluenceMatrix.cover`, by the entries stored."""
        cover_entries(self._entries, rows, covered)


class StoredMatrix(EntriesMatrix):
    """All entries in one array; made by `InfluenceMatrix.from_array`.

    Args:
        array: float32 (n_pool, n_target), C-contiguous, in memory or memory-mapped.
    """

    def __init__(self, array: np.ndarray) -> None:
        starts = np.arange(array.shape[0] + 1, dtype=np.int64) * array.shape[1]
        entries = Entries(np.asarray(array).reshape(-1), starts, _NONE)
        super().__init__((array.shape[0], array.shape[1]), self._read, entries)
        self._array = array

    def _read(self, rows: Any, columns: Any) -> np.ndarray:
        by_slice = isinstance(rows, slice) or isinstance(columns, slice)
        return self._array[rows, columns] if by_slice else self._array[np.ix_(rows, columns)]


def in_memory(matrix: InfluenceMatrix) -> InfluenceMatrix:
    """The same matrix with all entries in memory, 4 bytes each; itself where they are stored already."""
    if matrix.stored is not None:
        return matrix
    values = np.empty(matrix.shape, np.float32)
    fill(values, matrix)
    return InfluenceMatrix.from_array(values)


def fill(values: np.ndarray, matrix: InfluenceMatrix) -> None:
    """Write all entries into float32 values of the matrix's shape."""
    for part in row_slices(*matrix.shape):
        values[part] = matrix.rows(part)
