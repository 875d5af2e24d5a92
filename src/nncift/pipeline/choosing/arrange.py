"""Arranging: the selected samples' weights, difficulty, phases and order; then the subset is written.

Difficulty is computed for the selected samples alone, by a pointwise influence function or from a column of the data,
whatever the influence that they were selected by.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.errors import ConfigError, DataError
from nncift.influence.base import InfluenceFunction, Setup, Traits, broadcast
from nncift.influence.catalogue import BUILT_IN, CATALOGUE
from nncift.influence.options import make_function
from nncift.labels.collect import collect
from nncift.labels.rates import measure_rates
from nncift.labels.work import grid_work
from nncift.pipeline.components.model_files import identities
from nncift.run.folder.costs import PlannedCost
from nncift.run.folder.records import counted
from nncift.run.options.registry import is_known, resolve, suggest
from nncift.run.storage.files import read_json, remove, write_json
from nncift.selection.arrangement import arranged

if TYPE_CHECKING:
    from datasets import Dataset

    from nncift.config import Config
    from nncift.pipeline.context import Run
    from nncift.selection.selection import Selection

_GROUP = "nncift.influence"
_LARGEST = 1e38  # difficulty, which is kept in single precision
_MEASURED = 512  # samples of which a dry run finds the longest


def arrange(run: Run, selection: Selection) -> Selection:
    """The selection as it is trained on, written to the run folder; the given one where that is done."""
    if run.is_chosen:
        return selection
    config, difficulty = run.config, difficulty_of(run, selection.indices)
    with run.costs.stage("select"):
        selection = arranged(
            selection,
            difficulty=difficulty,
            phases=config.phases,
            curriculum=config.order == "curriculum",
            weights=config.weights,
        )
        if run.kept_rows is not None:
            selection = selection.renumbered(run.kept_rows, run.whole_pool.rows)
        selection.save(run.folder.path)
    return selection


def difficulty_of(run: Run, indices: np.ndarray) -> np.ndarray | None:
    """Difficulty of pool rows, (k,) float32, kept in the folder; None where none is asked for."""
    function, folder = run.difficulty, run.folder.difficulty
    if function is None:
        return None
    with run.costs.stage("difficulty"):
        rows = np.sort(indices)
        plan = {"rows": rows.tolist(), "columns": [0]}
        plan |= {"function": run.describe(function), "models": identities(function)}
        if not folder.plan.is_file() or read_json(folder.plan) != plan:
            remove(folder.path)  # of a selection before a part of the folder was lost
            write_json(folder.plan, plan)
        known = None if run.earlier is None else run.earlier.take_difficulty(plan)
        count = run.costs.counter("difficulty", function)
        if not folder.labels.is_file():
            function.warm_up(run.pool.rows, folder.warm_up, progress=run.progress)
        values = collect(
            function,
            run.pool.rows,
            run.target.rows,
            rows,
            np.zeros(1, np.int64),
            folder=folder.path,
            progress=run.progress,
            after_prepare=count,
            after_block=count,
            known=known,
            title="difficulty",
        )
        return values.influence[np.searchsorted(rows, indices)]


def make_difficulty(config: Config, setup: Setup) -> InfluenceFunction | None:
    """What the config names: a pointwise influence function, or else a column of the data.

    Raises:
        ConfigError: the function gives no difficulty of its own to a sample.
    """
    name = config.difficulty
    if name is None:
        return None
    if ":" not in name and not is_known(name, BUILT_IN, _GROUP):
        return ColumnValues(name)
    function = make_function(resolve(name, BUILT_IN, _GROUP), setup, None, name=name)
    if not function.traits.pointwise or function.traits.relative:
        depends = "all samples together" if function.traits.pointwise else "the target"
        raise ConfigError(
            f"`difficulty` {name} gives values that depend on {depends}",
            f"give one of {', '.join(_pointwise())}, or your own with the trait `pointwise`",
        )
    return function


def _pointwise() -> list[str]:
    return [about.name for about in CATALOGUE if about.kind == "pointwise" and not about.whole_target]


@dataclass(eq=False)
class ColumnValues(InfluenceFunction):
    """The numbers in a column of the data, such as a judge's ratings.

    Attributes:
        column: its name.
    """

    column: str

    def __post_init__(self) -> None:
        self.name = f"column {self.column}"
        self.traits = Traits(pointwise=True)

    def check(self, pool: Dataset, target: Dataset) -> None:
        """Refuse samples without a number there."""
        self._values(pool)

    def __call__(self, pool_rows: Dataset, target_rows: Dataset) -> np.ndarray:
        """The numbers, equal for all targets."""
        return broadcast(self._values(pool_rows), len(target_rows))

    def _values(self, rows: Dataset) -> np.ndarray:
        values = np.zeros(len(rows), np.float32)
        sources = rows["source"] if "source" in rows.column_names else [None] * len(rows)
        for i, (original, row) in enumerate(zip(rows["original"], rows["source_row"], strict=True)):
            content = json.loads(original)
            values[i] = _as_number(content.get(self.column))
            if not np.isfinite(values[i]):
                there = self.column in content
                problem = "the difficulty is not a number" if there else "`difficulty` names no such column"
                fix = "correct or drop the row" if there else suggest(self.column, [*_pointwise(), *content])
                raise DataError(problem, fix, file=sources[i], row=row + 1, field=self.column)
        return values


def _as_number(value: Any) -> float:
    """A number, also as text; nan for anything else."""
    try:
        number = np.nan if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except (ValueError, OverflowError):
        return np.nan
    return number if abs(number) <= _LARGEST else np.nan


def check_arrangement(run: Run) -> None:
    """Refuse a difficulty that the samples have not, and more phases than samples will be selected.

    Raises:
        ConfigError: there are more phases than samples.
        DataError: a sample has no number in the column.
    """
    phases = run.config.phases
    if phases is not None and run.budget.max_tokens is None and phases > (count := run.budget.count(run.size("pool"))):
        problem = f"`phases` {phases} is more than the {counted(count, 'selected sample')}"
        raise ConfigError(problem, "give fewer, or a larger `budget`")
    if run.difficulty is not None:
        run.difficulty.check(run.pool.rows, run.target.rows)


def cost(run: Run) -> PlannedCost:
    """Planned cost of the difficulty."""
    function = run.difficulty
    if function is None:
        return PlannedCost("difficulty")
    pool, target = run.pool.rows, run.target.rows.select([0])
    count = min(round(run.budget.expected(run.size("pool"), run.tokens)), run.size("pool"))
    work = grid_work(function, pool, target, count)
    rates = measure_rates(function, pool, target, n_pool=count, seed=run.config.seed)
    some = pool.select(range(min(_MEASURED, len(pool))))
    memory = function.footprint(some, target, count, 0).memory
    return PlannedCost("difficulty", rates.seconds(work), tokens=work.tokens, memory=memory)
