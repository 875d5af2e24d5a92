"""Probabilities against full forward passes of many architectures, running out of memory, chats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders import WITH_PREFIX_CACHE, WITHOUT, make_model, token_ids
from nncift.errors import ModelError
from nncift.models.language_model import LanguageModel
from references import token_probabilities


def close(found, expected, **tolerance) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


class TestProbabilities:
    @pytest.mark.parametrize("architecture", [*WITH_PREFIX_CACHE, *WITHOUT])
    @pytest.mark.parametrize("prefix_length", [0, 23])
    def test_equal_full_forward_passes(self, architecture, prefix_length, tiny):
        model = make_model(architecture, {**WITH_PREFIX_CACHE, **WITHOUT}[architecture])
        language_model = LanguageModel(model.train(), tiny.tokenizer)  # evaluation mode turns dropout off
        assert language_model.shares_prefix == (architecture in WITH_PREFIX_CACHE)
        (prefix,) = token_ids(prefix_length, seed=1)
        queries, responses = token_ids(3, 30, 1, 17, 9, seed=2), token_ids(4, 1, 25, 6, 2, seed=3)
        found = language_model.response_probabilities(language_model.prefix(prefix), queries, responses, batch_size=3)
        expected = [token_probabilities(model, prefix + q, r) for q, r in zip(queries, responses, strict=True)]
        close(map(np.log, found), map(np.log, expected), atol=2e-3)

    @pytest.mark.parametrize("shares_prefix", [True, False])
    def test_tokens_are_counted_without_padding(self, fresh, shares_prefix):
        fresh.shares_prefix = shares_prefix
        (prefix,), queries, responses = token_ids(11), token_ids(5, 20, 1), token_ids(3, 1, 9)
        fresh.response_probabilities(fresh.prefix(prefix), queries, responses)
        once = len(prefix) + sum(len(q) + len(r) - 1 for q, r in zip(queries, responses, strict=True))
        assert fresh.forward_tokens == once + (0 if shares_prefix else 2 * len(prefix))

    def test_do_not_depend_on_the_batch_and_leave_the_prefix_unchanged(self, tiny):
        queries, responses = token_ids(*range(1, 31, 3)), token_ids(*range(10, 0, -1))
        prefix = tiny.prefix(token_ids(9)[0])
        whole = tiny.response_probabilities(prefix, queries, responses, batch_size=100)
        for batch_size, tolerance in ((1, 1e-6), (2, 1e-6), (7, 1e-6), (100, 0)):
            found = tiny.response_probabilities(prefix, queries, responses, batch_size=batch_size)
            close(found, whole, rtol=0, atol=tolerance)

    def test_the_output_layer_gets_response_positions_alone(self, fresh):
        seen = []
        fresh.model.get_output_embeddings().register_forward_hook(lambda module, _, out: seen.append(out.shape[:2]))
        fresh.response_probabilities(fresh.prefix(token_ids(50)[0]), token_ids(40, 40), token_ids(3, 2))
        assert seen == [(1, 1), (1, 5)]  # one position for the prefix: every forward pass ends in the output layer

    @pytest.mark.parametrize(("dtype", "most"), [("8bit", 0.05), ("4bit", 0.2)])
    def test_quantized_weights_stay_near_the_real_model(self, smollm2, smollm2_model, dtype, most):
        models = smollm2_model, LanguageModel.load(smollm2, dtype=dtype, device="cpu")
        full, small = (model.model.get_memory_footprint() for model in models)
        assert small < 0.6 * full
        texts = ["Answer briefly.", "The capital of France is", " Paris, a city on the Seine."]
        before, query, response = smollm2_model.encode(texts)
        expected, found = (
            model.response_probabilities(model.prefix(before), [query], [response])[0] for model in models
        )
        assert 0 < np.abs(expected - found).mean() < most

    def test_half_precision_is_close(self, tiny_model, tiny):
        half = LanguageModel.load(tiny_model, dtype="bfloat16", device="cpu")
        assert half.dtype == torch.bfloat16
        queries, responses = token_ids(5, 20), token_ids(3, 4)
        precise, rough = (
            model.response_probabilities(model.prefix([7, 8, 9]), queries, responses) for model in (tiny, half)
        )
        assert {values.dtype for values in rough} == {np.dtype(np.float32)}
        close(map(np.log, rough), map(np.log, precise), atol=0.05)

    def test_prefixes_are_read_again_by_a_model_that_drops_the_cache(self, tiny, monkeypatch):
        forward = tiny.model.forward

        def forgetful(input_ids, cache=None, use_cache=None, **options):
            return forward(input_ids, use_cache=False, **options)

        monkeypatch.setattr(tiny.model, "forward", forgetful)
        model = LanguageModel(tiny.model, tiny.tokenizer)
        assert not model.shares_prefix
        prefix, query, response = token_ids(11, 5, 3)
        (found,) = model.response_probabilities(model.prefix(prefix), [query], [response])
        np.testing.assert_allclose(found, token_probabilities(tiny.model, prefix + query, response), rtol=1e-4)

    @pytest.mark.parametrize(
        ("query", "response", "error", "message"),
        [
            ([], [5], ValueError, "at least one token"),
            ([5], [], ValueError, "at least one token"),
            ([50_000], [5], ModelError, "gives token 50000"),
        ],
    )
    def test_of_no_token_or_one_out_of_vocabulary_are_an_error(self, tiny, query, response, error, message):
        with pytest.raises(error, match=message):
            tiny.response_probabilities(tiny.prefix([3]), [query], [response])


class TestMemory:
    @pytest.fixture
    def most(self, fresh, monkeypatch) -> list[int]:
        """The largest batch that fits into memory, [rows], to change."""
        forward, most = fresh.model.forward, [100]

        def limited(*args, input_ids, **options):
            if len(input_ids) > most[0]:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return forward(*args, input_ids=input_ids, **options)

        monkeypatch.setattr(fresh.model, "forward", limited)
        return most

    def test_running_out_halves_the_batch_and_counts_finished_passes_alone(self, fresh, most):
        queries, responses = token_ids(*[12] * 16), token_ids(*[3] * 16)
        prefix = fresh.prefix([7, 8, 9])
        expected, tokens = fresh.response_probabilities(prefix, queries, responses), fresh.forward_tokens
        most[0] = 4
        close(fresh.response_probabilities(prefix, queries, responses), expected, atol=1e-6)
        assert fresh.oom_splits == [16, 8]
        assert fresh.forward_tokens - tokens == tokens - 3

    def test_one_sequence_that_does_not_fit_is_an_error(self, fresh, most):
        prefix, most[0] = fresh.prefix([7, 8, 9]), 0
        for tokens, use in (
            (9, lambda: fresh.response_probabilities(prefix, token_ids(4), token_ids(3))),
            (5, lambda: fresh.prefix(token_ids(5)[0])),
            (12, lambda: LanguageModel(fresh.model, fresh.tokenizer)),
        ):
            with pytest.raises(ModelError, match=f"one sequence of {tokens} tokens: lower `max_length`"):
                use()


def test_a_chat_is_rendered_with_the_generation_prompt_or_refused_by_the_template(fresh):
    text = fresh.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    fresh.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ModelError, match=r'refuses the messages \(roles must alternate\): set `wording` to "plain"'):
        fresh.chat([{"role": "user", "content": "Hi"}])
