"""What training on a choice does beside random choices: differences, intervals, equivalent random rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Choice:
    """A subset and where it comes from."""

    situation: str
    family: str  # the target's; "" if all
    budget: int
    influence: str  # "" if none is used
    objective: str
    seed: int
    rows: tuple[int, ...]  # sorted


class Comparison:
    """Lines of a table: choices of one situation and budget beside random ones.

    Args:
        of_target: the family of each target, "" for those that do not count.
        random: drops of random choices, (n_choices, n_target) each, by their rows, in ascending order.
        budget: rows of the choices to compare.
        pooled: one choice serves all targets, not one each family.
    """

    def __init__(self, of_target: np.ndarray, random: dict[int, np.ndarray], budget: int, *, pooled: bool) -> None:
        self.kept = np.flatnonzero(of_target != "")
        self.family, self.random, self.pooled = of_target[self.kept], random[budget][:, self.kept], pooled
        self.rows, self.place = np.array(list(random)), list(random).index(budget)
        curve = [drops[:, self.kept] for drops in random.values()]  # (n_choices, n_kept) each
        self.curve = np.array([drops.mean(axis=0) for drops in curve])  # (sizes, n_kept)
        rng, groups = np.random.default_rng(0), [np.flatnonzero(self.family == f) for f in np.unique(self.family)]
        self.resamples = []  # targets within their family, and the means over them of resampled random choices by rows
        for _ in range(RESAMPLES):
            targets = np.concatenate([rng.choice(own, len(own)) for own in groups])
            means = [rng.choice(drops[:, targets].mean(axis=1), len(drops)).mean() for drops in curve]
            self.resamples.append((targets, np.array(means)))

    def heading(self, title: str) -> None:
        """Print the random choices, their learning curve, and the head of the table."""
        means = self.random.mean(axis=1)
        points = zip(self.rows, self.curve.mean(axis=1), strict=True)
        print(f"\n{title}: drops of random choices {', '.join(f'{mean:.2f}' for mean in means)}; ", end="")
        print("mean of random", ", ".join(f"{rows} rows {drop:.2f}" for rows, drop in points))
        print(
            "| influence | objective | drop beyond random's | 95 % | relative | in spreads | equivalent random rows |"
        )
        print("|---|---|---|---|---|---|---|")

    def line(self, name: str, choices: Sequence[Choice], trained: Sequence[np.ndarray]) -> None:
        """Print one way to choose, averaged over its draws."""
        drops = np.full((len(choices), len(self.kept)), np.nan)
        for own, choice, found in zip(drops, choices, trained, strict=True):
            served = (self.family == choice.family) | (choice.family == "")
            own[served] = found[self.kept][served]
        drop, average = np.nanmean(drops, axis=0), float(self.random.mean())
        beyond = drop.mean() - average
        differences = [drop[targets].mean() - means[self.place] for targets, means in self.resamples]
        low, high = np.quantile(differences, [0.025, 0.975])
        rows = [self.equivalent(drop[targets].mean(), means) for targets, means in self.resamples]
        least, most = np.quantile(rows, [0.025, 0.975])
        print(
            f"| {name} | {beyond:+.3f} | {low:+.2f} to {high:+.2f} | {beyond / average:+.0%}"
            f" | {beyond / self.spread():+.1f} | {self.equivalent(drop.mean(), self.curve.mean(axis=1)):.0f}"
            f" ({least:.0f} to {most:.0f}) |"
        )

    def spread(self) -> float:
        """Standard deviation of the mean drop of a random choice; of one a family where each has its own."""
        if self.pooled:
            return float(self.random.mean(axis=1).std(ddof=1))
        sums = [self.random[:, self.family == name].sum(axis=1) for name in np.unique(self.family)]
        return float(np.sqrt(np.var(sums, axis=1, ddof=1).sum()) / len(self.kept))

    def equivalent(self, drop: float, curve: np.ndarray) -> float:
        """Random rows with the same drop, by the curve over the logarithm of rows; the ends where it is outside."""
        return float(np.exp(np.interp(drop, np.maximum.accumulate(curve), np.log(self.rows))))
