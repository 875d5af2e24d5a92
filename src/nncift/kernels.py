"""The inner loops: scoring pairs from a factored first layer, and the sums that an objective needs of them.

The network's first layer is linear in the concatenation, so with P = pool features through their half
of it (bias included) and Q = target features through theirs, an estimated influence is

    influence[i, j] = output_bias + sum_k output_weight[k] * relu(P[i, k] + Q[j, k])

which costs an addition, a maximum and a multiply-add per hidden unit. Two identities take that down to
a maximum and an addition: relu(p + q) = max(q, -p) + p, where the sum of w * p is one constant per row,
and w * max(q, -p) = max(w * q, -w * p) for w > 0, the minimum for w < 0. So `factor` scales both sides
by the output weights once, sorts the units by sign, and what is left per pair is

    constant[i] + sum over w > 0 of max(rows[i, k], columns[j, k]) + sum over w < 0 of min(...)

The two-tower form, influence[i, j] = f_i . g_j + p_i + q_j, goes through the same kernels: a unit that multiplies
is one fused multiply-add per pair, p is the row's constant and q one more unit, beside a 1.

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
from typing import Any, NamedTuple, TypeVar

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 64
"""Columns in a block, and lanes of every sum over columns."""


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

F = TypeVar("F", bound=Callable[..., Any])


def _compiled(function: F) -> F:
    options = {"error_model": "numpy", "nogil": True}
    try:
        return numba.njit(function, cache=True, **options)  # type: ignore[no-any-return]
    except RuntimeError:  # no folder to keep compiled code in: neither the package's nor the user's can be written
        return numba.njit(function, **options)  # type: ignore[no-any-return]


class Factors(NamedTuple):
    """A factored influence matrix, scaled and sorted for the kernels.

    Attributes:
        rows: float32 (n_rows, units), -w * p; of units that multiply, f.
        constants: float32 (n_rows,).
        columns: float32 (blocks, units, 64), w * q, or g, the last block padded with zeros.
        n_columns: columns without the padding.
        positive: units with w > 0; they come first.
        bends: units with w > 0 or w < 0; those after them multiply.
    """

    rows: np.ndarray
    constants: np.ndarray
    columns: np.ndarray
    n_columns: int
    positive: int
    bends: int


def factor(row_side: np.ndarray, column_side: np.ndarray, *, output_weight: np.ndarray, output_bias: float) -> Factors:
    """Scale both sides by the output weights and pack the columns; linear in the samples.

    Both sides of a unit are first shifted against each other (p + m, q - m), which leaves their sum as
    it is and brings p and q near each other's range, so that float32 keeps its digits whatever the
    offset of the features. Units of weight 0 are dropped.

    Args:
        row_side: P, float32 (n_rows, hidden), the first layer's bias included.
        column_side: Q, float32 (n_columns, hidden).
        output_weight: float32 (hidden,).
        output_bias: added to every entry.
    """
    weight = np.asarray(output_weight, dtype=np.float64).ravel()
    units = np.concatenate([np.flatnonzero(weight > 0), np.flatnonzero(weight < 0)])
    weight = weight[units]
    shift = (column_side.mean(axis=0, dtype=np.float64) - row_side.mean(axis=0, dtype=np.float64))[units] / 2
    rows, constants = _scaled(row_side, units, -weight, shift, float(output_bias))
    columns, _ = _scaled(column_side, units, weight, -shift, 0.0)
    return Factors(rows, constants, pack(columns), len(columns), int((weight > 0).sum()), len(weight))


def factor_towers(
    row_side: np.ndarray, column_side: np.ndarray, *, row_bias: np.ndarray, column_bias: np.ndarray
) -> Factors:
    """The two-tower form: f . g + p + q.

    Args:
        row_side: f, float32 (n_rows, rank).
        column_side: g, float32 (n_columns, rank).
        row_bias: p, float32 (n_rows,).
        column_bias: q, float32 (n_columns,).
    """
    rows = np.empty((len(row_side), row_side.shape[1] + 1), dtype=np.float32)
    rows[:, 0] = 1
    rows[:, 1:] = row_side
    columns = np.concatenate([column_bias[:, None], column_side], axis=1, dtype=np.float32)
    return Factors(rows, np.asarray(row_bias, dtype=np.float32), pack(columns), len(columns), 0, 0)


def tower_row_means(factors: Factors) -> np.ndarray:
    """Mean of each row of the two-tower form: f . (mean of g) + p + (mean of q), float32 (n_rows,).

    The columns' padding is 0, so it does not count in their sum.
    """
    centre = factors.columns.sum(axis=(0, 2), dtype=np.float64) / factors.n_columns
    means = np.empty(len(factors.rows), dtype=np.float32)
    for start in range(0, len(means), 1 << 16):
        part = slice(start, start + (1 << 16))
        means[part] = factors.rows[part].astype(np.float64) @ centre + factors.constants[part]
    return means


def pack(columns: np.ndarray) -> np.ndarray:
    """Columns (n_columns, units) as blocks (blocks, units, 64), padded with zeros."""
    n, units = columns.shape
    blocks = -(-n // LANES)
    padded = np.zeros((blocks * LANES, units), dtype=np.float32)
    padded[:n] = columns
    return np.ascontiguousarray(padded.reshape(blocks, LANES, units).transpose(0, 2, 1))


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


@_compiled
def dense_coverage_gains(block: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """As `coverage_gains`, of a float32 block (rows, n_columns), with the same bits."""
    out = np.empty(block.shape[0], dtype=np.float64)
    for i in range(block.shape[0]):
        sums = np.zeros(LANES, dtype=np.float64)
        for first in range(0, block.shape[1], LANES):
            _add_gains(block[i, first : first + LANES], covered[first : first + LANES], sums)
        out[i] = sums.sum()
    return out


@_compiled
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


@_compiled
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


@_compiled
def _scaled(
    side: np.ndarray, units: np.ndarray, scale: np.ndarray, shift: np.ndarray, bias: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return scale * (side + shift) for the chosen units, and bias - the sum of each row as it was rounded."""
    scaled = np.empty((side.shape[0], len(units)), dtype=np.float32)
    constants = np.empty(side.shape[0], dtype=np.float32)
    for i in range(side.shape[0]):
        constant = bias
        for k in range(len(units)):
            scaled[i, k] = scale[k] * (side[i, units[k]] + shift[k])
            constant -= scaled[i, k]
        constants[i] = constant
    return scaled, constants


