"""Derivatives of samples' losses along directions in an adapter's weights, from forward passes alone.

The derivative of a sample's loss along a direction d is its gradient's inner product with d, the sample's first-order
influence on whatever d stands for. A central difference takes two forward passes at any batch size,

    <g, d> = (loss(W + h d) - loss(W - h d)) / 2 h + O(h^2),

without a graph or stored activations, also of a quantised base model: the adapter's weights are in float32. Errors of
rounding are those of the losses over 2 h. Where the base computes in 16 bits (SmolLM2, changes of the loss by 0.1 to
0.4), they are a tenth of the largest derivatives; in float32 a few thousandths (changes by 0.002).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import torch

from nncift.models.language_model import LanguageModel
from nncift.models.onednn import onednn_linears
from nncift.models.text.examples import Example, in_example_batches, response_losses
from nncift.training.gradients import stream_gradients

Directions = Mapping[str, torch.Tensor]  # (K, out, in) float32 of each layer


def combined_gradients(
    model: LanguageModel,
    examples: Sequence[Example],
    layers: Mapping[str, torch.nn.Module],
    weights: np.ndarray,
    *,
    batch_size: int = 16,
) -> dict[str, torch.Tensor]:
    """K weighted sums of the samples' gradients, (K, out, in) float32 of each layer, on the model's device.

    Args:
        model: the language model with the layers, all its weights frozen.
        examples: n samples.
        layers: linear layers without bias, by name.
        weights: (n, K).
        batch_size: samples in a batch, at most.
    """
    sums: dict[str, torch.Tensor] = {}
    numbers = {id(example): number for number, example in enumerate(examples)}

    def work(batch: list[Example]) -> list[None]:
        rows = weights[[numbers[id(example)] for example in batch]]
        of_batch = torch.from_numpy(rows.astype(np.float32)).to(model.device)
        found: dict[str, torch.Tensor] = {}

        def consume(name: str, g: torch.Tensor, x: torch.Tensor) -> None:
            g, x = g.float(), x.float().flatten(0, 1)
            weighted = [(g * column[:, None, None]).flatten(0, 1) for column in of_batch.T]
            found[name] = torch.stack([each.T @ x for each in weighted])

        stream_gradients(model, batch, layers, consume)
        for name, part in found.items():  # only of a batch that fitted into memory
            sums[name] = sums[name] + part if name in sums else part
        return [None] * len(batch)

    in_example_batches(model, work, examples, batch_size=batch_size)
    return {name: sums[name] for name in layers}


def directional_derivatives(
    model: LanguageModel,
    examples: Sequence[Example],
    layers: Mapping[str, torch.nn.Module],
    directions: Directions,
    steps: Sequence[float],
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """Derivatives of each sample's mean response loss along K directions, (n, K) float32; 2 K forward passes.

    Args:
        model: the language model with the layers.
        examples: n samples.
        layers: linear layers without bias, by name, with weights in float32.
        directions: of their weights.
        steps: K numbers above 0, the h of each direction.
        batch_size: samples in a batch, at most.
    """

    def work(batch: list[Example]) -> list[np.ndarray]:
        columns = []
        for number, step in enumerate(steps):
            losses = []
            for move in (step, -step):
                with _moved(layers, directions, number, move), onednn_linears(model.model):
                    losses.append(response_losses(model, batch).double())
            columns.append((losses[0] - losses[1]) / (2 * step))
        return list(torch.stack(columns, dim=1).float().cpu().numpy())

    with torch.no_grad():
        found = in_example_batches(model, work, examples, batch_size=batch_size)
    return np.stack(found) if found else np.zeros((0, len(steps)), np.float32)


@contextlib.contextmanager
def _moved(layers: Mapping[str, torch.nn.Module], directions: Directions, number: int, step: float) -> Iterator[None]:
    """The layers' weights moved by a step along a direction inside the block; restored exactly."""
    weights = {name: cast(torch.nn.Parameter, layer.weight) for name, layer in layers.items()}
    before = {name: weight.data for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.data = torch.add(before[name], directions[name][number], alpha=step)
        yield
    finally:
        for name, weight in weights.items():
            weight.data = before[name]
