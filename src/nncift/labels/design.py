"""Sampling design of the labels: which pool rows x targets to label, seeded.

If cost is per sample, as with gradients, all of r rows share the same r targets: a square grid, the most pairs of 2r
samples. Its size is best given in samples, which cost something, and not in pairs, which cost nothing: 2,000 pairs of
gradients are those of 89 samples. If cost is per pair, as with DELIFT, each of r rows gets r/4 targets of its own from
a set of 2r, balanced: the same cost covers far more targets. For a pointwise function each row has one label, with one
of the targets in turn. When the pool is its own target, rows and targets are disjoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nncift.errors import ConfigError
from nncift.influence.base import InfluenceFunction
from nncift.run.folder.records import counted
from nncift.run.options.amounts import Amount

if TYPE_CHECKING:
    from nncift.labels.rates import Rate

ROWS_PER_TARGET = 4  # rows per target of a row, if each has its own
TARGETS_PER_ROW = 2  # targets in all per row, likewise
_MAX_TARGETS = 1024  # likewise; the network uses no more
_HELD_OUT = 0.2  # of the rows, and of the targets that these share
_MIN_ROWS = 10  # for targets of their own: fewer leave too few held out
_ROWS_PER_TARGET_POINTWISE = 16  # so that a target has held-out rows to evaluate its ranking

HeldOut = tuple[np.ndarray, np.ndarray]
"""Pool rows and targets that are held out to evaluate the network."""


@dataclass(frozen=True)
class PairPlan:
    """The pairs to label.

    Attributes:
        rows: (r,) int64 into the pool.
        columns: into the targets: (c,) int64, shared by all rows, or (r, k), each row's own.
        held_out: the evaluation set; None to draw it from the labels at random.
    """

    rows: np.ndarray
    columns: np.ndarray
    held_out: HeldOut | None = None

    def __len__(self) -> int:
        return self.columns.size if self.columns.ndim == 2 else len(self.rows) * len(self.columns)

    @property
    def targets(self) -> np.ndarray:
        """All labelled targets, ascending."""
        return np.unique(self.columns)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        held_out = None if self.held_out is None else [side.tolist() for side in self.held_out]
        return {"rows": self.rows.tolist(), "columns": self.columns.tolist(), "held_out": held_out}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        rows, columns = (np.array(stored[name], dtype=np.int64) for name in ("rows", "columns"))
        kept = stored.get("held_out")
        return cls(rows, columns, None if kept is None else (np.array(kept[0], np.int64), np.array(kept[1], np.int64)))


def costs_samples(function: InfluenceFunction) -> bool:
    """Whether a function's cost is that of samples, in `prepare`: a pair of prepared ones costs next to nothing."""
    prepares = type(function).prepare is not InfluenceFunction.prepare
    return prepares and not (function.traits.pointwise or function.traits.per_pair)


def plan_labels(
    function: InfluenceFunction,
    amount: Amount,
    n_pool: int,
    n_target: int | None,
    *,
    rate: Rate | None = None,
    seed: int = 0,
) -> PairPlan:
    """The pairs to label with a function: `plan_pairs` with the number of pairs of an amount.

    Raises:
        ConfigError: as `plan_pairs`, or the amount is in samples and the cost per pair.
    """
    pointwise = function.traits.pointwise
    if amount.kind == "samples" and function.traits.per_pair and not pointwise:
        problem = f"`labels` {amount} counts samples, and the cost of {function.name} is per pair"
        raise ConfigError(problem, "give a number of pairs, such as 2000, or a time")
    kind = {"pointwise": pointwise, "own_targets": function.traits.per_pair and not pointwise}
    pairs = number_of_pairs(amount, n_pool, n_pool if n_target is None else n_target, rate, **kind)
    return plan_pairs(n_pool, n_target, pairs, seed=seed, **kind)


