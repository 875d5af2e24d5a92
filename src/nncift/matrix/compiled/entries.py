"""Stored influence, and the gains of coverage by it, compiled: sums over targets of max(0, entry - covered).

As the coverage grows, fewer and fewer entries of a row exceed it: of ten thousand targets a few hundred after a dozen
samples, a few dozen after a hundred. The others add exactly 0 then and ever after. So once only a small share of a row
exceeds the coverage, these entries are copied to a list of the row's own, which is what later gains read, and which
only shrinks. The lists keep the order of columns and lanes, so that the sums are bitwise those of the whole row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nncift.matrix.compiled.factored import LANES, compiled

LISTED = 32
"""A list has room for one in so many entries of a row: a sixteenth of the matrix's memory, for all rows."""

_BYTES = 4 * LANES  # of a block of columns


class Entries(NamedTuple):
    """Stored influence: all entries, or those that a sparse matrix has, row by row."""

    values: np.ndarray  # float32 (n_pool * n_target,), or (number of entries,)
    starts: np.ndarray  # int64 (n_pool + 1,): where each row begins
    columns: np.ndarray  # int32 (number of entries,); empty if all entries are stored


class Lists(NamedTuple):
    """The entries above the coverage, of rows that have few."""

    values: np.ndarray  # float32 (n_pool, room)
    columns: np.ndarray  # int32 (n_pool, room), ascending
    counts: np.ndarray  # int32 (n_pool,); -1 of a row that is read as a whole


def no_lists(entries: Entries, n_target: int) -> Lists:
    """Room for a list of each row where all entries are stored; none where a sparse matrix's are."""
    n, room = len(entries.starts) - 1, 0 if len(entries.columns) else n_target // LISTED
    return Lists(np.empty((n, room), np.float32), np.empty((n, room), np.int32), np.full(n, -1, np.int32))


