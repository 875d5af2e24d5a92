"""Loading, probabilities against full forward passes of many architectures, running out of memory, chats."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as library_logging

from builders import TOKENS, WITH_PREFIX_CACHE, WITHOUT, make_model, token_ids
from nncift.errors import ConfigError, ModelError
from nncift.models.language_model import LanguageModel
from nncift.models.loading import _reason, out_of_memory, quiet
from references import token_probabilities


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def tiny(tiny_model) -> LanguageModel:
    return LanguageModel.load(tiny_model, device="cpu")


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model's folder, to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def tokens_of(prefix, queries, responses) -> int:
    return len(prefix) + sum(len(q) + len(r) - 1 for q, r in zip(queries, responses, strict=True))


class TestProbabilities:
    @pytest.mark.parametrize("architecture", [*WITH_PREFIX_CACHE, *WITHOUT])
    @pytest.mark.parametrize("prefix_length", [0, 23])
    def test_equal_full_forward_passes(self, architecture, prefix_length, tokenizer):
        model = make_model(architecture, {**WITH_PREFIX_CACHE, **WITHOUT}[architecture])
        language_model = LanguageModel(model.train(), tokenizer, name=architecture)  # with dropout, were it left so
        assert language_model.shares_prefix == (architecture in WITH_PREFIX_CACHE)
        (prefix,) = token_ids(prefix_length, seed=1)
        queries, responses = token_ids(3, 30, 1, 17, 9, seed=2), token_ids(4, 1, 25, 6, 2, seed=3)
        found = language_model.response_probabilities(language_model.prefix(prefix), queries, responses, batch_size=3)
        for query, response, probabilities in zip(queries, responses, found, strict=True):
            expected = token_probabilities(model, prefix + query, response)
            assert probabilities.dtype == np.float32
            np.testing.assert_allclose(np.log(probabilities), np.log(expected), atol=2e-3)

    @pytest.mark.parametrize("shares_prefix", [True, False])
    def test_count_tokens_without_padding(self, tiny, shares_prefix):
        tiny.shares_prefix = shares_prefix
        (prefix,), queries, responses = token_ids(11), token_ids(5, 20, 1), token_ids(3, 1, 9)
        tiny.response_probabilities(tiny.prefix(prefix), queries, responses)
        once = tokens_of(prefix, queries, responses)
        assert tiny.forward_tokens == once if shares_prefix else once + 2 * len(prefix)

    def test_a_prefix_serves_many_batches_unchanged(self, tiny):
        (prefix,), queries, responses = token_ids(11), token_ids(5, 20, 1), token_ids(3, 1, 9)
        shared = tiny.prefix(prefix)
        first = tiny.response_probabilities(shared, queries, responses)
        again = tiny.response_probabilities(shared, queries, responses)
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize("batch_size", [1, 2, 7])
    def test_do_not_depend_on_the_batch(self, tiny, batch_size):
        queries, responses = token_ids(*range(1, 31, 3)), token_ids(*range(10, 0, -1))
        prefix = tiny.prefix(token_ids(9)[0])
        whole = tiny.response_probabilities(prefix, queries, responses, batch_size=100)
        parts = tiny.response_probabilities(prefix, queries, responses, batch_size=batch_size)
        for one, other in zip(whole, parts, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)

    def test_the_output_layer_sees_response_positions_alone(self, tiny):
        seen = []
        tiny.model.get_output_embeddings().register_forward_hook(lambda module, inputs, out: seen.append(out.shape[:2]))
        tiny.response_probabilities(tiny.prefix(token_ids(50)[0]), token_ids(40, 40), token_ids(3, 2))
        assert seen == [(1, 1), (1, 5)]  # the prefix shows it one position, since every forward ends in it

    @pytest.mark.parametrize(("dtype", "most"), [("8bit", 0.05), ("4bit", 0.2)])
    def test_weights_of_few_bits_stay_near_the_real_model(self, smollm2, dtype, most):
        full = LanguageModel.load(smollm2, device="cpu")
        small = LanguageModel.load(smollm2, dtype=dtype, device="cpu")
        assert small.model.get_memory_footprint() < 0.6 * full.model.get_memory_footprint()
        query, response = full.encode(["The capital of France is", " Paris, a city on the Seine."])
        wanted, found = (
            model.response_probabilities(model.prefix(full.encode(["Answer briefly."])[0]), [query], [response])[0]
            for model in (full, small)
        )
        assert 0 < np.abs(wanted - found).mean() < most

    def test_half_precision_is_close(self, tiny_model, tiny):
        half = LanguageModel.load(tiny_model, dtype="bfloat16", device="cpu")
        assert half.dtype == torch.bfloat16
        queries, responses = token_ids(5, 20), token_ids(3, 4)
        precise, rough = (
            model.response_probabilities(model.prefix([7, 8, 9]), queries, responses) for model in (tiny, half)
        )
        for one, other in zip(precise, rough, strict=True):
            assert other.dtype == np.float32
            np.testing.assert_allclose(np.log(one), np.log(other), atol=0.05)

    def test_padding_is_little(self, tiny, monkeypatch):
        forward, shapes = tiny.model.forward, []

        def watched(*args, input_ids, **options):
            shapes.append(tuple(input_ids.shape))
            return forward(*args, input_ids=input_ids, **options)

        monkeypatch.setattr(tiny.model, "forward", watched)
        tiny.response_probabilities(tiny.prefix([]), token_ids(*[2, 200] * 8), token_ids(*[1] * 16))
        assert shapes == [(8, 200), (8, 2)]

    def test_a_model_that_drops_the_cache_reads_prefixes_again(self, tiny_model, tokenizer, monkeypatch):
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(tiny_model)
        forward = model.forward

        def forgetful(input_ids, cache=None, use_cache=None, **options):
            return forward(input_ids, use_cache=False, **options)

        monkeypatch.setattr(model, "forward", forgetful)
        language_model = LanguageModel(model, tokenizer)
        assert not language_model.shares_prefix
        prefix, query, response = token_ids(11, 5, 3)
        (found,) = language_model.response_probabilities(language_model.prefix(prefix), [query], [response])
        np.testing.assert_allclose(found, token_probabilities(model, prefix + query, response), rtol=1e-4)

    def test_refuse_an_empty_query_or_response(self, tiny):
        for query, response in (([], [5]), ([5], [])):
            with pytest.raises(ValueError, match="at least one token"):
                tiny.response_probabilities(tiny.prefix([3]), [query], [response])

    def test_refuse_a_token_that_the_model_lacks(self, tiny):
        with pytest.raises(ModelError, match="gives token 50000"):
            tiny.response_probabilities(tiny.prefix([3]), [[50_000]], [[5]])

    @settings(max_examples=60, deadline=None)
    @given(
        lengths=st.lists(st.tuples(st.integers(1, 400), st.integers(1, 100)), min_size=1, max_size=40),
        batch_size=st.integers(1, 9),
    )
    def test_batches_hold_each_row_once_and_cost_no_more_than_slices(self, tiny_for_plans, lengths, batch_size):
        order = sorted(range(len(lengths)), key=lambda j: -sum(lengths[j]))
        total, scored = [sum(pair) for pair in lengths], [pair[1] for pair in lengths]
        batches = tiny_for_plans.batches(order, total, scored, batch_size)
        assert [j for batch in batches for j in batch] == order
        assert max(map(len, batches)) <= batch_size

        def cost(some):
            return sum(len(batch) * total[batch[0]] + 32 for batch in some)

        assert cost(batches) <= cost([order[k : k + batch_size] for k in range(0, len(order), batch_size)])

    def test_batches_bound_what_meets_the_output_layer(self, tiny_for_plans):
        most = 2**28 // tiny_for_plans.tokenizer.vocab_size  # positions
        scored = [most // 2] * 5 + [2 * most]  # the last alone is above the bound: it has to go alone
        batches = tiny_for_plans.batches([5, 0, 1, 2, 3, 4], [10**9] * 6, scored, 32)
        assert batches[0] == [5]
        assert max(map(len, batches)) == 2


@pytest.fixture(scope="module")
def tiny_for_plans(tiny_model) -> LanguageModel:
    return LanguageModel.load(tiny_model, device="cpu")


class TestMemory:
    @pytest.mark.parametrize(
        "error",
        [
            torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
        ],
    )
    def test_running_out_halves_the_batch_and_goes_on(self, tiny, monkeypatch, error):
        queries, responses = token_ids(*[12] * 16), token_ids(*[3] * 16)
        prefix = tiny.prefix([7, 8, 9])
        expected = tiny.response_probabilities(prefix, queries, responses)
        tokens = tiny.forward_tokens
        forward, sizes = tiny.model.forward, []

        def limited(*args, input_ids, **options):
            sizes.append(len(input_ids))
            if len(input_ids) > 4:
                raise error
            return forward(*args, input_ids=input_ids, **options)

        monkeypatch.setattr(tiny.model, "forward", limited)
        found = tiny.response_probabilities(prefix, queries, responses)
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
        assert sizes == [16, 8, 4, 4, 4, 4]
        assert tiny.oom_splits == [16, 8]
        assert tiny.forward_tokens - tokens == tokens - 3  # what did not fit is not counted
        tiny.response_probabilities(prefix, queries, responses)
        assert tiny.oom_splits == [16, 8]  # the lesson is kept

    def test_one_sequence_that_does_not_fit_is_an_error(self, tiny, monkeypatch):
        prefix = tiny.prefix([7, 8, 9])

        def full(*args, **options):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(tiny.model, "forward", full)
        with pytest.raises(ModelError, match="one sequence of 9 tokens: lower --max-length"):
            tiny.response_probabilities(prefix, token_ids(4), token_ids(3))
        with pytest.raises(ModelError, match="one sequence of 5 tokens"):
            tiny.prefix(token_ids(5)[0])

    def test_other_errors_pass(self, tiny, monkeypatch):
        def broken(*args, **options):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        monkeypatch.setattr(tiny.model, "forward", broken)
        with pytest.raises(RuntimeError, match="shapes"):
            tiny.prefix([3])

    def test_the_real_error_of_this_machine_is_recognised(self):
        with pytest.raises(RuntimeError) as caught:
            torch.empty(2**55, dtype=torch.uint8)
        assert out_of_memory(caught.value)
        assert not out_of_memory(ValueError("no"))


class TestLoading:
    def test_facts(self, tiny_model, tiny):
        assert (tiny.name, tiny.device.type, tiny.dtype) == (tiny_model, "cpu", torch.float32)
        assert tiny.context_length == 512
        assert LanguageModel.load(tiny_model, max_length=100).context_length == 100
        assert LanguageModel.load(tiny_model, max_length=1000).context_length == 512
        assert tiny.end_ids == [tiny.tokenizer.eos_token_id]
        assert tiny.leading_ids == []
        assert tiny.has_chat_template
        assert not tiny.model.training

    @pytest.mark.parametrize("knows_its_length", [True, False])
    def test_context_length_of_a_model_without_a_limit(self, tokenizer, monkeypatch, knows_its_length):
        monkeypatch.setattr(tokenizer, "model_max_length", 700 if knows_its_length else int(1e30))
        model = make_model("Mamba", WITHOUT["Mamba"])
        assert LanguageModel(model, tokenizer).context_length == (700 if knows_its_length else 2048)
        assert LanguageModel(model, tokenizer, max_length=3000).context_length == (700 if knows_its_length else 3000)

    def test_needs_no_pad_token_no_end_token_no_template(self, folder):
        config = json.loads((folder / "tokenizer_config.json").read_text())
        for gone in ("pad_token", "eos_token"):
            config.pop(gone)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "chat_template.jinja").unlink()
        model = LanguageModel.load(str(folder), device="cpu")
        assert model.tokenizer.pad_token_id is None
        assert model.end_ids == []
        assert not model.has_chat_template
        probabilities = model.response_probabilities(model.prefix([7]), token_ids(4, 9), token_ids(3, 2))
        assert [len(p) for p in probabilities] == [3, 2]
        with pytest.raises(ModelError, match="no chat template: use the plain wording"):
            model.chat([{"role": "user", "content": "hello"}])

    def test_finds_what_the_tokenizer_puts_in_front(self, folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
        )
        tokenizer.save_pretrained(folder)
        assert LanguageModel.load(str(folder), device="cpu").leading_ids == [1]

    def test_leaves_the_users_settings(self, tiny_model):
        library_logging.set_verbosity_info()
        library_logging.enable_progress_bar()
        try:
            LanguageModel.load(tiny_model, device="cpu")
            assert library_logging.is_progress_bar_enabled()
            assert library_logging.get_verbosity() == library_logging.INFO
            library_logging.disable_progress_bar()
            LanguageModel.load(tiny_model, device="cpu")
            assert not library_logging.is_progress_bar_enabled()
            assert are_progress_bars_disabled()
        finally:
            library_logging.set_verbosity_warning()
            library_logging.enable_progress_bar()

    def test_is_silent(self, tiny_model, minilm):
        """In a process of its own: the libraries write to the terminal they found when they were imported."""
        code = f"""
