"""The largest sum of numbers within a budget, which is what a modular function's best subset has.

Under a budget in samples it is that of the k largest, under one in tokens the fractional knapsack's fill by number per
token (Dantzig, "Discrete-variable extremum problems", 1957). Under limits on a column's values it is greedy's as well:
they are a matroid, whose best basis has what each value needs and then the largest of the others that it has room for
(Edmonds, "Matroids and the greedy algorithm", 1971). Lower limits in tokens are met up to a sample, so only the upper
ones count. On two columns the smaller of both sums is an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nncift.selection.groups import GroupLimits

Sum = tuple[float, np.ndarray, np.ndarray]
"""A sum, the places of all numbers that count in it, int64 (k,), and the part of each, float64 (k,)."""


@dataclass(frozen=True, eq=False)
class LinearBudget:
    """What a sum over n samples may take.

    Attributes:
        costs: of each, float64 (n,), above 0.
        limit: number of samples at most.
        room: cost at most; infinite under a budget in samples.
        limits: on how much of each value of a column is selected, of these samples.
    """

    costs: np.ndarray
    limit: int
    room: float
    limits: Sequence[GroupLimits] = ()

    def largest_sum(self, values: np.ndarray) -> Sum:
        """The largest sum of values, float64 (n,), negative ones as 0."""
        values = np.maximum(values, 0)
        in_tokens = not np.isinf(self.room)
        found = [self._of_column(values, each) for each in self.limits] if not in_tokens else []
        if not found:
            found = [self._largest(values)]
        if in_tokens:
            found += [self._filled(values, each) for each in (self.limits or (None,))]
        return min(found, key=lambda each: each[0])

    def _largest(self, values: np.ndarray) -> Sum:
        """By the number of samples alone."""
        if self.limit < len(values):
            places = np.argpartition(values, len(values) - self.limit)[-self.limit :]
        else:
            places = np.arange(len(values))
        return float(values[places].sum()), places, np.ones(len(places))

    def _of_column(self, values: np.ndarray, limits: GroupLimits) -> Sum:
        """By the number of samples in all and of each value of a column."""
        codes, order = limits.groups.codes, np.argsort(-values, kind="stable")
        rank = _before(np.ones(len(values)), codes, order)
        needs = np.minimum(limits.least, limits.groups.sizes())
        needed = rank < (needs if needs.sum() <= self.limit else np.zeros_like(needs))[codes]
        others = order[~needed[order] & (rank < limits.most[codes])[order]]
        places = np.concatenate([np.flatnonzero(needed), others[: self.limit - int(needed.sum())]])
        return float(values[places].sum()), places, np.ones(len(places))

    def _filled(self, values: np.ndarray, limits: GroupLimits | None) -> Sum:
        """By the cost in all and of each value of a column, the last sample of each in part."""
        order, parts = np.argsort(-values / self.costs, kind="stable"), self.costs
        if limits is not None:
            before = _before(self.costs, limits.groups.codes, order)
            parts = np.clip(limits.most[limits.groups.codes] - before, 0, self.costs)
        parts = parts[order]
        parts = np.clip(self.room - (np.cumsum(parts) - parts), 0, parts)
        places = order[parts > 0]
        shares = parts[parts > 0] / self.costs[places]
        return float(values[places] @ shares), places, shares


def _before(costs: np.ndarray, codes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Cost of the samples of the same value that come before each in an order: float64 (n,)."""
    by_value = order[np.argsort(codes[order], kind="stable")]
    sums = np.cumsum(costs[by_value]) - costs[by_value]
    _, first, counts = np.unique(codes[by_value], return_index=True, return_counts=True)
    before = np.empty(len(order))
    before[by_value] = sums - np.repeat(sums[first], counts)
    return before
