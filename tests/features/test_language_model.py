"""The language model's own features of a sample, beside one plain pass of transformers for each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from nncift.errors import DataError
from nncift.features import language_model as language_features_module
from nncift.features.features import feature_facts
from nncift.features.language_model import SCALARS, feature_blocks, language_features, read_language_features
from nncift.models.causal_model import CausalModel
from nncift.models.examples import encode_examples
from nncift.models.language_model import LanguageModel

TEXTS = [
    ("What is the capital of France?", "Paris"),
    ("Sort the numbers 3, 1 and 2, and say which of them is the largest of all.", "1, 2, 3. The largest is 3."),
    ("Say nothing", ""),
    ("Repeat: one two three four five six seven eight nine ten", "one two three four five six seven eight nine ten"),
]


def samples() -> Dataset:
    return Dataset.from_dict(
        {
            "id": [str(k) for k in range(len(TEXTS))],
            "prompt": [prompt for prompt, _ in TEXTS],
            "response": [response for _, response in TEXTS],
        }
    )


def plain_features(model: LanguageModel, ids: list[int], start: int) -> np.ndarray:
    """One sample by itself: the hidden states that transformers gives, softmax over all, means by slicing."""
    with torch.no_grad():
        out = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    states = out.hidden_states[model.model.config.num_hidden_layers // 2][0]
    end = len(ids) - 1 if len(ids) - 1 > start else len(ids)
    p = out.logits[0].double().softmax(dim=1)
    right = torch.stack([p[t - 1, ids[t]] for t in range(start, len(ids))])
    scalars = [
        -right.log().mean(),
        (1 - right).square().mean().sqrt(),
        right[0].log(),
        right[-1].log(),
        np.log(start),
        np.log(len(ids) - start),
    ]
    return np.concatenate([states[:start].mean(0), states[start:end].mean(0), np.array([float(s) for s in scalars])])


@pytest.fixture(scope="module", params=["smollm2", "tiny_model"])
def model(request) -> LanguageModel:
    return LanguageModel.load(request.getfixturevalue(request.param), device="cpu")


def test_equals_one_plain_pass_for_each_sample(model):
    examples = encode_examples(model, samples())
    found = read_language_features(model, examples)
    expected = np.stack([plain_features(model, example.ids, example.start) for example in examples])
    assert found.shape == (len(TEXTS), sum(feature_blocks(model).values()))
    assert found.dtype == np.float32
    assert found.shape[1] == 2 * model.model.config.hidden_size + len(SCALARS)
    scale = np.abs(expected).max(axis=0) + 1e-3
    np.testing.assert_allclose(found / scale, expected / scale, atol=2e-4)


def test_batches_change_nothing_but_rounding(model):
    examples = encode_examples(model, samples())
    together, alone = (read_language_features(model, examples, batch_size=size) for size in (4, 1))
    np.testing.assert_allclose(together, alone, rtol=2e-3, atol=2e-3)


def test_each_sample_is_read_once(model):
    examples = encode_examples(model, samples())
    before = model.forward_tokens
    read_language_features(model, examples)
    assert model.forward_tokens - before == sum(len(example.ids) for example in examples)


def test_shards_come_back_from_the_folder_without_the_model(model, tmp_path):
    found = language_features(samples(), model, folder=tmp_path, name="pool.lm")
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, language_features(samples(), lambda: model))
    facts = feature_facts(tmp_path, "pool.lm")
    assert (facts["encoder"], facts["blocks"]) == (model.name, feature_blocks(model))

    def load() -> LanguageModel:
        raise AssertionError("the features are there")

    np.testing.assert_array_equal(language_features(samples(), load, folder=tmp_path, name="pool.lm"), found)


def test_features_that_are_not_finite_are_a_clear_error(model, tmp_path, monkeypatch):
    read = language_features_module.read_language_features

    def overflowed(*arguments, **options):
        features = read(*arguments, **options)
        features[2, 5] = np.inf
        return features

    monkeypatch.setattr(language_features_module, "read_language_features", overflowed)
    with pytest.raises(DataError, match="not finite for '2'"):
        language_features(samples(), model, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_samples(model):
    assert read_language_features(model, []).shape == (0, sum(feature_blocks(model).values()))


def test_memory_that_runs_out_halves_the_batch(model, monkeypatch):
    examples = encode_examples(model, samples())
    whole = read_language_features(model, examples)
    logits = CausalModel.logits

    def limited(self, ids, *rest):
        if len(ids) > 1:
            raise torch.OutOfMemoryError("memory ran out")
        return logits(self, ids, *rest)

    monkeypatch.setattr(CausalModel, "logits", limited)
    monkeypatch.setattr(model, "_most_rows", None)
    np.testing.assert_allclose(read_language_features(model, examples), whole, rtol=2e-3, atol=2e-3)


def test_a_response_longer_than_the_context_is_cut_and_counted(tiny_model):
    model = LanguageModel.load(tiny_model, device="cpu", max_length=24)
    rows = Dataset.from_dict(
        {"id": ["long", "short"], "prompt": ["Count", "Add"], "response": ["one two three " * 40, "two"]}
    )
    with pytest.raises(DataError, match="the response of 'long' takes"):
        encode_examples(model, rows)
    long, short = encode_examples(model, rows, cut_responses=True)
    assert (len(long.ids), long.cut, short.cut) == (24, True, False)
    assert long.start >= 1
    assert np.isfinite(language_features(rows, model)).all()
