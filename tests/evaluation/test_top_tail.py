"""Training without, and with only, the top samples: subsets by hand, and effects with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.errors import ConfigError
from nncift.evaluation.datamodels import TrainingOutcomes
from nncift.evaluation.top_tail import ONLY, WITHOUT, random_subsets, tail_effects, top_subsets

GROUPS = [name for name in "abcdef" for _ in range(5)]


@pytest.fixture
def influence() -> np.ndarray:
    return np.random.default_rng(0).exponential(0.02, (60, 30))


def trained(influence: np.ndarray, subsets: dict, noise: float = 0.0, seed: int = 0) -> TrainingOutcomes:
    """Outcomes where each sample lowers a target's loss by its influence."""
    members = np.array(list(subsets.values()))
    rng = np.random.default_rng(seed)
    after = 5 - members @ influence + noise * rng.standard_normal((len(members), 1))
    ids = tuple(map(str, range(len(influence)))), tuple(map(str, range(influence.shape[1])))
    return TrainingOutcomes(*ids, members, np.full(influence.shape[1], 5, np.float32), after[None], {})


def effects(believed: np.ndarray, influence: np.ndarray, *, noise: float = 0.0, seed: int = 0):
    base = np.ones(60, bool)
    own, random = top_subsets(believed, GROUPS, base=base), random_subsets(base, draws=5, seed=seed)
    sides = trained(influence, own, noise, seed), list(own), trained(influence, random, noise, seed + 1), list(random)
    return tail_effects(*sides, GROUPS)


class TestSubsets:
    @settings(deadline=None, max_examples=20)
    @given(st.integers(0, 1000), st.floats(0.05, 0.6))
    def test_are_the_base_without_and_only_the_top(self, seed, share):
        rng = np.random.default_rng(seed)
        influence, base = rng.standard_normal((20, 4)), np.arange(20) % 2 == 0
        subsets = top_subsets(influence, ["x", "y", "x", "y"], base=base, share=share)
        assert list(subsets) == [(WITHOUT, "x"), (ONLY, "x"), (WITHOUT, "y"), (ONLY, "y")]
        for group, columns in (("x", [0, 2]), ("y", [1, 3])):
            ranked = sorted(np.flatnonzero(base), key=lambda i: -influence[i, columns].mean())
            top = ranked[: max(round(share * 10), 1)]
            assert set(np.flatnonzero(subsets[ONLY, group])) == set(top)
            assert set(np.flatnonzero(subsets[WITHOUT, group])) == set(ranked) - set(top)

    def test_refuse_what_leaves_nothing_and_other_shapes(self, influence):
        with pytest.raises(ConfigError, match="leaves nothing"):
            top_subsets(influence, GROUPS, base=np.ones(60, bool), share=1.0)
        with pytest.raises(ConfigError, match="shape"):
            top_subsets(influence.T, GROUPS, base=np.ones(60, bool))
        with pytest.raises(ConfigError, match="not finite"):
            top_subsets(influence * np.nan, GROUPS, base=np.ones(60, bool))


class TestEffects:
    def test_equal_the_sums_of_additive_influence(self, influence):
        found = effects(influence, influence)
        own, random = top_subsets(influence, GROUPS, base=np.ones(60, bool)), random_subsets(np.ones(60, bool), draws=5)
        slow = [
            (own[ONLY, g] @ influence).reshape(6, 5).mean(axis=1)["abcdef".index(g)]
            - np.mean(
                [(random[ONLY, str(k)] @ influence).reshape(6, 5).mean(axis=1)["abcdef".index(g)] for k in range(5)]
            )
            for g in "abcdef"
        ]
        for kind in (WITHOUT, ONLY):  # of additive influence, they are the same
            assert found[kind].value == pytest.approx(np.mean(slow))
            assert list(found[kind].by_group.values()) == pytest.approx(slow)
            assert 0 < found[kind].low < found[kind].value < found[kind].high

    def test_of_random_numbers_are_called_an_effect_in_about_5_percent(self, influence):
        """300 repeats have a standard error of 1.3 %."""
        rng = np.random.default_rng(1)
        found = [effects(rng.random((60, 30)), influence, noise=0.05, seed=3 * k)[ONLY] for k in range(300)]
        assert np.mean([not each.low <= 0 <= each.high for each in found]) < 0.08

    def test_refuse_a_single_draw(self, influence):
        base = np.ones(60, bool)
        own, random = top_subsets(influence, GROUPS, base=base), random_subsets(base, draws=1)
        with pytest.raises(ConfigError, match="two random draws"):
            tail_effects(trained(influence, own), list(own), trained(influence, random), list(random), GROUPS)
