"""Correlation of two runs' influence over the rows that both have, with 95 % intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nncift.evaluation.metrics import spearman, standardized

_NORMAL = 1.959964  # quantile 0.975
_LARGEST = 1 - 1e-12  # of a correlation whose arc tangent is taken
MIN_ROWS = 10
"""Fewer have no correlation worth the name."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class InfluenceCorrelation:
    """Correlation of the mean influence over the targets, a value for each row.

    Attributes:
        rows: that both pools have.
        pearson, spearman: the coefficients; 0 where one side is constant.
        pearson_interval, spearman_interval: 95 %, low and high.
    """

    rows: int
    pearson: float
    pearson_interval: Interval
    spearman: float
    spearman_interval: Interval


def correlate(first: np.ndarray, second: np.ndarray) -> InfluenceCorrelation | None:
    """Correlation of two runs' influence of the same n rows, float (n,) each; None for fewer than `MIN_ROWS`.

    The intervals are symmetric on Fisher's scale, artanh r. Pearson's has the variance of its influence function,
    E[(x y - r (x^2 + y^2) / 2)^2] / n in standard units, since influence has long tails and that needs no normal
    distribution (Steiger and Hakstian, "The asymptotic distribution of elements of a correlation matrix", 1982).
    Spearman's has (1 + r^2 / 2) / (n - 3) (Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall
    and Spearman correlations", 2000).
    """
    n = len(first)
    if n < MIN_ROWS:
        return None
    group = np.zeros(n, np.int64)
    x, y = (standardized(np.asarray(side, np.float64), group) for side in (first, second))
    pearson = float(np.clip(np.mean(x * y), -1, 1))
    of_rows = x * y - pearson * (x**2 + y**2) / 2
    deviation = math.sqrt(float(np.mean(of_rows**2)) / n) / max(1 - pearson**2, 1 - _LARGEST)
    ranks = float(np.clip(spearman(np.asarray(first), np.asarray(second)) or 0.0, -1, 1))
    of_ranks = math.sqrt((1 + ranks**2 / 2) / (n - 3))
    return InfluenceCorrelation(n, pearson, _interval(pearson, deviation), ranks, _interval(ranks, of_ranks))


def _interval(correlation: float, deviation: float) -> Interval:
    """The 95 % interval of a coefficient whose deviation on Fisher's scale is given."""
    center = math.atanh(max(-_LARGEST, min(correlation, _LARGEST)))
    return math.tanh(center - _NORMAL * deviation), math.tanh(center + _NORMAL * deviation)
