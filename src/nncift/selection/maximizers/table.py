"""Maximisers of an objective, by name: lazy, stochastic, threshold and partitioned greedy.

| maximiser | what it does | guarantee for a monotone submodular objective, k samples |
|---|---|---|
| lazy | plain greedy, fewer evaluations | 1 - 1/e |
| stochastic | each step the best of a random sample of candidates | 1 - 1/e - `EPSILON` in expectation |
| threshold | takes what gains at least a threshold, which is lowered | 1 - 1/e - `EPSILON` |
| partitioned | chooses in parts of the pool, then among what they chose | none for so few from each part: measured |

Under a token budget each is run by gain per token and by gain, and the better subset counts (Leskovec et al.,
"Cost-effective outbreak detection in networks", 2007: at least (1 - 1/e) / 2 of the best value for lazy greedy).

Only lazy greedy's order is that of plain greedy. All are repeatable: random draws are those of the seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from nncift.errors import ConfigError
from nncift.run.options.registry import suggest
from nncift.selection.certificate import BoundOnBest, Certificate, without_bound
from nncift.selection.groups import GroupLimits
from nncift.selection.maximizers.graph_cut_greedy import graph_cut_greedy
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.maximizers.partitioned_greedy import PART, partitioned_greedy
from nncift.selection.maximizers.sampled_greedy import EPSILON, stochastic_greedy, threshold_greedy
from nncift.selection.objectives.graph_cut import GraphCut, GraphCutRelaxation
from nncift.selection.objectives.modular import MeanInfluence, ties_of
from nncift.selection.objectives.table import SUMS_OVER_TARGETS, Objective
from nncift.selection.room import Task
from nncift.selection.selection import Selection

Chosen = tuple[list[int], list[float]]
"""Samples in the order selected, and their gains."""


class Make(Protocol):
    """Makes an empty objective: of all targets, or of some of them alone (int64)."""

    def __call__(self, targets: np.ndarray | None = None) -> Objective: ...  # noqa: D102


MAXIMIZERS = ("lazy", "stochastic", "threshold", "partitioned")
DEFAULT = "lazy"
_PAIRS = 1 << 33  # that a bound may take after partitioned greedy, which does not read all


def maximize(
    make: Make,
    budget: int | None = None,
    *,
    maximizer: str | None = None,
    costs: np.ndarray | None = None,
    max_cost: float | None = None,
    candidates: np.ndarray | None = None,
    limits: Sequence[GroupLimits] = (),
    prefix: np.ndarray | Sequence[int] = (),
    own_targets: bool = False,
    seed: int = 0,
    certify: bool = False,
    progress: bool = False,
) -> Selection:
    """Select a subset by a maximiser of the table.

    Args:
        make: makes the objective. With `targets` it is that of these targets alone, for partitioned greedy.
        budget: number of samples; under a token budget, at most this many.
        maximizer: its name; "lazy" unless given.
        costs: tokens of every sample, (n,), above 0; together with `max_cost`.
        max_cost: tokens of the subset at most.
        candidates: samples that may be selected, int64 without repetition; default all.
        limits: on how much of each value of a column is selected.
        prefix: samples that come first, as for `lazy_greedy`; for the maximiser lazy, and not for the graph cut.
        own_targets: the targets are the samples themselves, so that a part of the pool can be its own target.
        seed: of what is random.
        certify: also bound the best possible value.
        progress: show a bar.

    Raises:
        ConfigError: there is no such maximiser, it cannot maximise this objective or meet limits, or as `lazy_greedy`.
    """
    name = maximizer or DEFAULT
    check_maximizer(name, limited=bool(limits))
    objective = make()
    check_maximizer(name, objective)
    both_rules = costs is not None and not isinstance(objective, MeanInfluence)  # whose gain per token is its point
    given: dict[str, Any] = {
        "costs": costs,
        "max_cost": max_cost,
        "candidates": candidates,
        "limits": limits,
        "prefix": prefix,
        "progress": progress,
    }
    if name == DEFAULT and not isinstance(objective, GraphCut):
        best = lazy_greedy(objective, budget, tie_break=ties_of(objective), certify=certify, **given)
        return _better(best, _by_gain(make(), budget, given)) if both_rules else best
    if len(prefix):
        raise ConfigError(f"`prefix` is for lazy greedy, not for {name} or the graph cut", "leave it out")
    task = Task.of(objective.n, budget, costs, max_cost, candidates, limits)
    n_target = objective.n if own_targets and objective.name in SUMS_OVER_TARGETS else None
    found: list[tuple[Selection, Objective]] = []
    for by_cost in (True, False) if both_rules else (True,):
        objective = make() if found else objective
        chosen = _run(name, make, objective, replace(task, by_cost=by_cost), n_target, seed, progress)
        found.append((_selection(objective, chosen), objective))
    selection, objective = max(found, key=lambda each: each[0].value)  # of equal ones the first
    if not certify:
        return selection
    partial = name == "partitioned" and n_target is not None and objective.n * n_target > _PAIRS
    certificate = _certificate(objective, selection, task, partial=partial, progress=progress)
    return replace(selection, certificate=certificate)


def check_maximizer(name: str | None, objective: Objective | None = None, *, limited: bool = False) -> None:
    """Refuse a name that is none, or a maximiser that cannot meet limits or maximise this objective.

    Raises:
        ConfigError: it is so.
    """
    if name is not None and name not in MAXIMIZERS:
        raise ConfigError(f"there is no `maximizer` {name!r}", suggest(name, MAXIMIZERS))
    if name == "partitioned" and limited:
        problem = "the `maximizer` partitioned chooses in parts of the pool, which cannot meet `quota` and `cap`"
        raise ConfigError(problem, "give lazy, stochastic or threshold")
    if name == "threshold" and objective is not None and (reason := without_bound(objective)):
        problem = f"the `maximizer` threshold needs gains that only fall and are not negative, and {reason}"
        raise ConfigError(problem, "give lazy or stochastic")


def planned_passes(name: str | None, n: int, expected: float, *, own_targets: bool) -> float:
    """About how many times a maximiser reads the pairs of a sum over targets, without a bound.

    Args:
        name: of the maximiser.
        n: number of samples.
        expected: number that will be selected.
        own_targets: as for `maximize`.
    """
    parts = -(-n // PART)
    if name == "stochastic":
        return math.log(1 / EPSILON)
    if name == "partitioned" and own_targets:
        return 1 / parts + 2 * expected / n  # in the parts; for the gains over all targets
    return 1.0


def _run(
    name: str, make: Make, objective: Objective, task: Task, n_target: int | None, seed: int, progress: bool
) -> Chosen:
    if name == "stochastic":
        return stochastic_greedy(objective, task, seed=seed, progress=progress)
    if name == "threshold":
        return threshold_greedy(objective, task, progress=progress)
    if name == "partitioned":
        return partitioned_greedy(make, greedy, objective, task, n_target=n_target, seed=seed, progress=progress)
    return greedy(objective, task, progress)


def greedy(objective: Objective, task: Task, progress: bool = False) -> Chosen:
    """Plain greedy's subset, by what is fastest for the objective, which is empty before."""
    if isinstance(objective, GraphCut):
        return graph_cut_greedy(objective, task, progress=progress)
    given: dict[str, Any] = {"candidates": task.candidates, "limits": task.limits, "progress": progress}
    if not np.isinf(task.max_cost):
        given |= {"costs": task.costs, "max_cost": task.max_cost}
    limit = min(task.limit, len(task.candidates))
    given["tie_break"] = ties_of(objective)
    found = lazy_greedy(objective, limit, **given) if task.by_cost else _by_gain(objective, limit, given)
    return found.indices.tolist(), found.gains.tolist()


