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


def ranks_of(entries: np.ndarray, expected: int, eta: float = 1.0) -> np.ndarray:
    options = ObjectiveOptions(eta=eta, expected=float(expected))
    return FacilityLocationReciprocalRank(InfluenceMatrix.from_array(entries), options).modular_alone


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
    objective = FacilityLocationReciprocalRank(
        InfluenceMatrix.from_array(entries), ObjectiveOptions(eta=1e-6, expected=float(budget))
    )
    chosen = lazy_greedy(objective, budget).indices
    counts = np.bincount(of[chosen], minlength=targets)
    assert counts.max() - counts.min() <= 1
    for target, count in enumerate(counts):  # and each with the best of its own
        best = np.argsort(-entries[:, target], kind="stable")[:count]
        assert set(best) == set(chosen[of[chosen] == target])


def test_the_largest_influence_lets_one_target_take_all():
    """What the ranks are for: the published relevance of the same samples."""
    entries, of = apart(np.random.default_rng(3), 4, 20)
    options = ObjectiveOptions(eta=1e-6, expected=24.0)
    largest = lazy_greedy(FacilityLocationMutualInformation(InfluenceMatrix.from_array(entries), options), 24)
    ranks = lazy_greedy(FacilityLocationReciprocalRank(InfluenceMatrix.from_array(entries), options), 24)
    assert np.bincount(of[largest.indices], minlength=4).max() > 15
    assert np.bincount(of[ranks.indices], minlength=4).tolist() == [6, 6, 6, 6]


@pytest.mark.parametrize("expected", [1, 40, 300])
def test_ranks_are_those_of_a_slow_reference(expected):
    rng = np.random.default_rng(0)
    entries = rng.normal(size=(300, 7)).astype(np.float32)
    found = ranks_of(entries, expected)
    for i in range(300):
        value = references.coverage_and_ranks(entries, [i], 1.0) - references.coverage_and_ranks(entries, [i], 0.0)
        assert found[i] == pytest.approx(value) or found[i] == 0
    wanted = np.count_nonzero((entries > 0).any(axis=1))
    assert np.count_nonzero(found) >= min(expected, wanted)
    assert found.min() >= 0


def test_targets_that_are_alike_are_ranked_deeper():
    column = np.random.default_rng(0).uniform(0.1, 1, (500, 1)).astype(np.float32)
    found = ranks_of(np.repeat(column, 50, axis=1), 120)
    assert np.count_nonzero(found) >= 120
    best = np.argsort(-column[:, 0])[:120]
    np.testing.assert_allclose(found[best], column.max() / np.arange(1, 121), rtol=1e-6)


def test_as_many_are_ranked_as_memory_allows(monkeypatch):
    monkeypatch.setattr("nncift.selection.objectives.relevance._RANKED", 60)
    column = np.random.default_rng(0).uniform(0.1, 1, (500, 1)).astype(np.float32)
    assert np.count_nonzero(ranks_of(np.repeat(column, 3, axis=1), 120)) == 20


def test_samples_that_help_no_target_have_no_rank():
    entries = np.array([[0.5, -1.0], [-0.1, 0.0], [0.2, 0.4]], np.float32)
    assert ranks_of(entries, 3).tolist() == pytest.approx([0.45, 0.0, 0.45])


def test_a_part_keeps_its_ranks_among_all():
    rng = np.random.default_rng(0)
    sides = {"pool_bias": np.zeros(60, np.float32), "target_bias": np.zeros(5, np.float32)}
    factors = rng.normal(size=(60, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    matrix = InfluenceMatrix.from_towers(*factors, **sides)
    whole = FacilityLocationReciprocalRank(matrix, ObjectiveOptions(expected=60.0))
    rows = np.array([50, 3, 17])
    part = whole.alone(rows)
    np.testing.assert_array_equal(part.modular_alone, whole.modular_alone[rows])
    np.testing.assert_allclose(part.gains(np.arange(3)), whole.gains(rows), rtol=1e-6)
    part.add(1)
    assert part.modular[1] == 0
    assert whole.modular[3] == whole.modular_alone[3] > 0


def test_targets_take_turns_for_what_known_samples_leave():
    """One target is known as well as any sample knows it, one half, two not at all."""
    entries, of = apart(np.random.default_rng(0), 4, 12)
    best = entries.max(axis=0)
    options = ObjectiveOptions(eta=1e-6, expected=20.0, known=best * np.array([1, 0.5, 0, 0], np.float32))
    objective = FacilityLocationReciprocalRank(InfluenceMatrix.from_array(entries), options)
    better = entries[:, 1] > best[1] / 2
    assert set(np.flatnonzero(objective.modular)) == set(np.flatnonzero((of > 1) | better))
    counts = np.bincount(of[lazy_greedy(objective, 15).indices], minlength=4)
    assert counts[0] == 0
    assert counts[1] == 3  # its turns come half as often as theirs
    assert counts[2] == counts[3] == 6