@intrinsic  # type: ignore[untyped-decorator]
def _add_blocks(typing_context: Any, group: Any) -> Any:
    """Add the gains of whole blocks of 64 columns to the sums of their lanes; returns how many are above 0.

    `group` has the addresses of a row, of the coverage and of the sums, and the number of blocks. Emitted as LLVM
    vector code, since compilers do not keep the sums of an inner loop in registers.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, covered, sums, blocks = cgutils.unpack_tuple(builder, arguments[0])
        single, double = (ir.VectorType(kind, LANES) for kind in (ir.FloatType(), ir.DoubleType()))
        zeros, index = ir.Constant(single, [0.0] * LANES), blocks.type

        def load(base: Any, block: Any) -> Any:
            address = builder.add(base, builder.mul(block, index(_BYTES)))
            return builder.load(builder.inttoptr(address, single.as_pointer()), align=4)

        place = builder.inttoptr(sums, double.as_pointer())
        total, count = cgutils.alloca_once(builder, double), cgutils.alloca_once_value(builder, index(0))
        builder.store(builder.load(place, align=8), total)
        with cgutils.for_range(builder, blocks) as loop:
            gain = builder.fsub(load(row, loop.index), load(covered, loop.index))
            above = builder.fcmp_ordered(">", gain, zeros)
            found = builder.ctpop(builder.bitcast(above, ir.IntType(LANES)))
            builder.store(builder.add(builder.load(count), found), count)
            added = builder.fpext(builder.select(above, gain, zeros), double)
            builder.store(builder.fadd(builder.load(total), added), total)
        builder.store(builder.load(total), place, align=8)
        return builder.load(count)

    return types.int64(types.UniTuple(types.intp, 4)), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _lanes_above(typing_context: Any, row: Any, covered: Any) -> Any:
    """A bit for each of 64 columns: whether the entry exceeds the coverage, at these addresses."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = ir.VectorType(ir.FloatType(), LANES).as_pointer()
        left, right = (builder.load(builder.inttoptr(each, pointer), align=4) for each in arguments)
        return builder.bitcast(builder.fcmp_ordered(">", left, right), ir.IntType(LANES))

    return types.uint64(types.intp, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _lowest(typing_context: Any, bits: Any) -> Any:
    """The place of the lowest bit that is set."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


@compiled
def add_gains(entries: np.ndarray, covered: np.ndarray, sums: np.ndarray) -> None:
    """Add max(0, entry - covered) of up to 64 columns to the sums of their lanes, float64 (64,)."""
    for lane in range(len(covered)):
        gain = entries[lane] - covered[lane]
        sums[lane] += gain if gain > 0 else np.float32(0)


@compiled
def row_gain(row: np.ndarray, covered: np.ndarray, sums: np.ndarray) -> tuple[float, int]:
    """Sum of a whole row, float32 (n_target,), by way of `sums`, float64 (64,); and how many entries add to it."""
    sums[:] = 0
    blocks = len(row) // LANES
    above = _add_blocks((row.ctypes.data, covered.ctypes.data, sums.ctypes.data, blocks))
    for lane in range(len(row) - blocks * LANES):
        gain = row[blocks * LANES + lane] - covered[blocks * LANES + lane]
        sums[lane] += gain if gain > 0 else np.float32(0)
        above += gain > 0
    return sums.sum(), above


@compiled
def entries_gains(entries: Entries, rows: np.ndarray, covered: np.ndarray, out: np.ndarray) -> None:
    """`coverage_gains` of some rows (int64), into float64 (len(rows),)."""
    sums = np.empty(LANES, dtype=np.float64)
    for place in range(len(rows)):
        row = slice(entries.starts[rows[place]], entries.starts[rows[place] + 1])
        if len(entries.columns) == 0:
            out[place], _ = row_gain(entries.values[row], covered, sums)
        else:
            out[place] = _sparse_gain(entries.values[row], entries.columns[row], covered)


@compiled
def cover_entries(entries: Entries, rows: np.ndarray, covered: np.ndarray) -> None:
    """Raise `covered`, float32 (n_target,), to the entries of some rows (int64), in place."""
    for i in rows:
        values = entries.values[entries.starts[i] : entries.starts[i + 1]]
        if len(entries.columns) == 0:
            for j in range(len(covered)):
                covered[j] = max(covered[j], values[j])
        else:
            columns = entries.columns[entries.starts[i] : entries.starts[i + 1]]
            for place in range(len(values)):
                covered[columns[place]] = max(covered[columns[place]], values[place])


@compiled
def listed_gains(entries: Entries, lists: Lists, rows: np.ndarray, covered: np.ndarray, out: np.ndarray) -> None:
    """As `entries_gains`, by the lists of those rows that have one, which others get and which shrink."""
    sums = np.empty(LANES, dtype=np.float64)
    for place in range(len(rows)):
        out[place] = listed_gain(entries, lists, rows[place], covered, sums)


@compiled
def listed_gain(entries: Entries, lists: Lists, i: int, covered: np.ndarray, sums: np.ndarray) -> float:
    """One of `listed_gains`."""
    if lists.counts[i] >= 0:
        return _list_gain(lists, i, covered, sums)  # type: ignore[no-any-return]
    row = entries.values[entries.starts[i] : entries.starts[i + 1]]
    if len(entries.columns):
        return _sparse_gain(row, entries.columns[entries.starts[i] : entries.starts[i + 1]], covered)  # type: ignore[no-any-return]
    gain, above = row_gain(row, covered, sums)
    if above <= lists.values.shape[1]:
        _list(row, covered, lists, i)
    return gain


@compiled
def _sparse_gain(values: np.ndarray, columns: np.ndarray, covered: np.ndarray) -> float:
    total = 0.0
    for place in range(len(values)):
        gain = values[place] - covered[columns[place]]
        total += gain if gain > 0 else 0.0
    return total


@compiled
def _list_gain(lists: Lists, i: int, covered: np.ndarray, sums: np.ndarray) -> float:
    """The gain by a row's list, of which what no longer exceeds the coverage is dropped."""
    values, columns, left = lists.values[i], lists.columns[i], 0
    sums[:] = 0
    for place in range(lists.counts[i]):
        value, j = values[place], columns[place]
        gain = value - covered[j]
        sums[j % LANES] += gain if gain > 0 else np.float32(0)
        values[left] = value  # without a branch, which nothing could predict
        columns[left] = j
        left += gain > 0
    lists.counts[i] = left
    return sums.sum()  # type: ignore[no-any-return]


@compiled
def _list(row: np.ndarray, covered: np.ndarray, lists: Lists, i: int) -> None:
    """List the entries above the coverage, for which there is room."""
    values, columns, count = lists.values[i], lists.columns[i], 0
    for first in range(0, len(row) // LANES * LANES, LANES):
        bits = _lanes_above(row[first:].ctypes.data, covered[first:].ctypes.data)
        while bits:
            j = first + _lowest(bits)
            bits &= bits - np.uint64(1)
            values[count] = row[j]
            columns[count] = j
            count += 1
    for j in range(len(row) // LANES * LANES, len(row)):
        if row[j] > covered[j]:
            values[count] = row[j]
            columns[count] = j
            count += 1
    lists.counts[i] = count
