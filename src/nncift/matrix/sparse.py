"""A sparse influence matrix: the k strongest helpers of each target, all other entries left out.

A subset serves a target by its best sample, so of a large pool only a target's strongest helpers matter once the subset
is large enough to have one of them for nearly every target (Lindgren, Wu and Dimakis, "Leveraging sparsity for
efficient submodular data summarization", 2016). What is left out counts as 0, the floor of every objective: a target
none of whose kept helpers is in the subset counts as not covered. So facility location of the sparse matrix never
exceeds that of the whole one, and how far it falls short is bounded:

    floor[j]     the k-th largest entry of target j: of all that it visited, none left out is larger
    unseen       how much entries that were not visited may exceed given levels, summed over the targets: from a random
                 sample of targets whose every entry is computed, by the empirical Bernstein bound (Maurer and Pontil,
                 "Empirical Bernstein bounds and sample-variance penalization", 2009), true for all levels asked about
                 in one run with probability 99.9 %; 0 where all were visited

Memory: 8 bytes per entry kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nncift.errors import ConfigError
from nncift.matrix.cells import NO_HELPER, Products, strongest
from nncift.matrix.compiled.entries import Entries
from nncift.matrix.compiled.factored import compiled
from nncift.matrix.compiled.transposed import by_sample
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.selectors import bounded, indices_of
from nncift.matrix.stored import EntriesMatrix

EXACT_BELOW = 1 << 16
"""Pool samples up to which every pair is computed to find the strongest."""
VISITS = 1 << 12
"""Pool samples that a target visits in a larger pool; more where many helpers are kept."""
CONFIDENCE = 0.999
_VISITS_PER_HELPER = 12
AUDITED = 1 << 12
"""Targets whose every entry is computed, drawn with replacement."""
_QUESTIONS = 64  # levels that one run may ask about
_ROWS = 1 << 14  # read together


@dataclass(frozen=True, eq=False)
class Audit:
    """The largest entry left out of some targets, drawn at random with replacement.

    Attributes:
        targets: int64 (m,).
        largest: of the entries of each that are left out, float32 (m,); 0 where none is among its strongest helpers,
            so none is larger than the least one kept.
        most: what no entry of each target exceeds, float32 (n_target,).
    """

    targets: np.ndarray
    largest: np.ndarray
    most: np.ndarray

    def unseen(self, levels: np.ndarray) -> float:
        """Upper bound of the sum over all targets of max(0, largest entry left out - level).

        Args:
            levels: float32 (n_target,), not below the floor, chosen without a look at this audit.
        """
        excess = np.maximum(self.largest - levels[self.targets], 0).astype(np.float64)
        spread = max(float((self.most - levels).max()), float(excess.max()))
        return len(levels) * spread * _largest_mean(excess / spread, (1 - CONFIDENCE) / _QUESTIONS) if spread else 0.0


def _largest_mean(values: np.ndarray, doubt: float) -> float:
    """Upper bound of the mean of a distribution on 0 to 1 by independent draws, true with probability 1 - doubt."""
    m, mean, log = len(values), float(values.mean()), math.log(2 / doubt)  # half of the doubt for each bound
    bernstein = mean + math.sqrt(2 * values.var(ddof=1) * (log + math.log(2)) / m)
    bernstein += 7 * (log + math.log(2)) / (3 * (m - 1))
    low, high = mean, 1.0  # the largest p with a Kullback-Leibler divergence of (mean, p) of at most log / m
    for _ in range(50):
        p = (low + high) / 2
        least = mean * math.log(mean / p) if mean > 0 else 0.0
        divergence = least + ((1 - mean) * math.log((1 - mean) / (1 - p)) if mean < 1 else 0.0)
        low, high = (p, high) if divergence <= log / m else (low, p)
    return min(bernstein, high)


class SparseMatrix(EntriesMatrix):
    """The kept entries of a matrix; the others read as 0. Made by `sparsified`.

    Args:
        entries: those kept, above 0.
        floor: float32 (n_target,): of the entries visited, none left out is larger.
        audit: of the entries that were not visited; None if all were.
        source: the whole matrix, for statistics of rows and columns.
        helpers: entries kept of each target, at most.
    """

    def __init__(
        self, entries: Entries, floor: np.ndarray, audit: Audit | None, source: InfluenceMatrix, helpers: int
    ) -> None:
        super().__init__(source.shape, self._read, entries)
        self.floor: np.ndarray = floor
        self.audit, self.source, self.helpers = audit, source, helpers
        self.confidence = 1.0 if audit is None else CONFIDENCE

    @property
    def row_width(self) -> int:
        """Entries kept, on average."""
        return -(-len(self._entries.values) // max(self.shape[0], 1))

    def count_above(self, rows: np.ndarray, shares: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """As `InfluenceMatrix.count_above`, of the entries kept."""
        counts = np.zeros(self.shape[1])
        _count_above(self._entries, rows, shares, levels, counts)
        return counts

    def left_out(self, covered: np.ndarray) -> float:
        """How much the targets may be served better than covered, by entries left out: an upper bound of the sum."""
        levels = np.maximum(covered, self.floor)
        return float(np.subtract(levels, covered, dtype=np.float64).sum()) + self.unseen(levels)

    def unseen(self, levels: np.ndarray) -> float:
        """How much entries left out may exceed `levels`, float32 (n_target,), which are not below the floor."""
        return 0.0 if self.audit is None else self.audit.unseen(levels)

    def row_means(self) -> np.ndarray:
        """Of the whole matrix."""
        return self.source.row_means()

    def row_max(self) -> np.ndarray:
        """Of the whole matrix."""
        return self.source.row_max()

    def top_k(self, k: int, *, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the whole matrix."""
        return self.source.top_k(k, axis=axis)

    def _read(self, rows: Any, columns: Any) -> np.ndarray:
        rows = indices_of(bounded(rows, self.shape[0]))
        block = np.zeros((len(rows), self.shape[1]), dtype=np.float32)
        for place, i in enumerate(rows):
            row = slice(self._entries.starts[i], self._entries.starts[i + 1])
            block[place, self._entries.columns[row]] = self._entries.values[row]
        return block[:, columns]


