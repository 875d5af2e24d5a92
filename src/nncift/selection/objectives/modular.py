"""A modular objective: samples by their mean influence, whatever the others are.

It takes the strongest samples, which may be redundant; with influence that is a score of the sample alone there is
nothing else to go by.
"""

from __future__ import annotations

import numpy as np

from nncift.errors import ConfigError
from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.objectives.table import Objective, ObjectiveOptions


class MeanInfluence:
    """sum over i in S of c_i * max(0, mean over targets j of the influence of i on j).

    c_i is the number of tokens of sample i under a token budget, so that greedy's gain per token is the mean influence,
    and long samples are neither preferred nor avoided; otherwise 1. Of samples without a gain those with the largest
    mean come first.

    Args:
        matrix: influence, (n_pool, n_target).
        options: `costs` is used.

    Raises:
        ConfigError: the costs are not those of the matrix's samples.

    Attributes:
        ties: by which maximisers order samples of equal gain, the largest first, float64 (n,).
    """

    name = "mean-influence"
    monotone = True
    submodular = True
    normalised = True

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        self.options: dict[str, float] = {}
        self.n = matrix.shape[0]
        self.value = 0.0
        means = matrix.row_means().astype(np.float64)
        self._gains = np.maximum(means, 0)
        costs = None if options is None else options.costs
        if costs is not None:
            if costs.shape != self._gains.shape:
                raise ConfigError(f"there are {len(costs)} costs for {self.n} samples", "give one for each")
            self._gains *= costs
        self.ties = np.where(means > 0, self._gains, means)

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Marginal gain of each candidate, float64."""
        return np.asarray(self._gains[candidates])

    def add(self, i: int) -> None:
        """Add sample `i`."""
        self.value += float(self._gains[i])
        self._gains[i] = 0.0


def ties_of(objective: Objective) -> np.ndarray | None:
    """What orders samples of equal gain, float64 (n,); None where that is their first gain."""
    return objective.ties if isinstance(objective, MeanInfluence) else None
