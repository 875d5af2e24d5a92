"""Gradients of each sample of a batch from one forward and one backward pass, streamed into a random projection.

The gradient of a linear layer's weight is a sum over positions of (gradient of its output) x (its input). Kept
apart by sample, both are there after one backward pass of the summed losses, since a sample's loss depends on
its own rows alone: G_n = sum over t of g[n, t] x[n, t]^T, one batched matrix product per layer. An adapter's two
factors, lora_A and lora_B, are linear layers of their own, so nothing here knows about adapters, dropout (off) or
scaling. Padding adds nothing: no loss reaches it, so its g is exactly zero.

All weights are frozen, which spares the backward pass their batch gradients; the embeddings' output asks for a
gradient in their place. A layer's (n, out, in) gradients are made when the backward pass arrives there, go through
Adam's formula where that is asked for, are added to the (n, dimension) features, and are gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from nncift.errors import ModelError
from nncift.models.examples import Example, response_losses
from nncift.models.language_model import LanguageModel
from nncift.models.onednn import frozen_linears
from nncift.training.random_projection import SignSketch

Moments = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


Consume = Callable[[str, torch.Tensor, torch.Tensor], None]


@contextlib.contextmanager
def watched(layers: Mapping[str, torch.nn.Module], n: int, consume: Consume) -> Iterator[None]:
    """Show what one forward and one backward pass inside the block bring to layers; the passes stay as they are.

    Args:
        layers: linear layers without bias, by name.
        n: samples that go through the model.
        consume: called as consume(name, g, x) when the backward pass arrives at a layer, the last layer first, with
            g (n, positions, out) the gradient of its output and x (n, positions, in) its input. Sample k's gradient
            of the weight is g[k].T @ x[k].

    Raises:
        ModelError: a layer is used otherwise than once on all positions of the batch, as shared layers and experts are.
    """
    used: set[str] = set()

    def watch(name: str) -> Any:
        def forward(module: Any, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
            inputs = arguments[0].detach()
            if name in used or inputs.ndim != 3 or len(inputs) != n:
                raise ModelError(
                    f"{name} is not used once on every token, as gradients of single samples need it",
                    "take an adapter on other layers",
                )
            used.add(name)

            def backward(gradient: torch.Tensor) -> None:  # what a hook returns would take the gradient's place
                consume(name, gradient, inputs)

            output.register_hook(backward)  # type: ignore[no-untyped-call]

        return forward

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def stream_gradients(
    model: LanguageModel, batch: Sequence[Example], layers: Mapping[str, torch.nn.Module], consume: Consume
) -> torch.Tensor:
    """One forward and one backward pass of the sum of the samples' mean response losses.

    Args:
        model: the language model that holds the layers, all its weights frozen.
        batch: n samples.
        layers: linear layers without bias, by name.
        consume: as for `watched`.

    Returns:
        The losses, (n,) float32.

    Raises:
        ModelError: as of `watched`.
    """

    def ask(module: Any, arguments: Any, output: torch.Tensor) -> None:
        output.requires_grad_()

    hook = model.model.get_input_embeddings().register_forward_hook(ask)
    try:
        with torch.enable_grad(), frozen_linears(model.model), watched(layers, len(batch), consume):
            losses = response_losses(model, batch)
            losses.sum().backward()  # type: ignore[no-untyped-call]
    finally:
        hook.remove()
    model.backward_tokens += sum(len(example.ids) - 1 for example in batch)
    return losses.detach()


class Adam:
    """What Adam makes of a gradient, from the moments that it held at a checkpoint.

    Args:
        moments: first and second moment of each layer's weight, (out, in) float32.
        widths: length to which each layer's rows are padded, as in `SignSketch.widths`.
        betas: its decay rates.
        epsilon: added under the root.
        device: where the moments are kept.

    Source: LESS (arXiv:2402.04333), section 3.1; no bias correction, as in its code.
    """

    def __init__(
        self,
        moments: Moments,
        widths: Mapping[str, int],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        device: Any = "cpu",
    ) -> None:
        self.betas = betas
        self.epsilon = epsilon
        self._moments = {
            name: [pad(moment.to(device).float(), (0, widths[name] - moment.shape[1])) for moment in both]
            for name, both in moments.items()
        }

    def update(self, name: str, gradients: torch.Tensor) -> None:
        """In place, g -> m' / sqrt(v' + eps) with m' = b1 m + (1 - b1) g and v' = b2 v + (1 - b2) g^2."""
        first, second = self._moments[name]
        beta1, beta2 = self.betas
        root = torch.addcmul(second * beta2 + self.epsilon, gradients, gradients, value=1 - beta2).rsqrt_()
        gradients.lerp_(first, beta1).mul_(root)

    def scale(self, name: str, gradients: torch.Tensor) -> None:
        """In place, g -> g / sqrt(v + eps)."""
        gradients.mul_((self._moments[name][1] + self.epsilon).rsqrt_())


def sample_features(
    model: LanguageModel,
    batch: Sequence[Example],
    layers: Mapping[str, torch.nn.Module],
    sketch: SignSketch,
    change: Callable[[str, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Projected gradients of each sample of a batch.

    Args:
        model: the language model that holds the layers, all its weights frozen.
        batch: n samples.
        layers: linear layers without bias, by name.
        sketch: the projection, made for these layers.
        change: changes a layer's gradients (n, out, width) in place first: `Adam.update`, `Adam.scale`.

    Returns:
        (n, dimension) float32, on the model's device.
    """
    features = torch.zeros(len(batch), sketch.dimension, device=model.device)

    def consume(name: str, g: torch.Tensor, x: torch.Tensor) -> None:
        gradients = sketch.gradients(name, g, x)
        if change is not None:
            change(name, gradients)
        sketch.add(features, name, gradients)

    stream_gradients(model, batch, layers, consume)
    return features


def batched_features(
    model: LanguageModel,
    examples: Sequence[Example],
    layers: Mapping[str, torch.nn.Module],
    sketch: SignSketch,
    change: Callable[[str, torch.Tensor], None] | None = None,
    *,
    batch_size: int = 16,
) -> np.ndarray:
    """`sample_features` of any number of samples in batches of like length, (n, dimension) float32.

    A batch that does not fit into memory is halved, and so are all that come after it.

    Raises:
        ModelError: one sample alone does not fit into memory.
    """

    def work(batch: list[int]) -> list[np.ndarray]:
        return list(sample_features(model, [examples[k] for k in batch], layers, sketch, change).cpu().numpy())

    lengths = [len(example.ids) - 1 for example in examples]
    scored = [len(example.ids) - example.start for example in examples]
    found = model.in_batches(work, lengths, scored, batch_size=batch_size)
    return np.stack(found) if found else np.zeros((0, sketch.dimension), np.float32)
