"""Similarities of embeddings, hidden states and words against slow references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import references
from builders import WITH_PREFIX_CACHE, WITHOUT, make_model, named, prepared, token_ids
from nncift.errors import ConfigError
from nncift.influence.bm25 import BM25, words
from nncift.influence.embedding_similarity import EmbeddingSimilarity
from nncift.influence.representation_similarity import RepresentationSimilarity
from nncift.influence.response_similarity import ResponseSimilarity
from nncift.models.encoder import embed_texts, sample_texts
from nncift.models.hidden_states import layer_count, mean_states
from nncift.models.language_model import LanguageModel
from nncift.models.text.prompts import PromptTemplate

POOL = [
    ("What is the capital of France?", "Paris"),
    ("Compute 12 + 30.", "The sum is 42."),
    ("Name a fruit.", "An apple."),
]
TARGET = [("What is the capital of Spain?", "Madrid"), ("Compute 1 + 1.", "The sum is 2."), ("Hello", "Hi")]


@pytest.fixture(scope="module")
def block():
    return named(POOL, "x"), named([POOL[0], *TARGET], "t")


@pytest.fixture(params=["tiny", "smollm2_model"])
def model(request) -> LanguageModel:
    return request.getfixturevalue(request.param)


def parts(model, row) -> tuple[list[int], list[int]]:
    """Context and response of a sample, without the end token."""
    context = references.plain_context(model.tokenizer, PromptTemplate(), None, row)
    return context, model.tokenizer(row["response"])["input_ids"]


class TestHiddenStates:
    @pytest.mark.parametrize("architecture", [*WITH_PREFIX_CACHE, *WITHOUT])
    def test_equal_full_forward_passes(self, architecture, tiny):
        plain = make_model(architecture, {**WITH_PREFIX_CACHE, **WITHOUT}[architecture])
        model = LanguageModel(plain, tiny.tokenizer, name=architecture)
        (prefix,), sequences = token_ids(11), token_ids(3, 17, 9, 1, 6, seed=2)
        with torch.no_grad():
            outputs = [plain(input_ids=torch.tensor([ids]), output_hidden_states=True) for ids in sequences]
            last = [plain(input_ids=torch.tensor([prefix + ids])).logits[0, -1] for ids in sequences]
        weights = [np.arange(len(ids)) + 0.5 for ids in sequences]
        first = 1 if architecture == "Mamba" else 0  # its list of states has no embeddings
        for layer in (first, 1, None):
            found = mean_states(model, sequences, weights, layer=layer, batch_size=2)
            for output, weight, mean in zip(outputs, weights, found, strict=True):
                states = output.hidden_states[-1 if layer is None else layer - first][0].numpy()
                np.testing.assert_allclose(mean, weight @ states, rtol=1e-3, atol=1e-3)
        found = model.next_token_logits(model.prefix(prefix), sequences, [5, 290, 7], batch_size=2)
        np.testing.assert_allclose(found, [logits[[5, 290, 7]].numpy() for logits in last], rtol=1e-3, atol=1e-3)

    def test_the_forward_pass_stops_at_the_layer(self, tiny_model):
        model = LanguageModel.load(tiny_model, device="cpu")
        ran = []
        for number, layer in enumerate(model.model.model.layers):
            layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        model.model.get_output_embeddings().register_forward_hook(lambda *_: ran.append("head"))
        mean_states(model, token_ids(4), [np.ones(4)], layer=1)
        assert ran == [0]
        ran.clear()
        mean_states(model, token_ids(4), [np.ones(4)])
        assert ran == [0, 1]
        assert model.forward_tokens == 8

    def test_only_last_positions_go_through_the_output_layer(self, tiny_model):
        model = LanguageModel.load(tiny_model, device="cpu")
        seen = []
        model.model.get_output_embeddings().register_forward_hook(lambda _, inputs, out: seen.append(out.shape[:2]))
        model.next_token_logits(model.prefix(token_ids(50)[0]), token_ids(40, 39, 38), [5, 6])
        assert seen == [(1, 1), (1, 3)]  # one position of the prefix, one of each query

    def test_no_sequences(self, tiny):
        assert mean_states(tiny, [], []).shape == (0, 32)
        assert tiny.next_token_logits(tiny.prefix([3]), [], [5, 6]).shape == (0, 2)


class TestRepresentationSimilarity:
    def test_equals_the_reference(self, model, block):
        vectors = []
        for rows in block:
            vectors.append([])
            for row in rows:
                context, response = parts(model, row)
                ids = [*context, *response, model.tokenizer.eos_token_id]
                states = references.hidden_states(model.model, ids, -1)
                vectors[-1].append(sum((t + 1) * states[t] for t in range(len(ids))) / sum(range(1, len(ids) + 1)))
        expected = [[references.cosine(a, b) for b in vectors[1]] for a in vectors[0]]
        found = RepresentationSimilarity(model)(*block)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert found[0, 0] == pytest.approx(1, abs=1e-5)

    def test_each_distinct_sample_is_encoded_once(self, tiny_model, block):
        model = LanguageModel.load(tiny_model, device="cpu")
        function = prepared(RepresentationSimilarity(model), *block)
        rows = [row for side in block for row in side]
        lengths = [len(context) + len(response) + 1 for context, response in (parts(model, row) for row in rows)]
        assert function.forward_tokens == sum(lengths) - lengths[0]  # the first target is the first pool sample


class TestResponseSimilarity:
    def test_equals_the_reference(self, model, block):
        middle = layer_count(model) // 2
        means = {}
        for rows in block:
            for row in rows:
                context, response = parts(model, row)
                states = references.hidden_states(model.model, context + response, middle)
                means[row["prompt"]] = states[len(context) :].mean(axis=0)
        seen = np.array(list(means.values()))  # six distinct samples
        pool, target = (
            [(means[row["prompt"]] - seen.mean(axis=0)) / seen.std(axis=0) for row in rows] for rows in block
        )
        cosines = np.array([[references.cosine(a, b) for b in target] for a in pool])
        for sharpness, expected in ((0, cosines), (5, np.exp(5 * cosines - 5)), (2, np.exp(2 * cosines - 2))):
            function = prepared(ResponseSimilarity(model, sharpness=sharpness), *block)
            found = function(*block)
            np.testing.assert_allclose(found, expected, atol=1e-4)
            assert found[0, 0] == pytest.approx(1, abs=1e-5)
            assert found.dtype == np.float32
        np.testing.assert_allclose(ResponseSimilarity(model).sharpness, 5)
        assert cosines.min() < 0

    def test_similar_responses_are_similar_to_a_real_model(self, smollm2_model):
        pool = named([("Add 3 and 4.", "The sum is 7."), ("Greet me.", "Good morning to you!")], "x")
        target = named([("How much is 20 plus 5?", "The total is 25."), ("Say hello.", "Hello, good to see you!")], "t")
        function = prepared(ResponseSimilarity(smollm2_model), pool, target)
        influence = function(pool, target)
        assert (influence.argmax(axis=0) == [0, 1]).all()

    def test_the_mean_is_that_of_the_last_prepare(self, tiny, block):
        pool, target = block
        fresh, again = ResponseSimilarity(tiny), ResponseSimilarity(tiny)
        fresh.prepare(pool, target)
        again.prepare(pool.select([0]), target.select([1]))
        again.prepare(pool.select([2, 1, 0]), target)
        np.testing.assert_array_equal(fresh(pool, target), again(pool, target))

    def test_an_empty_response_is_its_end_token(self, tiny):
        rows = named([("a", ""), ("b", "yes"), ("c", "no")], "x")
        function = prepared(ResponseSimilarity(tiny), rows, rows)
        assert np.isfinite(function(rows, rows)).all()

    def test_an_invalid_layer(self, tiny, block):
        with pytest.raises(ConfigError, match=r"`layer` 3 does not exist in .*: give 0 to 2"):
            ResponseSimilarity(tiny, layer=3).prepare(*block)


class TestBM25:
    def test_equals_the_reference(self, block):
        pool, target = block
        function = prepared(BM25(k1=1.2, b=0.6), pool, target)
        documents, queries = ([words(f"{row['prompt']} {row['response']}") for row in rows] for rows in (pool, target))
        expected = np.array([references.bm25(documents, query, k1=1.2, b=0.6) for query in queries]).T
        np.testing.assert_allclose(function(pool, target), expected, rtol=1e-5, atol=1e-6)
        assert expected[0, 0] == expected[:, 0].max() > 0
        assert (expected == 0).any()

    def test_a_repeated_word_counts_twice(self, block):
        pool, _ = block
        once, twice = named([("paris", "x1")], "t"), named([("paris Paris", "x1")], "t")
        function = prepared(BM25(), pool, once)
        np.testing.assert_allclose(function(pool, twice), 2 * function(pool, once), rtol=1e-6)

    def test_samples_without_words(self):
        pool = named([("?!", "..."), ("one two", "three"), ("?!", "!!")], "x")
        target = named([("...", "?"), ("three", "!")], "t")
        function = prepared(BM25(), pool, target)
        influence = function(pool, target)
        assert influence[1, 1] > 0
        assert influence.sum() == influence[1, 1]
        nothing = pool.select([0, 2])
        function.prepare(nothing, target)
        np.testing.assert_array_equal(function(nothing, target), np.zeros((2, 2), np.float32))


class TestEmbeddingSimilarity:
    def test_equals_the_reference(self, minilm, block):
        pool, target = block
        texts = ([text for (text,) in sample_texts(rows)] for rows in block)
        a, b = (embed_texts(side, minilm).astype(np.float64) for side in texts)
        expected = [[x @ y / math.sqrt((x @ x) * (y @ y)) for y in b] for x in a]
        plain, scaled = (EmbeddingSimilarity(minilm, scaled=flag)(pool, target) for flag in (False, True))
        np.testing.assert_allclose(plain, expected, atol=1e-4)
        np.testing.assert_allclose(scaled, (np.array(expected) + 1) / 2, atol=1e-4)
        assert plain[0, 0] == plain[:, 0].max() == pytest.approx(1, abs=1e-5)

    def test_takes_a_loaded_encoder(self, minilm, block):
        from sentence_transformers import SentenceTransformer

        loaded = EmbeddingSimilarity(SentenceTransformer(minilm, device="cpu"))(*block)
        np.testing.assert_array_equal(loaded, EmbeddingSimilarity(minilm, device="cpu")(*block))
