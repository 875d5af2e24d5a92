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
_MOST_PAIRS = 10**9


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


def number_of_pairs(amount: Amount, n_pool: int, n_target: int, rate: Rate | None = None) -> int:
    """How many pairs an amount of labels stands for."""
    if amount.kind == "fraction":
        return max(round(amount.value * n_pool * n_target), 1)
    if amount.kind == "seconds":
        if rate is None:
            raise ValueError("a time needs a measured rate")
        return rate.pairs(amount.value)
    return int(amount.value)


@dataclass(frozen=True)
class Rate:
    """How fast an influence function labels: what it does once per sample, and what each pair takes on top.

    Attributes:
        row, target, pair: seconds for each pool row, each target and each pair.
    """

    row: float
    target: float
    pair: float

    def seconds(self, rows: int, columns: int) -> float:
        """Expected time of a grid."""
        return self.row * rows + self.target * columns + self.pair * rows * columns

    def pairs(self, seconds: float) -> int:
        """Pairs of the largest grid, of `ROWS_PER_TARGET` rows to a target, that fits into a time; at least one."""
        square = self.pair * ROWS_PER_TARGET
        line = max(self.row * ROWS_PER_TARGET + self.target, 1e-9)  # the grain of the clock
        # The root of square * c^2 + line * c = seconds, in a form that holds where square is 0 too.
        columns = 2 * seconds / (line + math.sqrt(line**2 + 4 * square * seconds))
        return min(max(int(ROWS_PER_TARGET * columns**2 + 1e-6), 1), _MOST_PAIRS)


def measure_rate(function: InfluenceFunction, pool: Dataset, target: Dataset, *, seed: int = 0) -> Rate:
    """The rate of an influence function, measured on a few random samples after a warm-up."""
    rng = np.random.default_rng(seed)
    rows = pool.select(np.sort(rng.permutation(len(pool))[: _TRIAL_ROWS + 1]))
    targets = target.select(np.sort(rng.permutation(len(target))[:_TRIAL_TARGETS]))

    def timed(some_rows: Dataset, some_targets: Dataset) -> tuple[float, float]:
        since = time.perf_counter()
        if hasattr(function, "prepare"):
            function.prepare(some_rows, some_targets, None)
        prepared = time.perf_counter()
        function(some_rows, some_targets)
        return prepared - since, time.perf_counter() - prepared

    timed(rows.select([0]), targets.select([0]))  # loads the model, warms up
    rows = rows.select(range(min(1, len(rows) - 1), len(rows)))
    once, block = timed(rows, targets)
    if getattr(function, "pointwise", False):
        return Rate((once + block) / len(rows), 0.0, 0.0)
    each = once / (len(rows) + len(targets))
    return Rate(each, each, block / (len(rows) * len(targets)))
