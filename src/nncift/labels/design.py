"""Which pairs to label: pool rows x targets, drawn at random, seeded.

Where the work is done once for each sample, as with gradients, all rows have the same targets, as many as there are
rows: a square grid. Where each pair is work of its own, as with DELIFT, every row gets targets of its own, a quarter as
many as there are rows, out of twice as many as there are rows: the same work then tells of far more targets.

The score that a pointwise function gives a pool row holds for every target, so a row is labelled once, with one of
the targets: as many rows as labels are asked for, and targets enough to show the network that they do not matter.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nncift.config import Amount
from nncift.errors import ConfigError
from nncift.influence.base import is_pointwise, works_per_pair

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.influence.base import InfluenceFunction

ROWS_PER_TARGET = 4  # of a row that has its own; twice as many as rows are labelled at all
_TARGETS_PER_ROW = 2
_MOST_TARGETS = 1024  # likewise; the network learns from no more
_HELD_OUT = 0.2  # of the rows, and of the targets that these share
_LEAST_ROWS = 10  # for targets of their own; of fewer, too few would be held out to judge on
_ROWS_PER_TARGET_POINTWISE = 16  # a target has some of them held out, or its ranking could not be judged
_TRIAL_ROWS, _TRIAL_TARGETS = 2, 8
_MOST_PAIRS = 10**9

HeldOut = tuple[np.ndarray, np.ndarray]
"""Pool rows and targets that are kept from the network, to judge it on."""


@dataclass(frozen=True)
class PairPlan:
    """The pairs to label.

    Attributes:
        rows: (r,) int64 into the pool.
        columns: into the targets: (c,) int64, the same for all rows, or (r, k), each row's own.
        held_out: what the network is to be judged on; None where that may be chosen among the labels at random.
    """

    rows: np.ndarray
    columns: np.ndarray
    held_out: HeldOut | None = None

    def __len__(self) -> int:
        return self.columns.size if self.columns.ndim == 2 else len(self.rows) * len(self.columns)

    @property
    def targets(self) -> np.ndarray:
        """All targets that are labelled, ascending."""
        return np.unique(self.columns)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        held_out = None if self.held_out is None else [side.tolist() for side in self.held_out]
        return {"rows": self.rows.tolist(), "columns": self.columns.tolist(), "held_out": held_out}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        """From what `to_dict` gave."""
        rows, columns = (np.array(stored[name], dtype=np.int64) for name in ("rows", "columns"))
        kept = stored.get("held_out")
        return cls(rows, columns, None if kept is None else (np.array(kept[0]), np.array(kept[1])))


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
    kind = {"pointwise": is_pointwise(function), "own_targets": works_per_pair(function)}
    pairs = number_of_pairs(amount, n_pool, n_pool if n_target is None else n_target, rate, **kind)
    return plan_pairs(n_pool, n_target, pairs, seed=seed, **kind)


def plan_pairs(
    n_pool: int,
    n_target: int | None,
    pairs: int,
    *,
    seed: int = 0,
    pointwise: bool = False,
    own_targets: bool = False,
) -> PairPlan:
    """About `pairs` random pairs.

    Args:
        n_pool: samples in the pool.
        n_target: samples in the target, or None when the pool is its own target: then no sample is both a
            row and a column, so that a held-out sample is new on both sides.
        pairs: how many, at most; a grid seldom hits the number exactly.
        seed: which ones.
        pointwise: for a pointwise function: each row has one pair.
        own_targets: each row has targets of its own; a fifth of the rows, to be held out, have the same, since a
            ranking within a target can be judged where several rows have it.

    Raises:
        ConfigError: fewer than two pairs can be labelled.
    """
    rng = np.random.default_rng(seed)
    own_targets = own_targets and not pointwise
    if own_targets:
        most_rows = n_pool if n_target is not None else n_pool // (1 + _TARGETS_PER_ROW)
        rows, each = _grid_size(pairs, ROWS_PER_TARGET, most_rows, n_pool, n_target)
        own_targets = rows >= _LEAST_ROWS
    if pointwise:
        rows, each = _pointwise_size(pairs, n_pool, n_target)
    elif not own_targets:
        rows, each = _grid_size(pairs, 1, n_pool, n_pool, n_target)
    if rows * (1 if pointwise else each) < 2:
        what = f"{pairs} labels" if pairs < min(n_pool, _LEAST_ROWS) else f"{n_pool} samples"
        raise ConfigError(f"{what} are too few to learn from", "raise --labels, or give more data")
    columns = each
    if own_targets:
        free = n_pool - rows if n_target is None else n_target
        columns = max(min(_TARGETS_PER_ROW * rows, _MOST_TARGETS, free), each)
    if n_target is None:
        both = rng.permutation(n_pool)[: rows + columns]
        some_rows, some_columns = np.sort(both[:rows]), np.sort(both[rows:])
    else:
        some_rows = np.sort(rng.permutation(n_pool)[:rows])
        some_columns = np.sort(rng.permutation(n_target)[:columns])
    if pointwise:
        judged = np.sort(rng.permutation(some_rows)[: round(_HELD_OUT * rows)])
        return PairPlan(some_rows, np.resize(some_columns, rows)[:, None], (judged, some_columns[:0]))
    return PairPlan(some_rows, some_columns) if columns == each else _own_targets(some_rows, some_columns, each, rng)


def _own_targets(rows: np.ndarray, targets: np.ndarray, each: int, rng: np.random.Generator) -> PairPlan:
    """Each row with so many targets of its own, and the rows to be held out with the same."""
    judged = rng.permutation(len(rows))[: round(_HELD_OUT * len(rows))]
    shared = rng.permutation(targets)[:each]
    columns = deal(targets, len(rows), each, rng)
    columns[judged] = np.sort(shared)
    return PairPlan(rows, columns, (np.sort(rows[judged]), np.sort(shared[: round(_HELD_OUT * each)])))


def deal(targets: np.ndarray, rows: int, each: int, rng: np.random.Generator) -> np.ndarray:
    """For each row `each` different targets at random, all of them equally often: (rows, each) int64, ascending."""
    dealt = np.zeros(len(targets), dtype=np.int64)
    columns = np.empty((rows, each), dtype=np.int64)
    for row in columns:
        own = np.lexsort((rng.random(len(targets)), dealt))[:each]
        dealt[own] += 1
        row[:] = np.sort(targets[own])
    return columns


def _grid_size(pairs: int, ratio: int, most_rows: int, n_pool: int, n_target: int | None) -> tuple[int, int]:
    """Rows and targets of a row, `ratio` rows to one, for that many pairs; without a target what is one is no row."""
    columns = min(max(round(math.sqrt(pairs / ratio)), min(8, pairs)), n_pool // 2 if n_target is None else n_target)
    most_rows = min(most_rows, n_pool - columns) if n_target is None else most_rows
    rows = min(pairs // columns, most_rows) if columns else 0
    if rows and rows == most_rows:  # a small pool leaves room for more targets
        columns = min(pairs // rows, n_pool - rows if n_target is None else n_target)
    return rows, columns


def _pointwise_size(pairs: int, n_pool: int, n_target: int | None) -> tuple[int, int]:
    """Rows, one for each pair, and the targets that they are labelled with in turn."""
    scored = min(pairs, n_pool)
    columns = min(
        max(scored // _ROWS_PER_TARGET_POINTWISE, min(8, scored)), n_pool // 2 if n_target is None else n_target
    )
    return (min(pairs, n_pool - columns) if n_target is None else scored), columns


def number_of_pairs(
    amount: Amount,
    n_pool: int,
    n_target: int,
    rate: Rate | None = None,
    *,
    pointwise: bool = False,
    own_targets: bool = False,
) -> int:
    """How many pairs an amount of labels stands for; of a pointwise function, how many samples."""
    if amount.kind == "fraction":
        return max(round(amount.value * n_pool * (1 if pointwise else n_target)), 1)
    if amount.kind == "seconds":
        if rate is None:
            raise ValueError("a time needs a measured rate")
        return rate.rows(amount.value) if pointwise else rate.pairs(amount.value, own_targets=own_targets)
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

    def seconds(self, rows: int, targets: int, pairs: int | None = None) -> float:
        """Expected time of so many pairs; of the grid unless given."""
        return (
            self.warm_up
            + self.row * rows
            + self.target * targets
            + self.pair * (rows * targets if pairs is None else pairs)
        )

    def pairs(self, seconds: float, *, own_targets: bool = False) -> int:
        """Pairs that fit into a time, in the shape that `plan_pairs` gives them; at least one."""
        seconds = max(seconds - self.warm_up, 0.0)
        rows = ROWS_PER_TARGET if own_targets else 1  # for each target of a row
        targets = rows * _TARGETS_PER_ROW if own_targets else 1
        square = self.pair * rows
        line = max(self.row * rows + self.target * targets, 1e-9)  # the grain of the clock
        # The root of square * c^2 + line * c = seconds, in a form that holds where square is 0 too.
        columns = 2 * seconds / (line + math.sqrt(line**2 + 4 * square * seconds))
        return min(max(int(rows * columns**2 + 1e-6), 1), _MOST_PAIRS)

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
    if is_pointwise(function):
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
