"""The contract of every built-in influence function, on a block of three pool samples and five targets."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from builders import dialogues, named, prepared
from nncift.errors import ConfigError, DataError, ModelError, RunError
from nncift.influence.base import InfluenceFunction, PlainFunction, Setup, as_function
from nncift.influence.catalogue import BUILT_IN, is_factored
from nncift.influence.gradients.in_run import InRunTraining
from nncift.matrix.products import product_matrix
from nncift.models.language_model import LanguageModel
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.models.text.prompts import PromptTemplate
from nncift.run.options.registry import resolve
from nncift.run.storage.checksums import SHARD_FILE
from nncift.training.lora import Lora
from nncift.training.trainer import Training

NEED_PREPARE = {"gradient-sketch", "response-similarity", "bm25", "less", "in-run", "lossval", "stratified-random"}
"""Relative functions."""
ENCODERS = {"embedding-similarity", "lossval", "stratified-random"}
NO_MODEL = {"bm25", "random"}
CACHE = {  # functions that keep something in a folder, and an option that gives other values
    "delift": {"wording": PromptTemplate(query="Q: {prompt}\nA: ")},
    "gradient-sketch": {"dimension": 64},
    "response-similarity": {"layer": 0},
    "representation-similarity": {"wording": "chat"},
    "embedding-similarity": {"scaled": True},
    "selectit": {"softmax": True},
    "gradient-similarity": {"dimension": 64},
    "less": {"dimension": 64},
    "in-run": {"preconditioned": "no"},
    "lossval": {"epochs": 4},
    "stratified-random": {"clusters": 2},
}
SHORT = Training(lora=Lora(rank=4, modules=("v_proj", "down_proj")), epochs=1)
QUICK = {
    "gradient-similarity": {"adapter": SHORT.lora},
    "less": {"training": SHORT},
    "in-run": {"training": InRunTraining(lora=replace(SHORT.lora, dropout=0.0), epochs=2)},
    "lossval": {"epochs": 2},
}
"""Options with which a function's training is short."""
FORMS = {  # of a function with options that change what it computes: its name, the options, and what rounding changes
    "less-directions": ("less", {"preconditioned": "both", "directions": "task", "training": SHORT}, 0.02),
}
BACKWARD = {"gradient-similarity", "less", "in-run"}
REFUSED = BACKWARD | {"gradient-sketch"}  # other samples or settings in the same folder


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return named(dialogues()[:3], "pool")


@pytest.fixture(scope="module")
def target() -> Dataset:
    return named(dialogues()[3:8], "target")


@pytest.fixture(params=[*BUILT_IN, *FORMS])
def make(request, tiny, small_encoder, pool, target):
    """Builds the function; one whose values depend on all samples is prepared with those of the block.

    Its language model, unless a test names one, has the weights of all others and counts for itself.
    """
    name, form, tolerance = FORMS.get(request.param, (request.param, {}, 1e-5))

    def make(
        *,
        ready: bool = True,
        model: str | None = None,
        encoder: str = small_encoder,
        own: dict | None = None,
        **options,
    ) -> InfluenceFunction:
        loaded = model or LanguageModel(tiny.model, tiny.tokenizer, name=tiny.name)
        specs = ModelSpec(loaded, device="cpu", **options), EncoderSpec(encoder, device="cpu", **options)
        kind = resolve(name, BUILT_IN, "nncift.influence")
        function = kind.build(Setup(specs[:1], specs[1]), **QUICK.get(name, {}) | form | (own or {}))
        if ready and name in NEED_PREPARE:
            function.prepare(pool, target)
        return function

    make.name, make.tolerance, make.forwards_pool = name, tolerance, request.param in FORMS
    return make


def test_name_and_description(make, tiny_model, small_encoder):
    function = make()
    assert function.name == function.describe()["name"] == make.name
    assert json.loads(json.dumps(function.describe())) == function.describe()
    used = {"bm25": "k1", "random": "draw", **dict.fromkeys(ENCODERS, small_encoder)}.get(make.name, tiny_model)
    assert used in json.dumps(function.describe())
    assert function.traits.asks_language_model == (make.name not in NO_MODEL | ENCODERS)


def test_an_unprepared_function_is_pickled_without_its_model(make, tiny_model, pool, target):
    function = make(ready=False, model=tiny_model)
    copy = pickle.loads(pickle.dumps(function))
    assert copy.describe() == function.describe()
    for one in (function, copy):
        one.prepare(pool, target)
    np.testing.assert_array_equal(copy(pool, target), function(pool, target))


def test_shape_and_direction(make, pool, target):
    function = make()
    influence = function(pool, target)
    assert influence.shape == (3, 5)
    assert influence.dtype == np.float32
    assert np.isfinite(influence).all()
    for i, j in [(0, 0), (2, 0), (0, 4), (2, 4)]:
        alone = function(pool.select([i]), target.select([j]))
        np.testing.assert_allclose(alone, influence[i : i + 1, j : j + 1], atol=1e-5)


