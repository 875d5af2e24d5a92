"""DELIFT against a slow reference, and its cache."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from datasets import Dataset

import references
from builders import chat, dialogues, families, named, samples
from nncift.errors import DataError, RunError
from nncift.influence.delift import Delift
from nncift.models.language_model import LanguageModel
from nncift.models.text.prompts import PlainPrompts, PromptTemplate


@pytest.fixture(scope="module")
def embedded_pairs() -> tuple[Dataset, Dataset]:
    """Eight pool samples and eight targets; the first two targets are duplicates of pool samples."""
    rows = families("chain_sum", "simple_equations", size=5, seed=3)
    tasks, chats = list(zip(rows["prompt"], rows["response"], strict=True)), dialogues()
    pool = [*tasks[:4], *chats[:4]]
    return named(pool, "pool"), named([pool[1], pool[5], *tasks[4:8], *chats[4:6]], "target")


@pytest.fixture(scope="module")
def some_pairs(embedded_pairs) -> tuple[Dataset, ...]:
    return tuple(rows.select([1, 5]) for rows in embedded_pairs)


@pytest.fixture(scope="module")
def shared_pairs(shared_data) -> tuple[Dataset, Dataset]:
    """Two short pool samples of P3, and a target of P3 and one of GSM8K."""
    with gzip.open(shared_data / "p3_pool.jsonl.gz", "rt", encoding="utf-8") as handle:
        p3 = [(row["prompt"], row["response"]) for row in map(json.loads, handle)]
    with gzip.open(shared_data / "gsm8k_test.jsonl.gz", "rt", encoding="utf-8") as handle:
        gsm8k = [(row["question"], row["answer"]) for row in map(json.loads, handle)]
    p3 = [pair for pair in p3 if len("".join(pair)) < 80]
    gsm8k = [pair for pair in gsm8k if len("".join(pair)) < 190]
    return named(p3[::40][:2], "p3-"), named([p3[20], gsm8k[0]], "t-")


class TestDelift:
    @pytest.mark.parametrize(
        ("pairs", "wording"), [("some_pairs", "plain"), ("shared_pairs", "plain"), ("some_pairs", "chat")]
    )
    def test_equals_the_reference(self, request, smollm2_model, pairs, wording):
        pool, target = request.getfixturevalue(pairs)
        model, tokenizer = smollm2_model.model, smollm2_model.tokenizer

        def context(example, query):
            if wording == "chat":
                return references.chat_context(tokenizer, example, query)
            return references.plain_context(tokenizer, PromptTemplate(), example, query)

        expected = references.delift(model, tokenizer, context, pool.to_list(), target.to_list())
        np.testing.assert_allclose(Delift(smollm2_model, wording=wording)(pool, target), expected, atol=1e-4)
        assert np.abs(expected).max() > 0.01  # not trivially zero

    def test_a_duplicate_of_the_target_has_the_highest_influence(self, smollm2_model, embedded_pairs):
        pool, target = embedded_pairs
        exact = Delift(smollm2_model)(pool.select(range(6)), target.select([0, 1]))
        assert exact[:, 0].argmax() == 1
        assert exact[:, 1].argmax() == 5
        assert exact[1, 0] > 0
        assert exact[5, 1] > 0

    def test_exponential(self, tiny, embedded_pairs):
        plain, exponential = (Delift(tiny, exponential=flag)(*embedded_pairs) for flag in (False, True))
        np.testing.assert_array_equal(exponential, np.exp(plain))

    def test_the_distance_is_0_for_certain_and_1_for_impossible_responses(self, tiny):
        function = Delift(tiny)
        (target,) = PlainPrompts(tiny, PromptTemplate()).render(named([("a", "b c")], "x"))
        queries = list(target.queries)
        for certainty, distance in ((1.0, 0.0), (0.0, 1.0)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    tiny,
                    "response_probabilities",
                    lambda prefix, queries, responses, p=certainty, **options: [
                        np.full(len(response), p, np.float32) for response in responses
                    ],
                )
                assert function._distances(None, [queries[0].alone], queries) == [distance]


class TestPrepare:
    def test_an_earlier_prepare_changes_no_byte(self, tiny, embedded_pairs, tmp_path):
        pool, target = embedded_pairs
        fresh, measured = Delift(tiny), Delift(tiny)
        measured.prepare(pool.select([0]), target.select([4, 1]))  # as when a rate is measured first
        costs = []
        for function, folder in ((fresh, tmp_path / "fresh"), (measured, tmp_path / "measured")):
            before = tiny.forward_tokens
            function.prepare(pool, target, folder)
            costs.append(tiny.forward_tokens - before)
        assert costs[0] == costs[1]  # in the same batches, so that rounding is the same
        first, second = (tmp_path / name / "delift-baseline.npy" for name in ("fresh", "measured"))
        assert first.read_bytes() == second.read_bytes()
        np.testing.assert_array_equal(fresh(pool, target), measured(pool, target))

    def test_cached_distances_are_specific_to_the_samples(self, tiny, embedded_pairs, tmp_path):
        pool, target = embedded_pairs
        Delift(tiny).prepare(pool, target, tmp_path)
        before = tiny.forward_tokens
        Delift(tiny).prepare(pool, target.select([3, 1]), tmp_path)
        assert tiny.forward_tokens == before
        Delift(tiny).prepare(pool, pool, tmp_path)
        assert tiny.forward_tokens > before

    def test_a_damaged_file_is_refused(self, tiny, embedded_pairs, tmp_path):
        (tmp_path / "delift-baseline.npy").write_bytes(b"\x93NUMPY")
        with pytest.raises(RunError, match="delift-baseline"):
            Delift(tiny).prepare(*embedded_pairs, tmp_path)
        np.save(tmp_path / "delift-baseline.npy", np.zeros(3))
        Delift(tiny).prepare(*embedded_pairs, tmp_path)
        assert len(np.load(tmp_path / "delift-baseline.npy")) == 8

    @pytest.mark.parametrize("wording", ["plain", "chat"])
    @pytest.mark.parametrize("shares_prefix", [True, False])
    def test_tokens_are_those_of_all_blocks(self, tiny_model, embedded_pairs, wording, shares_prefix):
        pool, target = embedded_pairs
        function = Delift(tiny_model, wording=wording)
        assert function.forward_tokens == 0
        function.language_model.shares_prefix = shares_prefix
        expected = function.tokens(pool, target)
        assert function.forward_tokens == 0
        function.prepare(pool, target)
        for start in range(0, 8, 3):
            function(pool.select(range(start, min(start + 3, 8))), target)
        assert function.forward_tokens == expected
        assert function.tokens(pool, target.select([])) == 0


class TestPrompts:
    """The prompts of every `PromptedFunction`, shown on DELIFT."""

    CHATS = samples([chat("a", "one", "two"), chat("b", "one", "two", "three", "four")])
    PLAIN = named([("five", "six"), ("seven", "eight")], "plain")

    @pytest.fixture
    def short(self, tiny_model) -> LanguageModel:
        return LanguageModel.load(tiny_model, device="cpu", max_length=128)

    @pytest.mark.parametrize(
        ("pool", "target", "style"), [(PLAIN, PLAIN, "plain"), (CHATS, PLAIN, "chat"), (PLAIN, CHATS, "chat")]
    )
    def test_auto_is_chat_if_there_are_chats_and_a_template(self, tiny, tiny_model, pool, target, style):
        np.testing.assert_array_equal(Delift(tiny)(pool, target), Delift(tiny, wording=style)(pool, target))
        without_template = LanguageModel.load(tiny_model, device="cpu")
        without_template.tokenizer.chat_template = None
        np.testing.assert_array_equal(
            Delift(without_template)(pool, target), Delift(tiny, wording="plain")(pool, target)
        )

    @pytest.mark.parametrize("hook", ["check", "prepare"])
    def test_the_style_is_chosen_for_all_samples(self, tiny, hook):
        function = Delift(tiny)
        getattr(function, hook)(self.CHATS, self.PLAIN)
        expected = Delift(tiny, wording="chat")(self.PLAIN, self.PLAIN)
        np.testing.assert_array_equal(function(self.PLAIN, self.PLAIN), expected)

    def test_rows_without_a_messages_column(self, tiny):
        bare = self.PLAIN.remove_columns("messages")
        for wording in ("auto", "chat"):
            function = Delift(tiny, wording=wording)
            np.testing.assert_array_equal(function(bare, self.PLAIN), function(self.PLAIN, self.PLAIN))

    def test_truncated_samples_are_recorded_once(self, short):
        long = ("word " * 400, "right")
        function, pool = Delift(short), named([long, ("short", "right"), long], "x")
        function.prepare(pool, pool)
        function(pool, pool)
        assert function.cut_ids == {"x0", "x2"}

    @pytest.mark.parametrize("wording", ["plain", "chat"])
    def test_a_response_that_does_not_fit_is_an_error_before_any_pass(self, short, wording):
        pool = named([("fine", "fine"), ("why", "so " * 200)], "x")
        for blocks in ((pool, pool.select([0])), (pool.select([0]), pool)):
            function = Delift(short, wording=wording)
            for call in (function.prepare, function):
                with pytest.raises(DataError, match=r"sample 'x1': its response takes 20\d tokens .* at most \d+ fit"):
                    call(*blocks)
            assert function.forward_tokens == 0
