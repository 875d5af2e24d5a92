"""Metrics of predicted influence against exact values."""

from __future__ import annotations

import numpy as np

from nncift.labels.pairs import LabelledPairs

METRICS = ("mse", "r2", "r2_over_target_mean", "spearman", "spearman_within_target", "spearman_row_mean")
_MIN_SAMPLES = 3  # of a rank correlation


def measures(pairs: LabelledPairs, predicted: np.ndarray, *, scale: float) -> dict[str, float | None]:
    """The metrics of one method on one set of pairs; None where undefined.

    Args:
        pairs: n exact values.
        predicted: (n,) predictions.
        scale: range of the exact values (the paper's min-max scale).

    Returns:
        mse: mean squared error on the min-max scale.
        r2: 1 - squared error / squared deviation from the mean.
        r2_over_target_mean: 1 - squared error / squared deviation from each target's exact mean, so without credit
            for the targets' main effects.
        spearman: rank correlation over all pairs.
        spearman_within_target: rank correlation over the pool samples of one target, mean over targets.
        spearman_row_mean: rank correlation of the pool samples' mean influence.
    """
    exact, predicted = pairs.influence.astype(np.float64), np.asarray(predicted, dtype=np.float64)
    error = float(np.square(exact - predicted).sum())
    _, target_of = np.unique(pairs.target_index, return_inverse=True)
    _, row_of = np.unique(pairs.pool_index, return_inverse=True)
    total = float(np.square(exact - exact.mean()).sum())
    within = float(np.square(exact - _group_means(exact, target_of)[target_of]).sum())
    correlations = [
        correlation
        for target in range(target_of.max() + 1)
        if (correlation := spearman(exact[target_of == target], predicted[target_of == target])) is not None
    ]
    return {
        "mse": error / len(exact) / scale**2,
        "r2": 1 - error / total if total > 0 else None,
        "r2_over_target_mean": 1 - error / within if within > 0 else None,
        "spearman": spearman(exact, predicted),
        "spearman_within_target": float(np.mean(correlations)) if correlations else None,
        "spearman_row_mean": spearman(_group_means(exact, row_of), _group_means(predicted, row_of)),
    }


def _group_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.asarray(np.bincount(group, values) / np.bincount(group))


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation; None for fewer than three values, 0 if one side is constant."""
    return None if len(a) < _MIN_SAMPLES else float(rank_correlations(a[:, None], b[:, None])[0])


def rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation by column, (columns,); 0 where one is constant."""
    from scipy.stats import rankdata  # half a second to import

    x, y = (ranks - ranks.mean(axis=0) for ranks in (rankdata(a, axis=0), rankdata(b, axis=0)))
    lengths = np.linalg.norm(x, axis=0) * np.linalg.norm(y, axis=0)
    return np.asarray((x * y).sum(axis=0) / np.where(lengths > 0, lengths, 1.0))
