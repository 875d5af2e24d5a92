"""Chats of which several turns are trained on: their mean over turns, against values of each turn alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import references
from builders import chat, named, prepared, samples
from nncift.features.sentence import SentenceFeatures
from nncift.influence.base import Setup
from nncift.influence.bm25 import BM25, words
from nncift.influence.catalogue import BUILT_IN
from nncift.influence.delift import Delift
from nncift.influence.embedding_similarity import EmbeddingSimilarity
from nncift.influence.gradients.gradient_similarity import GradientSimilarity
from nncift.influence.ifd import IFD, Perplexity
from nncift.influence.ratings import RatingPrompts
from nncift.influence.representation_similarity import RepresentationSimilarity
from nncift.influence.response_similarity import ResponseSimilarity
from nncift.influence.selectit import SelectIT
from nncift.models.encoder import embed_texts
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.models.text.chats import Conversation
from nncift.models.text.examples import encode_examples
from nncift.run.options.registry import resolve
from nncift.training.lora import Lora, adapted

TEXTS = ("one", "two three", "four", "five six seven", "eight", "nine")
PROMPTS = (
    "one",
    "User: one\nAssistant: two three\nUser: four",
    "User: one\nAssistant: two three\nUser: four\nAssistant: five six seven\nUser: eight",
)


@pytest.fixture
def whole():
    """A chat, all of whose turns are trained on, and a sample that is no chat."""
    rows = samples([chat("a", *TEXTS) | {"prompt": PROMPTS[2]}, {"id": "b", "prompt": "ten", "response": "eleven"}])
    return rows.add_column("turns", [[1, 3, 5], None])


@pytest.fixture
def parts():
    """Each turn with what precedes it as a chat of its own, then the other sample."""
    chats = [chat(str(k), *TEXTS[: 2 * k + 2]) | {"prompt": PROMPTS[k]} for k in range(3)]
    return samples([*chats, {"id": "b", "prompt": "ten", "response": "eleven"}])


def over_turns(values: np.ndarray) -> np.ndarray:
    """From three turns and another sample, along the last axis."""
    return np.stack([values[..., :3].mean(axis=-1), values[..., 3]], axis=-1)


@pytest.mark.parametrize("wording", ["chat", "plain"])
@pytest.mark.parametrize("exponential", [False, True])
def test_delift(tiny, whole, parts, wording, exponential):
    pool = named([("What is two?", "three"), ("Say nine", "nine")], "p")
    function = Delift(tiny, wording=wording, exponential=exponential)
    expected = over_turns(Delift(tiny, wording=wording, exponential=exponential)(pool, parts))
    planned, before = function.tokens(pool, whole), tiny.forward_tokens
    found = prepared(function, pool, whole)(pool, whole)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert tiny.forward_tokens - before == planned
    as_examples = function(whole, pool)  # the whole chat is the example
    np.testing.assert_array_equal(as_examples, function(whole.remove_columns("turns"), pool))


@pytest.mark.parametrize("kind", [Perplexity, IFD])
@pytest.mark.parametrize("wording", ["chat", "plain"])
def test_scores(tiny, whole, parts, kind, wording):
    target = named([("any", "thing")], "t")
    function = kind(tiny, wording=wording)
    planned, before = function.tokens(whole, target), tiny.forward_tokens
    found = function(whole, target)[:, 0]
    assert tiny.forward_tokens - before == planned
    np.testing.assert_allclose(found, over_turns(kind(tiny, wording=wording)(parts, target)[:, 0]), rtol=1e-5)


def test_ratings(tiny, whole, parts):
    rating_prompts = RatingPrompts(3, ("Rate: {prompt}\nReply: {response}\nDigit:\n", "Q {prompt} A {response} D:\n"))
    target, function = named([("any", "thing")], "t"), SelectIT(tiny, rating_prompts=rating_prompts)
    given = rating_prompts.prompts, rating_prompts.levels
    slow = [references.selectit(tiny.model, tiny.tokenizer, *given, row, alpha=0.2, softmax=False) for row in parts]
    planned, before = function.tokens(whole, target), tiny.forward_tokens
    found = prepared(function, whole, target)(whole, target)[:, 0]
    assert tiny.forward_tokens - before == planned
    np.testing.assert_allclose(found, over_turns(np.array(slow)), rtol=2e-3, atol=1e-5)
    refuse, early = function.screen("pool"), chat("a", "one", "so " * 600, "two", "three")["messages"]
    assert "its response takes" in refuse(Conversation.read("a", "p", "three", early, turns=[1, 3]))
    assert refuse(Conversation.read("a", "p", "three", early)) is None


def test_words(whole, parts):
    for pool, target in ((whole, parts), (parts, whole), (whole, whole)):
        turns = [words(f"{row['prompt']} {row['response']}") for row in parts]
        expected = np.array([references.bm25(turns, query, k1=1.5, b=0.75) for query in turns]).T
        expected = over_turns(expected) if target is whole else expected
        expected = over_turns(expected.T).T if pool is whole else expected
        np.testing.assert_allclose(prepared(BM25(), pool, target)(pool, target), expected, rtol=1e-5, atol=1e-6)


def test_embeddings(minilm, whole, parts):
    texts = [f"{row['prompt']}\n{row['response']}" for row in parts]
    mean = over_turns(np.stack([embed_texts([text], minilm)[0] for text in texts], axis=1)).T
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    source = SentenceFeatures(EncoderSpec(minilm, device="cpu"))
    np.testing.assert_allclose(source(whole)["sentence"], mean, atol=1e-5)
    function = EmbeddingSimilarity(minilm, device="cpu")
    np.testing.assert_allclose(function(whole, whole), mean @ mean.T, atol=1e-5)
    np.testing.assert_array_equal(prepared(function, whole, parts)(whole, parts)[1, 3], function(parts, parts)[3, 3])
    assert source.contents(whole)[1:] == texts[3:]
    assert source.contents(whole)[0] not in texts
    long = samples([chat("x", "one", "so " * 600, "two", "three"), {"id": "b", "prompt": "ten", "response": "eleven"}])
    assert source(long.add_column("turns", [[1, 3], None]))["truncated"].tolist() == [True, False]


@pytest.mark.parametrize("name", sorted({*BUILT_IN} - {"less", "in-run"}))  # with the examples of the gradients
def test_a_list_of_one_turn_changes_nothing(name, tiny, small_encoder, parts):
    listed = parts.add_column("turns", [[1], [3], [5], None])
    values = []
    for rows in (parts, listed):
        function = resolve(name, BUILT_IN, "nncift.influence").build(
            Setup((ModelSpec(tiny),), EncoderSpec(small_encoder, device="cpu"))
        )
        values.append(prepared(function, rows, rows)(rows, rows))
    np.testing.assert_array_equal(*values)


def test_representations(tiny, whole, parts):
    means = []
    for row in parts:
        (sample,) = Delift(tiny, wording="plain")._choose(parts).render(samples([row]))
        ids = sample.queries[0].alone + sample.queries[0].response
        ids = Delift(tiny, wording="plain")._choose(parts).no_example + ids
        states = references.hidden_states(tiny.model, ids, -1)
        weights = np.arange(1, len(ids) + 1)
        means.append(weights @ states / weights.sum())
    vectors = over_turns(np.stack(means, axis=1)).T
    found = RepresentationSimilarity(tiny, wording="plain")(whole, whole)
    expected = [[references.cosine(one, other) for other in vectors] for one in vectors]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    function = ResponseSimilarity(tiny, sharpness=0)
    values = prepared(function, whole, whole)(whole, whole)
    np.testing.assert_allclose(np.diag(values), 1, atol=1e-5)


def test_gradients(tiny, whole):
    shape = Lora(rank=4, alpha=8, seed=3)
    vectors = []
    with adapted(tiny, shape) as adapter:
        for example in encode_examples(tiny, whole):
            turns = [references.adapter_gradients(adapter, example.ids[:end], start) for start, end in example.spans]
            flat = [torch.cat([gradient.flatten() for gradient in turn.values()]).double() for turn in turns]
            vectors.append(torch.stack(flat).mean(dim=0))
    unit = torch.nn.functional.normalize(torch.stack(vectors)).numpy()
    found = GradientSimilarity(tiny, adapter=shape, dimension=2**16)(whole, whole)
    np.testing.assert_allclose(found, unit @ unit.T, atol=1e-4)
