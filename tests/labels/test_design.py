"""The design of labelling: which pairs, how many for an amount, and how long they take."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncift.errors import ConfigError
from nncift.estimator.training_data import MAX_COLUMNS
from nncift.influence.base import InfluenceFunction, Traits, as_function
from nncift.labels.design import PairPlan, costs_samples, deal, number_of_pairs, plan_labels, plan_pairs
from nncift.labels.rates import Rate
from nncift.run.options.amounts import Amount

seeds = st.integers(0, 5)


@given(st.integers(2, 400), st.integers(1, 60), st.integers(2, 3000), seeds)
def test_a_plan_is_the_largest_grid_within_the_number_of_pairs(n_pool, n_target, pairs, seed):
    plan = plan_pairs(n_pool, n_target, pairs, seed=seed)
    assert 2 <= len(plan) <= max(pairs, 2)
    for index, n in ((plan.rows, n_pool), (plan.columns, n_target)):
        assert len(np.unique(index)) == len(index)
        assert index.min() >= 0
        assert index.max() < n
    np.testing.assert_array_equal(plan.rows, plan_pairs(n_pool, n_target, pairs, seed=seed).rows)
    assert len(plan) + len(plan.columns) > pairs or len(plan.rows) == n_pool


@given(st.integers(4, 400), st.integers(3, 3000), st.booleans())
def test_rows_and_targets_are_disjoint_if_the_pool_is_its_own_target(n_pool, pairs, own_targets):
    plan = plan_pairs(n_pool, None, pairs, own_targets=own_targets)
    assert not set(plan.rows) & set(plan.targets)


@given(st.integers(60, 4000), st.one_of(st.none(), st.integers(30, 3000)), st.integers(400, 5000), seeds)
def test_rows_with_their_own_targets_cover_more_targets_with_as_many_labels(n_pool, n_target, pairs, seed):
    plan, same = (plan_pairs(n_pool, n_target, pairs, seed=seed, own_targets=own) for own in (True, False))
    assert len(plan) <= pairs
    assert len(plan.targets) >= min(len(same.targets), 2 * n_pool // 3 if n_target is None else n_target)
    if plan.columns.ndim == 1:  # each row has all targets
        assert len(plan.columns) == (n_target if n_target is not None else n_pool - len(plan.rows))
        return
    assert plan.columns.shape[1] < len(plan.targets) <= min(2 * len(plan.rows), n_target or n_pool)
    assert (np.diff(plan.columns, axis=1) > 0).all()  # no target twice in a row
    rows, targets = plan.held_out
    shared = plan.columns[np.isin(plan.rows, rows)]
    assert len(shared) == len(rows) == round(0.2 * len(plan.rows))
    assert (shared == shared[0]).all()
    assert set(targets) < set(shared[0])
    again = plan_pairs(n_pool, n_target, pairs, seed=seed, own_targets=True)
    np.testing.assert_array_equal(plan.columns, again.columns)
    stored = PairPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    np.testing.assert_array_equal(stored.columns, plan.columns)
    np.testing.assert_array_equal(stored.held_out[0], rows)


@given(st.integers(1, 60), st.integers(1, 90), st.integers(1, 60), seeds)
def test_targets_are_balanced(n_targets, rows, each, seed):
    targets = np.arange(10, 10 + n_targets)
    columns = deal(targets, rows, min(each, n_targets), np.random.default_rng(seed))
    counts = np.bincount(columns.ravel(), minlength=10 + n_targets)[10:]
    assert counts.max() - counts.min() <= 1
    assert all(len(set(row)) == len(row) for row in columns.tolist())


def test_no_more_targets_are_labelled_than_the_network_is_fitted_to():
    assert len(plan_pairs(10**6, 10**6, 400_000, own_targets=True).targets) == MAX_COLUMNS


@given(st.integers(2, 400), st.integers(1, 60), st.integers(2, 3000), seeds)
def test_a_pointwise_plan_has_a_row_for_each_label(n_pool, n_target, pairs, seed):
    plan = plan_pairs(n_pool, n_target, pairs, seed=seed, pointwise=True)
    assert len(plan) == len(np.unique(plan.rows)) == min(pairs, n_pool)
    assert plan.columns.shape == (len(plan.rows), 1)
    assert 1 <= len(plan.targets) <= n_target
    assert plan.rows.max() < n_pool
    assert plan.columns.max() < n_target
    assert len(plan.held_out[0]) == round(0.2 * len(plan.rows))


@given(st.integers(4, 400), st.integers(3, 3000))
def test_a_pointwise_plan_without_a_target(n_pool, pairs):
    plan = plan_pairs(n_pool, None, pairs, pointwise=True)
    assert not set(plan.rows) & set(plan.targets)
    assert len(plan) <= min(pairs, n_pool - len(plan.targets))


@pytest.mark.parametrize(
    ("amount", "rate", "pointwise", "pairs"),
    [
        (Amount("count", 1500), None, False, 1500),
        (Amount("fraction", 0.01), None, False, 50),
        (Amount("fraction", 0.1), None, True, 10),
        (Amount("samples", 60), None, False, 900),
        (Amount("samples", 120), None, False, 3500),
        (Amount("samples", 1000), None, False, 5000),
        (Amount("samples", 60), None, True, 60),
        (Amount("seconds", 90), Rate(0, 0, 0.5), False, 180),
        (Amount("seconds", 90), Rate(0, 0, 0.5, warm_up=60), False, 60),
        (Amount("seconds", 90), Rate(0, 0, 0.5, warm_up=100), False, 1),
        (Amount("seconds", 90), Rate(0.5, 0, 0, warm_up=60), True, 60),
    ],
)
def test_an_amount_is_a_number_of_pairs(amount, rate, pointwise, pairs):
    assert number_of_pairs(amount, 100, 50, rate, pointwise=pointwise) == pairs


class PerSample(InfluenceFunction):
    """All its work is a sample's."""

    name = "per-sample"

    def prepare(self, pool, target, folder=None):
        pass


