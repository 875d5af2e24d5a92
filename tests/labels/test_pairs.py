"""Labelled pairs: held-out samples, groups of duplicates, and pointwise scores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from builders import labelled, random_labels


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 9))
def test_a_split_holds_out_whole_samples(n_pool, n_target, seed):
    pairs = random_labels(n_pool, n_target)
    train, held_out = pairs.split(0.8, seed=seed)
    assert len(train) + len(held_out) == len(pairs)
    assert len(train)
    assert len(held_out)
    where = held_out.quadrants(train)
    assert set(where) == {"Q2", "Q3", "Q4"}
    assert (train.quadrants(train) == "Q1").all()
    new_pool = ~np.isin(held_out.pool_index, train.pool_index)
    assert ((where == "Q2") | (where == "Q4")).tolist() == new_pool.tolist()


def test_exact_duplicates_are_split_together():
    groups = np.repeat([0, 1], 5)
    for seed in range(5):
        train, _ = random_labels(10, 4).split(0.5, seed=seed, pool_groups=groups)
        assert len(np.unique(groups[train.pool_index])) == 1


def test_a_single_target_is_not_held_out():
    train, held_out = random_labels(10, 1).split(0.8)
    assert set(held_out.quadrants(train)) == {"Q2"}


def test_pointwise_labels_are_detected():
    pointwise = labelled(np.repeat(np.arange(5.0)[:, None], 4, axis=1))
    assert pointwise.pointwise
    assert not pointwise.take(pointwise.target_index == 0).pointwise  # a single target proves nothing
    assert not random_labels(5, 4).pointwise
    assert not random_labels(0, 0).pointwise
