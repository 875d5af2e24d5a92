"""Comparisons of models: against scipy, exact McNemar, Holm; error rates under no difference by simulation."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest, ttest_ind, ttest_rel

from nncift.errors import ConfigError, DependencyError
from nncift.evaluation.comparisons import Difference, Trained, adjust, compare, contrast

SCORES = arrays(np.float64, (2, 3, 20), elements=st.integers(-50, 50).map(float))


def losses(mean: float, *, seeds: int = 3, items: int = 120, seed: int = 0, over_seeds: float = 0.02) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = 0.3 * rng.standard_normal(items) + 0.1 * rng.standard_normal((seeds, items))
    return mean + noise + over_seeds * rng.standard_normal((seeds, 1))


class TestIntervals:
    def test_of_two_models_without_seeds_is_the_paired_t_test(self):
        a, b = losses(1.0, seeds=1)[0], losses(1.05, seeds=1, seed=1)[0]
        found = compare(a, b, larger_is_better=False, fixed_a=True, fixed_b=True)
        peer = ttest_rel(a, b)
        span = peer.confidence_interval()
        assert (found.value, found.p_value) == pytest.approx((float((a - b).mean()), peer.pvalue))
        assert (found.low, found.high) == pytest.approx((span.low, span.high))

    def test_of_models_that_differ_by_seeds_alone_is_welch_s(self):
        """Every item has the same score, so the items add no variance."""
        means_a, means_b = [1.0, 1.2, 1.1], [1.5, 1.3, 1.9, 1.6]
        a, b = (np.tile(np.array(means)[:, None], 50) for means in (means_a, means_b))
        found = compare(a, b, larger_is_better=False)
        peer = ttest_ind(means_a, means_b, equal_var=False)
        span = peer.confidence_interval()
        assert found.p_value == pytest.approx(peer.pvalue)
        assert (found.low, found.high) == pytest.approx((span.low, span.high))

    @settings(deadline=None, max_examples=30)
    @given(SCORES, st.integers(1, 9), st.integers(-9, 9), st.randoms(use_true_random=False))
    def test_do_not_depend_on_sides_scale_shift_and_order(self, scores, scale, shift, random):
        a, b = scores
        found, turned = compare(a, b, larger_is_better=True), compare(b, a, larger_is_better=True)
        assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))
        items, seeds = random.sample(range(20), 20), random.sample(range(3), 3)
        moved = compare(scale * a[seeds][:, items] + shift, scale * b[:, items] + shift, larger_is_better=True)
        assert moved.p_value == pytest.approx(found.p_value, abs=1e-9)
        assert (moved.low, moved.high) == pytest.approx((scale * found.low, scale * found.high), abs=1e-9)

    @settings(deadline=None, max_examples=50)
    @given(SCORES)
    def test_hold_0_where_the_verdict_is_a_tie(self, scores):
        found = compare(*scores, larger_is_better=True)
        assert (found.verdict == "tie") == (found.low <= 0 <= found.high)
        assert found.low <= found.value <= found.high

    def test_equal_models_tie(self):
        found = compare(losses(1.0), losses(1.0), larger_is_better=False)
        assert (found.value, found.p_value, found.verdict) == (0.0, 1.0, "tie")
        same = compare(np.ones(20), np.ones(20), larger_is_better=True)
        assert (same.low, same.high, same.p_value, same.verdict) == (0.0, 0.0, 1.0, "tie")

    def test_a_single_trained_seed_varies_as_the_others_and_an_untrained_model_does_not(self):
        a, b = losses(1.0, over_seeds=0.1), losses(1.0, seeds=1, seed=5)
        trained, fixed = (compare(a, b, larger_is_better=False, fixed_b=fixed) for fixed in (False, True))
        assert trained.high - trained.low > fixed.high - fixed.low
        assert trained.seeds_counted
        assert not compare(a[:1], b, larger_is_better=False).seeds_counted
        assert "over items only" in str(compare(a[:1], b, larger_is_better=False))

    def test_of_a_weighted_sum_is_that_of_the_summed_scores(self):
        rng = np.random.default_rng(0)
        models = [rng.standard_normal((1, 30)) for _ in range(3)]
        weights = np.array([[1.0, -0.25, -0.75], [0.5, 0.5, -1.0]])
        found = contrast([Trained(model, fixed=True) for model in models], weights)
        for k, (a, b, c) in enumerate(weights):
            of_item = a * models[0][0] + b * models[1][0] + c * models[2][0]
            assert found.p_value[k] == pytest.approx(ttest_rel(of_item, np.zeros(30)).pvalue)


class TestVerdicts:
    def test_follow_the_direction_of_the_metric(self):
        a, b = losses(1.0), losses(1.5, seed=1)
        assert compare(a, b, larger_is_better=False).verdict == "better"
        assert compare(a, b, larger_is_better=True).verdict == "worse"
        assert str(compare(a, b, larger_is_better=False)).startswith("better: -0.")

    def test_items_without_a_score_are_left_out_and_few_are_too_few(self):
        a, b = losses(1.0, items=14), losses(1.5, items=14, seed=1)
        a[0, 0], b[2, 1] = np.nan, np.nan
        found = compare(a, b, larger_is_better=False)
        assert found.n_items == 12
        assert found == compare(a[:, 2:], b[:, 2:], larger_is_better=False)
        assert compare(a[:, :9], b[:, :9], larger_is_better=False).verdict == "too few items to tell"
        assert compare(a[:, 2:3], b[:, 2:3], larger_is_better=False).p_value == 1

    def test_refuse_other_items(self):
        with pytest.raises(ConfigError, match="10 and 12 items"):
            compare(np.ones(10), np.ones(12), larger_is_better=True)
        with pytest.raises(ConfigError, match="no item"):
            compare(np.full(10, np.nan), np.ones(10), larger_is_better=True)


class TestExactMatch:
    @pytest.mark.parametrize(("only_a", "only_b", "verdict"), [(5, 0, "tie"), (6, 0, "better"), (1, 9, "worse")])
    def test_is_mcnemar_s_exact_test(self, only_a, only_b, verdict):
        a, b = np.zeros((2, 100))
        a[:only_a], b[only_a : only_a + only_b], a[50:], b[50:] = 1, 1, 1, 1
        found = compare(a, b, larger_is_better=True, binary=True)
        exact = binomtest(only_a, only_a + only_b).pvalue
        assert found.p_value == pytest.approx(exact)  # larger than Student's
        assert found.verdict == verdict
        assert (found.low <= 0 <= found.high) == (verdict == "tie")

    def test_of_models_that_agree_is_a_tie(self):
        found = compare(np.ones(30), np.ones(30), larger_is_better=True, binary=True)
        assert (found.value, found.p_value, found.verdict) == (0.0, 1.0, "tie")

    def test_needs_statsmodels(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "statsmodels.stats.contingency_tables", None)
        monkeypatch.setitem(sys.modules, "statsmodels.stats.multitest", None)
        with pytest.raises(DependencyError, match=r"nncift\[proof\]"):
            compare(np.ones(30), np.ones(30), larger_is_better=True, binary=True)
        with pytest.raises(DependencyError, match=r"nncift\[proof\]"):
            adjust([compare(losses(1.0), losses(1.0), larger_is_better=False)])


class TestHolm:
    @pytest.fixture(scope="class")
    def one(self) -> Difference:
        return compare(losses(1.0), losses(1.2, seed=1), larger_is_better=False)

    @settings(deadline=None, max_examples=20)
    @given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=8))
    def test_equals_the_step_down_by_hand(self, one, p_values):
        found = adjust([replace(one, p_value=p) for p in p_values])
        largest, slow = 0.0, {}
        for rank, k in enumerate(np.argsort(p_values, kind="stable")):
            largest = max(largest, min((len(p_values) - rank) * p_values[k], 1.0))
            slow[k] = largest
        assert [each.adjusted_p for each in found] == pytest.approx([slow[k] for k in range(len(p_values))])

    def test_makes_a_lone_small_p_value_a_tie_and_says_so(self):
        one = replace(compare(losses(1.0), losses(1.2, seed=1), larger_is_better=False), p_value=0.04)
        assert one.verdict == "better"
        several = adjust([one, replace(one, p_value=0.5)])
        assert [each.verdict for each in several] == ["tie", "tie"]
        assert "p = 0.080 after Holm" in str(several[0])
        assert adjust([]) == []


@pytest.mark.parametrize("seeds", [(3, 3), (3, 1), (5, 5)])
@pytest.mark.parametrize("over_seeds", [0.02, 0.3, 1.0])  # standard deviation of a mean, in standard errors over items
def test_chance_is_called_a_winner_in_about_5_percent(seeds, over_seeds):
    """The simulation of benchmarks/comparisons.py, with heavy tails; 700 repeats have a standard error of 0.8 %."""
    rng = np.random.default_rng(4)
    repeats, items, winners = 700, 120, 0
    error = over_seeds / np.sqrt(items)
    for _ in range(repeats):
        a, b = (
            (rng.standard_t(3, items) / np.sqrt(6))
            + error * rng.standard_normal((k, 1))
            + 0.25 * rng.standard_normal((k, items))
            for k in seeds
        )
        winners += compare(a, b, larger_is_better=True).verdict != "tie"
    assert 0.02 < winners / repeats < 0.075
