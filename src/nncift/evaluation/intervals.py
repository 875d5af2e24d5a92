"""Bootstrap of the fidelity metrics: whole held-out samples are resampled, so pairs of one sample stay together.

Pairs of one sample are not independent, so an interval over pairs would be far too narrow. A resample gives every
held-out sample a count; the count of a pair is the product of its two samples' counts, and every metric is computed
with these as weights, for all methods on the same resamples. That makes the interval of a difference between two
methods much narrower than those of the methods themselves. What the network and the baselines were fitted to stays as
it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nncift.evaluation.metrics import MIN_TENTH, MIN_VALUES, measures, standardized, tenth
from nncift.labels.pairs import LabelledPairs

RESAMPLES = 1000
_WORK = 2_000_000  # pairs x resamples, at most: two seconds
_MAX_PAIRS = 5000  # more are thinned out
_AT_ONCE = 500_000  # pairs x resamples in memory
_LEVEL = 0.95
_ROUNDING = 1e-12  # relative to the scale: smaller differences are those of summation

Resampled = dict[str, dict[str, np.ndarray]]
"""Method to metric to its value on each resample, (resamples,) float64; nan where it is undefined."""


def resampled(
    pairs: LabelledPairs,
    predictions: Mapping[str, np.ndarray],
    *,
    scale: float,
    pool: bool,
    target: bool,
    seed: int = 0,
) -> Resampled:
    """The metrics of `metrics.measures` on resamples.

    Of more than 5,000 pairs, those of a random part of the other side's samples are resampled, and the values moved by
    the metrics' differences between these and all pairs.

    Args:
        pairs: n held-out pairs with their exact values.
        predictions: (n,) of each method.
        scale: range of the exact values.
        pool: resample the pool samples.
        target: resample the targets.
        seed: of the resamples.
    """
    rng = np.random.default_rng(seed)
    kept = _thinned(pairs, rng, pool=pool, target=target)
    some, theirs = pairs.take(kept), {name: np.asarray(values)[kept] for name, values in predictions.items()}
    problem = _Problem(some, theirs, scale)
    number = min(RESAMPLES, _WORK // len(some))
    step = max(_AT_ONCE // len(some), 1)
    parts = []
    for start in range(0, number, step):
        size = min(step, number - start)
        parts.append(
            problem.measures(_counts(rng, problem.n_rows, size, pool), _counts(rng, problem.n_targets, size, target))
        )
    found = {
        method: {metric: np.concatenate([part[method][metric] for part in parts]) for metric in parts[0][method]}
        for method in predictions
    }
    if len(some) < len(pairs):
        for method, metrics in found.items():
            of_all, of_some = (
                measures(one, values[method], scale=scale) for one, values in ((pairs, predictions), (some, theirs))
            )
            for metric, values in metrics.items():
                values += (of_all[metric] or 0.0) - (of_some[metric] or 0.0)
    return found


def _thinned(pairs: LabelledPairs, rng: np.random.Generator, *, pool: bool, target: bool) -> np.ndarray:
    """Which pairs are resampled, (n,) bool: whole samples are left out, of the side that is not drawn if any."""
    kept = np.ones(len(pairs), bool)
    share = _MAX_PAIRS / len(pairs)
    if share >= 1:
        return kept
    both = pool == target
    thin = [index for index, drawn in ((pairs.target_index, target), (pairs.pool_index, pool)) if both or not drawn]
    for index in thin:
        distinct = rng.permutation(np.unique(index))
        kept &= np.isin(index, distinct[: max(round(len(distinct) * share ** (1 / len(thin))), 1)])
    return kept if kept.any() else np.ones(len(pairs), bool)


def interval(values: np.ndarray) -> list[float] | None:
    """The central 95 % of the finite values, [low, high]; None without any."""
    finite = values[np.isfinite(values)]
    tail = (1 - _LEVEL) / 2
    return [float(v) for v in np.quantile(finite, [tail, 1 - tail])] if len(finite) else None


def _counts(rng: np.random.Generator, samples: int, number: int, drawn: bool) -> np.ndarray:
    """How often each sample is in each resample, (samples, number) float64; once where they are not resampled."""
    if not drawn:
        return np.ones((samples, number))
    return rng.multinomial(samples, np.full(samples, 1 / samples), size=number).T.astype(np.float64)


class _Problem:
    """Pairs in the order of their targets, with what does not depend on the resample.

    Arrays of resamples have these last, (n, b): the rows that indices gather are then contiguous.
    """

    def __init__(self, pairs: LabelledPairs, predictions: Mapping[str, np.ndarray], scale: float) -> None:
        _, target = np.unique(pairs.target_index, return_inverse=True)
        _, row = np.unique(pairs.pool_index, return_inverse=True)
        order = np.argsort(target, kind="stable")
        self.row, self.target, self.scale = row[order], target[order], scale
        self.n_rows, self.n_targets = int(row.max()) + 1, int(target.max()) + 1
        exact = pairs.influence.astype(np.float64)[order]
        center = exact.mean()  # no metric depends on it, and sums of squares cancel less
        self.exact = exact - center
        self.predicted = {n: np.asarray(values, np.float64)[order] - center for n, values in predictions.items()}
        self.of_row = np.argsort(self.row, kind="stable")
        self.by_row = _Groups(self.row[self.of_row])
        sides = {"": self.exact, **self.predicted}
        self.whole, self.by_target = _Scope(sides, np.zeros_like(self.target)), _Scope(sides, self.target)

    def measures(self, rows: np.ndarray, targets: np.ndarray) -> Resampled:
        """The metrics under these counts, (n_rows, b) and (n_targets, b)."""
        own = rows[self.row]  # counts within a target
        weights = own * targets[self.target]
        total, first, second = np.stack([np.ones_like(self.exact), self.exact, self.exact**2]) @ weights
        with np.errstate(invalid="ignore", divide="ignore"):
            variation = _positive(second - first**2 / total, second)
            within = _positive(self._deviations(own, targets), second)
            exact_all, exact_within = self.whole.placed("", weights), self.by_target.placed("", own)
            means = self._row_means(self.exact, targets)
            found = {}
            for name, predicted in self.predicted.items():
                error = np.square(self.exact - predicted) @ weights
                overall = self.whole.compare(exact_all, self.whole.placed(name, weights), weights)
                by_target = self.by_target.compare(exact_within, self.by_target.placed(name, own), own)
                found[name] = {
                    **{metric: values[0] for metric, values in overall.items()},
                    **{f"{metric}_within_target": self._mean(values, targets) for metric, values in by_target.items()},
                    "spearman_row_mean": self._row_mean(means, self._row_means(predicted, targets), rows),
                    "r2": 1 - error / variation,
                    "r2_over_target_mean": 1 - error / within,
                    "mse": error / total / self.scale**2,
                }
        return found

    def _deviations(self, own: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Squared deviations from each target's mean, (b,)."""
        count, first, second = (
            self.by_target.groups.sums(own * v[:, None]) for v in (self.exact**0, self.exact, self.exact**2)
        )
        deviations = np.where(count > 0, second - first**2 / np.where(count > 0, count, 1), 0)
        return np.asarray((deviations * targets).sum(axis=0))

    def _mean(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Mean over the targets that have enough samples, of values (targets, b): (b,)."""
        weights = targets * np.isfinite(values)
        return np.asarray((np.nan_to_num(values) * weights).sum(axis=0) / weights.sum(axis=0))

    def _row_means(self, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Mean over the targets of each pool sample, (n_rows, b); nan without any."""
        weights = targets[self.target[self.of_row]]
        return np.asarray(self.by_row.sums(weights * values[self.of_row, None]) / self.by_row.sums(weights))

    def _row_mean(self, exact: np.ndarray, predicted: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rank correlation of the row means, (b,)."""
        if self.n_rows < MIN_VALUES:
            return np.full(rows.shape[1], np.nan)
        weights = rows * np.isfinite(exact)
        x, y = (_ranks_each(np.round(np.nan_to_num(m) / (_ROUNDING * self.scale)), weights) for m in (exact, predicted))
        return np.asarray(_Groups(np.zeros(self.n_rows, np.int64)).correlations(x, y, weights)[0])


class _Groups:
    """Values in groups, one after the other."""

    def __init__(self, group: np.ndarray) -> None:
        self.group = group  # (n,) int64, ascending from 0, without a gap
        self.starts = np.flatnonzero(np.diff(group, prepend=-1))
        self.sizes = np.diff(self.starts, append=len(group))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over each group, (groups, b), of values (n, b)."""
        return np.asarray(np.add.reduceat(values, self.starts, axis=0))

    def correlations(self, a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weighted correlation in each group, (groups, b), of values (n, b); 0 where one side is constant."""
        size = np.maximum(self.sums(weights), 1)
        x, y = (side - (self.sums(weights * side) / size)[self.group] for side in (a, b))
        weighted = weights * x
        squares = self.sums(weighted * x) * self.sums(weights * y * y)
        constant = squares < _ROUNDING * size**2
        return np.where(constant, 0.0, self.sums(weighted * y) / np.sqrt(np.where(constant, 1.0, squares)))


class _Placed(NamedTuple):
    """Values in their groups under weights."""

    standard: np.ndarray  # (n, 1), without a unit
    ranks: np.ndarray  # (n, b), up to a constant in each group
    shares: np.ndarray  # (n, b), of each value that is in its group's top tenth


class _Scope:
    """The metrics within groups of pairs: all of them, or each target's."""

    def __init__(self, sides: Mapping[str, np.ndarray], group: np.ndarray) -> None:
        self.groups = _Groups(group)
        self.standard = {name: standardized(values, group)[:, None] for name, values in sides.items()}
        self.rankings = {name: _Ranking(values, self.groups) for name, values in sides.items()}

    def placed(self, name: str, weights: np.ndarray) -> _Placed:
        """One side under weights (n, b)."""
        return _Placed(self.standard[name], *self.rankings[name].places(weights, tenth(self.groups.sums(weights))))

    def compare(self, exact: _Placed, predicted: _Placed, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metric to its value in each group, (groups, b); nan where a group has too few values."""
        both = np.minimum(exact.shares, predicted.shares)
        recalls = self.groups.sums(weights * both) / tenth(self.groups.sums(weights))
        found = {
            "subset_sum_correlation": self.groups.correlations(exact.standard, predicted.standard, weights),
            "recall_of_top_tenth": np.where((self.groups.sizes < MIN_TENTH)[:, None], np.nan, recalls),
            "spearman": self.groups.correlations(exact.ranks, predicted.ranks, weights),
        }
        few = (self.groups.sizes < MIN_VALUES)[:, None]
        return {metric: np.where(few, np.nan, values) for metric, values in found.items()}


class _Ranking:
    """The order of values (n,) within their groups."""

    def __init__(self, values: np.ndarray, groups: _Groups) -> None:
        self.order = np.lexsort((values, groups.group))
        new = np.ones(len(values), bool)
        new[1:] = (np.diff(values[self.order]) != 0) | (np.diff(groups.group[self.order]) != 0)
        self.last = np.append(np.flatnonzero(new)[1:] - 1, len(values) - 1)  # of each distinct value
        self.place = np.empty(len(values), np.int64)  # number of its distinct value
        self.place[self.order] = np.cumsum(new) - 1
        self.group = groups.group[self.order][self.last]  # of each distinct value
        self.largest = np.searchsorted(self.group, self.group, side="right") - 1  # distinct value of its group

    def places(self, weights: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mid-ranks, and how much of each value is among the largest of its group, under weights (n, b).

        Args:
            weights: of the values.
            sizes: how many are the largest, (groups, b).
        """
        upto = np.cumsum(weights[self.order], axis=0)[self.last]  # and with each distinct value
        before = np.concatenate([np.zeros_like(upto[:1]), upto[:-1]])
        left = sizes[self.group] - (upto[self.largest] - upto)  # for this value, equal ones share them evenly
        count = upto - before
        shares = np.clip(left / np.where(count > 0, count, 1), 0, 1)
        return np.asarray(((upto + before) / 2)[self.place]), np.asarray(shares[self.place])


def _ranks_each(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mid-ranks of values that differ between resamples, all (n, b)."""
    order = np.argsort(values, axis=0)
    ordered = np.take_along_axis(values, order, axis=0)
    place = np.arange(len(values))[:, None]
    new = np.ones_like(ordered, dtype=bool)
    new[1:] = np.diff(ordered, axis=0) != 0
    first = np.maximum.accumulate(np.where(new, place, 0), axis=0)
    ends = np.ones_like(new)
    ends[:-1] = new[1:]
    last = np.minimum.accumulate(np.where(ends, place, len(values) - 1)[::-1], axis=0)[::-1]
    below = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(np.take_along_axis(weights, order, 0), axis=0)])
    middle = (np.take_along_axis(below, first, axis=0) + np.take_along_axis(below, last + 1, axis=0)) / 2
    ranks = np.empty_like(middle)
    np.put_along_axis(ranks, order, middle, axis=0)
    return np.asarray(ranks)


def _positive(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The values, nan where they are 0 but for rounding."""
    return np.where(values > _ROUNDING * scale, values, np.nan)
