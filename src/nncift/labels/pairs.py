"""Labelled pairs: exact influence values with the samples they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from nncift.run.storage.files import read_table, write_table

_COLUMNS = ("pool_index", "target_index", "influence")
_HELD_OUT = 10  # pool samples


@dataclass(frozen=True)
class LabelledPairs:
    """Aligned arrays of exact influence values.

    Attributes:
        pool_index: (n,) int32, the sample that may help.
        target_index: (n,) int32, the sample that it may help.
        influence: (n,) float32, larger is better.
    """

    pool_index: np.ndarray
    target_index: np.ndarray
    influence: np.ndarray

    def __len__(self) -> int:
        return len(self.influence)

    def __repr__(self) -> str:
        rows, targets = len(np.unique(self.pool_index)), len(np.unique(self.target_index))
        return f"LabelledPairs({len(self)} pairs, {rows} pool samples, {targets} targets)"

    def take(self, mask: np.ndarray) -> LabelledPairs:
        """The pairs where `mask` (n,) bool holds, or those at these indices."""
        return LabelledPairs(*(getattr(self, name)[mask] for name in _COLUMNS))

    def split(
        self,
        fraction: float = 0.8,
        *,
        seed: int = 0,
        held_out: tuple[np.ndarray, np.ndarray] | None = None,
        pool_groups: np.ndarray | None = None,
        target_groups: np.ndarray | None = None,
    ) -> tuple[LabelledPairs, LabelledPairs]:
        """Hold out whole samples on both sides.

        Args:
            fraction: share of the samples of each side to train on. Of two or more, at least one is held out, and ten
                pool samples where that is at most a third: fewer are inconclusive.
            seed: of the random split.
            held_out: the pool samples and the targets to hold out instead of random ones.
            pool_groups: group number of every pool sample; a group (exact duplicates) is held out as a whole. Each
                sample is its own group unless given.
            target_groups: the same for the targets.

        Returns:
            The pairs to train on (both samples seen, the paper's quadrant Q1), and the held-out pairs.
        """
        rng = np.random.default_rng(seed)
        rows, targets = held_out or (None, None)
        stays = _keep(self.pool_index, pool_groups, fraction, rng, rows, least=_HELD_OUT)
        stays &= _keep(self.target_index, target_groups, fraction, rng, targets)
        return self.take(stays), self.take(~stays)

    @classmethod
    def joined(cls, parts: Sequence[LabelledPairs]) -> LabelledPairs:
        """The pairs of all parts, in order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS))

    def without(self, others: LabelledPairs) -> LabelledPairs:
        """The pairs that `others` does not have."""
        width = max(self.target_index.max(initial=0), others.target_index.max(initial=0)) + 1
        own, other = (pairs.pool_index.astype(np.int64) * width + pairs.target_index for pairs in (self, others))
        return self.take(~np.isin(own, other))

    @property
    def pointwise(self) -> bool:
        """Whether each pool sample has one score for all its targets, and at least one has several targets."""
        _, row = np.unique(self.pool_index, return_inverse=True)
        low, high = np.full(row.max(initial=-1) + 1, np.inf), np.full(row.max(initial=-1) + 1, -np.inf)
        np.minimum.at(low, row, self.influence)
        np.maximum.at(high, row, self.influence)
        return bool(len(low) < len(row) and (low == high).all())

    def quadrants(self, train: LabelledPairs) -> np.ndarray:
        """The paper's quadrant of each pair, (n,) of "Q1" both samples seen in `train`, "Q2" new pool sample,
        "Q3" new target, "Q4" both new.
        """  # noqa: D205
        new_pool = ~np.isin(self.pool_index, train.pool_index)
        new_target = ~np.isin(self.target_index, train.target_index)
        return np.array(["Q1", "Q2", "Q3", "Q4"])[new_pool + 2 * new_target]

    def save(self, path: Path) -> None:
        """Write a Parquet file of the three columns."""
        write_table(path, pa.table({name: getattr(self, name) for name in _COLUMNS}))

    @classmethod
    def load(cls, path: Path) -> LabelledPairs:
        """Read what `save` wrote."""
        table = read_table(path)
        return cls(*(table[name].to_numpy() for name in _COLUMNS))


@dataclass(frozen=True)
class Probes:
    """Exact influence of each of n pool samples on the same few targets.

    Attributes:
        columns: (k,) int64 indices of the targets.
        influence: (n, k) float32; nan where a sample is the target itself.
    """

    columns: np.ndarray
    influence: np.ndarray

    @classmethod
    def of_grid(cls, pairs: LabelledPairs, n_pool: int, columns: np.ndarray, *, own_target: bool) -> Probes:
        """From the exact influence of all n pool samples on the targets, row by row.

        Args:
            pairs: n x k values.
            n_pool: n.
            columns: (k,) int64 indices of the targets.
            own_target: the pool is its own target, so that a sample may be among these.
        """
        influence = pairs.influence.reshape(n_pool, len(columns)).copy()
        if own_target:
            influence[columns, np.arange(len(columns))] = np.nan
        return cls(columns, influence)

    def take(self, rows: np.ndarray) -> Probes:
        """The probes of some of the samples."""
        return Probes(self.columns, self.influence[rows])

    def joined(self, other: Probes) -> Probes:
        """These with the other's additional targets."""
        new = ~np.isin(other.columns, self.columns)
        columns = np.concatenate([self.columns, other.columns[new]])
        return Probes(columns, np.concatenate([self.influence, other.influence[:, new]], axis=1))


def _keep(
    index: np.ndarray,
    groups: np.ndarray | None,
    fraction: float,
    rng: np.random.Generator,
    chosen: np.ndarray | None,
    *,
    least: int = 1,
) -> np.ndarray:
    """Which pairs have a sample of this side that is not held out; `chosen` ones are, with all of their groups."""
    own = index if groups is None else groups[index]
    if chosen is not None:
        return ~np.isin(own, chosen if groups is None else groups[chosen])
    distinct = np.unique(own)
    fewest = max(min(least, len(distinct) // 3), 1)
    held_out = max(round((1 - fraction) * len(distinct)), fewest) if len(distinct) > 1 else 0
    return ~np.isin(own, rng.permutation(distinct)[:held_out])
