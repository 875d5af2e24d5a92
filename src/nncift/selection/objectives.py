"""What makes a subset good: submodular functions of the influence matrix, for a greedy to maximise.

With s[i, j] = max(0, influence of pool sample i on target j), for harm is no help, and S the subset:

    FacilityLocation                  sum_j max_{i in S} s[i, j]
    FacilityLocationMutualInformation sum_j max_{i in S} s[i, j] + eta * sum_{i in S} max_j s[i, j]
    FacilityLocationConditionalGain   sum_j max(0, max_{i in S} s[i, j] - nu * max_k s_known[k, j])

All three keep one vector, how well each target is covered so far; adding a sample raises it to the
sample's row. The known samples of the third only give that vector its start. A gain costs one row of
the matrix, and the fused kernels of an estimated matrix never store it.

An objective of your own is any object that satisfies `Objective`.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from nncift.errors import ConfigError
from nncift.matrix.matrix import InfluenceMatrix


@runtime_checkable
class Objective(Protocol):
    """A set function over the samples 0 .. n - 1, with the subset chosen so far inside.

    Attributes:
        name: what a report calls it.
        options: its parameters, for the record.
        n: size of the ground set.
        value: value of the subset so far.
        monotone: adding a sample never lowers the value.
        submodular: a sample's gain never rises when others are added; lazy evaluation needs it.
        normalised: the empty subset has the value 0.
    """

    name: str
    options: dict[str, float]
    n: int
    monotone: bool
    submodular: bool
    normalised: bool

    @property
    def value(self) -> float:
        """Value of the subset so far."""
        ...

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """What each candidate (int64) would add to the value: float64, 0 for one that is already in."""
        ...

    def add(self, i: int) -> None:
        """Add sample `i` to the subset; adding it twice changes nothing."""
        ...


class FacilityLocation:
    """sum over targets j of max over i in S of s[i, j]: every target is helped by its best chosen sample.

    With the pool as its own target it asks for a subset that represents the pool (Wei, Iyer and Bilmes,
    "Submodularity in data subset selection and active learning", 2015).

    Args:
        matrix: influence, (n_pool, n_target).
        covered: how well each target is covered already, float32 (n_target,), at least 0; not at all unless given.
    """

    name = "facility-location"
    monotone = True
    submodular = True
    normalised = True

    def __init__(self, matrix: InfluenceMatrix, covered: np.ndarray | None = None) -> None:
        self.options: dict[str, float] = {}
        self.matrix = matrix
        self.n = matrix.shape[0]
        self._start = np.zeros(matrix.shape[1], dtype=np.float32) if covered is None else covered
        self._covered = self._start.copy()

    @property
    def value(self) -> float:
        """Value of the subset so far."""
        return float(np.subtract(self._covered, self._start, dtype=np.float64).sum())

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """What each candidate would add, float64."""
        return self.matrix.coverage_gains(candidates, self._covered)

    def add(self, i: int) -> None:
        """Add sample `i`."""
        np.maximum(self._covered, self.matrix.rows(i)[0], out=self._covered)


class FacilityLocationMutualInformation(FacilityLocation):
    """sum over targets j of max over i in S of s[i, j], plus eta * sum over i in S of max over j of s[i, j].

    The first term covers the targets, the second rewards every sample that is relevant to one of them, so
    samples still differ when all targets are covered. This is the form that needs the pool x target
    influence alone ("FLQMI" in Kothawade et al., "PRISM", 2022; submodlib's
    FacilityLocationVariantMutualInformation).

    Args:
        matrix: influence, (n_pool, n_target).
        eta: weight of relevance, at least 0. The second term grows with the subset, the first does not:
            (number of targets) / (budget) puts them on one scale.
        covered: as for `FacilityLocation`.

    Raises:
        ConfigError: eta is negative or not finite.
    """

    name = "facility-location-mutual-information"

    def __init__(self, matrix: InfluenceMatrix, *, eta: float, covered: np.ndarray | None = None) -> None:
        super().__init__(matrix, covered)
        self.options = {"eta": _weight("eta", eta)}
        self._relevance = eta * np.maximum(matrix.row_max(), 0).astype(np.float64)
        self._relevance_chosen = 0.0

    @property
    def value(self) -> float:
        """Value of the subset so far."""
        return super().value + self._relevance_chosen

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """What each candidate would add, float64."""
        gains: np.ndarray = super().gains(candidates) + self._relevance[candidates]
        return gains

    def add(self, i: int) -> None:
        """Add sample `i`."""
        super().add(i)
        self._relevance_chosen += float(self._relevance[i])
        self._relevance[i] = 0.0


class FacilityLocationConditionalGain(FacilityLocation):
    """sum over targets j of max(0, max over i in S of s[i, j] - nu * max over known k of s[k, j]).

    What the subset adds to samples that the model has seen already ("FLCG"; Kothawade et al., "PRISM", 2022).

    Args:
        matrix: influence of the pool, (n_pool, n_target).
        known_matrix: influence of the known samples on the same targets, (n_known, n_target).
        nu: how much the known samples count, at least 0; 0 gives facility location.

    Raises:
        ConfigError: nu is negative or not finite, or the matrices have different targets.
    """

    name = "facility-location-conditional-gain"

    def __init__(self, matrix: InfluenceMatrix, known_matrix: InfluenceMatrix, *, nu: float = 1.0) -> None:
        if known_matrix.shape[1] != matrix.shape[1]:
            raise ConfigError(
                f"the known samples' influence has {known_matrix.shape[1]} targets, the pool's {matrix.shape[1]}",
                "estimate both on the same targets",
            )
        super().__init__(matrix, np.float32(_weight("nu", nu)) * np.maximum(known_matrix.column_max(), np.float32(0)))
        self.options = {"nu": float(nu)}


def make_objective(matrix: InfluenceMatrix, *, eta: float | None, covered: np.ndarray | None = None) -> Objective:
    """The objective that follows from the data: `eta` is None where the pool is its own target."""
    if eta is None:
        return FacilityLocation(matrix, covered)
    return FacilityLocationMutualInformation(matrix, eta=eta, covered=covered)


def default_eta(n_target: int, expected: float) -> float:
    """Weight of a sample's own relevance when about `expected` samples will be chosen.

    The modular term grows with the subset, the other is bounded by the number of targets: this puts both on
    one scale.
    """
    return n_target / max(expected, 1.0)


def _weight(name: str, weight: float) -> float:
    if not 0 <= weight < float("inf"):
        raise ConfigError(f"{name} is {weight}", "it must be a number of at least 0")
    return float(weight)
