"""What a subset is worth by another run: the objective's value of its rows under that run's influence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from nncift.errors import NNCIFTError
from nncift.matrix.matrix import InfluenceMatrix
from nncift.pipeline.earlier_runs.finished import FinishedRun
from nncift.run.progress import drawn

_DRAWS = 5  # random subsets whose values are averaged


@dataclass(frozen=True)
class SubsetValue:
    """Both subsets under the influence of one of the runs, whose targets and objective these are.

    The means are those of the influence on the targets that the run stored. The values are None where the influence of
    every pair cannot be computed again, as `unavailable` explains.

    Attributes:
        rows: of the run's own subset.
        other_rows: of the other run's subset, those that are in this run's pool.
        mean, other_mean, pool_mean: mean influence of these, and of the pool; None of no rows.
        objective: its name.
        value, other_value: the objective's, of these rows.
        random_value: of as many random rows of the pool as `other_rows`, the mean of five draws.
        unavailable: why there are no values; empty where there are.
    """

    rows: int
    other_rows: int
    mean: float | None
    other_mean: float | None
    pool_mean: float
    objective: str
    value: float | None = None
    other_value: float | None = None
    random_value: float | None = None
    unavailable: str = ""

    @property
    def share(self) -> float | None:
        """The other subset's value as a share of the run's own; None where there is none."""
        if self.value is None or self.other_value is None or self.value <= 0:  # as a graph cut's may be
            return None
        return self.other_value / self.value


def value_under(run: FinishedRun, other: np.ndarray, *, progress: bool = False, name: str = "value") -> SubsetValue:
    """The value of another run's subset by this run, beside that of its own and of random rows.

    Args:
        run: whose influence it is.
        other: rows of its pool that the other run chose, int64 (k,).
        progress: show a bar.
        name: of the bar.
    """
    own, influence = run.selection.indices, run.influence
    facts = {
        "rows": len(own),
        "other_rows": len(other),
        "mean": _mean(influence[own]),
        "other_mean": _mean(influence[other]),
        "pool_mean": float(np.mean(influence, dtype=np.float64)),
        "objective": run.selection.objective,
    }
    rng = np.random.default_rng(0)
    draws = [rng.choice(len(run.pool), len(other), replace=False) for _ in range(_DRAWS)]
    try:
        matrix = run.matrix()
        with tqdm(total=len(own) + (1 + _DRAWS) * len(other), desc=name, unit=" rows", **drawn(progress)) as bar:
            value, other_value, *random = (_value(run, matrix, rows, bar) for rows in (own, other, *draws))
    except NNCIFTError as error:
        return SubsetValue(**facts, unavailable=str(error))  # type: ignore[arg-type]
    return SubsetValue(  # type: ignore[misc]
        **facts,  # type: ignore[arg-type]
        value=value,
        other_value=other_value if len(other) else None,
        random_value=float(np.mean(random)) if len(other) else None,
    )


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values, dtype=np.float64)) if len(values) else None


def _value(run: FinishedRun, matrix: InfluenceMatrix, rows: np.ndarray, bar: tqdm) -> float:
    objective = run.objective(matrix)
    for row in rows:
        objective.add(int(row))
        bar.update()
    return float(objective.value)
