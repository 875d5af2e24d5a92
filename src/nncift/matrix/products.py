"""Influence of every pair from the inner products of two samples' vectors, exact: entry [i, j] is f(u_i . v_j).

Only the vectors are kept: (n_pool + n_target) x d numbers instead of n_pool x n_target. A matrix of at most `HELD`
bytes is computed once and held in memory; a larger one is computed block by block whenever it is read, at the cost of a
matrix product, so that memory does not grow with the number of pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nncift.errors import ConfigError
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.stored import in_memory

HELD = 128 << 20
"""Bytes of the largest matrix that is held in memory."""

Vectors = Any
"""float32 (n, d): an array, which may be memory-mapped, or a `scipy.sparse.csr_array`."""

Transform = Callable[[np.ndarray], np.ndarray]
"""Inner products (rows, columns) float32 to influence of the same shape, entry by entry."""


def product_matrix(
    pool_side: Vectors, target_side: Vectors, transform: Transform | None = None, *, held: int = HELD
) -> InfluenceMatrix:
    """The matrix of transform(u_i . v_j).

    Args:
        pool_side: u, (n_pool, d).
        target_side: v, (n_target, d), likewise dense or sparse.
        transform: the identity unless given.
        held: bytes of the largest matrix that is held in memory.

    Raises:
        ConfigError: the vectors of the two sides have not the same length.
    """
    shape = pool_side.shape[0], target_side.shape[0]
    if pool_side.shape[1] != target_side.shape[1]:
        raise ConfigError(
            f"vectors of {pool_side.shape[1]} and {target_side.shape[1]} numbers have no inner product",
            "give both sides the same length",
        )

    def block(rows: Any, columns: Any) -> np.ndarray:
        every = isinstance(columns, slice) and columns == slice(0, shape[1])
        targets = target_side if every else target_side[columns]  # the selection of all would copy sparse vectors
        products = pool_side[rows] @ targets.T
        products = np.asarray(products if isinstance(products, np.ndarray) else products.toarray(), dtype=np.float32)
        return products if transform is None else transform(products)

    matrix = InfluenceMatrix(shape, block)
    if 4 * shape[0] * shape[1] > held:
        return matrix
    return in_memory(matrix)
