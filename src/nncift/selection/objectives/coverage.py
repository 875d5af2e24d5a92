"""Coverage of the targets: facility location, its conditional gain over known samples, and the concave cover.

All keep one vector, the coverage of each target so far. In facility location adding a sample raises it to the sample's
row, and the known samples of the second form are its initial value, so that their influence is reduced to one vector as
well; in the concave cover the row is added. A gain costs one row of the matrix, which the fused kernels of an estimated
matrix never store for facility location.
"""

from __future__ import annotations

import copy
from typing import Self

import numpy as np

from nncift.errors import ConfigError
from nncift.matrix.estimated import FactoredMatrix
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.selectors import row_slices
from nncift.selection.objectives.table import (
    CONCAVE_COVER,
    CONDITIONAL_GAIN,
    FACILITY_LOCATION,
    ObjectiveOptions,
    checked_weight,
)


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

    def _cover_known(self, known: np.ndarray, nu: float) -> np.ndarray:
        """Begin with nu * the known samples' largest influence on each target, which is given back, float32."""
        level: np.ndarray = np.float32(nu) * _on_targets(known, self.matrix)
        np.maximum(self._covered, level, out=self._covered)
        self.start = self._covered.copy()
        return level

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
        """What each sample adds besides coverage, float64 (n_pool,); 0 of those in the subset."""
        return np.zeros(self.n)

    @property
    def modular_alone(self) -> np.ndarray:
        """What each sample adds besides coverage to the empty subset, float64 (n_pool,)."""
        return np.zeros(self.n)

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Marginal gain of each candidate, float64."""
        return self.matrix.coverage_gains(candidates, self._covered)

    def add(self, i: int) -> None:
        """Add sample `i`."""
        self.matrix.cover(np.array([i]), self._covered)


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
            self._cover_known(options.known, nu)


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


def _on_targets(vector: np.ndarray, matrix: InfluenceMatrix) -> np.ndarray:
    if vector.shape != matrix.shape[1:]:
        problem = f"coverage of the shape {vector.shape} does not fit {matrix.shape[1]} targets"
        raise ConfigError(problem, "estimate the known samples' influence on the same targets as the pool's")
    return vector
