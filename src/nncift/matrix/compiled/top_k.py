"""The k largest entries of each line of a matrix, in one pass: of factors, or of blocks that come one after another.

Entries not below a line's threshold are appended to its buffer of 2 k places. A full one is cut to its k largest by
selection (Hoare's "Find", 1961), and the least of these is the new threshold. So an entry costs an append and a share
of few selections, however large k is, where a heap would take log k steps, each with a branch that cannot be predicted.

Value and row of an entry are one 64-bit key, whose order is that of the values, and of equal values that of the rows,
the lower one first.
"""

from __future__ import annotations

import numpy as np

from nncift.matrix.compiled import kernels
from nncift.matrix.compiled.factored import LANES, Factors, compiled

NO_ROW = np.int32(np.iinfo(np.int32).max)
_PIECE = 96  # rows scored together
_SIGN, _ALL, _LOW = np.uint32(1 << 31), np.uint32((1 << 32) - 1), np.uint64((1 << 32) - 1)
_HALF = np.uint64(32)
_EVERY = slice(None)


@compiled
def keep_top_k(factors: Factors, picked: np.ndarray, columns: np.ndarray, values: np.ndarray, rows: np.ndarray) -> None:
    """The k largest entries of each column of the factors among the picked rows.

    Args:
        factors: of product units.
        picked: rows, int64 (n,), without repetition.
        columns: where the results of each column of the factors go, int64 (n_columns,).
        values: float32 (any number, k): gets the entries, in no order but the least one first; -inf where fewer than k
            were picked.
        rows: int32 likewise: gets the row of each entry; `NO_ROW` where there is none.
    """
    k = values.shape[1]
    keys, counts = np.empty((factors.n_columns, 2 * k), dtype=np.uint64), np.zeros(factors.n_columns, dtype=np.int64)
    least = np.full((factors.columns.shape[0], LANES), np.inf, dtype=np.float32)
    for j in range(factors.n_columns):
        least[j // LANES, j % LANES] = -np.inf
    for first in range(0, len(picked), _PIECE):
        part = picked[first : first + _PIECE]
        gathered, constants, tile = kernels.gather(factors, part)
        bits = tile.view(np.uint32)
        for b in range(factors.columns.shape[0]):
            kernels.score_block(gathered, constants, factors.columns[b], 0, 0, tile)
            for r in range(len(part)):
                candidates = 0
                for lane in range(LANES):
                    candidates += tile[r, lane] >= least[b, lane]
                if candidates == 0:
                    continue
                row = np.uint64(_ALL - np.uint32(part[r]))
                for lane in range(LANES):
                    if tile[r, lane] >= least[b, lane]:
                        j = b * LANES + lane
                        keys[j, counts[j]] = (np.uint64(_ordered(bits[r, lane])) << _HALF) | row
                        counts[j] += 1
                        if counts[j] == 2 * k:
                            _select(keys[j], k)
                            counts[j] = k
                            least[b, lane] = _value_of(keys[j, k - 1])
    for j in range(factors.n_columns):
        _write(keys[j], counts[j], values[columns[j]], rows[columns[j]])


class LargestEntries:
    """The k largest entries of each of some lines so far.

    Args:
        lines: how many.
        k: entries to keep of each.
        above: float32 (lines,): entries that are not larger are left out; all count unless given.
    """

    def __init__(self, lines: int, k: int, above: np.ndarray | None = None) -> None:
        self._k = k
        self._keys, self._counts = np.empty((lines, 2 * k), dtype=np.uint64), np.zeros(lines, dtype=np.int64)
        self._least = np.full(lines, -np.inf, np.float32)
        if above is not None:
            self._least = np.nextafter(above.astype(np.float32), np.float32(np.inf))

    def add(self, block: np.ndarray, first: int, lines: slice = _EVERY) -> None:
        """Look at the entries first, first + 1, ... of some lines, block by block in any order.

        Args:
            block: float32 (lines, entries), C-contiguous.
            first: place of its first entry; places are below 2^32.
            lines: which of the lines, all unless given.
        """
        _add_block(block, first, self._keys[lines], self._counts[lines], self._least[lines])

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Values, float32 (lines, k), largest first, and places, int64; of equal values the lower place first.

        -inf and -1 where a line has fewer.
        """
        values = np.full((len(self._keys), self._k), -np.inf, np.float32)
        places = np.full((len(self._keys), self._k), -1, np.int64)
        for line, count in enumerate(self._counts.tolist()):
            keys = np.sort(self._keys[line, :count])[::-1][: self._k]
            _decode(keys, values[line], places[line])
        return values, places


@compiled
def _add_block(block: np.ndarray, first: int, keys: np.ndarray, counts: np.ndarray, least: np.ndarray) -> None:
    k, bits = keys.shape[1] // 2, block.view(np.uint32)
    for i in range(block.shape[0]):
        threshold, count = least[i], counts[i]
        for j in range(block.shape[1]):
            if block[i, j] >= threshold:
                ordered = _ordered(bits[i, j]) if block[i, j] != 0 else _SIGN  # as of 0, which -0 is equal to
                keys[i, count] = (np.uint64(ordered) << _HALF) | np.uint64(_ALL - np.uint32(first + j))
                count += 1
                if count == 2 * k:
                    _select(keys[i], k)
                    count, threshold = k, _value_of(keys[i, k - 1])
        least[i], counts[i] = threshold, count


@compiled
def _decode(keys: np.ndarray, values: np.ndarray, places: np.ndarray) -> None:
    for place, key in enumerate(keys):
        values[place], places[place] = _value_of(key), np.int64(_ALL - np.uint32(key & _LOW))


@compiled
def keep_largest_of_each(factors: Factors, out: np.ndarray) -> None:
    """Which row has the largest entry of each column, int64 (n_columns,); of equal ones the lowest row."""
    n = len(factors.rows)
    largest = np.full((factors.columns.shape[0], LANES), -np.inf, dtype=np.float32)
    found = np.zeros((factors.columns.shape[0], LANES), dtype=np.int32)
    for first in range(0, n, _PIECE):
        part = np.arange(first, min(first + _PIECE, n))
        gathered, constants, tile = kernels.gather(factors, part)
        for b in range(factors.columns.shape[0]):
            kernels.score_block(gathered, constants, factors.columns[b], 0, 0, tile)
            for r in range(len(part)):
                row = np.int32(first + r)
                for lane in range(LANES):
                    larger = tile[r, lane] > largest[b, lane]
                    largest[b, lane] = tile[r, lane] if larger else largest[b, lane]
                    found[b, lane] = row if larger else found[b, lane]
    for j in range(factors.n_columns):
        out[j] = found[j // LANES, j % LANES]


@compiled
def _ordered(bits: int) -> int:
    """Bits of a float32 whose order as integers is that of the numbers."""
    return bits ^ (_ALL if bits & _SIGN else _SIGN)  # type: ignore[return-value]


@compiled
def _value_of(key: int) -> float:
    ordered = np.uint32(key >> _HALF)
    return np.uint32(ordered ^ (_SIGN if ordered & _SIGN else _ALL)).view(np.float32)  # type: ignore[return-value]


@compiled
def _select(keys: np.ndarray, k: int) -> None:
    """Bring the k largest keys (all differ) to the front, the least of them to place k - 1."""
    low, high = 0, len(keys) - 1
    while low < high:
        middle = (low + high) // 2
        for one, other in ((low, middle), (low, high), (middle, high)):  # the median of three to the middle
            if keys[one] < keys[other]:
                keys[one], keys[other] = keys[other], keys[one]
        pivot = keys[middle]
        keys[middle], keys[high] = keys[high], pivot
        end = low
        for place in range(low, high):  # without branches, which nothing could predict
            key = keys[place]
            keys[place] = keys[end]
            keys[end] = key
            end += key > pivot
        keys[end], keys[high] = keys[high], keys[end]
        if end == k - 1:
            return
        low, high = (low, end - 1) if end > k - 1 else (end + 1, high)


@compiled
def _write(keys: np.ndarray, count: int, values: np.ndarray, rows: np.ndarray) -> None:
    """Write the largest of `count` keys, the least one first; places that stay empty come before it."""
    k = len(values)
    if count > k:
        _select(keys[:count], k)
    kept = min(count, k)
    values[: k - kept] = -np.inf
    rows[: k - kept] = NO_ROW
    for place in range(kept):
        values[k - kept + place] = _value_of(keys[place])
        rows[k - kept + place] = np.int32(_ALL - np.uint32(keys[place] & _LOW))
    for place in range(k - kept + 1, k):
        if values[place] < values[k - kept]:
            values[place], values[k - kept] = values[k - kept], values[place]
            rows[place], rows[k - kept] = rows[k - kept], rows[place]
