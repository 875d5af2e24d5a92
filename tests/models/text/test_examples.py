"""Samples in token ids: prompt templates, truncated prompts, and losses of each sample alone."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

import references
from nncift.errors import DataError
from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import encode_examples, response_losses

CHAT = '[{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]'


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """Plain prompts of different lengths, one with braces, and a chat."""
    rows = [{"id": str(n), "prompt": "word " * n, "response": f"{n}", "messages": None} for n in (1, 7, 20)]
    rows.append({"id": "braces", "prompt": "{prompt}", "response": "two", "messages": None})
    return Dataset.from_list([*rows, {"id": "chat", "prompt": "one", "response": "two", "messages": CHAT}])


def test_the_prompt_is_rendered_and_the_response_ends_the_text(tiny, rows):
    for example, row in zip(encode_examples(tiny, rows), rows, strict=True):
        plain = f"Request:\n{row['prompt']}\n\nResponse:\n"
        expected = tiny.chat([{"role": "user", "content": "one"}]) if row["messages"] else plain
        assert tiny.tokenizer.decode(example.ids[: example.start]) == expected
        assert example.ids[example.start :] == [*tiny.encode([row["response"]])[0], *tiny.end_ids]
        assert not example.cut
    assert encode_examples(tiny, rows.select([])) == []


def test_a_long_prompt_loses_its_start(tiny_model):
    short = LanguageModel.load(tiny_model, device="cpu", max_length=64)
    row = {"id": "long", "prompt": "early " * 100 + "late", "response": "yes"}
    (example,) = encode_examples(short, Dataset.from_list([row]))
    assert example.cut
    assert len(example.ids) == 64
    assert "late\n\nResponse:\n" in short.tokenizer.decode(example.ids[: example.start])
    with pytest.raises(DataError, match=r"sample 'long': its response takes 20\d tokens"):
        encode_examples(short, Dataset.from_list([{**row, "response": "so " * 200}]))


def test_losses_are_those_of_each_sample_alone(tiny, rows):
    examples = encode_examples(tiny, rows)
    expected = [float(references.response_loss(tiny.model, e.ids, e.start).detach()) for e in examples]
    np.testing.assert_allclose(response_losses(tiny, examples).detach(), expected, rtol=1e-5)
