"""Similarities that need no label, against slow references, and the verdict where they are as good as the network."""

from __future__ import annotations

import numpy as np
import pytest

from builders import labelled
from nncift.estimator.network import InfluenceNetwork
from nncift.evaluation.baselines import feature_similarities, predict_baselines
from nncift.evaluation.fidelity import measure_fidelity
from nncift.features.features import Features
from nncift.labels.pairs import LabelledPairs

N, M = 60, 12


BLOCKS = ("sentence", "response states", "scalars", "gradient sketch")


def sides(seed: int = 0, names: tuple[str, ...] = BLOCKS) -> list[Features]:
    rng = np.random.default_rng(seed)
    return [Features({name: (rng.standard_normal((n, 5)) + 3).astype(np.float32) for name in names}) for n in (N, M)]


def slow_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_similarities_equal_slow_references():
    pool, target = sides()
    pool.blocks["response states"][:, 2] = target.blocks["response states"][:, 2] = 7  # says nothing
    found = feature_similarities(pool, target)
    assert list(found) == ["cosine", "response similarity", "gradient sketch"]
    i, j = np.array([0, 3, 59, 3]), np.array([0, 11, 5, 2])
    of_cosine, of_states, of_sketch = (found[name](i, j) for name in found)
    both = np.concatenate([pool.blocks["response states"], target.blocks["response states"]]).astype(float)
    sketches = np.concatenate([pool.blocks["gradient sketch"], target.blocks["gradient sketch"]]).astype(float)
    kept = [0, 1, 3, 4]
    standard = (both[:, kept] - both[:, kept].mean(axis=0)) / both[:, kept].std(axis=0)
    for place, (row, column) in enumerate(zip(i, j, strict=True)):
        cosine = slow_cosine(pool.blocks["sentence"][row], target.blocks["sentence"][column])
        assert of_cosine[place] == pytest.approx(cosine, abs=1e-6)
        states = slow_cosine(standard[row], standard[N + column])
        assert of_states[place] == pytest.approx(np.exp(5 * (states - 1)), abs=1e-6)
        sketch = slow_cosine(sketches[row] - sketches.mean(axis=0), sketches[N + column] - sketches.mean(axis=0))
        assert of_sketch[place] == pytest.approx(np.exp(5 * (sketch - 1)), abs=1e-6)


def test_features_of_different_widths_have_no_cosine():
    a, b = np.ones((4, 3), np.float32), np.ones((4, 5), np.float32)
    assert feature_similarities(a, b) == {}
    assert list(feature_similarities(a, a)) == ["cosine"]


def test_baselines_are_fitted_to_the_training_pairs_alone():
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((N, M))
    train, held_out = labelled(exact).split(0.8)
    turned = -exact

    def similarity(pool: np.ndarray, target: np.ndarray) -> np.ndarray:
        return 3 * exact[pool, target] + 8

    def opposite(pool: np.ndarray, target: np.ndarray) -> np.ndarray:
        return turned[pool, target]

    found = predict_baselines(M, train, held_out, {"alike": similarity, "opposite": opposite})
    np.testing.assert_allclose(found["alike"], held_out.influence, atol=1e-6)  # least squares find the scale
    order = np.argsort(found["opposite"])
    assert (np.diff(held_out.influence[order]) <= 0).all()  # never turned round, whatever the labels say
    assert np.ptp(found["opposite"]) < 1e-4
    np.testing.assert_allclose(found["constant"], train.influence.mean(), rtol=1e-6)
    changed = LabelledPairs(held_out.pool_index, held_out.target_index, held_out.influence * 5)
    again = predict_baselines(M, train, changed, {"alike": similarity})
    np.testing.assert_array_equal(again["alike"], found["alike"])


def test_labels_that_bought_nothing_are_called_so_and_what_needs_none_is_named():
    """Influence that a label-free similarity predicts and the features do not."""
    pool, target = sides()
    rng = np.random.default_rng(3)
    true = rng.standard_normal((N, M))
    train, held_out = labelled(true + 0.3 * rng.standard_normal((N, M))).split(0.8)
    network = InfluenceNetwork().fit(pool, target, train)
    similarities = {"gradient sketch": lambda i, j: true[i, j]}
    result = measure_fidelity(network, pool, target, held_out, train, similarities)
    text = str(result)
    assert result.outcome == "not better than"
    assert text.startswith("The network is not better than the baselines on 12 new pool samples, so the labels bought")
    assert "(best without labels: gradient sketch 0.9" in text
    assert text.endswith(" Without labels, `influence` gradient-sketch predicts as well.")
    assert result.verdict == text
    assert set(result.quadrants["Q2"]["differences"]) == {
        "cosine",
        "response similarity",
        "gradient sketch",
        "target mean",
        "constant",
    }


def test_features_of_ones_own_are_no_influence_function_to_recommend():
    pool, target = sides(names=("own",))
    a, b = (side.blocks["own"] / np.linalg.norm(side.blocks["own"], axis=1, keepdims=True) for side in (pool, target))
    exact = 5 * a @ b.T + 0.01 * np.random.default_rng(0).standard_normal((N, M))
    train, held_out = labelled(exact).split(0.8)
    network = InfluenceNetwork("paper", epochs=1).fit(pool, target, train)
    result = measure_fidelity(network, pool, target, held_out, train)
    assert result.outcome == "not better than"
    assert "best without labels: cosine" in str(result)
    assert "predicts as well" not in str(result)
