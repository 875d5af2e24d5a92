"""Similarities of two samples that need no label, from blocks of their features.

Of the language model's states over the response and of the gradient sketch they are what the influence functions
response-similarity and gradient-sketch compute: exp(5 (cosine - 1)) of centered vectors, those of states standardized.
Each is positive definite, a power series of the cosine with positive coefficients, and so is their mean, which the
Gaussian process takes as its prior mean: on any target it is a combination of the similarities to a few inducing
points, which gives it towers (`towers`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from nncift.estimator.covariance import nystrom
from nncift.features.features import Features
from nncift.features.sources import SKETCH
from nncift.labels.pairs import LabelledPairs

STATES = "response states"
_STANDARDIZED = {STATES: True, SKETCH: False}  # the blocks with a similarity
_SHARPNESS = 5.0  # that of response-similarity and gradient-sketch
_SAMPLES = 4096  # of either side, for mean and deviation
_STORED = ("mean", "scale")


@dataclass(frozen=True)
class BlockSimilarity:
    """exp(5 (cosine - 1)) of one block's columns, minus their mean and times their scale.

    Attributes:
        columns: of the features.
        mean: (width,), both arrays float64 representable in float32.
        scale: (width,), 1 / deviation, 0 of a column that is constant.
    """

    columns: slice
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, pool: Features, target: Features, block: str, columns: slice) -> Self:
        """Mean, and deviation if the block is to be standardized, over both sides."""
        some = np.concatenate([side.blocks[block][:_SAMPLES] for side in (pool, target)]).astype(np.float64)
        deviation = some.std(axis=0) if _STANDARDIZED[block] else np.ones(some.shape[1])
        varies = deviation > 1e-6 * deviation.max(initial=0)
        scale = np.divide(1, deviation, where=varies, out=np.zeros_like(deviation))
        return cls(columns, _rounded(some.mean(axis=0)), _rounded(scale))

    def units(self, block: np.ndarray) -> Tensor:
        """The block's columns of n samples to vectors of unit length: (n, width) -> (n, width) float32."""
        scaled = (np.asarray(block, dtype=np.float32) - self.mean.astype(np.float32)) * self.scale.astype(np.float32)
        return torch.nn.functional.normalize(torch.from_numpy(scaled), dim=1)

    def grid(self, pool: Tensor, target: Tensor) -> Tensor:
        """Similarity of all pairs, given their unit vectors: (n, m) float64."""
        return torch.exp(_SHARPNESS * ((pool @ target.T).double() - 1))

    def pairs(self, pool: Tensor, target: Tensor) -> Tensor:
        """Similarity of n pairs, given their unit vectors: (n,) float64."""
        return torch.exp(_SHARPNESS * ((pool * target).sum(1).double() - 1))


class LabelFreeSimilarity:
    """The mean of the similarities of all blocks that have one, in (0, 1]; 1 for the same sample.

    Args:
        blocks: at least one.
    """

    def __init__(self, blocks: Sequence[BlockSimilarity]) -> None:
        self.blocks = list(blocks)

    @classmethod
    def of(cls, pool: Features, target: Features) -> Self | None:
        """Of the blocks that have one; None without any, or where the sides have different blocks."""
        blocks = block_similarities(pool, target) if pool.widths == target.widths else {}
        return cls(list(blocks.values())) if blocks else None

    def units(self, rows: np.ndarray) -> list[Tensor]:
        """Features (n, d) to each block's unit vectors, (n, width) float32."""
        return [block.units(rows[:, block.columns]) for block in self.blocks]

    def grid(self, pool: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
        """Similarity of all pairs, given their unit vectors: (n, m) float64."""
        found = [block.grid(u, v) for block, u, v in zip(self.blocks, pool, target, strict=True)]
        return torch.stack(found).mean(0)

    def pairs(self, pool: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
        """Similarity of n pairs, given their unit vectors: (n,) float64."""
        found = [block.pairs(u, v) for block, u, v in zip(self.blocks, pool, target, strict=True)]
        return torch.stack(found).mean(0)

    def pool_tower(self, rows: np.ndarray, inducing: Sequence[Tensor]) -> Tensor:
        """The half of pool samples, features (n, d), in a product of two towers, given some targets: (n, width)."""
        return self.grid(self.units(rows), inducing)

    def target_tower(self, rows: np.ndarray, inducing: Sequence[Tensor]) -> Tensor:
        """The half of targets: (m, width), by the Nyström approximation."""
        return nystrom(*(self.grid(side, inducing) for side in (self.units(rows), inducing)))

    def residuals(self, pool: Features, target: Features, labels: LabelledPairs) -> tuple[LabelledPairs, float]:
        """The labels minus the scaled similarity, and the scale: least squares within each target, never negative."""
        rows, row = np.unique(labels.pool_index, return_inverse=True)
        columns, column = np.unique(labels.target_index, return_inverse=True)
        alike = self.grid(self.units(pool[rows]), self.units(target[columns])).numpy()[row, column]
        value, counts = labels.influence.astype(np.float64), np.bincount(column)
        x, y = (each - (np.bincount(column, each) / counts)[column] for each in (alike, value))
        square = float(x @ x)
        slope = max(float(x @ y) / square, 0.0) if square > 1e-12 * float(alike @ alike) else 0.0
        return replace(labels, influence=value - slope * alike), slope

    def state(self) -> tuple[dict[str, np.ndarray], list[list[int]]]:
        """Arrays (float32), and the first column of each block and the one past its last."""
        arrays = {
            f"similarity.{number}.{name}": getattr(block, name).astype(np.float32)
            for number, block in enumerate(self.blocks)
            for name in _STORED
        }
        return arrays, [[block.columns.start, block.columns.stop] for block in self.blocks]

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], columns: Sequence[Sequence[int]]) -> Self:
        """The inverse of `state`."""
        return cls(
            [
                BlockSimilarity(
                    slice(first, past),
                    *(arrays[f"similarity.{number}.{name}"].astype(np.float64) for name in _STORED),
                )
                for number, (first, past) in enumerate(columns)
            ]
        )


def block_similarities(pool: Features, target: Features) -> dict[str, BlockSimilarity]:
    """The similarity of each block of the pool that has one and that the targets have too."""
    found, first = {}, 0
    for name, width in pool.widths.items():
        if name in _STANDARDIZED and target.widths.get(name) == width:
            found[name] = BlockSimilarity.of(pool, target, name, slice(first, first + width))
        first += width
    return found


def _rounded(array: np.ndarray) -> np.ndarray:
    """Float64 rounded to float32 precision: a stored similarity gives the same values."""
    return array.astype(np.float32).astype(np.float64)
