"""Centred cosine of the language model's mid-layer means over the response tokens: one (half) pass per sample.

Hidden states of different samples share a large common part; with it every cosine is near 1. So the mean over
the samples that `prepare` sees is taken off first, and values depend on what those are. The states are those
that enter the middle layer, averaged over the response's tokens (the end-of-text token is left out, it is the
same in every sample), and the forward pass ends there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from nncift.errors import ConfigError
from nncift.influence.base import ModelOptions
from nncift.influence.representation_similarity import RepresentationSimilarity
from nncift.influence.wording import Style, Wording
from nncift.language_model import LanguageModel
from nncift.readings import layer_count

if TYPE_CHECKING:
    from datasets import Dataset


class ResponseSimilarity(RepresentationSimilarity):
    """Centred cosine of mid-layer means over response tokens, in [-1, 1].

    Args:
        model: a folder, a hub id, "embedded", or a `LanguageModel`.
        layer: which layer's input to read, from 0 (the embeddings); the middle one unless given.
        wording: that of `RepresentationSimilarity`.
        **options: batch_size, dtype, device, max_length, trust_remote_code of `LanguageModelFunction`.
    """

    name = "response-similarity"

    def __init__(
        self,
        model: str | LanguageModel,
        *,
        layer: int | None = None,
        wording: Style | Wording = "auto",
        **options: Unpack[ModelOptions],
    ) -> None:
        super().__init__(model, wording=wording, **options)
        self.layer = layer
        self._centre: np.ndarray | None = None  # (hidden,) float64

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        return {**super().describe(), "layer": "middle" if self.layer is None else self.layer}

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Read each distinct sample once, and take the mean of them all as the centre.

        Raises:
            ConfigError: the model has no such layer.
            DataError: a response does not fit into the context.
            ModelError: the model cannot be loaded, or leaves no room beside the wording.
            RunError: a shard is damaged.
        """
        super().prepare(pool, target, folder)
        if self._known:
            # In the order of the keys: the centre is the same however the samples are ordered.
            means = np.stack([self._known[key] for key in sorted(self._known)])
            self._centre = means.mean(axis=0, dtype=np.float64)

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Similarity of each pool sample to each target, (n_pool, n_target) float32.

        Raises:
            ConfigError: `prepare` has not been called, so the centre is not known.
            DataError: a response does not fit into the context.
            ModelError: the model cannot be loaded, or one sequence alone does not fit into memory.
        """
        if self._centre is None and len(pool_rows) and len(target_rows):
            raise ConfigError(f"{self.name} needs the mean of all samples", "call prepare(pool, target) first")
        return super().__call__(pool_rows, target_rows)

    def _layer(self) -> int:
        count = layer_count(self.language_model)
        layer = count // 2 if self.layer is None else self.layer
        if not 0 <= layer <= count:
            raise ConfigError(f"layer {layer} is not one of {self.language_model.name!r}", f"give 0 to {count}")
        return layer

    def _weights(self, context: int, length: int) -> np.ndarray:
        ends = len(self.language_model.end_ids)
        end = length - ends if length - ends > context else length  # a response may be the end token alone
        weights = np.zeros(length)
        weights[context:end] = 1 / (end - context)
        return weights

    def _centred(self, means: np.ndarray) -> np.ndarray:
        assert self._centre is not None
        return np.asarray(means - self._centre)
