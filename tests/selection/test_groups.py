"""Greedy under limits on groups: against plain greedy with every completion tried, and by what limits promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.errors import ConfigError
from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.groups import Admission, GroupLimits, Groups
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.coverage import FacilityLocation

FREE = 2**62


def limits_of(codes, least, most, column: str = "task") -> GroupLimits:
    groups = Groups(column, tuple(map(str, range(len(least)))), np.asarray(codes, np.int32))
    return GroupLimits(groups, np.asarray(least, np.int64), np.asarray(most, np.int64))


def within(subset, limits: list[GroupLimits], *, partly: bool = False) -> bool:
    counts = [np.bincount(each.groups.codes[list(subset)], minlength=len(each.least)) for each in limits]
    return all(
        (count <= each.most).all() and (partly or (count >= each.least).all())
        for count, each in zip(counts, limits, strict=True)
    )


def complete_subsets(n: int, budget: int, limits: list[GroupLimits]) -> list[set[int]]:
    return [set(subset) for subset in itertools.combinations(range(n), budget) if within(subset, limits)]


@st.composite
def problems(draw) -> tuple[np.ndarray, int, list[GroupLimits]]:
    """A small matrix, a budget, and limits on one or two columns, which some subset of that size satisfies."""
    n = draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    entries = rng.integers(0, draw(st.sampled_from([2, 4, 1000])), (n, 5)).astype(np.float32)
    budget = int(rng.integers(1, n + 1))
    example = rng.permutation(n)[:budget]
    limits = []
    for column in ("task", "source")[: draw(st.integers(1, 2))]:
        codes = rng.integers(0, 3, n)
        counts = np.bincount(codes[example], minlength=3)
        least = np.maximum(counts - rng.integers(0, 3, 3), 0)
        most = np.where(rng.random(3) < 0.3, FREE, counts + rng.integers(0, 2, 3))
        limits.append(limits_of(codes, least, most, column))
    return entries, budget, limits


@given(problem=problems())
@settings(deadline=None, max_examples=150)
def test_equals_plain_greedy_that_tries_every_completion(problem):
    entries, budget, limits = problem
    complete = complete_subsets(len(entries), budget, limits)
    reference, chosen = FacilityLocation(InfluenceMatrix.from_array(entries)), []
    first = reference.gains(np.arange(len(entries)))
    for _ in range(budget):
        left = [i for i in range(len(entries)) if i not in chosen and any({*chosen, i} <= each for each in complete)]
        gains = reference.gains(np.array(left))
        chosen.append(max(zip(gains, first[left], [-i for i in left], strict=True))[2] * -1)
        reference.add(chosen[-1])
    selection = lazy_greedy(FacilityLocation(InfluenceMatrix.from_array(entries)), budget, limits=limits)
    assert selection.indices.tolist() == chosen
    assert selection.value == pytest.approx(reference.value)
    assert within(chosen, limits)
    best = max(entries[list(subset)].max(axis=0).sum() for subset in complete)
    assert selection.value >= best / (1 + len(limits)) - 1e-4


@given(problem=problems())
@settings(deadline=None, max_examples=50)
def test_the_reach_is_the_largest_subset_and_nothing_changes_without_a_binding_limit(problem):
    entries, budget, limits = problem
    n = len(entries)
    everyone, each = np.arange(n), np.ones(n)
    caps = [limits_of(each.groups.codes, [0, 0, 0], each.most, each.groups.column) for each in limits]
    sizes = [k for k in range(n + 1) for s in itertools.combinations(range(n), k) if within(s, caps)]
    assert Admission(caps, everyone, each, n).reach == max(sizes)
    assert Admission(limits, everyone, each, budget).reach == budget
    plain = lazy_greedy(FacilityLocation(InfluenceMatrix.from_array(entries)), budget)
    counts = np.bincount(limits[0].groups.codes[plain.indices], minlength=3)
    loose = [limits_of(limits[0].groups.codes, counts, counts)]
    limited = lazy_greedy(FacilityLocation(InfluenceMatrix.from_array(entries)), budget, limits=loose)
    assert (limited.indices.tolist(), limited.value) == (plain.indices.tolist(), plain.value)


@given(seed=st.integers(0, 10_000), columns=st.integers(1, 2))
@settings(deadline=None, max_examples=60)
def test_in_tokens_quotas_are_met_up_to_a_sample_and_caps_never_exceeded(seed, columns):
    rng = np.random.default_rng(seed)
    n = 40
    entries, costs = rng.random((n, 6)).astype(np.float32), rng.integers(1, 12, n)
    budget = int(costs.sum()) // 3
    limits = []
    for column in ("task", "source")[:columns]:
        codes = np.arange(n) % 3 if column == "task" else rng.integers(0, 2, n)
        used = np.bincount(codes, costs) / costs.sum() * budget  # in proportion to the pool: any two can be met
        least, most = np.floor(used * rng.choice([0.0, 0.9], len(used))), np.ceil(used * 1.05)
        limits.append(limits_of(codes, least, most, column))
    selection = lazy_greedy(
        FacilityLocation(InfluenceMatrix.from_array(entries)), costs=costs, max_cost=budget, limits=limits
    )
    chosen = selection.indices
    assert costs[chosen].sum() <= budget
    for each in limits:
        used = np.bincount(each.groups.codes[chosen], costs[chosen], minlength=len(each.least))
        assert (used <= each.most).all()
    if columns == 1:
        assert (used > limits[0].least - costs.max()).all()


def test_a_shortlist_has_room_for_more_of_each_value():
    loose = limits_of([0, 1], [1, 2], [3, FREE]).loosened(1.5)
    assert (loose.least.tolist(), loose.most.tolist()) == ([0, 0], [5, FREE])


def test_limits_that_cannot_be_kept_together_leave_fewer_samples():
    objective = FacilityLocation(InfluenceMatrix.from_array(np.eye(4, dtype=np.float32)))
    assert len(lazy_greedy(objective, 4, limits=[limits_of([0, 0, 1, 1], [0, 0], [1, 1])])) == 2


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (3, {"budget": 2}, "limits on 3 columns: give at most 2"),
        (1, {"costs": np.full(4, 1.5), "max_cost": 3}, "whole numbers"),
        (2, {"costs": np.full(4, 2.0**30), "max_cost": 2.0**32}, "up to 2,147,483,647"),
    ],
)
def test_limits_that_cannot_be_used(columns, options, message):
    objective = FacilityLocation(InfluenceMatrix.from_array(np.eye(4, dtype=np.float32)))
    limits = [limits_of([0, 0, 1, 1], [0, 0], [FREE, FREE], str(k)) for k in range(columns)]
    with pytest.raises(ConfigError, match=message):
        lazy_greedy(objective, limits=limits, **options)
