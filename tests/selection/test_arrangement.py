"""Weights by gain, phases and curriculum, against slow references and laws."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from nncift.data.pool import load_pool
from nncift.errors import ConfigError
from nncift.run.folder.folder import RunFolder
from nncift.run.storage.files import read_table
from nncift.selection.arrangement import LARGEST_WEIGHT, LEAST_WEIGHT, arranged, gain_weights
from nncift.selection.selection import Selection

GAINS = st.lists(st.floats(-1e6, 1e6) | st.just(0.0), min_size=1, max_size=30)


def made(n: int) -> Selection:
    rng = np.random.default_rng(n)
    pool = Dataset.from_dict({"id": [f"row-{i}" for i in range(2 * n)], "original": ["{}"] * (2 * n)})
    chosen = Selection(rng.permutation(2 * n)[:n], np.sort(rng.random(n))[::-1].copy(), 1.0, "some objective")
    return chosen.with_pool(pool, rng.random(2 * n))


@given(GAINS)
def test_weights_are_bounded_with_mean_1_in_the_order_of_the_gains(gains):
    weights = gain_weights(np.array(gains))
    assert weights.dtype == np.float64
    assert weights.mean() == pytest.approx(1, abs=1e-9)
    assert weights.min() >= LEAST_WEIGHT or max(gains) <= 0
    assert weights.max() <= LARGEST_WEIGHT
    order = np.argsort(gains, kind="stable")
    assert np.all(np.diff(weights[order]) >= 0)


@given(st.lists(st.floats(0.5, 2), min_size=1, max_size=30), st.floats(1e-6, 1e6))
def test_gains_of_one_size_keep_their_ratios_and_their_scale_does_not_matter(gains, scale):
    values = np.array(gains)
    np.testing.assert_allclose(gain_weights(values * scale), values / values.mean(), rtol=1e-9)


def test_weights_of_gains_that_fall_by_orders_of_magnitude():
    """By hand: two at the limit of 5, one in between, seven at 0.2 leave mean 1 to a factor of the third."""
    gains = np.array([1e6, 1e3, 7, *[1e-9] * 7])
    third = 10 - 2 * 5 - 7 * 0.2  # negative: two at the limit are too many
    assert third < 0
    weights = gain_weights(gains)
    np.testing.assert_allclose(weights, [5, 10 - 5 - 8 * 0.2, *[0.2] * 8])
    np.testing.assert_allclose(gain_weights(np.array([3.0, 0, 0, -1])), [4 - 3 * 0.2, 0.2, 0.2, 0.2])
    assert gain_weights(np.array([0.0, -1, 0])).tolist() == [1, 1, 1]
    few = gain_weights(np.array([1.0, *[0.0] * 99]))  # at 5 and 0.2 the mean would be 0.25
    np.testing.assert_allclose(few, [5, *[95 / 99] * 99])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.none() | st.integers(2, 6), st.booleans())
def test_arranged_as_sorting_by_hand(difficulty, phases, curriculum):
    selection = made(len(difficulty))
    result = arranged(selection, difficulty=np.array(difficulty), phases=phases, curriculum=curriculum)
    ranked = sorted(range(len(difficulty)), key=lambda i: (difficulty[i], i))
    if phases is None:
        expected = [(i, None) for i in (ranked if curriculum else range(len(difficulty)))]
    else:
        sizes = [math.ceil((len(ranked) - i) / phases) for i in range(min(phases, len(ranked)))]
        expected, start = [], 0
        for number, size in enumerate(sizes, start=1):
            part = ranked[start : start + size]
            expected += [(i, number) for i in (part if curriculum else sorted(part))]
            start += size
    places = [i for i, _ in expected]
    assert result.ranks.tolist() == [i + 1 for i in places]
    for name in ("indices", "gains", "influence"):
        np.testing.assert_array_equal(getattr(result, name), getattr(selection, name)[places])
    np.testing.assert_array_equal(result.difficulty, np.array(difficulty, np.float32)[places])
    numbers = [number for _, number in expected]
    assert (result.phase is None) if phases is None else (result.phase.tolist() == numbers)
    assert np.concatenate(result.phases).tolist() == list(range(len(difficulty)))
    assert result.value == selection.value


def test_saved_and_loaded_with_everything(tmp_path):
    values = np.array([0.3, 0.1, 0.2, 0.5, 0.4], np.float32)
    selection = arranged(made(5), difficulty=values, phases=2, weights=True)
    selection.save(tmp_path)
    assert selection.ranks.tolist() == [1, 2, 3, 4, 5]
    loaded = Selection.load(tmp_path, pool=selection.pool)
    for name in ("indices", "gains", "influence", "ranks", "weights", "difficulty", "phase"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(selection, name))
        assert getattr(loaded, name).dtype == getattr(selection, name).dtype
    assert [*read_table(RunFolder(tmp_path).selection).column_names][-3:] == ["weight", "difficulty", "phase"]
    rows = [json.loads(line) for line in RunFolder(tmp_path).subset.read_text().splitlines()]
    assert [row["nncift_phase"] for row in rows] == [1, 1, 1, 2, 2]
    assert [row["nncift_difficulty"] for row in rows] == [0.3, 0.1, 0.2, 0.5, 0.4]  # without digits of single precision
    assert [row["nncift_weight"] for row in rows] == selection.weights.tolist()
    assert selection.dataset["nncift_phase"][:] == [1, 1, 1, 2, 2]
    plain = arranged(made(5))
    plain.save(tmp_path / "plain")
    assert Selection.load(tmp_path / "plain").weights is None
    assert len(plain.phases) == 1


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}] * 2
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_sft_dataset_with_weights(tools):
    rows = [{"messages": CHAT} | ({"tools": tools} if tools else {}), {"messages": CHAT[:2]}]
    pool = load_pool(rows, turns="all")
    selection = Selection(np.array([0, 1]), np.array([3.0, 1.0]), 4.0).with_pool(pool)
    with pytest.raises(ConfigError, match="this selection has no weights: select with `weights`"):
        selection.sft_dataset(weights=True)
    weighted = arranged(selection, weights=True)
    assert weighted.sft_dataset(weights=True)["weight"][:] == [1.5, 1.5, 0.5]  # both turns of the first
    assert weighted.sft_dataset(weights=True, chat=False)["weight"][:] == [1.5, 0.5]
    assert "weight" not in weighted.sft_dataset().column_names


def test_the_samples_of_a_phase():
    pool = load_pool([{"prompt": f"p{i}", "response": f"r{i}"} for i in range(4)])
    selection = Selection(np.arange(4), np.ones(4), 4.0).with_pool(pool)
    result = arranged(selection, difficulty=np.array([2, 0, 3, 1]), phases=2)
    texts = [result.take(phase).sft_dataset(chat=False)["prompt"][:] for phase in result.phases]
    assert texts == [["p1", "p3"], ["p0", "p2"]]
