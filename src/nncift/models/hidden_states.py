"""Mean hidden states: one forward pass of a language model per sample, which stops at the layer that is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from nncift.errors import ModelError
from nncift.models.language_model import LanguageModel


def layer_count(model: LanguageModel) -> int:
    """Number of layers of the model."""
    return int(model.model.config.get_text_config().num_hidden_layers)


def mean_states(
    model: LanguageModel,
    sequences: Sequence[list[int]],
    weights: Sequence[np.ndarray],
    *,
    layer: int | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Weighted means over positions of the hidden states at a layer's input, (n, hidden) float32.

    Args:
        model: the language model.
        sequences: n lists of token ids.
        weights: n float arrays, one weight per token.
        layer: 0 for the embeddings, k for the output of layer k - 1, None for the input of the output layer (after
            the final norm).
        batch_size: sequences per forward pass, at most.
    """
    module = layer_module(model, layer)

    def work(batch: list[int]) -> list[np.ndarray]:
        states = model.states_entering(module, [sequences[j] for j in batch]).float()
        weight = pad_sequence([torch.as_tensor(weights[j], dtype=torch.float32) for j in batch], batch_first=True)
        return list(torch.einsum("nt,nth->nh", weight.to(states.device), states).cpu().numpy())

    found = model.in_batches(work, list(map(len, sequences)), [0] * len(sequences), batch_size=batch_size)
    return np.stack(found) if found else np.zeros((0, model.model.config.get_text_config().hidden_size), np.float32)


def layer_module(model: LanguageModel, layer: int | None) -> Any:
    """Layer number `layer` of the model, or the output layer for None."""
    if layer is None or layer == layer_count(model):
        module = model.model.get_output_embeddings()
        if module is None:
            raise _unknown_layers(model)
        return module
    return _stack(model)[1][layer]


def layer_names(model: LanguageModel) -> list[str]:
    """Names of the model's layers, such as "model.layers.0": their modules' names begin with it and a dot."""
    name, stack = _stack(model)
    return [f"{name}.{number}" for number in range(len(stack))]


def _stack(model: LanguageModel) -> tuple[str, torch.nn.ModuleList]:
    """The list of the model's layers, and its name."""
    count = layer_count(model)
    for name, part in model.model.named_modules():
        if isinstance(part, torch.nn.ModuleList) and len(part) == count:
            return name, part
    raise _unknown_layers(model)


def _unknown_layers(model: LanguageModel) -> ModelError:
    return ModelError(f"cannot identify the layers of {model.name!r}", "take another model")
