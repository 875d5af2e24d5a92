"""Our recipe: the Gaussian process over pairs against its definition, and the towers it becomes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nncift.errors import ConfigError, ModelError
from nncift.estimator import likelihood as pair_process
from nncift.estimator.gaussian_process import ProcessNetwork
from nncift.estimator.likelihood import conjugate_gradients, learn_weights, solve
from nncift.estimator.network import InfluenceNetwork
from nncift.estimator.training_data import LabelledGrid, at_most
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs, Probes

EVERY = slice(None)


def sides(n: int, m: int, seed: int = 0) -> tuple[Features, Features]:
    """Features of n pool samples and m targets: two wide blocks and three scalars."""
    rng = np.random.default_rng(seed)

    def side(k: int) -> Features:
        low = rng.standard_normal((k, 4))
        wide = [low @ rng.standard_normal((4, width)) + 0.1 * rng.standard_normal((k, width)) for width in (24, 20)]
        blocks = {"sentence": wide[0] * 3, "states": wide[1] + 5, "scalars": rng.standard_normal((k, 3)) * [1, 10, 100]}
        return Features({name: block.astype(np.float32) for name, block in blocks.items()})

    return side(n), side(m)


def truth(pool: Features, target: Features, seed: int = 0) -> np.ndarray:
    """Influence with a level of the sample, one of the target, and an interaction, (n, m)."""
    a, b = (np.asarray(f.blocks["sentence"], dtype=np.float64) / 6 for f in (pool, target))
    noise = np.random.default_rng(seed).standard_normal((len(a), len(b)))
    return np.tanh(a[:, :1]) + np.tanh(b[:, 1]) + np.sin(a[:, :1] * b[:, 0]) + 0.1 * noise


def labels(influence: np.ndarray, keep: float = 1.0, seed: int = 0) -> LabelledPairs:
    """Labels of a part of all pairs, in no pattern."""
    chosen = np.random.default_rng(seed).random(influence.shape) < keep
    chosen[0, 0] = True
    i, j = np.nonzero(chosen)
    return LabelledPairs(i.astype(np.int32), j.astype(np.int32), influence[i, j].astype(np.float32))


def reference_prediction(network: ProcessNetwork, pool: Features, target: Features, pairs: LabelledPairs) -> np.ndarray:
    """The process's posterior mean written out: covariances pair by pair, one solve, no towers, (n, m)."""
    grid = LabelledGrid.of(pool, target, pairs, pointwise=network.pointwise)
    w = {name: value.numpy() for name, value in learn_weights(grid, seed=network.seed).items()}
    x, y = (projection(side[EVERY]) for projection, side in zip(grid.projections, (pool, target), strict=True))
    log_scale = np.log(network._of_targets(network.target.coordinates(target[EVERY]))[0] / grid.unit)

    def smooth(u: np.ndarray, v: np.ndarray, name: str, own: str) -> float:
        blocks = [*grid.projections[0].slices, slice(len(u) - 3, len(u))]  # the three scalars once more, together
        parts = [
            math.exp(a) * math.exp(-np.square(u[s] - v[s]).sum() / 2) for a, s in zip(w[name], blocks, strict=True)
        ]
        return sum(parts) + (math.exp(w[own]) if np.allclose(u, v) else 0.0)

    def terms(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        cosine = [u[s] @ v[s] / np.linalg.norm(u[s]) / np.linalg.norm(v[s]) for s in grid.projections[0].wide]
        raw = np.array(cosine + [math.exp(k * (c - 1)) for k in (5, 30) for c in cosine])
        return (raw - grid.term_mean.numpy()) / grid.term_spread.numpy()

    def covariance(i: int, j: int, k: int, l: int) -> float:  # noqa: E741
        inner = smooth(x[i], x[k], "pool_main", "pool_own")
        inner += smooth(x[i], x[k], "pool", "profile_own") * smooth(y[j], y[l], "target", "target_own")
        inner += float((np.exp(2 * w["terms"]) * terms(x[i], y[j]) * terms(x[k], y[l])).sum())
        level = smooth(y[j], y[l], "target_main", "mean_own")
        return inner * math.exp(log_scale[j] + log_scale[l]) + level

    places = list(zip(pairs.pool_index.tolist(), pairs.target_index.tolist(), strict=True))
    known = np.array([[covariance(*p, *q) for q in places] for p in places])
    known += np.diag([(math.exp(w["noise"]) + 1e-6) * math.exp(2 * log_scale[j]) for _, j in places])
    weight = np.linalg.solve(known, (pairs.influence - grid.mean) / grid.unit)
    return np.array(
        [
            [
                grid.mean + grid.unit * sum(a * covariance(i, j, *p) for a, p in zip(weight, places, strict=True))
                for j in range(len(y))
            ]
            for i in range(len(x))
        ]
    )


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_the_towers_equal_the_process_written_out(keep: float):
    pool, target = sides(9, 7)
    pairs = labels(truth(pool, target)[:6, :5], keep)
    network = ProcessNetwork()
    network.fit(pool, target, pairs)
    expected = reference_prediction(network, pool, target, pairs)
    np.testing.assert_allclose(network.estimate(pool, target).block(EVERY, EVERY), expected, atol=2e-3)
    i, j = np.divmod(np.arange(63), 7)
    np.testing.assert_allclose(network.predict(pool[i], target[j]), expected.ravel(), atol=2e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 12), st.integers(2, 9), st.sampled_from([0.3, 0.7, 1.0]), st.integers(0, 100))
