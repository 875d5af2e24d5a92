"""The bound on the best possible value, against every subset of small pools."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.certificate import BoundOnBest, Certificate, pairs_for_bound
from nncift.selection.groups import GroupLimits, Groups
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.coverage import FacilityLocation
from nncift.selection.objectives.table import COMPARES_FEATURES, OBJECTIVES, ObjectiveOptions, make_objective
from nncift.selection.relaxation import relaxation_of

NEAR = 1e-5  # of float32 sums


def value_of(make, subset) -> float:
    """By adding one sample after the other."""
    objective = make()
    for i in subset:
        objective.add(int(i))
    return float(objective.value)


def best_value(make, candidates, costs, limit, room) -> float:
    """The definition: the largest value of any subset within the budget."""
    subsets = (s for size in range(min(limit, len(candidates)) + 1) for s in itertools.combinations(candidates, size))
    return max(value_of(make, subset) for subset in subsets if costs[list(subset)].sum() <= room)


def bound_over(make, candidates, subset, costs, limit, room) -> float:
    """A subset's value and the largest sum of gains over it, filled one by one."""
    objective = make()
    for i in subset:
        objective.add(int(i))
    fitting = candidates[costs[candidates] <= room]
    gains = np.maximum(objective.gains(fitting), 0)
    left, fill = room, 0.0
    for gain, cost in sorted(zip(gains, costs[fitting], strict=True), key=lambda pair: -pair[0] / pair[1]):
        part = min(1.0, left / cost) if np.isfinite(left) else 1.0
        left, fill = left - part * cost, fill + part * gain
    return float(objective.value + min(fill, np.sort(gains)[::-1][:limit].sum()))


@st.composite
def problems(draw):
    """An influence matrix, its candidates, and a budget in samples, in tokens or in both."""
    n, m = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    levels = draw(st.sampled_from([1, 2, 1_000_000]))
    entries = (rng.integers(-levels, levels + 1, (n, m)) / levels).astype(np.float32)
    candidates = np.sort(rng.permutation(n)[: draw(st.integers(1, n))])
    costs = None if draw(st.booleans()) else rng.integers(1, 9, n).astype(np.float64)
    limit = draw(st.none() | st.integers(1, len(candidates))) if costs is not None else None
    if costs is None:
        limit = draw(st.integers(1, len(candidates)))
    low, high = (0, 0) if costs is None else (int(costs[candidates].min()), int(costs[candidates].sum()) + 2)
    return entries, candidates, costs, limit, None if costs is None else float(draw(st.integers(low, high)))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "graph-cut"])  # not monotone: test_graph_cut
@given(problem=problems())
@settings(deadline=None, max_examples=20)
def test_no_subset_within_the_budget_is_above_the_bound(name, problem):
    entries, candidates, costs, limit, room = problem
    known = entries[0] / 2 if name.endswith(("gain", "rank")) else None

    def make():
        features = entries if name in COMPARES_FEATURES else None
        options = ObjectiveOptions(has_target=True, known=known, costs=costs, features=features)
        return make_objective(name, InfluenceMatrix.from_array(entries), options)

    selection = lazy_greedy(make(), limit, costs=costs, max_cost=room, candidates=candidates, certify=True)
    each = np.ones(len(entries)) if costs is None else costs
    most, space = len(candidates) if limit is None else limit, np.inf if room is None else room
    best, found = best_value(make, candidates, each, most, space), selection.certificate
    assert found.value == selection.value
    assert found.among == len(candidates)
    assert best <= found.bound + NEAR
    assert 0 <= found.share <= 1
    assert selection.value >= found.share * best - NEAR
    plain = lazy_greedy(make(), limit, costs=costs, max_cost=room, candidates=candidates)
    assert (plain.certificate, plain.indices.tolist()) == (None, selection.indices.tolist())
    for subset in (selection.indices, selection.indices[:1]):
        exact, objective = BoundOnBest(candidates, each, most, space), make()
        for i in subset:
            objective.add(int(i))
        exact.lower_exactly(objective)
        assert exact.value >= best - NEAR
        assert exact.value == pytest.approx(bound_over(make, candidates, subset, each, most, space), abs=NEAR)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "mean-influence"])
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([1, 1_000_000]))
@settings(deadline=None, max_examples=12)
def test_a_relaxation_is_never_below_the_value_of_a_subset(name, seed, levels):
    rng = np.random.default_rng(seed)
    entries = (rng.integers(-levels, levels + 1, (9, 5)) / levels).astype(np.float32)
    known = entries[0] / 2 if name.endswith(("gain", "rank")) else None
    options = ObjectiveOptions(
        has_target=True,
        known=known,
        covered=(rng.random(5) / 3).astype(np.float32),
        features=entries if name in COMPARES_FEATURES else None,
    )

    def make():
        return make_objective(name, InfluenceMatrix.from_array(entries), options)

    subsets = [rng.permutation(9)[: rng.integers(10)] for _ in range(4)]
    relaxation = relaxation_of(make(), rng.permutation(9)[:4])
    for _ in range(5):
        weights = relaxation.weights(np.arange(9))
        np.testing.assert_allclose(relaxation.weights(np.array([7, 2])), weights[[7, 2]], rtol=1e-12)
        for subset in subsets:
            assert value_of(make, subset) <= relaxation.constant + weights[subset].sum() + NEAR
        rows = np.argsort(-weights)[:4]
        relaxation.move(rows, np.array([1, 1, 1, 0.5]), float(rng.random()))


