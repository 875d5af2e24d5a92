"""Sentence embeddings: the topic of a sample, from one pass of a small encoder.

Where several turns of a chat are trained on, each is embedded with what precedes it, and a sample is their mean.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nncift.features.base import TRUNCATED, FeatureSource, read_source, shard_size
from nncift.models.encoder import embed_texts, mean_embeddings, sample_texts, truncated_texts
from nncift.models.loading import best_device
from nncift.models.locate import model_identity
from nncift.models.memory import states_of
from nncift.models.spec import EncoderSpec, ModelSpec
from nncift.models.text.chats import mean_over_turns
from nncift.run.folder.parts import FeatureFolder

if TYPE_CHECKING:
    from datasets import Dataset


_BATCH = 32  # texts, on the CPU


class SentenceFeatures(FeatureSource):
    """The block "sentence": the embedding of prompt and response, of length 1."""

    kind = "sentence"

    def __init__(self, encoder: EncoderSpec) -> None:
        self.encoder, self.name = encoder, encoder.name

    @classmethod
    def build(cls, encoder: EncoderSpec, model: ModelSpec) -> Self:
        """With the run's encoder."""
        return cls(encoder)

    def memory(self, samples: Dataset) -> int:
        """Bytes of a batch of the longest texts."""
        config = getattr(getattr(self.encoder.loaded[0], "auto_model", None), "config", None)
        if config is None:
            return 0
        longest = min(int(self.encoder.loaded.max_seq_length or 512), max(map(len, chain(*sample_texts(samples)))) // 3)
        states = states_of(int(config.hidden_size), getattr(config, "intermediate_size", None))
        return (self.encoder.batch_size or _BATCH) * longest * states * 4

    def cache_settings(self) -> dict[str, Any] | None:
        """The encoder's files and its device; None for one that is given as an object."""
        if not isinstance(self.encoder.encoder, str):
            return None
        files = model_identity(self.encoder.encoder, "encoder")
        run = {"kind": self.kind, "files": files, "device": self.encoder.device or best_device()}
        return None if files is None else run

    def contents(self, samples: Dataset) -> list[str]:
        """The text that is embedded, or several as JSON, which has no line breaks and so is no other sample's text."""
        return [texts[0] if len(texts) == 1 else json.dumps(texts) for texts in sample_texts(samples)]

    def shard_size(self) -> int:
        """Fewer on the CPU."""
        return shard_size(self.encoder.device, 256)

    def __call__(self, samples: Dataset) -> dict[str, np.ndarray]:
        """The block, and which samples have a text that exceeds the encoder's maximum length."""
        turns, encoder = sample_texts(samples), self.encoder.loaded
        texts = [*chain(*turns)]
        embeddings = embed_texts(texts, encoder, batch_size=self.encoder.batch_size)
        truncated = mean_over_turns(turns, truncated_texts(texts, encoder).astype(np.float32)) > 0
        return {"sentence": mean_embeddings(turns, embeddings), TRUNCATED: truncated}


def embed(
    samples: Dataset,
    encoder: str | Any,
    *,
    folder: Path | None = None,
    name: str = "pool",
    batch_size: int | None = None,
    device: str | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Embed every sample.

    Args:
        samples: n rows with `prompt` and `response`.
        encoder: a sentence-transformers model, or its folder or hub id.
        folder: keep shards here while running, then `<name>.npy` and `<name>.json`; what is stored is not computed
            again.
        name: file name in `folder`.
        batch_size: texts per forward pass; 32 unless given, on CUDA as many as fit.
        device: where a model given by name is loaded; the library's choice unless given.
        progress: show a progress bar.

    Returns:
        (n, d) float32, rows of length 1; memory-mapped when a folder is given.

    Raises:
        ModelError: the encoder cannot be loaded.
        DataError: an embedding is not finite.
    """
    source = SentenceFeatures(EncoderSpec(encoder, device=device, batch_size=batch_size))
    place = None if folder is None else FeatureFolder(folder)
    return read_source(samples, source, folder=place, name=name, progress=progress).blocks["sentence"]
