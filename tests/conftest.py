"""Fixtures: the embedded real parts, a tiny random-weight model, and the shared real data where it is."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never depend on the hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does: busy neighbours cost little

import pytest

from nncift.embedded import embedded_encoder, embedded_language_model

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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
def smollm2() -> str:
    """The folder of the real SmolLM2-135M-Instruct, dequantised once into the cache."""
    return str(embedded_language_model())


@pytest.fixture(scope="session")
def tiny_model(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random-weight two-layer Llama with SmolLM2's tokenizer and chat template, where only shapes matter."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
