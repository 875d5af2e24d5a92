"""The Gaussian process over pairs against its definition: low-rank towers, posterior variance, probes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import labelled
from nncift.errors import ModelError
from nncift.estimator import likelihood
from nncift.estimator.gaussian_process import GaussianProcess
from nncift.estimator.likelihood import conjugate_gradients, maximize_likelihood, solve
from nncift.estimator.network import InfluenceNetwork
from nncift.estimator.training_data import LabelledGrid, capped
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
    """Influence with main effects of both samples, an interaction, and noise, (n, m)."""
    a, b = (np.asarray(f.blocks["sentence"], dtype=np.float64) / 6 for f in (pool, target))
    noise = np.random.default_rng(seed).standard_normal((len(a), len(b)))
    return np.tanh(a[:, :1]) + np.tanh(b[:, 1]) + np.sin(a[:, :1] * b[:, 0]) + 0.1 * noise


def posterior_mean(network: GaussianProcess, pool: Features, target: Features, pairs: LabelledPairs) -> np.ndarray:
    """The posterior mean written out: covariances pair by pair, one solve, no towers, (n, m)."""
    grid = LabelledGrid.of(pool, target, pairs, pointwise=network.pointwise)
    theta = {name: value.numpy() for name, value in maximize_likelihood(grid, seed=network.seed).items()}
    x, y = (projection(side[EVERY]) for projection, side in zip(grid.projections, (pool, target), strict=True))
    log_scale = np.log(network.target_effects(network.target.coordinates(target[EVERY]))[0] / grid.unit)

    def kernel(u: np.ndarray, v: np.ndarray, name: str) -> float:
        blocks = [*grid.projections[0].slices, slice(len(u) - 3, len(u))]  # the product of the three scalars' last
        parts = [
            math.exp(a) * math.exp(-np.square(u[s] - v[s]).sum() / 2) for a, s in zip(theta[name], blocks, strict=True)
        ]
        return sum(parts) + (math.exp(theta[f"{name}_nugget"]) if np.allclose(u, v) else 0.0)

    def terms(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        cosine = [u[s] @ v[s] / np.linalg.norm(u[s]) / np.linalg.norm(v[s]) for s in grid.projections[0].wide]
        raw = np.array(cosine + [math.exp(k * (c - 1)) for k in (5, 30) for c in cosine])
        return (raw - grid.term_mean.numpy()) / grid.term_std.numpy()

    def covariance(i: int, j: int, k: int, l: int) -> float:  # noqa: E741
        inner = kernel(x[i], x[k], "pool_main")
        inner += kernel(x[i], x[k], "pool") * kernel(y[j], y[l], "target")
        inner += float((np.exp(2 * theta["terms"]) * terms(x[i], y[j]) * terms(x[k], y[l])).sum())
        return inner * math.exp(log_scale[j] + log_scale[l]) + kernel(y[j], y[l], "target_main")

    train = list(zip(pairs.pool_index.tolist(), pairs.target_index.tolist(), strict=True))
    noisy = np.array([[covariance(*p, *q) for q in train] for p in train])
    noisy += np.diag([(math.exp(theta["noise"]) + 1e-6) * math.exp(2 * log_scale[j]) for _, j in train])
    dual = np.linalg.solve(noisy, (pairs.influence - grid.mean) / grid.unit)
    cross = np.array([[[covariance(i, j, *p) for p in train] for j in range(len(y))] for i in range(len(x))])
    return grid.mean + grid.unit * cross @ dual


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_the_towers_equal_the_posterior_mean(keep: float):
    pool, target = sides(9, 7)
    pairs = labelled(truth(pool, target)[:6, :5], keep)
    network = GaussianProcess()
    network.fit(pool, target, pairs)
    expected = posterior_mean(network, pool, target, pairs)
    np.testing.assert_allclose(network.estimate(pool, target).block(EVERY, EVERY), expected, atol=2e-3)
    i, j = np.divmod(np.arange(63), 7)
    np.testing.assert_allclose(network.predict(pool[i], target[j]), expected.ravel(), atol=2e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 12), st.integers(2, 9), st.sampled_from([0.3, 0.7, 1.0]), st.integers(0, 100))
def test_conjugate_gradients_equal_cholesky(n, m, keep, seed):
    pool, target = sides(n, m, seed)
    grid = LabelledGrid.of(pool, target, labelled(truth(pool, target, seed), keep, seed), pointwise=False)
    theta = maximize_likelihood(grid, seed=0)
    dense = solve(theta, grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "DENSE_PAIRS", 0)
        iterated = solve(theta, grid)
    np.testing.assert_allclose(iterated, dense, atol=1e-3 * float(dense.abs().max()))


def test_conjugate_gradients_of_zero_and_of_a_diagonal():
    size = torch.tensor([[1.0, 2.0], [4.0, 8.0]], dtype=torch.float64)
    assert not conjugate_gradients(lambda x: size * x, torch.zeros(2, 2).double()).any()
    np.testing.assert_allclose(conjugate_gradients(lambda x: size * x, size), np.ones((2, 2)), atol=1e-5)


def test_the_likelihood_gradient_equals_autograd():
    rng = np.random.default_rng(0)
    root = torch.from_numpy(rng.standard_normal((6, 6)))
    value = torch.from_numpy(rng.standard_normal(6))
    covariance = (root @ root.T + torch.eye(6)).requires_grad_()
    (value @ torch.linalg.inv(covariance) @ value / 2 + torch.logdet(covariance) / 2).backward()
    np.testing.assert_allclose(likelihood._likelihood_gradient(covariance.detach(), value), covariance.grad)


@settings(max_examples=6, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-100, 100), st.integers(0, 50))
def test_predictions_are_equivariant_to_unit_and_origin(unit, origin, seed):
    pool, target = sides(12, 8, seed)
    influence = truth(pool, target, seed)
    one = InfluenceNetwork().fit(pool, target, labelled(influence[:8])).estimate(pool, target)
    other = InfluenceNetwork().fit(pool, target, labelled(influence[:8] * unit + origin)).estimate(pool, target)
    allowed = 2e-3 * unit + 1e-5 * abs(origin)
    np.testing.assert_allclose(other.block(EVERY, EVERY), one.block(EVERY, EVERY) * unit + origin, atol=allowed)


def test_main_effects_and_interactions_are_fitted_from_labels_in_any_pattern():
    pool, target = sides(90, 50)
    exact = truth(pool, target)
    for keep in (1.0, 0.25):
        network = InfluenceNetwork().fit(pool, target, labelled(exact[:60, :38], keep))
        estimate = network.estimate(pool, target).block(EVERY, EVERY)
        new = slice(60, None)
        for rows, columns, least in ((EVERY, slice(38), 0.6), (new, slice(38), 0.5), (new, slice(38, None), 0.4)):
            a, b = exact[rows, columns], estimate[rows, columns]
            assert 1 - np.square(a - b).sum() / np.square(a - a.mean()).sum() > least


def test_a_pointwise_network_has_one_score_for_all_targets():
    pool, target = sides(60, 9)
    score = np.tanh(np.asarray(pool.blocks["sentence"])[:, 0] / 6)
    i = np.arange(40, dtype=np.int32)
    pairs = LabelledPairs(i, i % 9, score[:40].astype(np.float32))
    network = InfluenceNetwork(pointwise=True).fit(pool, target, pairs)
    estimate = network.estimate(pool, target).block(EVERY, EVERY)
    assert np.ptp(estimate, axis=1).max() < 1e-6
    assert np.corrcoef(estimate[40:, 0], score[40:])[0, 1] > 0.7


@pytest.mark.parametrize(
    "influence", [np.ones((1, 1)), np.full((5, 4), 3.0), np.eye(3), np.arange(4.0)[None], np.arange(4.0)[:, None]]
)
@pytest.mark.parametrize("features", [sides(10, 6), (np.ones((10, 20), np.float32), np.ones((6, 20), np.float32))])
def test_few_or_constant_labels_and_constant_features(influence, features):
    network = InfluenceNetwork().fit(*features, labelled(influence))
    estimate = network.estimate(*features).block(EVERY, EVERY)
    assert np.isfinite(estimate).all()
    assert np.isfinite(network.uncertainty(features[0])).all()
    if np.ptp(influence) == 0:
        np.testing.assert_allclose(estimate, influence.flat[0], atol=1e-5)


def test_the_sides_may_have_different_widths():
    pool, (_, target) = sides(20, 5)[0], sides(5, 10)
    narrow = Features({"sentence": np.asarray(target.blocks["sentence"])[:, :18]})
    network = InfluenceNetwork().fit(pool, narrow, labelled(truth(pool, target)))
    assert network.estimate(pool, narrow).shape == (20, 10)
    assert network.predict(pool[:3], narrow[:3]).shape == (3,)


def test_posterior_variance_is_lower_near_labels():
    pool, target = sides(200, 20)
    network = InfluenceNetwork().fit(pool, target, labelled(truth(pool, target)[:50], 0.3))
    found = network.uncertainty(pool)
    assert found.shape == (200,)
    assert (found > 0).all()
    assert found[:50].max() < np.median(found[50:])
    more = InfluenceNetwork().fit(pool, target, labelled(truth(pool, target)[:100], 0.3)).uncertainty(pool)
    assert more[100:].mean() < found[100:].mean()


def test_a_prior_is_rescaled_by_least_squares(tmp_path: Path):
    pool, target = sides(160, 40)
    exact = truth(pool, target)
    before = InfluenceNetwork().fit(pool, target, labelled(5 * exact[:80, :30] + 2, 0.2))  # another unit and origin
    every = labelled(exact)
    few = every.take((every.pool_index >= 80) & (every.pool_index < 100) & (every.target_index >= 30))
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
    wrong = InfluenceNetwork().fit(pool, target, labelled(np.random.default_rng(0).standard_normal((80, 30)), 0.2))
    network = InfluenceNetwork().fit(pool, target, few, prior=wrong)
    harmed = np.square(network.estimate(pool, target).block(EVERY, EVERY) - exact)[new].mean()
    assert harmed < 1.2 * error["none"]
    with pytest.raises(ModelError, match="wide"):
        InfluenceNetwork().fit(pool[:][:, :5], target, few, prior=before)


def test_labelled_samples_are_capped(monkeypatch, caplog):
    monkeypatch.setattr("nncift.estimator.training_data.MAX_ROWS", 5)
    monkeypatch.setattr("nncift.estimator.training_data.MAX_COLUMNS", 3)
    kept = capped(labelled(np.arange(48.0).reshape(8, 6)), seed=0)
    assert (len(np.unique(kept.pool_index)), len(np.unique(kept.target_index)), len(kept)) == (5, 3, 15)
    assert "fitted to 5 of the 8 labelled pool samples" in caplog.text


def test_similarity_coefficients_do_not_extrapolate_beyond_the_labels():
    """Influence grows with the cosine, below 0.5 for labelled pairs; predictions for identical samples stay bounded."""
    rng = np.random.default_rng(0)
    other, target = rng.standard_normal((40, 48)), rng.standard_normal((15, 48))
    pool = np.concatenate([other, target])
    cosine = other @ target.T / np.linalg.norm(other, axis=1)[:, None] / np.linalg.norm(target, axis=1)
    influence = np.exp(8 * cosine) + 0.1 * rng.standard_normal(cosine.shape)
    pairs = labelled(influence)
    sides = [Features({"states": side.astype(np.float32)}) for side in (pool, target)]
    predicted = InfluenceNetwork().fit(*sides, pairs).predict(sides[0][40:], sides[1][EVERY])
    assert np.median(influence) < predicted.max() < 2 * influence.max()


def test_training_inputs_are_recognized_by_their_features():
    rng = np.random.default_rng(0)
    pool, target = (rng.standard_normal((n, 8)).astype(np.float32) for n in (30, 12))
    pairs = labelled(pool @ target.T)
    i, j = pairs.pool_index, pairs.target_index
    first = InfluenceNetwork().fit(pool, target, pairs.take((i < 10) & (j < 4)))
    second = InfluenceNetwork().fit(pool, target, pairs.take((i >= 20) & (i < 26) & (j >= 8)), prior=first)
    for network, rows, columns in (
        (first, range(10), range(4)),
        (second, [*range(10), *range(20, 26)], [*range(4), *range(8, 12)]),
    ):
        trained = network.learned_from(pool, target)
        assert np.flatnonzero(trained[0]).tolist() == list(rows)
        assert np.flatnonzero(trained[1]).tolist() == list(columns)
    other = first.learned_from(pool + 0.01, target)
    assert not other[0].any()


# --- probes --------------------------------------------------------------------------------------------


def fitted(seed: int, n: int = 40, m: int = 12) -> tuple[InfluenceNetwork, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pool, target = (rng.standard_normal((k, 20)).astype(np.float32) for k in (n, m))
    influence = np.tanh(pool @ rng.standard_normal((20, 4))) @ np.tanh(target @ rng.standard_normal((20, 4))).T
    influence = (influence + 0.2 * rng.standard_normal((n, m))).astype(np.float32)
    return InfluenceNetwork().fit(pool, target, labelled(influence[:20])), pool, target, influence


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 100), st.integers(1, 6))
def test_the_estimate_with_probes_is_the_conditional_mean(seed, count):
    network, pool, target, influence = fitted(seed)
    columns = network.choose_probes(target, count)
    assert len(set(columns.tolist())) == count
    probes = Probes(columns, influence[:, columns])
    found = network.estimate(pool, target, probes=probes).block(EVERY, EVERY)
    before = network.estimate(pool, target).block(EVERY, EVERY)
    model = network.model
    y = model.target.coordinates(target)
    kernel, scale = model.posterior.target_covariance(y, y).numpy(), model.target_effects(y)[0]
    profile, level = model.posterior.variances(pool)
    for i in (0, 25, 39):
        covariance = (profile[i] * kernel + level[i]) * np.outer(scale, scale)
        known = covariance[np.ix_(columns, columns)] + model.numbers["noise"] * np.diag(scale[columns] ** 2)
        weight = np.linalg.solve(known, influence[i, columns] - before[i, columns])
        np.testing.assert_allclose(found[i], before[i] + covariance[:, columns] @ weight, atol=1e-3)


def test_probes_lower_the_error():
    network, pool, target, influence = fitted(3)
    columns = network.choose_probes(target, 4)
    new = np.ix_(np.arange(20, 40), np.setdiff1d(np.arange(12), columns))
    before = network.estimate(pool, target).block(EVERY, EVERY)
    after = network.estimate(pool, target, probes=Probes(columns, influence[:, columns])).block(EVERY, EVERY)
    assert np.square(after - influence)[new].mean() < 0.95 * np.square(before - influence)[new].mean()


def test_a_missing_probe_value_leaves_the_estimate_as_it_is():
    network, pool, target, influence = fitted(3)
    columns = network.choose_probes(target, 3)
    found = []
    for value in (np.nan, network.estimate(pool, target).block([5], columns)[0, 1]):
        probes = np.array(influence[:, columns])
        probes[5, 1] = value
        found.append(network.estimate(pool, target, probes=Probes(columns, probes)).rows([5]))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(*found, atol=1e-3)
