"""Fidelity metrics against their definitions, and the verdict over the baselines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from builders import labelled, random_labels
from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.fidelity import measure_fidelity
from nncift.evaluation.metrics import measures, spearman


def features(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)


def definitions(exact: np.ndarray, predicted: np.ndarray, scale: float) -> dict[str, float]:
    """The metrics of a full matrix (n_pool, n_target), written out slowly."""
    n, m = exact.shape
    error = sum((exact[i, j] - predicted[i, j]) ** 2 for i in range(n) for j in range(m))
    total = sum((exact[i, j] - exact.mean()) ** 2 for i in range(n) for j in range(m))
    within = sum((exact[i, j] - exact[:, j].mean()) ** 2 for i in range(n) for j in range(m))
    return {
        "mse": error / (n * m) / scale**2,
        "r2": 1 - error / total,
        "r2_over_target_mean": 1 - error / within,
        "spearman": spearmanr(exact.ravel(), predicted.ravel()).statistic,
        "spearman_within_target": np.mean([spearmanr(exact[:, j], predicted[:, j]).statistic for j in range(m)]),
        "spearman_row_mean": spearmanr(exact.mean(axis=1), predicted.mean(axis=1)).statistic,
    }


@settings(deadline=None)
@given(st.integers(3, 12), st.integers(1, 8), st.integers(0, 1000))
def test_metrics_equal_their_definitions(n, m, seed):
    rng = np.random.default_rng(seed)
    exact = rng.standard_normal((n, m)).astype(np.float32)
    predicted, shuffled = exact + rng.standard_normal((n, m)), rng.permutation(n * m)
    found = measures(labelled(exact).take(shuffled), predicted.ravel()[shuffled], scale=2.0)
    for name, value in definitions(exact.astype(float), predicted, 2.0).items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_rank_correlation_of_a_constant_is_zero_and_of_two_values_undefined():
    assert spearman(np.arange(5.0), np.ones(5)) == 0.0
    assert spearman(np.arange(2.0), np.arange(2.0)) is None


def test_a_network_fitted_to_noise_does_not_beat_the_baselines():
    a, b = features(60), features(20, 1)
    train, held_out = random_labels(60, 20).split(0.8)
    result = measure_fidelity(InfluenceNetwork().fit(a, b, train), a, b, held_out, train)
    assert not result.beats_baselines
    assert "does not beat the baselines" in str(result)
    assert set(result.quadrants) == {"Q1", "Q2", "Q3", "Q4"}
    assert set(result.quadrants["Q2"]["methods"]) == {"network", "cosine", "target mean", "constant"}
    assert result.held_out == {"pool": 12, "target": 4}
    assert len(result.scatter["exact"]) == len(held_out)


def test_the_target_mean_is_that_of_the_training_pairs():
    a, b = features(30), features(5)
    train, held_out = labelled(np.tile(np.arange(5.0), (30, 1))).split(0.8)
    network = InfluenceNetwork("paper", epochs=1).fit(a, b, train)
    result = measure_fidelity(network, a, b, held_out, train)
    assert result.quadrants["Q2"]["methods"]["target mean"]["r2"] == 1.0
    unseen = result.quadrants["Q4"]["methods"]
    assert unseen["target mean"]["mse"] == unseen["constant"]["mse"]
    assert not result.beats_baselines
