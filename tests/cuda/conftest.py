"""What the tests on a GPU share: tiny random models with a tokenizer of bytes, nothing embedded or downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from builders import SMALL, make_model, tokenizer_of_bytes, word_rows, write_rows
from nncift.models.language_model import LanguageModel

DEVICE = "cuda"


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    """The GPU; every test beside it is skipped without one."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return DEVICE


@pytest.fixture(scope="session")
def model_folder(device, tmp_path_factory) -> str:
    """A Llama of two layers, large enough in its weights that predictions differ from token to token."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), tokenizer_of_bytes()
    options = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    make_model("Llama", options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def encoder_folder(device, tmp_path_factory) -> str:
    """A sentence encoder of one layer: the mean over a BERT's states."""
    folder, tokenizer = tmp_path_factory.mktemp("encoder"), tokenizer_of_bytes()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def on_cpu(model_folder) -> LanguageModel:
    return LanguageModel.load(model_folder, device="cpu")


@pytest.fixture
def on_device(model_folder, device) -> LanguageModel:
    return LanguageModel.load(model_folder, device=device)


@pytest.fixture(scope="session")
def files(device, tmp_path_factory) -> dict[str, str]:
    """Paths of a pool, a target and a test set."""
    folder: Path = tmp_path_factory.mktemp("files")
    sides = {"pool": (40, 0), "target": (6, 100), "test": (8, 500)}
    return {side: write_rows(folder / f"{side}.jsonl", word_rows(n, start)) for side, (n, start) in sides.items()}
