"""A factored influence matrix: both sides projected once, in the memory layout of the kernels.

The first layer of the paper's network is linear in the concatenation. With P = pool features through their half of it
(bias included) and Q = target features through theirs, an estimated influence is

    influence[i, j] = output_bias + sum_k output_weight[k] * relu(P[i, k] + Q[j, k])

which costs an addition, a maximum and a multiply-add per hidden unit. Two identities reduce that to a maximum and an
addition: relu(p + q) = max(q, -p) + p, where the sum of w * p is one constant per row, and w * max(q, -p) =
max(w * q, -w * p) for w > 0, the minimum for w < 0. So `factor` scales both sides by the output weights once and sorts
the units by sign, and a pair costs

    constant[i] + sum over w > 0 of max(rows[i, k], columns[j, k]) + sum over w < 0 of min(...)

The two-tower form, influence[i, j] = f_i . g_j + p_i + q_j, has the same layout: a product unit is one fused
multiply-add per pair, p is the row's constant, and q one more product unit with a constant 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numba
import numpy as np

from nncift.errors import ModelError

LANES = 64
"""Columns in a block, and lanes of a sum over columns."""

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Compiled at its first call; machine code is cached on disk if numba finds a writable folder."""
    options = {"error_model": "numpy", "nogil": True}
    try:
        return numba.njit(function, cache=True, **options)  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's nor the user's cache folder is writable
        return numba.njit(function, **options)  # type: ignore[no-any-return]


class Factors(NamedTuple):
    """A factored influence matrix, scaled and sorted for the kernels."""

    rows: np.ndarray  # float32 (n_rows, units), -w * p of ReLU units, f of product units
    constants: np.ndarray  # float32 (n_rows,)
    columns: np.ndarray  # float32 (blocks, units, 64), w * q or g, the last block padded with zeros
    n_columns: int  # without the padding
    n_positive: int  # ReLU units with w > 0, which come first
    n_relu: int  # ReLU units, w != 0; product units follow


def factor(row_side: np.ndarray, column_side: np.ndarray, *, output_weight: np.ndarray, output_bias: float) -> Factors:
    """Scale both sides by the output weights and pack the columns, for `InfluenceMatrix.from_factors`.

    Shifting both sides of a unit, (p + m, q - m), keeps their sum and centers them, so that float32 loses no digits
    to an offset of the features. Units of weight 0 are dropped.
    """
    hidden = np.size(output_weight)
    if row_side.ndim != 2 or column_side.ndim != 2 or {row_side.shape[1], column_side.shape[1]} != {hidden}:
        raise ModelError(
            f"factors of shapes {row_side.shape} and {column_side.shape} do not fit {hidden} output weights"
        )
    _check_finite(row_side, column_side, output_weight, output_bias)
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
    """The two-tower form f . g + p + q, for `InfluenceMatrix.from_towers`."""
    shapes = row_side.shape, column_side.shape, np.shape(row_bias), np.shape(column_bias)
    rank = row_side.shape[1:]
    if len(rank) != 1 or shapes[:2] != (shapes[2] + rank, shapes[3] + rank) or len(shapes[2] + shapes[3]) != 2:
        raise ModelError(f"towers of shapes {shapes} do not fit")
    _check_finite(row_side, column_side, row_bias, column_bias)
    rows = np.empty((len(row_side), row_side.shape[1] + 1), dtype=np.float32)
    rows[:, 0] = 1
    rows[:, 1:] = row_side
    columns = np.concatenate([column_bias[:, None], column_side], axis=1, dtype=np.float32)
    return Factors(rows, np.asarray(row_bias, dtype=np.float32), pack(columns), len(columns), 0, 0)


def _check_finite(*arrays: Any) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ModelError(
            "the network's values are not all finite",
            "train it again with a lower learning rate, or check its features",
        )


def tower_row_means(factors: Factors) -> np.ndarray:
    """Mean of each row of the two-tower form: f . (mean of g) + p + (mean of q), float32 (n_rows,).

    The padding of the columns is 0 and adds nothing to the sum.
    """
    mean = factors.columns.sum(axis=(0, 2), dtype=np.float64) / factors.n_columns
    means = np.empty(len(factors.rows), dtype=np.float32)
    for start in range(0, len(means), 1 << 16):
        part = slice(start, start + (1 << 16))
        means[part] = factors.rows[part].astype(np.float64) @ mean + factors.constants[part]
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
    """Return scale * (side + shift) for the chosen units, and bias minus the sum of each (rounded) row."""
    scaled = np.empty((side.shape[0], len(units)), dtype=np.float32)
    constants = np.empty(side.shape[0], dtype=np.float32)
    for i in range(side.shape[0]):
        constant = bias
        for k in range(len(units)):
            scaled[i, k] = scale[k] * (side[i, units[k]] + shift[k])
            constant -= scaled[i, k]
        constants[i] = constant
    return scaled, constants