class _ByGain:
    """An objective whose gains count times the cost, so that greedy by gain per cost goes by the gain itself."""

    value = float("inf")  # so that no single sample counts as better than the subset

    def __init__(self, objective: Objective, costs: np.ndarray) -> None:
        self.name, self.options, self.n = objective.name, objective.options, objective.n
        self.monotone, self.submodular, self.normalised = objective.monotone, objective.submodular, True
        self._objective, self._costs = objective, np.asarray(costs, dtype=np.float64)

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Gain times cost of each candidate, float64."""
        return np.asarray(self._objective.gains(candidates) * self._costs[candidates])

    def add(self, i: int) -> None:
        """Add sample `i`."""
        self._objective.add(i)


def _by_gain(objective: Objective, budget: int | None, given: Mapping[str, Any]) -> Selection:
    """Lazy greedy under a token budget by the largest gain that fits."""
    found = lazy_greedy(_ByGain(objective, given["costs"]), budget, **given)
    gains = found.gains / np.asarray(given["costs"], dtype=np.float64)[found.indices]
    return _selection(objective, (found.indices.tolist(), gains.tolist()))


def _better(first: Selection, second: Selection) -> Selection:
    """The subset of larger value, with the certificate of the first, whose bound holds for both."""
    if second.value <= first.value:
        return first
    known = first.certificate
    if known is not None:
        bound = None if known.bound is None else max(known.bound, second.value)
        known = replace(known, value=second.value, bound=bound)
    return replace(second, certificate=known)


def _selection(objective: Objective, chosen: Chosen) -> Selection:
    indices, gains = (np.array(values, kind) for values, kind in zip(chosen, (np.int64, np.float64), strict=True))
    return Selection(indices, gains, float(objective.value), objective.name, objective.options)


def _certificate(
    objective: Objective, selection: Selection, task: Task, *, partial: bool, progress: bool
) -> Certificate:
    """The bound for a subset that is in the objective."""
    value, chosen = selection.value, selection.indices
    bound = BoundOnBest(task.candidates, task.costs, task.limit, task.max_cost, task.limits)
    reason = without_bound(objective)
    if isinstance(objective, GraphCut):  # whose relaxation bounds it even where it is not monotone
        bound.relax(GraphCutRelaxation(objective, chosen), value, progress=progress)
    elif partial and not reason:
        reason = "partitioned greedy reads a part of the pairs, and a bound would take all of them"
    elif not reason:
        bound.close(objective, chosen, value, progress=progress)
    best = max(bound.value, value) if np.isfinite(bound.value) else None
    return Certificate(value, best, len(task.candidates), "" if best is not None else reason)
