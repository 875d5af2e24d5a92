"""The choice within a run's budget, from influence that is estimated or measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nncift.config import Config, parse_budget
from nncift.matrix.matrix import InfluenceMatrix
from nncift.pipeline.context import budget_count, token_counts
from nncift.selection.greedy import lazy_greedy
from nncift.selection.objectives import default_eta, make_objective
from nncift.selection.selection import Selection

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Chooser:
    """Chooses samples of the pool for a run.

    Attributes:
        config: the run's.
        samples: the pool.
        folder: the run folder, which keeps the samples' token counts.
        own_target: the pool is its own target.
        progress: show a bar.
    """

    config: Config
    samples: Dataset
    folder: Path
    own_target: bool
    progress: bool = False

    def __call__(
        self,
        matrix: InfluenceMatrix,
        rows: np.ndarray | None = None,
        *,
        times: float = 1.0,
        covered: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
    ) -> Selection:
        """The choice, without the pool's rows in it.

        Args:
            matrix: influence on the targets, of all pool samples or of `rows`.
            rows: pool rows that the matrix has, (k,) int64; all unless given.
            times: so many budgets, rounded up to whole samples.
            covered: how well each target is covered by others, (n_target,) float32.
            candidates: rows of the matrix that may be chosen; all unless given.
        """
        amount, pool = parse_budget(self.config.budget), len(self.samples)
        tokens = token_counts(self.config, self.samples, self.folder) if amount.kind == "tokens" else None
        count = budget_count(self.config, pool) if tokens is None else None
        eta = None
        if not self.own_target:
            expected = amount.value / max(tokens.mean(), 1.0) if tokens is not None else float(count or 1)
            eta = self.config.eta if self.config.eta is not None else default_eta(matrix.shape[1], expected)
        costs = tokens if tokens is None or rows is None else tokens[rows]
        among = matrix.shape[0] if candidates is None else len(candidates)
        room = None if tokens is None else amount.value * times
        if costs is not None and room is not None and candidates is not None:
            room = max(room, float(costs[candidates].min()))  # one at least, as of samples
        selection = lazy_greedy(
            make_objective(matrix, eta=eta, covered=covered),
            None if count is None else min(math.ceil(count * times - 1e-9), among),
            candidates=candidates,
            costs=costs,
            max_cost=room,
            progress=self.progress,
        )
        return selection if rows is None else replace(selection, indices=rows[selection.indices])
