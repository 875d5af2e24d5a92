"""The ways to choose rows that a comparison puts side by side, each as a ranking of the pool for a budget.

A ranking is longer than its budget, so that a choice of equally many response tokens can be cut from it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nncift.errors import RunError
from nncift.labels.collect import collect
from nncift.matrix.matrix import InfluenceMatrix
from nncift.pipeline.choose import objective_of
from nncift.pipeline.context import Run
from nncift.pipeline.select import influence_of_all
from nncift.run.costs import Costs
from nncift.run.files import read_array, remove, write_array
from nncift.run.folder import LabelFolder
from nncift.selection.greedy import lazy_greedy

if TYPE_CHECKING:
    from datasets import Dataset

_LONGER = 4  # times the budget: the length of a ranking

Kind = Literal["none", "random", "full", "free", "exact", "estimated"]


@dataclass(frozen=True)
class Selector:
    """A way to choose rows.

    Attributes:
        kind: "none" chooses no rows, "full" all; "free", "exact" and "estimated" rank them by influence.
        influence: the name of the influence function.
    """

    kind: Kind
    influence: str = ""

    @property
    def name(self) -> str:
        """As tables show it."""
        return {"none": "no tuning", "full": "full pool", "random": "random", "free": self.influence}.get(
            self.kind, f"{self.influence}, {self.kind}"
        )

    @property
    def slug(self) -> str:
        """As file names have it."""
        return "-".join(filter(None, [self.influence, self.kind])).replace(":", "-").replace("/", "-")


def random_ranking(n: int, budget: int, draw: int, seed: int) -> np.ndarray:
    """All rows in a random order of its own for every budget and draw, int64 (n,)."""
    return np.random.default_rng([seed, draw, budget]).permutation(n)


def rankings(run: Run, matrix: InfluenceMatrix, budgets: Sequence[int], known: np.ndarray | None) -> list[np.ndarray]:
    """For each budget the rows that the run's objective chooses from a matrix, and those that it would choose next."""
    found = []
    for budget in budgets:
        objective = objective_of(run, matrix, float(budget), known=known)
        found.append(lazy_greedy(objective, min(_LONGER * budget, matrix.shape[0]), progress=run.progress).indices)
    return found


def run_rankings(run: Run, budgets: Sequence[int]) -> list[np.ndarray]:
    """The rankings by influence as the run has it: estimated, or exact for every pair."""
    matrix, _ = influence_of_all(run)
    with run.costs.stage("select"):
        return rankings(run, matrix, budgets, None)


def exact_rankings(run: Run, folder: Path, budgets: Sequence[int]) -> list[np.ndarray]:
    """The rankings by exact influence, which is kept in `folder` with its costs."""
    costs = Costs(folder / "costs.json")
    with costs.stage("labels"):
        matrix = exact_matrix(run, run.pool.rows, folder, costs)
        known = None
        if run.known is not None:
            known = exact_matrix(run, run.known.rows, folder / "known", costs).max(axis=0)
    with costs.stage("select"):
        return rankings(run, InfluenceMatrix.from_array(matrix), budgets, known)


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


def save_ranking(path: Path, ranking: np.ndarray) -> None:
    """Keep a ranking."""
    write_array(path, np.asarray(ranking, np.int64))


def load_ranking(path: Path) -> np.ndarray:
    """A kept ranking."""
    return np.asarray(read_array(path))


def costs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """What a selector cost, by stage: seconds and tokens of the language model."""
    stages = Costs(folder / "costs.json").stages
    return {
        name: {"seconds": cost.seconds, "tokens": cost.forward_tokens + cost.backward_tokens}
        for name, cost in stages.items()
    }
