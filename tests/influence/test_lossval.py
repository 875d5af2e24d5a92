"""LossVal against hand-written gradients; its weights detect mismatched responses and the target's family."""

from __future__ import annotations

import gzip
import json
import sys

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import references
from builders import chat, families, prepared, samples
from nncift.errors import DataError, DependencyError
from nncift.influence.lossval import LossVal
from nncift.models.text.chats import trained_texts
from nncift.run.shards import SHARD

SHORT = {"epochs": 12, "learning_rate": 0.03, "head_learning_rate": 0.01, "decay": 5.0, "seed": 3}


class Drawn:
    """An encoder with a random but fixed direction for every text."""

    def __init__(self, width: int = 4) -> None:
        self.width = width
        self.asked = 0

    def encode(self, texts, **options):
        self.asked += len(texts)
        draws = [np.random.default_rng(list(text.encode())).normal(size=self.width) for text in texts]
        return np.stack([draw / np.linalg.norm(draw) for draw in draws]).astype(np.float32)


def rows(pairs: list[tuple[str, str]]) -> Dataset:
    return Dataset.from_list([{"id": str(k), "prompt": p, "response": r} for k, (p, r) in enumerate(pairs)])


def drawn_rows(n: int, start: int = 0) -> Dataset:
    return rows([(f"prompt {k}", f"response {k}") for k in range(start, start + n)])


def pairs_of(*names: str, size: int, seed: int) -> list[tuple[str, str]]:
    rows = families(*names, size=size, seed=seed)
    return list(zip(rows["prompt"], rows["response"], strict=True))


def with_wrong_responses(pairs, share: float = 0.2, seed: int = 0):
    """The pairs with the responses of a share of them rotated, and the mask of these, (n,) bool."""
    ring = np.random.default_rng(seed).permutation(len(pairs))[: round(share * len(pairs))]
    responses = {a: pairs[b][1] for a, b in zip(ring, np.roll(ring, 1), strict=True)}
    wrong = np.isin(np.arange(len(pairs)), ring)
    return rows([(prompt, responses.get(k, response)) for k, (prompt, response) in enumerate(pairs)]), wrong


