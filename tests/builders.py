"""Samples and models that tests of several rooms build."""

from __future__ import annotations

import json

import numpy as np
import torch
import transformers
from datasets import Dataset, Features, Value
from transformers import AutoModelForCausalLM

from nncift.models.loading import quiet

TOKENS = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    **TOKENS,
}
WITH_PREFIX_CACHE = {
    "Llama": SMALL,
    "Mistral": {**SMALL, "sliding_window": 8},  # the prefix of the test is longer than the window
    "Gemma2": {**SMALL, "sliding_window": 8, "final_logit_softcapping": 2.0},
    "Cohere": {**SMALL, "logit_scale": 3.0},
    "Granite": {**SMALL, "logits_scaling": 3.0},
    "Qwen3": SMALL,
    "Mixtral": {**SMALL, "num_local_experts": 4},
    "GPT2": {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "Bloom": {**TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "OPT": {
        **TOKENS,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
}
WITHOUT = {"Mamba": {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}}


def make_model(architecture: str, options: dict):
    """A model of random weights, large enough that its predictions differ from token to token."""
    torch.manual_seed(0)
    with quiet():
        model = AutoModelForCausalLM.from_config(getattr(transformers, f"{architecture}Config")(**options))
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(4)
    return model


def samples(rows: list[dict]) -> Dataset:
    """Rows as `load_pool` gives them, as far as influence functions look."""
    columns = ("id", "prompt", "response", "messages")
    features = Features({column: Value("string") for column in columns})
    return Dataset.from_list([{column: row.get(column) for column in columns} for row in rows], features=features)


def named(pairs: list[tuple[str, str]], prefix: str) -> Dataset:
    return samples([{"id": f"{prefix}{k}", "prompt": p, "response": r} for k, (p, r) in enumerate(pairs)])


def chat(name: str, *contents: str, system: str | None = None) -> dict:
    """A row that comes from a chat of user and assistant in turn."""
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return {"id": name, "prompt": contents[0], "response": contents[-1], "messages": json.dumps(messages)}


def token_ids(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 290, length).tolist() for length in lengths]
