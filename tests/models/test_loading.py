"""Loading models: facts, damaged folders, the libraries' errors, the user's settings, and specs."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer
from transformers.utils import logging as library_logging

from builders import LAYERS, WITHOUT, make_model, token_ids
from nncift.errors import ConfigError, ModelError
from nncift.models.encoder import embed_texts
from nncift.models.language_model import LanguageModel
from nncift.models.loading import _reason, quiet
from nncift.models.spec import EncoderSpec, ModelSpec


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    """A copy of the tiny model's folder, to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


class TestLoading:
    def test_facts(self, tiny_model, tiny):
        assert (tiny.name, tiny.device.type, tiny.dtype) == (tiny_model, "cpu", torch.float32)
        assert tiny.context_length == 512
        assert LanguageModel.load(tiny_model, max_length=100).context_length == 100
        assert LanguageModel.load(tiny_model, max_length=1000).context_length == 512
        assert tiny.end_ids == [tiny.tokenizer.eos_token_id]
        assert tiny.leading_ids == tiny.encode([]) == []
        assert tiny.has_chat_template
        assert not tiny.model.training

    @pytest.mark.parametrize("has_limit", [True, False])
    def test_context_length_of_a_model_without_a_limit(self, tiny, monkeypatch, has_limit):
        monkeypatch.setattr(tiny.tokenizer, "model_max_length", 700 if has_limit else int(1e30))
        model = make_model("Mamba", WITHOUT["Mamba"])
        for most, expected in ((None, 2048), (3000, 3000)):
            found = LanguageModel(model, tiny.tokenizer, max_length=most).context_length
            assert found == (700 if has_limit else expected)

    def test_pad_token_end_token_and_template_are_optional(self, folder):
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
        with pytest.raises(ModelError, match='no chat template: set `wording` to "plain"'):
            model.chat([{"role": "user", "content": "hello"}])

    def test_leading_special_tokens_are_found(self, folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
        )
        tokenizer.save_pretrained(folder)
        assert LanguageModel.load(str(folder), device="cpu").leading_ids == [1]

    def test_the_users_logging_settings_are_restored(self):
        library_logging.set_verbosity_info()
        try:
            for enabled in (True, False):
                (library_logging.enable_progress_bar if enabled else library_logging.disable_progress_bar)()
                with quiet():
                    assert not library_logging.is_progress_bar_enabled()
                assert library_logging.is_progress_bar_enabled() == (not are_progress_bars_disabled()) == enabled
                assert library_logging.get_verbosity() == library_logging.INFO
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
    "unknown architecture": (lambda f: damage_config(f, model_type="zzz"), "does not support .* pip install --upgrade"),
    "wrong value": (lambda f: damage_config(f, hidden_size="many"), "cannot load the language model"),
    "encoder-decoder": (lambda f: damage_config(f, model_type="t5"), "is not a causal language model"),
    "own code": (
        lambda f: damage_config(f, model_type="own", auto_map={"AutoConfig": "x.Y"}),
        "allow it with `trust_remote_code`",
    ),
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

    def test_sentence_encoder(self, minilm):
        with pytest.raises(ModelError, match="weights of a causal language model"):
            LanguageModel.load(minilm)

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (OSError("You are trying to access a gated repo.\nMake sure to have access."), "hf auth login"),
            (LocalEntryNotFoundError("An error happened"), "was interrupted .* run the same command again"),
            (OSError(28, "No space left on device"), "no space left on the disk .* free some"),
            (torch.cuda.OutOfMemoryError("CUDA out of memory"), "does not fit into memory .* `dtype` bfloat16"),
        ],
    )
    def test_errors_of_the_hub_and_of_graphics_cards(self, error, reason):
        if isinstance(error, LocalEntryNotFoundError):  # as transformers wraps it
            wrapped = OSError("We couldn't load it")
            wrapped.__cause__, error = error, wrapped
        assert re.search(reason, " ".join(_reason("org/name", error)))
        assert "org/name" in _reason("org/name", error)[0]

    def test_model_that_reads_more_than_text(self, tiny, monkeypatch):
        def forward(input_ids, pixel_values):
            raise AssertionError

        monkeypatch.setattr(tiny.model, "forward", forward)
        with pytest.raises(ModelError, match=r"cannot read text alone .*pixel_values"):
            LanguageModel(tiny.model, tiny.tokenizer)

    def test_model_that_is_not_causal(self, tiny):
        bert = make_model("Bert", {**LAYERS, "intermediate_size": 64})
        with pytest.raises(ModelError, match="'bert' is not a causal language model: its predictions depend"):
            LanguageModel(bert, tiny.tokenizer, name="bert")

    def test_a_model_that_rounds_by_the_shape_of_a_pass(self, fresh):
        """On a GPU with TF32, small passes can go through other kernels than large ones, which round less."""

        def rounded(module, arguments, output):
            noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(output.shape[1]))
            return output * (1 + 0.005 * noise)

        fresh.model.model.norm.register_forward_hook(rounded)
        assert LanguageModel(fresh.model, fresh.tokenizer).shares_prefix

    def test_dtype_and_device(self, tiny_model):
        with pytest.raises(ConfigError, match="`dtype` 'int4' is unknown: give one of float32"):
            LanguageModel.load(tiny_model, dtype="int4")
        for device in ("quantum", "cuda:99"):
            with pytest.raises(ConfigError, match=f"`device` '{device}' cannot be used .*: give cuda, mps or cpu"):
                LanguageModel.load(tiny_model, device=device)


def test_a_spec_loads_its_model_once(tiny_model):
    spec = ModelSpec(tiny_model, device="cpu", max_length=64)
    assert spec.describe() == {"model": tiny_model, "dtype": "float32", "max_length": 64}
    assert not spec.is_loaded
    assert spec.loaded is spec.loaded is ModelSpec.of(spec).loaded
    assert spec.loaded.context_length == 64
    copy = pickle.loads(pickle.dumps(spec))
    assert copy == spec
    assert not copy.is_loaded
    assert ModelSpec.of(spec, max_length=32).loaded.context_length == 32
    assert ModelSpec.of(spec.loaded).loaded is spec.loaded
    assert ModelSpec(spec.loaded).describe() == spec.describe()


def test_an_encoder_spec_embeds_as_its_encoder(minilm):
    spec = EncoderSpec(minilm, device="cpu", batch_size=2)
    texts = ["one", "two", "three"]
    assert (embed_texts(texts, spec) == embed_texts(texts, spec.loaded, batch_size=2)).all()
    assert EncoderSpec(spec.loaded).name == "SentenceTransformer"
    with pytest.raises(ConfigError, match="`batch_size` 0 is too small"):
        EncoderSpec(minilm, batch_size=0)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False, "avx512_f": True}, "float32"),
        ({"architecture": "aarch64", "bf16": True}, "float32"),
        (None, "float32"),  # a torch that cannot be asked
    ],
)
def test_the_default_precision_is_that_of_the_cpu(monkeypatch, tiny_model, capabilities, expected):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if capabilities is not None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    spec = ModelSpec(tiny_model, device="cpu")
    assert spec.precision == spec.describe()["dtype"] == spec.loaded.precision == expected
    assert ModelSpec(tiny_model, device="cpu", dtype="float32").precision == "float32"
