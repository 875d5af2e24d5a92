"""Influence that is stored, entry by entry: reductions read it where it lies, without copies."""

from __future__ import annotations

from typing import Any

import numpy as np

from nncift.matrix import kernels
from nncift.matrix.lazy import Entries, entries_gains
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.selectors import row_slices

_NONE = np.zeros(0, dtype=np.int32)


class StoredMatrix(InfluenceMatrix):
    """All entries in one array; made by `InfluenceMatrix.from_array`.

    Args:
        array: float32 (n_pool, n_target), C-contiguous, in memory or memory-mapped.
    """

    def __init__(self, array: np.ndarray) -> None:
        super().__init__((array.shape[0], array.shape[1]), self._read)
        self._array = array
        starts = np.arange(array.shape[0] + 1, dtype=np.int64) * array.shape[1]
        self._entries = Entries(np.asarray(array).reshape(-1), starts, _NONE)

    def _read(self, rows: Any, columns: Any) -> np.ndarray:
        by_slice = isinstance(rows, slice) or isinstance(columns, slice)
        return self._array[rows, columns] if by_slice else self._array[np.ix_(rows, columns)]

    @property
    def stored(self) -> Entries:
        """The array as it lies."""
        return self._entries

    def coverage_gains(self, rows: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """As `InfluenceMatrix.coverage_gains`, bitwise."""
        rows, covered = self._checked(rows, covered)
        gains = np.empty(len(rows), dtype=np.float64)
        kernels.share(lambda piece: entries_gains(self._entries, rows[piece], covered, gains[piece]), len(rows))
        return gains


def in_memory(matrix: InfluenceMatrix) -> InfluenceMatrix:
    """The same matrix with all entries in memory, 4 bytes each; itself where they are stored already."""
    if matrix.stored is not None:
        return matrix
    values = np.empty(matrix.shape, np.float32)
    for part in row_slices(*matrix.shape):
        values[part] = matrix.rows(part)
    return InfluenceMatrix.from_array(values)
