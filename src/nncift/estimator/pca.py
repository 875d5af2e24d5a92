"""Principal components by feature block: standardized, truncated, scaled to a mean squared norm of 1.

The blocks of `Features` differ in width and scale (a sentence embedding, a language model's states, a few scalars);
scaling makes distances in different blocks comparable. Each column of a narrow block is a quantity in its own unit and
becomes a block of its own. Both sides share the projection where they have the same blocks, so that cosines between
them are defined.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nncift.features.features import Features

COMPONENTS = 64
_NARROW = 16  # widest block whose columns become blocks of their own
_SAMPLES = 4096  # of a side, that the components are fitted to
_WIDE = 2048  # columns


@dataclass(frozen=True)
class Projection:
    """Features of one side to coordinates in blocks."""

    mean: np.ndarray  # (d,) of the features
    weight: list[tuple[slice, np.ndarray]]  # columns of the features and matrix (columns, components) of each block

    @property
    def slices(self) -> list[slice]:
        """The coordinates of each block."""
        ends = np.cumsum([0] + [matrix.shape[1] for _, matrix in self.weight])
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]

    @property
    def wide(self) -> list[slice]:
        """The blocks of several coordinates, in which a cosine is defined."""
        return [block for block in self.slices if block.stop - block.start > 1]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Features (n, d) to coordinates (n, width): computed in float32, returned as float64."""
        rows = np.asarray(rows, dtype=np.float32) - self.mean.astype(np.float32)
        parts = [rows[:, columns] @ matrix.astype(np.float32) for columns, matrix in self.weight]
        return np.concatenate(parts, axis=1, dtype=np.float64)

    def state(self, prefix: str) -> dict[str, np.ndarray]:
        """All arrays as float32, names beginning with `prefix`."""
        blocks = {f"{prefix}.block.{n}": matrix.astype(np.float32) for n, (_, matrix) in enumerate(self.weight)}
        return {f"{prefix}.centre": self.mean.astype(np.float32), **blocks}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], prefix: str, columns: list[list[int]]) -> Projection:
        """The inverse of `state`; `columns` are the first column of each block and the one past its last."""
        blocks = [
            (slice(first, end), np.asarray(arrays[f"{prefix}.block.{n}"], dtype=np.float64))
            for n, (first, end) in enumerate(columns)
        ]
        return cls(np.asarray(arrays[f"{prefix}.centre"], dtype=np.float64), blocks)


def fit_projections(
    pool: Features, target: Features, rows: np.ndarray, columns: np.ndarray
) -> tuple[Projection, Projection]:
    """Projections of both sides' features, one object where they are the same.

    They are fitted to the labelled pool samples (`rows`) and targets (`columns`), and to others up to 4,096 of a side.
    """
    samples = [_some(pool, rows), _some(target, columns)]
    if pool.widths == target.widths:
        both = _fit(np.concatenate(samples), pool.widths)
        return both, both
    return _fit(samples[0], pool.widths), _fit(samples[1], target.widths)


def _some(side: Features, labelled: np.ndarray) -> np.ndarray:
    others = np.setdiff1d(np.unique(np.linspace(0, len(side) - 1, _SAMPLES).astype(np.int64)), labelled)
    chosen = np.concatenate([labelled[:_SAMPLES], others[: max(_SAMPLES - len(labelled), 0)]])
    return np.asarray(side[np.sort(chosen)], dtype=np.float64)


def _fit(samples: np.ndarray, widths: dict[str, int]) -> Projection:
    mean = samples.mean(axis=0)
    weight: list[tuple[slice, np.ndarray]] = []
    first = 0
    for width in widths.values():
        step = 1 if width <= _NARROW else width
        for start in range(first, first + width, step):
            columns = slice(start, start + step)
            weight.append((columns, _leading(samples[:, columns] - mean[columns])))
        first += width
    return Projection(_rounded(mean), [(columns, _rounded(matrix)) for columns, matrix in weight])


def _rounded(array: np.ndarray) -> np.ndarray:
    """Float64 rounded to float32 precision: a stored projection gives the same coordinates."""
    return array.astype(np.float32).astype(np.float64)


def _leading(block: np.ndarray) -> np.ndarray:
    """Principal directions of a centered block (n, width), scaled to a mean squared norm of 1: (width, components).

    Columns are standardized: a few of a language model's states are a thousand times as large as the others and would
    dominate.
    """
    deviation = block.std(axis=0)
    with np.errstate(divide="ignore"):
        scale = np.where(deviation > 1e-6 * deviation.max(initial=0), 1 / deviation, 0.0)
    standardized = block * scale
    if _WIDE < block.shape[1] > len(block):  # the covariance of a wide block takes minutes
        values, left = np.linalg.eigh(standardized @ standardized.T / len(block))
        spans = values > 1e-9 * values.max(initial=0)
        directions = standardized.T @ (left / np.sqrt(np.where(spans, values * len(block), np.inf)))
    else:
        values, directions = np.linalg.eigh(standardized.T @ standardized / len(block))
    keep = min(COMPONENTS, len(values))
    variance = float(values[-keep:].clip(min=0).sum())
    leading = scale[:, None] * directions[:, ::-1][:, :keep]
    return np.asarray(leading / np.sqrt(variance) if variance > 0 else leading * 0.0)
