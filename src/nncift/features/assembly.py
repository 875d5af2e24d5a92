"""One array of features from the rows that were found in the cache and those that were computed.

What was found is copied into the run folder before the first sample is computed, and with it the decision which samples
to compute: their batches, and so the last bits of their features, are then the same after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nncift.features.cache import Found
from nncift.run.folder.parts import FeatureFolder
from nncift.run.shards import Arrays
from nncift.run.storage.files import atomic_write, link_or_copy, read_array, read_tensors, write_tensors

_ROWS = 4096  # in memory at a time


@dataclass(frozen=True)
class Kept:
    """What was found, kept in the run folder.

    Attributes:
        missing: the samples that have to be computed, (m,) int64 ascending.
        widths: of the blocks; empty where nothing was found.
        values: of the others in their order, (n - m, width) float32.
        truncated: of the others, (n - m,) bool.
    """

    missing: np.ndarray
    widths: dict[str, int]
    values: np.ndarray
    truncated: np.ndarray

    @classmethod
    def nothing(cls, n: int) -> Kept:
        """Of n samples none was found."""
        return cls(np.arange(n), {}, np.zeros((0, 0), np.float32), np.zeros(0, bool))

    @classmethod
    def load(cls, folder: FeatureFolder, name: str) -> Kept:
        """What `keep_found` wrote."""
        stored = read_tensors(folder.found_facts(name))
        widths = dict(json.loads(stored["widths"].tobytes()))
        values = read_array(folder.found(name)) if widths else np.zeros((0, 0), np.float32)
        return cls(stored["missing"], widths, values, stored["truncated"])


def keep_found(folder: FeatureFolder, name: str, found: Found) -> Kept:
    """Copy what was found into the folder, with a few rows in memory at a time."""
    truncated: list[np.ndarray] = []
    if found.values:
        with atomic_write(folder.found(name)) as temporary:
            truncated = _copy_found(found, temporary)
    facts: dict[str, np.ndarray] = {
        "missing": found.missing.astype(np.int64),
        "widths": np.frombuffer(json.dumps(found.widths).encode(), np.uint8),
        "truncated": np.concatenate([*truncated, np.zeros(0, bool)]),
    }
    write_tensors(folder.found_facts(name), facts)
    return Kept.load(folder, name)


def _copy_found(found: Found, path: Path) -> list[np.ndarray]:
    """Write what was found as an array; a whole entry is linked."""
    if (whole := found.whole) is not None:
        link_or_copy(whole, path)
        return [np.asarray(found.truncated[0])]
    truncated = []
    with open(path, "wb") as handle:
        _write_header(handle, (found.n - len(found.missing), sum(found.widths.values())))
        for values, cut in found.blocks():
            handle.write(values.tobytes())
            truncated.append(cut)
    return truncated


def drop_found(folder: FeatureFolder, name: str) -> None:
    """Remove what `keep_found` wrote."""
    folder.found_facts(name).unlink(missing_ok=True)
    folder.found(name).unlink(missing_ok=True)


def write_features(folder: FeatureFolder, name: str, kept: Kept, computed: Iterator[Arrays], width: int) -> np.ndarray:
    """Write one memory-mappable array, with a few rows in memory at a time.

    Args:
        folder: of the array.
        name: of the array.
        kept: what was found.
        computed: shards of the missing samples: "features" and "truncated".
        width: sum of the blocks' widths.

    Returns:
        Which samples were truncated, (n,) bool.
    """
    if not len(kept.missing):
        with atomic_write(folder.array(name)) as temporary:
            link_or_copy(folder.found(name), temporary)
        return kept.truncated
    n = len(kept.missing) + len(kept.truncated)
    new, truncated = np.zeros(n, bool), np.zeros(n, bool)
    new[kept.missing] = True
    truncated[~new] = kept.truncated
    waiting, done, taken = _Rows(computed, width), 0, 0
    with atomic_write(folder.array(name)) as temporary, open(temporary, "wb") as handle:
        _write_header(handle, (n, width))
        for start in range(0, n, _ROWS):
            part = new[start : start + _ROWS]
            block, size = np.empty((len(part), width), np.float32), int(part.sum())
            block[part], cut = waiting.take(size)
            if size < len(part):
                block[~part] = kept.values[taken : taken + len(part) - size]
            handle.write(block.tobytes())
            truncated[kept.missing[done : done + size]] = cut
            done, taken = done + size, taken + len(part) - size
    return truncated


class _Rows:
    """Takes rows from a stream of shards."""

    def __init__(self, shards: Iterator[Arrays], width: int) -> None:
        self._shards = iter(shards)
        self._features, self._truncated = np.zeros((0, width), np.float32), np.zeros(0, bool)

    def take(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The next n rows and whether each was truncated."""
        features, truncated = [self._features], [self._truncated]
        while sum(map(len, truncated)) < n:
            arrays = next(self._shards)
            features.append(arrays["features"])
            truncated.append(np.asarray(arrays["truncated"], bool))
        whole, cut = np.concatenate(features), np.concatenate(truncated)
        self._features, self._truncated = whole[n:], cut[n:]
        return whole[:n], cut[:n]


def _write_header(handle: BinaryIO, shape: tuple[int, int]) -> None:
    np.lib.format.write_array_header_1_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})
