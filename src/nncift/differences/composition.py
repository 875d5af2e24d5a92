"""What two pools and subsets are made of: rows by the values of each column that has few, and lengths of the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nncift.data.composition import Counts, is_grouping, length_quantiles

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class ValueCount:
    """A value of a column: how many rows of each of the two pools and subsets have it.

    Attributes:
        value: as text; None of rows without one.
        pools, subsets: rows, of either run.
    """

    value: str | None
    pools: tuple[int, int]
    subsets: tuple[int, int]


@dataclass(frozen=True)
class ColumnCounts:
    """A column and the rows of each of its values, the most frequent in the pools first."""

    column: str
    values: tuple[ValueCount, ...]


@dataclass(frozen=True)
class Lengths:
    """Characters of the prompts or responses: the quantiles 0.1, 0.5 and 0.9.

    Attributes:
        text: "prompt" or "response".
        pools, subsets: the quantiles, of either run.
    """

    text: str
    pools: tuple[tuple[float, ...], tuple[float, ...]]
    subsets: tuple[tuple[float, ...], tuple[float, ...]]


def joined_counts(first: Counts, second: Counts) -> tuple[ColumnCounts, ...]:
    """The columns that have few values in both pools, in the order of the first."""
    found = []
    for name in first:
        if name not in second:
            continue
        (pool, subset), (other_pool, other_subset) = first[name], second[name]
        both = pool + other_pool  # without values that no row has
        if is_grouping(both):
            values = (
                ValueCount(value, (pool[value], other_pool[value]), (subset[value], other_subset[value]))
                for value, _ in both.most_common()
            )
            found.append(ColumnCounts(name, tuple(values)))
    return tuple(found)


def text_lengths(pools: Sequence[Dataset], chosen: Sequence[np.ndarray]) -> tuple[Lengths, ...]:
    """Lengths of prompts and responses in two pools and their subsets.

    Args:
        pools: as `load_pool` returns them.
        chosen: rows in the subsets, int64.
    """
    found = []
    for text in ("prompt", "response"):
        first, second = (length_quantiles(pool, text) for pool in pools)
        own, other = (length_quantiles(pool, text, rows) for pool, rows in zip(pools, chosen, strict=True))
        found.append(Lengths(text, (first, second), (own, other)))
    return tuple(found)
