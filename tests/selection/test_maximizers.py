"""Every maximiser on every objective: within the budget, near plain greedy's value, and refusals."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.errors import ConfigError
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.parts import of_targets
from nncift.run.executors.base import computing_with
from nncift.selection.groups import GroupLimits, Groups
from nncift.selection.maximizers import partitioned_greedy, sampled_greedy
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.maximizers.table import MAXIMIZERS, maximize, planned_passes
from nncift.selection.objectives.coverage import FacilityLocation
from nncift.selection.objectives.table import (
    OBJECTIVES,
    READS_MEANS,
    SUMS_OVER_TARGETS,
    ObjectiveOptions,
    make_objective,
)
from worker_jobs import Elsewhere

N = 300
OWN = [name for name in OBJECTIVES if not name.endswith(("rank", "information", "gain"))]  # that need nothing more
FOR_TARGETS = ("facility-location-reciprocal-rank", "facility-location-mutual-information")
PAIRS = [
    (name, how) for name in (*OWN, *FOR_TARGETS) for how in MAXIMIZERS if (name, how) != ("graph-cut", "threshold")
]
TARGETS = np.arange(0, N, 12)  # of those that are for targets


@functools.cache
def near_points() -> tuple[InfluenceMatrix, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 8))[rng.integers(0, 20, N)] + 0.4 * rng.standard_normal((N, 8))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    none = np.zeros(N, np.float32)
    return InfluenceMatrix.from_towers(x, x, pool_bias=none, target_bias=none), x


def maker(name: str, expected: float = 30.0, costs: np.ndarray | None = None):
    (matrix, x), for_targets = near_points(), name in FOR_TARGETS
    matrix = of_targets(matrix, TARGETS) if for_targets else matrix

    def make(targets=None):
        part = matrix if targets is None else of_targets(matrix, targets)
        options = ObjectiveOptions(features=x, expected=expected, costs=costs, has_target=for_targets)
        return make_objective(name, part, options)

    return make


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(partitioned_greedy, "PART", 100)


def value_of(make, subset) -> float:
    objective = make()
    for i in subset:
        objective.add(int(i))
    return float(objective.value)


@pytest.mark.parametrize(("name", "how"), PAIRS)
def test_fills_the_budget_near_the_value_of_plain_greedy(name, how):
    make = maker(name)
    own = name not in FOR_TARGETS
    found = maximize(make, 30, maximizer=how, own_targets=own, certify=True, seed=1)
    assert len(np.unique(found.indices)) == 30
    assert found.indices.dtype == np.int64
    assert found.value == pytest.approx(value_of(make, found.indices), rel=1e-6)
    assert found.gains.sum() == pytest.approx(found.value, rel=1e-5)
    best = lazy_greedy(make(), 30).value
    assert found.value >= 0.93 * best
    assert found.certificate.bound >= max(best, found.value) * (1 - 1e-6)
    again = maximize(make, 30, maximizer=how, own_targets=own, seed=1)
    assert again.indices.tolist() == found.indices.tolist()


@pytest.mark.parametrize(("name", "how"), PAIRS)
def test_token_budgets_and_candidates(name, how):
    costs = np.random.default_rng(2).integers(1, 40, N)
    make, some, own = maker(name, costs=costs.astype(float)), np.arange(0, N, 2), name not in FOR_TARGETS
    found = maximize(make, costs=costs, max_cost=200, candidates=some, maximizer=how, own_targets=own, certify=True)
    assert set(found.indices.tolist()) <= set(some.tolist())
    assert len(np.unique(found.indices)) == len(found)
    assert costs[found.indices].sum() <= 200
    assert found.certificate.bound >= found.value
    assert found.value >= 0.9 * lazy_greedy(make(), costs=costs, max_cost=200, candidates=some).value


@pytest.mark.parametrize("how", [None, *MAXIMIZERS])
@pytest.mark.parametrize("tokens", [False, True])
def test_scores_below_0_are_ordered_like_others(how, tokens):
    scores = np.random.default_rng(0).permutation(N).astype(np.float32) - N + 20  # 19 of them above 0
    costs = np.full(N, 7.0) if tokens else None
    options = ObjectiveOptions(costs=costs)
    matrix = InfluenceMatrix.from_array(np.repeat(scores[:, None], 2, axis=1))
    budget = {"costs": costs, "max_cost": 350} if tokens else {"budget": 50}
    given = {"maximizer": how, **budget}
    found = maximize(lambda targets=None: make_objective("mean-influence", matrix, options), **given).indices
    if how == "stochastic":  # of those drawn at each step the largest
        assert scores[found].mean() > scores.mean() + 50
    else:
        assert found.tolist() == np.argsort(-scores)[:50].tolist()
    below = InfluenceMatrix.from_array(np.repeat(np.minimum(scores, 0)[:, None] - 1, 2, axis=1))
    found = maximize(lambda targets=None: make_objective("mean-influence", below, options), **given).indices
    assert len(found) == 50
    assert scores[found].mean() > (scores.mean() + 50)


def test_lazy_is_lazy_greedy():
    make = maker("facility-location")
    plain = lazy_greedy(make(), 20, certify=True)
    for how in ("lazy", None):
        found = maximize(make, 20, maximizer=how, certify=True)
        assert found.indices.tolist() == plain.indices.tolist()
        assert (found.value, found.certificate) == (plain.value, plain.certificate)


def test_a_pool_that_is_one_part_is_chosen_from_by_plain_greedy(monkeypatch):
    monkeypatch.setattr(partitioned_greedy, "PART", N)
    make = maker("facility-location")
    found = maximize(make, 20, maximizer="partitioned", own_targets=True)
    assert found.indices.tolist() == lazy_greedy(make(), 20).indices.tolist()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("tokens", [False, True])
def test_parts_are_chosen_from_elsewhere_likewise(name, tokens):
    (matrix, x), own = near_points(), name in SUMS_OVER_TARGETS
    costs = np.random.default_rng(2).integers(1, 40, N).astype(float) if tokens else None
    known = np.full(N if own else 40, 0.1, np.float32) if name.endswith("gain") else None

    def make(targets=None):
        part = of_targets(matrix, np.arange(N if own else 40) if targets is None else targets)
        given = {"features": x, "expected": 30.0, "costs": costs, "has_target": not own}
        at = slice(None) if targets is None else targets
        return make_objective(name, part, ObjectiveOptions(known=None if known is None else known[at], **given))

    budget = {"costs": costs, "max_cost": 300} if tokens else {"budget": 30}
    options = {"candidates": np.arange(1, N), "maximizer": "partitioned", "own_targets": own, **budget}
    here = maximize(make, **options)
    travelled = []

    class Counting(Elsewhere):
        def map(self, job, parts):
            travelled.extend(parts := [*parts])
            return super().map(job, parts)

    with computing_with(Counting()):
        there = maximize(make, **options)
    assert there.indices.tolist() == here.indices.tolist()
    assert there.gains.tolist() == here.gains.tolist()
    assert {part.objective.n for part in travelled} == (set() if name in READS_MEANS else {99, 100})


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_token_budgets_take_the_better_of_two_rules(seed):
    rng = np.random.default_rng(seed)
    entries, costs = (rng.random((8, 6)) ** 3).astype(np.float32), rng.integers(1, 30, 8)
    max_cost = int(rng.integers(costs.min(), costs.sum()))

    def make(targets=None):
        return FacilityLocation(InfluenceMatrix.from_array(entries))

    by_cost = lazy_greedy(make(), costs=costs, max_cost=max_cost).value
    left, chosen, by_gain = float(max_cost), [], make()
    while fitting := [i for i in range(8) if i not in chosen and costs[i] <= left]:
        gains = by_gain.gains(np.array(fitting))
        chosen.append(fitting[int(np.argmax(gains))])
        by_gain.add(chosen[-1])
        left -= costs[chosen[-1]]
    found = maximize(make, costs=costs, max_cost=max_cost, certify=True)
    assert found.value == pytest.approx(max(by_cost, by_gain.value), rel=1e-6)
    subsets = [list(s) for size in range(1, 9) for s in itertools.combinations(range(8), size)]
    best = max(entries[s].max(axis=0).sum() for s in subsets if costs[s].sum() <= max_cost)
    assert (1 - 1 / np.e) / 2 * best <= found.value + 1e-6
    assert found.value <= best + 1e-6
    assert best <= found.certificate.bound + 1e-5


def test_gain_alone_may_be_the_better_rule():
    entries = np.diag([1.0, 1.0, 4.0, 4.0]).astype(np.float32)
    costs = np.array([1, 1, 9, 9])  # by gain per token the short ones come first, and leave room for one long one

    def make(targets=None):
        return FacilityLocation(InfluenceMatrix.from_array(entries))

    assert lazy_greedy(make(), costs=costs, max_cost=18).value == 6
    found = maximize(make, costs=costs, max_cost=18)
    assert (sorted(found.indices.tolist()), found.value, found.gains.tolist()) == ([2, 3], 8, [4, 4])


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=15)
def test_threshold_guarantee(seed):
    rng = np.random.default_rng(seed)
    entries, k = (rng.random((9, 6)) ** 3).astype(np.float32), int(rng.integers(1, 6))

    def make(targets=None):
        return FacilityLocation(InfluenceMatrix.from_array(entries))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled_greedy, "_BATCH", int(rng.integers(1, 5)))
        value = maximize(make, k, maximizer="threshold").value
    best = max(entries[list(s)].max(axis=0).sum() for s in itertools.combinations(range(9), k))
    assert value >= (1 - 1 / np.e - sampled_greedy.EPSILON) * best - 1e-6


def test_stochastic_evaluates_few_gains():
    class Counting(FacilityLocation):
        evaluated = 0

        def gains(self, candidates):
            Counting.evaluated += len(candidates)
            return super().gains(candidates)

    matrix, _ = near_points()
    maximize(lambda targets=None: Counting(matrix), 30, maximizer="stochastic")
    assert Counting.evaluated <= N * np.log(1 / sampled_greedy.EPSILON) + 30
    assert planned_passes("stochastic", N, 30, own_targets=True) == pytest.approx(np.log(50))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *(("facility-location", how) for how in ("lazy", "stochastic", "threshold")),
        *(("graph-cut", how) for how in ("lazy", "stochastic")),
        ("log-determinant", "threshold"),
    ],
)
@pytest.mark.parametrize("tokens", [False, True])
def test_quotas_and_caps(name, how, tokens):
    rng = np.random.default_rng(3)
    groups = Groups("task", ("a", "b", "c"), rng.integers(0, 3, N).astype(np.int32))
    costs = rng.integers(1, 9, N) if tokens else np.ones(N, np.int64)
    limits = [GroupLimits(groups, np.array([0, 20, 5]), np.array([4, 20, 100]))]
    budget = {"costs": costs, "max_cost": 60} if tokens else {"budget": 60}
    found = maximize(maker(name), maximizer=how, limits=limits, **budget)
    taken = np.bincount(groups.codes[found.indices], costs[found.indices], minlength=3)
    assert taken[0] <= 4
    assert taken[2] >= 5
    assert 20 - (8 if tokens else 0) <= taken[1] <= 20  # a quota of tokens is met up to a sample
    assert len(np.unique(found.indices)) == len(found)
    assert tokens or len(found) == 60


@pytest.mark.parametrize(
    ("name", "how", "options", "message"),
    [
        ("facility-location", "lazi", {}, "there is no `maximizer` 'lazi': did you mean 'lazy'?"),
        ("graph-cut", "threshold", {}, "the `maximizer` threshold needs gains that only fall and are not negative"),
        ("facility-location", "stochastic", {"budget": N + 1}, "`budget` is 301 samples: choose between 1 and 300"),
        ("facility-location", "threshold", {"budget": None}, "`costs` and `max_cost` go together"),
        (
            "facility-location",
            "partitioned",
            {"limits": [GroupLimits(Groups("t", ("a",), np.zeros(N, np.int32)), np.zeros(1, int), np.ones(1, int))]},
            "the `maximizer` partitioned chooses in parts of the pool, which cannot meet `quota` and `cap`",
        ),
        (
            "facility-location",
            "stochastic",
            {"budget": None, "costs": np.full(N, 7), "max_cost": 6},
            "`budget` is 6 tokens: the shortest sample has 7",
        ),
    ],
)
def test_refusals(name, how, options, message):
    with pytest.raises(ConfigError) as error:
        maximize(maker(name), **({"budget": 5} | options), maximizer=how)
    assert message in str(error.value)


def test_targets_of_their_own_are_a_matrix_of_these_columns():
    matrix, _ = near_points()
    columns = np.array([3, 299, 17, 64, 65])
    stored = InfluenceMatrix.from_array(matrix.rows(slice(None)))
    for part in (of_targets(matrix, columns), of_targets(stored, columns)):
        assert part.shape == (N, 5)
        np.testing.assert_array_equal(part.rows(np.array([5, 9])), stored.rows(np.array([5, 9]))[:, columns])
        np.testing.assert_array_equal(part.block(slice(0, 3), slice(1, 4)), stored.rows(slice(0, 3))[:, columns[1:4]])
