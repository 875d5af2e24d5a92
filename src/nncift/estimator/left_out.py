"""Whether a process of vectors predicts labelled pool rows that it did not see.

A part of the labelled rows at a time is left out, in closed form, and what is expected of it is judged as estimates
are: by the Pearson correlation within a target, which sums over subsets follow (`evaluation.metrics`), and not by
squares, since a choice asks for no scale. Deviations are from the target's mean over the part: what is expected from
the other rows contains their mean, which correlates negatively with what is left out.

The process over pairs is no rival here. In closed form its hyperparameters are fitted to the rows that are left out,
which flatters it; fitted anew without them it costs a fit for each part, and where it did correlate better its choices
were worse (`docs/measurements.md`, "Labels on both sides").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nncift.estimator.vector_process import VectorProcess, labelled_grid, labelled_rows
from nncift.labels.pairs import LabelledPairs

_PARTS = 5  # in which rows are left out
_MIN_ROWS = 4  # two parts of two rows


@dataclass(frozen=True)
class BothSides:
    """What became of labels on both sides.

    Attributes:
        used: influence is expected by the labelled samples' vectors, else from labelled pairs.
        why: in words.
        correlation: subset-sum correlation within target on left-out rows; None where there were too few.
    """

    used: bool
    why: str
    correlation: float | None = None

    def __str__(self) -> str:
        return f"labels on both sides are {'used' if self.used else 'not used'}: {self.why}"

    @classmethod
    def judged(cls, vectors: VectorProcess, labels: LabelledPairs, targets: np.ndarray, *, seed: int) -> BothSides:
        """Used unless what is expected of left-out rows does not correlate with their labels.

        Args:
            vectors: fitted to the labels and to the influence of targets on each other.
            labels: exact influence of pool rows.
            targets: those whose influence on each other is labelled, ascending.
            seed: draws the parts.
        """
        new = ~vectors.rows_among_targets()  # the others it knows anyway
        if new.sum() < _MIN_ROWS:
            return cls(True, "too few labelled pool samples to test them on")
        parts = parts_of(len(new), seed=seed)
        exact = labelled_grid(labels, labelled_rows(labels, targets), targets)
        found = correlation(exact[new], (exact - vectors.left_out(parts))[new], parts[new])
        predict = "predict" if found > 0 else "do not predict"
        why = (
            f"gradients {predict} {new.sum():,} labelled pool samples that were left out (subset-sum correlation within"
            f" target {found:.2f})"
        )
        return cls(found > 0, why, found)


def parts_of(rows: int, *, seed: int) -> np.ndarray:
    """The part of each of so many rows, drawn evenly, of two rows at least: (rows,) int64."""
    return np.random.default_rng(seed).permutation(np.arange(rows) % max(min(_PARTS, rows // 2), 1))


def correlation(exact: np.ndarray, expected: np.ndarray, parts: np.ndarray) -> float:
    """Mean over targets of the Pearson correlation of deviations from the mean of part and target.

    Args:
        exact: influence of rows on targets, (r, m) float64; nan where there is no label.
        expected: without the row's part, likewise.
        parts: number of each row's part, (r,) int64.
    """
    known = np.isfinite(exact)
    members = (parts[:, None] == np.unique(parts)).astype(np.float64)  # (r, parts)
    counts = np.maximum(members.T @ known, 1)

    def deviations(values: np.ndarray) -> np.ndarray:
        filled = np.where(known, values, 0)
        return np.asarray(np.where(known, filled - members @ (members.T @ filled / counts), 0))

    x, y = deviations(exact), deviations(expected)
    size = np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0))
    return float(np.divide((x * y).sum(axis=0), size, out=np.zeros_like(size), where=size > 0).mean())
