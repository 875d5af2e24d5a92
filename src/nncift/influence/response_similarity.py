"""Similarity of mid-layer hidden states averaged over the response tokens: half a forward pass per sample.

Hidden states of different samples share a large common component, which makes every cosine close to 1, and a few
dimensions of a model are a thousand times as large as the others and would dominate. So every dimension is
standardized over the samples given to `prepare`, and values depend on that set. The states are the inputs of the middle
layer, averaged over the response tokens (without end-of-text, which is the same in every sample); the forward pass
stops there.

Influence is summed over a subset. Summed, many moderate cosines outweigh a few high ones; exp(sharpness (cos - 1))
avoids this and has a higher linear datamodeling score (docs/measurements.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import ConfigError
from nncift.influence.base import Traits
from nncift.influence.representation_similarity import RepresentationSimilarity
from nncift.models.hidden_states import layer_count
from nncift.models.language_model import LanguageModel
from nncift.models.spec import ModelSpec

if TYPE_CHECKING:
    from datasets import Dataset


class ResponseSimilarity(RepresentationSimilarity):
    """exp(sharpness (cos - 1)) of standardized mid-layer means over response tokens, in (0, 1]; 1 for the same mean.

    Args:
        model: a folder, a hub id, "embedded", a `LanguageModel`, or a `ModelSpec`.
        layer: the layer whose input is used, from 0 (the embeddings); the middle one unless given.
        sharpness: of the exponential; 0 gives the cosine itself, in [-1, 1].
        **options: wording, batch_size, dtype, device, max_length, trust_remote_code of `RepresentationSimilarity`.

    Raises:
        ConfigError: the sharpness is negative or not finite.
    """

    name = "response-similarity"
    traits = Traits(relative=True, factored=True, asks_language_model=True)
    _mean: np.ndarray | None = None  # (hidden,) float64
    _deviation: np.ndarray | float = 1.0  # likewise, above 0
    _restored: bool = False  # these are those of earlier samples

    def __init__(
        self,
        model: str | LanguageModel | ModelSpec,
        *,
        layer: int | None = None,
        sharpness: float = 5.0,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        if not 0 <= sharpness < math.inf:
            raise ConfigError(
                f"`sharpness` {sharpness} is out of range", "give a number of at least 0; 0 gives the cosine"
            )
        self.layer = layer
        self.sharpness = sharpness

    def describe(self) -> dict[str, Any]:
        """With the layer and the sharpness."""
        own = {"layer": "middle" if self.layer is None else self.layer, "sharpness": self.sharpness}
        return super().describe() | own

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Encode each distinct sample once, and compute mean and standard deviation of each dimension over them all."""
        super().prepare(pool, target, folder)
        restored, self._restored = self._restored, False
        if self._cache and not restored:
            # In the order of the keys: the numbers are the same however the samples are ordered.
            means = np.stack([self._cache[key] for key in sorted(self._cache)]).astype(np.float64)
            self._mean, deviation = means.mean(axis=0), means.std(axis=0)
            varies = deviation > 1e-6 * deviation.max(initial=0)
            self._deviation = np.where(varies, deviation, np.inf)  # constant dimensions become 0

    def statistics(self) -> dict[str, np.ndarray]:
        """Mean and standard deviation of each dimension, (hidden,) float64 each."""
        return {} if self._mean is None else {"mean": self._mean, "deviation": np.asarray(self._deviation)}

    def restore(self, statistics: Mapping[str, np.ndarray]) -> None:
        """Standardize by earlier samples."""
        self._mean, self._deviation, self._restored = statistics["mean"], statistics["deviation"], True

    def vectors(self, rows: Dataset) -> np.ndarray:
        """Standardized means of length 1, (n, hidden) float32."""
        if self._mean is None:
            raise ConfigError(f"{self.name} needs the mean of all samples", "call prepare(pool, target) first")
        return super().vectors(rows)

    def from_products(self, products: np.ndarray) -> np.ndarray:
        """exp(sharpness (cosine - 1)), or the cosine."""
        cosine = super().from_products(products)
        return np.exp(np.float32(self.sharpness) * (cosine - 1)) if self.sharpness else cosine

    def _layer(self) -> int:
        count = layer_count(self.language_model)
        layer = count // 2 if self.layer is None else self.layer
        if not 0 <= layer <= count:
            raise ConfigError(f"`layer` {layer} does not exist in {self.language_model.name!r}", f"give 0 to {count}")
        return layer

    def _weights(self, context: int, length: int) -> np.ndarray:
        ends = len(self.language_model.end_ids)
        end = length - ends if length - ends > context else length  # a response may be the end token alone
        weights = np.zeros(length)
        weights[context:end] = 1 / (end - context)
        return weights

    def _standardized(self, means: np.ndarray) -> np.ndarray:
        return np.asarray((means - self._mean) / self._deviation)
