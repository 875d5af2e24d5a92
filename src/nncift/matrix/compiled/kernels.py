"""Compiled kernels: scoring pairs from factors, and the fused reductions of the objectives.

A register-blocked micro-kernel, vectorized over columns, computes one unit of 16 pairs per cycle on a core with
AVX-512: 0.6 billion pairs/s per core for 100 units (`benchmarks/selection.py` compares with the hardware limit). The
fused kernels reduce each tile in the L1 cache; the matrix never reaches memory.

Every sum has a fixed order, independent of threads and tiles: over units one by one, and over columns in 64
double-precision lanes (column j in lane j mod 64). Hence results are bitwise equal for any number of threads and for
dense blocks and fused tiles, and since rounding is monotone, a gain never increases as the coverage grows, which lazy
greedy relies on. Inputs must be finite.
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

from nncift.matrix.compiled.entries import add_gains, row_gain
from nncift.matrix.compiled.factored import LANES, Factors, compiled


def _thread_count() -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


THREADS = _thread_count()
"""Number of threads: `OMP_NUM_THREADS`, or the cores available to this process."""

_PIECE = 96  # rows of a work item, a multiple of _ROWS: rows and sums fit in the L2 cache

_FEATURES = llvm.get_host_cpu_features()
# Floats in a vector register, and the register block of _VECTORS x _ROWS accumulators.
_VECTOR = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx") else 4
_VECTORS = 2 if _VECTOR == 8 else 4
_ROWS = 6


def score(factors: Factors, rows: np.ndarray) -> np.ndarray:
    """Entries of some rows (int64, in range) and all columns: float32 (len(rows), n_columns)."""
    out = np.empty((len(rows), factors.n_columns), dtype=np.float32)
    share(lambda piece: _score(factors, rows[piece], out[piece]), len(rows))
    return out


def coverage_gains(factors: Factors, rows: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Sum over columns j of max(0, entry[i, j] - covered[j]) for each i in `rows`: float64; nothing is stored."""
    out = np.empty(len(rows), dtype=np.float64)
    share(lambda piece: _coverage_gains(factors, rows[piece], covered, out[piece]), len(rows))
    return out


def row_statistics(factors: Factors) -> tuple[np.ndarray, np.ndarray]:
    """Sum (float64) and largest entry (float32) of every row, in one pass."""
    rows = np.arange(len(factors.rows))
    sums, largest = np.empty(len(rows), dtype=np.float64), np.empty(len(rows), dtype=np.float32)
    share(lambda piece: _row_statistics(factors, rows[piece], sums[piece], largest[piece]), len(rows))
    return sums, largest


