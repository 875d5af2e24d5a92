"""Embeddings by a static encoder of pools that are too large for any other, in float16, shard by shard.

Of the texts one batch is in memory at a time. The shards are memory-mapped, and a killed run goes on after the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from nncift.data.cleaning.near_duplicates import unit
from nncift.models.encoder import mean_embeddings, sample_texts
from nncift.models.static_encoder import StaticEncoder
from nncift.models.text.chats import chunks
from nncift.run.progress import advance, drawn
from nncift.run.shards import Arrays, Shards

if TYPE_CHECKING:
    from datasets import Dataset

SHARD = 1 << 16  # samples
_ROWS = 1 << 12  # read at a time
_COLUMNS = ("id", "prompt", "response", "messages", "tools", "turns")


class StaticVectors:
    """Vectors of n samples that are stored in float16 and read as float32, (n, d).

    Args:
        shards: float16 (`SHARD`, d) each but the last, in memory or memory-mapped.
        size: samples of a shard.
        centre: subtracted from each, float32 (d,), whose length is then made 1 again; as they are unless given.
    """

    def __init__(self, shards: list[np.ndarray], size: int = SHARD, centre: np.ndarray | None = None) -> None:
        self._shards, self._size, self._centre = shards, size, centre
        self.shape = (sum(map(len, shards)), int(shards[0].shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Vectors of some samples (a slice or int64), float32 (rows, d)."""
        rows = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        found = np.empty((len(rows), self.shape[1]), np.float32)
        number, place = np.divmod(rows, self._size)
        for shard in np.unique(number):
            here = number == shard
            found[here] = self._shards[shard][place[here]]
        return found if self._centre is None else unit(found - self._centre)

    @property
    def mean(self) -> np.ndarray:
        """Of the stored vectors, float32 (d,)."""
        total = np.zeros(self.shape[1])
        for shard in self._shards:
            for start in range(0, len(shard), _ROWS):
                total += shard[start : start + _ROWS].sum(axis=0, dtype=np.float64)
        return np.asarray(total / len(self), dtype=np.float32)

    def around(self, centre: np.ndarray) -> StaticVectors:
        """The same less a centre, such as the pool's mean.

        Means of token vectors have a large part in common, the more so the more alike the samples are worded, which
        hides what differs (Mu and Viswanath, "All-but-the-top", 2018).
        """
        return StaticVectors(self._shards, self._size, centre)


@dataclass(frozen=True)
class _Embedding:
    """Embeddings of a range of samples: the work of one shard."""

    encoder: StaticEncoder
    samples: Dataset

    def __call__(self, rows: range) -> Arrays:
        parts = []
        for part in chunks(self.samples.select(rows)):
            turns = sample_texts(part)
            parts.append(mean_embeddings(turns, self.encoder.embed([*chain(*turns)])).astype(np.float16))
            advance(len(part))
        return {"values": np.concatenate(parts)}

    def accept(self, rows: range, arrays: Arrays) -> bool:
        return bool(arrays["values"].shape == (len(rows), self.encoder.width))


def static_vectors(
    samples: Dataset,
    encoder: StaticEncoder,
    *,
    folder: Path | None = None,
    name: str = "pool",
    size: int = SHARD,
    progress: bool = False,
    count: Callable[[int], None] = lambda samples: None,
) -> StaticVectors:
    """Embed every sample, prompt and response together, of a chat the mean over its turns.

    Args:
        samples: n rows with `prompt` and `response`.
        encoder: the static encoder.
        folder: keep the shards here, until `drop_vectors`; in memory unless given.
        name: of the files.
        size: samples of a shard.
        progress: show a bar.
        count: called after each shard with the number of samples that were computed.

    Raises:
        DependencyError: model2vec is not installed.
        ModelError: the encoder cannot be loaded.
    """
    present = [column for column in _COLUMNS if column in samples.column_names]
    work = _Embedding(encoder, samples.select_columns(present))
    shards = Shards(len(samples), size, folder, name, suffix=".npy")
    with tqdm(total=len(samples), desc=f"first cut: {name}", unit=" samples", **drawn(progress)) as bar:
        shards.compute(work, accept=work.accept, bar=bar, count=count)
    return StaticVectors([arrays["values"] for arrays in shards], size)


def drop_vectors(folder: Path, name: str) -> None:
    """Remove the shards."""
    Shards(0, SHARD, folder, name, suffix=".npy").drop()
