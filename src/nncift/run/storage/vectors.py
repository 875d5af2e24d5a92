"""Vectors of samples in a run folder: dense as `.npy`, which is memory-mapped, sparse as safetensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nncift.run.storage.files import atomic_write, read_array, read_tensors, write_tensors


@dataclass(frozen=True)
class VectorFolder:
    """Vectors of the samples, where influence is exact for every pair: a file for each side."""

    path: Path

    @property
    def prepared(self) -> Path:
        """What the influence function keeps while it computes them."""
        return self.path / "prepared"

    @property
    def notes(self) -> Path:
        """Which samples were cut."""
        return self.path / "notes.json"

    @property
    def statistics(self) -> Path:
        """What the vectors depend on beside the samples, of a relative influence function that gives it."""
        return self.path / "statistics.safetensors"

    def array(self, side: str) -> Path:
        """Dense vectors of "pool", "target" or "known", (n, d)."""
        return self.path / f"{side}.npy"

    def sparse(self, side: str) -> Path:
        """Sparse vectors, in the compressed row format."""
        return self.path / f"{side}.safetensors"

    def is_finished(self, side: str) -> bool:
        """Whether the vectors of a side are there."""
        return self.array(side).is_file() or self.sparse(side).is_file()


def write_vectors(folder: VectorFolder, side: str, n: int, blocks: Iterable[Any]) -> None:
    """Write the vectors of a side, dense ones with one block in memory at a time.

    Args:
        folder: of the vectors.
        side: "pool", "target" or "known".
        n: number of samples.
        blocks: their vectors in order, float32 (some, d): arrays, or `scipy.sparse.csr_array`s.
    """
    waiting = iter(blocks)
    first = next(waiting)
    if not isinstance(first, np.ndarray):
        _write_sparse(folder, side, [first, *waiting])
        return
    with atomic_write(folder.array(side)) as temporary, open(temporary, "wb") as handle:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n, first.shape[1])}
        np.lib.format.write_array_header_1_0(handle, header)
        for block in (first, *waiting):
            handle.write(np.ascontiguousarray(block, dtype="<f4").tobytes())


def _write_sparse(folder: VectorFolder, side: str, blocks: list[Any]) -> None:
    from scipy.sparse import vstack

    whole = vstack(blocks, format="csr")
    tensors = {name: np.asarray(getattr(whole, name)) for name in ("data", "indices", "indptr")}
    write_tensors(folder.sparse(side), tensors | {"shape": np.array(whole.shape, dtype=np.int64)})


def read_vectors(folder: VectorFolder, side: str) -> Any:
    """The vectors of a side, float32 (n, d): memory-mapped, or a `scipy.sparse.csr_array`.

    Raises:
        RunError: they are missing or damaged.
    """
    if not folder.sparse(side).is_file():
        return read_array(folder.array(side))
    from scipy.sparse import csr_array

    stored = read_tensors(folder.sparse(side))
    shape = tuple(stored["shape"].tolist())
    return csr_array((stored["data"], stored["indices"], stored["indptr"]), shape=shape)