def test_conjugate_gradients_solve_what_cholesky_solves(n, m, keep, seed):
    pool, target = sides(n, m, seed)
    grid = LabelledGrid.of(pool, target, labels(truth(pool, target, seed), keep, seed), pointwise=False)
    weights = learn_weights(grid, seed=0)
    dense = solve(weights, grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_process, "DENSE_PAIRS", 0)
        iterated = solve(weights, grid)
    np.testing.assert_allclose(iterated, dense, atol=1e-3 * float(dense.abs().max()))


def test_conjugate_gradients_of_nothing_and_of_a_diagonal():
    size = torch.tensor([[1.0, 2.0], [4.0, 8.0]], dtype=torch.float64)
    assert not conjugate_gradients(lambda x: size * x, torch.zeros(2, 2).double()).any()
    np.testing.assert_allclose(conjugate_gradients(lambda x: size * x, size), np.ones((2, 2)), atol=1e-5)


def test_the_likelihoods_gradient_is_that_of_the_likelihood():
    rng = np.random.default_rng(0)
    root = torch.from_numpy(rng.standard_normal((6, 6)))
    value = torch.from_numpy(rng.standard_normal(6))
    covariance = (root @ root.T + torch.eye(6)).requires_grad_()
    (value @ torch.linalg.inv(covariance) @ value / 2 + torch.logdet(covariance) / 2).backward()
    np.testing.assert_allclose(pair_process._likelihood_gradient(covariance.detach(), value), covariance.grad)


@settings(max_examples=10, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-100, 100), st.integers(0, 50))
def test_the_influences_unit_and_origin_do_not_matter(unit, origin, seed):
    pool, target = sides(12, 8, seed)
    influence = truth(pool, target, seed)
    one = InfluenceNetwork().fit(pool, target, labels(influence[:8])).estimate(pool, target)
    other = InfluenceNetwork().fit(pool, target, labels(influence[:8] * unit + origin)).estimate(pool, target)
    allowed = 2e-3 * unit + 1e-5 * abs(origin)
    np.testing.assert_allclose(other.block(EVERY, EVERY), one.block(EVERY, EVERY) * unit + origin, atol=allowed)


def test_it_learns_levels_and_interactions_from_labels_in_any_pattern():
    pool, target = sides(120, 60)
    exact = truth(pool, target)
    for keep in (1.0, 0.25):
        network = InfluenceNetwork().fit(pool, target, labels(exact[:80, :45], keep))
        estimate = network.estimate(pool, target).block(EVERY, EVERY)
        for rows, columns, least in (
            (EVERY, slice(45), 0.6),
            (slice(80, None), slice(45), 0.5),
            (slice(80, None), slice(45, None), 0.4),
        ):
            a, b = exact[rows, columns], estimate[rows, columns]
            assert 1 - np.square(a - b).sum() / np.square(a - a.mean()).sum() > least