from nncift.errors import ModelError
from nncift.models.language_model import LanguageModel
model = LanguageModel.load({tiny_model!r}, device="cpu")
model.tokenizer.model_max_length = 10
assert len(model.encode(["one two " * 50])[0]) > 10
try:
    LanguageModel.load({minilm!r}, device="cpu")
except ModelError:
    print("refused")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("refused\n", "")

    def test_no_texts(self, tiny):
        assert tiny.encode([]) == []


def damage_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def only_pickled_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


NORM = "model.layers.1.input_layernorm.weight"
DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json: give the folder"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "cannot load .* not a valid JSON"),
    "unknown architecture": (lambda f: damage_config(f, model_type="zzz"), "does not know .* pip install --upgrade"),
    "wrong value": (lambda f: damage_config(f, hidden_size="many"), "cannot load the language model"),
    "encoder-decoder": (lambda f: damage_config(f, model_type="t5"), "is not a causal language model"),
    "own code": (lambda f: damage_config(f, model_type="own", auto_map={"AutoConfig": "x.Y"}), "--trust-remote-code"),
    "truncated weights": (truncate_weights, "weights of .* are damaged .*: download it again"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "weights of .* are damaged"),
    "missing weights": (lambda f: change_weights(f, lambda w: w.pop(NORM)), f"lacks 1 weights .*{NORM}"),
    "other shape": (lambda f: change_weights(f, lambda w: w.update({NORM: torch.ones(3)})), "do not fit its config"),
    "no number": (lambda f: change_weights(f, lambda w: w[NORM].fill_(torch.nan)), "logits that are not finite"),
    "pickled weights": (only_pickled_weights, "no weights in safetensors format: other formats can run code"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights in safetensors format"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer of .* cannot be read"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "cannot load the language model"),
}


