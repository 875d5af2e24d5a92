"""Radial units: kernels between samples, given their coordinates, and the labelled samples of their side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.pca import Projection

SHARPNESS = (5.0, 30.0)
"""A similarity is exp(k (cosine - 1)) for one of these: 1 for the same direction, near 0 for unrelated ones.

The first tells what is alike, the second what is of one template: a choice goes by the largest values.
"""

_SAME = 1e-9  # squared distance of two samples' coordinates below which they are one


def block_kernels(a: Tensor, b: Tensor, slices: list[slice]) -> Tensor:
    """exp(-|u - v|^2 / 2) in each block of coordinates: (n, width), (m, width) -> (blocks, n, m).

    The single quantities count one by one, and, where there are several, once more together: their product.
    """
    parts, together, single = [], None, 0
    for block in slices:
        u, v = a[:, block], b[:, block]
        squared = (u * u).sum(1)[:, None] + (v * v).sum(1) - 2 * u @ v.T
        parts.append(torch.exp(-squared.clamp_(min=0) / 2))
        if block.stop - block.start == 1:
            single += 1
            together = parts[-1] if together is None else together * parts[-1]
    if together is not None and single > 1:
        parts.append(together)
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


def similarities(cosine: Tensor, sharpness: Sequence[float]) -> list[Tensor]:
    """exp(k (cosine - 1)) for each k; positive definite functions of two samples, as sums of the cosine's powers."""
    return [torch.exp(k * (cosine - 1)) for k in sharpness]


@dataclass(frozen=True)
class Side:
    """The labelled samples of one side, and the weights of the kernels to them.

    Attributes:
        projection: features to coordinates.
        landmarks: (m, width) coordinates of the labelled samples.
        log_weights: (kernels, blocks) logarithmic weights of the blocks in each kernel.
        own: (kernels,) what each kernel has on top for a sample and itself.

    All are float64 that float32 can hold, so that a stored side gives the same numbers.
    """

    projection: Projection
    landmarks: Tensor
    log_weights: Tensor
    own: Tensor

    def coordinates(self, rows: Any) -> Tensor:
        """Features (n, d) to coordinates (n, width)."""
        return torch.from_numpy(self.projection(rows))

    def smooth(self, x: Tensor) -> list[Tensor]:
        """Each kernel between samples, given their coordinates, and the labelled ones, without what is their own."""
        blocks = block_kernels(x, self.landmarks, self.projection.slices)
        return [kernel(blocks, weights) for weights in self.log_weights]

    def kernels(self, x: Tensor) -> list[Tensor]:
        """Each kernel, and what a labelled sample has of its own where it is met again."""
        same = same_samples(x, self.landmarks)
        return [values + own * same for values, own in zip(self.smooth(x), self.own, strict=True)]

    def state(self, prefix: str) -> dict[str, np.ndarray]:
        """All numbers but the projection's as float32, names beginning with `prefix`."""
        return {f"{prefix}.{name}": getattr(self, name).float().numpy().copy() for name in _ARRAYS}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], prefix: str, projection: Projection) -> Side:
        """What `state` gave."""
        return cls(projection, *(torch.from_numpy(np.float64(arrays[f"{prefix}.{name}"])) for name in _ARRAYS))


_ARRAYS = ("landmarks", "log_weights", "own")


def rounded(value: Tensor) -> Tensor:
    """The nearest numbers that float32 holds, as float64."""
    return value.float().double()
