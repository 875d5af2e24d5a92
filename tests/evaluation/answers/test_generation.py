"""Greedy answers against one item at a time without a cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from builders import SMALL, WITH_PREFIX_CACHE, WITHOUT, make_model, token_ids
from nncift.evaluation.answers import generation
from nncift.evaluation.answers.generation import answer, stop_tokens
from nncift.models.language_model import LanguageModel

LENGTHS = (1, 5, 9, 17, 30, 31)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    found = AutoTokenizer.from_pretrained(tiny_model)
    found.eos_token = None
    found.chat_template = None
    return found


def slow(model: LanguageModel, prompt: list[int], reference: list[int], steps: int) -> tuple[list[int], float]:
    """One prompt, read again for each token."""
    ids, stops = list(prompt), stop_tokens(model)
    with torch.inference_mode():
        while len(ids) < len(prompt) + steps and not (len(ids) > len(prompt) and ids[-1] in stops):
            ids.append(int(model.model(torch.tensor([ids])).logits[0, -1].argmax()))
        logits = model.model(torch.tensor([prompt + reference])).logits[0, len(prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(reference))
    return ids[len(prompt) :], float(loss)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma2", "GPT2", "Bloom", "OPT", "Qwen3", "Mamba"])
def test_batches_with_a_cache_equal_one_prompt_at_a_time(name, tokenizer, monkeypatch):
    model = LanguageModel(make_model(name, (WITH_PREFIX_CACHE | WITHOUT)[name]), tokenizer, name=name, max_length=64)
    prompts, references = token_ids(*LENGTHS), token_ids(3, 1, 4, 2, 5, 3, seed=1)
    expected = [slow(model, *both, 8) for both in zip(prompts, references, strict=True)]
    monkeypatch.setattr(generation._Ends, "text", lambda self, ids: ids)  # token ids, whatever they spell
    for batch_size in (1, 4, 32):
        found = answer(model, prompts, references, max_new_tokens=8, batch_size=batch_size)
        assert [one.text for one in found] == [ids for ids, _ in expected]
        np.testing.assert_allclose([one.loss for one in found], [loss for _, loss in expected], rtol=1e-4)
    limits = [8, 0, 3, 1, 8, 5]
    found = answer(model, prompts, references, max_new_tokens=limits)
    assert [one.text for one in found] == [ids[:most] for (ids, _), most in zip(expected, limits, strict=True)]


def test_answers_end_at_their_end_token_and_with_the_context(tokenizer, monkeypatch):
    model = LanguageModel(make_model("Llama", SMALL), tokenizer, max_length=34)
    prompts, references = token_ids(*LENGTHS), token_ids(*[2] * 6, seed=1)
    monkeypatch.setattr(generation._Ends, "text", lambda self, ids: ids)
    free = [one.text for one in answer(model, prompts, references, max_new_tokens=8)]
    assert [len(ids) for ids in free] == [8, 8, 8, 8, 4, 3]
    model.model.generation_config.eos_token_id = [free[1][2], free[2][4]]
    stopped = [one.text for one in answer(model, prompts, references, max_new_tokens=8)]
    for ids, found in zip(free, stopped, strict=True):
        ends = [k for k, token in enumerate(ids) if token in (free[1][2], free[2][4])]
        assert found == (ids[: ends[0] + 1] if ends else ids)
    assert len(stopped[1]) <= 3


def test_a_batch_that_does_not_fit_is_halved(tokenizer, monkeypatch):
    model = LanguageModel(make_model("Llama", SMALL), tokenizer, max_length=64)
    prompts = token_ids(*LENGTHS)
    expected = answer(model, prompts, max_new_tokens=4)
    read = generation._Asked.read.__func__

    def small(cls, model, prompts):
        if len(prompts) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return read(cls, model, prompts)

    monkeypatch.setattr(generation._Asked, "read", classmethod(small))
    assert [one.text for one in answer(model, prompts, max_new_tokens=4)] == [one.text for one in expected]
    assert model.oom_splits == [6, 3]


def test_tokens_that_end_an_answer(tiny, tokenizer):
    assert stop_tokens(tiny) >= set(tiny.encode(["<|im_end|>"])[0])
    plain = LanguageModel(make_model("Llama", {**SMALL, "eos_token_id": None}), tokenizer)
    plain.model.generation_config.eos_token_id = None
    assert stop_tokens(plain) == frozenset()


def test_plain_answers_end_where_the_next_request_begins(tiny):
    ends = generation._Ends(tiny, frozenset(), generation._NEXT_REQUEST)
    ids = tiny.encode([" Forty-two.\n\nRequest:\nand more"])[0]
    complete = [k for k in range(1, len(ids) + 1) if ends.ended(ids[:k], 1000)]
    assert 0 < complete[0] < len(ids)
    assert ends.text(ids[: complete[0]]) == "Forty-two."
