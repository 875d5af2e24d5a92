"""Embedding cosine similarity (DELIFT's SE baseline): one pass of a sentence encoder per sample, no language model.

Symmetric and blind to whether a sample teaches anything: a cheap baseline. Where several turns of a chat are trained
on, each is embedded with what precedes it, and a sample is their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nncift.influence.base import InfluenceFunction, Setup, look_up
from nncift.models.encoder import embed_texts, mean_embeddings, sample_texts
from nncift.models.spec import DEFAULT_ENCODER, EncoderSpec

if TYPE_CHECKING:
    from datasets import Dataset


class EmbeddingSimilarity(InfluenceFunction):
    """Cosine of the embeddings of two samples' texts (prompt and response).

    Args:
        encoder: a sentence-transformers model, or its folder or hub id, or an `EncoderSpec`; loaded on first use.
        scaled: give (cosine + 1) / 2, in [0, 1], as DELIFT's code does, instead of the cosine in [-1, 1].
        **options: device, batch_size, trust_remote_code of `EncoderSpec`.

    Source: DELIFT (arXiv:2411.04425), section 5, "DELIFT (SE)".
    """

    name = "embedding-similarity"
    _settings = ("scaled",)

    def __init__(self, encoder: Any | EncoderSpec = DEFAULT_ENCODER, *, scaled: bool = False, **options: Any) -> None:
        self.encoder_spec = EncoderSpec.of(encoder, **options)
        self.scaled = scaled
        self._cache: dict[str, np.ndarray] = {}  # embeddings of the texts given to `prepare`

    @classmethod
    def build(cls, setup: Setup, **options: Any) -> Self:
        """The function on the run's sentence encoder."""
        return cls(setup.encoder, **options)

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Cosines, in [-1, 1] or scaled to [0, 1]."""
        if not len(pool_rows) or not len(target_rows):
            return np.zeros((len(pool_rows), len(target_rows)), np.float32)
        pool, target = (self._vectors(rows) for rows in (pool_rows, target_rows))
        cosine = np.clip(pool @ target.T, -1, 1)
        return np.asarray((cosine + 1) / 2 if self.scaled else cosine, dtype=np.float32)

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Embed each distinct text once; nothing is kept in `folder`."""
        texts = [*chain(*sample_texts(pool), *sample_texts(target))]
        self._cache = dict(zip(texts, self._embed(texts, {}), strict=True))

    def describe(self) -> dict[str, Any]:
        """With the encoder's name."""
        return super().describe() | {"encoder": self.encoder_spec.name}

    def _vectors(self, rows: Dataset) -> np.ndarray:
        """Unit vectors, (n, d) float32."""
        turns = sample_texts(rows)
        return mean_embeddings(turns, self._embed([*chain(*turns)], self._cache))

    def _embed(self, texts: Sequence[str], known: dict[str, np.ndarray]) -> np.ndarray:
        return look_up(known, texts, lambda which: embed_texts([texts[k] for k in which], self.encoder_spec))
