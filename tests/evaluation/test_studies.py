"""The paper's studies on made-up influence whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from nncift.evaluation.studies import LABELS, SETTINGS, SUBSETS, Exact, Point, measure, points, summarise
from nncift.features.features import Features
from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.objectives.coverage import FacilityLocation


def exact(n: int = 60, m: int = 40, **changes) -> Exact:
    """A bilinear influence of features with some noise."""
    rng = np.random.default_rng(0)
    pool, target = (rng.normal(size=(size, 8)).astype(np.float32) for size in (n, m))
    target = pool if changes.get("own_target") else target
    influence = (np.tanh(pool[:, :3] @ target[:, :3].T) + 0.05 * rng.normal(size=(n, len(target)))).astype(np.float32)
    sides = (Features({"sentence": pool}), Features({"sentence": target}))
    return Exact(influence, *sides, lambda matrix, size: FacilityLocation(matrix), **changes)


def test_quadrants_cover_every_pair_once():
    every = exact()
    records = {r["quadrant"]: r for r in measure(Point("labels", "target mean", 0.2, None, 0), every)}
    seen = 12 * 8
    assert {name: r["pairs"] for name, r in records.items()} == {
        **{"Q1": seen, "Q2": 48 * 8},
        **{"Q3": 12 * 32, "Q4": 48 * 32},
    }


def test_the_target_mean_is_what_its_name_says():
    every = exact()
    rows, columns = every.drawn(0.2, 3)
    labels = every.influence[np.ix_(rows, columns)].astype(np.float64)
    new = np.setdiff1d(np.arange(60), rows)
    found = {r["quadrant"]: r for r in measure(Point("labels", "target mean", 0.2, None, 3), every)}
    scale = np.ptp(every.influence)
    errors = {
        "Q2": every.influence[np.ix_(new, columns)] - labels.mean(axis=0),
        "Q3": every.influence[np.ix_(rows, np.setdiff1d(np.arange(40), columns))] - labels.mean(),
    }
    for name, error in errors.items():
        assert found[name]["mse"] == pytest.approx(np.square(error).mean() / scale**2, rel=1e-5)
    assert found["Q2"]["spearman_within_target"] == 0


def test_more_labels_of_the_same_samples_and_better_fidelity():
    every = exact()
    small, large = (set(every.drawn(labels, 1)[0].tolist()) for labels in (0.1, 0.4))
    assert small < large
    ranks = [
        measure(Point("labels", "process", labels, None, 1), every)[1]["spearman_within_target"]
        for labels in (0.05, 0.4)
    ]
    assert ranks[0] < 0.8 < ranks[1]


def test_a_pool_that_is_its_own_target_has_no_sample_on_both_sides():
    every = exact(own_target=True)
    rows, columns = every.drawn(0.4, 0)
    assert not np.intersect1d(rows, columns).size
    pairs = every.pairs(np.arange(60), np.arange(60))
    assert len(pairs) == 60 * 59
    records = measure(Point("labels", "target mean", 0.4, None, 0), every)
    assert sum(r["pairs"] for r in records) == 60 * 59


def test_a_pointwise_score_has_two_quadrants():
    every = exact()
    one = Exact(every.influence[:, :1], every.pool, every.target, every.objective, pointwise=True)
    assert [r["quadrant"] for r in measure(Point("labels", "process", 0.4, None, 0), one)] == ["Q1", "Q2"]


def test_the_exact_choice_gains_1_and_random_ones_0():
    every = exact()
    chosen, most, random = every.reference(6)
    gains = InfluenceMatrix.from_array(every.influence).rows(chosen).max(axis=0)
    assert most == pytest.approx(np.maximum(gains, 0).sum(), rel=1e-5)
    assert random < most
    records = measure(Point("labels-subset", "process", 0.4, None, 0), every)
    assert [r["subset"] for r in records] == list(SUBSETS)
    assert all(0 < r["normalized_gain"] <= 1.05 and 0 < r["overlap"] <= 1 for r in records[:3])


@pytest.mark.parametrize("study", SETTINGS)
def test_the_papers_setting_is_among_those_studied(study):
    option, values = SETTINGS[study]
    published = {"depth": 1, "hidden": 100, "learning_rate": 1e-4}[option]
    assert published in values
    every = exact()
    plain = measure(Point("labels", "paper", 0.2, None, 0), every)
    assert measure(Point(study, "paper", 0.2, float(published), 0), every) == plain
    other = measure(Point(study, "paper", 0.2, float(values[-1]), 0), every)
    assert other != plain


def test_records_of_seeds_are_merged_with_students_interval():
    three = {Point("labels", "paper", 0.1, None, seed): [{"quadrant": "Q2", "pairs": 5, "mse": v, "r2": r}]
             for seed, (v, r) in enumerate([(1.0, 1.0), (2.0, None), (3.0, 1.0)])}  # fmt: skip
    (merged,) = summarise(three)
    mse = merged["metrics"]["mse"]
    assert (mse["value"], mse["by_seed"]) == (2.0, {"0": 1.0, "1": 2.0, "2": 3.0})
    assert mse["high"] - 2 == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert merged["metrics"]["r2"]["value"] is None
    (one,) = summarise({Point("labels", "paper", 0.1, None, 0): [{"quadrant": "Q2", "pairs": 5, "mse": 1.0}]})
    assert (one["metrics"]["mse"]["low"], one["metrics"]["mse"]["value"]) == (None, 1.0)


def test_every_point_has_a_file_name_of_its_own():
    every = [point for study in ("labels", "labels-subset", *SETTINGS) for point in points(study, range(3))]
    assert len({point.slug for point in every}) == len(every)
    assert {point.labels for point in every if point.study == "labels"} == set(LABELS)
