"""Metrics of predicted influence against exact values."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from nncift.labels.pairs import LabelledPairs

METRICS = ("mse", "r2", "r2_over_target_mean", "spearman", "spearman_within_target", "spearman_row_mean")
_LEAST = 3  # samples below which a rank correlation says nothing


def measures(pairs: LabelledPairs, predicted: np.ndarray, *, scale: float) -> dict[str, float | None]:
    """The metrics of one method on one set of pairs; None where one is not defined.

    Args:
        pairs: n exact values.
        predicted: (n,) predictions of them.
        scale: range of the exact values, to which the squared error is scaled (the paper's min-max scale).

    Returns:
        mse: mean squared error on the min-max scale.
        r2: 1 - squared error / squared deviation from the mean.
        r2_over_target_mean: 1 - squared error / squared deviation from each target's own exact mean: what is
            known beyond how easily a target is helped.
        spearman: rank correlation over all pairs.
        spearman_within_target: rank correlation over the pool samples of one target, mean over targets.
        spearman_row_mean: rank correlation of the pool samples' mean influence.
    """
    exact, predicted = pairs.influence.astype(np.float64), np.asarray(predicted, dtype=np.float64)
    error = float(np.square(exact - predicted).sum())
    _, target_of = np.unique(pairs.target_index, return_inverse=True)
    _, row_of = np.unique(pairs.pool_index, return_inverse=True)
    spread = float(np.square(exact - exact.mean()).sum())
    within = float(np.square(exact - _group_means(exact, target_of)[target_of]).sum())
    correlations = [
        correlation
        for target in range(target_of.max() + 1)
        if (correlation := spearman(exact[target_of == target], predicted[target_of == target])) is not None
    ]
    return {
        "mse": error / len(exact) / scale**2,
        "r2": 1 - error / spread if spread > 0 else None,
        "r2_over_target_mean": 1 - error / within if within > 0 else None,
        "spearman": spearman(exact, predicted),
        "spearman_within_target": float(np.mean(correlations)) if correlations else None,
        "spearman_row_mean": spearman(_group_means(exact, row_of), _group_means(predicted, row_of)),
    }


def _group_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.asarray(np.bincount(group, values) / np.bincount(group))


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation, ties averaged; None for fewer than three values, 0 where one side is constant."""
    if len(a) < _LEAST:
        return None
    x, y = rankdata(a), rankdata(b)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