class TestLoadingErrors:
    @pytest.mark.parametrize("kind", DAMAGE)
    def test_damaged_folder(self, folder, kind):
        damage, message = DAMAGE[kind]
        damage(folder)
        with pytest.raises(ModelError, match=message) as caught:
            LanguageModel.load(str(folder), device="cpu")
        assert str(folder) in str(caught.value)
        assert len(str(caught.value)) < 400 + 2 * len(str(folder))

    @pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", "not a name"])
    def test_unknown_name(self, name):
        with pytest.raises(ModelError, match=name):
            LanguageModel.load(name)

    def test_sentence_encoder(self, minilm):
        with pytest.raises(ModelError, match="weights of a causal language model"):
            LanguageModel.load(minilm)

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (OSError("You are trying to access a gated repo.\nMake sure to have access."), "hf auth login"),
            (LocalEntryNotFoundError("An error happened"), "was interrupted .* run the same command again"),
            (OSError(28, "No space left on device"), "no space left on the disk .* free some"),
            (torch.cuda.OutOfMemoryError("CUDA out of memory"), "does not fit into memory .* --dtype bfloat16"),
        ],
    )
    def test_what_only_happens_elsewhere(self, error, reason):
        """Errors of the hub and of graphics cards, as the libraries word them."""
        try:
            raise OSError("We couldn't load it") from error
        except OSError as wrapped:
            given = wrapped if isinstance(error, LocalEntryNotFoundError) else error
        assert re.search(reason, " ".join(_reason("org/name", given)))
        assert "org/name" in _reason("org/name", given)[0]

    def test_model_that_reads_more_than_text(self, tiny, monkeypatch):
        def forward(input_ids, pixel_values):
            raise AssertionError

        monkeypatch.setattr(tiny.model, "forward", forward)
        with pytest.raises(ModelError, match=r"cannot read text alone .*pixel_values"):
            LanguageModel(tiny.model, tiny.tokenizer)

    def test_model_that_fits_but_cannot_run(self, tiny, monkeypatch):
        def forward(input_ids):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(tiny.model, "forward", forward)
        with pytest.raises(ModelError, match="ran out of memory on one sequence of 12 tokens"):
            LanguageModel(tiny.model, tiny.tokenizer)

    def test_model_that_looks_ahead(self, tokenizer):
        options = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        bert = make_model("Bert", {**options, "intermediate_size": 64})
        with pytest.raises(ModelError, match="'bert' is not a causal language model: what follows"):
            LanguageModel(bert, tokenizer, name="bert")

    def test_dtype_and_device(self, tiny_model):
        with pytest.raises(ConfigError, match="dtype 'int4' is not known: give one of float32"):
            LanguageModel.load(tiny_model, dtype="int4")
        for device in ("quantum", "cuda:99"):
            with pytest.raises(ConfigError, match=f"device '{device}' cannot be used .*: give cuda, mps or cpu"):
                LanguageModel.load(tiny_model, device=device)


class TestChat:
    def test_renders_up_to_the_reply(self, tiny):
        text = tiny.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
        assert text == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_a_template_that_refuses(self, tiny):
        tiny.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
        with pytest.raises(ModelError, match=r"refuses the messages \(roles must alternate\): use the plain wording"):
            tiny.chat([{"role": "user", "content": "Hi"}])
