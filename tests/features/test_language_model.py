"""The language model's own features of a sample, beside one plain pass of transformers for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders import chat, named, samples
from nncift.errors import DataError
from nncift.features.language_model import (
    LanguageModelFeatures,
    feature_blocks,
    middle_layer,
    pass_features,
    read_language_features,
)
from nncift.models.language_model import LanguageModel, response_positions
from nncift.models.spec import ModelSpec
from nncift.models.text.examples import encode_examples

TEXTS = [
    ("What is the capital of France?", "Paris"),
    ("Sort the numbers 3, 1 and 2, and say which of them is the largest of all.", "1, 2, 3. The largest is 3."),
    ("Say nothing", ""),
    ("Repeat: one two three four five six seven eight nine ten", "one two three four five six seven eight nine ten"),
]


def plain_features(model: LanguageModel, ids: list[int], start: int) -> np.ndarray:
    """One sample by itself: the hidden states that transformers gives, softmax over all, means by slicing."""
    with torch.no_grad():
        out = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    states = out.hidden_states[model.model.config.num_hidden_layers // 2][0]
    end = len(ids) - 1 if len(ids) - 1 > start else len(ids)
    p = out.logits[0].double().softmax(dim=1)
    right = torch.stack([p[t - 1, ids[t]] for t in range(start, len(ids))])
    losses = [-right.log().mean(), (1 - right).square().mean().sqrt(), right[0].log(), right[-1].log()]
    scalars = [*losses, np.log(start), np.log(len(right))]
    return np.concatenate([states[:start].mean(0), states[start:end].mean(0), np.array([float(s) for s in scalars])])


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", ["smollm2_model", "tiny"])
def test_equals_one_plain_pass_for_each_sample(name, batch_size, request):
    model = request.getfixturevalue(name)
    examples = encode_examples(model, named(TEXTS, "x"))
    before = model.forward_tokens
    found = read_language_features(model, examples, batch_size=batch_size)
    assert model.forward_tokens - before == sum(len(example.ids) for example in examples)  # each is read once
    expected = np.stack([plain_features(model, example.ids, example.start) for example in examples])
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (4, sum(feature_blocks(model).values()))
    scale = np.abs(expected).max(axis=0) + 1e-3
    np.testing.assert_allclose(found / scale, expected / scale, atol=2e-4)
    assert read_language_features(model, []).shape == (0, found.shape[1])


def test_states_after_a_sample_do_not_count(tiny):
    """Those of padding may be infinite in 16 bits."""
    examples = encode_examples(tiny, named(TEXTS, "x"))
    sequences = [example.ids for example in examples]
    rows, columns, _ = response_positions(sequences, [example.spans for example in examples])
    logits, states = tiny.logits_and_states(middle_layer(tiny), sequences, rows, columns)
    found = pass_features(tiny, examples, logits, states)
    padded = states.clone()
    for of_sample, ids in zip(padded, sequences, strict=True):
        of_sample[len(ids) :] = torch.inf
    assert torch.isinf(padded).any()
    np.testing.assert_array_equal(pass_features(tiny, examples, logits, padded), found)


def test_a_response_longer_than_the_context_is_cut_and_counted(tiny_model):
    model = LanguageModel.load(tiny_model, device="cpu", max_length=24)
    rows = named([("Count", "one two three " * 40), ("Add", "two")], "x")
    with pytest.raises(DataError, match="sample 'x0': its response takes"):
        encode_examples(model, rows)
    long, short = encode_examples(model, rows, cut_responses=True)
    assert (len(long.ids), long.cut, short.cut) == (24, True, False)
    assert long.start >= 1
    found = LanguageModelFeatures(ModelSpec(model))(rows)
    assert found.pop("truncated").tolist() == [True, False]
    assert [block.shape for block in found.values()] == [(2, width) for width in feature_blocks(model).values()]
    assert all(np.isfinite(block).all() for block in found.values())


def test_turns_are_averaged(tiny):
    texts = ("one", "two three", "four", "five six seven")
    rows = samples([chat("a", *texts)]).add_column("turns", [[1, 3]])
    (example,) = encode_examples(tiny, rows)
    (found,) = read_language_features(tiny, [example])
    parts = [plain_features(tiny, example.ids[:end], start) for start, end in example.spans]
    hidden = feature_blocks(tiny)["response states"]
    np.testing.assert_allclose(found[hidden:-2], np.mean(parts, axis=0)[hidden:-2], rtol=1e-4, atol=1e-5)
    lengths = [len(example.ids) - example.scored, example.scored]
    np.testing.assert_allclose(found[-2:], np.log(lengths), rtol=1e-6)
