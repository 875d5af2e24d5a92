"""How far at most a subset's value is from the best possible one.

For a monotone submodular function f, whatever the subset S, and for every subset O within the budget,

    f(O) <= f(S and O) <= f(S) + sum over i in O of the gain of i over S,

so f(S) plus the largest sum of gains that fits the budget bounds the best value: the k largest gains under a budget of
k samples, and the fractional knapsack's fill by gain per token under one of tokens (Leskovec et al., "Cost-effective
outbreak detection in networks", 2007, section 3.2; Dantzig, "Discrete-variable extremum problems", 1957). It is often
far closer than the guarantee of greedy, 1 - 1/e. Under quotas and caps the sum is the largest within them
(`selection.largest_sum`).

Every subset on greedy's way gives such a bound, and the smallest counts. An earlier gain is never below a later one, so
the gains that lazy greedy holds give one at any step for nothing but a partial sort (after 0, 1, 2, 4, 8, ... samples;
after none it is the sum of the largest gains, to which a modular function attains). For the finished subset, earlier
gains are replaced by present ones until the largest of all are: at most one pass over the matrix, as much as the first
gains take. The built-in objectives then have a closer bound from their `relaxation`, at a pass for each step: until the
subset is proven to have 99 % of the best value, 20 steps at most, and within the work of the choice itself or, where
that is more, 2 billion pairs.

Of a sparse matrix (`matrix.sparse`) gains leave out what may be missing, so that they bound nothing: the relaxation
alone counts, with a floor under what it reads and an audit of what it does not.

A bound holds for the function as it was maximised, so for the influence as estimated: whether the estimates are right
is a question of their fidelity, and whether training is better for the subset one of `nncift evaluate`. It holds up to
rounding of the gains, float32 sums: about 1e-6 of the value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from nncift.matrix.matrix import InfluenceMatrix
from nncift.run.progress import drawn
from nncift.selection.groups import GroupLimits
from nncift.selection.largest_sum import LinearBudget
from nncift.selection.objectives.built_in import COVERAGE
from nncift.selection.objectives.table import Objective
from nncift.selection.relaxation import Relaxation, relaxation_of

_ENOUGH = 0.99  # of the best value: no closer bound is sought
_STEPS = 20  # of a relaxation, at most
_PAIRS = 1 << 31  # that these may take, however little work the choice was: seconds
_ROWS = 4096  # evaluated between two updates of the progress bar


@dataclass(frozen=True)
class Certificate:
    """An upper bound on the value of every subset within the budget, beside that of the subset chosen."""

    value: float  # of the subset
    bound: float | None  # no subset within the budget has a larger value; None where `reason` says why there is none
    among: int  # samples that might have been chosen: all, or those of a shortlist
    reason: str = ""  # why there is no bound, to follow a colon
    confidence: float = 1.0  # probability that the bound holds, of a sparse matrix with entries that were not visited

    @property
    def share(self) -> float | None:
        """The least share of the best possible value that the subset has, 0 to 1; None without a bound.

        Of a value below 0, which a graph cut may have, no share is proven: the empty subset is worth more.
        """
        if self.bound is None:
            return None
        if self.value < 0:
            return 0.0
        return min(self.value / self.bound, 1.0) if self.bound > 0 else 1.0

    @property
    def percent(self) -> str | None:
        """`share` in percent, rounded down to one decimal, or only as far as rounding of the gains; None without."""
        if self.share is None:
            return None
        return f"{math.floor(self.share * 1000 + 1e-3) / 10:g}\u00a0%"


class BoundOnBest:
    """The smallest upper bound found so far on the value of the subsets within a budget.

    `lazy_greedy` takes its subsets into account on the way. For a subset that was found otherwise, `close` is enough.

    Args:
        candidates: samples that may be selected, int64 without repetition.
        costs: of every sample of the pool, float64 (n,), above 0.
        limit: number of samples at most.
        room: cost of a subset at most; infinite under a budget in samples.
        limits: on how much of each value of a column is selected.
    """

    def __init__(
        self,
        candidates: np.ndarray,
        costs: np.ndarray,
        limit: int,
        room: float,
        limits: Sequence[GroupLimits] = (),
    ) -> None:
        self.value = float("inf")
        self.work = len(candidates)  # rows of the matrix that the choice took; those of the first gains at first
        self._fitting = candidates[costs[candidates] <= room]
        self._budget = LinearBudget(costs[self._fitting], limit, room, [each.take(self._fitting) for each in limits])

    def lower(self, value: float, gains: np.ndarray) -> None:
        """Take a subset into account.

        Args:
            value: of the subset.
            gains: over the subset of every sample of the pool, or upper bounds of these, float64 (n,); 0 of its own.
        """
        self.value = min(self.value, value + self._budget.largest_sum(gains[self._fitting])[0])

    def close(
        self,
        objective: Objective,
        chosen: np.ndarray,
        value: float,
        gains: np.ndarray | None = None,
        *,
        progress: bool = False,
    ) -> None:
        """Take the finished subset and the objective's relaxation into account, as far as there is need.

        Args:
            objective: monotone and submodular, with the subset inside.
            chosen: the subset, int64 (k,).
            value: that a subset within the budget has.
            gains: upper bounds of the gains, as for `lower_exactly`.
            progress: show a bar.
        """
        if len(chosen) == len(self._fitting):  # of a monotone function there is no more
            self.value = min(self.value, float(objective.value))
        if not is_sparse(objective) and value < _ENOUGH * self.value:
            self.lower_exactly(objective, gains, progress=progress)
        if value < _ENOUGH * self.value and (relaxation := relaxation_of(objective, chosen)) is not None:
            self.relax(relaxation, value, progress=progress)

    def lower_exactly(self, objective: Objective, gains: np.ndarray | None = None, *, progress: bool = False) -> None:
        """Take the subset in an objective into account, by as many present gains as the largest sum needs.

        Args:
            objective: monotone and submodular.
            gains: upper bounds of the gains as for `lower`, which are then replaced in place where evaluated; without
                them every gain is evaluated.
            progress: show a bar.
        """
        gains = np.full(objective.n, np.inf) if gains is None else gains
        present = np.zeros(len(self._fitting), dtype=bool)
        with tqdm(total=len(present), desc="bound", unit=" samples", leave=False, **drawn(progress)) as bar:
            stale = np.arange(len(present) if np.isinf(gains[self._fitting]).any() else 0)
            while True:
                for first in range(0, len(stale), _ROWS):
                    part = self._fitting[stale[first : first + _ROWS]]
                    gains[part] = np.minimum(gains[part], objective.gains(part))
                    bar.update(len(part))
                present[stale] = True
                now = gains[self._fitting]
                total, largest, _ = self._budget.largest_sum(now)
                stale = largest[~present[largest] & (now[largest] > 0)]
                if not len(stale):
                    break
        self.value = min(self.value, float(objective.value) + total)

    def relax(self, relaxation: Relaxation, value: float, *, progress: bool = False) -> None:
        """Take the bounds of a relaxation into account.

        Args:
            relaxation: of the objective.
            value: that a subset within the budget has.
            progress: show a bar.
        """
        each = max(len(self._fitting), 1)
        steps = min(_STEPS, max(self.work, _PAIRS // max(relaxation.n_target, 1)) // each)
        with tqdm(total=steps * each, desc="bound", unit=" samples", leave=False, **drawn(progress)) as bar:
            for _ in range(steps):
                if value >= _ENOUGH * self.value:
                    break
                weights = np.empty(len(self._fitting))
                for first in range(0, len(weights), _ROWS):
                    part = slice(first, first + _ROWS)
                    weights[part] = relaxation.weights(self._fitting[part])
                    bar.update(len(weights[part]))
                total, places, shares = self._budget.largest_sum(weights)
                found = relaxation.constant + total
                self.value = min(self.value, found)
                relaxation.move(self._fitting[places], shares, max(found - value, 0.0))


def pairs_for_bound(samples: int, targets: int, expected: float) -> int:
    """Entries of the matrix that a bound of about `expected` samples may take, where the choice takes one pass.

    With a sample for each target nearly all are covered as far as they can be, and the first bound is close enough.
    """
    steps = 1 if expected >= targets else min(_STEPS, max(1, _PAIRS // (samples * targets)))
    return samples * targets * (1 + steps)


def is_sparse(objective: Objective) -> bool:
    """Whether entries of the objective's matrix are left out."""
    matrix = getattr(objective, "matrix", None)
    return isinstance(matrix, InfluenceMatrix) and matrix.floor is not None


def confidence_of(objective: Objective) -> float:
    """Probability that a bound on the objective's value holds: below 1 of a sparse matrix with entries not visited."""
    matrix = getattr(objective, "matrix", None)
    return matrix.confidence if isinstance(matrix, InfluenceMatrix) else 1.0


def without_bound(objective: Objective) -> str:
    """Why the value of an objective has no bound; "" where it has one."""
    lacking = [word for word in ("monotone", "submodular") if not getattr(objective, word)]
    if not lacking and is_sparse(objective) and type(objective) not in COVERAGE:
        return f"of a sparse matrix the objective {objective.name} has none"
    return f"the objective {objective.name} is not {' and not '.join(lacking)}" if lacking else ""
