"""Fidelity metrics against their definitions, and the verdict over the baselines."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from builders import labelled, random_labels
from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.fidelity import measure_fidelity
from nncift.evaluation.intervals import interval, resampled
from nncift.evaluation.metrics import METRICS, measures, recall_of_top_tenth, spearman, subset_sum_correlation
from nncift.labels.pairs import LabelledPairs


def features(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 6)).astype(np.float32)


def definitions(exact: np.ndarray, predicted: np.ndarray, scale: float) -> dict[str, float]:
    """The metrics of a full matrix (n_pool, n_target), written out slowly."""
    n, m = exact.shape
    error = sum((exact[i, j] - predicted[i, j]) ** 2 for i in range(n) for j in range(m))
    total = sum((exact[i, j] - exact.mean()) ** 2 for i in range(n) for j in range(m))
    within = sum((exact[i, j] - exact[:, j].mean()) ** 2 for i in range(n) for j in range(m))
    recalls = [top_tenth(exact[:, j], predicted[:, j]) for j in range(m)]
    return {
        "subset_sum_correlation": np.corrcoef(exact.ravel(), predicted.ravel())[0, 1],
        "subset_sum_correlation_within_target": np.mean(
            [np.corrcoef(exact[:, j], predicted[:, j])[0, 1] for j in range(m)]
        ),
        "recall_of_top_tenth": top_tenth(exact.ravel(), predicted.ravel()),
        "recall_of_top_tenth_within_target": None if n < 10 else np.mean(recalls),
        "mse": error / (n * m) / scale**2,
        "r2": 1 - error / total,
        "r2_over_target_mean": 1 - error / within,
        "spearman": spearmanr(exact.ravel(), predicted.ravel()).statistic,
        "spearman_within_target": np.mean([spearmanr(exact[:, j], predicted[:, j]).statistic for j in range(m)]),
        "spearman_row_mean": spearmanr(exact.mean(axis=1), predicted.mean(axis=1)).statistic,
    }


def top_tenth(exact: np.ndarray, predicted: np.ndarray) -> float | None:
    """Share of the largest tenth of distinct values that is in the largest tenth of the others."""
    if len(exact) < 10:
        return None
    size = max(round(len(exact) / 10), 1)
    best, guessed = (set(sorted(range(len(v)), key=lambda i: -v[i])[:size]) for v in (exact, predicted))
    return len(best & guessed) / size


@settings(deadline=None)
@given(st.integers(3, 24), st.integers(1, 8), st.integers(0, 1000))
def test_metrics_equal_their_definitions(n, m, seed):
    rng = np.random.default_rng(seed)
    exact = rng.standard_normal((n, m)).astype(np.float32)
    predicted, shuffled = exact + rng.standard_normal((n, m)), rng.permutation(n * m)
    found = measures(labelled(exact).take(shuffled), predicted.ravel()[shuffled], scale=2.0)
    for name, value in definitions(exact.astype(float), predicted, 2.0).items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    assert set(found) == set(METRICS)


@settings(deadline=None, max_examples=40)
@given(st.integers(4, 9), st.data())
def test_the_correlation_within_a_target_is_that_of_sums_over_all_subsets_of_a_size(n, data):
    """The law that gives the subset-sum correlation its name, of which the size is no part."""
    values = st.floats(-9, 9, width=16).map(lambda value: value if abs(value) > 1e-3 else 0.0)
    exact, predicted = (np.array(data.draw(st.lists(values, min_size=n, max_size=n))) for _ in range(2))
    size = data.draw(st.integers(1, n - 1))
    subsets = [list(rows) for rows in itertools.combinations(range(n), size)]
    sums = np.array([[exact[rows].sum(), predicted[rows].sum()] for rows in subsets])
    deviations = sums - sums.mean(axis=0)
    lengths = np.linalg.norm(deviations, axis=0)
    slow = deviations[:, 0] @ deviations[:, 1] / lengths.prod() if lengths.min() > 1e-6 else 0.0
    assert subset_sum_correlation(exact, predicted) == pytest.approx(slow, abs=1e-6)


def test_a_few_large_values_decide_the_correlation_of_sums_and_not_that_of_ranks():
    rng = np.random.default_rng(0)
    noise, large = rng.standard_normal((2, 200)), np.where(np.arange(200) < 5, 40.0, 0.0)
    exact, predicted = noise[0] + large, noise[1] + large
    assert subset_sum_correlation(exact, predicted) > 0.9
    assert spearman(exact, predicted) < 0.3
    halves = rng.permuted(np.tile(np.arange(200) < 100, (4000, 1)), axis=1).astype(float)
    of_sums = np.corrcoef(halves @ exact, halves @ predicted)[0, 1]
    assert of_sums == pytest.approx(subset_sum_correlation(exact, predicted), abs=0.03)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_constant_but_for_rounding_correlates_with_nothing(size):
    exact = np.random.default_rng(0).standard_normal(30) * size
    nearly = size * (1 + 1e-15 * np.arange(30))
    assert subset_sum_correlation(exact, nearly) == 0
    assert subset_sum_correlation(exact, 5 - 2 * exact / size) == pytest.approx(-1)
    assert subset_sum_correlation(exact[:2], exact[:2]) is None


def test_equal_values_share_the_places_of_the_top_tenth():
    exact = np.arange(30.0)
    assert recall_of_top_tenth(exact, exact) == 1
    assert recall_of_top_tenth(exact, np.ones(30)) == pytest.approx(0.1)
    assert recall_of_top_tenth(np.ones(30), np.ones(30)) == pytest.approx(1)
    assert recall_of_top_tenth(exact, np.where(exact >= 24, 1.0, 0.0)) == pytest.approx(0.5)
    assert recall_of_top_tenth(exact[:9], exact[:9]) is None


def test_rank_correlation_of_a_constant_is_zero_and_of_two_values_undefined():
    assert spearman(np.arange(5.0), np.ones(5)) == 0.0
    assert spearman(np.arange(2.0), np.arange(2.0)) is None


def test_a_network_fitted_to_noise_is_not_better_than_the_baselines():
    a, b = features(60), features(20, 1)
    train, held_out = random_labels(60, 20).split(0.8)
    result = measure_fidelity(InfluenceNetwork().fit(a, b, train), a, b, held_out, train)
    assert not result.beats_baselines
    assert result.outcome == "not better than"
    assert result.judged_by == "subset_sum_correlation_within_target"
    assert str(result).startswith(
        "The network is not better than the baselines on 12 new pool samples, so the labels bought nothing: subset-sum"
        " correlation within target "
    )
    assert result.quadrants["Q4"]["samples"] == {"pool": 12, "target": 4}
    assert set(result.quadrants) == {"Q1", "Q2", "Q3", "Q4"}
    assert set(result.quadrants["Q2"]["methods"]) == {"network", "cosine", "target mean", "constant"}
    assert result.held_out == {"pool": 12, "target": 4}
    assert len(result.scatter["exact"]) == len(held_out)


def test_the_target_mean_is_that_of_the_training_pairs():
    a, b = features(24), features(5)
    train, held_out = labelled(np.tile(np.arange(5.0), (24, 1))).split(0.8)
    network = InfluenceNetwork("paper", epochs=1).fit(a, b, train)
    result = measure_fidelity(network, a, b, held_out, train)
    assert result.quadrants["Q2"]["methods"]["target mean"]["r2"] == 1.0
    unseen = result.quadrants["Q4"]["methods"]
    assert unseen["target mean"]["mse"] == unseen["constant"]["mse"]
    assert not result.beats_baselines
    assert str(result).startswith(
        "Too few samples to tell whether the network is better than the baselines (8 new pool"
    )


def copies(exact: np.ndarray, rows: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pool rows, targets and values of a resample that is written out: each sample as often as it is counted."""
    i, j = (np.repeat(np.arange(len(count)), count.astype(int)) for count in (rows, targets))
    grid = exact[np.ix_(i, j)]
    return *np.nonzero(np.ones_like(grid, bool)), grid.ravel()


