"""Comparisons of models by their results per item: intervals over test items and training seeds, McNemar, Holm.

Two models that were trained with a few seeds differ by chance in two ways: other test items would give another
difference, and so would other seeds. The variance of a difference of means is estimated as the sum of the variance of
the paired differences over items, divided by their number, and the variance over seeds of each model's mean, divided by
the number of its seeds; the interval is Student's, with the degrees of freedom of that sum by Satterthwaite's
approximation. With three seeds a bootstrap over seeds has 2/3 of the variance and no such degrees of freedom, so it
calls chance a difference; `benchmarks/comparisons.py` has the error rates of both, measured by simulation.

Items are paired, seeds are not: the same seed has no common effect on models that are trained on other rows. (Means
over the targets of the 40 subsets in `benchmarks/outcomes`: 0.001 +- 0.002 between seeds, beside a standard deviation
of 0.013 within them.) If it had one, the interval would only be wider than it needs to be.

Sources: Satterthwaite 1946, doi:10.2307/3002019; McNemar 1947, doi:10.1007/BF02295996 (exact form); Holm 1979,
Scandinavian Journal of Statistics 6 (2), 65-70.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

from nncift.errors import ConfigError, DependencyError
from nncift.run.folder.records import MIN_SAMPLES, counted

BETTER, WORSE, TIE, TOO_FEW = "better", "worse", "tie", "too few items to tell"
_LEVEL = 0.95
_NEEDS = "the comparison needs the package statsmodels", "pip install 'nncift[proof]'"


class Trained(NamedTuple):
    """Results of a model that was trained with some seeds."""

    scores: np.ndarray  # (n_seeds, n_items) float64, finite
    fixed: bool = False  # not trained, so without a variance over seeds


class Contrasts(NamedTuple):
    """Weighted sums of means with their 95 % intervals, (m,) float64 each."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray  # two-sided, of a sum of 0


def contrast(models: Sequence[Trained], weights: np.ndarray) -> Contrasts:
    """Weighted sums of the means of models on the same items, with intervals over items and seeds.

    A model of one seed that is not fixed is taken to vary over seeds as much as the others do (the pooled variance),
    which no test can check. If no model has two seeds, the intervals are over items only.

    Args:
        models: k models with the same n_items.
        weights: (m, k), the weight of each model's mean in each sum.

    Source: Satterthwaite 1946, doi:10.2307/3002019. The variance over seeds of a mean contains that of the interaction
    of seeds and items, as does the variance over items; it is not subtracted, which errs to the wide side.
    """
    of_item = weights @ np.array([model.scores.mean(axis=0) for model in models])  # (m, n_items)
    value, n = of_item.mean(axis=1), of_item.shape[1]
    if n < 2:
        return Contrasts(value, np.full_like(value, -np.inf), np.full_like(value, np.inf), np.ones_like(value))
    seeds = np.array([0 if model.fixed else len(model.scores) for model in models])
    degrees = np.maximum(seeds - 1, 0)
    shares = np.where(degrees > 0, weights**2 / np.maximum(seeds, 1), 0.0)
    borrowing = weights**2 @ (seeds == 1)  # (m,)
    shares += borrowing[:, None] * degrees / max(degrees.sum(), 1)
    of_models = zip(models, degrees, strict=True)
    over_seeds = np.array([model.scores.mean(axis=1).var(ddof=1) if free else 0.0 for model, free in of_models])
    by_item, by_seed = of_item.var(axis=1, ddof=1) / n, shares * over_seeds  # variances of the sum, (m,) and (m, k)
    parts = np.column_stack([by_item, by_seed])
    usual = _degrees(parts, np.array([n - 1, *degrees]))
    cautious = _cautious(by_item, n - 1, by_seed.sum(axis=1), _degrees(by_seed, degrees))
    # A borrowed variance makes the sum that of one poor estimate, of which Satterthwaite is too sure.
    return _intervals(value, parts.sum(axis=1), np.where(borrowing > 0, cautious, usual))


def _degrees(parts: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Satterthwaite's degrees of freedom of sums of variances, (m,), by those of the parts, (m, k) and (k,)."""
    squares = (parts**2 / np.maximum(degrees, 1)).sum(axis=1)
    return np.where(squares > 0, parts.sum(axis=1) ** 2 / np.where(squares > 0, squares, 1.0), 1.0)


def _cautious(items: np.ndarray, of_items: int, seeds: np.ndarray, of_seeds: np.ndarray) -> np.ndarray:
    """Degrees of freedom weighted by the two variances, in place of their squares: fewer than Satterthwaite's."""
    total = items + seeds
    return np.where(total > 0, total, 1.0) / np.where(total > 0, items / of_items + seeds / of_seeds, 1.0)


def _intervals(value: np.ndarray, variance: np.ndarray, degrees: np.ndarray) -> Contrasts:
    """Student's intervals, (m,) each; a sum without variance is its own interval."""
    constant, error = variance <= 0, np.sqrt(variance)
    half = student.ppf((1 + _LEVEL) / 2, degrees) * error
    p_value = 2 * student.sf(np.abs(value) / np.where(constant, 1.0, error), degrees)
    return Contrasts(value, value - half, value + half, np.where(constant, value == 0, p_value).astype(np.float64))


@dataclass(frozen=True)
class Difference:
    """The difference of two models' means, a - b, on the items that both have a score for.

    The verdict is on a: "better" or "worse" where the p value, after Holm's correction if there was one (`adjust`), is
    at most 0.05; else "tie"; "too few items to tell" below ten. Without a correction "tie" is where the interval
    contains 0.
    """

    value: float  # in units of the metric
    low: float  # 95 % interval of this one difference
    high: float
    p_value: float
    mean_a: float
    mean_b: float
    n_items: int
    n_seeds: tuple[int, int]  # of a and b
    larger_is_better: bool
    seeds_counted: bool  # False: of each trained model there is one seed, so the interval is over items only
    adjusted_p: float | None = None  # by Holm, over the comparisons that were made together

    @property
    def verdict(self) -> str:
        """The verdict on a."""
        if self.n_items < MIN_SAMPLES:
            return TOO_FEW
        if (self.p_value if self.adjusted_p is None else self.adjusted_p) > 1 - _LEVEL or self.value == 0:
            return TIE
        return BETTER if (self.value > 0) == self.larger_is_better else WORSE

    def __str__(self) -> str:
        p, kind = (self.p_value, "") if self.adjusted_p is None else (self.adjusted_p, " after Holm")
        shown = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        over = "" if self.seeds_counted else ", one seed each: over items only"
        facts = f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}], {shown}{kind}"
        return f"{self.verdict}: {facts}, {counted(self.n_items, 'item')}{over}"


