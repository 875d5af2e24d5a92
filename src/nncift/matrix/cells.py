"""The strongest helpers of each target without visiting all pairs: cells of similar samples on both sides.

Influence from two towers, or from the inner product of two vectors, is large where the vectors point the same way. So
the pool is divided into cells of at most 256 samples by k-means in levels, the targets likewise, and the targets of a
cell visit the pool's cells in the order of the inner product of their means, until they have visited enough samples
(the inverted file of Jegou, Douze and Schmid, "Product quantization for nearest neighbor search", 2011, with the
queries in cells too, so that a visit is one matrix product). Within a visited cell every pair is computed, in float32
as everywhere, and the k largest of each target are kept. Cost: n_target x visits pairs, which is linear in the samples.

What is missed is not known from this; `matrix.sparse` measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from nncift.matrix.compiled import kernels
from nncift.matrix.compiled.factored import Factors, pack
from nncift.matrix.compiled.top_k import NO_ROW, keep_largest_of_each, keep_top_k
from nncift.run.progress import drawn

CELL = 256  # samples of a cell, at most
SMALL_NODE = 2048  # samples of a node whose cost is that of so many calls, rather than of its pairs
_BRANCHES = 1024  # of a node, at most: as many as there may be clusters, else each cell has parts of many
_SMALLEST = CELL // 16  # of a node's parts; smaller ones are divided among the others, since each is one more visit
_SAMPLE, _ROUNDS = 48, 6  # samples for each mean of a node, and rounds of k-means
_TOGETHER = 64  # cells of targets whose visits are ordered together
NO_HELPER = NO_ROW


class Products(NamedTuple):
    """Influence as inner products: entry [i, j] is rows[i] . columns[j] + constants[i], before a transform."""

    rows: np.ndarray  # float32 (n_pool, units)
    constants: np.ndarray  # float32 (n_pool,)
    columns: np.ndarray  # float32 (n_target, units)


def divide(vectors: np.ndarray, *, seed: int = 0, progress: bool = False) -> list[np.ndarray]:
    """Divide vectors (n, d) into cells of similar ones, at most `CELL` each: rows of each cell, int64 ascending."""
    rng, cells = np.random.default_rng(seed), list[np.ndarray]()
    waiting = [np.arange(len(vectors))]
    with tqdm(total=len(vectors), desc="cells", unit=" samples", leave=False, **drawn(progress)) as bar:
        while waiting:
            rows = waiting.pop()
            if len(rows) <= CELL:
                cells.append(rows)
                bar.update(len(rows))
                continue
            nearest = _k_means(vectors, rows, min(_BRANCHES, -(-2 * len(rows) // CELL)), rng)
            order = np.argsort(nearest, kind="stable")
            if len(parts := np.split(rows[order], np.flatnonzero(np.diff(nearest[order])) + 1)) > 1:
                waiting += parts[::-1]
            else:  # they are all alike
                waiting += [rows[first : first + CELL] for first in range(0, len(rows), CELL)]
    return cells


def work_to_divide(n: int) -> tuple[int, int]:
    """About how many pairs of a vector and a mean `divide` computes in large nodes; how many vectors small ones have.

    Nodes differ in size: where they have half a cell on average, a third of the vectors are in some above a cell.
    """
    pairs, size = 0, n
    while size > SMALL_NODE or CELL < size == n:
        means = min(_BRANCHES, -(-2 * size // CELL))
        pairs += n * means + (n // size) * _ROUNDS * means * min(size, _SAMPLE * means)
        size = -(-size // means)
    return pairs, round(n * min(size / (1.5 * CELL), 1.0)) if n > CELL else 0


def _k_means(vectors: np.ndarray, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Which of `count` k-means of some rows each is nearest to, int64 (len(rows),)."""
    some = np.sort(rng.choice(rows, min(len(rows), _SAMPLE * count), replace=False))
    sample = np.asarray(vectors[some], dtype=np.float32)
    means = sample[np.sort(rng.choice(len(sample), count, replace=False))]
    for _ in range(_ROUNDS):
        nearest = nearest_means(sample, np.arange(len(sample)), means)
        order = np.argsort(nearest, kind="stable")
        held, first = np.unique(nearest[order], return_index=True)
        sums = np.add.reduceat(sample[order], first, axis=0, dtype=np.float64)
        means = (sums / np.diff(first, append=len(order))[:, None]).astype(np.float32)
        if len(held) == 1:
            break
    nearest = nearest_means(vectors, rows, means)
    large = np.bincount(nearest, minlength=len(means)) >= _SMALLEST
    if large.any() and len(moved := np.flatnonzero(~large[nearest])):
        nearest[moved] = np.flatnonzero(large)[nearest_means(vectors, rows[moved], means[large])]
    return nearest


