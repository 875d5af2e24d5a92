"""One conformance suite over all objectives: their laws, their formulas, and submodlib's values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.errors import ConfigError
from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.objectives import (
    FacilityLocation,
    FacilityLocationConditionalGain,
    FacilityLocationMutualInformation,
    Objective,
)

MAKERS = {
    "facility-location": lambda entries, known: FacilityLocation(InfluenceMatrix.from_array(entries)),
    "facility-location-mutual-information": lambda entries, known: FacilityLocationMutualInformation(
        InfluenceMatrix.from_array(entries), eta=0.3
    ),
    "facility-location-conditional-gain": lambda entries, known: FacilityLocationConditionalGain(
        InfluenceMatrix.from_array(entries), InfluenceMatrix.from_array(known), nu=0.7
    ),
}


def by_definition(name: str, entries: np.ndarray, known: np.ndarray, subset: list[int]) -> float:
    """The formulas of the module's docstring, term by term."""
    s, s_known = np.maximum(entries, 0).astype(float), np.maximum(known, 0).astype(float)
    covered = [max((s[i, j] for i in subset), default=0.0) for j in range(s.shape[1])]
    if name == "facility-location":
        return sum(covered)
    if name == "facility-location-mutual-information":
        return sum(covered) + 0.3 * sum(max(s[i]) for i in set(subset))
    return sum(max(0.0, c - 0.7 * max((row[j] for row in s_known), default=0.0)) for j, c in enumerate(covered))


@st.composite
def cases(draw) -> tuple[np.ndarray, np.ndarray, list[int]]:
    n, m, known = draw(st.integers(1, 8)), draw(st.integers(1, 70)), draw(st.integers(0, 3))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    low = draw(st.sampled_from([-1.0, 0.0, -10.0]))  # harm in all degrees
    entries, known_entries = rng.uniform(low, 1, (n, m)), rng.uniform(low, 1, (known, m))
    return entries.astype(np.float32), known_entries.astype(np.float32), draw(st.permutations(range(n)))


@pytest.mark.parametrize("name", MAKERS)
@given(case=cases())
@settings(deadline=None, max_examples=60)
def test_laws(name, case):
    entries, known, order = case
    objective = MAKERS[name](entries, known)
    assert isinstance(objective, Objective)
    assert (objective.name, objective.n) == (name, len(entries))
    everyone = np.arange(len(entries))
    assert objective.normalised
    assert objective.value == 0
    gains = objective.gains(everyone)
    for position, i in enumerate(order):
        before, expected = objective.value, gains[i]
        objective.add(i)
        chosen = order[: position + 1]
        assert objective.value == pytest.approx(by_definition(name, entries, known, chosen), rel=1e-5, abs=1e-5)
        assert objective.value - before == pytest.approx(expected, rel=1e-5, abs=1e-5)
        after = objective.gains(everyone)
        assert objective.monotone
        assert (after >= 0).all()
        assert objective.submodular
        assert (after <= gains).all()  # bit by bit: lazy greedy relies on it
        assert (after[chosen] == 0).all()
        gains = after


@pytest.mark.parametrize("name", MAKERS)
def test_adding_twice_changes_nothing(name):
    rng = np.random.default_rng(0)
    objective = MAKERS[name](rng.random((5, 9), dtype=np.float32), rng.random((2, 9), dtype=np.float32))
    objective.add(3)
    value = objective.value
    objective.add(3)
    assert objective.value == value


@pytest.mark.parametrize("name", MAKERS)
def test_a_gain_does_not_depend_on_the_other_candidates(name):
    rng = np.random.default_rng(1)
    objective = MAKERS[name](rng.random((40, 90), dtype=np.float32), rng.random((2, 90), dtype=np.float32) / 2)
    objective.add(7)
    together = objective.gains(np.arange(40))
    for order in (np.arange(40)[::-1], np.array([5, 39, 5, 0])):
        np.testing.assert_array_equal(objective.gains(order), together[order])


