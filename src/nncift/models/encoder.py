"""Sentence encoders: loading one, and embedding texts with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import ModelError, first_line
from nncift.models.batching import in_memory, out_of_memory
from nncift.models.loading import default_batch_size
from nncift.models.locate import find_model
from nncift.models.spec import EncoderSpec
from nncift.models.text.chats import mean_over_turns, trained_texts
from nncift.run.progress import advance

if TYPE_CHECKING:
    from datasets import Dataset

    Encoder = Any  # sentence_transformers.SentenceTransformer, imported on use


_SMALLER = "take a smaller one, or `device` cpu"


def sample_texts(samples: Dataset) -> list[list[str]]:
    """The texts of each sample, prompt and response: one for each turn that is trained on."""
    return [[f"{prompt}\n{response}" for prompt, response in turns] for turns in trained_texts(samples)]


def mean_embeddings(samples: Sequence[Sequence[str]], embeddings: np.ndarray) -> np.ndarray:
    """Embeddings of samples (n, d), of length 1, from those of all their texts in order: the mean over turns."""
    means = mean_over_turns(samples, embeddings)
    several = np.array([len(texts) > 1 for texts in samples], dtype=bool)
    if not several.any():
        return means
    lengths = np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return np.where(several[:, None], means / lengths, means)


def load_encoder(name: str, *, device: str | None = None, trust_remote_code: bool = False) -> Encoder:
    """Load a sentence-transformers model from a folder or the hub; weights come from safetensors alone.

    Raises:
        ModelError: there is none, it has pickled weights, or it does not fit into memory.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = find_model(name, "encoder")
    _refuse_pickle(name, Path(source))
    safe = {"use_safetensors": True}
    try:
        return SentenceTransformer(source, device=device, trust_remote_code=trust_remote_code, model_kwargs=safe)
    except Exception as error:  # the library raises OSError, ValueError, ImportError and its own, for one cause
        if out_of_memory(error):
            raise ModelError(f"the encoder {name!r} does not fit into memory", _SMALLER) from error
        raise ModelError(
            f"cannot load the encoder {name!r} ({first_line(error)})", "give a sentence-transformers model"
        ) from error


def _refuse_pickle(name: str, folder: Path) -> None:
    """Refuse a folder with pickled weights that no safetensors replace, before any library opens them."""
    for pickled in sorted(folder.rglob("pytorch_model*.bin")) if folder.is_dir() else ():
        if not any(pickled.parent.glob("model*.safetensors")):
            raise ModelError(
                f"the encoder {name!r} has no weights in safetensors format, but {pickled.relative_to(folder)}",
                "pickles can run code when loaded and are not read: convert them, or take another encoder",
            )


def embed_texts(
    texts: Sequence[str], encoder: EncoderSpec | str | Encoder, *, batch_size: int | None = None
) -> np.ndarray:
    """Sentence embeddings of length 1, (n, d) float32, in batches that are halved when memory runs out.

    `batch_size` is the spec's unless given, or else the default of the encoder's device.
    """
    spec = EncoderSpec.of(encoder)
    loaded = spec.loaded
    size = batch_size or spec.batch_size or default_batch_size(str(getattr(loaded, "device", "cpu")))

    def encode() -> np.ndarray:
        with _reported(loaded):
            found = loaded.encode(list(texts), batch_size=size, normalize_embeddings=True, show_progress_bar=False)
        return np.ascontiguousarray(found, dtype=np.float32)

    while (embeddings := in_memory(encode)) is None:
        if size == 1:
            raise ModelError("the encoder does not fit into memory", _SMALLER)
        size //= 2
    return embeddings


def truncated_texts(texts: Sequence[str], encoder: Encoder) -> np.ndarray:
    """Which texts exceed the encoder's maximum length, (n,) bool."""
    limit, tokenizer = encoder.max_seq_length, encoder.tokenizer
    if limit is None or not callable(tokenizer) or not texts:
        return np.zeros(len(texts), dtype=bool)
    lengths = [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
    return np.asarray(np.array(lengths) > limit)


@contextlib.contextmanager
def _reported(encoder: Encoder) -> Iterator[None]:
    """Report each batch of the encoder inside the block: the library makes its batches itself, and has no callback."""
    import torch

    first = next(iter(encoder.children()), None) if isinstance(encoder, torch.nn.Module) else None
    if first is None:
        yield
        return

    def report(_: Any, inputs: tuple[Any, ...], __: Any) -> None:
        batch = inputs[0].get("input_ids") if inputs and isinstance(inputs[0], Mapping) else None
        if batch is not None:
            advance(len(batch))

    hook = first.register_forward_hook(report)
    try:
        yield
    finally:
        hook.remove()
