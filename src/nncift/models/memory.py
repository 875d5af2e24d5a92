"""Memory of a language model at work, beyond its weights: estimated from shapes, without running it.

The largest batch is the one that the batcher would make of the longest samples. Counted are the logits, with what the
loss copies of them, and the states of the layers: of one layer at a time in a forward pass, of all of them where a
backward pass needs them. Within a factor of 1.5 of what SmolLM2-135M takes on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nncift.models.language_model import LanguageModel
    from nncift.models.text.examples import Example

_FLOAT = 4  # bytes: logits, losses and adapters are in float32
_LOGITS, _LOGITS_BACKWARD = 2.5, 4  # the logits with their temporary copies in a forward pass, and in a backward pass
_LONGEST = 256  # samples of which the largest batch is found


def batch_memory(
    model: LanguageModel,
    examples: Sequence[Example],
    *,
    batch_size: int,
    adapted: int | None = None,
    depth: int | None = None,
) -> int:
    """Bytes of the largest batch.

    Args:
        model: the language model.
        examples: n samples.
        batch_size: samples in a batch, at most.
        adapted: a backward pass follows through an adapter that adds so many numbers to a token's states of a layer.
        depth: layers that the backward pass goes through; all unless given.
    """
    longest = sorted(examples, key=lambda example: -len(example.ids))[:_LONGEST]
    lengths = [len(example.ids) for example in longest]
    scored = [len(example.ids) - example.start for example in longest]
    config, element = model.model.config.get_text_config(), max(model.dtype.itemsize, 2)
    states = states_of(int(config.hidden_size), getattr(config, "intermediate_size", None)) * element
    if adapted is not None:
        states = (states + adapted * element) * int(config.num_hidden_layers if depth is None else depth)
    largest = 0.0
    for batch in model.batches(range(len(longest)), lengths, scored, batch_size):
        logits = sum(scored[k] for k in batch) * model.vocabulary * _FLOAT
        copies = _LOGITS if adapted is None else _LOGITS_BACKWARD
        largest = max(largest, copies * logits + len(batch) * lengths[batch[0]] * states)
    return round(largest)


def states_of(hidden: int, inner: int | None) -> int:
    """Numbers of a token's states in a layer: those of the attention, and of the inner layer."""
    return 8 * hidden + 3 * (inner or 4 * hidden)


def adapter_size(model: LanguageModel, modules: Sequence[str], rank: int) -> tuple[int, int]:
    """Weights of an adapter on the layers with these name endings, and the numbers it adds to a token's states."""
    shapes = [
        tuple(module.weight.shape)
        for name, module in model.model.named_modules()
        if name.endswith(tuple(modules)) and getattr(module, "weight", None) is not None and module.weight.ndim == 2
    ]
    layers = max(int(model.model.config.get_text_config().num_hidden_layers), 1)
    inputs = sum(width for _, width in shapes) + rank * len(shapes)  # the dropped-out inputs, and the first factor's
    return rank * sum(out + width for out, width in shapes), inputs // layers
