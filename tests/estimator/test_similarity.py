"""The label-free similarity as the prior mean of the network: its formula, its scale, its towers and its storage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from builders import labelled
from nncift.errors import ModelError
from nncift.estimator.gaussian_process import GaussianProcess
from nncift.estimator.network import InfluenceNetwork
from nncift.estimator.similarity import STATES, LabelFreeSimilarity
from nncift.features.features import Features
from nncift.features.sources import SKETCH
from nncift.labels.pairs import LabelledPairs

EVERY = slice(None)


def side(n: int, seed: int, *, sketch: bool = True) -> Features:
    """An embedding, states with a constant column and one that is large, and unit vectors of a sketch."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((n, 7)) + 2
    states[:, 1], states[:, 2] = 3, 1000 * states[:, 2]
    vectors = rng.standard_normal((n, 9)) + 0.3
    blocks = {"sentence": rng.standard_normal((n, 5)), STATES: states}
    blocks |= {SKETCH: vectors / np.linalg.norm(vectors, axis=1, keepdims=True)} if sketch else {}
    return Features({name: block.astype(np.float32) for name, block in blocks.items()})


def reference(pool: Features, target: Features) -> np.ndarray:
    """The mean of exp(5 (cosine - 1)), pair by pair, (n, m)."""
    found = np.zeros((len(pool), len(target)))
    names = [name for name in (STATES, SKETCH) if name in pool.blocks]
    for name in names:
        a, b = (one.blocks[name].astype(np.float64) for one in (pool, target))
        both = np.concatenate([a, b])
        scale = both.std(axis=0) if name == STATES else np.ones(both.shape[1])
        kept = scale > 1e-6 * scale.max()
        a, b = (((x - both.mean(axis=0)) / np.where(kept, scale, 1))[:, kept] for x in (a, b))
        for i, u in enumerate(a):
            for j, v in enumerate(b):
                cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
                found[i, j] += np.exp(5 * (cosine - 1)) / len(names)
    return found


@pytest.mark.parametrize("sketch", [True, False])
def test_it_is_the_mean_of_exponentials_of_centered_cosines(sketch: bool):
    pool, target = side(11, 0, sketch=sketch), side(6, 1, sketch=sketch)
    similarity = LabelFreeSimilarity.of(pool, target)
    units = similarity.units(pool[EVERY]), similarity.units(target[EVERY])
    expected = reference(pool, target)
    np.testing.assert_allclose(similarity.grid(*units), expected, rtol=1e-5)
    i, j = np.array([0, 3, 3, 10]), np.array([5, 0, 2, 5])
    pairs = similarity.pairs(*([block[index] for block in one] for one, index in zip(units, (i, j), strict=True)))
    np.testing.assert_allclose(pairs, expected[i, j], rtol=1e-5)


def test_features_without_a_language_model_have_none():
    alone = Features({"sentence": np.ones((3, 4), np.float32)})
    assert LabelFreeSimilarity.of(alone, alone) is None
    assert LabelFreeSimilarity.of(side(3, 0), side(3, 1, sketch=False)) is None
    network = GaussianProcess()
    network.fit(alone, alone, labelled(np.eye(3)))
    assert network.similarity is None
    assert network.numbers["similarity"] == 0


def test_labels_that_are_the_similarity_are_predicted_for_new_samples_of_both_sides():
    pool, target = side(30, 0), side(20, 1)
    influence = 3 * reference(pool, target) + 7
    pairs = labelled(influence)
    seen = pairs.take((pairs.pool_index < 20) & (pairs.target_index < 12))
    estimated = InfluenceNetwork().fit(pool, target, seen).estimate(pool, target).block(EVERY, EVERY)
    np.testing.assert_allclose(estimated, influence, atol=2e-3 * np.ptp(influence))


def test_the_scale_is_never_negative():
    pool, target = side(20, 0), side(15, 1)
    network = GaussianProcess()
    network.fit(pool, target, labelled(-reference(pool, target)))
    assert network.numbers["similarity"] == 0
    network.fit(pool, target, labelled(np.ones((20, 15))))  # nothing to scale by
    assert network.numbers["similarity"] == 0


def test_a_pointwise_score_has_no_prior_mean():
    pool, target = side(20, 0), side(1, 1)
    network = GaussianProcess(pointwise=True)
    network.fit(pool, target, labelled(reference(pool, target)))
    assert network.similarity is None


def fitted(pool: Features, target: Features) -> tuple[InfluenceNetwork, LabelledPairs]:
    noise = np.random.default_rng(3).standard_normal((len(pool), len(target)))
    pairs = labelled(2 * reference(pool, target) + 0.02 * noise)
    seen = pairs.take(pairs.pool_index < len(pool) // 2)
    return InfluenceNetwork().fit(pool, target, seen), pairs


def test_towers_and_pairs_agree_and_a_stored_network_predicts_the_same(tmp_path: Path):
    pool, target = side(24, 0), side(16, 1)
    network, pairs = fitted(pool, target)
    estimated = network.estimate(pool, target).block(EVERY, EVERY)
    rows = pool[pairs.pool_index], target[pairs.target_index]
    size = float(np.ptp(estimated))
    np.testing.assert_allclose(network.predict(*rows), estimated.ravel(), atol=2e-3 * size)  # of a truncated rank
    whole = network.model.predict_grid(pool[EVERY], target[EVERY])
    np.testing.assert_allclose(whole.ravel(), network.predict(*rows), atol=1e-5 * size)
    network.save_pretrained(tmp_path)
    again = InfluenceNetwork.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again.estimate(pool, target).block(EVERY, EVERY), estimated)
    np.testing.assert_array_equal(again.predict(*rows), network.predict(*rows))


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.update(similarity=[[5, 99]]),
        lambda facts: facts.update(similarity=[[5, 11], [12, 21]]),
        lambda facts: facts.update(similarity="states"),
        lambda facts: facts["numbers"].update(similarity=-1.0),
        lambda facts: facts["numbers"].pop("similarity"),
    ],
)
def test_a_damaged_prior_mean_is_refused(tmp_path: Path, change):
    fitted(side(8, 0), side(6, 1))[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config["facts"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="has no InfluenceNetwork of this version"):
        InfluenceNetwork.from_pretrained(tmp_path)