@pytest.mark.parametrize(("pool", "target"), [(True, False), (False, True), (True, True)])
def test_a_resample_is_measured_as_if_its_samples_were_copied(pool, target):
    rng = np.random.default_rng(0)
    exact = np.round(4 * rng.standard_normal((23, 6))) / 4  # with ties
    methods = {
        "network": np.round(4 * exact + 4 * rng.standard_normal((23, 6))) / 4,
        "target mean": np.tile(exact.mean(0), (23, 1)),
    }
    found = resampled(
        labelled(exact), {n: m.ravel() for n, m in methods.items()}, scale=2.0, pool=pool, target=target, seed=3
    )
    again = np.random.default_rng(3)
    counts = [
        again.multinomial(n, np.full(n, 1 / n), size=1000) if drawn else np.ones((1000, n))
        for n, drawn in ((23, pool), (6, target))
    ]
    for number in (0, 1, 500):
        rows, targets = (count[number] for count in counts)
        i, j, values = copies(exact, rows, targets)
        pairs = LabelledPairs(i.astype(np.int32), j.astype(np.int32), values)
        for name, method in methods.items():
            for metric, value in measures(pairs, copies(method, rows, targets)[2], scale=2.0).items():
                assert found[name][metric][number] == pytest.approx(value, abs=1e-9), (name, metric)


