"""The inner loops: scoring pairs from factors, and the sums that an objective needs of them.

A register-blocked micro-kernel, vectors running over j, does one unit of 16 pairs per cycle on a core
with AVX-512, 0.6 thousand million pairs per second and core for 100 units (`benchmarks/selection.py`
measures it beside the machine's limit). The fused kernels reduce each small tile while it is in the
first-level cache; the matrix itself never reaches memory.

Every sum has one fixed order that depends neither on threads nor on tiles: over units one by one, and
over columns in 64 double-precision lanes (column j goes to lane j mod 64). Hence results are the same
bits on any number of threads, dense blocks and fused tiles agree, and, rounding being monotone, a gain
never rises by rounding while the covered vector grows: lazy greedy relies on that. Numbers must be
finite. Compiled code is cached on disk.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nncift.matrix.factored import LANES, Factors, compiled


def _thread_count() -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


THREADS = _thread_count()
"""Threads that share the work: `OMP_NUM_THREADS`, or the cores of this process."""

_PIECE = 96  # rows that one thread takes at a time, a multiple of _ROWS: with their sums they fit in L2

_FEATURES = llvm.get_host_cpu_features()
# Floats in a vector register; how many such registers of columns meet how many rows: the sums stay in registers.
_VECTOR = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx") else 4
_VECTORS = 2 if _VECTOR == 8 else 4
_ROWS = 6


def score(factors: Factors, rows: np.ndarray) -> np.ndarray:
    """Entries of some rows (int64, in range) in all columns: float32 (len(rows), n_columns)."""
    out = np.empty((len(rows), factors.n_columns), dtype=np.float32)
    _share(lambda piece: _score(factors, rows[piece], out[piece]), len(rows))
    return out


def coverage_gains(factors: Factors, rows: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Sum over columns j of max(0, entry[i, j] - covered[j]) for each i in `rows`: float64; nothing is stored."""
    out = np.empty(len(rows), dtype=np.float64)
    _share(lambda piece: _coverage_gains(factors, rows[piece], covered, out[piece]), len(rows))
    return out


def row_statistics(factors: Factors) -> tuple[np.ndarray, np.ndarray]:
    """Sum (float64) and largest entry (float32) of every row, in one pass."""
    rows = np.arange(len(factors.rows))
    sums, largest = np.empty(len(rows), dtype=np.float64), np.empty(len(rows), dtype=np.float32)
    _share(lambda piece: _row_statistics(factors, rows[piece], sums[piece], largest[piece]), len(rows))
    return sums, largest


