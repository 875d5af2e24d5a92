"""Per-token factors of a response's loss gradient, from a forward pass and a backward pass of the output layer alone.

The gradient of a linear layer's weight is the sum over tokens of (gradient of its output) x (its input). Both are there
after a forward pass, as far as a residual stream goes: the gradient at the last layer's output reaches every layer's
output along the identity path, and it takes no more than the final norm and the output layer. So for response token t,

    g_t: gradient of the sample's loss at the last layer's output, at the position that predicts t
    x_t: the normalized states that enter a layer, at the same position

and sum over t of g_t x_t^T stands for the layer's gradient. The model's own forward pass is run, so capped and scaled
logits are right; the graph begins at the last layer's output, and only response positions go through the output layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from nncift.errors import ModelError
from nncift.models.hidden_states import layer_count, layer_module
from nncift.models.language_model import LanguageModel, response_positions
from nncift.models.onednn import onednn_linears
from nncift.models.text.examples import Example


class TokenFactors(NamedTuple):
    """Of one sample with T response tokens, float32.

    Attributes:
        gradients: (T, hidden), at the last layer's output, of the sample's loss: the mean over its turns of the mean
            over a turn's tokens.
        inputs: (layers, T, hidden), normalized.
        weights: (T,), of each token in the loss; they sum to 1.
    """

    gradients: torch.Tensor
    inputs: torch.Tensor
    weights: torch.Tensor


class BatchFactors(NamedTuple):
    """Of n samples, the tokens of one after those of another.

    Attributes:
        factors: of all their tokens.
        tokens: of each sample; at least one.
    """

    factors: TokenFactors
    tokens: list[int]

    def to(self, device: torch.device | str) -> Self:
        """On a device."""
        return self._replace(factors=TokenFactors(*(part.to(device) for part in self.factors)))

    def split(self) -> list[TokenFactors]:
        """Those of each sample."""
        gradients, inputs, weights = self.factors
        own = (torch.split(part, self.tokens, dim) for part, dim in ((gradients, 0), (inputs, 1), (weights, 0)))
        return [TokenFactors(*parts) for parts in zip(*own, strict=True)]

    def parts(self, size: int) -> list[BatchFactors]:
        """Of at most `size` samples each."""
        counts = [self.tokens[start : start + size] for start in range(0, len(self.tokens), size)]
        whole = self._replace(tokens=[sum(some) for some in counts]).split()
        return [BatchFactors(factors, some) for factors, some in zip(whole, counts, strict=True)]

    def padded(self) -> TokenFactors:
        """(n, longest, hidden), (layers, n, longest, hidden) and (n, longest), 0 after a sample's last token."""
        taken = torch.arange(max(self.tokens)) < torch.tensor(self.tokens)[:, None]
        places = taken.flatten().nonzero()[:, 0].to(self.factors.weights.device)

        def spread(values: torch.Tensor, dim: int) -> torch.Tensor:
            shape = (*values.shape[:dim], taken.numel(), *values.shape[dim + 1 :])
            rows = values.new_zeros(shape).index_copy_(dim, places, values)
            return rows.view(*values.shape[:dim], *taken.shape, *values.shape[dim + 1 :])

        gradients, inputs, weights = self.factors
        return TokenFactors(spread(gradients, 0), spread(inputs, 1), spread(weights, 0))


def token_factors(model: LanguageModel, batch: Sequence[Example], layers: Sequence[int]) -> list[TokenFactors]:
    """The factors of each sample of a batch, on the model's device.

    Args:
        model: the language model.
        batch: the samples.
        layers: numbers of layers, ascending. The number of layers itself stands for the output layer, whose input is
            normalized by the final norm.

    Raises:
        ModelError: the layers cannot be identified, have no norm at their input, or differ in width.
    """
    return batch_factors(model, batch, layers).split()


def batch_factors(model: LanguageModel, batch: Sequence[Example], layers: Sequence[int]) -> BatchFactors:
    """`token_factors`, side by side."""
    return logits_and_factors(model, [example.ids[:-1] for example in batch], batch, layers)[1]