def nearest_means(vectors: np.ndarray, rows: np.ndarray, means: np.ndarray) -> np.ndarray:
    """The nearest of some means (k, d) to each row, int64: the one with the largest x . mean - |mean|^2 / 2."""
    constants = (-np.square(means, dtype=np.float64).sum(axis=1) / 2).astype(np.float32)
    nearest = np.empty(len(rows), dtype=np.int64)

    def find(piece: slice) -> None:
        own = np.asarray(vectors[rows[piece]], dtype=np.float32)
        keep_largest_of_each(Factors(means, constants, pack(own), len(own), 0, 0), nearest[piece])

    kernels.share(find, len(rows), CELL)
    return nearest


def strongest(
    products: Products,
    k: int,
    visits: int | None,
    *,
    cells: list[np.ndarray] | None = None,
    groups: list[np.ndarray] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The k largest entries of each target among those visited.

    Args:
        products: of the pool's samples and the targets.
        k: entries to keep of each target.
        visits: pool samples that a target visits, at least; None for all of them, which finds the very largest.
        cells: of the pool's samples, as `divide` returns them; divided here unless given.
        groups: of the targets, likewise.
        seed: of the cells.
        progress: show a bar.

    Returns:
        Entries float32 and pool samples int32, (n_target, k) each, in no order but the least one first; of equal
        entries those of lower samples are kept. Empty places hold -inf and `NO_HELPER`.
    """
    values = np.empty((len(products.columns), k), dtype=np.float32)
    helpers = np.empty((len(products.columns), k), dtype=np.int32)
    if visits is None or visits >= len(products.rows):
        everyone = np.arange(len(products.rows))
        groups = [np.arange(first, min(first + CELL, len(values))) for first in range(0, len(values), CELL)]
        visited = _all_visited(everyone)
    else:
        cells = divide(products.rows, seed=seed, progress=progress) if cells is None else cells
        groups = divide(products.columns, seed=seed, progress=progress) if groups is None else groups
        visited = _order_of_visits(products, cells, groups, visits)
    with tqdm(total=len(values), desc="strongest helpers", unit=" samples", leave=False, **drawn(progress)) as bar:
        for first in range(0, len(groups), _TOGETHER):
            some = groups[first : first + _TOGETHER]
            candidates = visited(some)

            def search(piece: slice, some: list[np.ndarray] = some, rows: list[np.ndarray] = candidates) -> None:
                for group, picked in zip(some[piece], rows[piece], strict=True):
                    packed = pack(np.asarray(products.columns[group], dtype=np.float32))
                    factors = Factors(products.rows, products.constants, packed, len(group), 0, 0)
                    keep_top_k(factors, picked, group, values, helpers)

            kernels.share(search, len(some), 1)
            bar.update(sum(map(len, some)))
    return values, helpers


def _all_visited(everyone: np.ndarray) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    return lambda groups: [everyone] * len(groups)


def _order_of_visits(
    products: Products, cells: list[np.ndarray], groups: list[np.ndarray], visits: int
) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """A function from cells of targets to the pool samples that the targets of each visit."""
    sizes = np.array([len(cell) for cell in cells])
    means = np.stack([products.rows[cell].mean(axis=0, dtype=np.float64) for cell in cells]).astype(np.float32)
    constants = np.array([products.constants[cell].mean(dtype=np.float64) for cell in cells], dtype=np.float32)

    def visited(some: list[np.ndarray]) -> list[np.ndarray]:
        targets = np.stack([products.columns[group].mean(axis=0, dtype=np.float64) for group in some])
        factors = Factors(targets.astype(np.float32), np.zeros(len(some), np.float32), pack(means), len(means), 0, 0)
        scores = kernels.score(factors, np.arange(len(some))) + constants
        return [np.concatenate([cells[cell] for cell in _first_cells(each, sizes, visits)]) for each in scores]

    return visited


def _first_cells(scores: np.ndarray, sizes: np.ndarray, visits: int) -> np.ndarray:
    """The cells with the largest scores, in their order, as many as hold `visits` samples; of equal ones the first.

    Only those that may be among them are sorted: to sort all for each cell of targets would be quadratic.
    """
    count = min(4 * visits // CELL + 1, len(scores))  # cells are half full on average
    while True:
        least = np.partition(scores, len(scores) - count)[len(scores) - count]
        some = np.flatnonzero(scores >= least)
        order = some[np.argsort(-scores[some], kind="stable")]
        held = np.cumsum(sizes[order])
        if held[-1] >= visits or count == len(scores):
            return order[: int(np.searchsorted(held, visits)) + 1]
        count = min(2 * count, len(scores))
