"""Lazy greedy selects what plain greedy does, under a count and under a token budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.errors import ConfigError
from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.maximizers import greedy
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.coverage import FacilityLocation
from nncift.selection.objectives.table import COMPARES_FEATURES, OBJECTIVES, ObjectiveOptions, make_objective
from nncift.selection.selection import Selection


def make(name: str, matrix: InfluenceMatrix):
    """An objective of the table; half the first row's influence is known already."""
    known = matrix.rows(0)[0] / 2 if name.endswith(("gain", "rank")) else None
    features = matrix.rows(slice(None)) if name in COMPARES_FEATURES else None
    return make_objective(name, matrix, ObjectiveOptions(has_target=True, known=known, features=features))


def plain_greedy(objective, budget, costs=None, max_cost=float("inf"), tie_break=None):
    """The definition: every gain at every step."""
    n = objective.n
    costs = np.ones(n) if costs is None else np.asarray(costs, dtype=float)
    tie_break = objective.gains(np.arange(n)) if tie_break is None else tie_break
    chosen, gains = [], []
    while (left := [i for i in range(n) if i not in chosen and costs[i] <= max_cost]) and len(chosen) < budget:
        now = zip(objective.gains(np.array(left)), left, strict=True)
        gain, i = max(now, key=lambda pair: (pair[0] / costs[pair[1]], tie_break[pair[1]], -pair[1]))
        objective.add(i)
        chosen.append(i)
        gains.append(gain)
        max_cost -= costs[i]
    return chosen, gains


def assert_same(selection: Selection, chosen: list[int], gains: list[float]) -> None:
    assert selection.indices.tolist() == chosen
    assert selection.gains.tolist() == gains


