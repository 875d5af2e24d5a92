"""Lazy greedy's queue for coverage, compiled: of a matrix that is stored, entry by entry or as a sparse one's lists.

The candidate with the highest upper bound is evaluated alone until the best one is up to date (Minoux, 1978). From a
stored matrix a gain costs the reading of its row, so nothing is gained by evaluating many at a time, which is what a
matrix computed on access asks for, and what the interpreter's queue in `selection.greedy` does.

After the first samples, though, nearly every candidate's bound is above what is left of its gain, and evaluating one
after the other would jump through memory. So where a small share of the candidates has been evaluated in a step without
an end, all whose bound reaches the best gain so far are evaluated, in the order in which they lie, on all threads.
"""

from __future__ import annotations

import numpy as np

from nncift.matrix.compiled import kernels
from nncift.matrix.compiled.entries import Entries, Lists, listed_gain, listed_gains, no_lists
from nncift.matrix.compiled.factored import LANES, compiled

_ALONE = 128  # one in so many candidates of the queue is evaluated alone in a step
_LEAST_ALONE = 32
_TOGETHER = 1 << 20  # entries that a thread reads at a time
_NONE, _MORE = -1, -2  # in place of a candidate: there is none; many are to be evaluated first


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
        self._lists = no_lists(entries, len(covered))

    def best(self, step: int, room: float) -> int | None:
        """Take out the candidate with the largest gain per cost among those that cost `room` at most.

        Args:
            step: size of the subset, which `covered` belongs to; 0 for the one that the gains are of.
            room: those that cost more are dropped.
        """
        alone = max(self._size // _ALONE, _LEAST_ALONE)
        found = _MORE
        while found == _MORE:
            found, self._size, work, least = _best(  # type: ignore[no-untyped-call]
                (*self._entries, *self._lists),
                (self._covered, self._modular),
                (self._gains, self._evaluated, self._keys),
                (self._order, self._costs),
                (self._heap, self._size),
                (step, float(room), alone),
            )
            self.work += work
            if found == _MORE:
                self._evaluate(step, room, least)
        return None if found == _NONE else int(found)

    def _evaluate(self, step: int, room: float, least: float) -> None:
        """Evaluate all candidates whose bound per cost is at least `least`."""
        places = self._heap[: self._size]
        places = places[self._keys[places] >= least]
        rows = self._order[places]
        stale = np.flatnonzero((self._evaluated[rows] != step) & (self._costs[rows] <= room))
        stale = stale[np.argsort(rows[stale])]
        rows, gains = rows[stale], np.empty(len(stale))
        width = len(self._entries.values) // len(self._evaluated)
        kernels.share(
            lambda piece: listed_gains(self._entries, self._lists, rows[piece], self._covered, gains[piece]),
            len(rows),
            max(_TOGETHER // max(width, 1), 1),
        )
        self._gains[rows] = gains + self._modular[rows]
        self._evaluated[rows] = step
        self._keys[places[stale]] = self._gains[rows] / self._costs[rows]
        _make_heap(self._heap, self._size, self._keys)
        self.work += len(rows)


@compiled
def _best(influence, state, bounds, candidates, queue, now):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """The best candidate or what stands for it, the size of the queue, gains evaluated, and the best of these."""
    entries, lists = Entries(*influence[:3]), Lists(*influence[3:])
    (covered, modular), (gains, evaluated, keys), (order, costs) = state, bounds, candidates
    (heap, size), (step, room, alone) = queue, now
    sums, work, best = np.empty(LANES, dtype=np.float64), 0, 0.0
    while size > 0:
        place = heap[0]
        i = order[place]
        if costs[i] <= room:
            if evaluated[i] == step or gains[i] <= 0:
                return i, _drop_first(heap, size, keys), work, best
            if work == alone:
                return _MORE, size, work, best
            gains[i] = listed_gain(entries, lists, i, covered, sums) + modular[i]
            evaluated[i] = step
            keys[place] = gains[i] / costs[i]
            best = max(best, keys[place])
            _sift_down(heap, 0, size, keys)
            work += 1
        else:
            size = _drop_first(heap, size, keys)
    return _NONE, 0, work, best


@compiled
def _make_heap(heap: np.ndarray, size: int, keys: np.ndarray) -> None:
    for at in range(size // 2 - 1, -1, -1):
        _sift_down(heap, at, size, keys)


@compiled
def _sift_down(heap: np.ndarray, at: int, size: int, keys: np.ndarray) -> None:
    """Put the one at `at` where it belongs: the largest key first, of equal ones the lower place."""
    moved = heap[at]
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
    _sift_down(heap, 0, size - 1, keys)
    return size - 1


@compiled
def _before(a: int, b: int, keys: np.ndarray) -> bool:
    return keys[a] > keys[b] or (keys[a] == keys[b] and a < b)  # type: ignore[no-any-return]