@_compiled
def _add_gains(entries: np.ndarray, covered: np.ndarray, sums: np.ndarray) -> None:
    for lane in range(len(covered)):
        gain = entries[lane] - covered[lane]
        sums[lane] += gain if gain > 0 else np.float32(0)


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
def _score(factors: Factors, picked: np.ndarray, out: np.ndarray) -> None:
    rows, constants, tile = _gather(factors, picked)
    for b in range(factors.columns.shape[0]):
        _score_block(rows, constants, factors.columns[b], factors.positive, factors.bends, tile)
        for r in range(len(picked)):
            entries = out[r, b * LANES : (b + 1) * LANES]
            for lane in range(len(entries)):
                entries[lane] = tile[r, lane]


@_compiled
def _coverage_gains(factors: Factors, picked: np.ndarray, covered: np.ndarray, out: np.ndarray) -> None:
    rows, constants, tile = _gather(factors, picked)
    sums = np.zeros((len(picked), LANES), dtype=np.float64)
    for b in range(factors.columns.shape[0]):
        _score_block(rows, constants, factors.columns[b], factors.positive, factors.bends, tile)
        for r in range(len(picked)):
            _add_gains(tile[r], covered[b * LANES : (b + 1) * LANES], sums[r])
    for r in range(len(picked)):
        out[r] = sums[r].sum()


@_compiled
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
