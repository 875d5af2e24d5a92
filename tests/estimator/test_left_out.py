"""Which of two processes predicts rows that it did not see: against slow definitions, and what is decided."""

from __future__ import annotations

import numpy as np
import pytest

from builders import pairs_of, smooth_vectors
from nncift.estimator.left_out import correlation, parts_of
from nncift.estimator.network import InfluenceNetwork
from nncift.estimator.vector_process import VectorProcess
from nncift.evaluation.metrics import measures
from nncift.features.features import Features

EVERY = slice(None)
ROWS, TARGETS = np.arange(0, 40, 2), np.array([0, 2, 3, 4, 5, 6, 8])


def test_the_correlation_is_within_target_and_part():
    rng = np.random.default_rng(0)
    exact, parts = rng.standard_normal((9, 4)), np.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
    exact[0, 1] = exact[4, 1] = np.nan
    expected, by_target = exact + rng.standard_normal((9, 4)) + parts[:, None], []
    for target in range(4):
        x, y = [], []
        for part in range(3):
            rows = (parts == part) & np.isfinite(exact[:, target])
            x += (exact[rows, target] - exact[rows, target].mean()).tolist()
            y += (expected[rows, target] - expected[rows, target].mean()).tolist()
        by_target.append(np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y)))
    assert correlation(exact, expected, parts) == pytest.approx(np.mean(by_target))
    assert np.bincount(parts_of(23, seed=0)).tolist() == [5, 5, 5, 4, 4]
    assert np.bincount(parts_of(5, seed=0)).tolist() == [3, 2]


def correlation_on_others(
    network: InfluenceNetwork, sides: tuple[Features, Features], influence: np.ndarray, rows: np.ndarray
) -> float:
    """Within target, on the rows that have no label."""
    pairs = pairs_of(influence, np.setdiff1d(np.arange(len(influence)), rows), np.arange(influence.shape[1]))
    estimated = network.estimate(*sides).block(EVERY, EVERY)[pairs.pool_index, pairs.target_index]
    found = measures(pairs, estimated, scale=1.0)["subset_sum_correlation_within_target"]
    assert found is not None
    return found


def test_vectors_are_taken_that_are_right_but_for_their_size():
    """Expected four times too large, they lose to each target's mean by squares, and are the better choice."""
    pool, target, influence, among = smooth_vectors(40, 20, topics=10, noise=0.6)
    rows, targets = np.arange(0, 16, 2), np.arange(16)
    labels, both = pairs_of(influence / 4, rows, targets), pairs_of(among, targets, targets)
    network = InfluenceNetwork().fit(pool, target, labels, among_targets=both)
    assert network.both_sides is not None
    assert network.both_sides.used
    assert network.both_sides.correlation == pytest.approx(0.75, abs=0.1)
    alone = InfluenceNetwork().fit(pool, target, labels)
    found = [correlation_on_others(one, (pool, target), influence, rows) for one in (network, alone)]
    assert found[0] > found[1] + 0.1
    assert isinstance(network.model.similarity, VectorProcess)
    values, left = influence[np.ix_(rows, targets)] / 4, network.model.similarity.left_out(np.arange(len(rows)))
    of_means = (values - values.mean(axis=0)) * len(rows) / (len(rows) - 1)
    assert np.square(left).sum() > 2 * np.square(of_means).sum()


def test_pairs_are_taken_where_vectors_do_not_predict():
    """An influence against which the vectors of the targets tell: the more alike, the smaller."""
    pool, target, influence, among = smooth_vectors(40)
    labels, both = pairs_of(-influence, ROWS[:8], TARGETS), pairs_of(among, TARGETS, TARGETS)
    network = InfluenceNetwork().fit(pool, target, labels, among_targets=both)
    alone = InfluenceNetwork().fit(pool, target, labels)
    i, j = labels.pool_index, labels.target_index
    assert network.both_sides is not None
    assert not network.both_sides.used
    np.testing.assert_array_equal(network.predict(pool[i], target[j]), alone.predict(pool[i], target[j]))
