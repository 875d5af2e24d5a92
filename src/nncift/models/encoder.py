"""Sentence encoders: loading one, and embedding texts with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import ModelError
from nncift.models.loading import default_batch_size
from nncift.models.locate import find_model

if TYPE_CHECKING:
    from datasets import Dataset

    Encoder = Any  # sentence_transformers.SentenceTransformer, imported on use


def sample_texts(samples: Dataset) -> list[str]:
    """The text that stands for each sample: its prompt and its response."""
    return [f"{prompt}\n{response}" for prompt, response in zip(samples["prompt"], samples["response"], strict=True)]


def load_encoder(name: str, *, device: str | None = None, trust_remote_code: bool = False) -> Encoder:
    """Load a sentence-transformers model from a folder or the hub.

    Raises:
        ModelError: it cannot be found or is no sentence encoder.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = find_model(name, "encoder")
    try:
        return SentenceTransformer(source, device=device, trust_remote_code=trust_remote_code)
    except Exception as error:  # the library raises OSError, ValueError, ImportError and its own, for one cause
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"cannot load the encoder {name!r} ({reason})",
            "give a sentence-transformers model",
        ) from error


def embed_texts(
    texts: Sequence[str], encoder: str | Encoder, *, batch_size: int | None = None, device: str | None = None
) -> np.ndarray:
    """Normalised sentence embeddings, (n, d) float32, in length-sorted batches.

    Running out of memory halves the batch and goes on.

    Raises:
        ModelError: the encoder cannot be loaded, or one text alone does not fit into memory.
    """
    import torch

    if isinstance(encoder, str):
        encoder = load_encoder(encoder, device=device)
    batch_size = batch_size or default_batch_size(str(getattr(encoder, "device", "cpu")))
    while True:
        try:
            embeddings = encoder.encode(
                list(texts), batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
            )
            return np.ascontiguousarray(embeddings, dtype=np.float32)
        except torch.OutOfMemoryError as error:
            if batch_size == 1:
                raise ModelError(
                    "the encoder does not fit into memory", "take a smaller one, or --device cpu"
                ) from error
            batch_size //= 2
