"""Coverage of the targets: facility location in its three forms, and the concave cover.

All keep one vector, the coverage of each target so far. In facility location adding a sample raises it to the sample's
row, and the known samples of the third form are its initial value, so that their influence is reduced to one vector as
well; in the concave cover the row is added. A gain costs one row of the matrix, which the fused kernels of an estimated
matrix never store for facility location.
"""

from __future__ import annotations

import copy
from typing import Self

import numpy as np

from nncift.errors import ConfigError
from nncift.matrix.compiled.entries import Entries
from nncift.matrix.estimated import FactoredMatrix
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.selectors import row_slices
from nncift.selection.objectives.table import (
    CONCAVE_COVER,
    CONDITIONAL_GAIN,
    FACILITY_LOCATION,
    MUTUAL_INFORMATION,
    Objective,
    ObjectiveOptions,
    checked_weight,
)

_ETA = 0.01  # of relevance: see `FacilityLocationMutualInformation`


class _Coverage:
    """The coverage of each target by the samples chosen so far, which begins with that by samples selected earlier."""

    monotone = True
    submodular = True
    normalised = True

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        self.options: dict[str, float] = {}
        self.matrix, self.n = matrix, matrix.shape[0]
        covered = None if options is None else options.covered
        self.start = np.zeros(matrix.shape[1], np.float32) if covered is None else _on_targets(covered, matrix)
        self._covered = self.start.copy()

    def alone(self, rows: np.ndarray) -> Self | None:
        """The same empty objective of the samples `rows`, int64 (k,), with nothing of the others.

        None where its matrix is not estimated, and a part may need the whole.
        """
        if not isinstance(self.matrix, FactoredMatrix):
            return None
        part = copy.copy(self)
        part.matrix, part.n, part._covered = self.matrix.of_rows(rows), len(rows), self._covered.copy()
        return part


class FacilityLocation(_Coverage):
    """sum over targets j of max over i in S of s[i, j]: each target is served by its best sample in the subset.

    With the pool as its own target, the subset represents the pool (Wei, Iyer and Bilmes, "Submodularity in data subset
    selection and active learning", 2015).

    Args:
        matrix: influence, (n_pool, n_target).
        options: `covered` is used.

    Raises:
        ConfigError: a vector of the options does not have the matrix's targets.
    """

    name = FACILITY_LOCATION

    @property
    def value(self) -> float:
        """Value of the subset so far."""
        return float(np.subtract(self._covered, self.start, dtype=np.float64).sum())

    @property
    def covered(self) -> np.ndarray:
        """Coverage of each target so far, float32 (n_target,); `add` changes it in place."""
        return self._covered

    @property
    def modular(self) -> np.ndarray:
        """What each sample adds besides coverage, float64 (n_pool,)."""
        return np.zeros(self.n)

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Marginal gain of each candidate, float64."""
        return self.matrix.coverage_gains(candidates, self._covered)

    def add(self, i: int) -> None:
        """Add sample `i`."""
        self.matrix.cover(np.array([i]), self._covered)


class FacilityLocationMutualInformation(FacilityLocation):
    """sum over targets j of max over i in S of s[i, j], plus eta * sum over i in S of max over j of s[i, j].

    The first term is coverage, the second relevance, which still ranks samples once all targets are covered. It needs
    the pool x target influence alone ("FLQMI" in Kothawade et al., "PRISM", 2022; submodlib's
    FacilityLocationVariantMutualInformation).

    Relevance takes the maximum over targets, so that where it counts much, those few targets decide that have the
    largest values. So the default of eta is small: coverage decides, and relevance orders the samples that add next to
    nothing to it.

    Args:
        matrix: influence, (n_pool, n_target).
        options: `eta` and `covered` are used.

    Raises:
        ConfigError: eta is negative or not finite, or as for `FacilityLocation`.
    """

    name = MUTUAL_INFORMATION

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        super().__init__(matrix, options)
        options = options or ObjectiveOptions()
        self.options = {"eta": _ETA if options.eta is None else checked_weight("eta", options.eta)}
        self._relevance = self.relevance()
        self._relevance_chosen = 0.0

    def alone(self, rows: np.ndarray) -> Self | None:
        """As of facility location."""
        if (part := super().alone(rows)) is not None:
            part._relevance = self._relevance[rows]
        return part

    @property
    def modular(self) -> np.ndarray:
        """What each sample adds besides coverage, float64 (n_pool,): relevance, 0 of the samples in the subset."""
        return self._relevance

    def relevance(self) -> np.ndarray:
        """The second term of each sample alone, float64 (n_pool,)."""
        return np.asarray(self.options["eta"] * np.maximum(self.matrix.row_max(), 0).astype(np.float64))

    @property
    def value(self) -> float:
        """Value of the subset so far."""
        return super().value + self._relevance_chosen

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Marginal gain of each candidate, float64."""
        return super().gains(candidates) + self._relevance[candidates]  # type: ignore[no-any-return]

    def add(self, i: int) -> None:
        """Add sample `i`."""
        super().add(i)
        self._relevance_chosen += float(self._relevance[i])
        self._relevance[i] = 0.0


