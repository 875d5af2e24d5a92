"""An influence matrix in factors: each side once through its half, in the layout that the kernels take.

The paper's network has a first layer that is linear in the concatenation, so with P = pool features through their half
of it (bias included) and Q = target features through theirs, an estimated influence is

    influence[i, j] = output_bias + sum_k output_weight[k] * relu(P[i, k] + Q[j, k])

which costs an addition, a maximum and a multiply-add per hidden unit. Two identities take that down to
a maximum and an addition: relu(p + q) = max(q, -p) + p, where the sum of w * p is one constant per row,
and w * max(q, -p) = max(w * q, -w * p) for w > 0, the minimum for w < 0. So `factor` scales both sides
by the output weights once, sorts the units by sign, and what is left per pair is

    constant[i] + sum over w > 0 of max(rows[i, k], columns[j, k]) + sum over w < 0 of min(...)

The two-tower form, influence[i, j] = f_i . g_j + p_i + q_j, has the same layout: a unit that multiplies
is one fused multiply-add per pair, p is the row's constant and q one more unit, beside a 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np

LANES = 64
"""Columns in a block, and lanes of every sum over columns."""

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Compiled at its first call; the code is cached on disk where there is a folder for it."""
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


@compiled
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