def submodlib_function(name: str, s: np.ndarray, s_known: np.ndarray):
    """submodlib's rows are the represented and its columns the candidates; ours are the other way round."""
    if name == "facility-location":
        from submodlib.functions.facilityLocation import FacilityLocationFunction

        return FacilityLocationFunction(
            n=s.shape[0], mode="dense", separate_rep=True, n_rep=s.shape[1], sijs=np.ascontiguousarray(s.T)
        )
    if name == "facility-location-mutual-information":
        from submodlib.functions.facilityLocationVariantMutualInformation import (
            FacilityLocationVariantMutualInformationFunction,
        )

        return FacilityLocationVariantMutualInformationFunction(
            n=s.shape[0], num_queries=s.shape[1], query_sijs=s, queryDiversityEta=0.3
        )
    from submodlib.functions.facilityLocationConditionalGain import FacilityLocationConditionalGainFunction

    return FacilityLocationConditionalGainFunction(
        n=s.shape[0],
        num_privates=len(s_known),
        data_sijs=np.ascontiguousarray(s.T),
        private_sijs=np.ascontiguousarray(s_known.T),
        privacyHardness=0.7,
    )


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_submodlib(name, seed):
    pytest.importorskip("submodlib")
    rng = np.random.default_rng(seed)
    m = 50 if name == "facility-location-conditional-gain" else 30  # submodlib's has the ground set as its targets
    s = rng.uniform(-1, 1, (50, m)).astype(np.float32)
    known = rng.uniform(-1, 0.5, (4, m)).astype(np.float32)
    objective = MAKERS[name](s, known)
    peer = submodlib_function(name, np.maximum(s, 0), np.maximum(known, 0))
    subset: set[int] = set()
    for i in rng.permutation(50)[:12].tolist():
        gain = peer.marginalGain(subset, i)
        assert objective.gains(np.array([i]))[0] == pytest.approx(gain, rel=1e-4, abs=1e-4)
        objective.add(i)
        subset.add(i)
        assert objective.value == pytest.approx(peer.evaluate(subset), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_covered_already_is_a_subset_chosen_before(seed):
    rng = np.random.default_rng(seed)
    matrix = InfluenceMatrix.from_array(rng.standard_normal((20, 9)).astype(np.float32))
    before, other = FacilityLocation(matrix), FacilityLocationMutualInformation(matrix, eta=0.3)
    for i in (3, 8):
        before.add(i)
        other.add(i)
    covered = np.maximum(matrix.rows(np.array([3, 8])).max(axis=0), 0)
    rest = np.setdiff1d(np.arange(20), [3, 8])
    after = FacilityLocation(matrix, covered)
    np.testing.assert_array_equal(after.gains(rest), before.gains(rest))
    assert after.value == 0
    continued = FacilityLocationMutualInformation(matrix, eta=0.3, covered=covered)
    np.testing.assert_array_equal(continued.gains(rest), other.gains(rest))


def test_an_empty_target_of_known_samples_is_facility_location():
    entries = np.random.default_rng(0).random((6, 11), dtype=np.float32)
    plain = MAKERS["facility-location"](entries, None)
    conditional = MAKERS["facility-location-conditional-gain"](entries, np.zeros((0, 11), np.float32))
    np.testing.assert_array_equal(conditional.gains(np.arange(6)), plain.gains(np.arange(6)))


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_bad_weight_is_refused(weight):
    matrix = InfluenceMatrix.from_array(np.zeros((2, 3)))
    with pytest.raises(ConfigError, match="eta is"):
        FacilityLocationMutualInformation(matrix, eta=weight)
    with pytest.raises(ConfigError, match="nu is"):
        FacilityLocationConditionalGain(matrix, matrix, nu=weight)


def test_known_samples_with_other_targets_are_refused():
    with pytest.raises(ConfigError, match="4 targets, the pool's 3"):
        FacilityLocationConditionalGain(
            InfluenceMatrix.from_array(np.zeros((2, 3))), InfluenceMatrix.from_array(np.zeros((2, 4)))
        )