def test_a_pointwise_network_has_one_score_for_all_targets():
    pool, target = sides(60, 9)
    score = np.tanh(np.asarray(pool.blocks["sentence"])[:, 0] / 6)
    pairs = LabelledPairs(
        np.arange(40, dtype=np.int32), np.arange(40, dtype=np.int32) % 9, score[:40].astype(np.float32)
    )
    network = InfluenceNetwork(pointwise=True).fit(pool, target, pairs)
    estimate = network.estimate(pool, target).block(EVERY, EVERY)
    assert np.ptp(estimate, axis=1).max() < 1e-6
    assert np.corrcoef(estimate[40:, 0], score[40:])[0, 1] > 0.7


@pytest.mark.parametrize(
    "influence", [np.ones((1, 1)), np.full((5, 4), 3.0), np.eye(3), np.arange(4.0)[None], np.arange(4.0)[:, None]]
)
def test_few_or_constant_labels_are_no_trouble(influence: np.ndarray):
    pool, target = sides(10, 6)
    network = InfluenceNetwork().fit(pool, target, labels(influence))
    estimate = network.estimate(pool, target).block(EVERY, EVERY)
    assert np.isfinite(estimate).all()
    assert np.isfinite(network.uncertainty(pool)).all()
    if np.ptp(influence) == 0:
        np.testing.assert_allclose(estimate, influence.flat[0], atol=1e-5)


def test_features_without_spread_are_no_trouble():
    constant = np.ones((6, 20), np.float32)
    network = InfluenceNetwork().fit(constant, constant, labels(np.arange(36.0).reshape(6, 6)))
    assert np.isfinite(network.estimate(constant, constant).block(EVERY, EVERY)).all()


def test_the_sides_may_have_features_of_different_width():
    pool, (_, target) = sides(20, 5)[0], sides(5, 10)
    narrow = Features({"sentence": np.asarray(target.blocks["sentence"])[:, :18]})
    network = InfluenceNetwork().fit(pool, narrow, labels(truth(pool, target)))
    assert network.estimate(pool, narrow).shape == (20, 10)
    assert network.predict(pool[:3], narrow[:3]).shape == (3,)


def test_uncertainty_falls_where_there_are_labels():
    pool, target = sides(200, 20)
    network = InfluenceNetwork().fit(pool, target, labels(truth(pool, target)[:50]))
    found = network.uncertainty(pool)
    assert found.shape == (200,)
    assert found[:50].max() < np.median(found[50:])
    more = InfluenceNetwork().fit(pool, target, labels(truth(pool, target)[:100])).uncertainty(pool)
    assert more[100:].mean() < found[100:].mean()


def test_it_comes_back_from_its_folder_with_the_same_numbers(tmp_path: Path):
    pool, target = sides(30, 12)
    network = InfluenceNetwork(seed=2).fit(pool, target, labels(truth(pool, target)[:20], 0.5))
    network.save_pretrained(tmp_path)
    back = InfluenceNetwork.from_pretrained(tmp_path)
    np.testing.assert_array_equal(
        back.estimate(pool, target).block(EVERY, EVERY), network.estimate(pool, target).block(EVERY, EVERY)
    )
    np.testing.assert_array_equal(back.uncertainty(pool), network.uncertainty(pool))


