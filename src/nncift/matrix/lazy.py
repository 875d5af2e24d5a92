"""Lazy greedy's queue for coverage, compiled: of a matrix that is stored, entry by entry or as a sparse one's lists.

The candidate with the highest upper bound is evaluated alone until the best one is up to date (Minoux, 1978). From a
stored matrix a gain costs the reading of its row, so nothing is gained by evaluating many at a time, which is what a
matrix computed on access asks for, and what the interpreter's queue in `selection.greedy` does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nncift.matrix.factored import LANES, compiled
from nncift.matrix.kernels import add_gains


class Entries(NamedTuple):
    """Stored influence: all entries, or those that a sparse matrix has, row by row."""

    values: np.ndarray  # float32 (n_pool * n_target,), or (number of entries,)
    starts: np.ndarray  # int64 (n_pool + 1,): where each row begins
    columns: np.ndarray  # int32 (number of entries,); empty if all entries are stored


class CoverageQueue:
    """Candidates in the order of their gains per cost over the present coverage.

    Args:
        entries: influence.
        covered: coverage of each target, float32 (n_target,), which the objective changes in place.
        modular: what each sample adds besides, float64 (n_pool,), which the objective may change in place.
        gains: upper bounds of the gains, float64 (n_pool,), replaced in place where evaluated.
        order: the candidates, int64 (k,); of equal gains the earlier one comes first.
        costs: of each sample, float64 (n_pool,), above 0.

    Attributes:
        work: gains evaluated.
    """

    def __init__(
        self,
        entries: Entries,
        covered: np.ndarray,
        modular: np.ndarray,
        gains: np.ndarray,
        order: np.ndarray,
        costs: np.ndarray,
    ) -> None:
        self.work = 0
        self._entries, self._covered, self._modular = entries, covered, modular
        self._gains, self._order, self._costs = gains, np.ascontiguousarray(order), costs
        self._keys = gains[order] / costs[order]
        self._heap = np.lexsort((np.arange(len(order)), -self._keys))  # places in the order: sorted, hence a heap
        self._size, self._evaluated = len(order), np.zeros(len(gains), dtype=np.int64)

    def best(self, step: int, room: float) -> int | None:
        """Take out the candidate with the largest gain per cost among those that cost `room` at most.

        Args:
            step: size of the subset, which `covered` belongs to; 0 for the one that the gains are of.
            room: those that cost more are dropped.
        """
        found, self._size, work = _best(  # type: ignore[no-untyped-call]
            self._entries,
            (self._covered, self._modular),
            (self._gains, self._evaluated, self._keys),
            (self._order, self._costs),
            (self._heap, self._size),
            (step, float(room)),
        )
        self.work += work
        return None if found < 0 else int(found)


@compiled
def _best(entries, state, bounds, candidates, queue, now):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    (covered, modular), (gains, evaluated, keys), (order, costs) = state, bounds, candidates
    (heap, size), (step, room) = queue, now
    sums, work = np.empty(LANES, dtype=np.float64), 0
    while size > 0:
        place = heap[0]
        i = order[place]
        if costs[i] <= room:
            if evaluated[i] == step or gains[i] <= 0:
                return i, _drop_first(heap, size, keys), work
            gains[i] = _gain(entries, i, covered, sums) + modular[i]
            evaluated[i] = step
            keys[place] = gains[i] / costs[i]
            _sift_down(heap, size, keys)
            work += 1
        else:
            size = _drop_first(heap, size, keys)
    return -1, 0, work


@compiled
def _gain(entries: Entries, i: int, covered: np.ndarray, sums: np.ndarray) -> float:
    """Sum over targets of max(0, entry - covered); of all entries with the additions of `kernels.coverage_gains`."""
    row = entries.values[entries.starts[i] : entries.starts[i + 1]]
    if len(entries.columns) == 0:
        sums[:] = 0
        for first in range(0, len(row), LANES):
            add_gains(row[first : first + LANES], covered[first : first + LANES], sums)
        return sums.sum()  # type: ignore[no-any-return]
    total, columns = 0.0, entries.columns[entries.starts[i] : entries.starts[i + 1]]
    for place in range(len(row)):
        gain = row[place] - covered[columns[place]]
        total += gain if gain > 0 else 0.0
    return total


@compiled
def entries_gains(entries: Entries, rows: np.ndarray, covered: np.ndarray, out: np.ndarray) -> None:
    """`coverage_gains` of some rows (int64), into float64 (len(rows),)."""
    sums = np.empty(LANES, dtype=np.float64)
    for place in range(len(rows)):
        out[place] = _gain(entries, rows[place], covered, sums)


@compiled
def _sift_down(heap: np.ndarray, size: int, keys: np.ndarray) -> None:
    """Put the first one where it belongs: the largest key first, of equal ones the lower place."""
    moved, at = heap[0], 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _before(heap[child + 1], heap[child], keys):
            child += 1
        if not _before(heap[child], moved, keys):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = moved


@compiled
def _drop_first(heap: np.ndarray, size: int, keys: np.ndarray) -> int:
    heap[0] = heap[size - 1]
    _sift_down(heap, size - 1, keys)
    return size - 1


@compiled
def _before(a: int, b: int, keys: np.ndarray) -> bool:
    return keys[a] > keys[b] or (keys[a] == keys[b] and a < b)  # type: ignore[no-any-return]