def logits_and_factors(
    model: LanguageModel, sequences: Sequence[list[int]], batch: Sequence[Example], layers: Sequence[int]
) -> tuple[torch.Tensor, BatchFactors]:
    """`batch_factors`, and the logits behind them, from one forward pass.

    Args:
        model: the language model.
        sequences: of each sample its token ids, with or without the last one, which predicts none.
        batch: the samples.
        layers: as of `token_factors`.

    Returns:
        The logits that predict the response tokens, (positions, vocabulary) in the model's dtype, and the factors.

    Raises:
        ModelError: as `token_factors`.
    """
    spans = [example.spans for example in batch]
    rows, columns, wanted = response_positions([example.ids for example in batch], spans)
    places = (rows.to(model.device), columns.to(model.device))
    with torch.no_grad(), onednn_linears(model.model), _inputs(model, layers, places) as inputs, _leaf(model) as last:
        logits = model.logits_at(sequences, rows, columns)
        errors = torch.softmax(logits.detach().float(), dim=-1)
        errors[torch.arange(len(wanted), device=errors.device), wanted.to(errors.device)] -= 1
        (gradients,) = torch.autograd.grad(logits, last, errors.to(logits.dtype))
    if {*inputs} != {*layers} or len({states.shape[-1] for states in inputs.values()}) > 1:
        raise ModelError(
            f"the layers of {model.name!r} have no norm at their input, or not one width",
            "give another `influence`, such as response-similarity, and no gradient-sketch in `features`",
        )
    shares = [1 / (end - start) / len(one) for one in spans for start, end in one for _ in range(start, end)]
    weights = torch.tensor(shares, device=model.device)
    gradients = gradients[places].float() * weights[:, None]
    states = torch.stack([inputs[layer] for layer in layers])
    return logits.detach(), BatchFactors(
        TokenFactors(gradients, states, weights), [example.scored for example in batch]
    )


def join_factors(samples: Sequence[TokenFactors]) -> dict[str, np.ndarray]:
    """Factors of some samples on the CPU as arrays that can be stored."""
    return {
        "gradients": torch.cat([sample.gradients for sample in samples]).numpy(),
        "inputs": torch.cat([sample.inputs for sample in samples], dim=1).numpy(),
        "weights": torch.cat([sample.weights for sample in samples]).numpy(),
        "tokens": np.array([len(sample.weights) for sample in samples]),
    }


def joined_factors(arrays: Mapping[str, np.ndarray]) -> BatchFactors:
    """What `join_factors` has made arrays of."""
    gradients, inputs, weights = (torch.from_numpy(arrays[name]) for name in ("gradients", "inputs", "weights"))
    return BatchFactors(TokenFactors(gradients, inputs, weights), arrays["tokens"].tolist())


Places = tuple[torch.Tensor, torch.Tensor]


@contextlib.contextmanager
def _inputs(model: LanguageModel, layers: Sequence[int], places: Places) -> Iterator[dict[int, torch.Tensor]]:
    """Normalized inputs (positions, hidden) float32 of layers at the given places, in a forward pass in the block.

    A layer's norm is the one that is applied to the layer's own input, wherever the architecture defines it.
    """
    found: dict[int, torch.Tensor] = {}
    entering: dict[int, torch.Tensor] = {}

    def enter(layer: int, module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        entering[layer] = arguments[0] if arguments else named["hidden_states"]

    def leave(layer: int, module: Any, arguments: tuple[Any, ...], output: Any) -> None:
        if layer not in found and arguments and arguments[0] is entering[layer]:
            found[layer] = output[places].float()

    def enter_output(layer: int, module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        found[layer] = (arguments[0] if arguments else named["input"]).detach()[places].float()

    hooks = []
    for layer in layers:
        module = layer_module(model, layer)
        hook = enter_output if layer == layer_count(model) else enter
        hooks.append(module.register_forward_pre_hook(partial(hook, layer), with_kwargs=True))
        norms = [part for part in module.children() if "norm" in type(part).__name__.lower()]
        hooks += [norm.register_forward_hook(partial(leave, layer)) for norm in norms]
    try:
        yield found
    finally:
        for one in hooks:
            one.remove()


@contextlib.contextmanager
def _leaf(model: LanguageModel) -> Iterator[list[torch.Tensor]]:
    """The last layer's output, from which on the graph of a forward pass in the block is recorded.

    Inside `torch.no_grad`, whose end restores the mode.
    """
    leaves: list[torch.Tensor] = []

    def begin(module: Any, arguments: tuple[Any, ...], output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        leaves.append(states.detach().requires_grad_(True))
        torch.set_grad_enabled(True)
        return (leaves[0], *output[1:]) if isinstance(output, tuple) else leaves[0]

    hook = layer_module(model, layer_count(model) - 1).register_forward_hook(begin)
    try:
        yield leaves
    finally:
        hook.remove()