def _share(work: Callable[[slice], None], rows: int) -> None:
    """Do `work` on all rows in pieces, by this thread and the pool's; no result depends on who does what.

    This thread takes pieces like the others and waits for none that has not begun, so a busy machine, or
    a forked process whose pool has died, costs speed alone. (OpenMP's barriers would wait a time slice.)
    """
    size = max(_ROWS, min(_PIECE, -(-rows // (THREADS * _ROWS)) * _ROWS))
    starts = iter(range(0, rows, size))

    def take() -> None:
        for start in starts:
            work(slice(start, start + size))

    helpers = [_pool().submit(take) for _ in range(min(THREADS, -(-rows // size)) - 1)]
    take()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, THREADS - 1), thread_name_prefix="nncift-kernels")


@compiled
def dense_coverage_gains(block: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """As `coverage_gains`, of a float32 block (rows, n_columns), with the same bits."""
    out = np.empty(block.shape[0], dtype=np.float64)
    for i in range(block.shape[0]):
        sums = np.zeros(LANES, dtype=np.float64)
        for first in range(0, block.shape[1], LANES):
            _add_gains(block[i, first : first + LANES], covered[first : first + LANES], sums)
        out[i] = sums.sum()
    return out


@compiled
def dense_row_statistics(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `row_statistics`, of a float32 block (rows, n_columns), with the same bits."""
    out_sums, out_largest = np.empty(block.shape[0], dtype=np.float64), np.empty(block.shape[0], dtype=np.float32)
    for i in range(block.shape[0]):
        sums, largest = np.zeros(LANES, dtype=np.float64), np.full(LANES, -np.inf, dtype=np.float32)
        for first in range(0, block.shape[1], LANES):
            _add_entries(block[i, first : first + LANES], sums, largest)
        out_sums[i] = sums.sum()
        out_largest[i] = largest.max()
    return out_sums, out_largest


@compiled
def keep_largest(block: np.ndarray, first_column: int, values: np.ndarray, indices: np.ndarray) -> None:
    """Merge a block (rows, some columns) into the largest entries of its rows so far, in place.

    Call with columns rising: of equal entries the lower column stays ahead.

    Args:
        block: float32 (rows, columns).
        first_column: what to add to a column of the block to get its index.
        values: float32 (rows, k), descending, -inf where nothing stands yet.
        indices: int64 (rows, k).
    """
    k = values.shape[1]
    for i in range(block.shape[0]):
        for j in range(block.shape[1]):
            entry = block[i, j]
            if entry > values[i, k - 1]:
                place = k - 1
                while place > 0 and entry > values[i, place - 1]:
                    values[i, place] = values[i, place - 1]
                    indices[i, place] = indices[i, place - 1]
                    place -= 1
                values[i, place] = entry
                indices[i, place] = first_column + j


@compiled
def _add_gains(entries: np.ndarray, covered: np.ndarray, sums: np.ndarray) -> None:
    for lane in range(len(covered)):
        gain = entries[lane] - covered[lane]
        sums[lane] += gain if gain > 0 else np.float32(0)


@compiled
def _add_entries(entries: np.ndarray, sums: np.ndarray, largest: np.ndarray) -> None:
    for lane in range(len(entries)):
        sums[lane] += entries[lane]
        largest[lane] = entries[lane] if entries[lane] > largest[lane] else largest[lane]


@intrinsic  # type: ignore[untyped-decorator]
def _score_group(
    typing_context: Any, rows: Any, constants: Any, columns: Any, tile: Any, positive: Any, bends: Any, units: Any
) -> Any:
    """Score _ROWS rows against one block of columns into a float32 tile (_ROWS, LANES); takes addresses.

    Written as vector code: no compiler keeps the accumulators of an outer loop in registers by itself,
    and their loads and stores would cost a fifth. Any processor can run these vectors, and the order of
    additions is the same on all.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, constants, columns, tile, positive, bends, units = arguments
        index, number, vector = positive.type, ir.FloatType(), ir.VectorType(ir.FloatType(), _VECTOR)
        undefined = ir.Constant(vector, ir.Undefined)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), _VECTOR), [0] * _VECTOR)

        def pointer(base: Any, offset: Any, kind: Any) -> Any:
            return builder.inttoptr(builder.add(base, builder.mul(offset, index(4))), kind.as_pointer())

        def broadcast(base: Any, offset: Any) -> Any:
            scalar = builder.load(pointer(base, offset, number))
            return builder.shuffle_vector(
                builder.insert_element(undefined, scalar, ir.IntType(32)(0)), undefined, zeros
            )

        def joined(kind: str, left: Any, right: Any, total: Any) -> Any:
            if kind != "*":  # "<" and ">": which of the two is taken
                return builder.fadd(total, builder.select(builder.fcmp_ordered(kind, left, right), left, right))
            product = builder.fmul(left, right, flags=("contract",))  # to one multiply-add where there is one
            return builder.fadd(total, product, flags=("contract",))

        def add_units(start: Any, stop: Any, kind: str, sums: dict[tuple[int, int], Any], lanes: range) -> None:
            with cgutils.for_range_slice(builder, start, stop, index(1), index) as (k, _):
                block = builder.mul(k, index(LANES))
                right = {
                    lane: builder.load(pointer(columns, builder.add(block, index(lane)), vector), align=4)
                    for lane in lanes
                }
                for r in range(_ROWS):
                    left = broadcast(rows, builder.add(builder.mul(units, index(r)), k))
                    for lane in lanes:
                        total = sums[r, lane]
                        builder.store(joined(kind, left, right[lane], builder.load(total)), total)

        for first in range(0, LANES, _VECTOR * _VECTORS):
            lanes = range(first, first + _VECTOR * _VECTORS, _VECTOR)
            sums = {(r, lane): cgutils.alloca_once(builder, vector) for r in range(_ROWS) for lane in lanes}
            for (r, _), total in sums.items():
                builder.store(broadcast(constants, index(r)), total)
            add_units(index(0), positive, ">", sums, lanes)
            add_units(positive, bends, "<", sums, lanes)
            add_units(bends, units, "*", sums, lanes)
            for (r, lane), total in sums.items():
                builder.store(builder.load(total), pointer(tile, index(r * LANES + lane), vector), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), codegen


@compiled
def _score_block(
    rows: np.ndarray, constants: np.ndarray, block: np.ndarray, positive: int, bends: int, tile: np.ndarray
) -> None:
    for r in range(0, rows.shape[0], _ROWS):
        _score_group(
            rows[r:].ctypes.data,
            constants[r:].ctypes.data,
            block.ctypes.data,
            tile[r:].ctypes.data,
            positive,
            bends,
            rows.shape[1],
        )


@compiled
def _gather(factors: Factors, picked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and constants side by side, the last one repeated to fill the last group, and room for a tile."""
    size = -(-len(picked) // _ROWS) * _ROWS
    rows = np.empty((size, factors.rows.shape[1]), dtype=np.float32)
    constants = np.empty(size, dtype=np.float32)
    for r in range(size):
        i = picked[min(r, len(picked) - 1)]
        rows[r] = factors.rows[i]
        constants[r] = factors.constants[i]
    return rows, constants, np.empty((size, LANES), dtype=np.float32)


@compiled
def _score(factors: Factors, picked: np.ndarray, out: np.ndarray) -> None:
    rows, constants, tile = _gather(factors, picked)
    for b in range(factors.columns.shape[0]):
        _score_block(rows, constants, factors.columns[b], factors.positive, factors.bends, tile)
        for r in range(len(picked)):
            entries = out[r, b * LANES : (b + 1) * LANES]
            for lane in range(len(entries)):
                entries[lane] = tile[r, lane]


@compiled
def _coverage_gains(factors: Factors, picked: np.ndarray, covered: np.ndarray, out: np.ndarray) -> None:
    rows, constants, tile = _gather(factors, picked)
    sums = np.zeros((len(picked), LANES), dtype=np.float64)
    for b in range(factors.columns.shape[0]):
        _score_block(rows, constants, factors.columns[b], factors.positive, factors.bends, tile)
        for r in range(len(picked)):
            _add_gains(tile[r], covered[b * LANES : (b + 1) * LANES], sums[r])
    for r in range(len(picked)):
        out[r] = sums[r].sum()


@compiled
def _row_statistics(factors: Factors, picked: np.ndarray, out_sums: np.ndarray, out_largest: np.ndarray) -> None:
    rows, constants, tile = _gather(factors, picked)
    sums = np.zeros((len(picked), LANES), dtype=np.float64)
    largest = np.full((len(picked), LANES), -np.inf, dtype=np.float32)
    for b in range(factors.columns.shape[0]):
        width = min(LANES, factors.n_columns - b * LANES)
        _score_block(rows, constants, factors.columns[b], factors.positive, factors.bends, tile)
        for r in range(len(picked)):
            _add_entries(tile[r, :width], sums[r], largest[r])
    for r in range(len(picked)):
        out_sums[r] = sums[r].sum()
        out_largest[r] = largest[r].max()