class FacilityLocationConditionalGain(FacilityLocation):
    """sum over targets j of max(0, max over i in S of s[i, j] - nu * max over known k of s[k, j]).

    The gain of the subset over samples that the model was trained on already ("FLCG"; Kothawade et al., "PRISM", 2022).
    Its `options` are `known`, `nu` and `covered`; the larger of the two coverages counts.
    """

    name = CONDITIONAL_GAIN

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        super().__init__(matrix, options)
        options = options or ObjectiveOptions()
        nu = 1.0 if options.nu is None else checked_weight("nu", options.nu)
        self.options = {"nu": nu}
        if options.known is not None:
            np.maximum(self._covered, np.float32(nu) * _on_targets(options.known, matrix), out=self._covered)
            self.start = self._covered.copy()


class ConcaveCover(_Coverage):
    """sum over targets j of the square root of the sum over i in S of s[i, j].

    Facility location counts the best sample of each target alone, though training adds up; a plain sum prefers more of
    the same. The root is in between: each further sample for a target counts, and counts less ("feature-based
    functions": Wei, Iyer and Bilmes, "Unsupervised submodular subset selection for speech data", 2014; submodlib's
    FeatureBased).

    Args:
        matrix: influence, (n_pool, n_target).
        options: `covered` is used, as the least that samples selected earlier add up to.

    Raises:
        ConfigError: a vector of the options does not have the matrix's targets.
    """

    name = CONCAVE_COVER

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        super().__init__(matrix, options)
        self.start = self.start.astype(np.float64)  # which sums, where facility location takes maxima
        self._covered = self.start.copy()
        self._chosen = np.zeros(self.n, bool)

    def alone(self, rows: np.ndarray) -> Self | None:
        """As of facility location."""
        if (part := super().alone(rows)) is not None:
            part._chosen = self._chosen[rows]
        return part

    @property
    def value(self) -> float:
        """Value of the subset so far."""
        return float((np.sqrt(self._covered) - np.sqrt(self.start)).sum())

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Marginal gain of each candidate, float64."""
        gains = np.zeros(len(candidates))
        for part in row_slices(len(candidates), self.matrix.shape[1]):
            added = np.maximum(self.matrix.rows(candidates[part]), 0).astype(np.float64)
            # Of sqrt(covered + added) - sqrt(covered) the form that never rises with the coverage by rounding.
            roots = np.sqrt(self._covered + added) + np.sqrt(self._covered)
            gains[part] = np.divide(added, roots, out=np.zeros_like(added), where=added > 0).sum(axis=1)
        gains[self._chosen[candidates]] = 0.0
        return gains

    def add(self, i: int) -> None:
        """Add sample `i`."""
        if not self._chosen[i]:
            self._covered += np.maximum(self.matrix.rows(i)[0], 0)
            self._chosen[i] = True


COVERAGE = (FacilityLocation, FacilityLocationMutualInformation, FacilityLocationConditionalGain)
"""Objectives that are coverage by the best sample of the subset, and modular terms."""


def coverage_terms(objective: Objective) -> tuple[Entries, np.ndarray, np.ndarray] | None:
    """Stored influence, coverage (n_target,) and modular terms (n,) that a gain consists of.

    None of an objective other than the built-in forms of facility location, or of a matrix that is not stored. What is
    derived from a built-in one may have gains of its own.
    """
    if type(objective) not in COVERAGE:
        return None
    assert isinstance(objective, FacilityLocation)
    entries = objective.matrix.stored
    return None if entries is None else (entries, objective.covered, objective.modular)


def alone(objective: Objective, rows: np.ndarray) -> Objective | None:
    """An empty built-in objective of coverage, of the samples `rows`, int64 (k,), alone.

    None of another objective, and of one whose matrix is not estimated.
    """
    return objective.alone(rows) if type(objective) in (*COVERAGE, ConcaveCover) else None  # type: ignore[attr-defined]


def _on_targets(vector: np.ndarray, matrix: InfluenceMatrix) -> np.ndarray:
    if vector.shape != matrix.shape[1:]:
        problem = f"coverage of the shape {vector.shape} does not fit {matrix.shape[1]} targets"
        raise ConfigError(problem, "estimate the known samples' influence on the same targets as the pool's")
    return vector
