"""Influence as likeness: the cosine of two samples' sentence embeddings (DELIFT's SE baseline).

It costs one encoder pass per sample and no language model. Symmetric, and blind to whether a sample teaches
anything: the cheap function that a dearer one has to beat.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nncift.config import DEFAULT_ENCODER
from nncift.models.encoder import embed_texts, load_encoder, sample_texts

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.config import Config


class EmbeddingSimilarity:
    """Cosine of the embeddings of two samples' texts (prompt and response).

    Args:
        encoder: a sentence-transformers model, or its folder or hub id; loaded on first use.
        scaled: give (cosine + 1) / 2, in [0, 1], as DELIFT's code does, instead of the cosine in [-1, 1].
        batch_size: texts per forward pass; 32 unless given, on CUDA as many as fit.
        device: "cuda", "mps", "cpu"; the best there is unless given.
        trust_remote_code: run code that comes with the encoder.

    Source: DELIFT (arXiv:2411.04425), section 5, "DELIFT (SE)".
    """

    name = "embedding-similarity"

    def __init__(
        self,
        encoder: Any = DEFAULT_ENCODER,
        *,
        scaled: bool = False,
        batch_size: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.encoder = encoder
        self.scaled = scaled
        self.batch_size = batch_size
        self.device = device
        self.trust_remote_code = trust_remote_code
        self._loaded: Any = None
        self._known: dict[str, np.ndarray] = {}  # embeddings of the texts that `prepare` saw

    @classmethod
    def from_config(cls, config: Config, **options: Any) -> Self:
        """The function that a run's config asks for, with options of its own."""
        return cls(
            config.encoder or DEFAULT_ENCODER,
            batch_size=config.batch_size,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
            **options,
        )

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """Similarity of each pool sample to each target, (n_pool, n_target) float32.

        Raises:
            ModelError: the encoder cannot be loaded.
        """
        if not len(pool_rows) or not len(target_rows):
            return np.zeros((len(pool_rows), len(target_rows)), np.float32)
        pool, target = self._embed(pool_rows), self._embed(target_rows)
        cosine = np.clip(pool @ target.T, -1, 1)
        return np.asarray((cosine + 1) / 2 if self.scaled else cosine, dtype=np.float32)

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Embed every sample once, instead of once in each block; nothing is kept in `folder`.

        Raises:
            ModelError: the encoder cannot be loaded.
        """
        texts = list(dict.fromkeys(sample_texts(pool) + sample_texts(target)))
        self._known = dict(zip(texts, self._encode(texts), strict=True)) if texts else {}

    def describe(self) -> dict[str, Any]:
        """What the values depend on beside the samples, ready for JSON."""
        encoder = self.encoder if isinstance(self.encoder, str) else type(self.encoder).__name__
        return {"name": self.name, "encoder": encoder, "scaled": self.scaled}

    def _embed(self, rows: Dataset) -> np.ndarray:
        texts = sample_texts(rows)
        if self._known.keys() >= set(texts):
            return np.stack([self._known[text] for text in texts])
        return self._encode(texts)

    def _encode(self, texts: list[str]) -> np.ndarray:
        if self._loaded is None:
            self._loaded = (
                load_encoder(self.encoder, device=self.device, trust_remote_code=self.trust_remote_code)
                if isinstance(self.encoder, str)
                else self.encoder
            )
        return embed_texts(texts, self._loaded, batch_size=self.batch_size)
