"""The equivalent random budget: how many random rows train a model to the loss that some chosen rows reach.

Models trained on random rows at several budgets give a learning curve, loss against rows. It is made monotone by
isotonic regression and interpolated linearly in the logarithm of the rows. Beyond the largest budget nothing is
extrapolated: "more than 1,000". The untuned model is the curve's point at 0 rows, which has no logarithm, and between 0
and the smallest budget no interpolation holds: a loss in between is "fewer than 25", one that is no lower than the
untuned model's is 0.

The interval holds the numbers of random rows whose mean loss on the curve cannot be told from the choice's at the 5 %
level (the inversion of a test, as Fieller's): at each number the difference is a contrast of means, with a variance
over items and seeds as in `comparisons`. A percentile bootstrap over items and seeds is too narrow with three seeds;
`benchmarks/comparisons.py` measures the coverage by simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from nncift.errors import ConfigError
from nncift.evaluation.comparisons import Trained, contrast
from nncift.run.folder.records import Record

_STEPS = 33  # of the interval's search between two budgets
_ROUNDING = 1e-12  # relative to the losses: smaller differences are those of summation


@dataclass(frozen=True)
class EquivalentBudget(Record):
    """The number of random rows that train like a choice, with a 95 % interval.

    Where one of "value", "low" and "high" lies beyond the largest budget, it is set to that and named in `above`; where
    it lies between 0 and the smallest budget, it is set to that and named in `below`.
    """

    value: float  # rows; 0 where the choice is no better than the untuned model
    low: float
    high: float
    below: tuple[str, ...] = ()
    above: tuple[str, ...] = ()

    def __str__(self) -> str:
        value, low, high = (self._shown(name) for name in ("value", "low", "high"))
        return f"{value} [{low}, {high}] random rows"

    def _shown(self, name: str) -> str:
        rows = f"{getattr(self, name):,.0f}"
        return f"more than {rows}" if name in self.above else f"fewer than {rows}" if name in self.below else rows


def equivalent_budget(
    random: Mapping[int, np.ndarray], chosen: np.ndarray, *, untuned: np.ndarray | None = None
) -> EquivalentBudget:
    """How many random rows reach the mean loss of a choice.

    Args:
        random: losses of models trained on so many random rows, (n_seeds, n_items) float64 each, of other rows with
            each seed; at least two budgets.
        chosen: losses of the model trained on the chosen rows, (n_seeds, n_items).
        untuned: losses of the model before training, (n_items,).

    Items with a NaN anywhere are left out.

    Raises:
        ConfigError: there are too few budgets, the numbers of items differ, or no item has all losses.
    """
    if len(random) < 2 or min(random) < 1:
        raise ConfigError("a learning curve needs random choices of two numbers of rows", "add a budget")
    rows = sorted(random)
    tables = [np.atleast_2d(np.asarray(table, np.float64)) for table in (*(random[k] for k in rows), chosen)]
    if untuned is not None:
        rows, tables = [0, *rows], [np.atleast_2d(np.asarray(untuned, np.float64)), *tables]
    if len({table.shape[1] for table in tables}) > 1:
        raise ConfigError("the losses are not those of the same items", "use one test set")
    kept = ~np.any([np.isnan(table).any(axis=0) for table in tables], axis=0)
    if not kept.any():
        raise ConfigError("no item has a loss of every model", "use one test set")
    models = [Trained(table[:, kept], fixed=k == 0) for k, table in zip([*rows, None], tables, strict=True)]
    return _Curve(np.array(rows, np.float64), models[:-1], models[-1]).equivalent()


class _Curve:
    """A monotone learning curve, and a choice beside it.

    A place on the curve is the number of its point, and between two points a fraction of the way in log(rows).
    """

    def __init__(self, rows: np.ndarray, models: list[Trained], chosen: Trained) -> None:
        self.rows, self.models, self.chosen = rows, models, chosen
        means = np.array([model.scores.mean() for model in models])
        seeds = np.array([len(model.scores) for model in models], np.float64)
        fit = isotonic_regression(means, weights=seeds, increasing=False)
        self.losses = np.asarray(fit.x)  # (k,), not increasing
        self.weights = np.zeros((len(rows), len(rows)))  # losses = weights @ means
        for start, end in zip(fit.blocks[:-1], fit.blocks[1:], strict=True):
            self.weights[start:end, start:end] = seeds[start:end] / seeds[start:end].sum()

    def equivalent(self) -> EquivalentBudget:
        """The record of the choice."""
        value, (low, high) = self._crossing(), self._limits()
        limits = {"value": value, "low": min(low, value), "high": max(high, value)}
        places = {name: round(place, 9) if np.isfinite(place) else place for name, place in limits.items()}
        return EquivalentBudget(
            **{name: self._rows(place) for name, place in places.items()},
            below=tuple(name for name, place in places.items() if place < 0 or (self._untuned and 0 < place < 1)),
            above=tuple(name for name, place in places.items() if place == np.inf),
        )

    @property
    def _untuned(self) -> bool:
        """Whether the first point is the untuned model, below which there is nothing."""
        return bool(self.rows[0] == 0)

    def _rows(self, place: float) -> float:
        """The number of rows at a place, inside the budgets."""
        if self._untuned and place <= 0:
            return 0.0
        first = int(self._untuned)
        inside = np.clip(place, first, len(self.rows) - 1)
        return float(np.exp(np.interp(inside, np.arange(first, len(self.rows)), np.log(self.rows[first:]))))

    def _clipped(self, place: float) -> float:
        """The untuned model is the end of the curve; without it, a place before the first point stays outside."""
        return 0.0 if self._untuned and place < 0 else place

    def _crossing(self) -> float:
        """Where the curve has the choice's mean loss: the middle of a flat part, infinite outside the curve."""
        above = self.losses - float(self.chosen.scores.mean())
        above[np.abs(above) < _ROUNDING * np.abs(self.losses).max()] = 0
        if above[0] < 0 or above[-1] > 0:
            return self._clipped(-np.inf if above[0] < 0 else np.inf)
        before, after = np.flatnonzero(above >= 0)[-1], np.flatnonzero(above <= 0)[0]
        if before >= after:  # the curve has this loss in its points from `after` to `before`
            return float(before + after) / 2
        return float(before + above[before] / (above[before] - above[after]))

    def _limits(self) -> tuple[float, float]:
        """The outermost places where the choice's loss is not significantly below (low) or above (high) the curve's."""
        last = len(self.rows) - 1
        places = np.linspace(0, last, last * (_STEPS - 1) + 1)
        curve = np.column_stack([np.interp(places, np.arange(last + 1), column) for column in self.weights.T])
        found = contrast([self.chosen, *self.models], np.column_stack([np.ones(len(places)), -curve]))
        low, high = _first(places, found.high), -_first(-places[::-1], -found.low[::-1])
        return self._clipped(low), self._clipped(high)


def _first(places: np.ndarray, bound: np.ndarray) -> float:
    """The first place where the bound is not negative, by linear interpolation; infinite outside the places.

    At the first place already: what lies before it is not excluded either.
    """
    inside = np.flatnonzero(bound >= 0)
    if not len(inside):
        return np.inf
    number = inside[0]
    if number == 0:
        return -np.inf
    share = bound[number - 1] / (bound[number - 1] - bound[number])
    return float(places[number - 1] + share * (places[number] - places[number - 1]))
