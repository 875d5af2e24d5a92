"""Metrics of predicted influence against exact values.

The first of them is the **subset-sum correlation**: the Pearson correlation over the pool samples of one target. It has
that name since it equals the correlation, over random subsets of any one size, of the subsets' sums of predicted and of
exact influence: over the subsets of k of n samples the covariance of two sums is k (n - k) / n times that of the
values, and the factor cancels. Influence is used as such sums (the linear datamodeling score correlates them with what
training on the subsets did), and a few large values decide them; a rank correlation counts all pairs alike, most of
which are noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nncift.labels.pairs import LabelledPairs

METRICS = (
    "subset_sum_correlation",
    "subset_sum_correlation_within_target",
    "recall_of_top_tenth",
    "recall_of_top_tenth_within_target",
    "spearman",
    "spearman_within_target",
    "spearman_row_mean",
    "r2",
    "r2_over_target_mean",
    "mse",
)
MIN_VALUES = 3  # of a correlation
MIN_TENTH = 10  # values that have a tenth
_ROUNDING = 1e-9  # relative to the largest value: smaller deviations from the mean are those of rounding


def measures(pairs: LabelledPairs, predicted: np.ndarray, *, scale: float) -> dict[str, float | None]:
    """The metrics of one method on one set of pairs; None where undefined.

    Args:
        pairs: n exact values.
        predicted: (n,) predictions.
        scale: range of the exact values (the paper's min-max scale).

    Returns:
        subset_sum_correlation_within_target: Pearson correlation over the pool samples of one target, mean over
            targets.
        subset_sum_correlation: over all pairs.
        recall_of_top_tenth_within_target: share of a target's top tenth of pool samples by exact influence that is in
            its top tenth by prediction, mean over targets; a constant has 0.1. See `top_shares`.
        recall_of_top_tenth: of all pairs.
        spearman_within_target, spearman: the same as the first two of ranks.
        spearman_row_mean: rank correlation of the pool samples' mean influence.
        r2: 1 - squared error / squared deviation from the mean.
        r2_over_target_mean: 1 - squared error / squared deviation from each target's exact mean, so without credit
            for the targets' main effects.
        mse: mean squared error on the min-max scale.
    """
    exact, predicted = pairs.influence.astype(np.float64), np.asarray(predicted, dtype=np.float64)
    error = float(np.square(exact - predicted).sum())
    _, target_of = np.unique(pairs.target_index, return_inverse=True)
    _, row_of = np.unique(pairs.pool_index, return_inverse=True)
    total = float(np.square(exact - exact.mean()).sum())
    within = float(np.square(exact - _group_means(exact, target_of)[target_of]).sum())
    found: dict[str, float | None] = {}
    for name, metric in (
        ("subset_sum_correlation", subset_sum_correlation),
        ("recall_of_top_tenth", recall_of_top_tenth),
        ("spearman", spearman),
    ):
        by_target = (
            metric(exact[target_of == target], predicted[target_of == target]) for target in range(target_of.max() + 1)
        )
        defined = [value for value in by_target if value is not None]
        found[name] = metric(exact, predicted)
        found[f"{name}_within_target"] = float(np.mean(defined)) if defined else None
    return found | {
        "spearman_row_mean": spearman(_group_means(exact, row_of), _group_means(predicted, row_of)),
        "r2": 1 - error / total if total > 0 else None,
        "r2_over_target_mean": 1 - error / within if within > 0 else None,
        "mse": error / len(exact) / scale**2,
    }


def _group_means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.asarray(np.bincount(group, values) / np.bincount(group))


def subset_sum_correlation(exact: np.ndarray, predicted: np.ndarray) -> float | None:
    """Pearson correlation (n,); None for fewer than three values, 0 if one side is constant."""
    if len(exact) < MIN_VALUES:
        return None
    one_group = np.zeros(len(exact), np.int64)
    return float(np.mean(standardized(exact, one_group) * standardized(predicted, one_group)))


def standardized(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Values (n,) less their group's mean, over its standard deviation; 0 where a group is constant but for rounding.

    Args:
        values: float64.
        group: number of each value's group, int64.
    """
    sizes = np.bincount(group)
    largest = np.zeros(len(sizes))
    np.maximum.at(largest, group, np.abs(values))
    scaled = values / np.where(largest > 0, largest, 1)[group]  # squares of tiny values would be 0
    centered = scaled - (np.bincount(group, scaled) / np.maximum(sizes, 1))[group]
    deviation = np.sqrt(np.bincount(group, centered**2) / np.maximum(sizes, 1))
    return np.asarray(centered / np.where(deviation > _ROUNDING, deviation, np.inf)[group])


def recall_of_top_tenth(exact: np.ndarray, predicted: np.ndarray) -> float | None:
    """Share of the top tenth by exact value that is in the top tenth by prediction; None for fewer than ten values."""
    if len(exact) < MIN_TENTH:
        return None
    shares = (top_shares(values, size := tenth(len(exact))) for values in (exact, predicted))
    return float(np.minimum(*shares).sum() / size)


def tenth(count: Any) -> Any:
    """A tenth of a number of values, or of numbers (b,), rounded; at least 1."""
    return np.maximum(np.round(count / 10), 1)


def top_shares(values: np.ndarray, size: float) -> np.ndarray:
    """How much of each value is among the `size` largest, (n,): 1 or 0; equal values share the places left evenly."""
    _, place, counts = np.unique(-values, return_inverse=True, return_counts=True)
    above = np.cumsum(counts) - counts
    return np.asarray(np.clip((size - above) / counts, 0, 1)[place])


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation; None for fewer than three values, 0 if one side is constant."""
    return None if len(a) < MIN_VALUES else float(rank_correlations(a[:, None], b[:, None])[0])


def rank_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation by column, (columns,); 0 where one is constant."""
    from scipy.stats import rankdata  # half a second to import

    x, y = (ranks - ranks.mean(axis=0) for ranks in (rankdata(a, axis=0), rankdata(b, axis=0)))
    lengths = np.linalg.norm(x, axis=0) * np.linalg.norm(y, axis=0)
    return np.asarray((x * y).sum(axis=0) / np.where(lengths > 0, lengths, 1.0))