def sparsified(
    matrix: InfluenceMatrix, helpers: int, *, visits: int | None = None, seed: int = 0, progress: bool = False
) -> SparseMatrix:
    """The strongest helpers of each target.

    Args:
        matrix: of two towers or of inner products.
        helpers: entries to keep of each target, at most all.
        visits: pool samples that each target visits; by default all of a pool of up to `EXACT_BELOW`.
        seed: of the cells and the audited targets.
        progress: show a bar.

    Raises:
        ConfigError: the matrix is not one of inner products.
    """
    if (found := matrix.products()) is None:
        raise ConfigError("this matrix is not one of inner products, so it has no sparse form", "stream it")
    products, transform = found
    n, helpers = len(products.rows), min(helpers, len(products.rows))
    visits = visits_of(n, helpers) if visits is None else visits
    visits = None if visits is None or visits >= n else visits
    values, which = strongest(products, helpers, visits, seed=seed, progress=progress)
    audit = None if visits is None else _audited(products, transform, which, seed, progress)
    _transform(values, transform)
    complete = (which[:, 0] == NO_HELPER) | (helpers == n)  # nothing is left out
    floor = np.where(complete, np.float32(0), np.maximum(values[:, 0], 0))
    return SparseMatrix(by_sample(values, which, n), floor, audit, matrix, helpers)


def visits_of(n_pool: int, helpers: int) -> int | None:
    """Pool samples that a target visits by default; None for all."""
    visits = max(VISITS, _VISITS_PER_HELPER * helpers)
    return None if n_pool <= max(EXACT_BELOW, visits) else visits


def _transform(values: np.ndarray, transform: Callable[[np.ndarray], np.ndarray] | None) -> None:
    for first in range(0, len(values) if transform is not None else 0, 1 << 14):
        part = values[first : first + (1 << 14)]
        held = np.isfinite(part)
        part[held] = transform(part[held][None])[0]  # type: ignore[misc]


def _audited(
    products: Products,
    transform: Callable[[np.ndarray], np.ndarray] | None,
    which: np.ndarray,
    seed: int,
    progress: bool,
) -> Audit:
    """Find the strongest helpers of some targets among all samples, and the largest of these that is left out."""
    targets = np.random.default_rng(seed).integers(0, len(which), AUDITED)
    some = products._replace(columns=np.asarray(products.columns[targets]))
    values, helpers = strongest(some, which.shape[1], None, progress=progress)
    for place, target in enumerate(targets):
        values[place, np.isin(helpers[place], which[target])] = -np.inf
    missed = values.max(axis=1)
    largest, most = np.where(np.isfinite(missed), missed, 0)[None], _largest_possible(products)[None]
    if transform is not None:
        largest, most = transform(largest), transform(most)
    return Audit(targets, np.where(np.isfinite(missed), np.maximum(largest[0], 0), 0), most[0])


def _largest_possible(products: Products) -> np.ndarray:
    """What no entry of a target exceeds, by the Cauchy-Schwarz inequality about the mean row: float32 (n_target,)."""
    mean = products.rows.mean(axis=0, dtype=np.float64)
    parts = (products.rows[first : first + _ROWS] - mean for first in range(0, len(products.rows), _ROWS))
    radius = max(float(np.sqrt(np.square(part).sum(axis=1)).max()) for part in parts)
    most = np.empty(len(products.columns), dtype=np.float32)
    for first in range(0, len(most), _ROWS):
        columns = products.columns[first : first + _ROWS].astype(np.float64)
        lengths = np.sqrt(np.square(columns).sum(axis=1))
        most[first : first + _ROWS] = columns @ mean + radius * lengths + float(products.constants.max())
    return most


@compiled
def _count_above(
    entries: Entries, rows: np.ndarray, shares: np.ndarray, levels: np.ndarray, counts: np.ndarray
) -> None:
    for row in range(len(rows)):
        for place in range(entries.starts[rows[row]], entries.starts[rows[row] + 1]):
            j = entries.columns[place]
            if entries.values[place] > levels[j]:
                counts[j] += shares[row]
