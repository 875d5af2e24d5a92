"""The cells of a comparison: a selector's choice at a budget, used in one way, with its trials over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from nncift.proof.trials.selectors import Ranking, Selector, about_tokens, random_ranking, within_tokens
from nncift.proof.trials.trials import Trial
from nncift.selection.arrangement import gain_weights, phase_parts

Unit = Literal["rows", "tokens"]
"""What choices of one budget have equally many of: rows, or response tokens."""

Method = Literal["none", "lora", "icl", "phased", "weighted"]
"""How rows are used: as `trials.Method`, or trained on in phases from easy to hard, or weighted by their gains."""
TUNED = ("lora", "phased", "weighted")
"""Methods that train, with a seed."""

NONE, FULL, RANDOM = Selector("none"), Selector("full"), Selector("random")
STRATIFIED = Selector("stratified", "stratified-random")
DRAWN = (RANDOM, STRATIFIED)
"""Selectors with a choice of their own for each seed."""


@dataclass(frozen=True)
class Cell:
    """What one table row is about.

    Attributes:
        selector: that chose.
        method: how the rows are used.
        unit: what the budget is measured in.
        budget: rows of the budget; with the unit "tokens" the choice has the response tokens of so many mean rows.
        trials: one for each seed.
        curve: it only stands for a point of the random learning curve, beside the budgets that are compared.
    """

    selector: Selector
    method: Method
    unit: Unit
    budget: int
    trials: tuple[Trial, ...]
    curve: bool = False


@dataclass(frozen=True)
class Grid:
    """What a comparison consists of.

    Attributes:
        rankings: of each selector that ranks, by budget in rows.
        tokens: response tokens of each pool row, int64 (n,).
        budgets: rows, ascending.
        curve: rows at which random choices are trained on, ascending.
        methods: how rows are used.
        units: what budgets are measured in.
        seeds: of the trainings and the random choices.
        difficulty: of each pool row, larger is harder, (n,); of the method "phased".
        phases: how many; of the same.
        stratified: for each budget in rows a ranking of all rows for each seed, (n,) int64; empty without these.
    """

    rankings: Mapping[Selector, Mapping[int, Ranking]]
    tokens: np.ndarray
    budgets: Sequence[int]
    curve: Sequence[int]
    methods: Sequence[Method]
    units: Sequence[Unit]
    seeds: Sequence[int]
    difficulty: np.ndarray | None = None
    phases: int = 1
    stratified: Mapping[int, Sequence[np.ndarray]] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """All cells, the model as it is first, then random ones, which the others are compared with."""
        n = len(self.tokens)
        found = [Cell(NONE, "none", "rows", 0, (Trial("none"),))]
        for method in self.methods:
            for unit in self.units:
                points = sorted({*self.budgets, *self.curve}) if (method, unit) == ("lora", "rows") else self.budgets
                for budget in points:
                    found.append(self._random(method, unit, budget, n))
                for budget, rankings in self.stratified.items():
                    if (budget, unit) != (n, "rows"):  # which is the full pool
                        found.append(self._drawn(STRATIFIED, method, unit, budget, rankings))
                for selector, ranking in self.rankings.items():
                    for budget in self.budgets:
                        rows = self._chosen(selector, ranking[budget].rows, unit, budget)
                        gains = ranking[budget].gains_of(rows) if method == "weighted" else None
                        found.append(Cell(selector, method, unit, budget, self._trials(method, rows, gains=gains)))
        return found

    def _random(self, method: Method, unit: Unit, budget: int, n: int) -> Cell:
        if budget == n and unit == "rows":
            return Cell(FULL, method, unit, n, self._trials(method, np.arange(n)), curve=n not in self.budgets)
        rankings = [random_ranking(n, budget, draw, 0) for draw in self.seeds]
        return self._drawn(RANDOM, method, unit, budget, rankings)

    def _drawn(
        self, selector: Selector, method: Method, unit: Unit, budget: int, rankings: Sequence[np.ndarray]
    ) -> Cell:
        """The cell of a selector with a ranking for each seed."""
        trials: list[Trial] = []
        for seed, ranking in zip(self.seeds, rankings, strict=True):
            trials += self._trials(method, self._chosen(selector, ranking, unit, budget), seeds=(seed,))
        return Cell(selector, method, unit, budget, tuple(trials), curve=budget not in self.budgets)

    def _chosen(self, selector: Selector, ranking: np.ndarray, unit: Unit, budget: int) -> np.ndarray:
        if unit == "rows":
            return ranking[:budget]
        take = about_tokens if selector in DRAWN else within_tokens
        return take(ranking, self.tokens, budget * float(self.tokens.mean()))

    def _trials(
        self, method: Method, rows: np.ndarray, *, gains: np.ndarray | None = None, seeds: Sequence[int] | None = None
    ) -> tuple[Trial, ...]:
        """One use of some rows with each seed; rows without gains, such as random ones, all have the weight 1."""
        if method not in TUNED:
            return (Trial("icl", tuple(rows.tolist())),)  # examples in a context have no seed
        weights: tuple[float, ...] = ()
        phases: tuple[int, ...] = ()
        if method == "phased":
            assert self.difficulty is not None
            parts = phase_parts(self.difficulty[rows], self.phases)
            rows, phases = rows[np.concatenate(parts)], tuple(map(len, parts))
        if method == "weighted" and gains is not None:
            weights = tuple(gain_weights(gains).tolist())
        return tuple(
            Trial("lora", tuple(rows.tolist()), seed, weights=weights, phases=phases) for seed in seeds or self.seeds
        )


def default_curve(budgets: Sequence[int], n: int) -> list[int]:
    """Rows of the random learning curve: half the smallest budget, the budgets, and doublings up to the whole pool."""
    points = {max(min(budgets) // 2, 1), *budgets, n}
    point = max(budgets)
    while (point := 2 * point) < n:
        points.add(point)
    return sorted(points)


def by_importance(cells: Sequence[Cell]) -> list[Trial]:
    """The trials of all cells, those of the first seed before those of the second."""
    most = max(len(cell.trials) for cell in cells)
    return [cell.trials[k] for k in range(most) for cell in cells if k < len(cell.trials)]
