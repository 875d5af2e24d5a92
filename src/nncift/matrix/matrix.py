"""InfluenceMatrix: a shape and a block function, so that exact and estimated influence look alike.

Entry [i, j] is how much pool sample i helps target sample j; larger is better. Nobody needs the whole
matrix at once: an objective asks for sums over rows, for single rows, or for tiles, and 100,000 samples
on both sides would be 40 GB. So, as with scipy's LinearOperator, a matrix is whatever can produce a
block of itself:

    InfluenceMatrix.from_array(array)          exact values, in memory or memory-mapped
    InfluenceMatrix.from_factors(P, Q, ...)    estimated; entries are computed when asked for, about
                                               0.6 thousand million a second and core at 100 units
    InfluenceMatrix.from_towers(F, G, ...)     likewise, of the two-tower form
    InfluenceMatrix(shape, function)           your own

Whatever reduces the matrix walks it in tiles of at most `TILE` entries (16 MiB), or one row where a row
is longer; estimated matrices reduce tiles of a few kilobytes while they are computed and keep nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nncift.errors import ConfigError, ModelError
from nncift.matrix import kernels
from nncift.matrix.factored import LANES, Factors, factor, factor_towers, pack, tower_row_means

TILE = 1 << 22
"""Entries of the largest block that a reduction asks for, unless one row is longer."""

Selector = slice | int | np.ndarray


class InfluenceMatrix:
    """Influence of n_pool samples on n_target samples, float32.

    Args:
        shape: (n_pool, n_target).
        function: takes a row and a column selector (a slice with both ends, or an int64 array) and returns
            that block, (rows, columns). Its numbers must be finite.

    Raises:
        ConfigError: from any method, when `function` returns a block of another shape.
    """

    def __init__(self, shape: tuple[int, int], function: Callable[[Any, Any], np.ndarray]) -> None:
        self.shape = shape
        self._function = function

    @classmethod
    def from_array(cls, array: np.ndarray) -> InfluenceMatrix:
        """Exact influence: an array of numbers (n_pool, n_target), in memory or memory-mapped."""
        if array.ndim != 2:
            raise ConfigError(f"an influence matrix has two dimensions, not {array.ndim}", "give (n_pool, n_target)")

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

        Several networks are averaged by putting their units side by side, the weights divided by their number.

        Args:
            pool_side: P, float32 (n_pool, hidden): pool features through the first layer, its bias included.
            target_side: Q, float32 (n_target, hidden): target features through their half of the first layer.
            output_weight: float32 (hidden,).
            output_bias: added to every entry.
            device: a torch device such as "cuda"; None or "cpu" takes the compiled CPU kernels.

        Raises:
            ModelError: the sizes do not fit, or a number is not finite.
        """
        hidden = np.size(output_weight)
        if pool_side.ndim != 2 or target_side.ndim != 2 or {pool_side.shape[1], target_side.shape[1]} != {hidden}:
            raise ModelError(
                f"factors of shapes {pool_side.shape} and {target_side.shape} do not fit {hidden} output weights"
            )
        if not all(np.isfinite(part).all() for part in (pool_side, target_side, output_weight, output_bias)):
            raise ModelError(
                "the network's values are not all finite",
                "train it again with a lower learning rate, or check its features",
            )
        factors = factor(pool_side, target_side, output_weight=output_weight, output_bias=output_bias)
        return cls._of_factors(factors, device)

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

        Several networks are averaged by putting their ranks side by side, one side divided by their number.

        Args:
            pool_side: F, float32 (n_pool, rank).
            target_side: G, float32 (n_target, rank).
            pool_bias: float32 (n_pool,).
            target_bias: float32 (n_target,).
            device: as for `from_factors`.

        Raises:
            ModelError: the sizes do not fit, or a number is not finite.
        """
        shapes = pool_side.shape, target_side.shape, np.shape(pool_bias), np.shape(target_bias)
        if [len(shape) for shape in shapes] != [2, 2, 1, 1] or shapes != (
            (len(pool_bias), pool_side.shape[1]),
            (len(target_bias), pool_side.shape[1]),
            (len(pool_side),),
            (len(target_side),),
        ):
            raise ModelError(f"towers of shapes {shapes} do not fit")
        if not all(np.isfinite(part).all() for part in (pool_side, target_side, pool_bias, target_bias)):
            raise ModelError("the network's values are not all finite", "check its features")
        factors = factor_towers(pool_side, target_side, row_bias=pool_bias, column_bias=target_bias)
        return cls._of_factors(factors, device)

    @staticmethod
    def _of_factors(factors: Factors, device: str | None) -> InfluenceMatrix:
        on_cpu = device is None or str(device).partition(":")[0] == "cpu"
        return FactoredMatrix(factors) if on_cpu else DeviceMatrix(factors, str(device))

    def block(self, rows: Selector, columns: Selector) -> np.ndarray:
        """Entries at `rows` x `columns`, float32 (rows, columns), C-contiguous.

        Raises:
            IndexError: an index is out of range.
        """
        rows, columns = _bounded(rows, self.shape[0]), _bounded(columns, self.shape[1])
        block = np.ascontiguousarray(self._function(rows, columns), dtype=np.float32)
        expected = (_length(rows), _length(columns))
        if block.shape != expected:
            raise ConfigError(
                f"the block function returned {block.shape} where {expected} was asked for", "return (rows, columns)"
            )
        return block

    def rows(self, i: Selector) -> np.ndarray:
        """Influence of the pool samples `i` on every target, float32 (len(i), n_target)."""
        return self.block(i, slice(None))

    def columns(self, j: Selector) -> np.ndarray:
        """Influence of every pool sample on the targets `j`, float32 (n_pool, len(j))."""
        return self.block(slice(None), j)

    def entries(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Entries [i[k], j[k]] of k pairs, float32 (k,), by blocks of the rows and columns that occur."""
        rows, row = np.unique(i, return_inverse=True)
        columns, column = np.unique(j, return_inverse=True)
        out, order = np.empty(len(row), dtype=np.float32), np.argsort(row, kind="stable")
        for part in _parts(len(rows), len(columns)):
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

        A gain does not depend on the other rows asked for, and never rises when `covered` does.

        Args:
            rows: int64 indices.
            covered: float32 (n_target,), at least 0, which clips the influence at 0 as well.

        Returns:
            float64 (len(rows),).
        """
        rows, covered = self._checked(rows, covered)
        gains = np.empty(len(rows), dtype=np.float64)
        for part in _parts(len(rows), self.shape[1]):
            gains[part] = kernels.dense_coverage_gains(self.rows(rows[part]), covered)
        return gains

    def _checked(self, rows: np.ndarray, covered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if covered.shape != self.shape[1:]:
            raise ValueError(f"covered has the shape {covered.shape}, and the matrix {self.shape[1]} targets")
        return _indices(_bounded(rows, self.shape[0])), np.ascontiguousarray(covered, dtype=np.float32)

    def row_means(self) -> np.ndarray:
        """Mean influence of every pool sample over the targets, not clipped: float32 (n_pool,)."""
        return (self._row_statistics[0] / self.shape[1]).astype(np.float32)

    def clipped_row_means(self, landmarks: int = 1024, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Mean of each pool sample's influence where it is above 0, estimated from some targets drawn at random.

        Linear in the pool: n_pool x landmarks pairs are scored, however many targets there are.

        Args:
            landmarks: how many targets; with all of them the means are exact.
            seed: which ones.

        Returns:
            The means, float32 (n_pool,), and their standard errors, float32 (n_pool,), 0 where all are visited.
        """
        n = self.shape[1]
        some = np.sort(np.random.default_rng(seed).permutation(n)[: max(landmarks, 1)])
        means, errors = (np.empty(self.shape[0], dtype=np.float32) for _ in range(2))
        for part in _parts(self.shape[0], len(some)):
            values = np.maximum(self.block(part, some), 0).astype(np.float64)
            means[part] = values.mean(axis=1)
            spread = values.std(axis=1, ddof=1) if len(some) > 1 else np.full(len(values), np.nan)
            errors[part] = spread * np.sqrt((1 - len(some) / n) / len(some)) if len(some) < n else 0
        return means, errors

    def row_max(self) -> np.ndarray:
        """Largest influence of every pool sample on any target, not clipped: float32 (n_pool,)."""
        return self._row_statistics[1].copy()

    @functools.cached_property
    def _row_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        parts = [kernels.dense_row_statistics(self.rows(part)) for part in _parts(*self.shape)]
        return np.concatenate([sums for sums, _ in parts]), np.concatenate([largest for _, largest in parts])

    def column_max(self) -> np.ndarray:
        """Largest influence of any pool sample on every target, not clipped: float32 (n_target,)."""
        largest = np.full(self.shape[1], -np.inf, dtype=np.float32)
        for part in _parts(*self.shape):
            np.maximum(largest, self.rows(part).max(axis=0), out=largest)
        return largest

    def top_k(self, k: int, *, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` largest entries of every column (axis=0) or row (axis=1), as numpy counts axes.

        Returns:
            values float32 and indices int64, each (n_target, k) for axis=0 and (n_pool, k) for axis=1,
            largest first; of equal entries the lower index comes first.

        Raises:
            ConfigError: `k` is not between 1 and the length of the axis.
        """
        if not 1 <= k <= self.shape[axis]:
            raise ConfigError(f"k is {k}", f"choose between 1 and {self.shape[axis]}")
        lines = self.shape[1 - axis]
        values = np.full((lines, k), -np.inf, dtype=np.float32)
        indices = np.full((lines, k), -1, dtype=np.int64)
        for rows, columns, block in self.tiles():
            line, along = (rows, columns) if axis == 1 else (columns, rows)
            entries = block if axis == 1 else np.ascontiguousarray(block.T)
            kernels.keep_largest(entries, along.start, values[line], indices[line])
        return values, indices


class FactoredMatrix(InfluenceMatrix):
    """Estimated influence on the CPU, see `kernels`; made by `InfluenceMatrix.from_factors`."""

    def __init__(self, factors: Factors) -> None:
        super().__init__((len(factors.rows), factors.n_columns), self._score)
        self._factors = factors

    def _score(self, rows: Any, columns: Any) -> np.ndarray:
        return kernels.score(self._of_columns(columns), _indices(rows))

    def _of_columns(self, columns: Any) -> Factors:
        """The factors of some columns: a view where they are whole blocks, else packed anew."""
        packed, n, whole = self._factors.columns, self._factors.n_columns, LANES
        if (
            isinstance(columns, slice)
            and columns.start % whole == 0
            and (columns.stop % whole == 0 or columns.stop == n)
        ):
            packed = packed[columns.start // whole : -(-columns.stop // whole)]
        else:
            columns = _indices(columns)
            packed = pack(packed[columns // whole, :, columns % whole])
        return self._factors._replace(columns=packed, n_columns=_length(columns))

    def coverage_gains(self, rows: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """As above; the entries are never stored."""
        return kernels.coverage_gains(self._factors, *self._checked(rows, covered))

    def row_means(self) -> np.ndarray:
        """As above; of the two-tower form without a look at pairs, in time linear in the samples on either side."""
        if self._factors.bends:
            return super().row_means()
        return tower_row_means(self._factors)

    @functools.cached_property
    def _row_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        return kernels.row_statistics(self._factors)


class DeviceMatrix(InfluenceMatrix):
    """Estimated influence by torch on a GPU; made by `InfluenceMatrix.from_factors(..., device=...)`.

    Agrees with the CPU to float32 rounding, not bit by bit.
    """

    def __init__(self, factors: Factors, device: str) -> None:
        import torch

        super().__init__((len(factors.rows), factors.n_columns), lambda *block: self._score(*block).cpu().numpy())
        columns = factors.columns.transpose(0, 2, 1).reshape(-1, factors.columns.shape[1])[: factors.n_columns]
        self._rows, self._constants, self._columns = (
            torch.from_numpy(np.ascontiguousarray(part)).to(device)
            for part in (factors.rows, factors.constants, columns)
        )
        self._positive, self._bends = factors.positive, factors.bends

    def _score(self, rows: Any, columns: Any) -> Any:
        import torch

        rows, columns = (
            part if isinstance(part, slice) else torch.from_numpy(part).to(self._rows.device)
            for part in (rows, columns)
        )
        right = self._columns[columns]
        out = torch.empty((_length(rows), len(right)), dtype=torch.float32, device=right.device)
        step = max(1, (TILE << 3) // max(1, right.numel()))  # rows at a time: 128 MiB of maxima
        left, constants = self._rows[rows], self._constants[rows]
        p, bends = self._positive, self._bends
        for top in range(0, len(left), step):
            part = left[top : top + step, None]
            out[top : top + step] = torch.maximum(part[..., :p], right[:, :p]).sum(-1)
            out[top : top + step] += torch.minimum(part[..., p:bends], right[:, p:bends]).sum(-1)
        out += left[:, bends:] @ right[:, bends:].T
        return out.add_(constants[:, None])

    def coverage_gains(self, rows: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """As above; tiles stay on the device."""
        import torch

        rows, covered = self._checked(rows, covered)
        bar = torch.from_numpy(covered).to(self._rows.device)
        gains = np.empty(len(rows), dtype=np.float64)
        for part in _parts(len(rows), self.shape[1]):
            entries = self._score(rows[part], slice(None))
            gains[part] = (entries - bar).clamp_(min=0).sum(1, dtype=torch.float64).cpu().numpy()
        return gains


def _bounded(selector: Any, n: int) -> Any:
    """`selector` as a slice with both ends and step 1, or as int64 indices in 0 <= i < n."""
    if isinstance(selector, slice):
        start, stop, step = selector.indices(n)
        return slice(start, max(start, stop)) if step == 1 else np.arange(start, stop, step)
    indices = np.atleast_1d(np.asarray(selector))
    if (indices.dtype.kind not in "iu" and indices.size) or indices.ndim != 1:
        raise IndexError(f"a selector is a slice, an integer or a list of integers, not {selector!r}")
    if indices.size and not (indices.min() >= 0 and indices.max() < n):
        raise IndexError(f"index {indices.min() if indices.min() < 0 else indices.max()} is out of range for {n}")
    return np.ascontiguousarray(indices, dtype=np.int64)


def _indices(selector: Any) -> np.ndarray:
    return np.arange(selector.start, selector.stop) if isinstance(selector, slice) else selector


def _length(selector: Any) -> int:
    return selector.stop - selector.start if isinstance(selector, slice) else len(selector)


def _parts(rows: int, columns: int) -> Iterator[slice]:
    """Slices over `rows` whose blocks hold at most TILE entries, or one row each."""
    step = max(1, TILE // max(1, columns))
    return (slice(top, min(top + step, rows)) for top in range(0, rows, step))
