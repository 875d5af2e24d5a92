"""Lazy greedy maximization of an objective: only candidates that can still win are evaluated.

Under a count budget the greedy subset of a monotone submodular function has at least 1 - 1/e of the best value
(Nemhauser, Wolsey and Fisher, 1978). A gain never rises while the subset grows, so an earlier gain is an upper bound,
and a candidate whose bound is below another's current gain need not be evaluated (Minoux, "Accelerated greedy
algorithms", 1978). Of a matrix computed on access the candidates with the highest bounds are evaluated in batches, each
twice as large as the one before, since a kernel evaluates many rows for little more than the price of one; of a stored
one they are evaluated one by one (`matrix.compiled.lazy`). The result is that of plain greedy, in the same order. Cost:
one pass over the matrix for the first gains, then a few dozen rows a step, or a few stored ones.

Under a token budget it takes the best gain per token among the samples that still fit, and compares the result with the
best single sample: at least (1 - 1/e) / 2 of the best value (Leskovec et al., "Cost-effective outbreak detection in
networks", 2007; Lin and Bilmes, "Multi-document summarization via budgeted maximization", 2010).

Under limits on groups it skips the candidates that cannot join any more (`selection.groups`): at least 1/2 of the best
value with limits on one column and a count budget (Fisher, Nemhauser and Wolsey, 1978).

How far the result is from the best one at most is in its `Certificate`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from nncift.errors import ConfigError
from nncift.matrix.compiled.lazy import CoverageQueue
from nncift.run.progress import drawn
from nncift.selection.certificate import BoundOnBest, Certificate, confidence_of, is_sparse, without_bound
from nncift.selection.groups import Admission, GroupLimits
from nncift.selection.objectives.built_in import coverage_terms
from nncift.selection.objectives.table import Objective
from nncift.selection.selection import Selection

_FIRST_BATCH = 48  # candidates evaluated together at first: four groups of the kernel's rows for each of two threads
_FIRST_PASS = 4096  # rows between two updates of the progress bar


def lazy_greedy(
    objective: Objective,
    budget: int | None = None,
    *,
    costs: np.ndarray | None = None,
    max_cost: float | None = None,
    tie_break: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
    limits: Sequence[GroupLimits] = (),
    prefix: Sequence[int] | np.ndarray = (),
    certify: bool = False,
    progress: bool = False,
) -> Selection:
    """Select a subset greedily; `objective` is empty before and holds the subset afterwards.

    Ties: the larger `tie_break` first, then the lower index. So once every target is covered and all gains are 0, the
    rest is ordered by `tie_break`. An objective that is not submodular is evaluated in full at every step.

    Args:
        objective: to maximize.
        budget: number of samples; under a token budget, at most this many.
        costs: tokens of every sample, (n,), above 0; together with `max_cost`.
        max_cost: tokens of the subset at most; together with `costs`.
        tie_break: (n,); default the initial gains.
        candidates: samples that may be selected, int64 without repetition; default all.
        limits: on how much of each value of a column is selected, on one or two columns. Where they leave no candidate
            that can join, fewer samples are selected.
        prefix: samples that come first whatever their gains, in this order, and count in the budget; without `limits`.
            Where they are greedy's own for a smaller budget, the result is that without them, for two passes over the
            matrix instead of all steps up to there.
        certify: also bound the best possible value, at about the same cost again (see `selection.certificate`).
        progress: show a bar.

    Raises:
        ConfigError: the budget is not between 1 and the number of candidates, no sample fits, or options do not go
            together.
    """
    n, first = objective.n, np.asarray(prefix, dtype=np.int64)
    everyone = np.arange(n) if candidates is None else np.union1d(candidates, first)
    _check_budget(everyone, n, budget, costs, max_cost)
    _check_prefix(first, n, budget, limits)
    limit = len(everyone) if budget is None else budget
    each = np.ones(n) if costs is None else np.asarray(costs, dtype=np.float64)
    room = float("inf") if max_cost is None else float(max_cost)
    first_gains = _gains_of_all(objective, everyone, progress)
    first_by = first_gains if tie_break is None else _per_sample("tie_break", tie_break, n)
    order = everyone[np.lexsort((everyone, -first_by[everyone]))]
    total = limit if max_cost is None else room
    admission = Admission(limits, everyone, each, total) if limits else None
    bound = None if not certify or without_bound(objective) else BoundOnBest(everyone, each, limit, room, limits)
    complete = not is_sparse(objective)  # so that gains bound the best value
    latest, begun, checks = first_gains.copy(), list[float](), (admission, bound if complete else None)
    if len(first):
        begun, latest = _begin(objective, first, first_gains, everyone, checks[1], progress)
        order = order[~np.isin(order, first)]
    left = limit - len(first), room - float(each[first].sum())
    added, gains = _choose(objective, latest, order, each, left, checks, progress)
    indices, gains = [*first.tolist(), *added], [*begun, *gains]
    chosen = np.array(indices, np.int64)
    affordable = everyone[each[everyone] <= room]
    best = affordable[np.argmax(first_gains[affordable])]
    value = float(objective.value)
    free = costs is not None and not limits and not len(first)
    if free and first_gains[best] > value:  # one long sample beats the whole subset
        indices, gains, value = [int(best)], [float(first_gains[best])], float(first_gains[best])
    certificate = None
    if certify:
        if bound is not None:
            bound.close(objective, chosen, value, latest, progress=progress)
        best_value = None if bound is None else max(bound.value, value)
        reason, confidence = without_bound(objective), confidence_of(objective)
        certificate = Certificate(value, best_value, len(everyone), reason, confidence)
    return Selection(
        np.array(indices, np.int64),
        np.array(gains),
        value,
        objective.name,
        objective.options,
        certificate=certificate,
    )


def _gains_of_all(objective: Objective, everyone: np.ndarray, progress: bool) -> np.ndarray:
    """The present gain of every candidate, float64 (n,); 0 of the others."""
    gains = np.zeros(objective.n)
    with tqdm(total=len(everyone), desc="first gains", unit=" samples", leave=False, **drawn(progress)) as bar:
        for start in range(0, len(everyone), _FIRST_PASS):
            part = everyone[start : start + _FIRST_PASS]
            gains[part] = objective.gains(part)
            bar.update(len(part))
    return gains


def _begin(
    objective: Objective,
    prefix: np.ndarray,
    first_gains: np.ndarray,
    everyone: np.ndarray,
    bound: BoundOnBest | None,
    progress: bool,
) -> tuple[list[float], np.ndarray]:
    """Add the first samples: their marginal gains, and the gains of all candidates over them."""
    if bound is not None:
        bound.lower(float(objective.value), first_gains)
        bound.work += len(everyone) + len(prefix)
    begun = []
    for i in prefix.tolist():
        begun.append(float(objective.gains(np.array([i]))[0]))
        objective.add(i)
    return begun, _gains_of_all(objective, everyone, progress)


def _choose(
    objective: Objective,
    gains: np.ndarray,
    order: np.ndarray,
    costs: np.ndarray,
    budget: tuple[int, float],
    checks: tuple[Admission | None, BoundOnBest | None],
    progress: bool,
) -> tuple[list[int], list[float]]:
    """Lazy greedy from the initial `gains`, updated in place, within a count and a cost; `order` breaks ties.

    Afterwards `gains` are upper bounds of the gains over the subset, 0 of its own samples.
    """
    (limit, room), (admission, bound) = budget, checks
    terms = coverage_terms(objective)
    queue: CoverageQueue | _BatchQueue
    if terms is None:
        queue = _BatchQueue(objective, gains, order, costs, admission)
    else:
        queue = CoverageQueue(*terms, gains, order, costs)
    indices: list[int] = []
    chosen: list[float] = []
    if bound is not None:
        bound.lower(float(objective.value), gains)
    total, unit = (limit, " samples") if room == float("inf") else (int(room), " tokens")
    with tqdm(total=total, desc="select", unit=unit, **drawn(progress)) as bar:
        while len(indices) < limit and (i := queue.best(len(indices), room)) is not None:
            if admission is not None and not admission.admit(i):
                continue
            objective.add(i)
            indices.append(i)
            chosen.append(float(gains[i]))
            gains[i] = 0.0
            if bound is not None and len(indices).bit_count() == 1:
                bound.lower(float(objective.value), gains)
            room -= costs[i]
            bar.update(1 if np.isinf(room) else int(costs[i]))
    if bound is not None:
        bound.work += queue.work
    return indices, chosen


class _BatchQueue:
    """Candidates in the order of their gains per cost, evaluated in batches.

    Args:
        objective: which the gains are of.
        gains: upper bounds of the gains, float64 (n,), replaced in place where evaluated.
        order: the candidates, int64 (k,); of equal gains the earlier one comes first.
        costs: of each sample, float64 (n,), above 0.
        admission: candidates that may not join are not evaluated.

    Attributes:
        work: gains evaluated.
    """

    def __init__(
        self,
        objective: Objective,
        gains: np.ndarray,
        order: np.ndarray,
        costs: np.ndarray,
        admission: Admission | None,
    ) -> None:
        self.work = 0
        self._objective, self._gains, self._order, self._costs = objective, gains, order, costs
        self._admission = admission
        self._evaluated = np.zeros(len(gains), dtype=np.int64)  # size of the subset when each gain was evaluated
        self._place = np.empty(len(gains), dtype=np.int64)
        self._place[order] = np.arange(len(order))
        self._heap = list(zip((-gains[order] / costs[order]).tolist(), range(len(order)), strict=True))
        heapq.heapify(self._heap)
        self._first_batch = _FIRST_BATCH if objective.submodular else len(self._heap)
        self._zero_stays = objective.monotone and objective.submodular

    def best(self, step: int, room: float) -> int | None:
        """Take out the candidate with the largest gain per cost; as `CoverageQueue.best`."""
        heap, batch = self._heap, self._first_batch
        while heap:
            stale: list[int] = []
            while heap and len(stale) < batch:
                i = int(self._order[heap[0][1]])
                if self._may_join(i, room):
                    if self._evaluated[i] == step or (self._zero_stays and self._gains[i] <= 0):
                        break
                    stale.append(i)
                heapq.heappop(heap)
            if not stale:
                return int(self._order[heapq.heappop(heap)[1]]) if heap else None
            self._gains[stale] = self._objective.gains(np.array(stale))
            self._evaluated[stale] = step
            self.work += len(stale)
            for i in stale:
                heapq.heappush(heap, (float(-self._gains[i] / self._costs[i]), int(self._place[i])))
            batch *= 2
        return None

    def _may_join(self, i: int, room: float) -> bool:
        """Whether a candidate may join, now or ever: room and limits only shrink."""
        return bool(self._costs[i] <= room) and (self._admission is None or self._admission.may_fit(i))


def _check_budget(
    everyone: np.ndarray, n: int, budget: int | None, costs: np.ndarray | None, max_cost: float | None
) -> None:
    if budget is None and max_cost is None:
        raise ConfigError("there is no `budget`", "give a number of samples, or `costs` and `max_cost`")
    if budget is not None and not 1 <= budget <= len(everyone):
        size = f"{len(everyone)}, the size of {'the pool' if len(everyone) == n else 'the candidates'}"
        raise ConfigError(f"`budget` is {budget} samples", f"choose between 1 and {size}")
    if (costs is None) != (max_cost is None):
        raise ConfigError("`costs` and `max_cost` go together", "give both, or a number of samples alone")
    if costs is None or max_cost is None:
        return
    costs = _per_sample("costs", costs, n)
    if costs.min() <= 0:
        raise ConfigError(f"sample {int(costs.argmin())} costs {costs.min()}", "every cost must be above 0")
    costs = costs[everyone]
    if not costs.min() <= max_cost < float("inf"):
        have = f"the shortest sample has {costs.min():g}, all together {costs.sum():g}"
        raise ConfigError(f"`budget` is {max_cost} tokens", have)


def _check_prefix(prefix: np.ndarray, n: int, budget: int | None, limits: Sequence[GroupLimits]) -> None:
    if not len(prefix):
        return
    if limits:
        raise ConfigError("`prefix` and `limits` do not go together", "leave one of them out")
    if len(np.unique(prefix)) < len(prefix) or prefix.min() < 0 or prefix.max() >= n:
        raise ConfigError("`prefix` names a sample twice, or none of them", f"give indices from 0 to {n - 1}")
    if budget is not None and budget < len(prefix):
        raise ConfigError(f"`budget` is {budget} samples, and `prefix` has {len(prefix)}", "give a larger one")


def _per_sample(name: str, values: np.ndarray, n: int) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (n,) or not np.isfinite(values).all():
        raise ConfigError(f"`{name}` must hold {n} finite numbers, one per sample", f"its shape is {values.shape}")
    return values