def share(work: Callable[[slice], None], rows: int, size: int | None = None) -> None:
    """Apply `work` to all rows in pieces, of `size` unless None, on this thread and those of the pool.

    This thread takes pieces too and waits for no helper that has not started, so a busy machine, or a forked process
    without the pool's threads, only costs speed. (OpenMP barriers would wait a time slice.)
    """
    size = size or max(_ROWS, min(_PIECE, -(-rows // (THREADS * _ROWS)) * _ROWS))
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
    """`coverage_gains` of a dense float32 block (rows, n_columns), bitwise equal."""
    out = np.empty(block.shape[0], dtype=np.float64)
    sums = np.empty(LANES, dtype=np.float64)
    for i in range(block.shape[0]):
        out[i], _ = row_gain(block[i], covered, sums)
    return out


@compiled
def dense_row_statistics(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`row_statistics` of a dense float32 block (rows, n_columns), bitwise equal."""
    out_sums, out_largest = np.empty(block.shape[0], dtype=np.float64), np.empty(block.shape[0], dtype=np.float32)
    for i in range(block.shape[0]):
        sums, largest = np.zeros(LANES, dtype=np.float64), np.full(LANES, -np.inf, dtype=np.float32)
        for first in range(0, block.shape[1], LANES):
            _add_entries(block[i, first : first + LANES], sums, largest)
        out_sums[i] = sums.sum()
        out_largest[i] = largest.max()
    return out_sums, out_largest


@compiled
def _add_entries(entries: np.ndarray, sums: np.ndarray, largest: np.ndarray) -> None:
    for lane in range(len(entries)):
        sums[lane] += entries[lane]
        largest[lane] = entries[lane] if entries[lane] > largest[lane] else largest[lane]


@intrinsic  # type: ignore[untyped-decorator]
def _score_group(typing_context: Any, group: Any) -> Any:
    """Score _ROWS rows against one block of columns into a float32 tile (_ROWS, LANES).

    `group` has the addresses of rows, constants, columns and tile, then n_positive, n_relu and the number of units.

    Emitted as LLVM vector code: compilers do not keep the accumulators of an outer loop in registers, whose loads and
    stores would cost a fifth. It runs on any processor, with the same order of additions.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, constants, columns, tile, n_positive, n_relu, units = cgutils.unpack_tuple(builder, arguments[0])
        index, number, vector = units.type, ir.FloatType(), ir.VectorType(ir.FloatType(), _VECTOR)
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
            if kind != "*":  # "<" minimum, ">" maximum
                return builder.fadd(total, builder.select(builder.fcmp_ordered(kind, left, right), left, right))
            product = builder.fmul(left, right, flags=("contract",))  # fused where the processor can
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
            add_units(index(0), n_positive, ">", sums, lanes)
            add_units(n_positive, n_relu, "<", sums, lanes)
            add_units(n_relu, units, "*", sums, lanes)
            for (r, lane), total in sums.items():
                builder.store(builder.load(total), pointer(tile, index(r * LANES + lane), vector), align=4)
        return context.get_dummy_value()

    return types.void(types.UniTuple(types.intp, 7)), codegen


@compiled
def score_block(
    rows: np.ndarray, constants: np.ndarray, block: np.ndarray, n_positive: int, n_relu: int, tile: np.ndarray
) -> None:
    """Score rows that `gather` returned against one block of columns (units, 64) into the tile (rows, 64)."""
    for r in range(0, rows.shape[0], _ROWS):
        addresses = rows[r:].ctypes.data, constants[r:].ctypes.data, block.ctypes.data, tile[r:].ctypes.data
        _score_group((*addresses, n_positive, n_relu, rows.shape[1]))


@compiled
def gather(factors: Factors, picked: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The picked rows and constants, the last one repeated to fill its group, and an empty tile."""
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
    rows, constants, tile = gather(factors, picked)
    for b in range(factors.columns.shape[0]):
        score_block(rows, constants, factors.columns[b], factors.n_positive, factors.n_relu, tile)
        for r in range(len(picked)):
            entries = out[r, b * LANES : (b + 1) * LANES]
            for lane in range(len(entries)):
                entries[lane] = tile[r, lane]


@compiled
def _coverage_gains(factors: Factors, picked: np.ndarray, covered: np.ndarray, out: np.ndarray) -> None:
    rows, constants, tile = gather(factors, picked)
    sums = np.zeros((len(picked), LANES), dtype=np.float64)
    for b in range(factors.columns.shape[0]):
        score_block(rows, constants, factors.columns[b], factors.n_positive, factors.n_relu, tile)
        for r in range(len(picked)):
            add_gains(tile[r], covered[b * LANES : (b + 1) * LANES], sums[r])
    for r in range(len(picked)):
        out[r] = sums[r].sum()


@compiled
def _row_statistics(factors: Factors, picked: np.ndarray, out_sums: np.ndarray, out_largest: np.ndarray) -> None:
    rows, constants, tile = gather(factors, picked)
    sums = np.zeros((len(picked), LANES), dtype=np.float64)
    largest = np.full((len(picked), LANES), -np.inf, dtype=np.float32)
    for b in range(factors.columns.shape[0]):
        width = min(LANES, factors.n_columns - b * LANES)
        score_block(rows, constants, factors.columns[b], factors.n_positive, factors.n_relu, tile)
        for r in range(len(picked)):
            _add_entries(tile[r, :width], sums[r], largest[r])
    for r in range(len(picked)):
        out_sums[r] = sums[r].sum()
        out_largest[r] = largest[r].max()
