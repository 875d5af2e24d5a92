"""What a pool and its subset are made of: rows by the values of each column that has few, and lengths of the texts."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from nncift.run.options.quotas import value_text
from nncift.run.progress import advance

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


def count_values(pool: Dataset, chosen: np.ndarray, most: int = MOST_VALUES) -> Counts:
    """The rows of each value, of the columns whose values are short, no lists or mappings, and few.

    Args:
        pool: as `load_pool` returns it.
        chosen: rows in the subset, int64 (k,).
        most: values of a column.
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
                if shown is None or len(shown) > _LONGEST or (shown not in of_pool and len(of_pool) == most):
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


def is_grouping(counts: Counter[str | None], most: int = MOST_VALUES) -> bool:
    """Whether a column with these rows of each value has at least two, at most `most`, and not one for each row."""
    found = +counts  # without values that no row has
    return 2 <= len(found) <= most and _ROWS_EACH * len(found) <= found.total()


def length_quantiles(pool: Dataset, text: str, rows: np.ndarray | None = None) -> tuple[float, ...]:
    """Characters of the "prompt" or "response" of some rows, all unless given: the quantiles 0.1, 0.5 and 0.9.

    Empty of no rows.
    """
    some = _characters(pool, text, rows)
    return tuple(float(value) for value in np.quantile(some, _QUANTILES)) if len(some) else ()


def mean_length(pool: Dataset, text: str, rows: np.ndarray | None = None) -> float:
    """The mean number of characters of the "prompt" or "response" of some rows, all unless given; 0 of no rows."""
    some = _characters(pool, text, rows)
    return float(some.mean()) if len(some) else 0.0


def _characters(pool: Dataset, text: str, rows: np.ndarray | None) -> np.ndarray:
    import pyarrow.compute as pc

    lengths: np.ndarray = pc.utf8_length(pool.data.column(text)).to_numpy()
    return lengths if rows is None else lengths[rows]