def test_the_interval_holds_the_true_value_about_as_often_as_it_should():
    """R2 over new rows whose errors share a part: an interval over pairs would be far too narrow."""
    rng, inside = np.random.default_rng(1), 0
    for trial in range(60):
        exact = rng.standard_normal((30, 1)) + 0.3 * rng.standard_normal((30, 8))
        predicted = exact + 0.5 * rng.standard_normal((30, 1))
        values = resampled(
            labelled(exact), {"network": predicted.ravel()}, scale=1.0, pool=True, target=False, seed=trial
        )
        low, high = interval(values["network"]["r2"])
        inside += low <= 1 - 0.25 / 1.09 <= high
    assert 0.8 < inside / 60 <= 1


def test_thinned_pairs_have_the_interval_of_all(monkeypatch):
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((40, 60))
    predictions = {"network": (exact + rng.standard_normal((40, 60))).ravel()}
    options = {"scale": 1.0, "pool": True, "target": False}
    whole = resampled(labelled(exact), predictions, **options)["network"]
    monkeypatch.setattr("nncift.evaluation.intervals._MAX_PAIRS", 800)
    thinned = resampled(labelled(exact), predictions, **options)["network"]
    for metric, values in whole.items():
        np.testing.assert_allclose(interval(thinned[metric]), interval(values), atol=0.12, err_msg=metric)


@pytest.mark.parametrize(
    ("rows", "noise", "outcome"), [(80, 0.1, "better than"), (24, 0.1, "too few samples to tell"), (80, 30.0, None)]
)
def test_the_outcome_follows_from_the_intervals(rows, noise, outcome):
    """Of 24 rows, 8 are held out, which are fewer than 10."""
    a, b = features(rows), features(8, 1)
    exact = 2 * np.tanh(a[:, :1]) + 0.3 * a @ b.T + noise * np.random.default_rng(7).standard_normal((rows, 8))
    train, held_out = labelled(exact).split(0.8)
    network = InfluenceNetwork().fit(a, b, train)
    result = measure_fidelity(network, a, b, held_out, train)
    assert result.outcome == outcome if outcome else result.outcome != "better than"
    assert result.beats_baselines == (result.outcome == "better than")
    quadrant = result.quadrants["Q2"]
    for method, row in quadrant["intervals"].items():
        for metric, span in row.items():
            if span is None:  # fewer than ten have no top tenth
                assert quadrant["methods"][method][metric] is None
                continue
            low, high = span
            assert low <= quadrant["methods"][method][metric] + 0.05
            assert quadrant["methods"][method][metric] - 0.05 <= high
    if result.outcome == "better than":
        assert all(row[result.judged_by][0] > 0 for row in quadrant["differences"].values())
        assert "network" not in quadrant["differences"]


def test_a_score_for_all_targets_is_not_judged_within_a_target():
    a, b = features(100), features(5, 1)
    scores = np.repeat(a[:, :1] + 0.1 * features(100, 2)[:, :1], 5, axis=1)
    train, held_out = labelled(scores).split(0.8, target_groups=None, held_out=(np.arange(80, 100), np.zeros(0, int)))
    result = measure_fidelity(InfluenceNetwork(pointwise=True).fit(a, b, train), a, b, held_out, train)
    assert result.outcome == "better than"
    assert result.is_pointwise
    assert result.judged_by == "subset_sum_correlation"
    assert "within" not in str(result)


def test_values_of_any_size_give_finite_figures():
    a, b = features(60), features(8, 1)
    for size in (1e-30, 1e30):
        train, held_out = labelled((a @ b.T) * size).split(0.8)
        result = measure_fidelity(InfluenceNetwork().fit(a, b, train), a, b, held_out, train)
        json.dumps(dataclasses.asdict(result), allow_nan=False)
