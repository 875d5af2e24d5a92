"""Gradient sketches against a slow form that has each sample's outer products summed into a matrix per layer."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from builders import WITH_PREFIX_CACHE, chat, make_model, named, prepared, samples
from nncift.errors import ConfigError
from nncift.influence import gradient_sketch
from nncift.influence.gradient_sketch import GradientSketch
from nncift.models.language_model import LanguageModel
from nncift.models.text.examples import encode_examples
from nncift.models.token_gradients import token_factors
from nncift.run.storage.files import read_tensors

POOL = [
    ("What is the capital of France?", "Paris"),
    ("Compute 12 + 30.", "The sum is 42, as twelve and thirty are forty-two."),
    ("Name a fruit.", "An apple."),
    ("Say yes.", "yes"),
]
TARGET = [("What is the capital of Spain?", "Madrid"), ("Compute 1 + 1.", "The sum is 2."), ("Hello", "Hi")]


@pytest.fixture(scope="module")
def block():
    return named(POOL, "x"), named([POOL[0], *TARGET], "t")


@pytest.fixture(scope="module")
def make(tiny):
    """A model of an architecture and of random weights, with the tiny model's tokenizer."""

    def make(architecture: str) -> LanguageModel:
        options = WITH_PREFIX_CACHE[architecture] | {"vocab_size": len(tiny.tokenizer)}
        return LanguageModel(make_model(architecture, options), tiny.tokenizer, name=architecture)

    return make


