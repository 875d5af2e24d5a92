"""The first cut: the samples of a large pool that are worth reading with a language model, by cheap vectors alone.

With targets, these take turns: each takes its most similar sample, then each its second, and so on until there are
enough. So every target keeps as many of its nearest samples as any other, where the largest similarities alone might
all be to one of them. With known samples, a target takes a turn as often as the conditional gain has to gain from it:
its r-th sample comes at the time r / (largest similarity - that of the known samples), and none below the latter.

Without targets the cut stands for the pool, by facility location, or its conditional gain over known samples. A large
pool is grouped around centres first (k-means), and each group keeps its share, which counts what known samples leave
uncovered. So the time grows as n^1.5 at most, where facility location of the whole takes n^2.

Vectors are of length 1 and read in blocks. Negative similarities count as 0, as negative influence does.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from nncift.data.cleaning.near_duplicates import centres_of
from nncift.matrix.compiled.top_k import LargestEntries
from nncift.matrix.matrix import InfluenceMatrix
from nncift.run.progress import drawn
from nncift.selection.maximizers.greedy import lazy_greedy
from nncift.selection.objectives.coverage import FacilityLocation, FacilityLocationConditionalGain
from nncift.selection.objectives.table import ObjectiveOptions

MOST_TARGETS = 1 << 14
"""Targets that take turns; of more, so many at random."""
_BLOCK = 1 << 12  # samples compared at a time
_PART, _GROUP = 1 << 12, 1 << 10  # samples that are chosen from together, at most, and of the mean group at least
_ENTRIES = 1 << 24  # nearest samples of targets, or pairs of samples in groups, held at a time


class Vectors(Protocol):
    """Vectors of n samples, of length 1: an array, or what gives rows likewise."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


@dataclass(frozen=True, eq=False)
class Cut:
    """What a first cut keeps.

    Attributes:
        rows: of the pool, int64 (k,), ascending.
        scores: of every sample, float32 (n,): its largest similarity to a target; without targets, to a known sample
            (0 without any).
    """

    rows: np.ndarray
    scores: np.ndarray


