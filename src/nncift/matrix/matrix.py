"""InfluenceMatrix: a shape and a block function, one interface for exact and estimated influence.

Entry [i, j] is how much pool sample i helps target sample j; larger is better. Objectives need sums over rows, single
rows or tiles, never the whole matrix, which would be 40 GB for 100,000 samples on both sides. So, like scipy's
LinearOperator, a matrix is a function that returns blocks:

    InfluenceMatrix.from_array(array)          exact values, in memory or memory-mapped
    InfluenceMatrix.from_factors(P, Q, ...)    estimated, entries computed on access: about 0.6 billion pairs/s per
                                               core at 100 hidden units
    InfluenceMatrix.from_towers(F, G, ...)     the same for the two-tower form
    InfluenceMatrix(shape, function)           any other

Reductions read tiles of at most `selectors.TILE` entries (16 MiB), or one row if that is longer; those of estimated
matrices are fused with the computation of the entries and store nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import ConfigError
from nncift.matrix.compiled import kernels
from nncift.matrix.compiled.factored import factor, factor_towers
from nncift.matrix.compiled.top_k import LargestEntries
from nncift.matrix.selectors import Selector, bounded, indices_of, length, row_slices
from nncift.run.progress import advance

if TYPE_CHECKING:
    from nncift.matrix.cells import Products
    from nncift.matrix.compiled.entries import Entries


class InfluenceMatrix:
    """Influence of n_pool samples on n_target samples, float32.

    Args:
        shape: (n_pool, n_target).
        function: takes a row and a column selector (a slice with both ends, or an int64 array) and returns
            that block, (rows, columns), finite.

    Raises:
        ConfigError: from any method, if `function` returns a block of another shape.
    """

    floor: np.ndarray | None = None  # of a sparse matrix: no visited entry that is left out is larger, (n_target,)
    confidence = 1.0  # that `unseen` holds

    def __init__(self, shape: tuple[int, int], function: Callable[[Any, Any], np.ndarray]) -> None:
        self.shape = shape
        self._function = function

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]})"

    @classmethod
    def from_array(cls, array: np.ndarray) -> InfluenceMatrix:
        """Exact influence: an array (n_pool, n_target), in memory or memory-mapped."""
        if array.ndim != 2:
            raise ConfigError(f"an influence matrix has two dimensions, not {array.ndim}", "give (n_pool, n_target)")

        from nncift.matrix.stored import StoredMatrix

        if array.dtype == np.float32 and array.flags.c_contiguous:
            return StoredMatrix(array)

        def function(rows: Any, columns: Any) -> np.ndarray:
            by_slice = isinstance(rows, slice) or isinstance(columns, slice)
            return array[rows, columns] if by_slice else array[np.ix_(rows, columns)]

        return cls((array.shape[0], array.shape[1]), function)

    @classmethod
    def from_factors(
        cls,
        pool_side: np.ndarray,
        target_side: np.ndarray,
        *,
        output_weight: np.ndarray,
        output_bias: float,
        device: str | None = None,
    ) -> InfluenceMatrix:
        """Estimated influence: output_bias + sum_k output_weight[k] * relu(P[i, k] + Q[j, k]).

        Concatenated units with output weights divided by the number of networks average several networks.

        Args:
            pool_side: P, float32 (n_pool, hidden): pool features through the first layer, its bias included.
            target_side: Q, float32 (n_target, hidden): target features through their half of the first layer.
            output_weight: float32 (hidden,).
            output_bias: added to every entry.
            device: a torch device such as "cuda"; None or "cpu" uses the compiled CPU kernels.

        Raises:
            ModelError: the shapes do not match, or a value is not finite.
        """
        from nncift.matrix.estimated import on_device

        return on_device(device, factor(pool_side, target_side, output_weight=output_weight, output_bias=output_bias))

    @classmethod
    def from_towers(
        cls,
        pool_side: np.ndarray,
        target_side: np.ndarray,
        *,
        pool_bias: np.ndarray,
        target_bias: np.ndarray,
        device: str | None = None,
    ) -> InfluenceMatrix:
        """Estimated influence of the two-tower form: F[i] . G[j] + pool_bias[i] + target_bias[j].

        Concatenated ranks with one side divided by the number of networks average several networks.

        Args:
            pool_side: F, float32 (n_pool, rank).
            target_side: G, float32 (n_target, rank).
            pool_bias: float32 (n_pool,).
            target_bias: float32 (n_target,).
            device: as for `from_factors`.

        Raises:
            ModelError: the shapes do not match, or a value is not finite.
        """
        from nncift.matrix.estimated import on_device

        return on_device(device, factor_towers(pool_side, target_side, row_bias=pool_bias, column_bias=target_bias))

    def block(self, rows: Selector, columns: Selector) -> np.ndarray:
        """Entries at `rows` x `columns`, float32 (rows, columns), C-contiguous.

        Raises:
            IndexError: an index is out of range.
        """
        rows, columns = bounded(rows, self.shape[0]), bounded(columns, self.shape[1])
        block = np.ascontiguousarray(self._function(rows, columns), dtype=np.float32)
        expected = (length(rows), length(columns))
        if block.shape != expected:
            raise ConfigError(
                f"the block function returned {block.shape} instead of {expected}", "return (rows, columns)"
            )
        return block

    def rows(self, i: Selector) -> np.ndarray:
        """Influence of the pool samples `i` on every target, float32 (len(i), n_target)."""
        return self.block(i, slice(None))

    def columns(self, j: Selector) -> np.ndarray:
        """Influence of every pool sample on the targets `j`, float32 (n_pool, len(j))."""
        return self.block(slice(None), j)

    def entries(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Entries [i[k], j[k]] of k pairs, float32 (k,), from blocks of the rows and columns that occur."""
        rows, row = np.unique(i, return_inverse=True)
        columns, column = np.unique(j, return_inverse=True)
        out, order = np.empty(len(row), dtype=np.float32), np.argsort(row, kind="stable")
        for part in row_slices(len(rows), len(columns)):
            some = order[slice(*np.searchsorted(row[order], (part.start, part.stop)))]
            out[some] = self.block(rows[part], columns)[row[some] - part.start, column[some]]
        return out

    def tiles(self, size: int = 2048) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """The whole matrix as (row slice, column slice, block), row by row, at most `size` x `size` at a time."""
        for top in range(0, self.shape[0], size):
            rows = slice(top, min(top + size, self.shape[0]))
            for left in range(0, self.shape[1], size):
                columns = slice(left, min(left + size, self.shape[1]))
                yield rows, columns, self.block(rows, columns)

    def coverage_gains(self, rows: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """Sum over targets j of max(0, influence[i, j] - covered[j]) for each i in `rows`.

        A gain is independent of the other rows requested, and non-increasing in `covered`.

        Args:
            rows: int64 indices.
            covered: float32 (n_target,), non-negative, which also clips the influence at 0.

        Returns:
            float64 (len(rows),).
        """
        rows, covered = self._checked(rows, covered)
        gains = np.empty(len(rows), dtype=np.float64)
        for part in row_slices(len(rows), self.shape[1]):
            gains[part] = kernels.dense_coverage_gains(self.rows(rows[part]), covered)
        return gains

    def cover(self, rows: np.ndarray, covered: np.ndarray) -> None:
        """Raise `covered`, float32 (n_target,), to the largest influence of some pool samples (int64), in place."""
        for part in row_slices(len(rows), self.shape[1]):
            np.maximum(covered, self.rows(rows[part]).max(axis=0), out=covered)

    @property
    def row_width(self) -> int:
        """Entries that a row takes on average."""
        return self.shape[1]

    def unseen(self, levels: np.ndarray) -> float:
        """How much entries left out may exceed `levels`, float32 (n_target,), in the sum over targets."""
        return 0.0

    def count_above(self, rows: np.ndarray, shares: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """How many of some pool samples (int64) have an entry above each target's level, each counting by its share.

        Args:
            rows: (k,) int64.
            shares: (k,) float64.
            levels: (n_target,) float32.

        Returns:
            (n_target,) float64.
        """
        counts = np.zeros(self.shape[1])
        for part in row_slices(len(rows), self.shape[1]):
            counts += shares[part] @ (self.rows(rows[part]) > levels)
        return counts

    @property
    def stored(self) -> Entries | None:
        """Where the entries are stored; None if they are computed on access."""
        return None

    @property
    def is_inner_product(self) -> bool:
        """Whether there are `products`, of which a sparse form can be made."""
        return False

    def products(self) -> tuple[Products, Callable[[np.ndarray], np.ndarray] | None] | None:
        """The inner products that the entries are, and a non-decreasing function of these; None of other matrices."""
        return None

    def _checked(self, rows: np.ndarray, covered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if covered.shape != self.shape[1:]:
            raise ValueError(f"covered has the shape {covered.shape}, the matrix has {self.shape[1]} targets")
        return indices_of(bounded(rows, self.shape[0])), np.ascontiguousarray(covered, dtype=np.float32)

    @property
    def averaged(self) -> slice | np.ndarray:
        """The targets that row means are over: all, or of very many a random sample."""
        return slice(0, self.shape[1])

    def row_means(self) -> np.ndarray:
        """Mean influence of every pool sample over the targets, not clipped: float32 (n_pool,)."""
        return (self._row_statistics[0] / self.shape[1]).astype(np.float32)

    def clipped_row_means(self, landmarks: int = 1024, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Mean of each pool sample's influence clipped at 0, estimated on a random sample of the targets.

        Linear in the pool: scores n_pool x landmarks pairs, whatever the number of targets.

        Args:
            landmarks: number of targets sampled; with all of them the means are exact.
            seed: draws them.

        Returns:
            Means and standard errors, float32 (n_pool,) each; the errors are 0 if all targets are used.
        """
        n = self.shape[1]
        some = np.sort(np.random.default_rng(seed).permutation(n)[: max(landmarks, 1)])
        means, errors = (np.empty(self.shape[0], dtype=np.float32) for _ in range(2))
        for part in row_slices(self.shape[0], len(some)):
            values = np.maximum(self.block(part, some), 0).astype(np.float64)
            means[part] = values.mean(axis=1)
            std = values.std(axis=1, ddof=1) if len(some) > 1 else np.full(len(values), np.nan)
            errors[part] = std * np.sqrt((1 - len(some) / n) / len(some)) if len(some) < n else 0
        return means, errors

    def row_max(self) -> np.ndarray:
        """Largest influence of every pool sample on any target, not clipped: float32 (n_pool,)."""
        return self._row_statistics[1].copy()

    @functools.cached_property
    def _row_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for part in row_slices(*self.shape):
            parts.append(kernels.dense_row_statistics(self.rows(part)))
            advance(part.stop - part.start)
        return np.concatenate([sums for sums, _ in parts]), np.concatenate([largest for _, largest in parts])

    def column_max(self) -> np.ndarray:
        """Largest influence of any pool sample on every target, not clipped: float32 (n_target,)."""
        largest = np.full(self.shape[1], -np.inf, dtype=np.float32)
        for part in row_slices(*self.shape):
            np.maximum(largest, self.rows(part).max(axis=0), out=largest)
        return largest

    def top_k(self, k: int, *, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` largest entries of every column (axis=0) or row (axis=1).

        Returns:
            values float32 and indices int64, each (n_target, k) for axis=0 and (n_pool, k) for axis=1,
            largest first, ties by the lower index.

        Raises:
            ConfigError: `k` is not between 1 and the length of the axis.
        """
        if not 1 <= k <= self.shape[axis]:
            raise ConfigError(f"k is {k}", f"choose between 1 and {self.shape[axis]}")
        largest = LargestEntries(self.shape[1 - axis], k)
        for rows, columns, block in self.tiles():
            lines, along = (rows, columns) if axis == 1 else (columns, rows)
            largest.add(block if axis == 1 else np.ascontiguousarray(block.T), along.start, lines)
        return largest.sorted()
