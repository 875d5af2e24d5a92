"""A fixed projection of the features: every block standardised, cut to its leading components, brought to one scale.

The blocks of `Features` differ in width and in scale (a sentence embedding, a language model's states, a few scalars).
Here each becomes a few coordinates whose squared length is 1 on average, so that distances in different blocks
compare. A block of a few columns is several quantities with a unit each: each becomes a block of its own. Where both
sides have a block, it is projected alike on both, so that their cosine has a meaning.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nncift.features.features import Features

COMPONENTS = 64
_FEW = 16  # columns, up to which each is a quantity of its own
_SAMPLES = 4096  # of a side, that the components are taken from


@dataclass(frozen=True)
class Projection:
    """Features of one side to `width` coordinates in blocks.

    Attributes:
        centre: (d,) mean of the features.
        weight: block number to (columns of the features, matrix (columns, components)), in the blocks' order.
    """

    centre: np.ndarray
    weight: list[tuple[slice, np.ndarray]]

    @property
    def slices(self) -> list[slice]:
        """Where each block lies among the coordinates."""
        ends = np.cumsum([0] + [matrix.shape[1] for _, matrix in self.weight])
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]

    @property
    def width(self) -> int:
        """Number of coordinates."""
        return sum(matrix.shape[1] for _, matrix in self.weight)

    @property
    def wide(self) -> list[slice]:
        """The blocks among them in which a cosine has a meaning: those of several coordinates."""
        return [block for block in self.slices if block.stop - block.start > 1]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Features (n, d) to coordinates (n, width): worked out in float32, as features are, and given as float64."""
        rows = np.asarray(rows, dtype=np.float32) - self.centre.astype(np.float32)
        parts = [rows[:, columns] @ matrix.astype(np.float32) for columns, matrix in self.weight]
        return np.concatenate(parts, axis=1, dtype=np.float64)

    def state(self, prefix: str) -> dict[str, np.ndarray]:
        """All numbers as float32, names beginning with `prefix`."""
        blocks = {f"{prefix}.block.{n}": matrix.astype(np.float32) for n, (_, matrix) in enumerate(self.weight)}
        return {f"{prefix}.centre": self.centre.astype(np.float32), **blocks}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], prefix: str, columns: list[list[int]]) -> Projection:
        """What `state` gave; `columns` are the first column of each block of features and the one after its last."""
        blocks = [
            (slice(first, end), np.asarray(arrays[f"{prefix}.block.{n}"], dtype=np.float64))
            for n, (first, end) in enumerate(columns)
        ]
        return cls(np.asarray(arrays[f"{prefix}.centre"], dtype=np.float64), blocks)


def fit_projections(
    pool: Features, target: Features, rows: np.ndarray, columns: np.ndarray
) -> tuple[Projection, Projection]:
    """Projections of the pool's and of the targets' features, one object where they are the same.

    Args:
        pool: features of that side.
        target: features of that side.
        rows: labelled pool samples; others join them up to 4,096.
        columns: labelled targets, likewise.
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
    centre = samples.mean(axis=0)
    weight: list[tuple[slice, np.ndarray]] = []
    first = 0
    for width in widths.values():
        step = 1 if width <= _FEW else width
        for start in range(first, first + width, step):
            columns = slice(start, start + step)
            weight.append((columns, _leading(samples[:, columns] - centre[columns])))
        first += width
    return Projection(_rounded(centre), [(columns, _rounded(matrix)) for columns, matrix in weight])


def _rounded(array: np.ndarray) -> np.ndarray:
    """The nearest numbers that float32 holds: a stored projection gives the same coordinates."""
    return array.astype(np.float32).astype(np.float64)


def _leading(block: np.ndarray) -> np.ndarray:
    """Leading directions of a centred block (n, width), scaled to a mean squared length of 1: (width, components).

    Columns count alike: a few of a language model's states are a thousand times as large as the others, and would be
    all that is seen.
    """
    deviation = block.std(axis=0)
    with np.errstate(divide="ignore"):
        scale = np.where(deviation > 1e-6 * deviation.max(initial=0), 1 / deviation, 0.0)
    alike = block * scale
    values, directions = np.linalg.eigh(alike.T @ alike / len(block))
    keep = min(COMPONENTS, len(values))
    spread = float(values[-keep:].clip(min=0).sum())
    leading = scale[:, None] * directions[:, ::-1][:, :keep]
    return np.asarray(leading / np.sqrt(spread) if spread > 0 else leading * 0.0)
