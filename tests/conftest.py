"""Fixtures: the embedded real parts, a tiny random-weight model, and the shared real data where it is."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never depend on the hub
os.environ.setdefault("NNCIFT_CACHE_SIZE", "0")  # features of one test never serve another
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # bitsandbytes compiles, and imports what that takes
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does: busy neighbours cost little

import pytest

from builders import keep_first_tokens
from nncift.models.language_model import LanguageModel
from nncift.models.loading import BFLOAT16
from nncift.models.locate import embedded_encoder, embedded_language_model
from nncift.run.storage.files import read_json, write_json

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


LONGEST = ("test_reliability", "test_workers", "test_demo", "test_compare", "test_resume", "test_page")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process of `make test` waits long for another's last one."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="module", autouse=True)
def what_is_there_stays() -> None:
    """Imports and what earlier files left: collections of garbage, of which each training asks for some, skip it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def float32_by_default() -> Iterator[None]:
    """A CPU without products of bfloat16: references are in float32, and tests pass on every CPU or on none.

    Commands that tests start as processes of their own run in the default of this machine.
    """
    import torch

    found = getattr(torch.cpu, "get_capabilities", dict)()
    with pytest.MonkeyPatch.context() as patch:
        capabilities = {name: value for name, value in found.items() if name not in BFLOAT16}
        patch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """A killed process loses nothing that it wrote, only a machine without power does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def quick_runs() -> Iterator[None]:
    """Fits of the estimator in few steps and pictures laid out but not drawn: half the time of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("likelihood", "vector_process"):
            patch.setattr(f"nncift.estimator.{module}.STEPS", 10)
        patch.setattr(
            "matplotlib.backends.backend_svg.FigureCanvasSVG.print_svg",
            lambda canvas, file, **_: file.write('<svg width="1" height="1"></svg>'),
        )
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real instruction data that developers and CI have beside the checkout."""
    folder = Path(os.environ.get("NNCIFT_SHARED_DATA", SHARED_DATA))
    if not (folder / "p3_pool.jsonl.gz").exists():
        pytest.skip(f"the shared data is not at {folder} (NNCIFT_SHARED_DATA points elsewhere)")
    return folder


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of the real MiniLM sentence encoder."""
    return str(embedded_encoder())


@pytest.fixture(scope="session")
def small_encoder(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """MiniLM without all but its first layer, for runs in which no quality of the embeddings is judged."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(minilm, tmp_path_factory.mktemp("small-encoder") / "encoder"))
    write_json(folder / "config.json", read_json(folder / "config.json") | {"num_hidden_layers": 1})
    weights = load_file(folder / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if ".layer." not in name or ".layer.0." in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The folder of the real SmolLM2-135M-Instruct, dequantised once into the cache."""
    return str(embedded_language_model())


@pytest.fixture(scope="session")
def tiny_model(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random-weight two-layer Llama with SmolLM2's chat template and first tokens, where only shapes matter."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model")
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    keep_first_tokens(folder / "tokenizer.json", 4096)  # of 49,152, for which most of its time would go
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **heads, **special)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_checkpoints(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints of an adapter on the tiny model, trained hard enough that no gradient is near zero."""
    from nncift.models.text.examples import Example
    from nncift.training.lora import Lora
    from nncift.training.trainer import Training, fine_tune

    model = LanguageModel.load(tiny_model, device="cpu")
    words = model.encode(["one two three four five six seven eight nine ten"])[0]
    examples = [Example.single(str(k), [*words[k:], *words[:k]], 1 + k % 5) for k in range(8)]
    training = Training(lora=Lora(rank=4, alpha=16), epochs=2, learning_rate=1e-2)
    return [point.folder for point in fine_tune(model, examples, training, tmp_path_factory.mktemp("checkpoints"))]


@pytest.fixture(scope="module")
def tiny(tiny_model: str) -> LanguageModel:
    """The tiny model, loaded; what it counts belongs to the tests of one file."""
    return LanguageModel.load(tiny_model, device="cpu")


@pytest.fixture
def fresh(tiny_model: str) -> LanguageModel:
    """The tiny model, loaded for one test, which may change it."""
    return LanguageModel.load(tiny_model, device="cpu")


@pytest.fixture(scope="session")
def smollm2_model(smollm2: str) -> LanguageModel:
    """SmolLM2, loaded once for all tests that only read with it."""
    return LanguageModel.load(smollm2, device="cpu")
