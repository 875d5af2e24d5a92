"""Reciprocal ranks: targets take turns once they are covered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import references
from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.relevance import FacilityLocationMutualInformation, FacilityLocationReciprocalRank
from nncift.selection.objectives.table import ObjectiveOptions


def objective_of(entries: np.ndarray, **options) -> FacilityLocationReciprocalRank:
    return FacilityLocationReciprocalRank(InfluenceMatrix.from_array(entries), ObjectiveOptions(**options))


def ranks_of(entries: np.ndarray) -> np.ndarray:
    return objective_of(entries, eta=1.0).modular_alone


def apart(rng: np.random.Generator, targets: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Influence of samples that help one target each, on scales of the targets' own; and which target that is."""
    of = rng.permutation(np.repeat(np.arange(targets), each))
    entries = np.zeros((len(of), targets), np.float32)
    entries[np.arange(len(of)), of] = rng.uniform(0.1, 1, len(of)) * 10.0 ** rng.uniform(-2, 2, targets)[of]
    return entries, of


@given(seed=st.integers(0, 10_000), targets=st.integers(1, 6), each=st.integers(1, 12), data=st.data())
@settings(deadline=None, max_examples=60)
def test_targets_take_turns_whatever_their_scale(seed, targets, each, data):
    entries, of = apart(np.random.default_rng(seed), targets, each)
    budget = data.draw(st.integers(targets, targets * each))
    chosen = lazy_greedy(objective_of(entries, eta=1e-6), budget).indices
    counts = np.bincount(of[chosen], minlength=targets)
    assert counts.max() - counts.min() <= 1
    for target, count in enumerate(counts):  # and each with the best of its own
        best = np.argsort(-entries[:, target], kind="stable")[:count]
        assert set(best) == set(chosen[of[chosen] == target])


def test_the_largest_influence_lets_one_target_take_all():
    """What the ranks are for: the published relevance of the same samples."""
    entries, of = apart(np.random.default_rng(3), 4, 20)
    published = FacilityLocationMutualInformation(InfluenceMatrix.from_array(entries), ObjectiveOptions(eta=1e-6))
    largest, ranks = lazy_greedy(published, 24), lazy_greedy(objective_of(entries, eta=1e-6), 24)
    assert np.bincount(of[largest.indices], minlength=4).max() > 15
    assert np.bincount(of[ranks.indices], minlength=4).tolist() == [6, 6, 6, 6]


@pytest.mark.parametrize("known", [False, True])
def test_ranks_are_those_of_a_slow_reference(known):
    rng = np.random.default_rng(0)
    entries = rng.normal(size=(90, 7)).astype(np.float32)
    level = np.linspace(-0.5, 2.5, 7, dtype=np.float32) if known else None
    found = objective_of(entries, eta=1.0, known=level).modular_alone
    values = [[references.coverage_and_ranks(entries, [i], eta, level) for eta in (1.0, 0.0)] for i in range(90)]
    np.testing.assert_allclose(found, [with_ranks - alone for with_ranks, alone in values], atol=1e-5)


@given(seed=st.integers(0, 10_000), known=st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_larger_choice_begins_with_a_smaller_one(seed, known):
    rng = np.random.default_rng(seed)
    entries = rng.gamma(0.5, size=(60, 4)).astype(np.float32)
    options = {"known": rng.uniform(0, 2, 4).astype(np.float32) if known else None}
    small, large = (lazy_greedy(objective_of(entries, **options), budget).indices for budget in (15, 30))
    assert large[:15].tolist() == small.tolist()


def test_targets_take_turns_among_those_that_may_be_chosen():
    """Of samples none of which is among the best of the pool."""
    entries, of = apart(np.random.default_rng(0), 5, 60)
    ranks = np.argsort(np.argsort(-entries, axis=0, kind="stable"), axis=0)[np.arange(300), of]
    some = np.flatnonzero(ranks >= 40)
    chosen = lazy_greedy(objective_of(entries, eta=1e-6), 25, candidates=some).indices
    assert np.bincount(of[chosen]).tolist() == [5] * 5


def test_as_many_are_ranked_as_memory_allows(monkeypatch):
    monkeypatch.setattr("nncift.selection.objectives.relevance._RANKED", 60)
    column = np.random.default_rng(0).uniform(0.1, 1, (500, 1)).astype(np.float32)
    found = ranks_of(np.repeat(column, 3, axis=1))
    assert set(np.flatnonzero(found)) == set(np.argsort(-column[:, 0])[:20])


def test_samples_that_help_no_target_have_no_rank():
    entries = np.array([[0.5, -1.0], [-0.1, 0.0], [0.2, 0.4]], np.float32)
    assert ranks_of(entries).tolist() == pytest.approx([0.45, 0.0, 0.45])


def test_a_part_keeps_its_ranks_among_all():
    rng = np.random.default_rng(0)
    sides = {"pool_bias": np.zeros(60, np.float32), "target_bias": np.zeros(5, np.float32)}
    factors = rng.normal(size=(60, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    matrix = InfluenceMatrix.from_towers(*factors, **sides)
    whole = FacilityLocationReciprocalRank(matrix)
    rows = np.array([50, 3, 17])
    part = whole.alone(rows)
    np.testing.assert_array_equal(part.modular_alone, whole.modular_alone[rows])
    np.testing.assert_allclose(part.gains(np.arange(3)), whole.gains(rows), rtol=1e-6)
    part.add(1)
    assert part.modular[1] == 0
    assert whole.modular[3] == whole.modular_alone[3] > 0


def test_targets_take_turns_for_what_known_samples_leave():
    """One target is known as well as any sample knows it, one half, two not at all."""
    entries, of = apart(np.random.default_rng(0), 4, 100)
    best = entries.max(axis=0)
    known = best * np.array([1, 0.5, 0, 0], np.float32)
    objective = objective_of(entries, eta=1e-6, known=known)
    better = entries[:, 1] > known[1]
    assert set(np.flatnonzero(objective.modular)) == set(np.flatnonzero((of > 1) | better))
    counts = np.bincount(of[lazy_greedy(objective, 50).indices], minlength=4)
    assert counts.tolist() == [0, 10, 20, 20]  # the turns of the half-known one come half as often
