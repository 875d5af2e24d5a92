"""Embedding cosine similarity (DELIFT's SE baseline): one pass of a sentence encoder per sample, no language model.

Symmetric and blind to whether a sample teaches anything: a cheap baseline. Where several turns of a chat are trained
on, each is embedded with what precedes it, and a sample is their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nncift.influence.base import InfluenceFunction, Setup, Traits, look_up
from nncift.models.encoder import embed_texts, mean_embeddings, sample_texts, truncated_texts
from nncift.models.spec import DEFAULT_ENCODER, EncoderSpec
from nncift.run.executors.base import workers
from nncift.run.shards import once_per_sample
from nncift.run.storage.files import fingerprint

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
    traits = Traits(factored=True)
    _settings = ("scaled",)

    def __init__(self, encoder: Any | EncoderSpec = DEFAULT_ENCODER, *, scaled: bool = False, **options: Any) -> None:
        self.encoder_spec = EncoderSpec.of(encoder, **options)
        self.scaled = scaled
        self._cache: dict[str, np.ndarray] = {}  # embeddings of the texts given to `prepare`, by key
        self._cut: set[str] = set()  # ids of truncated samples

    @classmethod
    def build(cls, setup: Setup, **options: Any) -> Self:
        """The function on the run's sentence encoder."""
        return cls(setup.encoder, **options)

    @property
    def cut_ids(self) -> frozenset[str]:  # type: ignore[override]
        """Ids of the samples with a text that exceeds the encoder's maximum length."""
        return frozenset(self._cut)

    def prepare(self, pool: Dataset, target: Dataset, folder: Path | None = None) -> None:
        """Embed each distinct text once; `folder` caches the embeddings in shards `<name>-*.safetensors`."""
        texts = [*chain(*sample_texts(pool), *sample_texts(target))]
        keys = [self._key(text) for text in texts]
        self._cache = once_per_sample(
            keys,
            texts,
            partial(embed_texts, encoder=self.encoder_spec),
            name=self.name,
            folder=folder,
            progress=self.progress,
            executor=workers(),
        )

    def vectors(self, rows: Dataset) -> np.ndarray:
        """Embeddings of length 1, (n, d) float32; a text that `prepare` did not embed is embedded now."""
        turns = sample_texts(rows)
        texts = [*chain(*turns)]
        self._note_cut(rows, turns, texts)
        embeddings = look_up(
            self._cache,
            [self._key(text) for text in texts],
            lambda which: embed_texts([texts[k] for k in which], self.encoder_spec),
        )
        return mean_embeddings(turns, embeddings)

    def from_products(self, products: np.ndarray) -> np.ndarray:
        """Cosines, in [-1, 1] or scaled to [0, 1]."""
        cosine = np.clip(products, -1, 1)
        return np.asarray((cosine + 1) / 2 if self.scaled else cosine, dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """With the encoder's name."""
        return super().describe() | {"encoder": self.encoder_spec.name}

    def _key(self, text: str) -> str:
        """Identifies an embedding: the encoder and the text."""
        return fingerprint(self.encoder_spec.name, text)

    def _note_cut(self, rows: Dataset, turns: Sequence[Sequence[str]], texts: Sequence[str]) -> None:
        """Count the samples of which the encoder truncates a text."""
        before, cut = len(self._cut), truncated_texts(texts, self.encoder_spec.loaded)
        owners = np.repeat(np.arange(len(turns)), [len(parts) for parts in turns])
        self._cut.update(rows[int(i)]["id"] for i in np.unique(owners[cut]))
        if len(self._cut) > before and self.on_cut is not None:
            self.on_cut()