@pytest.mark.parametrize(
    "name",
    ["facility-location", "facility-location-reciprocal-rank", "facility-location-mutual-information", "concave-cover"],
)
@pytest.mark.parametrize("tokens", [False, True])
def test_a_relaxation_comes_closer_than_gains(name, tokens, monkeypatch):
    monkeypatch.setattr("nncift.selection.certificate._ROWS", 7)
    matrix, costs = near_points(), np.random.default_rng(1).integers(1, 30, 200)
    budget = {"costs": costs, "max_cost": 300} if tokens else {"budget": 20}

    def share() -> float:
        objective = make_objective(name, matrix, ObjectiveOptions(has_target=True, expected=20))
        return float(lazy_greedy(objective, certify=True, **budget).certificate.share)

    close = share()
    assert close > 0.95
    monkeypatch.setattr("nncift.selection.certificate.relaxation_of", lambda *_: None)
    assert share() < close


@given(seed=st.integers(0, 10_000), budget=st.integers(1, 30))
@settings(deadline=None, max_examples=30)
def test_a_modular_choice_is_the_best_one(seed, budget):
    matrix = InfluenceMatrix.from_array(np.random.default_rng(seed).standard_normal((30, 4)).astype(np.float32))
    objective = make_objective("mean-influence", matrix, ObjectiveOptions())
    found = lazy_greedy(objective, budget, certify=True).certificate
    assert found.bound == pytest.approx(found.value, rel=1e-12)
    assert found.percent == "100\u00a0%"


