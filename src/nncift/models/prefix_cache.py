"""A prefix that many continuations share: its keys and values, computed once and joined to those of any batch.

Models that cannot continue such a cache (state-space and hybrid ones) read the prefix again with every continuation:
correct, and slower. `continues_prefix` tests it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from nncift.errors import ModelError, first_line
from nncift.models.batching import in_memory, out_of_memory, sequence_too_long
from nncift.models.causal_model import CausalModel

_ROOM = 32  # tokens that a growing cache takes before it is copied
_ANOTHER = 0.1  # mean difference, in standard deviations of the logits, that is no rounding


@dataclass(frozen=True)
class Prefix:
    """Token ids that many continuations share, with their keys and values (None: read again each time)."""

    ids: list[int]
    cache: Any


def encode_prefix(model: CausalModel, ids: list[int]) -> Prefix:
    """The prefix of these token ids, at least one, with its keys and values."""
    cache = DynamicCache()
    row, last = torch.tensor([0]), torch.tensor([len(ids) - 1])
    if in_memory(lambda: model.logits([ids], row, last, cache)) is None:
        raise sequence_too_long(model.name, len(ids))
    return Prefix(ids, shared_cache(cache))


def continues_prefix(model: CausalModel) -> bool:
    """Check on a few tokens that the model is causal, and whether it continues a shared prefix.

    Logits of the same tokens in passes of other shapes differ by rounding, by how much depends on more than the model's
    dtype: with TF32 on a GPU, float32 rounds a hundred times as much. So that difference is measured.

    Raises:
        ModelError: the model cannot be run, is not causal, or gives logits that are not finite.
    """
    ids = [(7 * step + 3) % model.vocabulary for step in range(12)]
    try:
        whole = _all_logits(model, ids)
    except Exception as error:  # a model that needs images, a kernel that the device lacks
        if out_of_memory(error):
            raise sequence_too_long(model.name, len(ids)) from error
        raise ModelError(
            f"{model.name!r} cannot read text alone ({first_line(error)})", "give a decoder-only language model"
        ) from error
    if not bool(torch.isfinite(whole).all()):
        raise ModelError(
            f"{model.name!r} gives logits that are not finite", "try `dtype` float32, or download it again"
        )
    spread = float(whole.std())
    rounding = _distance(_all_logits(model, ids[:6]), whole[:6])
    if rounding > _ANOTHER * spread:
        raise ModelError(
            f"{model.name!r} is not a causal language model: its predictions depend on later tokens",
            "give a decoder-only language model",
        )
    try:
        cache = DynamicCache()
        model.logits([ids[:6]], torch.tensor([0]), torch.tensor([5]), cache)
        rows, columns = torch.tensor([0] * 6 + [1] * 2), torch.tensor([*range(6), 0, 1])
        continued = model.logits([ids[6:], ids[6:8]], rows, columns, shared_cache(cache)).float()
    except Exception:  # of any kind: this model does not take such a cache
        return False
    tolerance = max(3 * rounding, spread * (1e-3 if model.precision == "float32" else _ANOTHER))
    return _distance(continued, torch.cat([whole[6:], whole[6:8]])) <= tolerance


def _distance(some: torch.Tensor, other: torch.Tensor) -> float:
    return float((some - other).abs().mean())


def _all_logits(model: CausalModel, ids: list[int]) -> torch.Tensor:
    positions = torch.arange(len(ids))
    return model.logits([ids], torch.zeros_like(positions), positions).float()


class _SharedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values of a prefix, joined to those of any batch and unchanged by it.

    The library's cache would keep the joined ones of all layers until the pass ends; here each layer frees its own.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor | None) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values  # (1 or rows of a batch, heads, prefix, head width)
        self._rows = rows

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of prefix and batch, (batch, heads, prefix + continuation, head width)."""
        both = ((self.keys, key_states), (self.values, value_states))
        keys, values = (torch.cat([self._of(one, len(more)), more], dim=-2) for one, more in both)
        return keys, values

    def _of(self, states: torch.Tensor, n: int) -> torch.Tensor:
        return states.expand(n, -1, -1, -1) if self._rows is None else states[self._rows]


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values of a batch, with room behind them: the library's are copied with every token."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self._stores: list[torch.Tensor] = []  # (batch, heads, length with room, head width)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values with these behind them, views of (batch, heads, length, head width)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._stores or end > self._stores[0].shape[-2]:
            held = [self.keys, self.values] if start else []
            self._stores = [_with_room(more, end + _ROOM) for more in (key_states, value_states)]
            for store, before in zip(self._stores, held, strict=bool(held)):
                store[..., :start, :] = before
        for store, more in zip(self._stores, (key_states, value_states), strict=True):
            store[..., start:end, :] = more
        self.keys, self.values = (store[..., :end, :] for store in self._stores)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows of the batch, copies without room."""
        super().batch_select_indices(indices)
        self._stores = []


def _with_room(states: torch.Tensor, length: int) -> torch.Tensor:
    return states.new_empty((*states.shape[:-2], length, states.shape[-1]))


def growing_cache() -> Any:
    """An empty cache of a batch, to which tokens are added one by one in place."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = _GrowingLayer
    return cache


def shared_cache(cache: Any, rows: torch.Tensor | None = None) -> Any:
    """A cache whose keys and values any continuation may read, and none changes.

    Args:
        cache: of one sequence, which all continuations share, or of a batch.
        rows: those of the batch that are continued.
    """
    shared = DynamicCache()
    shared.layers = [_SharedLayer(layer.keys, layer.values, rows) for layer in cache.layers]
    return shared
