"""What a subset may still take: a number of samples, of tokens, and of each value with a quota or a cap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nncift.errors import ConfigError
from nncift.selection.groups import Admission, GroupLimits


@dataclass(frozen=True, eq=False)
class Task:
    """What to choose from, and how much.

    Attributes:
        candidates: samples that may be selected, int64, ascending.
        costs: tokens of every sample, float64 (n,); 1 of each under a budget in samples.
        limit: number of samples at most.
        max_cost: tokens of the subset at most; infinite under a budget in samples.
        limits: on how much of each value of a column is selected.
        by_cost: take the largest gain per token; otherwise the largest gain that fits.
    """

    candidates: np.ndarray
    costs: np.ndarray
    limit: int
    max_cost: float = float("inf")
    limits: Sequence[GroupLimits] = ()
    by_cost: bool = True

    @classmethod
    def of(
        cls,
        n: int,
        budget: int | None,
        costs: np.ndarray | None,
        max_cost: float | None,
        candidates: np.ndarray | None,
        limits: Sequence[GroupLimits],
    ) -> Task:
        """As `lazy_greedy` takes them.

        Raises:
            ConfigError: the budget is not between 1 and the number of candidates, or no sample fits it.
        """
        among = np.arange(n) if candidates is None else np.sort(candidates)
        each = np.ones(n) if costs is None else np.asarray(costs, dtype=np.float64)
        if budget is not None and not 1 <= budget <= len(among):
            raise ConfigError(f"`budget` is {budget} samples", f"choose between 1 and {len(among)}")
        if (budget is None and max_cost is None) or (costs is None) != (max_cost is None):
            raise ConfigError("`costs` and `max_cost` go together", "give both, or a number of samples alone")
        room = float("inf") if max_cost is None else float(max_cost)
        if not each[among].min() <= room:
            raise ConfigError(f"`budget` is {max_cost} tokens", f"the shortest sample has {each[among].min():g}")
        return cls(among, each, len(among) if budget is None else budget, room, limits)

    def among(self, candidates: np.ndarray, share: float) -> Task:
        """A share of this task, at least one sample, from some candidates (int64, ascending) and without limits."""
        limit = min(int(np.ceil(self.limit * share)), len(candidates))
        room = max(self.max_cost * share, float(self.costs[candidates].min()))
        return replace(self, candidates=candidates, limit=limit, max_cost=room, limits=())

    def alone(self) -> Task:
        """This task without limits on groups, of its candidates as all the samples that there are."""
        return replace(self, candidates=np.arange(len(self.candidates)), costs=self.costs[self.candidates])

    @property
    def per(self) -> np.ndarray:
        """What the gain of every sample is divided by, float64 (n,)."""
        return self.costs if self.by_cost else np.ones_like(self.costs)

    @property
    def expected(self) -> float:
        """About how many samples will be selected."""
        if np.isinf(self.max_cost):
            return float(self.limit)
        return min(self.limit, max(self.max_cost / float(self.costs[self.candidates].mean()), 1.0))


class Room:
    """What is left of a task while a subset grows.

    Attributes:
        left: samples that may be added yet.
    """

    def __init__(self, task: Task) -> None:
        self.left = task.limit
        self._cost, self._costs = task.max_cost, task.costs
        total = task.limit if np.isinf(task.max_cost) else task.max_cost
        self._admission = Admission(task.limits, task.candidates, task.costs, total) if task.limits else None

    def fits(self, rows: np.ndarray) -> np.ndarray:
        """Which of these samples (int64) may join, bool; one that may not never will."""
        fits = self._costs[rows] <= self._cost
        if self._admission is not None:
            fits[fits] = [self._admission.may_fit(int(i)) for i in rows[fits]]
        return np.asarray(fits)

    def take(self, i: int) -> bool:
        """Let sample `i`, which fits, join if the limits can still be met; whether it did."""
        if self._admission is not None and not self._admission.admit(i):
            return False
        self.left -= 1
        self._cost -= self._costs[i]
        return True
