"""Near-duplicates: samples whose embedding is almost that of an earlier one.

In the order of the pool, a sample is left out if its cosine with one that is kept reaches the threshold, as semhash and
SemDeDup do (Abbas et al., "SemDeDup: data-efficient learning at web-scale through semantic deduplication", 2023). So no
two of the kept ones are near-duplicates, and each of the others has a twin among the kept.

Up to `EXACT` samples are all compared. Of more, samples are grouped around centres (k-means, about the square root of
their number), and one is compared with the kept ones of its `PROBES` nearest centres alone: a near-duplicate beyond
these stays in (`benchmarks/near_duplicates.py` counts them). Embeddings may be memory-mapped; of a block, and of the
kept ones that it is compared with, copies are held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from nncift.errors import ConfigError
from nncift.run.progress import drawn

EXACT = 1 << 15  # samples
PROBES = 4  # centres
_BLOCK, _KEPT = 2048, 8192  # samples that are compared at a time, and kept ones they are compared with
_SAMPLE = 64  # samples for each centre that k-means reads
_HARDLY = 1e-6  # rounding of a cosine


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Samples that are left out.

    Attributes:
        rows: of the pool, int64 (k,), ascending.
        twins: row of the kept sample with the largest cosine among those that were compared, int64 (k,).
        cosines: with the twin, float32 (k,).
    """

    rows: np.ndarray
    twins: np.ndarray
    cosines: np.ndarray


def find_near_duplicates(
    embeddings: np.ndarray, threshold: float, *, exact: int = EXACT, seed: int = 0, progress: bool = False
) -> NearDuplicates:
    """Find the samples that are near-duplicates of an earlier one.

    Args:
        embeddings: (n, d) float32; of any length, which does not count.
        threshold: of the cosine, above 0 and at most 1.
        exact: number of samples up to which all are compared.
        seed: of the centres.
        progress: show a bar.

    Raises:
        ConfigError: the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"`near_duplicates` is {threshold}", "give a cosine above 0 and at most 1, such as 0.95")
    n = len(embeddings)
    centres = None if n <= exact else centres_of(embeddings, seed)
    kept = _Kept(embeddings, 1 if centres is None else len(centres), threshold - _HARDLY)
    twins, cosines = np.full(n, -1), np.zeros(n, np.float32)
    with tqdm(total=n, desc="near-duplicates", unit=" rows", **drawn(progress)) as bar:
        for start in range(0, n, _BLOCK):
            part = slice(start, min(start + _BLOCK, n))
            block = unit(embeddings[part])
            groups = np.zeros((len(block), 1), np.int64) if centres is None else _nearest(block, centres)
            twins[part], cosines[part] = kept.compare(block, groups)
            kept.add_from(block, groups, start, twins[part], cosines[part])
            bar.update(len(block))
    rows = np.flatnonzero(twins >= 0)
    return NearDuplicates(rows, twins[rows], np.minimum(cosines[rows], 1))


@dataclass
class _Kept:
    """The samples that are kept so far, by group."""

    embeddings: np.ndarray
    groups: int
    threshold: float
    _rows: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._rows = [[] for _ in range(self.groups)]

    def compare(self, block: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The most similar kept sample of each of a block's within reach (-1 without any), and the cosine."""
        twins, cosines = np.full(len(block), -1), np.zeros(len(block), np.float32)
        for group, some in _by_group(groups):
            members = self._rows[group]
            for first in range(0, len(members), _KEPT):
                rows = np.array(members[first : first + _KEPT])
                found = block[some] @ unit(self.embeddings[rows]).T
                best = found.argmax(axis=1)
                largest = found[np.arange(len(some)), best]
                better = (largest >= self.threshold) & (largest > cosines[some])
                twins[some[better]], cosines[some[better]] = rows[best[better]], largest[better]
        return twins, cosines

    def add_from(
        self, block: np.ndarray, groups: np.ndarray, start: int, twins: np.ndarray, cosines: np.ndarray
    ) -> None:
        """Keep those of a block without a twin, but for near-duplicates of earlier ones in the block itself."""
        free, others = np.flatnonzero(twins < 0), np.flatnonzero(twins >= 0)
        cosine = np.zeros((len(free), len(free)), np.float32)
        for group, some in _by_group(groups[free]):
            at = some[groups[free[some], 0] == group]  # members; the others of `some` come near the group
            cosine[np.ix_(some, at)] = block[free[some]] @ block[free[at]].T
        cosine = np.tril(cosine, -1)
        is_kept = np.ones(len(free), bool)
        for k in np.flatnonzero((cosine >= self.threshold).any(axis=1)).tolist():
            found = np.where(is_kept[:k], cosine[k, :k], 0)
            best = int(found.argmax())
            if found[best] >= self.threshold:
                is_kept[k] = False
                twins[free[k]], cosines[free[k]] = start + free[best], found[best]
        kept = free[is_kept]
        for k in others.tolist():  # whose most similar kept sample may be one of these
            near = kept[(kept < k) & np.isin(groups[kept, 0], groups[k])]
            found = block[near] @ block[k]
            if len(near) and found.max() > cosines[k]:
                twins[k], cosines[k] = start + near[found.argmax()], found.max()
        for k in kept.tolist():
            self._rows[int(groups[k, 0])].append(start + k)


def _by_group(groups: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each group that occurs, with the samples of a block that reach it; `groups` is int64 (samples, probes)."""
    if not len(groups):
        return
    order = np.argsort(groups.ravel(), kind="stable")
    values, starts = np.unique(groups.ravel()[order], return_index=True)
    yield from zip(values.tolist(), np.split(order // groups.shape[1], starts[1:]), strict=True)


def centres_of(embeddings: Any, seed: int, *, most: int | None = None) -> np.ndarray:
    """Unit vectors around which samples are grouped, float32 (about sqrt(n) or `most`, d), by k-means on some rows."""
    from sklearn.cluster import MiniBatchKMeans

    n = len(embeddings)
    count = min(round(np.sqrt(n)), most or n)
    some = np.sort(np.random.default_rng(seed).choice(n, min(n, _SAMPLE * count), replace=False))
    model = MiniBatchKMeans(count, init="random", n_init=1, max_iter=5, batch_size=4096, random_state=seed)
    return unit(model.fit(unit(embeddings[some])).cluster_centers_)


def _nearest(block: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest centres of each sample, nearest first, int64 (samples, PROBES)."""
    cosine = block @ centres.T
    probes = min(PROBES, len(centres))
    found = np.argpartition(-cosine, probes - 1, axis=1)[:, :probes]
    order = np.argsort(-np.take_along_axis(cosine, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float32 (n, d); those of zeros stay."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0))
