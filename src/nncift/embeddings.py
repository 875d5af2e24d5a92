"""Per-sample features: sentence embeddings, computed in shards that resume, memory-mapped afterwards.

Features cost one encoder pass per sample, so linear in the pool; everything that looks at pairs reads
them instead of the texts. A shard holds a fixed range of samples, so a killed run repeats at most one
of them and ends with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from nncift.errors import DataError, ModelError
from nncift.hub import find_model
from nncift.loading import default_batch_size
from nncift.storage import atomic_write, read_array, read_json, read_tensors, write_json, write_tensors

if TYPE_CHECKING:
    from datasets import Dataset

    Encoder = Any  # sentence_transformers.SentenceTransformer, imported on use

SHARD = 1024


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
    if folder is not None and (folder / f"{name}.json").exists():
        _drop_shards(folder, name)
        return read_array(folder / f"{name}.npy")
    if isinstance(encoder, str):
        source = source or encoder
        encoder = load_encoder(encoder, device=device)
    shards: list[Path | np.ndarray] = []
    truncated = 0
    with tqdm(total=len(samples), desc=f"embedding {name}", unit=" samples", disable=not progress) as bar:
        for start in range(0, len(samples), SHARD):
            path = folder / f"{name}-{start // SHARD:06d}.safetensors" if folder is not None else None
            if path is not None and path.exists():
                shard = read_tensors(path)
            else:
                texts = sample_texts(samples.select(range(start, min(start + SHARD, len(samples)))))
                shard = _embed_shard(texts, encoder, batch_size)
                if path is not None:
                    write_tensors(path, shard)
            truncated += int(shard["truncated"].sum())
            bar.update(len(shard["features"]))
            shards.append(path if path is not None else shard["features"])
    if folder is None:
        return np.concatenate([shard for shard in shards if isinstance(shard, np.ndarray)])
    paths = [shard for shard in shards if isinstance(shard, Path)]
    return _join(paths, len(samples), folder, name, {"encoder": source or "your own", "truncated": truncated})


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


def _join(shards: list[Path], n: int, folder: Path, name: str, facts: dict[str, Any]) -> np.ndarray:
    """One memory-mappable array from the shards, without holding it in memory; then drop the shards."""
    path = folder / f"{name}.npy"
    width = read_tensors(shards[0])["features"].shape[1]
    with atomic_write(path) as temporary, open(temporary, "wb") as handle:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n, width)}
        np.lib.format.write_array_header_1_0(handle, header)
        for shard in shards:
            handle.write(read_tensors(shard)["features"].tobytes())
    write_json(folder / f"{name}.json", {**facts, "width": int(width), "rows": n})
    _drop_shards(folder, name)
    return read_array(path)


def _drop_shards(folder: Path, name: str) -> None:
    """Remove the shards that the joined array holds by now."""
    for shard in folder.glob(f"{name}-*.safetensors"):
        shard.unlink()


def own_features(samples: Dataset, source: str, *, folder: Path | None = None, name: str = "pool") -> np.ndarray:
    """The user's own features for the samples: a `.npy` file with a row per source row, or a column of the data.

    Args:
        samples: n rows as `load_pool` gives them; `source_row` says which row of the file is whose.
        source: path of a `.npy` file of shape (rows of the source, d), or the name of a column of lists of numbers.
        folder: keep them here as `<name>.npy`, as `embed` does.
        name: file name in `folder`.

    Returns:
        (n, d) float32.

    Raises:
        DataError: the shape does not fit, or a value is missing or not finite.
    """
    if folder is not None and (folder / f"{name}.json").exists():
        return read_array(folder / f"{name}.npy")
    features = _features_file(samples, Path(source)) if source.endswith(".npy") else _features_column(samples, source)
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        row = int(np.asarray(samples["source_row"])[~finite][0]) + 1
        raise DataError("the features of this row are not finite", "mend or drop it", file=source, row=row)
    if folder is None:
        return features
    with atomic_write(folder / f"{name}.npy") as temporary, open(temporary, "wb") as handle:
        np.save(handle, features, allow_pickle=False)
    facts = {"encoder": source, "truncated": 0, "width": int(features.shape[1]), "rows": len(features)}
    write_json(folder / f"{name}.json", facts)
    return read_array(folder / f"{name}.npy")


def _features_file(samples: Dataset, path: Path) -> np.ndarray:
    if not path.exists():
        raise DataError("no such features file", "give a .npy file or the name of a column", file=str(path))
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError("this is not an array of numbers", "write it with numpy.save", file=str(path)) from error
    rows = np.asarray(samples["source_row"], dtype=np.int64)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or len(array) <= rows.max():
        raise DataError(
            f"expected numbers of shape (rows of the data, width), found {array.dtype} {array.shape}",
            f"the data has at least {int(rows.max()) + 1} rows",
            file=str(path),
        )
    return np.ascontiguousarray(array[rows], dtype=np.float32)


def _features_column(samples: Dataset, column: str) -> np.ndarray:
    vectors: list[np.ndarray] = []
    for original, row in zip(samples["original"], samples["source_row"], strict=True):
        value = json.loads(original).get(column)
        try:
            vector = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.zeros(0, dtype=np.float32)
        if vector.ndim != 1 or not len(vector) or (vectors and len(vector) != len(vectors[0])):
            raise DataError(
                "expected a list of numbers, as long as in the first row",
                "give a .npy file or the name of a column of features",
                row=row + 1,
                field=column,
            )
        vectors.append(vector)
    return np.stack(vectors)


def feature_facts(folder: Path, name: str = "pool") -> dict[str, Any]:
    """What is known of stored features: `encoder`, `truncated` (texts the encoder cut), `width`, `rows`."""
    return dict(read_json(folder / f"{name}.json"))
