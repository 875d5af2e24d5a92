"""How alike the language model's mid-layer means over the response tokens are: one (half) pass per sample.

Hidden states of different samples share a large common part; with it every cosine is near 1. And a few of a model's
states are a thousand times as large as the others; with these they would be all that is seen. So every state is
standardised over the samples that `prepare` sees, and values depend on what those are. The states are those that
enter the middle layer, averaged over the response's tokens (the end-of-text token is left out, it is the same in every
sample), and the forward pass ends there.

An influence is summed over a subset, and the cosine of many middling samples outweighs that of a few which are truly
alike; its exponential does not, and foretells training far better (docs/influences.md).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from nncift.errors import ConfigError
from nncift.influence.base import ModelOptions
from nncift.influence.representation_similarity import RepresentationSimilarity
from nncift.models.hidden_states import layer_count
from nncift.models.language_model import LanguageModel
from nncift.models.prompts import Style, Wording

if TYPE_CHECKING:
    from datasets import Dataset


class ResponseSimilarity(RepresentationSimilarity):
    """exp(sharpness (cos - 1)) of standardised mid-layer means over response tokens, in (0, 1]; 1 for the same mean.

    Args:
        model: a folder, a hub id, "embedded", or a `LanguageModel`.
        layer: which layer's input to read, from 0 (the embeddings); the middle one unless given.
        sharpness: of the exponential; 0 leaves the cosine itself, in [-1, 1].
        wording: that of `RepresentationSimilarity`.
        **options: batch_size, dtype, device, max_length, trust_remote_code of `LanguageModelFunction`.

    Raises:
        ConfigError: the sharpness is negative or not finite.
    """

    name = "response-similarity"
    relative = True

    def __init__(
        self,
        model: str | LanguageModel,
        *,
        layer: int | None = None,
        sharpness: float = 5.0,
        wording: Style | Wording = "auto",
        **options: Unpack[ModelOptions],
    ) -> None:
        super().__init__(model, wording=wording, **options)
        if not 0 <= sharpness < math.inf:
            raise ConfigError(f"sharpness {sharpness} cannot be used", "give a number of at least 0; 0 is the cosine")
        self.layer = layer
        self.sharpness = sharpness
        self._centre: np.ndarray | None = None  # (hidden,) float64
        self._spread: np.ndarray | None = None  # likewise, above 0

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON; loads nothing."""
        own = {"layer": "middle" if self.layer is None else self.layer, "sharpness": self.sharpness}
        return super().describe() | own

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Read each distinct sample once, and take the mean and the deviation of each state over them all.

        Raises:
            ConfigError: the model has no such layer.
            DataError: a response does not fit into the context.
            ModelError: the model cannot be loaded, or leaves no room beside the wording.
            RunError: a shard is damaged.
        """
        super().prepare(pool, target, folder)
        if self._known:
            # In the order of the keys: the numbers are the same however the samples are ordered.
            means = np.stack([self._known[key] for key in sorted(self._known)]).astype(np.float64)
            self._centre, spread = means.mean(axis=0), means.std(axis=0)
            told = spread > 1e-6 * spread.max(initial=0)
            self._spread = np.where(told, spread, np.inf)  # no difference tells nothing

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Similarity of each pool sample to each target, (n_pool, n_target) float32.

        Raises:
            ConfigError: `prepare` has not been called, so the mean is not known.
            DataError: a response does not fit into the context.
            ModelError: the model cannot be loaded, or one sequence alone does not fit into memory.
        """
        if self._centre is None and len(pool_rows) and len(target_rows):
            raise ConfigError(f"{self.name} needs the mean of all samples", "call prepare(pool, target) first")
        cosine = super().__call__(pool_rows, target_rows)
        return np.exp(self.sharpness * (cosine - 1)) if self.sharpness else cosine

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
        assert self._spread is not None
        return np.asarray((means - self._centre) / self._spread)
