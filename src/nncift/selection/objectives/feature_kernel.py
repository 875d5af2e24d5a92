"""Similarity of samples by their features: vectors of length 1, whose inner products are cosines.

Only the vectors are kept, memory-mapped where they are, and read in blocks, so that memory grows with neither the
number of samples nor that of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from nncift.errors import ConfigError
from nncift.matrix.selectors import row_slices


class FeatureKernel:
    """Unit vectors of the samples.

    Args:
        vectors: of the samples, (n, d): an array, which may be memory-mapped, a `scipy.sparse.csr_array`, or what gives
            rows likewise. Of any length; one of zeros is like no other.
        n: number of samples that there have to be.
        widest: vectors of more numbers are projected to as many at random, which keeps cosines up to about
            1 / sqrt(widest) (Johnson and Lindenstrauss 1984); as they are unless given.

    Raises:
        ConfigError: there are none, or of another number of samples.
    """

    def __init__(self, vectors: Any, n: int, *, widest: int | None = None) -> None:
        if vectors is None:
            raise ConfigError("this `objective` compares samples by their features, and has none", "give `features`")
        if len(vectors.shape) != 2 or vectors.shape[0] != n:
            raise ConfigError(f"features of the shape {vectors.shape} do not fit {n} samples", "give one row for each")
        self._vectors, self.n = vectors, n
        self._widest = widest if widest is not None and vectors.shape[1] > widest else None
        self.width = int(self._widest or vectors.shape[1])

    def rows(self, i: Any) -> np.ndarray:
        """Unit vectors of some samples (a slice or int64), float32 (rows, width), C-contiguous."""
        rows = self._vectors[i]
        rows = np.asarray(rows if not hasattr(rows, "toarray") else rows.toarray(), dtype=np.float32)
        if self._widest is not None:
            rows = rows @ self._projection
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64)).astype(np.float32)[:, None]
        return np.ascontiguousarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0))

    def blocks(self, i: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """The unit vectors of all samples, or of those at `i` (int64), block by block, each with its place."""
        for part in row_slices(self.n if i is None else len(i), self._vectors.shape[1]):
            yield part, self.rows(part if i is None else i[part])

    def products(self, i: np.ndarray | None, vector: np.ndarray) -> np.ndarray:
        """Inner products of samples (int64; all) with a vector (width,), float64: each independent of the others."""
        products = np.empty(self.n if i is None else len(i))
        for part, rows in self.blocks(i):
            products[part] = np.einsum("ij,j->i", rows, vector, dtype=np.float64)
        return products

    @cached_property
    def total(self) -> np.ndarray:
        """Sum of all vectors, float64 (width,)."""
        total = np.zeros(self.width)
        for _, rows in self.blocks():
            total += rows.sum(axis=0, dtype=np.float64)
        return total

    @cached_property
    def _projection(self) -> np.ndarray:
        shape = self._vectors.shape[1], self.width
        return np.random.default_rng(0).standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(self.width))
