"""Which pairs to label: a grid of pool rows x targets, drawn at random, seeded.

The grid has four pool rows to a target: an influence function shares an example's work over its targets, so
a tall grid costs a little more per pair, but the pool is where the network has to generalise furthest.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nncift.config import Amount
from nncift.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.influence import InfluenceFunction

ROWS_PER_TARGET = 4
_TRIAL_ROWS, _TRIAL_TARGETS = 2, 8


@dataclass(frozen=True)
class PairPlan:
    """The grid to label: `rows` (r,) int64 into the pool, `columns` (c,) int64 into the targets."""

    rows: np.ndarray
    columns: np.ndarray

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)


def plan_pairs(n_pool: int, n_target: int | None, pairs: int, *, seed: int = 0) -> PairPlan:
    """A random grid of about `pairs` pairs.

    Args:
        n_pool: samples in the pool.
        n_target: samples in the target, or None when the pool is its own target: then no sample is both a
            row and a column, so that a held-out sample is new on both sides.
        pairs: how many, at most; a grid seldom hits the number exactly.
        seed: which ones.

    Raises:
        ConfigError: fewer than two pairs can be labelled.
    """
    rng = np.random.default_rng(seed)
    most_columns = n_target if n_target is not None else n_pool // 2
    columns = min(max(round(math.sqrt(pairs / ROWS_PER_TARGET)), min(8, pairs)), most_columns)
    most_rows = n_pool if n_target is not None else n_pool - columns
    rows = min(pairs // columns, most_rows) if columns else 0
    if rows == most_rows:  # a small pool leaves room for more targets
        columns = min(pairs // rows, most_columns) if rows else 0
    if rows * columns < 2:
        raise ConfigError(f"{pairs} labels are too few to learn from", "raise --labels, or give more data")
    if n_target is None:
        both = rng.permutation(n_pool)[: rows + columns]
        return PairPlan(np.sort(both[:rows]), np.sort(both[rows:]))
    return PairPlan(np.sort(rng.permutation(n_pool)[:rows]), np.sort(rng.permutation(n_target)[:columns]))


def number_of_pairs(amount: Amount, n_pool: int, n_target: int, seconds_per_pair: float | None = None) -> int:
    """How many pairs an amount of labels stands for."""
    if amount.kind == "fraction":
        return max(round(amount.value * n_pool * n_target), 1)
    if amount.kind == "seconds":
        if seconds_per_pair is None:
            raise ValueError("a time needs a measured rate")
        return max(int(amount.value / seconds_per_pair), 1)
    return int(amount.value)


def measure_rate(function: InfluenceFunction, pool: Dataset, target: Dataset, *, seed: int = 0) -> float:
    """Seconds per pair of an influence function, measured on a few random pairs after a warm-up."""
    rng = np.random.default_rng(seed)
    rows = pool.select(np.sort(rng.permutation(len(pool))[: _TRIAL_ROWS + 1]))
    targets = target.select(np.sort(rng.permutation(len(target))[:_TRIAL_TARGETS]))
    if hasattr(function, "prepare"):
        function.prepare(rows, targets, None)
    function(rows.select([0]), targets)  # loads the model, warms up
    timed = rows.select(range(min(1, len(rows) - 1), len(rows)))
    since = time.perf_counter()
    function(timed, targets)
    return (time.perf_counter() - since) / (len(timed) * len(targets))
