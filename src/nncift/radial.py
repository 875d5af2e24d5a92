"""A layer of radial units: kernels between a sample and the landmarks of its side, times learned matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncift.projection import Projection

_SAME = 1e-9  # squared distance of two samples' coordinates below which they are one
_CHUNK = 1 << 20  # numbers in the largest block of kernels: it stays in the cache


def block_kernels(a: Tensor, b: Tensor, slices: list[slice]) -> Tensor:
    """exp(-|u - v|^2 / 2) in each block of coordinates: (n, width), (m, width) -> (blocks, n, m)."""
    parts = []
    for block in slices:
        u, v = a[:, block], b[:, block]
        squared = (u * u).sum(1)[:, None] + (v * v).sum(1) - 2 * u @ v.T
        parts.append(torch.exp(-squared.clamp_(min=0) / 2))
    return torch.stack(parts)


def kernel(blocks: Tensor, log_weights: Tensor) -> Tensor:
    """The weighted sum over blocks: (blocks, n, m) -> (n, m)."""
    return torch.einsum("b,bij->ij", log_weights.exp(), blocks)


def same_samples(a: Tensor, b: Tensor) -> Tensor:
    """1 where two samples are one, else 0: (n, width), (m, width) -> (n, m) float64."""
    squared = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return (squared < _SAME).to(a.dtype)


def unit_blocks(coordinates: Tensor, projection: Projection) -> list[Tensor]:
    """Each wide block of coordinates at length 1: their products are cosines."""
    return [torch.nn.functional.normalize(coordinates[:, block], dim=1) for block in projection.wide]


@dataclass(frozen=True)
class RadialLayer:
    """sum_h K_h(x, landmarks) M_h + same(x, landmarks) O + sum_b unit_b(x) U_b + constant: k numbers per sample.

    Attributes:
        projection: features to coordinates.
        landmarks: (m, width) coordinates of the labelled samples.
        log_weights: (heads, blocks) of each kernel K_h.
        matrices: (heads, m, k) M_h.
        own: (m, k) O, what belongs to one labelled sample alone.
        units: (width, k) U, 0 where a block has no cosine.
        constant: (k,).

    All are float64 that float32 can hold, so that a stored layer gives the same numbers.
    """

    projection: Projection
    landmarks: Tensor
    log_weights: Tensor
    matrices: Tensor
    own: Tensor
    units: Tensor
    constant: Tensor

    def __call__(self, features: Any) -> np.ndarray:
        """Features (n, d) to (n, k) float64, in chunks."""
        step = max(_CHUNK // (max(self.log_weights.shape[1], 1) * max(len(self.landmarks), 1)), 1)
        out = np.empty((len(features), len(self.constant)))
        for start in range(0, len(features), step):
            out[start : start + step] = self._of(self.coordinates(features[start : start + step])).numpy()
        return out

    def coordinates(self, rows: np.ndarray) -> Tensor:
        """Features (n, d) to coordinates (n, width)."""
        return torch.from_numpy(self.projection(rows))

    def kernels(self, x: Tensor) -> list[Tensor]:
        """K_h between samples, given their coordinates, and the landmarks."""
        blocks = block_kernels(x, self.landmarks, self.projection.slices)
        return [kernel(blocks, weights) for weights in self.log_weights]

    def _of(self, x: Tensor) -> Tensor:
        out = same_samples(x, self.landmarks) @ self.own + self.constant
        for values, matrix in zip(self.kernels(x), self.matrices, strict=True):
            out += values @ matrix
        for block, unit in zip(self.projection.wide, unit_blocks(x, self.projection), strict=True):
            out += unit @ self.units[block]
        return out

    def times(self, matrix: Tensor) -> RadialLayer:
        """The layer with its outputs multiplied by a matrix (k, l), rounded to what float32 holds."""
        outputs = (self.matrices, self.own, self.units, self.constant)
        return RadialLayer(
            self.projection,
            rounded(self.landmarks),
            rounded(self.log_weights),
            *(rounded(part @ matrix) for part in outputs),
        )

    def state(self, prefix: str) -> dict[str, np.ndarray]:
        """All numbers but the projection's as float32, names beginning with `prefix`."""
        return {f"{prefix}.{name}": getattr(self, name).float().numpy().copy() for name in _ARRAYS}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], prefix: str, projection: Projection) -> RadialLayer:
        """What `state` gave."""
        return cls(projection, *(torch.from_numpy(np.float64(arrays[f"{prefix}.{name}"])) for name in _ARRAYS))


_ARRAYS = ("landmarks", "log_weights", "matrices", "own", "units", "constant")


def rounded(value: Tensor) -> Tensor:
    """The nearest numbers that float32 holds, as float64."""
    return value.float().double()
