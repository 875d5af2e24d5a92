"""Coverage of the targets, and relevance: what each sample is worth by itself, whatever the others are.

Once every target has a good sample, coverage has next to nothing to gain, and relevance orders the rest. So it decides
most of a choice that is much larger than the number of targets, and how it weighs one target against another matters:

    largest influence    of the sample on any target, as published. Targets differ in how much influence varies between
                         samples, and those where it varies most take nearly all of the rest.
    reciprocal rank      of the sample among all for the target where it ranks best. Each target's best samples come
                         first, then each one's second, and so on: targets take turns, whatever the scale of their
                         influence.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np

from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.objectives.coverage import FacilityLocation
from nncift.selection.objectives.table import MUTUAL_INFORMATION, RECIPROCAL_RANK, ObjectiveOptions, checked_weight

_ETA = 0.01  # so small that coverage decides, and relevance orders what it leaves equal
_RANKED = 1 << 24  # samples of all targets that are ranked, at most: 12 bytes each


class _CoverageAndRelevance(FacilityLocation):
    """Facility location, plus eta * sum over i in S of the relevance of i."""

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        super().__init__(matrix, options)
        options = options or ObjectiveOptions()
        eta = _ETA if options.eta is None else checked_weight("eta", options.eta)
        self.options = {"eta": eta}
        self._relevance = eta * self._relevance_of_all(options)  # of each sample alone, float64 (n_pool,)
        self._left = self._relevance.copy()  # of those that are not in the subset
        self._relevance_chosen = 0.0

    def _relevance_of_all(self, options: ObjectiveOptions) -> np.ndarray:
        raise NotImplementedError

    def alone(self, rows: np.ndarray) -> Self | None:
        """As of facility location; relevance stays that among all samples."""
        if (part := super().alone(rows)) is not None:
            part._relevance, part._left = self._relevance[rows], self._left[rows]
        return part

    @property
    def modular(self) -> np.ndarray:
        """As of facility location: relevance."""
        return self._left

    @property
    def modular_alone(self) -> np.ndarray:
        """As of facility location: relevance."""
        return self._relevance

    @property
    def value(self) -> float:
        """Value of the subset so far."""
        return super().value + self._relevance_chosen

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Marginal gain of each candidate, float64."""
        return super().gains(candidates) + self._left[candidates]  # type: ignore[no-any-return]

    def add(self, i: int) -> None:
        """Add sample `i`."""
        super().add(i)
        self._relevance_chosen += float(self._left[i])
        self._left[i] = 0.0


class FacilityLocationMutualInformation(_CoverageAndRelevance):
    """sum over targets j of max over i in S of s[i, j], plus eta * sum over i in S of max over j of s[i, j].

    Relevance is the largest influence on any target. It needs the pool x target influence alone ("FLQMI" in Kothawade
    et al., "PRISM", 2022; submodlib's FacilityLocationVariantMutualInformation).

    Args:
        matrix: influence, (n_pool, n_target).
        options: `eta`, 0.01 by default, and `covered` are used.

    Raises:
        ConfigError: eta is negative or not finite, or as for `FacilityLocation`.
    """

    name = MUTUAL_INFORMATION

    def _relevance_of_all(self, options: ObjectiveOptions) -> np.ndarray:
        return np.asarray(np.maximum(self.matrix.row_max(), 0), dtype=np.float64)


class FacilityLocationReciprocalRank(_CoverageAndRelevance):
    """sum over targets j of max over i in S of s[i, j], plus eta * c * sum over i in S of 1 / rank of i.

    The rank of i is its best on any target j, from 1 for the sample with the largest s[i, j], ties by the lower index;
    samples without influence above 0 have none. c is the mean over targets of the largest s[i, j], so that the choice
    does not depend on the unit of influence. As many samples are ranked as will be selected, about; none of the others
    has relevance.

    Args:
        matrix: influence, (n_pool, n_target).
        options: `eta`, 0.01 by default, `expected` and `covered` are used.

    Raises:
        ConfigError: eta is negative or not finite, or as for `FacilityLocation`.
    """

    name = RECIPROCAL_RANK

    def _relevance_of_all(self, options: ObjectiveOptions) -> np.ndarray:
        return _reciprocal_ranks(self.matrix, math.ceil(options.expected))


def _reciprocal_ranks(matrix: InfluenceMatrix, expected: int) -> np.ndarray:
    """C / best rank of each sample on any target, float64 (n_pool,), of at least `expected` samples; 0 of the others.

    Of fewer, where no more have influence above 0, or too many targets share theirs.
    """
    n, targets = matrix.shape
    expected, most = min(expected, n), min(max(_RANKED // targets, 1), n)
    depth = min(-(-2 * expected // targets) + 8, most)
    while True:
        values, rows = matrix.top_k(depth, axis=0)
        relevance = np.zeros(n)
        target, place = np.nonzero(values > 0)
        np.maximum.at(relevance, rows[target, place], 1.0 / (place + 1))
        found = int(np.count_nonzero(relevance))
        if found >= expected or depth == most or not (values[:, -1] > 0).any():
            return np.asarray(relevance * float(np.maximum(values[:, 0], 0).mean(dtype=np.float64)))
        depth = min(max(2 * depth, -(-3 * depth * expected // (2 * found))), most)