def test_order_and_batch_size_do_not_matter(make, pool, target):
    influence = make()(pool, target)
    order = [3, 0, 4, 2, 1]
    np.testing.assert_allclose(make()(pool, target.select(order)), influence[:, order], atol=make.tolerance)
    np.testing.assert_allclose(make()(pool.select([2, 0, 1]), target), influence[[2, 0, 1]], atol=make.tolerance)
    np.testing.assert_allclose(make(batch_size=2)(pool, target), influence, atol=make.tolerance)


def test_the_same_block_gives_the_same_bytes(make, pool, target):
    function = make()
    first = function(pool, target)
    function(pool.select([1]), target.select([2, 0]))
    np.testing.assert_array_equal(function(pool, target), first)
    np.testing.assert_array_equal(make()(pool, target), first)


def test_prepare_does_not_change_values(make, pool, target, tmp_path):
    function = make()
    expected = function(pool, target)
    function.prepare(pool, target, tmp_path)
    np.testing.assert_allclose(function(pool, target.select([4, 1])), expected[:, [4, 1]], atol=1e-5)


@pytest.mark.parametrize("make", [*CACHE, *FORMS], indirect=True)
def test_prepare_resumes_with_the_same_bytes(make, pool, target, tmp_path, monkeypatch):
    for module in ("run.shards", "influence.gradients.gradient_similarity", "influence.gradient_sketch"):
        monkeypatch.setattr(f"nncift.{module}.SHARD", 2)
    first = prepared(make(ready=False), pool, target, tmp_path)
    influence, kept = first(pool, target), content(tmp_path)
    files = [path for path in kept if path.suffix != ".json" and "warm-up" not in str(path)]
    for lost in (None, max(files)):
        if lost:
            lost.unlink() if lost.parent.name != "epoch-2" else shutil.rmtree(lost.parent)
        again = prepared(make(ready=False), pool, target, tmp_path)
        assert content(tmp_path) == kept
        if lost is None:
            assert (again.forward_tokens, again.backward_tokens) == (0, 0)
        np.testing.assert_array_equal(again(pool, target), influence)
    lost.write_bytes(b"broken")
    if SHARD_FILE.search(lost.name):  # computed again
        make(ready=False).prepare(pool, target, tmp_path)
        assert content(tmp_path) == kept
        return
    with pytest.raises((RunError, ModelError), match=lost.name):
        make(ready=False).prepare(pool, target, tmp_path)


@pytest.mark.parametrize("make", [*CACHE, *FORMS], indirect=True)
def test_what_is_kept_is_specific_to_samples_and_settings(make, pool, target, tmp_path):
    make(ready=False).prepare(pool, target, tmp_path)
    for own, blocks in ((CACHE[make.name], (pool, target)), ({}, (target.select([3, 1]), pool))):
        function, fresh = (make(ready=False, own=own) for _ in range(2))
        if make.name in REFUSED:
            with pytest.raises(RunError, match="other samples or settings"):
                function.prepare(*blocks, tmp_path)
            continue
        function.prepare(*blocks, tmp_path)
        fresh.prepare(*blocks)
        np.testing.assert_allclose(function(*blocks), fresh(*blocks), atol=1e-6)
    assert make.name in ENCODERS | REFUSED or function.forward_tokens > 0


@pytest.mark.parametrize("make", [name for name in BUILT_IN if name not in NO_MODEL | ENCODERS], indirect=True)
def test_a_response_that_does_not_fit_is_an_error_before_any_pass(make, pool):
    function, long = make(ready=False), named([("fine", "fine"), ("why", "so " * 600)], "x")
    with pytest.raises(DataError, match=r"'x1': its response takes \d+ tokens"):
        function.prepare(long, pool)
    assert function.forward_tokens == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("less", {"preconditioned": "targets"}),
        ("less", {"aggregate": "mean"}),
        ("less", {"dimension": 0}),
        ("less", {"directions": 0}),
        ("less", {"directions": "targets"}),
        ("less", {"layers": "first:3"}),
        ("less", {"sharpness": -1.0}),
        ("less", {"batch_size": 0}),
        ("in-run", {"preconditioned": "both"}),
        ("in-run", {"target_batch": 0}),
        ("in-run", {"training": InRunTraining(fraction=0.5)}),
        ("gradient-sketch", {"layers": ()}),
        ("gradient-sketch", {"damping": 0.0}),
        ("gradient-sketch", {"sharpness": -1.0}),
        ("gradient-sketch", {"dimension": -1}),
        ("gradient-sketch", {"states": 1.5}),
        ("response-similarity", {"sharpness": -1.0}),
        ("response-similarity", {"sharpness": np.inf}),
        ("response-similarity", {"sharpness": np.nan}),
        ("stratified-random", {"clusters": 0}),
        ("lossval", {"epochs": 0}),
        ("lossval", {"rows": 0}),
        ("lossval", {"batch_size": 0}),
        ("lossval", {"learning_rate": 0.0}),
        ("lossval", {"head_learning_rate": 2.0}),
        ("lossval", {"decay": -1.0}),
        ("lossval", {"decay": 1000.0}),
    ],
)
def test_options_are_checked(name, options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}.* (is|some).*: give"):
        resolve(name, BUILT_IN, "nncift.influence")("embedded", **options)


