"""Sentence embeddings: what a sample is about, from one pass of a small encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import DataError
from nncift.run.shards import in_shards

if TYPE_CHECKING:
    from datasets import Dataset

    Encoder = Any  # sentence_transformers.SentenceTransformer, imported on use
from nncift.models.encoder import embed_texts, load_encoder, sample_texts


def embed(
    samples: Dataset,
    encoder: str | Encoder,
    *,
    folder: Path | None = None,
    name: str = "pool",
    batch_size: int | None = None,
    device: str | None = None,
    source: str | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Embed every sample.

    Args:
        samples: n rows with `prompt` and `response`.
        encoder: a sentence-transformers model, or its folder or hub id.
        folder: keep shards here while running, then `<name>.npy` and `<name>.json`; what is there already is
            not computed again.
        name: file name in `folder`.
        batch_size: texts per forward pass; 32 unless given, on CUDA as many as fit.
        device: where a model given by name is loaded; the library's choice unless given.
        source: the name to record for a model given as an object.
        progress: show a progress bar.

    Returns:
        (n, d) float32, rows of length 1; memory-mapped when a folder is given.

    Raises:
        ModelError: the encoder cannot be loaded.
        DataError: an embedding is not finite.
    """
    if isinstance(encoder, str):
        source = source or encoder
    loaded: list[Encoder] = [] if isinstance(encoder, str) else [encoder]

    def compute(rows: Dataset) -> dict[str, np.ndarray]:
        if not loaded:  # on first use: what is there already needs no model
            loaded.append(load_encoder(str(encoder), device=device))
        return _embed_shard(sample_texts(rows), loaded[0], batch_size)

    facts = {"encoder": source or "your own"}
    return in_shards(samples, compute, folder=folder, name=name, facts=facts, progress=progress)


def _embed_shard(texts: list[str], encoder: Encoder, batch_size: int | None) -> dict[str, np.ndarray]:
    features = embed_texts(texts, encoder, batch_size=batch_size)
    if not np.isfinite(features).all():
        bad = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise DataError(f"the encoder gave a vector that is not finite for {texts[bad][:80]!r}", "take another encoder")
    return {"features": features, "truncated": _is_truncated(texts, encoder)}


def _is_truncated(texts: list[str], encoder: Encoder) -> np.ndarray:
    """Which texts are longer than the encoder reads, (n,) bool."""
    limit, tokenizer = encoder.max_seq_length, encoder.tokenizer
    if limit is None or not callable(tokenizer):
        return np.zeros(len(texts), dtype=bool)
    lengths = [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
    return np.asarray(np.array(lengths) > limit)
