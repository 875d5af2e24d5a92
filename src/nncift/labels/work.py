"""How much exact influence takes: of planned pairs, and of all pairs, to state what estimation saves.

Tokens are those that the function itself counts (`InfluenceFunction.tokens`), so work that is done once for a sample is
counted once for it, and a warm-up once in all. They are exact for up to `MOST` samples of a side; of more, they are
extrapolated from as many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nncift.influence.base import InfluenceFunction
from nncift.labels.design import PairPlan
from nncift.run.folder.costs import Work

if TYPE_CHECKING:
    from datasets import Dataset

MOST = 2000  # samples of a side that are counted
_ROWS = 128  # with targets of their own that are counted


def planned_work(
    function: InfluenceFunction, pool: Dataset, target: Dataset, plan: PairPlan, *, n_pool: int | None = None
) -> Work:
    """The work of planned pairs.

    Args:
        function: the influence function.
        pool: the pool; a plan of a larger one refers to its rows in turn.
        target: the targets, likewise.
        plan: the pairs.
        n_pool: samples of the larger pool.
    """
    rows, targets = plan.rows % len(pool), np.unique(plan.targets % len(target))
    warm_up = _warm_up(function, pool, n_pool or len(pool))
    samples = len(plan.rows) + (0 if function.traits.pointwise else len(plan.targets))
    if plan.columns.ndim == 1 or function.traits.pointwise:
        tokens = _tokens(function, pool.select(np.unique(rows)), target.select(targets), len(rows), len(plan.targets))
        return Work(samples, len(plan), tokens, warm_up)
    once = _counted(function, _none(pool), target.select(targets))
    if once is None:
        return Work(samples, len(plan), None, warm_up)
    some = range(0, len(rows), max(len(rows) // _ROWS, 1))
    read = 0
    for i in some:  # what is read once for a target is not read again for each row
        own = target.select(plan.columns[i] % len(target))
        alone = _counted(function, _none(pool), own) or 0
        read += (_counted(function, pool.select(rows[[i]]), own) or 0) - alone
    return Work(samples, len(plan), once + round(read * len(rows) / len(some)), warm_up)


def grid_work(
    function: InfluenceFunction,
    pool: Dataset,
    target: Dataset,
    n_pool: int | None = None,
    n_target: int | None = None,
) -> Work:
    """The work of all pairs of a pool and its targets.

    Args:
        function: the influence function.
        pool: the pool, or a part of it.
        target: the targets, or a part of them; the pool itself where that is its own target.
        n_pool: samples of the whole pool.
        n_target: likewise, of the targets.
    """
    n_pool, n_target = n_pool or len(pool), n_target or len(target)
    warm_up = _warm_up(function, pool, n_pool)
    tokens = _tokens(function, pool, target, n_pool, n_target)
    if function.traits.pointwise:
        return Work(n_pool, n_pool, tokens, warm_up)
    return Work(n_pool + n_target, n_pool * n_target, tokens, warm_up)


def _tokens(function: InfluenceFunction, pool: Dataset, target: Dataset, n_pool: int, n_target: int) -> int | None:
    """Tokens of all pairs of n_pool x n_target samples, of which some are given; without those of the warm-up."""
    rows, targets = _part(pool), _part(target)
    if target is pool:
        targets = rows
    counted = _counted(function, rows, targets)
    larger, wider = n_pool / max(len(rows), 1), n_target / max(len(targets), 1)
    if counted is None or (larger == wider == 1):
        return counted
    if targets is rows and not function.traits.per_pair:  # a sample may be read for both sides at once
        return round(counted * larger)
    of_targets = _counted(function, _none(rows), targets) or 0
    of_rows = (counted - of_targets) * larger * (wider if function.traits.per_pair else 1)
    return round(of_targets * wider + of_rows)


def _part(rows: Dataset) -> Dataset:
    if len(rows) <= MOST:
        return rows
    return rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST]))


def _none(rows: Dataset) -> Dataset:
    return rows.select([]) if len(rows) else rows  # `select` may refuse no row of none


def _counted(function: InfluenceFunction, pool: Dataset, target: Dataset) -> int | None:
    """Tokens of these rows without a warm-up, which a trained function leaves out and another one counts on none."""
    none = _none(pool)
    tokens = function.tokens(pool, target, none)
    return None if tokens is None else tokens - (function.tokens(none, none, none) or 0)


def _warm_up(function: InfluenceFunction, pool: Dataset, n_pool: int) -> int:
    none = _none(pool)
    return round((function.tokens(none, none, pool) or 0) * n_pool / max(len(pool), 1))
