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

from typing import Self

import numpy as np

from nncift.matrix.matrix import InfluenceMatrix
from nncift.selection.objectives.coverage import FacilityLocation
from nncift.selection.objectives.table import MUTUAL_INFORMATION, RECIPROCAL_RANK, ObjectiveOptions, checked_weight

_ETA = 0.01  # so small that coverage decides, and relevance orders what it leaves equal
_RANKED = 1 << 22  # entries of the matrix that are ranked, at most: 28 bytes each, for the time of it


class _CoverageAndRelevance(FacilityLocation):
    """Facility location, plus eta * sum over i in S of the relevance of i."""

    def _weigh(self, relevance: np.ndarray, eta: float | None) -> None:
        """Set the relevance of each sample alone, (n_pool,), and its weight."""
        self.options["eta"] = _ETA if eta is None else checked_weight("eta", eta)
        self._relevance = self.options["eta"] * relevance.astype(np.float64)
        self._left = self._relevance.copy()  # of those that are not in the subset
        self._relevance_chosen = 0.0

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

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        super().__init__(matrix, options)
        self._weigh(np.maximum(matrix.row_max(), 0), None if options is None else options.eta)


class FacilityLocationReciprocalRank(_CoverageAndRelevance):
    """sum over targets j of max over i in S of s[i, j], plus eta * c * sum over i in S of max over j of w_j / rank.

    The rank is that of s[i, j] among all samples, from 1 for the largest, ties by the lower index; samples without
    influence above 0 have none. c is the mean over targets of the largest s[i, j], so that the choice does not depend
    on the unit of influence, and w_j is 1. Of a matrix of more than 2^22 entries as many are ranked, equally many of
    each target; samples that are among none of them have no relevance.

    With known samples k a target begins covered by nu * max over k of s[k, j], as in `FacilityLocationConditionalGain`:
    samples that are not better have no rank, and w_j is the share of the largest s[i, j] that is above it.

    Args:
        matrix: influence, (n_pool, n_target).
        options: `eta`, 0.01 by default, `known`, `nu` and `covered` are used.

    Raises:
        ConfigError: eta or nu is negative or not finite, or as for `FacilityLocation`.
    """

    name = RECIPROCAL_RANK

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        super().__init__(matrix, options)
        options = options or ObjectiveOptions()
        level = np.zeros(matrix.shape[1], np.float32)
        if options.known is not None:
            self.options["nu"] = 1.0 if options.nu is None else checked_weight("nu", options.nu)
            level = np.maximum(self._cover_known(options.known, self.options["nu"]), 0)
        self._weigh(_reciprocal_ranks(matrix, level), options.eta)


def _reciprocal_ranks(matrix: InfluenceMatrix, level: np.ndarray) -> np.ndarray:
    """Relevance, c * max over targets j of w_j / rank, float64 (n_pool,).

    0 of samples that do not exceed the level of any target, float32 (n_target,), or are not ranked.
    """
    n, targets = matrix.shape
    values, rows = matrix.top_k(min(max(_RANKED // targets, 1), n), axis=0)
    relevance, turns = np.zeros(n), 1.0 / np.arange(1, values.shape[1] + 1)
    for j in range(targets):
        ranked = int(np.count_nonzero(values[j] > level[j]))
        if ranked:
            left = 1 - float(level[j]) / float(values[j, 0])  # w_j
            some = rows[j, :ranked]
            relevance[some] = np.maximum(relevance[some], left * turns[:ranked])
    return np.asarray(relevance * float(np.maximum(values[:, 0], 0).mean(dtype=np.float64)))