@st.composite
def limited(draw):
    """An influence matrix, a budget of k samples or of tokens, and limits that a random subset meets."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    entries, costs = rng.random((7, 4), np.float32), rng.integers(1, 9, 7).astype(float)
    tokens, columns = draw(st.booleans()), draw(st.integers(1, 2))
    subset = rng.permutation(7)[: rng.integers(1, 6)]
    limits = []
    for name in "ab"[:columns]:
        groups = Groups(name, ("x", "y", "z"), rng.integers(0, 3, 7).astype(np.int32))
        used = np.bincount(groups.codes[subset], costs[subset] if tokens else None, minlength=3).astype(np.int64)
        limits.append(GroupLimits(groups, np.maximum(used - rng.integers(0, 3, 3), 0), used + rng.integers(0, 3, 3)))
    return entries, costs if tokens else None, float(costs[subset].sum()), len(subset), limits


@pytest.mark.parametrize("name", ["facility-location", "concave-cover", "mean-influence"])
@given(problem=limited())
@settings(deadline=None, max_examples=25)
def test_no_subset_within_quotas_and_caps_is_above_the_bound(name, problem):
    entries, costs, room, k, limits = problem

    def make():
        return make_objective(name, InfluenceMatrix.from_array(entries), ObjectiveOptions())

    def fits(subset) -> bool:
        rows = list(subset)
        each = np.ones(7) if costs is None else costs
        for limit in limits:
            used = np.bincount(limit.groups.codes[rows], each[rows], minlength=3)
            if (used > limit.most).any() or (costs is None and (used < limit.least).any()):
                return False
        return len(rows) == k if costs is None else each[rows].sum() <= room

    budget = {"budget": k} if costs is None else {"costs": costs, "max_cost": room}
    found = lazy_greedy(make(), limits=limits, certify=True, **budget)
    subsets = (s for size in range(8) for s in itertools.combinations(range(7), size) if fits(s))
    best = max(value_of(make, subset) for subset in subsets)
    assert best <= found.certificate.bound + NEAR
    if name == "mean-influence" and costs is None and len(limits) == 1:
        assert found.value == pytest.approx(best) == pytest.approx(found.certificate.bound)


def near_points() -> InfluenceMatrix:
    """Influence that falls with the distance of points in a square."""
    points = np.random.default_rng(0).random((200, 2))
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    return InfluenceMatrix.from_array(np.exp(-9 * distance).astype(np.float32))


class Counting(FacilityLocation):
    """Derived, so that it has no relaxation: its gains may be other ones."""

    evaluated = 0

    def gains(self, candidates):
        self.evaluated += len(candidates)
        return super().gains(candidates)


def test_present_gains_cost_at_most_as_much_as_the_first_ones(monkeypatch):
    monkeypatch.setattr("nncift.selection.certificate._ROWS", 7)
    matrix = near_points()
    plain, certified = Counting(matrix), Counting(matrix)
    expected, found = lazy_greedy(plain, 20), lazy_greedy(certified, 20, certify=True)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.gains, expected.gains)
    assert 0 < certified.evaluated - plain.evaluated <= 200
    assert found.certificate.share > 1 - 1 / np.e
    whole = FacilityLocation(matrix)
    for i in found.indices:
        whole.add(int(i))
    bound = BoundOnBest(np.arange(200), np.ones(200), 20, np.inf)
    bound.lower_exactly(whole)
    assert bound.value == pytest.approx(whole.value + np.sort(whole.gains(np.arange(200)))[-20:].sum())


def test_a_subset_that_was_found_otherwise():
    matrix = near_points()
    chosen = np.arange(0, 200, 10)
    objective = FacilityLocation(matrix)
    for i in chosen:
        objective.add(int(i))
    bound = BoundOnBest(np.arange(200), np.ones(200), 20, np.inf)
    bound.close(objective, chosen, objective.value)
    best = lazy_greedy(FacilityLocation(matrix), 20, certify=True)
    assert objective.value < best.value <= bound.value
    assert best.certificate.bound == pytest.approx(bound.value, rel=0.05)


def test_pairs_for_a_bound():
    assert pairs_for_bound(10, 30, 3) == 21 * 300
    assert pairs_for_bound(1_000_000, 1000, 500) == 3 * 10**9
    assert pairs_for_bound(100_000, 1000, 500) == 21 * 10**8
    assert pairs_for_bound(100_000, 1000, 1000) == 2 * 10**8
    assert pairs_for_bound(100_000, 100_000, 1000) == 2 * 10**10


class Distances:
    """Sum of distances: gains rise while the subset grows."""

    name, options, n, value = "distances", {}, 6, 0.0
    monotone, submodular, normalised = True, False, True

    def __init__(self) -> None:
        self.chosen: list[int] = []

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        return np.array([float(sum(abs(i - other) for other in self.chosen)) for i in candidates.tolist()])

    def add(self, i: int) -> None:
        self.value += float(self.gains(np.array([i]))[0])
        self.chosen.append(i)


@pytest.mark.parametrize(
    ("monotone", "submodular", "reason"),
    [
        (True, False, "the objective distances is not submodular"),
        (False, True, "the objective distances is not monotone"),
        (False, False, "the objective distances is not monotone and not submodular"),
    ],
)
def test_an_objective_without_a_bound(monotone, submodular, reason):
    objective = Distances()
    objective.monotone, objective.submodular = monotone, submodular
    found = lazy_greedy(objective, 3, certify=True).certificate
    assert (found.bound, found.share, found.percent, found.reason) == (None, None, None, reason)


@pytest.mark.parametrize(
    ("value", "bound", "percent"),
    [
        (97.29, 100, "97.2\u00a0%"),
        (1, 1, "100\u00a0%"),
        (1 - 1e-9, 1, "100\u00a0%"),
        (0.9999, 1, "99.9\u00a0%"),
        (0, 0, "100\u00a0%"),
    ],
)
def test_percent_is_rounded_down(value, bound, percent):
    assert Certificate(value, bound, 5).percent == percent
