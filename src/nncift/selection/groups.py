"""Greedy selection under limits on how much of each value of a column is selected: quotas and caps.

Subsets that can still be completed to a full budget within all limits are the independent sets of a matroid where the
limits are on one column (El Halabi, Mitrović, Norouzi-Fard, Tardos and Tarnawski, "Fairness in streaming submodular
maximization: algorithms and hardness", 2020; caps alone are a partition matroid). Greedy that skips the candidates that
cannot join such a subset fills every quota, and its value is at least 1/2 of the best possible for a monotone
submodular objective; limits on two columns are an intersection of two matroids, and the bound is 1/3 (Fisher, Nemhauser
and Wolsey, "An analysis of approximations for maximizing submodular set functions II", 1978). In tokens a subset is
completed by parts of samples, so that a quota is met up to a sample, and no bound is known.

With one column the check is a comparison. With two it is whether a transportation problem is feasible, a maximum flow;
a flow serves until a candidate leaves it. With three it would be NP-hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nncift.errors import ConfigError
from nncift.run.options.quotas import MOST_COLUMNS

_LARGEST = 2**31 - 1  # of a flow


@dataclass(frozen=True, eq=False)
class Groups:
    """The samples by their value in a column.

    Attributes:
        column: its name.
        values: the distinct values as text, in the order of their first samples; None of samples without one.
        codes: place in `values` of each sample's, int32 (n,).
    """

    column: str
    values: tuple[str | None, ...]
    codes: np.ndarray

    def sizes(self, costs: np.ndarray | None = None) -> np.ndarray:
        """Samples of each value, or their costs, int64 (number of values,)."""
        return np.bincount(self.codes, weights=costs, minlength=len(self.values)).astype(np.int64)


@dataclass(frozen=True, eq=False)
class GroupLimits:
    """How much of each value may and has to be selected, in samples or, under a token budget, in tokens.

    Attributes:
        groups: the samples by value.
        least: of each value, int64 (number of values,).
        most: of each value, int64, not below `least`.
    """

    groups: Groups
    least: np.ndarray
    most: np.ndarray

    def take(self, rows: np.ndarray) -> GroupLimits:
        """The same limits for these samples alone, int64 (k,)."""
        return replace(self, groups=replace(self.groups, codes=self.groups.codes[rows]))

    def loosened(self, times: float) -> GroupLimits:
        """The upper limits `times` as large, rounded up, and no lower ones: for a shortlist of more candidates."""
        most = np.ceil(np.minimum(self.most * float(times), 2.0**62)).astype(np.int64)
        return replace(self, least=np.zeros_like(self.least), most=most)


class Admission:
    """Which candidates can join the subset so that it can still be completed within all limits.

    Lower limits that the candidates cannot meet count as met by all that there are of their value.

    Args:
        limits: on one column or on two.
        candidates: rows that may be selected, int64.
        costs: of each sample, whole numbers, float64 (n,); 1 of each under a budget in samples.
        total: the budget.

    Attributes:
        reach: how much of the budget can be selected within the limits, less what is.

    Raises:
        ConfigError: costs are not whole numbers, there are limits on more than two columns, or on two with a budget
            above 2^31 - 1.
    """

    def __init__(self, limits: Sequence[GroupLimits], candidates: np.ndarray, costs: np.ndarray, total: float) -> None:
        if len(limits) > MOST_COLUMNS:
            raise ConfigError(f"there are limits on {len(limits)} columns", f"give at most {MOST_COLUMNS}")
        if np.any(costs != np.rint(costs)):
            raise ConfigError("with limits on groups `costs` are whole numbers", "round them up")
        self._costs, self._left = costs.astype(np.int64), int(min(total, costs[candidates].sum()))
        if len(limits) == MOST_COLUMNS and self._left > _LARGEST:
            raise ConfigError(f"limits on two columns need a `budget` up to {_LARGEST:,}", "limit one column alone")
        codes = [each.groups.codes for each in limits]
        self._codes = codes if len(codes) == MOST_COLUMNS else [codes[0], np.zeros_like(codes[0])]
        shape = [len(each.groups.values) for each in limits] + [1] * (MOST_COLUMNS - len(limits))
        self._available = np.zeros(shape, np.int64)
        np.add.at(self._available, tuple(code[candidates] for code in self._codes), self._costs[candidates])
        rooms = [np.minimum(each.most, self._available.sum(axis=1 - k)) for k, each in enumerate(limits)]
        needs = [np.minimum(each.least, room) for each, room in zip(limits, rooms, strict=True)]
        self._needs, self._rooms = needs, rooms  # of each value: what has to be selected yet, and what may be
        self._free = [self._left - int(need.sum()) for need in needs]  # of the budget, not reserved
        self._refused = np.full(shape, np.iinfo(np.int64).max)  # least cost that a flow was too small for
        self._flow = self._solved()
        self.reach = int(self._flow.sum())

    def may_fit(self, i: int) -> bool:
        """Whether sample `i` may join; no sample that may not ever will."""
        where, cost = self._where(i), self._costs[i]
        sides = zip(where, self._needs, self._rooms, self._free, strict=False)
        fits = all(cost <= min(room[code], need[code] + free) for code, need, room, free in sides)
        return fits and bool(cost < self._refused[where])

    def admit(self, i: int) -> bool:
        """Let sample `i` join if it can; whether it could."""
        if not self.may_fit(i):
            return False
        where, cost = self._where(i), int(self._costs[i])
        reserved = [min(int(need[code]), cost) for code, need in zip(where, self._needs, strict=False)]
        self._move(where, cost, reserved)
        if self._flow[where] >= cost:
            self._flow[where] -= cost
        elif len(self._needs) == MOST_COLUMNS:
            flow = self._solved()
            if int(flow.sum()) < self.reach - cost:
                self._move(where, -cost, [-part for part in reserved])
                self._refused[where] = cost
                return False
            self._flow = flow
        self.reach -= cost
        return True

    def _where(self, i: int) -> tuple[int, int]:
        return int(self._codes[0][i]), int(self._codes[1][i])

    def _move(self, where: tuple[int, int], cost: int, reserved: Sequence[int]) -> None:
        """Take a sample out of what may and what has to be selected; `reserved` of its cost, on each side, had to."""
        self._left -= cost
        self._available[where] -= cost
        for k, part in enumerate(reserved):
            self._needs[k][where[k]] -= part
            self._rooms[k][where[k]] -= cost
            self._free[k] -= cost - part

    def _solved(self) -> np.ndarray:
        """How the rest of the budget can be divided among the cells, int64 (values, values of the other column or 1).

        Of one column, or of two by the maximum flow from the first to the second column, on edges for what a value
        needs and for what it may have besides.
        """
        if len(self._needs) < MOST_COLUMNS:
            more = self._rooms[0] - self._needs[0]
            more = np.diff(np.minimum(np.cumsum(more), max(self._free[0], 0)), prepend=0)
            return np.asarray((self._needs[0] + more)[:, None])
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_flow

        (a, b), size = self._available.shape, sum(self._available.shape) + 4
        first, second = 2 + np.arange(a), 2 + a + np.arange(b)
        source, shared, joint, sink = 0, 1, size - 2, size - 1
        edges = [(np.array([source]), np.array([shared]), np.array([self._free[0]]))]
        edges += [(np.full(a, source), first, self._needs[0]), (np.full(a, shared), first, self._more(0))]
        row, column = np.nonzero(self._available)
        edges += [(first[row], second[column], self._available[row, column])]
        edges += [(second, np.full(b, sink), self._needs[1]), (second, np.full(b, joint), self._more(1))]
        edges += [(np.array([joint]), np.array([sink]), np.array([self._free[1]]))]
        start, end, capacity = (np.concatenate(parts) for parts in zip(*edges, strict=True))
        capacity = np.clip(capacity, 0, self._left).astype(np.int32)
        flow = maximum_flow(csr_array((capacity, (start, end)), shape=(size, size)), source, sink).flow
        return np.asarray(flow[2 : 2 + a, 2 + a : 2 + a + b].toarray(), dtype=np.int64)

    def _more(self, k: int) -> np.ndarray:
        return np.asarray(self._rooms[k] - self._needs[k])