def compare(
    a: np.ndarray,
    b: np.ndarray,
    *,
    larger_is_better: bool,
    binary: bool = False,
    fixed_a: bool = False,
    fixed_b: bool = False,
) -> Difference:
    """Compare two models on the same items.

    Args:
        a: scores, (n_seeds_a, n_items) or (n_items,) float64; items with a NaN on either side are left out.
        b: the same of the other model, (n_seeds_b, n_items) or (n_items,).
        larger_is_better: of the metric.
        binary: each score is 0 or 1. With one seed a side, McNemar's exact test then has to agree: the interval is the
            hull of Student's and the exact conditional one, the p value the larger of the two tests'.
        fixed_a: a is not trained, so it has no variance over seeds; else a single seed of it is taken to vary as those
            of the other model.
        fixed_b: the same of b.

    Raises:
        ConfigError: the numbers of items differ, or no item has scores of both models.
        DependencyError: statsmodels is not installed (binary metrics).
    """
    a, b = (np.atleast_2d(np.asarray(side, np.float64)) for side in (a, b))
    if a.shape[1] != b.shape[1]:
        raise ConfigError(f"results of {a.shape[1]} and {b.shape[1]} items cannot be compared", "use one test set")
    both = ~(np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0))
    if not both.any():
        raise ConfigError("no item has results of both models", "use one test set and one metric")
    a, b = a[:, both], b[:, both]
    found = contrast([Trained(a, fixed_a), Trained(b, fixed_b)], np.array([[1.0, -1.0]]))
    value, low, high, p_value = (float(part[0]) for part in found)
    if binary and len(a) == len(b) == 1:
        exact_low, exact_high, exact_p = _mcnemar(a[0], b[0])
        low, high, p_value = min(low, exact_low), max(high, exact_high), max(p_value, exact_p)
    return Difference(
        value,
        low,
        high,
        p_value,
        float(a.mean()),
        float(b.mean()),
        a.shape[1],
        (len(a), len(b)),
        larger_is_better,
        seeds_counted=len(a) > 1 or len(b) > 1 or (fixed_a and fixed_b),
    )


def _mcnemar(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Exact interval and p value of a difference of proportions, given the number of items that differ.

    The interval is Clopper and Pearson's for the share of these that a has right. It leaves 0 out where p < 0.05.
    """
    try:
        from statsmodels.stats.contingency_tables import mcnemar
        from statsmodels.stats.proportion import proportion_confint
    except ImportError as error:
        raise DependencyError(*_NEEDS) from error

    table = [[int(((a == x) & (b == y)).sum()) for y in (1, 0)] for x in (1, 0)]
    only_a, differing = table[0][1], table[0][1] + table[1][0]
    if not differing:
        return 0.0, 0.0, 1.0
    share = np.array(proportion_confint(only_a, differing, alpha=1 - _LEVEL, method="beta"))
    low, high = (2 * share - 1) * differing / len(a)
    return float(low), float(high), float(mcnemar(table, exact=True).pvalue)


def adjust(differences: Sequence[Difference]) -> list[Difference]:
    """The differences with p values, and so verdicts, corrected by Holm for their number; the intervals stay.

    Raises:
        DependencyError: statsmodels is not installed.
    """
    if not differences:
        return []
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError as error:
        raise DependencyError(*_NEEDS) from error

    adjusted = multipletests([each.p_value for each in differences], method="holm")[1]
    return [replace(each, adjusted_p=float(p)) for each, p in zip(differences, adjusted, strict=True)]


def note_on_ties(shown: Sequence[Mapping[str, Any]], together: int) -> str:
    """Why a verdict is a tie although its interval leaves 0 out, as a sentence; "" where none of them is such.

    Args:
        shown: differences with "low", "high" and "verdict".
        together: how many `adjust` corrected together.
    """
    if not any(each["verdict"] == TIE and (each["low"] > 0 or each["high"] < 0) for each in shown):
        return ""
    return (
        "A tie whose interval leaves out 0: the interval is of that comparison alone, while the verdict allows for all"
        f" {together} comparisons made together (Holm's correction)."
    )