def test_tokens_are_those_of_all_blocks(make):
    function, pairs = make(), dialogues()
    pool, target = named([*pairs[:7], pairs[0]], "pool"), named(pairs[5:10], "target")
    before = function.forward_tokens
    expected = function.tokens(pool, target)
    assert function.forward_tokens == before
    function.prepare(pool, target)
    for start in range(0, 8, 3):
        function(pool.select(range(start, min(start + 3, 8))), target)
    if function.traits.asks_language_model:
        assert function.forward_tokens - before == expected > 0
        every = function.forward_tokens if make.name in BACKWARD else 0
        assert 0 < function.backward_tokens < every if make.forwards_pool else function.backward_tokens == every
    else:
        assert expected is None


def test_no_samples(make, pool, target):
    assert make()(pool.select([]), target).shape == (0, 5)
    assert make()(pool, target.select([])).shape == (3, 0)


def test_columns_are_equal_if_pointwise(make, pool, target):
    function = make()
    function.check(pool, target)  # may determine whether it is pointwise
    influence = function(pool, target)
    assert (influence == influence[:, :1]).all() == function.traits.pointwise
    if function.traits.pointwise:
        np.testing.assert_array_equal(function(pool, target.select([2])), influence[:, :1])
        assert len(np.unique(influence)) == 3


@pytest.mark.parametrize("make", [*sorted(NEED_PREPARE), *FORMS], indirect=True)
def test_what_depends_on_all_samples_needs_prepare(make, pool, target):
    with pytest.raises(ConfigError, match=r"call prepare\(pool, target\)"):
        make(ready=False)(pool, target)


@pytest.mark.parametrize("make", ["bm25", "in-run", "lossval", "stratified-random"], indirect=True)
def test_samples_that_were_not_prepared(make, pool, target):
    function = prepared(make(ready=False), pool.select([0, 1]), target.select([0, 1]))
    for new, block in ((pool[2], (pool, target.select([0]))), (target[2], (pool.select([0]), target))):
        if make.name in ("bm25", "stratified-random") and len(block[0]) == 1:  # targets are not indexed
            continue
        name = new["id"] if make.name == "in-run" else re.escape(new["prompt"])
        with pytest.raises(ConfigError, match=rf"'{name}.*: call prepare\(pool, target\) with all samples"):
            function(*block)


@pytest.mark.parametrize("make", ["gradient-similarity", "gradient-sketch", "in-run"], indirect=True)
def test_a_value_that_is_not_finite_is_refused(make, tiny_model, pool, target):
    function = make(ready=False, model=tiny_model)
    model = function.language_model
    with torch.no_grad():
        model.model.get_input_embeddings().weight[model.encode([pool[2]["response"]])[0][0]] = float("nan")
    with pytest.raises(DataError, match=r"the (gradient|score) of .* is not finite: .* `dtype` to float32"):
        function.prepare(pool, target)


@pytest.mark.parametrize("make", [name for name in BUILT_IN if name not in NO_MODEL], indirect=True)
def test_an_unknown_model_is_an_error_on_first_use(make, pool, target):
    function = make(ready=False, model="/no/such/model", encoder="/no/such/model")
    with pytest.raises(ModelError, match="there is no folder '/no/such/model'"):
        (function.prepare if make.name in NEED_PREPARE else function)(pool, target)


@pytest.mark.parametrize("make", [name for name in BUILT_IN if is_factored(name)], indirect=True)
def test_vectors_give_the_values(make, pool, target):
    function = make()
    expected, vectors = function(pool, target), function.vectors(pool)
    matrix = product_matrix(vectors, function.target_vectors(target), function.from_products)
    np.testing.assert_allclose(matrix.rows(slice(None)), expected, atol=1e-5)
    alone = function.vectors(pool.select([1]))
    assert (vectors.dtype, vectors.shape[0], alone.shape) == (np.float32, 3, (1, vectors.shape[1]))
    dense = [part if isinstance(part, np.ndarray) else part.toarray() for part in (vectors[[1]], alone)]
    np.testing.assert_allclose(*dense, atol=1e-5)


def test_which_functions_have_vectors(make):
    assert make(ready=False).traits.factored == is_factored(make.name)


def test_a_plain_callable_is_wrapped(pool, target):
    def ones(pool_rows, target_rows):
        return np.ones((len(pool_rows), len(target_rows)), np.float32)

    function = as_function(ones)
    assert isinstance(function, PlainFunction)
    assert as_function(function) is function
    assert function.describe() == {"name": "ones"}
    assert function(pool, target).shape == (3, 5)
    assert function.tokens(pool, target) is function.check(pool, target) is function.prepare(pool, target) is None
    ones.pointwise = True
    with pytest.raises(ConfigError, match="'ones' defines pointwise, which only a subclass may define: subclass"):
        as_function(ones)
    with pytest.raises(ConfigError, match="3 is not an influence function"):
        as_function(3)
