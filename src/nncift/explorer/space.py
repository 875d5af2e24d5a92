"""Where the samples of a pool lie, from what the run has stored: unit vectors of at most 64 principal components.

The map, the nearest neighbours and the twins come from these. Preference goes to the sentence embeddings; then to other
stored features, each standardised; then to the vectors that exact influence is an inner product of. A run that stored
none of them is mapped by the words of its samples. The components are those of a random sample of rows, so the rows
are read once more, block by block, and only 64 numbers of each are held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nncift.features.features import feature_facts
from nncift.matrix.cells import NO_HELPER, Products, divide, strongest
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.run.progress import advance
from nncift.run.storage.files import read_array
from nncift.run.storage.vectors import read_vectors

WIDTH = 64
EXACT = 1 << 30  # pairs of samples up to which all are compared: 32,768 with each other
VISITS = 2048  # samples that each is compared with where there are more
_SAMPLE = 8192  # rows that the components are of
_BLOCK = 4096
_SORTED = 1 << 16  # samples whose neighbours are sorted together


def sample_space(run: FinishedRun) -> np.ndarray:
    """Unit vectors of the pool's samples, float32 (n_pool, at most 64); rows of zeros where a sample has none."""
    rows, standardised = _stored(run)
    n, width = rows.shape
    rng = np.random.default_rng(0)
    some = np.sort(rng.choice(n, min(n, _SAMPLE), replace=False))
    if not isinstance(rows, np.ndarray):
        return _projected(rows, _sparse_components(rows[some]), lambda block: block)
    sample = np.asarray(rows[some], dtype=np.float32)
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.ones(width, np.float32)
    if standardised:
        deviation = sample.std(axis=0, dtype=np.float64)
        scale = np.divide(1, deviation, out=np.zeros(width), where=deviation > 0).astype(np.float32)
    components = _components((sample - mean) * scale)
    return _projected(rows, components, lambda block: (np.asarray(block, dtype=np.float32) - mean) * scale)


def _stored(run: FinishedRun) -> tuple[Any, bool]:
    """Vectors of the pool's samples, (n, d), dense or sparse, and whether their columns are of different scales."""
    folder = run.folder.features
    if names := folder.names("pool"):
        facts = {name: feature_facts(folder, name) for name in names}
        name = next((name for name in names if "sentence" in facts[name].get("blocks", {})), names[0])
        return read_array(folder.array(name)), not facts[name].get("encoder")
    if run.folder.vectors.is_finished("pool"):
        return read_vectors(run.folder.vectors, "pool"), False
    from nncift.influence.bm25 import BM25

    words = BM25()
    words.prepare(run.pool, run.pool)
    return words.vectors(run.pool), False


def _components(sample: np.ndarray) -> np.ndarray:
    """The principal components of centred rows, float32 (d, at most 64)."""
    from sklearn.utils.extmath import randomized_svd

    count = min(WIDTH, *sample.shape)
    components = randomized_svd(sample, count, n_iter=4, random_state=0)[2]
    return np.ascontiguousarray(components.T, dtype=np.float32)


def _sparse_components(sample: Any) -> np.ndarray:
    """The same of sparse rows, whose mean is not taken off."""
    if min(sample.shape) <= WIDTH:
        return _components(sample.toarray())
    from sklearn.utils.extmath import randomized_svd

    return np.ascontiguousarray(randomized_svd(sample, WIDTH, n_iter=4, random_state=0)[2].T, dtype=np.float32)


def _projected(rows: Any, components: np.ndarray, prepared: Callable[[Any], Any]) -> np.ndarray:
    found = np.empty((rows.shape[0], components.shape[1]), np.float32)
    for start in range(0, len(found), _BLOCK):
        part = slice(start, min(start + _BLOCK, len(found)))
        block = prepared(rows[part]) @ components
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        found[part] = np.divide(block, norms, out=np.zeros_like(block), where=norms > 0)
        advance(part.stop - part.start)
    return found


def divided(space: np.ndarray, *, progress: bool = False) -> list[np.ndarray] | None:
    """Cells of similar samples, in which `nearest` searches; None of a pool whose pairs are all compared."""
    return None if len(space) ** 2 <= EXACT else divide(space, progress=progress)


def nearest(
    space: np.ndarray,
    queries: np.ndarray,
    k: int,
    *,
    among: np.ndarray | None = None,
    exact: int = EXACT,
    visits: int = VISITS,
    cells: list[np.ndarray] | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest samples by cosine.

    Args:
        space: unit vectors, float32 (n, d).
        queries: samples whose neighbours are sought, int64 (q,) ascending.
        k: neighbours of each, other than itself.
        among: samples that may be neighbours, int64 ascending; all unless given.
        exact: pairs up to which all are compared.
        visits: samples that each is compared with, at least, where there are more.
        cells: of all samples, from `divided`, or they are divided here.
        progress: show a bar.

    Returns:
        Samples, int64 (q, k), nearest first, -1 where there are fewer; and cosines, float32 (q, k), there nan.
    """
    n = len(space)
    among = np.arange(n) if among is None else among
    rows, nearness = np.full((len(queries), k), -1), np.full((len(queries), k), np.nan, np.float32)
    if not len(among) or not len(queries):
        return rows, nearness
    held = space if len(among) == n else space[among]
    products = Products(held, np.zeros(len(held), np.float32), space if len(queries) == n else space[queries])
    cosines, found = strongest(
        products,
        min(k + 1, len(among)),
        None if len(among) * len(queries) <= exact else visits,
        cells=_cells_among(cells, among, n),
        groups=_cells_among(cells, queries, n),
        progress=progress,
    )
    for start in range(0, len(queries), _SORTED):
        part = slice(start, start + _SORTED)
        there = found[part] != NO_HELPER
        samples = np.where(there, among[np.where(there, found[part], 0)], -1)
        there &= samples != queries[part, None]
        order = np.lexsort((samples, np.where(there, -cosines[part], np.inf)), axis=1)[:, :k]
        there, samples, values = (np.take_along_axis(each, order, axis=1) for each in (there, samples, cosines[part]))
        rows[part, : order.shape[1]] = np.where(there, samples, -1)
        nearness[part, : order.shape[1]] = np.where(there, values, np.nan)
    return rows, nearness


def _cells_among(cells: list[np.ndarray] | None, rows: np.ndarray, n: int) -> list[np.ndarray] | None:
    """The cells of at least half of n samples, numbered among these; None of fewer, whose cells would be small."""
    if cells is None or len(rows) == n:
        return cells
    if 2 * len(rows) < n:
        return None
    place = np.full(n, -1)
    place[rows] = np.arange(len(rows))
    some = (place[cell] for cell in cells)
    return [kept for cell in some if len(kept := cell[cell >= 0])]
