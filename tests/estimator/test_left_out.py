"""Which of two processes predicts rows that it did not see: against slow definitions, and what is decided."""

from __future__ import annotations

import numpy as np
import pytest

from builders import pairs_of, smooth_vectors
from nncift.estimator.left_out import Comparison, left_out_of_pairs, parts_of
from nncift.estimator.likelihood import _covariance, maximize_likelihood
from nncift.estimator.network import InfluenceNetwork
from nncift.estimator.training_data import LabelledGrid
from nncift.estimator.vector_process import VectorProcess
from nncift.evaluation.metrics import measures
from nncift.features.features import Features

EVERY = slice(None)
ROWS, TARGETS = np.arange(0, 40, 2), np.array([0, 2, 3, 4, 5, 6, 8])


def test_left_out_pairs_are_expected_from_the_others():
    pool, target, influence, _ = smooth_vectors(40)
    grid = LabelledGrid.of(pool, target, pairs_of(influence, ROWS, TARGETS).take(np.arange(4, 137)), pointwise=False)
    theta = maximize_likelihood(grid, seed=0)
    parts = parts_of(len(ROWS), seed=0)
    assert sorted(np.bincount(parts)) == [4] * 5
    residuals = left_out_of_pairs(theta, grid, parts)
    covariance, value = _covariance(theta, grid).numpy(), grid.value.numpy()
    for one in range(5):
        out = parts[grid.row.numpy()] == one
        expected = covariance[np.ix_(out, ~out)] @ np.linalg.solve(covariance[np.ix_(~out, ~out)], value[~out])
        np.testing.assert_allclose(residuals[out], grid.unit * (value[out] - expected), atol=1e-5)


def test_the_comparison_is_the_mean_correlation_within_target_and_part():
    rng = np.random.default_rng(0)
    exact, parts = rng.standard_normal((9, 4)), np.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
    exact[0, 1] = exact[4, 1] = np.nan
    vectors, pairs = exact + rng.standard_normal((9, 4)) + parts[:, None], exact + 3 * rng.standard_normal((9, 4))
    found = Comparison.of(exact, vectors, pairs, parts)

    def correlation(expected: np.ndarray, rows: np.ndarray) -> float:
        by_target = []
        for target in range(4):
            x, y = [], []
            for part in range(3):
                every = (parts == part) & np.isfinite(exact[:, target])
                kept = every & rows
                x += (exact[kept, target] - exact[every, target].mean()).tolist()
                y += (expected[kept, target] - expected[every, target].mean()).tolist()
            by_target.append(np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y)))
        return float(np.mean(by_target))

    whole = np.ones(9, bool)
    assert found.rows == 9
    assert found.vectors == pytest.approx(correlation(vectors, whole))
    assert found.pairs == pytest.approx(correlation(pairs, whole))
    differences = [
        correlation(vectors, ~np.eye(9, dtype=bool)[k]) - correlation(pairs, ~np.eye(9, dtype=bool)[k])
        for k in range(9)
    ]
    assert found.error == pytest.approx(np.sqrt(8) * np.std(differences))


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
    comparison = network.both_sides.comparison
    assert comparison is not None
    assert comparison.vectors > comparison.pairs + comparison.error
    alone = InfluenceNetwork().fit(pool, target, labels)
    found = [correlation_on_others(one, (pool, target), influence, rows) for one in (network, alone)]
    assert found[0] > found[1] + 0.1
    assert isinstance(network.model.similarity, VectorProcess)
    values, left = influence[np.ix_(rows, targets)] / 4, network.model.similarity.left_out(np.arange(len(rows)))
    of_means = (values - values.mean(axis=0)) * len(rows) / (len(rows) - 1)
    assert np.square(left).sum() > 2 * np.square(of_means).sum()


def test_pairs_are_taken_that_predict_what_vectors_do_not():
    """An influence that follows a number of the pool sample, of which the targets' vectors know nothing."""
    pool, target, _, among = smooth_vectors(40)
    of_sample = np.tanh(2 * pool.blocks["scalars"][:, :1])
    influence = of_sample * (1 + 0.1 * np.random.default_rng(3).standard_normal((40, len(target))))
    labels, both = pairs_of(influence, ROWS, TARGETS), pairs_of(among, TARGETS, TARGETS)
    network = InfluenceNetwork().fit(pool, target, labels, among_targets=both)
    assert network.both_sides is not None
    assert not network.both_sides.used
    assert "predict worse than labelled pairs on 20 labelled pool samples" in str(network.both_sides)
    alone = InfluenceNetwork().fit(pool, target, labels)
    i, j = labels.pool_index, labels.target_index
    np.testing.assert_array_equal(network.predict(pool[i], target[j]), alone.predict(pool[i], target[j]))
    assert correlation_on_others(network, (pool, target), influence, ROWS) > 0.6
