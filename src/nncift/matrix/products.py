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
from nncift.matrix.cells import Products
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.stored import in_memory

HELD = 128 << 20
"""Bytes of the largest matrix that is held in memory."""

MEANS_EXACT = 1 << 35
"""Pairs up to which row means are exact: minutes."""

_TRIAL = np.concatenate([np.linspace(-2, 2, 401), np.geomspace(2.1, 1e4, 50)]).astype(np.float32)

Vectors = Any
"""float32 (n, d): an array, which may be memory-mapped, or a `scipy.sparse.csr_array`."""

Transform = Callable[[np.ndarray], np.ndarray]
"""Inner products (rows, columns) float32 to influence of the same shape, entry by entry; non-decreasing where a sparse
form is to be made."""


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
    if pool_side.shape[1] != target_side.shape[1]:
        raise ConfigError(
            f"vectors of {pool_side.shape[1]} and {target_side.shape[1]} numbers have no inner product",
            "give both sides the same length",
        )
    matrix = ProductMatrix(pool_side, target_side, transform)
    return in_memory(matrix) if 4 * matrix.shape[0] * matrix.shape[1] <= held else matrix


def averaged_targets(n_pool: int, n_target: int) -> int:
    """How many targets row means are over: all, or of very many as many as `MEANS_EXACT` pairs allow."""
    return n_target if n_pool * n_target <= MEANS_EXACT else max(MEANS_EXACT // n_pool, 1)


class ProductMatrix(InfluenceMatrix):
    """Computed block by block; made by `product_matrix`."""

    def __init__(self, pool_side: Vectors, target_side: Vectors, transform: Transform | None) -> None:
        super().__init__((pool_side.shape[0], target_side.shape[0]), self._block)
        self._pool_side, self._target_side, self._transform = pool_side, target_side, transform

    def _block(self, rows: Any, columns: Any) -> np.ndarray:
        every = isinstance(columns, slice) and columns == slice(0, self.shape[1])
        targets = self._target_side if every else self._target_side[columns]  # the choice of all would copy sparse ones
        products = self._pool_side[rows] @ targets.T
        products = np.asarray(products if isinstance(products, np.ndarray) else products.toarray(), dtype=np.float32)
        return products if self._transform is None else self._transform(products)

    @property
    def averaged(self) -> slice | np.ndarray:
        """As of `InfluenceMatrix`; with more than `MEANS_EXACT` pairs a random sample."""
        if (count := averaged_targets(*self.shape)) == self.shape[1]:
            return super().averaged
        return np.sort(np.random.default_rng(0).permutation(self.shape[1])[:count])

    def row_means(self) -> np.ndarray:
        """As `InfluenceMatrix.row_means`, over the targets `averaged`."""
        some = self.averaged
        if isinstance(some, slice):
            return super().row_means()
        return ProductMatrix(self._pool_side, self._target_side[some], self._transform).row_means()

    @property
    def is_inner_product(self) -> bool:
        """Whether the vectors are dense float32 and the transform does not fall."""
        sides = (self._pool_side, self._target_side)
        if not all(isinstance(side, np.ndarray) and side.dtype == np.float32 for side in sides):
            return False
        if self._transform is None:
            return True
        with np.errstate(over="ignore"):
            values = self._transform(_TRIAL[None])[0]
        return bool((values[1:] >= values[:-1]).all())

    def products(self) -> tuple[Products, Transform | None] | None:
        """The vectors as they lie."""
        if not self.is_inner_product:
            return None
        constants = np.zeros(self.shape[0], dtype=np.float32)
        return Products(np.asarray(self._pool_side), constants, np.asarray(self._target_side)), self._transform