class PerPair(PerSample):
    name = "per-pair"
    traits = Traits(per_pair=True)


@given(st.integers(16, 500), st.integers(20, 400), st.one_of(st.none(), st.integers(8, 400)), seeds)
def test_an_amount_in_samples_is_the_grid_of_the_most_pairs(samples, n_pool, n_target, seed):
    plan = plan_labels(PerSample(), Amount("samples", samples), n_pool, n_target, seed=seed)
    rows, targets = len(plan.rows), len(plan.targets)
    assert plan.columns.ndim == 1
    assert rows + targets <= samples
    limit = n_pool if n_target is None else n_target
    best = max(
        r * min(samples - r, limit, n_pool - r if n_target is None else limit) for r in range(1, min(samples, n_pool))
    )
    assert rows * targets >= 0.97 * best


def test_an_amount_in_samples_needs_a_cost_per_sample():
    assert costs_samples(PerSample())
    assert not costs_samples(PerPair())
    assert not costs_samples(as_function(Overlap()))
    with pytest.raises(ConfigError, match="`labels` 200samples counts samples, and the cost of per-pair is per pair"):
        plan_labels(PerPair(), Amount("samples", 200, "200samples"), 500, 500)


class Overlap:
    """A plain callable, which may do anything for a pair."""

    name = "overlap"

    def __call__(self, pool_rows, target_rows):
        return np.zeros((len(pool_rows), len(target_rows)), np.float32)


def test_one_pair_is_too_few():
    with pytest.raises(ConfigError, match="too few"):
        plan_pairs(10, 10, 1)


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10), st.floats(1, 1e4), st.booleans())
def test_the_pairs_of_a_time_take_that_time(row, target, pair, seconds, own_targets):
    rate = Rate(row, target, pair)
    pairs = rate.pairs(seconds, own_targets=own_targets)
    if 1 < pairs < 10**9:
        rows, targets = (4, 8) if own_targets else (1, 1)  # for each target of a row
        each = math.sqrt(pairs / rows)
        assert rate.seconds(rows * each, targets * each, rows * each**2) <= seconds * (1 + 1e-6)
        assert rate.seconds(rows * (each + 1), targets * (each + 1), rows * (each + 1) ** 2) > seconds
