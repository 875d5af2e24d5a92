"""What pools and subsets are made of: rows by the values of each column that has few, and lengths of the texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nncift.run.progress import advance
from nncift.run.quotas import value_text

if TYPE_CHECKING:
    from datasets import Dataset

MOST_VALUES = 30  # of a column
_ROWS_EACH = 4  # rows for each value, at least: a column of ids has one
_LONGEST = 80  # characters of a value
_SOURCE = "source"  # column of a mixture, which comes before one of the rows by that name
_QUANTILES = (0.1, 0.5, 0.9)
_BATCH = 4096

Counts = dict[str, tuple[Counter[str | None], Counter[str | None]]]
"""Column to the rows of each value, of the pool and of the subset; None stands for rows without a value."""


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


def count_values(pool: Dataset, chosen: np.ndarray) -> Counts:
    """The rows of each value, of the columns whose values are short, no lists or mappings, and at most `MOST_VALUES`.

    Args:
        pool: as `load_pool` returns it.
        chosen: rows in the subset, int64 (k,).
    """
    inside = np.zeros(len(pool), bool)
    inside[chosen] = True
    mixture = _SOURCE in pool.column_names and pool.data.column(_SOURCE).null_count < len(pool)
    counts: Counts = {}
    refused: set[str] = set()
    some = pool.select_columns(["original", _SOURCE] if mixture else ["original"])
    for start in range(0, len(pool), _BATCH):
        batch = some[start : start + _BATCH]
        for i, text in enumerate(batch["original"], start):
            row = json.loads(text)
            if mixture:
                row[_SOURCE] = batch[_SOURCE][i - start]
            for name, value in row.items():
                if name in refused or value is None:
                    continue
                of_pool, of_subset = counts.setdefault(name, (Counter(), Counter()))
                shown = None if isinstance(value, list | dict) else value_text(value)
                if shown is None or len(shown) > _LONGEST or (shown not in of_pool and len(of_pool) == MOST_VALUES):
                    refused.add(name)
                    del counts[name]
                    continue
                of_pool[shown] += 1
                of_subset[shown] += bool(inside[i])
        advance(len(batch["original"]))
    sizes = len(pool), len(chosen)
    for both in counts.values():
        for counter, size in zip(both, sizes, strict=True):
            counter[None] = size - counter.total()
    return {name: both for name, both in counts.items() if name not in refused}


def joined_counts(first: Counts, second: Counts) -> tuple[ColumnCounts, ...]:
    """The columns that have few values in both pools, in the order of the first."""
    found = []
    for name in first:
        if name not in second:
            continue
        (pool, subset), (other_pool, other_subset) = first[name], second[name]
        both = pool + other_pool  # without values that no row has
        if 2 <= len(both) <= MOST_VALUES and _ROWS_EACH * len(both) <= both.total():
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
    import pyarrow.compute as pc

    found = []
    for text in ("prompt", "response"):
        lengths = [pc.utf8_length(pool.data.column(text)).to_numpy() for pool in pools]
        whole, parts = (
            tuple(tuple(float(v) for v in np.quantile(some, _QUANTILES)) if len(some) else () for some in sides)
            for sides in (lengths, [own[rows] for own, rows in zip(lengths, chosen, strict=True)])
        )
        found.append(Lengths(text, (whole[0], whole[1]), (parts[0], parts[1])))
    return tuple(found)
