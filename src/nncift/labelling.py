"""Which pairs to label: a grid of pool rows x targets, drawn at random, seeded.

The grid has four pool rows to a target: an influence function shares an example's work over its targets, so
a tall grid costs a little more per pair, but the pool is where the network has to generalise furthest.

The score that a pointwise function gives a pool row holds for every target, so a row is labelled once, with one of
the targets: as many rows as labels are asked for, and targets enough to show the network that they do not matter.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import Amount
from nncift.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.influence import InfluenceFunction

ROWS_PER_TARGET = 4
_ROWS_PER_TARGET_POINTWISE = 16  # a target has some of them held out, or its ranking could not be judged
_TRIAL_ROWS, _TRIAL_TARGETS = 2, 8
_MOST_PAIRS = 10**9


@dataclass(frozen=True)
class PairPlan:
    """The grid to label: `rows` (r,) int64 into the pool, `columns` (c,) int64 into the targets.

    Of a pointwise function each row is labelled with one of the columns in turn, else with all.
    """

    rows: np.ndarray
    columns: np.ndarray
    pointwise: bool = False

    def __len__(self) -> int:
        return len(self.rows) * (1 if self.pointwise else len(self.columns))


def plan_labels(
    function: InfluenceFunction,
    amount: Amount,
    n_pool: int,
    n_target: int | None,
    *,
    rate: Rate | None = None,
    seed: int = 0,
) -> PairPlan:
    """The pairs to label with a function: `plan_pairs` of the number that the amount stands for."""
    pointwise = bool(getattr(function, "pointwise", False))
    pairs = number_of_pairs(amount, n_pool, n_pool if n_target is None else n_target, rate, pointwise=pointwise)
    return plan_pairs(n_pool, n_target, pairs, seed=seed, pointwise=pointwise)


def plan_pairs(n_pool: int, n_target: int | None, pairs: int, *, seed: int = 0, pointwise: bool = False) -> PairPlan:
    """A random grid of about `pairs` pairs.

    Args:
        n_pool: samples in the pool.
        n_target: samples in the target, or None when the pool is its own target: then no sample is both a
            row and a column, so that a held-out sample is new on both sides.
        pairs: how many, at most; a grid seldom hits the number exactly.
        seed: which ones.
        pointwise: for a pointwise function: each row has one pair.

    Raises:
        ConfigError: fewer than two pairs can be labelled.
    """
    rng = np.random.default_rng(seed)
    most_columns = n_target if n_target is not None else n_pool // 2
    size = _pointwise_size if pointwise else _grid_size
    rows, columns = size(pairs, n_pool, most_columns, shared=n_target is None)
    plan = PairPlan(np.arange(rows), np.arange(columns), pointwise)
    if len(plan) < 2:
        raise ConfigError(f"{pairs} labels are too few to learn from", "raise --labels, or give more data")
    if n_target is None:
        both = rng.permutation(n_pool)[: rows + columns]
        return PairPlan(np.sort(both[:rows]), np.sort(both[rows:]), pointwise)
    return PairPlan(np.sort(rng.permutation(n_pool)[:rows]), np.sort(rng.permutation(n_target)[:columns]), pointwise)


def _grid_size(pairs: int, n_pool: int, most_columns: int, *, shared: bool) -> tuple[int, int]:
    """Rows and columns of the grid for that many pairs; `shared`: what is a column is no row."""
    columns = min(max(round(math.sqrt(pairs / ROWS_PER_TARGET)), min(8, pairs)), most_columns)
    most_rows = n_pool - columns if shared else n_pool
    rows = min(pairs // columns, most_rows) if columns else 0
    if rows == most_rows:  # a small pool leaves room for more targets
        columns = min(pairs // rows, most_columns) if rows else 0
    return rows, columns


def _pointwise_size(pairs: int, n_pool: int, most_columns: int, *, shared: bool) -> tuple[int, int]:
    """Rows, one for each pair, and the targets that they are labelled with in turn."""
    scored = min(pairs, n_pool)
    columns = min(max(scored // _ROWS_PER_TARGET_POINTWISE, min(8, scored)), most_columns)
    return (min(pairs, n_pool - columns) if shared else scored), columns


def number_of_pairs(
    amount: Amount, n_pool: int, n_target: int, rate: Rate | None = None, *, pointwise: bool = False
) -> int:
    """How many pairs an amount of labels stands for; of a pointwise function, how many samples."""
    if amount.kind == "fraction":
        return max(round(amount.value * n_pool * (1 if pointwise else n_target)), 1)
    if amount.kind == "seconds":
        if rate is None:
            raise ValueError("a time needs a measured rate")
        return rate.rows(amount.value) if pointwise else rate.pairs(amount.value)
    return int(amount.value)


@dataclass(frozen=True)
class Rate:
    """How fast an influence function labels: what it does once per sample, and what each pair takes on top.

    Attributes:
        row, target, pair: seconds for each pool row, each target and each pair.
        warm_up: seconds before the first, whatever is labelled.
    """

    row: float
    target: float
    pair: float
    warm_up: float = 0.0

    def seconds(self, rows: int, columns: int) -> float:
        """Expected time of a grid."""
        return self.warm_up + self.row * rows + self.target * columns + self.pair * rows * columns

    def pairs(self, seconds: float) -> int:
        """Pairs of the largest grid, of `ROWS_PER_TARGET` rows to a target, that fits into a time; at least one."""
        seconds = max(seconds - self.warm_up, 0.0)
        square = self.pair * ROWS_PER_TARGET
        line = max(self.row * ROWS_PER_TARGET + self.target, 1e-9)  # the grain of the clock
        # The root of square * c^2 + line * c = seconds, in a form that holds where square is 0 too.
        columns = 2 * seconds / (line + math.sqrt(line**2 + 4 * square * seconds))
        return min(max(int(ROWS_PER_TARGET * columns**2 + 1e-6), 1), _MOST_PAIRS)

    def rows(self, seconds: float) -> int:
        """Pool rows, each scored once, that fit into a time; at least one."""
        return min(max(int((seconds - self.warm_up) / max(self.row, 1e-9)), 1), _MOST_PAIRS)


def measure_rate(function: InfluenceFunction, pool: Dataset, target: Dataset, *, seed: int = 0) -> Rate:
    """The rate of an influence function, measured on a few random samples once it has started."""
    rng = np.random.default_rng(seed)
    rows = pool.select(np.sort(rng.permutation(len(pool))[: _TRIAL_ROWS + 1]))
    targets = target.select(np.sort(rng.permutation(len(target))[:_TRIAL_TARGETS]))
    warm_up = _warm_up_seconds(function, rows, pool) if hasattr(function, "warm_up") else 0.0

    def timed(some_rows: Dataset, some_targets: Dataset) -> tuple[float, float]:
        since = time.perf_counter()
        if hasattr(function, "prepare"):
            function.prepare(some_rows, some_targets, None)
        prepared = time.perf_counter()
        function(some_rows, some_targets)
        return prepared - since, time.perf_counter() - prepared

    timed(rows.select([0]), targets.select([0]))  # loads the model, runs each kind of work once
    rows = rows.select(range(min(1, len(rows) - 1), len(rows)))
    once, block = timed(rows, targets)
    if getattr(function, "pointwise", False):
        whatever = _fixed_seconds(once + block, len(rows), sum(timed(rows.select([0]), targets)))
        return Rate((once + block - whatever) / len(rows), 0.0, 0.0, warm_up + whatever)
    each = once / (len(rows) + len(targets))
    return Rate(each, each, block / (len(rows) * len(targets)), warm_up)


def _fixed_seconds(several: float, n: int, single: float) -> float:
    """What is spent however many samples there are, as on a training of so many steps, from n samples and from one."""
    each = max(several - single, 0.0) / max(n - 1, 1)
    return max(single - each, 0.0) if n > 1 else 0.0


def _warm_up_seconds(function: Any, rows: Dataset, pool: Dataset) -> float:
    """What warming up on the pool will take, from doing so on one row and on all of a few."""
    taken: list[float] = []
    tokens: list[int] = []
    for some in (rows.select([0]), rows.select([0]), rows):  # the first loads the model
        since = time.perf_counter()
        function.warm_up(some)
        taken.append(time.perf_counter() - since)
        tokens.append(int(function.tokens(some.select([]), some.select([]), some)))
    each = max(taken[2] - taken[1], 0.0) / max(tokens[2] - tokens[1], 1)
    wanted = int(function.tokens(pool.select([]), pool.select([]), pool))
    return taken[1] + each * max(wanted - tokens[1], 0)
