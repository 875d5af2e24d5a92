"""Which process predicts labelled pool rows that it did not see: that of vectors, or that of pairs.

A part of the labelled rows at a time is left out of both, in closed form, with the hyperparameters that were fitted to
all of them, and both are judged as estimates are: by the Pearson correlation within a target, which sums over subsets
follow (`evaluation.metrics`), and not by squares, since a choice asks for no scale. Deviations are from the target's
mean over the part: predictions from the other rows contain their mean, which correlates negatively with what is left
out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from nncift.estimator.likelihood import Theta, expectation, solve
from nncift.estimator.training_data import LabelledGrid
from nncift.estimator.vector_process import VectorProcess, labelled_grid, labelled_rows
from nncift.labels.pairs import LabelledPairs

_PARTS = 5  # in which rows are left out
_MIN_ROWS = 4  # of a comparison: two parts of two rows


@dataclass(frozen=True)
class Comparison:
    """Two processes on labelled pool rows that they did not see.

    Attributes:
        rows: how many there are.
        vectors: subset-sum correlation within a target, mean over the targets, of the process of vectors.
        pairs: of the process over pairs.
        error: standard error of their difference, by the jackknife over the rows.
    """

    rows: int
    vectors: float
    pairs: float
    error: float

    @classmethod
    def of(cls, exact: np.ndarray, vectors: np.ndarray, pairs: np.ndarray, parts: np.ndarray) -> Self:
        """From what was left out of both.

        Args:
            exact: influence of the rows on the labelled targets, (r, m) float64; nan where there is no label.
            vectors: what the process of vectors without a row's part expects, likewise.
            pairs: what the process over pairs expects.
            parts: number of each row's part, (r,) int64.
        """
        products = [_products(exact, expected, parts) for expected in (vectors, pairs)]
        found = [_correlation(each.sum(axis=1)) for each in products]
        without = [_correlation(each.sum(axis=1)[:, None] - each) for each in products]  # each row, (r,)
        rows, difference = len(exact), without[0] - without[1]
        error = np.sqrt((rows - 1) / rows * np.square(difference - difference.mean()).sum())
        return cls(rows, float(found[0]), float(found[1]), float(error))

    @property
    def by_vectors(self) -> bool:
        """Whether vectors predict better, or as well but for the standard error of the difference."""
        return self.vectors >= self.pairs - self.error

    def __str__(self) -> str:
        better = "predict no worse" if self.by_vectors else "predict worse"
        return (
            f"gradients {better} than labelled pairs on {self.rows:,} labelled pool samples that neither saw"
            f" (subset-sum correlation within target {self.vectors:.2f} and {self.pairs:.2f}, standard error of the"
            f" difference {self.error:.2f})"
        )


@dataclass(frozen=True)
class BothSides:
    """What became of labels on both sides.

    Attributes:
        used: influence is expected by the labelled samples' vectors, else from labelled pairs.
        why: in words.
        comparison: of the two; None where there was nothing to compare.
    """

    used: bool
    why: str
    comparison: Comparison | None = None

    def __str__(self) -> str:
        return f"labels on both sides are {'used' if self.used else 'not used'}: {self.why}"


def compared(
    vectors: VectorProcess, theta: Theta, grid: LabelledGrid, labels: LabelledPairs, targets: np.ndarray, *, seed: int
) -> Comparison | None:
    """Both processes on the labelled rows; None where there are too few.

    Args:
        vectors: the process of vectors, fitted to the labels and to the influence of targets on each other.
        theta: hyperparameters of the process over pairs.
        grid: the labels as it takes them.
        labels: the labels themselves.
        targets: those whose influence on each other is labelled, ascending.
        seed: draws the parts.
    """
    every, rows = np.unique(labels.pool_index), labelled_rows(labels, targets)
    new = ~vectors.rows_among_targets()  # the others it knows anyway
    if new.sum() < _MIN_ROWS:
        return None
    parts = parts_of(len(every), seed=seed)
    of_pairs = replace(labels, influence=left_out_of_pairs(theta, grid, parts))
    exact, left = (labelled_grid(pairs, rows, targets)[new] for pairs in (labels, of_pairs))
    part = parts[np.searchsorted(every, rows)]
    return Comparison.of(exact, exact - vectors.left_out(part)[new], exact - left, part[new])


def parts_of(rows: int, *, seed: int) -> np.ndarray:
    """The part of each of so many rows, drawn evenly, of two rows at least: (rows,) int64."""
    return np.random.default_rng(seed).permutation(np.arange(rows) % max(min(_PARTS, rows // 2), 1))


@torch.no_grad()
def left_out_of_pairs(theta: Theta, grid: LabelledGrid, parts: np.ndarray) -> np.ndarray:
    """Of each label, exact minus expected influence by the process over pairs without the row's part: (labels,).

    Args:
        theta: the hyperparameters.
        grid: the labels.
        parts: number of each labelled pool sample's part, (n,) int64.
    """
    expected, part = torch.zeros_like(grid.value), torch.from_numpy(parts)[grid.row]
    product = expectation(theta, grid)
    for one in torch.unique(part):
        kept, out = part != one, part == one
        others = replace(grid, row=grid.row[kept], column=grid.column[kept], value=grid.value[kept])
        expected[out] = product(solve(theta, others))[grid.row[out], grid.column[out]]
    return np.asarray(grid.unit * (grid.value - expected))


def _products(exact: np.ndarray, expected: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Squares of both and their product, as deviations from the mean of part and target: (3, r, m), 0 without label."""
    known = np.isfinite(exact)
    members = (parts[:, None] == np.unique(parts)).astype(np.float64)  # (r, parts)
    counts = np.maximum(members.T @ known, 1)

    def deviations(values: np.ndarray) -> np.ndarray:
        filled = np.where(known, values, 0)
        return np.asarray(np.where(known, filled - members @ (members.T @ filled / counts), 0))

    x, y = deviations(exact), deviations(expected)
    return np.stack([x * x, y * y, x * y])


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Mean over targets of the correlations with these sums of squares and products: (3, ..., m) -> (...)."""
    size = np.sqrt(np.maximum(sums[0] * sums[1], 0))
    return np.asarray(np.divide(sums[2], size, out=np.zeros_like(size), where=size > 1e-12 * size.max()).mean(axis=-1))