def auc(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Probability that a right sample scores above a wrong one."""
    right, others = scores[~wrong][:, None], scores[wrong][None]
    return float(np.mean((right > others) + 0.5 * (right == others)))


def weights(function: LossVal, pool: Dataset, target: Dataset, folder=None) -> np.ndarray:
    function.prepare(pool, target, folder)
    return function(pool, target.select([0]))[:, 0]


class TestDefinition:
    @pytest.mark.parametrize("batch", [64, 4], ids=["one batch", "three batches"])
    def test_equals_the_reference(self, batch):
        pool, target, encoder = drawn_rows(10), drawn_rows(6, start=100), Drawn()
        found = weights(LossVal(encoder, rows=batch, device="cpu", **SHORT), pool, target)
        orders = []  # training sorts samples by key
        for side in (pool, target):
            keys = LossVal(encoder)._keys(side)
            orders.append(sorted(range(len(side)), key=keys.__getitem__))
        points = [
            tuple(encoder.encode([side[column][k] for k in order]) for column in ("prompt", "response"))
            for side, order in zip((pool, target), orders, strict=True)
        ]
        expected = references.lossval(*points, rows=batch, **SHORT)
        np.testing.assert_allclose(found[orders[0]], expected, atol=1e-5)
        assert expected.std() > 0.05  # not trivially equal

    @pytest.mark.parametrize("batch", [64, 3], ids=["one batch", "three batches"])
    def test_turns_share_their_sample_s_weight(self, batch):
        def with_chats(n: int, start: int) -> Dataset:
            texts = [("a", f"b{k}", "c", f"d{k}", "e", f"f{k}")[: 2 + 2 * (k % 3)] for k in range(start, start + n)]
            chats = samples([chat(str(k), *turns) for k, turns in enumerate(texts)])
            return chats.add_column("turns", [[*range(1, len(turns), 2)] for turns in texts])

        pool, target, encoder = with_chats(8, 0), with_chats(5, 100), Drawn()
        function = LossVal(encoder, rows=batch, device="cpu", **SHORT)
        found, points, owners, orders = weights(function, pool, target), [], [], []
        for side in (pool, target):
            order = sorted(range(len(side)), key=function._keys(side).__getitem__)
            turns = [trained_texts(side)[k] for k in order]
            prompts, responses = zip(*(pair for one in turns for pair in one), strict=True)
            points.append((encoder.encode(prompts), encoder.encode(responses)))
            owners.append(np.repeat(np.arange(len(side)), [len(one) for one in turns]))
            orders.append(order)
        expected = references.lossval(*points, rows=batch, **SHORT, owners=owners[0], of_target=owners[1])
        np.testing.assert_allclose(found[orders[0]], expected, atol=1e-5)
        last = weights(function, *(side.remove_columns("turns") for side in (pool, target)))
        assert np.abs(found - last).max() > 0.01
        assert len(owners[0]) > len(pool)

    def test_the_seed_draws_the_batches(self):
        pool, target = drawn_rows(20), drawn_rows(5, start=100)
        first, again, other = (
            weights(LossVal(Drawn(), epochs=5, rows=8, seed=seed, device="cpu"), pool, target) for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max() > 1e-3

    def test_a_pool_that_is_its_target(self):
        """All points coincide, pairwise or at one place: weights stay, without division by zero."""
        for pool in (rows([("a", "a")]), drawn_rows(5)):
            np.testing.assert_allclose(weights(LossVal(Drawn(), epochs=3, device="cpu"), pool, pool), 1, atol=0.05)

    def test_equal_samples_have_equal_weights(self):
        pool, target = rows([("a", "b"), ("c", "d"), ("a", "b")]), drawn_rows(4)
        found = weights(LossVal(Drawn(), epochs=5, device="cpu"), pool, target)
        assert found[0] == found[2] != found[1]
        alone = weights(LossVal(Drawn(), epochs=5, device="cpu"), pool.select([0, 1]), target)
        np.testing.assert_array_equal(found[:2], alone)


class TestInvariances:
    @settings(max_examples=10, deadline=None)
    @given(st.permutations(range(9)), st.permutations(range(5)), st.integers(1, 9))
    def test_the_order_of_the_rows_changes_no_byte(self, order, target_order, batch):
        pool, target = drawn_rows(9), drawn_rows(5, start=100)
        options = {"epochs": 3, "rows": batch, "device": "cpu"}
        expected = weights(LossVal(Drawn(), **options), pool, target)
        found = weights(LossVal(Drawn(), **options), pool.select(order), target.select(target_order))
        np.testing.assert_array_equal(found, expected[order])

    @settings(max_examples=10, deadline=None)
    @given(st.integers(1, 4), st.integers(2, 4), st.integers(0, 1000))
    def test_repeating_the_target_changes_nothing(self, m, times, start):
        pool, target = drawn_rows(8, start=start), drawn_rows(m, start=5000)
        options = {"epochs": 3, "device": "cpu"}
        once = weights(LossVal(Drawn(), **options), pool, target)
        several = weights(LossVal(Drawn(), **options), pool, target.select([*range(m)] * times))
        np.testing.assert_allclose(several, once, atol=1e-3)


class TestDetection:
    FAMILIES = ("chain_sum", "caesar_cipher", "spell_backward", "word_sorting", "leg_counting", "basic_arithmetic")

    def test_wrong_responses_score_low(self, minilm):
        pool, wrong = with_wrong_responses(pairs_of(*self.FAMILIES, size=25, seed=1))
        target = rows(pairs_of(*self.FAMILIES, size=5, seed=2))
        assert auc(weights(LossVal(minilm, device="cpu"), pool, target), wrong) > 0.7

    def test_wrong_responses_score_low_on_p3(self, minilm, shared_data):
        with gzip.open(shared_data / "p3_pool.jsonl.gz", "rt", encoding="utf-8") as handle:
            pairs = [(row["prompt"], row["response"]) for row in map(json.loads, handle)]
        pairs = [pair for pair in pairs if len(pair[0]) < 300][::40][:110]
        pool, wrong = with_wrong_responses(pairs[:80])
        assert auc(weights(LossVal(minilm, device="cpu"), pool, rows(pairs[80:])), wrong) > 0.7

    def test_the_target_s_family_scores_high(self, minilm):
        pool = rows(pairs_of("chain_sum", "spell_backward", size=12, seed=1))
        scores = [
            weights(LossVal(minilm, device="cpu"), pool, rows(pairs_of(name, size=6, seed=2)))
            for name in ("chain_sum", "spell_backward")
        ]
        first = np.arange(len(pool)) < 12
        assert auc(scores[0], ~first) > auc(scores[1], ~first)


class TestFolder:
    @pytest.fixture
    def sides(self) -> tuple[Dataset, Dataset]:
        return drawn_rows(300), drawn_rows(5, start=1000)

    def test_a_killed_run_ends_with_the_same_bytes(self, sides, tmp_path, monkeypatch):
        options = {"epochs": 3, "device": "cpu"}
        expected = weights(LossVal(Drawn(), **options), *sides, tmp_path / "whole")
        with monkeypatch.context() as patch:
            patch.setattr(LossVal, "_learn", lambda *points: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                LossVal(Drawn(), **options).prepare(*sides, tmp_path / "killed")
        (tmp_path / "killed" / "lossval-000001.safetensors").unlink()  # as if killed before it was written
        encoder = Drawn()
        np.testing.assert_array_equal(weights(LossVal(encoder, **options), *sides, tmp_path / "killed"), expected)
        assert encoder.asked == 2 * SHARD  # the other shards were read
        whole, killed = (
            {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "killed")
        )
        assert whole == killed
        assert {name.rpartition("-")[0] for name in whole} == {"lossval", "lossval-weights"}


class TestErrors:
    @pytest.mark.parametrize("empty", ["pool", "target"])
    def test_one_side_is_empty(self, empty):
        sides = {"pool": drawn_rows(3), "target": drawn_rows(2, start=100)}
        sides[empty] = sides[empty].select([])
        function = prepared(LossVal(Drawn(), device="cpu"), *sides.values())
        assert function(*sides.values()).shape == (len(sides["pool"]), len(sides["target"]))

    def test_an_embedding_that_is_not_finite(self, monkeypatch):
        monkeypatch.setattr(Drawn, "encode", lambda self, texts, **options: np.full((len(texts), 4), np.nan))
        with pytest.raises(DataError, match=r"the embedding of 'prompt .* is not finite"):
            LossVal(Drawn()).prepare(drawn_rows(2), drawn_rows(1))

    def test_a_missing_library(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "geomloss", None)
        with pytest.raises(DependencyError, match="lossval needs the package geomloss: pip install geomloss"):
            LossVal(Drawn(), device="cpu").prepare(drawn_rows(2), drawn_rows(1))


def test_weights_are_not_negative(small_encoder):
    rng = np.random.default_rng(0)
    points = rng.standard_normal((20, 2 * 8)).astype(np.float32)
    weights = LossVal(small_encoder, learning_rate=0.05)._learn(points[:, None], points[:5, None])
    assert weights.min() >= 0
    assert np.ptp(weights) > 0
