"""The ways to choose rows that a comparison puts side by side, each as a ranking of the pool for a budget.

A ranking is longer than its budget, so that a choice of equally many response tokens can be cut from it too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from nncift.errors import RunError
from nncift.labels.collect import collect
from nncift.matrix.matrix import InfluenceMatrix
from nncift.pipeline.choosing.choose import objective_of, pick
from nncift.pipeline.choosing.verify import measure_shortlist
from nncift.pipeline.context import Run
from nncift.pipeline.select import influence_of_all
from nncift.run.folder.costs import Costs
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.parts import LabelFolder
from nncift.run.options.amounts import Amount
from nncift.run.storage.files import read_array, remove, write_array
from nncift.selection.budget import Budget
from nncift.selection.maximizers.greedy import lazy_greedy

if TYPE_CHECKING:
    from datasets import Dataset

_LONGER = 4  # times the budget: the part of a ranking that is chosen one by one

Kind = Literal["none", "random", "stratified", "full", "free", "exact", "estimated", "verified"]

_UNNAMED = ("free", "stratified")  # kinds that the influence function's name stands for


@dataclass(frozen=True)
class Selector:
    """A way to choose rows.

    Attributes:
        kind: "none" chooses no rows, "full" all; "random" and "stratified" draw them, anew for each seed; "free",
            "exact" and "estimated" rank them by influence, "verified" by estimated influence, of which a shortlist is
            measured exactly.
        influence: the name of the influence function.
        objective: the name of the objective; that of the runs unless given.
        shortlist: of a "verified" choice, its size as a multiple of the budget.
    """

    kind: Kind
    influence: str = ""
    objective: str = ""
    shortlist: float = 0.0

    @property
    def name(self) -> str:
        """As tables show it."""
        if self.kind in ("none", "full", "random"):
            return {"none": "no tuning", "full": "full pool", "random": "random"}[self.kind]
        kind = self.kind if self.kind not in _UNNAMED else ""
        return ", ".join(filter(None, [self.influence, kind, self.objective]))

    @property
    def slug(self) -> str:
        """As file names have it."""
        times = f"{self.shortlist:g}" if self.shortlist else ""
        kind = self.kind if self.kind != "stratified" else ""
        parts = filter(None, [self.influence, kind, times, self.objective])
        return as_file_name("-".join(parts))

    @property
    def values(self) -> Selector:
        """The selector whose influence values it takes: objectives share them, and a shortlist starts from them."""
        return Selector("estimated" if self.kind == "verified" else self.kind, self.influence)


def as_file_name(name: str) -> str:
    """The name of a function, perhaps a "module:Class", as file names have it."""
    return name.replace(":", "-").replace("/", "-")


class Ranking(NamedTuple):
    """Rows in the order chosen, int64 (k,), and the marginal gain of each, float64 (k,)."""

    rows: np.ndarray
    gains: np.ndarray

    def gains_of(self, rows: np.ndarray) -> np.ndarray:
        """The gains of some of its rows, (len(rows),)."""
        order = np.argsort(self.rows)
        return np.asarray(self.gains[order[np.searchsorted(self.rows, rows, sorter=order)]])


def random_ranking(n: int, budget: int, draw: int, seed: int) -> np.ndarray:
    """All rows in a random order of its own for every budget and draw, int64 (n,)."""
    return np.random.default_rng([seed, draw, budget]).permutation(n)


def with_objective(run: Run, objective: str) -> Run:
    """The run with another objective; itself without a name."""
    return dataclasses.replace(run, config=dataclasses.replace(run.config, objective=objective)) if objective else run


def rankings(run: Run, matrix: InfluenceMatrix, budgets: Sequence[int], known: np.ndarray | None) -> list[Ranking]:
    """For each budget all rows: those that the run's objective chooses from a matrix and would choose next, in turn.

    After the first ones, which are four times as many as the budget, the others follow by what each would gain then: a
    choice of equally many response tokens needs them where it prefers short responses.
    """
    found = []
    for budget in budgets:
        objective = objective_of(run, matrix, float(budget), known=known)
        chosen = lazy_greedy(objective, min(_LONGER * budget, matrix.shape[0]), progress=run.progress)
        others = np.setdiff1d(np.arange(matrix.shape[0]), chosen.indices)
        gains = objective.gains(others)
        order = np.argsort(-gains, kind="stable")
        found.append(_followed(Ranking(chosen.indices, chosen.gains), Ranking(others[order], gains[order])))
    return found


def run_rankings(run: Run, budgets: Sequence[int], objective: str = "", costs: Costs | None = None) -> list[Ranking]:
    """The rankings by influence as the run has it: estimated, or exact for every pair.

    Args:
        run: the run.
        budgets: in rows.
        objective: instead of the run's own.
        costs: where choosing counts; with the run's own costs unless given.
    """
    matrix, _ = influence_of_all(run)
    with (costs or run.costs).stage("select"):
        return rankings(with_objective(run, objective), matrix, budgets, None)


def verified_rankings(
    run: Run, budgets: Sequence[int], times: float, objective: str = "", costs: Costs | None = None
) -> list[Ranking]:
    """The rankings that begin with the choice from a measured shortlist, as a run with `verify` makes it.

    Each budget has a shortlist of its own, kept in the folder of the run. A ranking goes on with what else was measured
    and then with the ranking by estimates, since a choice of equally many response tokens may need more rows.

    Args:
        run: the run that estimates.
        budgets: in rows.
        times: size of the shortlist as a multiple of the budget.
        objective: instead of the run's own.
        costs: of the shortlists.
    """
    matrix, evidence = influence_of_all(run)
    assert evidence is not None  # of a run that estimates
    config = dataclasses.replace(run.config, verify=times, objective=objective or run.config.objective)
    own = dataclasses.replace(run, config=config, folder=RunFolder(run.folder.path), costs=costs or run.costs)
    found = []
    for budget in budgets:
        name = "-".join(filter(None, [f"{budget}", f"{times:g}", as_file_name(objective)]))
        own.budget, own.folder.shortlist = Budget(Amount("count", budget)), run.folder.shortlist.part(name)
        with own.costs.stage("verify"):
            measured, updated = measure_shortlist(own, matrix, pick(own, matrix), evidence)
            most = min(_LONGER * budget, len(measured.rows))
            chosen_from = objective_of(own, updated, float(budget), rows=measured.rows)
            chosen = lazy_greedy(chosen_from, most, progress=run.progress)
            first = Ranking(measured.rows[chosen.indices], chosen.gains)
            found.append(_followed(first, rankings(own, matrix, [budget], None)[0]))
    return found


def _followed(first: Ranking, then: Ranking) -> Ranking:
    """A ranking, then the rows of another that it lacks, which count no more than its last one."""
    new = ~np.isin(then.rows, first.rows)
    gains = np.minimum(then.gains[new], first.gains[-1])
    return Ranking(np.concatenate([first.rows, then.rows[new]]), np.concatenate([first.gains, gains]))


def exact_rankings(
    run: Run, folder: Path, budgets: Sequence[int], objective: str = "", costs: Costs | None = None
) -> list[Ranking]:
    """The rankings by exact influence, which is kept in `folder` with its costs; arguments as of the others."""
    matrix, known, own = exact_influence(run, folder)
    with (costs or own).stage("select"):
        return rankings(with_objective(run, objective), InfluenceMatrix.from_array(matrix), budgets, known)


def exact_influence(run: Run, folder: Path) -> tuple[np.ndarray, np.ndarray | None, Costs]:
    """Exact influence of every pair, kept in `folder` with its costs.

    Returns:
        (n_pool, n_target) float32; the largest of the known samples on each target, (n_target,), None without any; and
        the costs.
    """
    costs, known = Costs(folder / "costs.json"), None
    with costs.stage("labels"):
        matrix = exact_matrix(run, run.pool.rows, folder, costs)
        if run.known is not None:
            known = exact_matrix(run, run.known.rows, folder / "known", costs).max(axis=0)
    return matrix, known, costs


def exact_matrix(run: Run, rows: Dataset, folder: Path, costs: Costs) -> np.ndarray:
    """Exact influence of the rows on every target, (n, n_target) float32."""
    function, target = run.function, run.target.rows
    done = LabelFolder(folder).labels.exists()
    count = costs.counter("labels", function)
    if not done:
        function.check(run.pool.rows, target)
        function.warm_up(run.pool.rows, LabelFolder(folder).warm_up, progress=run.progress)
        count()
    every, columns = np.arange(len(rows)), np.arange(len(target))
    pairs = collect(
        function,
        rows,
        target,
        every,
        columns,
        folder=folder,
        progress=run.progress,
        after_prepare=count,
        after_block=count,
    )
    for path in folder.iterdir():  # checkpoints and gradients, which are large
        if path not in (LabelFolder(folder).labels, costs.path, folder / "known"):
            remove(path)
    return pairs.influence.reshape(len(every), len(columns))


def check_same_pool(run: Run, pool: Dataset) -> None:
    """Refuse a run that read other rows than the comparison, since its indices would mean others.

    Raises:
        RunError: it did.
    """
    if list(run.pool.rows["id"]) != list(pool["id"]):
        name = run.config.influence
        raise RunError(
            f"{name} cannot take the same rows of the pool as the others",
            "remove the rows that it refuses (see rejected.jsonl in its run), and choose another `output`",
        )


def about_tokens(rows: np.ndarray, tokens: np.ndarray, wanted: float) -> np.ndarray:
    """The first rows of a random order whose response tokens together are nearest to a number, at least one row.

    No row is skipped for its length: the others would be shorter than a random row is.
    """
    sums = np.cumsum(tokens[rows])
    return rows[: int(np.argmin(np.abs(sums - wanted))) + 1]


def within_tokens(ranking: np.ndarray, tokens: np.ndarray, most: float) -> np.ndarray:
    """The first rows of a ranking that have at most so many response tokens together, at least one row.

    A row that does not fit is skipped, and the next ones are tried, so that one long row does not end the choice.

    Args:
        ranking: rows, best first, int64.
        tokens: response tokens of every pool row, (n,).
        most: tokens that the choice may have.
    """
    chosen, used = [], 0.0
    for row in ranking.tolist():
        if used + tokens[row] <= most:
            chosen.append(row)
            used += float(tokens[row])
    return np.array(chosen or ranking[:1], dtype=np.int64)


def save_ranking(path: Path, ranking: Ranking) -> None:
    """Keep a ranking, and its gains beside it, which are written last."""
    write_array(path, np.asarray(ranking.rows, np.int64))
    write_array(gains_path(path), np.asarray(ranking.gains, np.float64))


def load_ranking(path: Path) -> Ranking:
    """A kept ranking; of an earlier version without gains, which are zeros then."""
    rows = np.asarray(read_array(path))
    there = gains_path(path).exists()
    return Ranking(rows, np.asarray(read_array(gains_path(path))) if there else np.zeros(len(rows)))


def gains_path(path: Path) -> Path:
    """The file of a ranking's gains."""
    return path.with_suffix(".gains.npy")


def costs_of(path: Path) -> dict[str, dict[str, Any]]:
    """What a table of costs holds, by stage: seconds and tokens of the language model."""
    stages = Costs(path).stages
    return {
        name: {"seconds": cost.seconds, "tokens": cost.forward_tokens + cost.backward_tokens}
        for name, cost in stages.items()
    }
