"""The sketch as a block of features: equal to the influence function's vectors, from the pass of the other blocks."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.resources import files

import numpy as np
import pytest

from builders import WITH_PREFIX_CACHE, chat, make_model, named, samples
from nncift.errors import ModelError
from nncift.features.gradient_sketch import GradientSketchFeatures, whitening_texts
from nncift.features.language_model import LANGUAGE_BLOCKS, LanguageModelFeatures
from nncift.features.sources import SKETCH, FeatureReader, FeatureSources, SketchSettings
from nncift.influence.gradient_sketch import GradientSketch
from nncift.models.language_model import LanguageModel
from nncift.models.spec import DEFAULT_MODEL, EncoderSpec, ModelSpec
from nncift.models.text.examples import encode_examples
from nncift.training import token_products

TEXTS = [
    ("What is the capital of France?", "Paris"),
    ("Compute 12 + 30.", "The sum is 42, as twelve and thirty are forty-two."),
    ("Say nothing", ""),
]


@pytest.fixture(scope="module")
def rows():
    turns = ("one", "two three", "four", "five six seven")
    some = [{"id": str(n), "prompt": p, "response": r} for n, (p, r) in enumerate(TEXTS)]
    return samples([chat("a", *turns), *some]).add_column("turns", [[1, 3], None, None, None])


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2"])
def test_equals_the_influence_functions_vectors_whitened_over_the_texts(tiny, rows, architecture):
    options = WITH_PREFIX_CACHE[architecture] | {"vocab_size": len(tiny.tokenizer)}
    model = LanguageModel(make_model(architecture, options), tiny.tokenizer, name=architecture)
    sketch = SketchSettings(dimension=128, seed=3, damping=0.5, states=0.3)
    found = GradientSketchFeatures(ModelSpec(model), sketch)(rows)
    function = GradientSketch(model, **asdict(sketch))
    function.prepare(whitening_texts(), rows)
    assert (found[SKETCH].dtype, found[SKETCH].shape) == (np.float32, (4, 128 + 32))
    np.testing.assert_allclose(found[SKETCH], function.vectors(rows), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(found[SKETCH], axis=1), 1, rtol=1e-5)


def test_one_pass_gives_the_other_blocks_too(tiny, rows):
    source, examples = GradientSketchFeatures(ModelSpec(tiny)), encode_examples(tiny, rows)
    alone = LanguageModelFeatures(ModelSpec(tiny))(rows)
    first = source(rows)  # whitens, once
    before = tiny.forward_tokens
    found = source(rows)
    assert tiny.forward_tokens - before == sum(len(example.ids) for example in examples)
    assert [*found] == [*LANGUAGE_BLOCKS, SKETCH, "truncated"]
    for name, block in alone.items():
        np.testing.assert_allclose(found[name], block, rtol=1e-4, atol=1e-5)
    for name, block in first.items():
        np.testing.assert_array_equal(found[name], block)
    assert source(rows.select([]))[SKETCH].shape == (0, found[SKETCH].shape[1])


@pytest.mark.parametrize("together", [1, 2, 3, 4])
def test_rows_depend_on_their_sample_alone(tiny, rows, monkeypatch, together):
    one, other = (GradientSketchFeatures(ModelSpec(tiny), SketchSettings(64)) for _ in range(2))
    alone = one(rows.select([2]))[SKETCH][0]
    monkeypatch.setitem(token_products._ENTRIES, "cpu", together * 32**2)
    np.testing.assert_allclose(alone, other(rows)[SKETCH][2], atol=1e-5)


def test_a_response_longer_than_the_context_is_cut(tiny_model):
    model = LanguageModel.load(tiny_model, device="cpu", max_length=24)
    found = GradientSketchFeatures(ModelSpec(model))(named([("Count", "one two three " * 40), ("Add", "two")], "x"))
    assert found["truncated"].tolist() == [True, False]
    assert np.isfinite(found[SKETCH]).all()


def test_the_whitening_texts_are_what_networks_and_caches_were_made_with():
    content = (files("nncift.features") / "whitening_texts.json").read_bytes()
    assert hashlib.sha256(content).hexdigest() == "799e9f4b6cf1a95e8c36cd440bf42768391aa3ba4285d6d78ff5e4cce54c6f55"
    assert len(set(whitening_texts()["prompt"])) == 48


def test_it_is_found_in_the_cache_by_its_settings(tiny_model, tiny):
    spec = ModelSpec(tiny_model, device="cpu")
    plain, sketch = LanguageModelFeatures(spec).cache_settings(), GradientSketchFeatures(spec).cache_settings()
    assert plain is not None
    assert sketch == plain | {"sketch": {"dimension": 4096, "seed": 0, "damping": 1.0, "states": 0.2}}
    assert sketch != GradientSketchFeatures(spec, SketchSettings(seed=1)).cache_settings()
    assert GradientSketchFeatures(ModelSpec(tiny)).cache_settings() is None
    assert GradientSketchFeatures(spec).settings() != GradientSketchFeatures(spec, SketchSettings(8)).settings()


def test_a_network_stores_the_settings_and_new_data_take_them(tiny_model):
    asked = FeatureSources.named(["sentence", "lm", "gradient-sketch"], encoder="minilm", model=tiny_model)
    assert asked.gradient_sketch == SketchSettings()
    assert str(asked) == f"sentence (minilm), lm ({tiny_model}), gradient-sketch"
    assert asked.names("target") == {"sentence": "target", "lm": "target.lm"}  # one pass, one file
    fitted = FeatureSources("minilm", None, tiny_model, SketchSettings(16, seed=5))
    stored = FeatureSources.described({"features": json.loads(json.dumps(fitted.describe()))})
    assert stored == fitted
    for given in (FeatureSources("minilm"), asked):
        assert given.for_network("n", stored, model=tiny_model) == fitted
    assert asked.for_network("n", stored, model=tiny_model, explicit=True) == fitted
    source = FeatureReader(fitted, EncoderSpec(), ModelSpec()).models["lm"]
    assert isinstance(source, GradientSketchFeatures)
    assert source.sketch_settings == SketchSettings(16, seed=5)
    assert "gradient_sketch" not in FeatureSources("minilm").describe()
    old = FeatureSources.described({"features": {"encoder": "minilm", "own": None, "language_model": DEFAULT_MODEL}})
    assert asked.for_network("pretrained", old, model="embedded").gradient_sketch is None
    with pytest.raises(ModelError, match="needs the features"):
        asked.for_network("n", old, model=DEFAULT_MODEL, explicit=True)
