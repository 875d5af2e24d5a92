"""The cells of a comparison: a selector's choice at a budget, used in one way, with its trials over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nncift.proof.selectors import Selector, random_ranking, within_tokens
from nncift.proof.trials import Method, Trial

Unit = Literal["rows", "tokens"]
"""What choices of one budget have equally many of: rows, or response tokens."""

NONE, FULL, RANDOM = Selector("none"), Selector("full"), Selector("random")


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
    """

    rankings: Mapping[Selector, Mapping[int, np.ndarray]]
    tokens: np.ndarray
    budgets: Sequence[int]
    curve: Sequence[int]
    methods: Sequence[Method]
    units: Sequence[Unit]
    seeds: Sequence[int]

    def cells(self) -> list[Cell]:
        """All cells, the model as it is first, then random ones, which the others are compared with."""
        n = len(self.tokens)
        found = [Cell(NONE, "none", "rows", 0, (Trial("none"),))]
        for method in self.methods:
            for unit in self.units:
                points = sorted({*self.budgets, *self.curve}) if (method, unit) == ("lora", "rows") else self.budgets
                for budget in points:
                    found.append(self._random(method, unit, budget, n))
                for selector, ranking in self.rankings.items():
                    for budget in self.budgets:
                        rows = self._chosen(ranking[budget], unit, budget)
                        found.append(Cell(selector, method, unit, budget, self._trials(method, rows)))
        return found

    def _random(self, method: Method, unit: Unit, budget: int, n: int) -> Cell:
        if budget == n and unit == "rows":
            return Cell(FULL, method, unit, n, self._trials(method, np.arange(n)), curve=n not in self.budgets)
        trials = []
        for draw in self.seeds:
            rows = self._chosen(random_ranking(n, budget, draw, 0), unit, budget)
            trials.append(Trial(method, tuple(rows.tolist()), draw if method == "lora" else 0))
        return Cell(RANDOM, method, unit, budget, tuple(trials), curve=budget not in self.budgets)

    def _chosen(self, ranking: np.ndarray, unit: Unit, budget: int) -> np.ndarray:
        if unit == "rows":
            return ranking[:budget]
        return within_tokens(ranking, self.tokens, budget * float(self.tokens.mean()))

    def _trials(self, method: Method, rows: np.ndarray) -> tuple[Trial, ...]:
        seeds = self.seeds if method == "lora" else (0,)  # examples in a context have no seed
        return tuple(Trial(method, tuple(rows.tolist()), seed) for seed in seeds)


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
