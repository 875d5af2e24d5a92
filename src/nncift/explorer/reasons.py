"""Why a sample was chosen or left out: the targets it helps most, the chosen sample that covers it, its twin.

Where a run has too many pairs to look at all of them, a random sample of the targets takes their place; where the pool
is its own target, each sample's nearest neighbours do, and for the coverage the nearest chosen samples. The influence
of the pairs that are shown is that of the run all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from nncift.explorer.space import nearest
from nncift.matrix.compiled import kernels
from nncift.matrix.compiled.top_k import LargestEntries
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.selectors import row_slices
from nncift.run.progress import drawn

HELPED = 3  # targets of each sample
WORK = 1 << 40  # multiply-adds for the influence of pairs
_WIDTH = 128  # of a pair whose influence is no inner product
_CANDIDATES = 4  # nearest chosen samples that may cover one
_PIECE = 1 << 24  # numbers that are gathered together


@dataclass(frozen=True)
class Reasons:
    """What the influence of pairs says about each sample; -1 and nan where there is nothing to say.

    Attributes:
        helps: the targets that it helps most, best first, int64 (n, 3).
        helped: its influence on them, float32 (n, 3).
        covered_by: of a sample left out, the chosen one with the largest influence on it, where the pool is its own
            target, else on the target that it helps most; int64 (n,).
        coverage: that influence, float32 (n,).
        sampled: the targets that were looked at; None for all of them.
    """

    helps: np.ndarray
    helped: np.ndarray
    covered_by: np.ndarray
    coverage: np.ndarray
    sampled: int | None = None


def find_reasons(
    matrix: InfluenceMatrix,
    chosen: np.ndarray,
    space: np.ndarray,
    neighbours: np.ndarray,
    *,
    own_target: bool,
    work: int = WORK,
    seed: int = 0,
    cells: list[np.ndarray] | None = None,
    progress: bool = False,
) -> Reasons | None:
    """The reasons of every sample; None where each has the same influence on all targets.

    Args:
        matrix: influence, (n, n_target).
        chosen: the selected samples, int64 (k,).
        space: unit vectors, float32 (n, d).
        neighbours: nearest samples of each, int64 (n, m), -1 where there are fewer.
        own_target: whether the pool is its own target.
        work: multiply-adds that all pairs may take; more than that is not looked at.
        seed: of the sample of targets.
        cells: of all samples, as for `nearest`.
        progress: show bars.
    """
    n, n_target = matrix.shape
    most = max(int(work // (n * _width(matrix))), HELPED)  # targets
    if n_target > most and own_target and matrix.is_inner_product:
        helps, helped = _best_of(matrix, neighbours, HELPED)
        covered_by, coverage = _nearest_cover(matrix, chosen, space, cells, progress)
        return Reasons(helps, helped, covered_by, coverage, neighbours.shape[1])
    targets = np.arange(n_target)
    if n_target > most:
        targets = np.sort(np.random.default_rng(seed).choice(n_target, most, replace=False))
    found = _most_helped(matrix, targets, own_target, progress)
    if found is None:
        return None
    helps, helped = found
    wanted = np.arange(n) if own_target else helps[:, 0]  # the target that each is covered on
    best, largest = _best_chosen(matrix, np.sort(chosen), np.unique(wanted[wanted >= 0]), progress)
    left_out = np.delete(np.arange(n), chosen)
    left_out = left_out[wanted[left_out] >= 0]
    covered_by, coverage = np.full(n, -1), np.full(n, np.nan, np.float32)
    if len(chosen):
        covered_by[left_out], coverage[left_out] = best[wanted[left_out]], largest[wanted[left_out]]
    return Reasons(helps, helped, covered_by, coverage, None if len(targets) == n_target else len(targets))


def _width(matrix: InfluenceMatrix) -> int:
    products = matrix.products() if matrix.is_inner_product else None
    return _WIDTH if products is None else products[0].rows.shape[1]


def _most_helped(
    matrix: InfluenceMatrix, targets: np.ndarray, own_target: bool, progress: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """The targets with the largest influence above 0 of each sample; None where all have the same of each."""
    n, count = matrix.shape[0], min(HELPED, len(targets))
    helps, helped = np.full((n, HELPED), -1), np.full((n, HELPED), np.nan, np.float32)
    every = slice(0, matrix.shape[1]) if len(targets) == matrix.shape[1] else targets
    differ = len(targets) == 1
    with tqdm(total=n, desc="targets helped", unit=" rows", **drawn(progress)) as bar:
        for part in row_slices(n, len(targets)):
            block = matrix.block(part, every)
            differ = differ or bool((block.min(axis=1) < block.max(axis=1)).any())
            if own_target:
                block = block.copy()  # of a stored matrix it is a view
                place = np.searchsorted(targets, np.arange(part.start, part.stop))
                there = np.flatnonzero(targets[np.minimum(place, len(targets) - 1)] == np.arange(part.start, part.stop))
                block[there, place[there]] = -np.inf
            values, some = _largest(block, count)
            helps[part, :count] = np.where(values > 0, targets[some], -1)
            helped[part, :count] = np.where(values > 0, values, np.nan)
            bar.update(part.stop - part.start)
    return (helps, helped) if differ else None


def _largest(block: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest entries of each row, the first of equal ones, and their columns, (rows, count) each."""
    block, largest = np.ascontiguousarray(block), LargestEntries(len(block), count)
    kernels.share(lambda rows: largest.add(block[rows], 0, rows), len(block))
    return largest.sorted()


