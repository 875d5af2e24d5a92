"""Kernels between samples, given their coordinates: RBF by block, cosine and its exponentials, and the nugget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.pca import Projection

SHARPNESS = (5.0, 30.0)
"""Values of k in the similarities exp(k (cosine - 1)): 5 captures topical similarity, 30 near-duplicates.

Near-duplicates dominate a maximum, which is what facility location takes over the subset.
"""

CHUNK = 2048  # samples at a time
_SAME = 1e-9  # squared distance below which two samples' coordinates are identical
_STORED = ("landmarks", "log_weights", "own")  # names in model.safetensors


def block_kernels(a: Tensor, b: Tensor, slices: list[slice]) -> Tensor:
    """RBF kernel exp(-|u - v|^2 / 2) of each block of coordinates: (n, width), (m, width) -> (blocks, n, m).

    Blocks of one coordinate enter one by one and, where there are several, also as their product.
    """
    parts, product, single = [], None, 0
    for block in slices:
        parts.append(torch.exp(-_squared_distance(a[:, block], b[:, block]).clamp_(min=0) / 2))
        if block.stop - block.start == 1:
            single += 1
            product = parts[-1] if product is None else product * parts[-1]
    if product is not None and single > 1:
        parts.append(product)
    return torch.stack(parts)


def kernel(blocks: Tensor, log_weights: Tensor) -> Tensor:
    """The weighted sum over blocks: (blocks, n, m) -> (n, m)."""
    return torch.einsum("b,bij->ij", log_weights.exp(), blocks)


def same_samples(a: Tensor, b: Tensor) -> Tensor:
    """1 for identical samples, else 0: (n, width), (m, width) -> (n, m) float64."""
    return (_squared_distance(a, b) < _SAME).to(a.dtype)


def same_pairs(a: Tensor, b: Tensor) -> Tensor:
    """1 where the samples of a pair are identical, else 0: (n, width), (n, width) -> (n,) float64."""
    return ((a - b).square().sum(1) < _SAME).to(a.dtype)


def nystrom(cross: Tensor, kernel: Tensor) -> Tensor:
    """The half of the Nyström approximation that meets similarities to the inducing points, (n, m), given theirs."""
    jitter = 1e-6 * torch.eye(len(kernel), dtype=torch.float64)
    solved: Tensor = torch.linalg.solve(kernel + jitter, cross.T)
    return solved.T


def _squared_distance(a: Tensor, b: Tensor) -> Tensor:
    return (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T


def unit_blocks(coordinates: Tensor, projection: Projection) -> list[Tensor]:
    """Each wide block of coordinates, normalized: inner products are cosines."""
    return [torch.nn.functional.normalize(coordinates[:, block], dim=1) for block in projection.wide]


def similarities(cosine: Tensor, sharpness: Sequence[float]) -> list[Tensor]:
    """exp(k (cosine - 1)) for each k; positive definite, as power series of the cosine with positive coefficients."""
    return [torch.exp(k * (cosine - 1)) for k in sharpness]


@dataclass(frozen=True)
class Side:
    """The training inputs of one side (pool or target) and its kernels.

    All are float64 representable in float32, so that a stored side gives the same numbers.
    """

    projection: Projection  # features to coordinates
    train: Tensor  # (m, width) coordinates of the labelled samples
    log_weights: Tensor  # (kernels, blocks) log-weights of the blocks in each kernel
    nugget: Tensor  # (kernels,) variance that each kernel adds between a sample and itself

    def coordinates(self, rows: Any) -> Tensor:
        """Features (n, d) to coordinates (n, width)."""
        return torch.from_numpy(self.projection(rows))

    def in_chunks(
        self, rows: Any, work: Callable[[Tensor], tuple[np.ndarray, ...]], size: int = CHUNK
    ) -> tuple[np.ndarray, ...]:
        """The arrays that `work` computes from the coordinates of `size` samples at a time, concatenated."""
        return in_chunks(rows, lambda part: work(self.coordinates(part)), size)

    def smooth(self, x: Tensor) -> list[Tensor]:
        """Each kernel between samples, given their coordinates, and the training inputs, without the nugget: (n, m)."""
        blocks = block_kernels(x, self.train, self.projection.slices)
        return [kernel(blocks, weights) for weights in self.log_weights]

    def kernels(self, x: Tensor) -> list[Tensor]:
        """Each kernel with its nugget: (n, m)."""
        same = same_samples(x, self.train)
        return [values + nugget * same for values, nugget in zip(self.smooth(x), self.nugget, strict=True)]

    def state(self, prefix: str) -> dict[str, np.ndarray]:
        """All arrays but the projection's as float32, names beginning with `prefix`."""
        arrays = zip(_STORED, (self.train, self.log_weights, self.nugget), strict=True)
        return {f"{prefix}.{name}": array.float().numpy().copy() for name, array in arrays}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], prefix: str, projection: Projection) -> Side:
        """The inverse of `state`."""
        return cls(projection, *(torch.from_numpy(np.float64(arrays[f"{prefix}.{name}"])) for name in _STORED))


def in_chunks(
    rows: Any, work: Callable[[np.ndarray], tuple[np.ndarray, ...]], size: int = CHUNK
) -> tuple[np.ndarray, ...]:
    """The arrays that `work` computes from the features of `size` samples at a time, concatenated."""
    parts = [work(rows[start : start + size]) for start in range(0, max(len(rows), 1), size)]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def rounded(value: Tensor) -> Tensor:
    """Float64 rounded to float32 precision."""
    return value.float().double()