def test_a_prior_is_trusted_as_far_as_the_labels_bear_it_out(tmp_path: Path):
    pool, target = sides(160, 40)
    exact = truth(pool, target)
    before = InfluenceNetwork().fit(pool, target, labels(5 * exact[:80, :30] + 2))  # another unit and origin
    i, j = np.divmod(np.arange(200), 10)
    few = LabelledPairs((i + 80).astype(np.int32), (j + 30).astype(np.int32), exact[i + 80, j + 30].astype(np.float32))
    new = np.ix_(np.arange(100, 160), np.arange(30, 40))
    error = {}
    for name, prior in (("none", None), ("prior", before)):
        network = InfluenceNetwork().fit(pool, target, few, prior=prior)
        error[name] = np.square(network.estimate(pool, target).block(EVERY, EVERY) - exact)[new].mean()
    assert error["prior"] < 0.9 * error["none"]
    network.save_pretrained(tmp_path)
    back = InfluenceNetwork.from_pretrained(tmp_path)
    every = network.estimate(pool, target).block(EVERY, EVERY)
    np.testing.assert_array_equal(back.estimate(pool, target).block(EVERY, EVERY), every)
    i = np.arange(40)
    np.testing.assert_allclose(back.predict(pool[i], target[i]), every[i, i], atol=2e-3)
    probes = Probes(np.array([3]), exact[:, [3]].astype(np.float32))
    nearer = np.abs(network.estimate(pool, target, probes=probes).columns([3]) - exact[:, [3]]).mean()
    assert nearer < np.abs(every[:, [3]] - exact[:, [3]]).mean()
    wrong = InfluenceNetwork().fit(pool, target, labels(np.random.default_rng(0).standard_normal((80, 30))))
    network = InfluenceNetwork().fit(pool, target, few, prior=wrong)
    harmed = np.square(network.estimate(pool, target).block(EVERY, EVERY) - exact)[new].mean()
    assert harmed < 1.2 * error["none"]
    with pytest.raises(ConfigError, match="takes no prior"):
        InfluenceNetwork("paper").fit(pool, target, few, prior=before)
    with pytest.raises(ModelError, match="wide"):
        InfluenceNetwork().fit(pool[:][:, :5], target, few, prior=before)


def test_more_samples_than_can_be_learned_from_are_left_out(monkeypatch, caplog):
    monkeypatch.setattr("nncift.estimator.training_data.MOST_ROWS", 5)
    monkeypatch.setattr("nncift.estimator.training_data.MOST_COLUMNS", 3)
    kept = at_most(labels(np.arange(48.0).reshape(8, 6)), seed=0)
    assert (len(np.unique(kept.pool_index)), len(np.unique(kept.target_index)), len(kept)) == (5, 3, 15)
    assert "learns from 5 of the 8 labelled pool samples" in caplog.text


def test_a_likeness_that_no_label_shows_is_not_told_by_chance():
    """The influence grows with the cosine, below 0.5 where there are labels; then samples meet themselves."""
    rng = np.random.default_rng(0)
    other, target = rng.standard_normal((60, 48)), rng.standard_normal((20, 48))
    pool = np.concatenate([other, target])
    i, j = np.divmod(np.arange(60 * 20), 20)
    cosine = (other @ target.T / np.linalg.norm(other, axis=1)[:, None] / np.linalg.norm(target, axis=1)).ravel()
    influence = np.exp(8 * cosine) + 0.1 * rng.standard_normal(len(cosine))
    pairs = LabelledPairs(i.astype(np.int32), j.astype(np.int32), influence.astype(np.float32))
    sides = [Features({"states": side.astype(np.float32)}) for side in (pool, target)]
    predicted = InfluenceNetwork().fit(*sides, pairs).predict(sides[0][60:], sides[1][EVERY])
    assert np.median(influence) < predicted.max() < 2 * influence.max()


def test_it_knows_whom_it_learned_from():
    rng = np.random.default_rng(0)
    pool, target = (rng.standard_normal((n, 8)).astype(np.float32) for n in (30, 12))

    def labels(rows, columns):
        i, j = np.repeat(rows, len(columns)), np.tile(columns, len(rows))
        return LabelledPairs(i.astype(np.int32), j.astype(np.int32), (pool[i] * target[j]).sum(1))

    first = InfluenceNetwork().fit(pool, target, labels(np.arange(10), np.arange(4)))
    second = InfluenceNetwork().fit(pool, target, labels(np.arange(20, 26), np.arange(8, 12)), prior=first)
    for network, rows, columns in (
        (first, range(10), range(4)),
        (second, [*range(10), *range(20, 26)], [*range(4), *range(8, 12)]),
    ):
        known = network.learned_from(pool, target)
        assert np.flatnonzero(known[0]).tolist() == list(rows)
        assert np.flatnonzero(known[1]).tolist() == list(columns)
    other = first.learned_from(pool + 0.01, target)
    assert not other[0].any()
