"""Per-sample gradients of a batch from one forward and one backward pass, streamed into a random projection.

The gradient of a linear layer's weight is a sum over positions of (gradient of its output) x (its input). One backward
pass of the summed losses gives both per sample, since a sample's loss depends on its own rows alone:
G_n = sum over t of g[n, t] x[n, t]^T, one batched matrix product per layer. An adapter's two factors, lora_A and
lora_B, are linear layers of their own, so nothing here depends on adapters, dropout (off) or scaling. Padding adds
nothing: no loss reaches it, so its g is exactly zero.

All weights are frozen, which saves the backward pass their batch gradients; the outputs of the lowest of these layers
require a gradient instead, so the backward pass ends there, and the model keeps no activations from below. A layer's
(n, out, in) gradients are computed when the backward pass reaches it, preconditioned by Adam if needed, added to the
(n, dimension) features, and freed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad

from nncift.errors import ModelError
from nncift.models.language_model import LanguageModel
from nncift.models.onednn import onednn_linears
from nncift.models.text.examples import Example, in_example_batches, response_losses
from nncift.training.random_projection import SignSketch

BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's

Moments = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
Consume = Callable[[str, torch.Tensor, torch.Tensor], None]


@contextlib.contextmanager
def watched(layers: Mapping[str, torch.nn.Module], n: int, consume: Consume) -> Iterator[None]:
    """Report layers' inputs and output gradients in one forward and one backward pass inside the block.

    Args:
        layers: linear layers without bias, by name.
        n: samples of the batch.
        consume: called as consume(name, g, x) when the backward pass reaches a layer, the last layer first, with g
            (n, positions, out) the gradient of its output and x (n, positions, in) its input. Sample k's gradient of
            the weight is g[k].T @ x[k].

    Raises:
        ModelError: a layer is not used exactly once on all positions of the batch, such as shared layers and experts.
    """
    used: set[str] = set()

    def watch(name: str) -> Any:
        def forward(module: Any, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
            inputs = arguments[0].detach()
            if name in used or inputs.ndim != 3 or len(inputs) != n:
                raise ModelError(
                    f"{name} is not used exactly once on every token, which per-sample gradients need",
                    "take an adapter on other layers",
                )
            used.add(name)
            if not output.requires_grad:  # all weights are frozen, and no such layer is below
                output.requires_grad_()
            output.register_hook(lambda gradient: consume(name, gradient, inputs))  # type: ignore[no-untyped-call]

        return forward

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def stream_gradients(
    model: LanguageModel, batch: Sequence[Example], layers: Mapping[str, torch.nn.Module], consume: Consume
) -> None:
    """Pass the samples' mean response losses backward through the `watched` layers of a model with frozen weights.

    The backward pass ends at the lowest of these layers.
    """
    with torch.enable_grad(), onednn_linears(model.model), watched(layers, len(batch), consume):
        response_losses(model, batch).sum().backward()  # type: ignore[no-untyped-call]
    model.backward_tokens += sum(len(example.ids) - 1 for example in batch)


class Adam:
    """Adam's preconditioning of gradients, by its moments at a checkpoint: first and second, (out, in) of each layer.

    The gradients' rows are padded to the lengths `widths`, as in `SignSketch.widths`.

    Source: LESS (arXiv:2402.04333), section 3.1; no bias correction, as in its code.
    """

    def __init__(self, moments: Moments, widths: Mapping[str, int], *, device: Any = "cpu") -> None:
        self._moments = {
            name: [pad(moment.to(device).float(), (0, widths[name] - moment.shape[1])) for moment in both]
            for name, both in moments.items()
        }

    def update(self, name: str, gradients: torch.Tensor) -> None:
        """In place, g -> m' / sqrt(v' + eps) with m' = b1 m + (1 - b1) g and v' = b2 v + (1 - b2) g^2."""
        first, second = self._moments[name]
        beta1, beta2 = BETAS
        root = torch.addcmul(second * beta2 + EPSILON, gradients, gradients, value=1 - beta2).rsqrt_()
        gradients.lerp_(first, beta1).mul_(root)

    def scale(self, name: str, gradients: torch.Tensor) -> None:
        """In place, g -> g / sqrt(v + eps)."""
        gradients.mul_((self._moments[name][1] + EPSILON).rsqrt_())


def batched_features(
    model: LanguageModel,
    examples: Sequence[Example],
    layers: Mapping[str, torch.nn.Module],
    sketch: SignSketch,
    change: Callable[[str, torch.Tensor], None] | None = None,
    *,
    batch_size: int = 16,
) -> np.ndarray:
    """Projected gradients of each sample, (n, dimension) float32.

    Args:
        model: the language model with the layers, all its weights frozen.
        examples: n samples.
        layers: linear layers without bias, by name.
        sketch: the projection for these layers.
        change: modifies a layer's gradients (n, out, width) in place first: `Adam.update`, `Adam.scale`.
        batch_size: samples in a batch, at most.
    """
    return features_by_change(model, examples, layers, sketch, [change], batch_size=batch_size)[:, 0]


def features_by_change(
    model: LanguageModel,
    examples: Sequence[Example],
    layers: Mapping[str, torch.nn.Module],
    sketch: SignSketch,
    changes: Sequence[Callable[[str, torch.Tensor], None] | None],
    *,
    batch_size: int = 16,
) -> np.ndarray:
    """As `batched_features`, (n, changes, dimension), each change applied to the gradients of the same pass."""

    def work(batch: list[Example]) -> list[np.ndarray]:
        features = torch.zeros(len(batch), len(changes), sketch.dimension, device=model.device)

        def consume(name: str, g: torch.Tensor, x: torch.Tensor) -> None:
            gradients = sketch.gradients(name, g, x)
            for number, change in enumerate(changes):
                own = gradients if number == len(changes) - 1 else gradients.clone()
                if change is not None:
                    change(name, own)
                sketch.add(features[:, number], name, own)

        stream_gradients(model, batch, layers, consume)
        return list(features.cpu().numpy())

    found = in_example_batches(model, work, examples, batch_size=batch_size)
    return np.stack(found) if found else np.zeros((0, len(changes), sketch.dimension), np.float32)