def matrices(model: LanguageModel, rows, layers) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Of each sample G_l, (n, layers, hidden, hidden); the inputs of its tokens; their means, (n, layers, hidden)."""
    outer, inputs, means = [], [], []
    for example in encode_examples(model, rows):
        (factors,) = token_factors(model, [example], layers)
        g, x, weights = (part.double().numpy() for part in factors)
        outer.append([sum(np.outer(one, state) for one, state in zip(g, states, strict=True)) for states in x])
        inputs.append(x)
        means.append([sum(w * state for w, state in zip(weights, states, strict=True)) for states in x])
    return np.array(outer), inputs, np.array(means)


def inverse_root(tokens: np.ndarray, damping: float) -> np.ndarray:
    """(C + damping * mean eigenvalue)^-1/2, with C the second moment of tokens (n, hidden)."""
    values, vectors = np.linalg.eigh(tokens.T @ tokens / len(tokens))
    return vectors / np.sqrt(values + damping * values.mean()) @ vectors.T


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def reference(model, pool, target, layers, *, damping=1.0, states=0.2, states_layer, whitened=None) -> np.ndarray:
    """Cosines (n_pool, n_target), whitened over all tokens of the pool, or of some of its rows."""
    tokens = matrices(model, pool if whitened is None else pool.select(whitened), layers)[1]
    (g_pool, _, x_pool), (g_target, _, x_target) = (matrices(model, rows, layers) for rows in (pool, target))
    found = np.zeros((len(pool), len(target)))
    for k in range(len(layers)):
        white = inverse_root(np.concatenate([x[k] for x in tokens]), damping)
        share = (1 - states) / len(layers)
        found += [[share * cosine(a[k] @ white, b[k] @ white) for b in g_target] for a in g_pool]
        if k == states_layer:
            found += [[states * cosine(a[k] @ white, b[k] @ white) for b in x_target] for a in x_pool]
    return found


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Gemma2"])
def test_equals_the_reference(make, block, architecture):
    model = make(architecture)
    for options in ({}, {"states": 0.0, "damping": 0.3}, {"layers": (2, 0)}):
        layers = (0, 2) if "layers" in options else (1, 2)
        numbers = {name: value for name, value in options.items() if name != "layers"}
        expected = reference(model, *block, layers, states_layer=1, **numbers)
        for dimension in (0, 8192):  # no wider than the matrices, so nothing is projected
            function = prepared(GradientSketch(model, dimension=dimension, sharpness=0, **options), *block)
            np.testing.assert_allclose(function(*block), expected, atol=1e-4)
            assert function(*block)[0, 0] == pytest.approx(1, abs=1e-5)
            function.sharpness = 3.0
            np.testing.assert_allclose(function(*block), np.exp(3 * expected - 3), atol=3e-4)
            found = [np.linalg.norm(g, axis=(1, 2)).mean() for g in matrices(model, block[1], layers)[0]]
            np.testing.assert_allclose(function.norms(block[1]), found, rtol=1e-4)


def test_projected_cosines_are_unbiased_estimates(make, block):
    model, dimension, seeds = make("Llama"), 256, 12
    exact = prepared(GradientSketch(model, dimension=0, sharpness=0), *block)(*block)
    errors = []
    for seed in range(seeds):
        function = prepared(GradientSketch(model, dimension=dimension, sharpness=0, seed=seed), *block)
        vectors = [function.vectors(rows) for rows in block]
        assert vectors[0].shape == (4, dimension + 32)
        assert vectors[0].dtype == np.float32
        for some in vectors:
            np.testing.assert_allclose(np.linalg.norm(some, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(function(*block), vectors[0] @ vectors[1].T, atol=1e-6)
        errors.append(function(*block) - exact)
    assert np.square(errors).mean() < 2 / dimension
    assert np.abs(np.mean(errors, axis=0)).max() < 5 / np.sqrt(dimension * seeds)


@pytest.mark.parametrize(
    ("depth", "layers", "states"),
    [(30, (5, 10, 15, 20, 25, 30), 20), (32, (6, 11, 16, 22, 27, 32), 22), (4, (1, 2, 3, 4), 3), (1, (1,), 1)],
)
def test_layers_are_at_the_ends_of_sixths_of_the_depth(tiny, monkeypatch, depth, layers, states):
    monkeypatch.setattr(tiny.model.config, "num_hidden_layers", depth)
    function = GradientSketch(tiny)
    assert function._layers() == layers
    assert layers[function._states_layer] == states


def test_an_invalid_layer(tiny, block):
    with pytest.raises(ConfigError, match=r"`layers` 3 does not exist in .*: give 0 to 2"):
        GradientSketch(tiny, layers=(1, 3)).prepare(*block)


@pytest.mark.parametrize("dimension", [0, 8192])
def test_several_turns_are_a_mean_over_turns(tiny, dimension):
    texts = ("one", "two three", "four", "five six seven", "eight", "nine")
    rows = samples([chat("a", *texts), {"id": "b", "prompt": "ten", "response": "eleven"}])
    rows = rows.add_column("turns", [[1, 3, 5], None])
    function = GradientSketch(tiny, dimension=dimension, sharpness=0)
    planned, before = function.tokens(rows, rows), tiny.forward_tokens
    found = prepared(function, rows, rows)(rows, rows)
    assert tiny.forward_tokens - before == planned
    expected = reference(tiny, rows, rows, (1, 2), states_layer=1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert len(encode_examples(tiny, rows)[0].spans) == 3


def test_whitening_takes_some_tokens_of_the_pool_in_a_fixed_order(tiny, block, monkeypatch):
    monkeypatch.setattr(gradient_sketch, "WHITENING_TOKENS", 4)
    pool, target = block
    examples = encode_examples(tiny, pool)
    ordered = sorted(range(len(pool)), key=lambda k: examples[k].key)
    tokens = np.cumsum([examples[k].scored for k in ordered])
    first = ordered[: int((tokens < 4).sum()) + 1]
    assert 0 < len(first) < len(pool)
    expected = reference(tiny, pool, target, (1, 2), states_layer=1, whitened=first)
    for dimension in (0, 8192):
        function = GradientSketch(tiny, dimension=dimension, sharpness=0)
        for order in ([0, 1, 2, 3], [2, 3, 1, 0]):
            values = prepared(function, pool.select(order), target)(pool.select(order), target)
            np.testing.assert_allclose(values, expected[order], atol=1e-4)


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dimension", [0, 64])
def test_a_killed_run_goes_on_with_the_same_bytes(tiny, block, tmp_path, monkeypatch, dimension):
    class Killed(BaseException):
        pass

    monkeypatch.setattr(gradient_sketch, "SHARD", 2)
    make, before = partial(GradientSketch, tiny, dimension=dimension), tiny.forward_tokens
    whole = prepared(make(), *block, tmp_path / "whole")
    kept, influence, all_tokens = content(tmp_path / "whole"), whole(*block), tiny.forward_tokens - before
    for passes in (1, 3):  # while the samples of the whitening are read, and after
        folder, function, before = tmp_path / str(passes), make(), tiny.forward_tokens
        given = iter(range(passes))

        def killed(batch, real=function._pass, given=given):
            if next(given, None) is None:
                raise Killed
            return real(batch)

        function._pass = killed
        with pytest.raises(Killed):
            function.prepare(*block, folder)
        again = prepared(make(), *block, folder)
        assert content(folder) == kept
        assert tiny.forward_tokens - before == all_tokens
        np.testing.assert_array_equal(again(*block), influence)
    names = {path.name.partition("-")[0] for path in kept}
    assert names == {"samples.json"} | ({"whitening.safetensors", "vectors"} if dimension else {"whitening", "tokens"})


def test_a_kill_between_whitening_and_clean_up_leaves_nothing(tiny, block, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gradient_sketch.Shards, "drop", lambda self: None)
        prepared(GradientSketch(tiny), *block, tmp_path)
    assert list(tmp_path.rglob("tokens-*"))
    function = prepared(GradientSketch(tiny), *block, tmp_path)
    assert not list(tmp_path.rglob("tokens-*"))
    stored = read_tensors(tmp_path / "gradient-sketch" / "whitening.safetensors")
    np.testing.assert_array_equal(stored["matrices"], function._matrices)


def test_footprint_is_what_is_kept(tiny, block, tmp_path):
    for dimension in (0, 256):
        function, folder = GradientSketch(tiny, dimension=dimension), tmp_path / str(dimension)
        planned = function.footprint(*block, 7, 0)  # distinct samples
        function.prepare(*block, folder)
        found = sum(path.stat().st_size for path in folder.rglob("*.[sn]*") if path.suffix != ".json")
        assert found == pytest.approx(planned.disk, rel=0.25)
        assert planned.memory > 0


def test_exact_cosines_have_no_vectors(tiny, block):
    function = prepared(GradientSketch(tiny, dimension=0), *block)
    with pytest.raises(ConfigError, match="no vectors with `dimension` 0: give `dimension` 8192"):
        function.vectors(block[0])


def test_similar_responses_are_similar_to_a_real_model(smollm2_model):
    pool = named([("Add 3 and 4.", "The sum is 7."), ("Greet me.", "Good morning to you!")], "x")
    target = named([("How much is 20 plus 5?", "The total is 25."), ("Say hello.", "Hello, good to see you!")], "t")
    influence = prepared(GradientSketch(smollm2_model), pool, target)(pool, target)
    assert (influence.argmax(axis=0) == [0, 1]).all()
    exact = prepared(GradientSketch(smollm2_model, dimension=0), pool, target)(pool, target)
    np.testing.assert_allclose(influence, exact, atol=0.05)
