"""Losses of responses and means of hidden states: one forward pass of a language model per sample.

A mean of hidden states sends nothing to the output layer, and for a layer in the middle the pass ends there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nncift.errors import ModelError
from nncift.models.language_model import LanguageModel, Prefix


def response_losses(
    model: LanguageModel,
    prefix: Prefix,
    queries: Sequence[list[int]],
    responses: Sequence[list[int]],
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """Mean over each response's tokens of the negative log-probability (natural logarithm), (n,) float64.

    Raises:
        ModelError: one continuation alone does not fit into memory, or a token is not in the model.
    """
    found = model.response_log_probabilities(prefix, queries, responses, batch_size=batch_size)
    return np.array([-values.astype(np.float64).mean() for values in found])


def layer_count(model: LanguageModel) -> int:
    """How many layers the model has."""
    return int(model.model.config.get_text_config().num_hidden_layers)


def mean_states(
    model: LanguageModel,
    sequences: Sequence[list[int]],
    weights: Sequence[np.ndarray],
    *,
    layer: int | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Weighted means over positions of the hidden states that enter a layer.

    Args:
        model: the language model.
        sequences: n lists of token ids.
        weights: n arrays of float, one number per token.
        layer: 0 for the embeddings, k for what layer k - 1 gave, None for what the output layer is given (after
            the last normalisation). The pass ends there.
        batch_size: sequences per forward pass, at most.

    Returns:
        (n, hidden) float32.

    Raises:
        ModelError: one sequence alone does not fit into memory, or the model's layers cannot be told apart.
    """
    place = layer_module(model, layer)

    def work(batch: list[int]) -> list[np.ndarray]:
        states = model.states_entering(place, [sequences[j] for j in batch]).float()
        weight = torch.zeros(states.shape[:2])
        for number, j in enumerate(batch):
            weight[number, : len(weights[j])] = torch.from_numpy(np.asarray(weights[j], dtype=np.float32))
        return list(torch.einsum("nt,nth->nh", weight.to(states.device), states).cpu().numpy())

    found = model.in_batches(
        work, [len(sequence) for sequence in sequences], [0] * len(sequences), batch_size=batch_size
    )
    return np.stack(found) if found else np.zeros((0, model.model.config.get_text_config().hidden_size), np.float32)


def layer_module(model: LanguageModel, layer: int | None) -> Any:
    """The module that the wanted states enter: layer number `layer`, or the output layer for None.

    Raises:
        ModelError: the model's layers cannot be told apart.
    """
    count = layer_count(model)
    if layer is None or layer == count:
        place = model.model.get_output_embeddings()
    else:
        stacks = (m for m in model.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count)
        stack = next(stacks, None)
        place = None if stack is None else stack[layer]
    if place is None:
        raise ModelError(f"cannot tell the layers of {model.name!r} apart", "take another model")
    return place