def plan_pairs(
    n_pool: int, n_target: int | None, pairs: int, *, seed: int = 0, pointwise: bool = False, own_targets: bool = False
) -> PairPlan:
    """About `pairs` random pairs.

    Args:
        n_pool: samples in the pool.
        n_target: samples in the target, or None when the pool is its own target: rows and columns are then disjoint,
            so that a held-out sample is new on both sides.
        pairs: number of pairs, at most; a grid seldom has exactly as many.
        seed: of the draws.
        pointwise: each row has one pair.
        own_targets: each row has targets of its own, except the fifth of the rows to be held out, which share theirs:
            ranking within a target can only be evaluated on several rows.

    Raises:
        ConfigError: fewer than two pairs can be labelled.
    """
    rng = np.random.default_rng(seed)
    own_targets = own_targets and not pointwise
    if own_targets:
        most_rows = n_pool if n_target is not None else n_pool // (1 + TARGETS_PER_ROW)
        rows, each = _grid_size(pairs, ROWS_PER_TARGET, most_rows, n_pool, n_target)
        own_targets = rows >= _MIN_ROWS
    if pointwise:
        rows, each = _pointwise_size(pairs, n_pool, n_target)
    elif not own_targets:
        rows, each = _grid_size(pairs, 1, n_pool, n_pool, n_target)
    if rows * (1 if pointwise else each) < 2:
        check_pool_size(n_pool, n_target, pointwise=pointwise)
        are = "is" if pairs == 1 else "are"
        raise ConfigError(f"{counted(pairs, 'label')} {are} too few to fit a network", "raise `labels`")
    columns = each
    if own_targets:
        free = n_pool - rows if n_target is None else n_target
        columns = max(min(TARGETS_PER_ROW * rows, _MAX_TARGETS, free), each)
    if n_target is None:
        both = rng.permutation(n_pool)[: rows + columns]
        some_rows, some_columns = np.sort(both[:rows]), np.sort(both[rows:])
    else:
        some_rows = np.sort(rng.permutation(n_pool)[:rows])
        some_columns = np.sort(rng.permutation(n_target)[:columns])
    if pointwise:
        held_out = np.sort(rng.permutation(some_rows)[: round(_HELD_OUT * rows)])
        return PairPlan(some_rows, np.resize(some_columns, rows)[:, None], (held_out, some_columns[:0]))
    return PairPlan(some_rows, some_columns) if columns == each else _own_targets(some_rows, some_columns, each, rng)


def check_pool_size(n_pool: int, n_target: int | None, *, pointwise: bool = False) -> None:
    """Refuse a pool in which no two pairs can be labelled, however many labels are asked for.

    Raises:
        ConfigError: it has one sample, or two and no target.
    """
    if (n_pool - 1 if n_target is None else n_pool * (1 if pointwise else n_target)) < 2:
        least = 3 if n_target is None else 2
        problem = f"a pool of {counted(n_pool, 'sample')} is too small to fit a network"
        raise ConfigError(problem, f"give one of at least {least} samples")


def _own_targets(rows: np.ndarray, targets: np.ndarray, each: int, rng: np.random.Generator) -> PairPlan:
    """`each` targets for each row, its own, but shared by the rows to be held out."""
    held_out = rng.permutation(len(rows))[: round(_HELD_OUT * len(rows))]
    shared = rng.permutation(targets)[:each]
    columns = deal(targets, len(rows), each, rng)
    columns[held_out] = np.sort(shared)
    return PairPlan(rows, columns, (np.sort(rows[held_out]), np.sort(shared[: round(_HELD_OUT * each)])))


def deal(targets: np.ndarray, rows: int, each: int, rng: np.random.Generator) -> np.ndarray:
    """`each` distinct random targets per row, all targets equally often: (rows, each) int64, ascending."""
    counts = np.zeros(len(targets), dtype=np.int64)
    columns = np.empty((rows, each), dtype=np.int64)
    for row in columns:
        own = np.lexsort((rng.random(len(targets)), counts))[:each]
        counts[own] += 1
        row[:] = np.sort(targets[own])
    return columns


def _grid_size(pairs: int, ratio: int, most_rows: int, n_pool: int, n_target: int | None) -> tuple[int, int]:
    """Rows and targets per row, `ratio` rows per target, disjoint if `n_target` is None."""
    columns = min(max(round(math.sqrt(pairs / ratio)), min(8, pairs)), n_pool // 2 if n_target is None else n_target)
    most_rows = min(most_rows, n_pool - columns) if n_target is None else most_rows
    rows = min(pairs // columns, most_rows) if columns else 0
    if rows and rows == most_rows:  # a small pool: more targets
        columns = min(pairs // rows, n_pool - rows if n_target is None else n_target)
    return rows, columns


def _pointwise_size(pairs: int, n_pool: int, n_target: int | None) -> tuple[int, int]:
    """Rows, one per pair, and the targets that they get in turn."""
    scored = min(pairs, n_pool)
    most = n_pool // 2 if n_target is None else n_target
    columns = min(max(scored // _ROWS_PER_TARGET_POINTWISE, min(8, scored)), most)
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
    """The number of pairs of an amount of labels; for a pointwise function, of samples.

    Of an amount in samples, as many pairs as so many pool samples and targets together have.
    """
    if amount.kind == "fraction":
        return max(round(amount.value * n_pool * (1 if pointwise else n_target)), 1)
    if amount.kind == "seconds":
        if rate is None:
            raise ValueError("a time budget needs a measured rate")
        return rate.rows(amount.value) if pointwise else rate.pairs(amount.value, own_targets=own_targets)
    if amount.kind == "samples" and not pointwise:
        return _pairs_of_samples(int(amount.value), n_pool, n_target)
    return int(amount.value)


def _pairs_of_samples(samples: int, n_pool: int, n_target: int) -> int:
    """Pairs of the grid nearest to a square with so many rows and targets in all."""
    columns = min(samples // 2, n_target)
    rows = min(samples - columns, n_pool)
    return rows * min(samples - rows, n_target)
