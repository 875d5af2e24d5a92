"""Correlation of influence with its intervals, against bootstraps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from nncift.differences.correlation import correlate


def test_intervals_are_those_of_a_bootstrap_with_long_tails_too():
    rng = np.random.default_rng(0)
    x = rng.standard_t(6, 800)
    y = 0.6 * x + rng.standard_t(6, 800)
    found = correlate(x, y)
    draws = [rng.integers(0, 800, 800) for _ in range(400)]
    for interval, metric in ((found.pearson_interval, pearsonr), (found.spearman_interval, spearmanr)):
        low, high = np.quantile([metric(x[some], y[some])[0] for some in draws], [0.025, 0.975])
        assert interval[1] - interval[0] == pytest.approx(high - low, rel=0.25)
        assert low - 0.03 < interval[0] < interval[1] < high + 0.03


def test_correlation_of_few_equal_and_constant_values():
    values = np.arange(20.0)
    assert correlate(values[:9], values[:9]) is None
    equal = correlate(values, 2 * values)
    assert (equal.pearson, equal.spearman) == (pytest.approx(1), pytest.approx(1))
    assert all(np.isfinite([*equal.pearson_interval, *equal.spearman_interval]))
    constant = correlate(values, np.ones(20))
    assert (constant.pearson, constant.spearman) == (0, 0)