@st.composite
def matrices(draw) -> np.ndarray:
    """Small matrices, of few values (ties and early saturation) or of many."""
    n, m = draw(st.integers(1, 30)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    levels = draw(st.sampled_from([1, 2, 4, 1_000_000]))
    return (rng.integers(-levels, levels + 1, (n, m)) / levels).astype(np.float32)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("tokens", [False, True])
@given(entries=matrices(), data=st.data())
@settings(deadline=None, max_examples=30)
def test_equals_plain_greedy(name, tokens, entries, data):
    matrix, n = InfluenceMatrix.from_array(entries), len(entries)
    some = np.array(data.draw(st.permutations(range(n))))[: data.draw(st.integers(1, n))]
    tie_break = data.draw(st.none() | st.lists(st.integers(0, 2), min_size=n, max_size=n).map(np.array))
    costs, options = np.ones(n), {"candidates": some if len(some) < n else None, "tie_break": tie_break}
    if tokens:
        costs = np.array(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)))
        max_cost = data.draw(st.integers(int(costs[some].min()), int(costs[some].sum()) + 3))
        options |= {"costs": costs, "max_cost": max_cost}
    else:
        options["budget"] = max_cost = data.draw(st.integers(1, len(some)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(greedy, "_FIRST_BATCH", data.draw(st.sampled_from([1, 2, 5, 100])))
        selection = lazy_greedy(make(name, matrix), **options)
    price = np.full(n, np.inf)  # of others: above the budget
    price[some] = costs[some]
    chosen, gains = plain_greedy(make(name, matrix), n, price, max_cost, tie_break)
    single = make(name, matrix).gains(np.flatnonzero(price <= max_cost)).max()
    if tokens and len(selection) == 1 and single > selection.value - 1e-6:
        assert selection.value == pytest.approx(max(single, sum(gains)), abs=1e-5)
    else:
        assert_same(selection, chosen, gains)
        assert selection.value == pytest.approx(sum(gains), abs=1e-5)
    assert costs[selection.indices].sum() <= max_cost
    assert selection.indices.dtype == np.int64


@pytest.fixture(scope="module")
def estimated() -> InfluenceMatrix:
    """A network whose output is a similarity: per dimension a triangle around 0 of x - y, from three units."""
    x = np.random.default_rng(0).random((300, 4), dtype=np.float32) * 4
    left, right = np.hstack([x + 1, x, x - 1]), np.hstack([-x, -x, -x])
    weight = np.repeat(np.float32([1, -2, 1]), 4)
    return InfluenceMatrix.from_factors(left, right, output_weight=weight, output_bias=-1.0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_smaller_budget_is_a_prefix(estimated, name):
    whole = lazy_greedy(make(name, estimated), 300)
    assert sorted(whole.indices.tolist()) == list(range(300))
    part = lazy_greedy(make(name, estimated), 50)
    assert_same(part, whole.indices[:50].tolist(), whole.gains[:50].tolist())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_streamed_equals_dense(estimated, name, monkeypatch):
    expected = lazy_greedy(make(name, estimated), 60)
    exact = InfluenceMatrix.from_array(estimated.rows(slice(None)))
    for tile in (1, 1000, 1 << 22):
        monkeypatch.setattr("nncift.matrix.selectors.TILE", tile)
        selection = lazy_greedy(make(name, exact), 60)
        assert_same(selection, expected.indices.tolist(), expected.gains.tolist())
        assert selection.value == expected.value


def test_submodlib_subset(estimated):
    function = pytest.importorskip("submodlib").FacilityLocationFunction
    s = np.maximum(estimated.rows(slice(None)), 0)
    peer = function(n=300, mode="dense", separate_rep=True, n_rep=300, sijs=np.ascontiguousarray(s.T))
    theirs = peer.maximize(budget=60, optimizer="LazyGreedy", show_progress=False)
    ours = lazy_greedy(FacilityLocation(estimated), 60)
    positive = int((ours.gains > 1e-4).sum())
    assert positive > 20
    assert ours.indices[:positive].tolist() == [i for i, _ in theirs][:positive]
    np.testing.assert_allclose(ours.gains, [gain for _, gain in theirs], rtol=1e-3, atol=1e-4)
    assert ours.value == pytest.approx(peer.evaluate({i for i, _ in theirs}), rel=1e-5)


def test_few_gains_are_evaluated(estimated):
    class Counting(FacilityLocation):
        evaluated = 0

        def gains(self, candidates):
            self.evaluated += len(candidates)
            return super().gains(candidates)

    objective = Counting(estimated)
    lazy_greedy(objective, 30)
    assert objective.evaluated < 300 * 30 / 3


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_token_budget_guarantee(seed):
    rng = np.random.default_rng(seed)
    entries = (rng.random((8, 6)) ** 3).astype(np.float32)
    costs = rng.integers(1, 30, 8)
    max_cost = int(rng.integers(costs.min(), costs.sum()))
    value = lazy_greedy(FacilityLocation(InfluenceMatrix.from_array(entries)), costs=costs, max_cost=max_cost).value
    subsets = [list(subset) for size in range(1, 9) for subset in itertools.combinations(range(8), size)]
    best = max(entries[subset].max(axis=0).sum() for subset in subsets if costs[subset].sum() <= max_cost)
    assert value >= (1 - 1 / np.e) / 2 * best - 1e-6


def test_one_long_sample_with_a_larger_value_than_the_greedy_subset():
    entries = np.array([[0.2, 0, 0], [2, 2, 2]], dtype=np.float32)  # the short one has more gain per token
    objective = FacilityLocation(InfluenceMatrix.from_array(entries))
    selection = lazy_greedy(objective, costs=np.array([1, 100]), max_cost=100)
    assert_same(selection, [1], [6])
    assert selection.value == 6


@pytest.mark.parametrize(("count", "selected"), [(2, 2), (None, 4)])
def test_count_limits_a_token_budget(count, selected):
    objective = FacilityLocation(InfluenceMatrix.from_array(np.eye(6, dtype=np.float32)))
    assert len(lazy_greedy(objective, count, costs=np.full(6, 3), max_cost=12)) == selected


class Dispersion:
    """Sum of pairwise distances: gains rise while the subset grows, so earlier gains are no bounds."""

    name, options, n = "dispersion", {}, 12
    monotone, submodular, normalised = True, False, True
    value = 0.0

    def __init__(self) -> None:
        points = np.random.default_rng(3).random((12, 2))
        self.distance = np.linalg.norm(points[:, None] - points, axis=-1)
        self.chosen: list[int] = []

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        return self.distance[np.ix_(candidates, self.chosen)].sum(axis=1)

    def add(self, i: int) -> None:
        self.value += float(self.gains(np.array([i]))[0])
        self.chosen.append(i)


def test_non_submodular_objective():
    selection = lazy_greedy(Dispersion(), 6)
    assert selection.indices.tolist() == plain_greedy(Dispersion(), 6)[0]
    assert selection.objective == "dispersion"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is no `budget`"),
        ({"budget": 0}, "`budget` is 0 samples: choose between 1 and 4"),
        ({"budget": 5}, "`budget` is 5 samples"),
        ({"budget": 3, "candidates": np.arange(2)}, "choose between 1 and 2, the size of the candidates"),
        ({"budget": 2, "costs": np.ones(4)}, "go together"),
        ({"max_cost": 3}, "go together"),
        ({"costs": np.ones(3), "max_cost": 3}, "`costs` must hold 4 finite numbers"),
        ({"costs": np.array([1, 2, np.nan, 1]), "max_cost": 3}, "`costs` must hold 4 finite numbers"),
        ({"costs": np.array([1, 0, 2, 2]), "max_cost": 3}, "sample 1 costs 0"),
        ({"costs": np.full(4, 7), "max_cost": 6}, "`budget` is 6 tokens: the shortest sample has 7"),
        ({"costs": np.full(4, 7), "max_cost": 0}, "`budget` is 0 tokens"),
        ({"costs": np.full(4, 7), "max_cost": float("nan")}, "`budget` is nan tokens"),
        ({"budget": 2, "tie_break": np.zeros(5)}, "`tie_break` must hold 4"),
    ],
)
def test_bad_budgets(options, message):
    with pytest.raises(ConfigError, match=message):
        lazy_greedy(FacilityLocation(InfluenceMatrix.from_array(np.eye(4))), **options)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(entries=matrices(), data=st.data())
@settings(deadline=None, max_examples=25)
def test_a_smaller_budgets_choice_is_continued_as_if_chosen_anew(name, entries, data):
    n, matrix = len(entries), InfluenceMatrix.from_array(entries)
    budget = data.draw(st.integers(1, n))
    whole = lazy_greedy(make(name, matrix), budget, certify=True)
    begun = whole.indices[: data.draw(st.integers(0, budget))]
    continued = lazy_greedy(make(name, matrix), budget, prefix=begun, certify=True)
    assert_same(continued, whole.indices.tolist(), whole.gains.tolist())
    assert continued.value == whole.value
    if whole.certificate.bound is not None:  # of one that is not monotone there is none
        assert continued.certificate.bound >= whole.value * (1 - 1e-6)


@given(entries=matrices(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_samples_that_come_first_are_kept_and_the_others_added_greedily(entries, data):
    n, matrix = len(entries), InfluenceMatrix.from_array(entries)
    kept = data.draw(st.lists(st.integers(0, n - 1), unique=True, max_size=n))
    budget = data.draw(st.integers(max(len(kept), 1), n))
    selection = lazy_greedy(make("concave-cover", matrix), budget, prefix=kept)
    reference, left = make("concave-cover", matrix), [i for i in range(n) if i not in kept]
    first_gains = reference.gains(np.arange(n))
    for i in kept:
        reference.add(i)
    while len(left) > n - budget:
        best = max(left, key=lambda i: (reference.gains(np.array([i]))[0], first_gains[i], -i))
        reference.add(best)
        left.remove(best)
    assert sorted(selection.indices) == sorted({*range(n)} - {*left})
    assert selection.indices[: len(kept)].tolist() == kept
    assert selection.value == pytest.approx(reference.value)


def test_a_prefix_that_cannot_be_is_refused():
    matrix = InfluenceMatrix.from_array(np.eye(4, dtype=np.float32))
    for prefix, budget, message in (([1, 1], 3, "twice"), ([4], 3, "none of them"), ([0, 1], 1, "`prefix` has 2")):
        with pytest.raises(ConfigError, match=message):
            lazy_greedy(FacilityLocation(matrix), budget, prefix=prefix)