def _best_chosen(
    matrix: InfluenceMatrix, chosen: np.ndarray, targets: np.ndarray, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The chosen sample with the largest influence on each of some targets, the first of equal ones; (n_target,)."""
    best, largest = np.full(matrix.shape[1], -1), np.full(matrix.shape[1], -np.inf, np.float32)
    with tqdm(total=len(chosen), desc="coverage", unit=" rows", **drawn(progress)) as bar:
        for part in row_slices(len(chosen), max(len(targets), 1)):
            block = matrix.block(chosen[part], targets)
            first = block.argmax(axis=0)
            value = block[first, np.arange(len(targets))]
            better = value > largest[targets]
            best[targets[better]], largest[targets[better]] = chosen[part][first[better]], value[better]
            bar.update(part.stop - part.start)
    return best, largest


def _nearest_cover(
    matrix: InfluenceMatrix, chosen: np.ndarray, space: np.ndarray, cells: list[np.ndarray] | None, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Of the nearest chosen samples of each one left out, that with the largest influence on it."""
    n = len(space)
    covered_by, coverage = np.full(n, -1), np.full(n, np.nan, np.float32)
    left_out = np.delete(np.arange(n), chosen)
    rows, _ = nearest(space, left_out, _CANDIDATES, among=np.sort(chosen), cells=cells, progress=progress)
    found, values = _best_of(matrix, rows, 1, columns=left_out)
    covered_by[left_out], coverage[left_out] = found[:, 0], values[:, 0]
    return covered_by, coverage


def _best_of(
    matrix: InfluenceMatrix, candidates: np.ndarray, count: int, columns: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of candidates (n, m) those with the largest influence above 0, and that influence, (n, count) each.

    Row by row, the candidates are the targets of this sample; given `columns`, they are the helpers of this target.
    """
    products, transform = matrix.products()  # type: ignore[misc]  # checked by the caller
    own = np.arange(len(candidates)) if columns is None else columns
    values = np.full(candidates.shape, -np.inf, np.float32)
    step = max(_PIECE // (candidates.shape[1] * products.rows.shape[1]), 1)
    for start in range(0, len(candidates), step):
        part = slice(start, start + step)
        some, alone = np.maximum(candidates[part], 0), own[part]
        if columns is None:
            found = np.einsum("nd,nmd->nm", products.rows[alone], products.columns[some])
            found += products.constants[alone][:, None]
        else:
            found = np.einsum("nd,nmd->nm", products.columns[alone], products.rows[some]) + products.constants[some]
        found = found if transform is None else transform(found)
        values[part] = np.where(candidates[part] >= 0, found, -np.inf)
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    rows, values = (np.take_along_axis(each, order, axis=1) for each in (candidates, values))
    helps, helped = np.full((len(rows), count), -1), np.full((len(rows), count), np.nan, np.float32)
    width = rows.shape[1]
    helps[:, :width] = np.where(values > 0, rows, -1)
    helped[:, :width] = np.where(values > 0, values, np.nan)
    return helps, helped