def most_similar(
    pool: Vectors,
    targets: np.ndarray,
    count: int,
    *,
    covered: np.ndarray | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Cut:
    """Keep the samples nearest to the targets, who take turns.

    Args:
        pool: (n, d).
        targets: (m, d) float32.
        count: samples to keep; all of a smaller pool.
        covered: largest similarity of a known sample to each target, (m,) float32: less similar samples are no use.
        seed: of the targets, where there are more than `MOST_TARGETS`.
        progress: show a bar.
    """
    n = len(pool)
    count = min(count, n)
    if len(targets) > MOST_TARGETS:
        some = np.sort(np.random.default_rng(seed).choice(len(targets), MOST_TARGETS, replace=False))
        targets, covered = targets[some], None if covered is None else covered[some]
    floor = np.full(len(targets), -np.inf, np.float32) if covered is None else covered.astype(np.float32)
    most = min(max(_ENTRIES // len(targets), 1), n)
    depth = min(-(-2 * count // len(targets)) + 8, most)
    while True:
        scores, values, nearest = _nearest(pool, targets, floor, depth, progress=progress)
        order, sure = _in_turns(values, nearest, None if covered is None else floor)
        if sure >= count or depth == most:
            break
        depth = min(2 * depth, most)
    if len(order) < count:  # few are more similar than the known samples, or targets that are alike share theirs
        rest = np.setdiff1d(np.argsort(-scores, kind="stable"), order, assume_unique=True)
        order = np.concatenate([order, rest])
    return Cut(np.sort(order[:count]), scores)


def representative(
    pool: Vectors,
    count: int,
    *,
    known: np.ndarray | None = None,
    nu: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> Cut:
    """Keep samples that represent the whole pool, or what known samples leave uncovered of it.

    Args:
        pool: (n, d).
        count: samples to keep; all of a smaller pool.
        known: vectors of the known samples, (m, d) float32.
        nu: how much these count.
        seed: of the groups.
        progress: show a bar.
    """
    n = len(pool)
    count = min(count, n)
    centres = None if n <= _PART else centres_of(pool, seed, most=-(-n // _GROUP))
    groups, scores = np.zeros(n, np.int64), np.zeros(n, np.float32)
    for part, block in _blocks(pool, "first cut: groups", progress):
        if centres is not None:
            groups[part] = (block @ centres.T).argmax(axis=1)
        if known is not None:
            scores[part] = largest_similarity(block, known)
    parts = list(_parts(groups, seed))
    uncovered = np.maximum(1 - nu * scores.astype(np.float64), 0)
    shares = _shares(np.array([uncovered[part].sum() for part in parts]), [len(part) for part in parts], count)
    rows: list[np.ndarray] = []
    entries = 0
    with tqdm(total=count, desc="first cut: choice", unit=" samples", **drawn(progress)) as bar:
        for members, share in zip(parts, shares.tolist(), strict=True):
            rows.append(members[_within(pool[members], share, None if known is None else scores[members], nu)])
            bar.update(share)
            entries += len(members) ** 2
            if entries > _ENTRIES:  # a matrix and its block function refer to each other, so it is not freed by itself
                gc.collect()
                entries = 0
    return Cut(np.sort(np.concatenate(rows)), scores)


def largest_similarity(vectors: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The largest similarity of each vector to a known sample, float32 (n,), with a block of the pairs in memory.

    Args:
        vectors: (n, d) float32.
        known: (m, d) float32.
    """
    found = np.full(len(vectors), -np.inf, np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK]
        for first in range(0, len(known), _BLOCK):
            similarity = (block @ known[first : first + _BLOCK].T).max(axis=1)
            np.maximum(found[start : start + _BLOCK], similarity, out=found[start : start + _BLOCK])
    return found


def _parts(groups: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """The rows of each group, ascending; those of a large one in several parts at random."""
    rng, order = np.random.default_rng(seed), np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if len(rows) <= _PART:
            yield rows
        else:
            yield from map(np.sort, np.array_split(rng.permutation(rows), -(-len(rows) // _PART)))


def _shares(weights: np.ndarray, sizes: list[int], count: int) -> np.ndarray:
    """How many samples each part keeps, int64: by its weight, at most its size, `count` in all (largest remainders)."""
    room = np.array(sizes)
    shares = np.zeros(len(room), np.int64)
    while missing := count - int(shares.sum()):
        some = np.where(shares < room, weights, 0)
        if not some.any():
            some = (room - shares).astype(np.float64)
        wanted = missing * (some / some.sum())
        whole = np.minimum(np.floor(wanted).astype(np.int64), room - shares)
        shares += whole
        missing -= int(whole.sum())
        largest = np.argsort(whole - wanted, kind="stable")
        shares[largest[(shares < room)[largest]][:missing]] += 1
    return shares


def _within(vectors: np.ndarray, count: int, known: np.ndarray | None, nu: float) -> np.ndarray:
    """Places of the samples of a part that stand for it."""
    if count in (0, len(vectors)):
        return np.arange(count)
    matrix = InfluenceMatrix.from_array(np.ascontiguousarray(vectors @ vectors.T))
    options = ObjectiveOptions(known=known, nu=nu)
    objective = FacilityLocation(matrix) if known is None else FacilityLocationConditionalGain(matrix, options)
    return lazy_greedy(objective, count).indices


def _blocks(pool: Vectors, title: str, progress: bool) -> Iterator[tuple[slice, np.ndarray]]:
    """The vectors, some at a time, each with its place."""
    with tqdm(total=len(pool), desc=title, unit=" samples", **drawn(progress)) as bar:
        for start in range(0, len(pool), _BLOCK):
            part = slice(start, min(start + _BLOCK, len(pool)))
            yield part, np.asarray(pool[part], dtype=np.float32)
            bar.update(part.stop - part.start)


def _nearest(
    pool: Vectors, targets: np.ndarray, floor: np.ndarray, depth: int, *, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each sample's largest similarity, (n,), and each target's nearest samples above its floor, (m, depth) twice.

    Similarities descend, with -inf where there are no more; rows are int64.
    """
    scores = np.empty(len(pool), np.float32)
    largest = LargestEntries(len(targets), depth, floor)
    for part, block in _blocks(pool, "first cut: similarity", progress):
        similarity = np.ascontiguousarray(targets @ block.T)
        scores[part] = similarity.max(axis=0)
        largest.add(similarity, part.start)
    return scores, *largest.sorted()


def _in_turns(values: np.ndarray, nearest: np.ndarray, covered: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Rows in the order in which targets take them, each once; at one time the most similar first.

    Returns:
        The rows, and how many of them come before any that longer lists might have.
    """
    depth = nearest.shape[1]
    weights = np.ones(len(values)) if covered is None else np.maximum(values[:, 0] - covered, 1e-9).astype(np.float64)
    times = np.arange(1, depth + 1) / weights[:, None]
    order = np.lexsort((-values.ravel(), times.ravel()))
    order = order[nearest.ravel()[order] >= 0]
    _, first = np.unique(nearest.ravel()[order], return_index=True)
    order = order[np.sort(first)]
    return nearest.ravel()[order], int((times.ravel()[order] <= times[:, -1].min()).sum())
