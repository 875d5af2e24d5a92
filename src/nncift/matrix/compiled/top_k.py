"""The k largest entries of each column of a block of scores, in one pass.

Entries not below a column's threshold are appended to its buffer of 2 k places. A full one is cut to its k largest by
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
