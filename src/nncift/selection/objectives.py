"""Submodular set functions of the influence matrix, for greedy maximisation.

In their formulas s[i, j] = max(0, influence of pool sample i on target j), since negative influence is clipped at 0,
and S is the subset.

All keep one vector, the coverage of each target so far. In facility location adding a sample raises it to the sample's
row, and the known samples of the third objective are its initial value, so that their influence is reduced to one
vector as well; in the concave cover the row is added. A gain costs one row of the matrix, which the fused kernels of an
estimated matrix never store for facility location.

An objective of your own is anything that gives an `Objective` when called with the matrix and `ObjectiveOptions`, named
as "module:Class" or by an entry point in the group "nncift.objectives":

    class Relevance:  # sum over i in S of the mean influence of i, at least 0
        name, options, monotone, submodular, normalised, value = "relevance", {}, True, True, True, 0.0
        def __init__(self, matrix, options): self.left, self.n = matrix.row_means().clip(0), matrix.shape[0]
        def gains(self, candidates): return self.left[candidates].astype(float)
        def add(self, i): self.value, self.left[i] = self.value + float(self.left[i]), 0
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from nncift.errors import ConfigError
from nncift.matrix.lazy import Entries
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.selectors import row_slices
from nncift.run.registry import resolve

OBJECTIVES = {
    "facility-location": "nncift.selection.objectives:FacilityLocation",
    "facility-location-mutual-information": "nncift.selection.objectives:FacilityLocationMutualInformation",
    "facility-location-conditional-gain": "nncift.selection.objectives:FacilityLocationConditionalGain",
    "concave-cover": "nncift.selection.objectives:ConcaveCover",
    "mean-influence": "nncift.selection.modular:MeanInfluence",
    "graph-cut": "nncift.selection.graph_cut:GraphCut",
    "log-determinant": "nncift.selection.log_determinant:LogDeterminant",
}
"""Name to "module:Class" of the built-in objectives."""
_PLAIN, _MUTUAL, _CONDITIONAL, _CONCAVE, _, GRAPH_CUT, _LOG_DETERMINANT = OBJECTIVES

COMPARES_FEATURES = frozenset({GRAPH_CUT, _LOG_DETERMINANT})
"""Objectives that are made with `ObjectiveOptions.features`."""
SUMS_OVER_TARGETS = frozenset({_PLAIN, _CONDITIONAL, _CONCAVE})
"""Objectives whose value on some of the targets estimates that on all: a sum of a term for each."""


@dataclass(frozen=True, eq=False)
class ObjectiveOptions:
    """What an objective is made with, beside the influence matrix; each takes what it needs."""

    has_target: bool = False  # the matrix is on the samples of a task, not on the pool itself
    eta: float | None = None  # weight of relevance in the mutual information; default number of targets / `expected`
    nu: float | None = None  # weight of the known samples in the conditional gain; default 1
    known: np.ndarray | None = None  # largest influence of any known sample on each target, float32 (n_target,)
    covered: np.ndarray | None = None  # coverage by samples selected earlier, float32 (n_target,), at least 0
    expected: float = 1.0  # about how many samples will be selected
    costs: np.ndarray | None = None  # of each sample, (n,), where the budget is not in samples
    features: Any = None  # vectors by which samples are compared, (n, d), see `FeatureKernel`
    redundancy: float | None = None  # weight of redundancy in the graph cut; default 1


@runtime_checkable
class Objective(Protocol):
    """A set function over the samples 0 .. n - 1, with the subset chosen so far inside."""

    name: str  # in reports
    options: dict[str, float]  # its parameters, for the record
    n: int  # size of the ground set
    monotone: bool  # adding a sample never lowers the value
    submodular: bool  # a sample's gain never rises when others are added; lazy evaluation relies on it
    normalised: bool  # the empty subset has the value 0

    @property
    def value(self) -> float:
        """Value of the subset so far."""

    def gains(self, candidates: np.ndarray) -> np.ndarray:
        """Marginal gain of each candidate (int64): float64, 0 for one already in the subset."""

    def add(self, i: int) -> None:
        """Add sample `i` to the subset; adding it twice changes nothing."""


class FacilityLocation:
    """sum over targets j of max over i in S of s[i, j]: each target is served by its best sample in the subset.

    With the pool as its own target, the subset represents the pool (Wei, Iyer and Bilmes, "Submodularity in data subset
    selection and active learning", 2015).

    Args:
        matrix: influence, (n_pool, n_target).
        options: `covered` is used.

    Raises:
        ConfigError: a vector of the options does not have the matrix's targets.
    """

    name = _PLAIN
    monotone = True
    submodular = True
    normalised = True

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        self.options: dict[str, float] = {}
        self.matrix, self.n = matrix, matrix.shape[0]
        covered = None if options is None else options.covered
        self.start = _on_targets(np.zeros(matrix.shape[1], np.float32) if covered is None else covered, matrix)
        self._covered = self.start.copy()

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

    Relevance grows with the subset and coverage does not: eta = (number of targets) / (samples expected) puts them on
    one scale.

    Args:
        matrix: influence, (n_pool, n_target).
        options: `eta`, `expected` and `covered` are used.

    Raises:
        ConfigError: eta is negative or not finite, or as for `FacilityLocation`.
    """

    name = _MUTUAL

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        super().__init__(matrix, options)
        options = options or ObjectiveOptions()
        eta = (
            matrix.shape[1] / max(options.expected, 1.0) if options.eta is None else checked_weight("eta", options.eta)
        )
        self.options = {"eta": eta}
        self._relevance = self.relevance()
        self._relevance_chosen = 0.0

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

    name = _CONDITIONAL

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        super().__init__(matrix, options)
        options = options or ObjectiveOptions()
        nu = 1.0 if options.nu is None else checked_weight("nu", options.nu)
        self.options = {"nu": nu}
        if options.known is not None:
            np.maximum(self._covered, np.float32(nu) * _on_targets(options.known, matrix), out=self._covered)
            self.start = self._covered.copy()


class ConcaveCover:
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

    name = _CONCAVE
    monotone = True
    submodular = True
    normalised = True

    def __init__(self, matrix: InfluenceMatrix, options: ObjectiveOptions | None = None) -> None:
        self.options: dict[str, float] = {}
        self.matrix, self.n = matrix, matrix.shape[0]
        covered = None if options is None else options.covered
        self.start = np.zeros(matrix.shape[1]) if covered is None else _on_targets(covered, matrix).astype(np.float64)
        self._covered = self.start.copy()
        self._chosen = np.zeros(self.n, bool)

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


def make_objective(name: str | None, matrix: InfluenceMatrix, options: ObjectiveOptions) -> Objective:
    """The objective of that name for a matrix; without a name, the one that the data ask for (`find_objective`)."""
    known = options.known is not None
    weights = {"eta": options.eta, "nu": options.nu, "redundancy": options.redundancy}
    kind = find_objective(name, target=options.has_target, known=known, **weights)
    try:
        objective = kind(matrix, options)
    except TypeError as error:
        raise ConfigError(
            f"`objective` {name} cannot be made ({error})", "it is called with the matrix and ObjectiveOptions"
        ) from error
    if not isinstance(objective, Objective):
        raise ConfigError(f"`objective` {name} gives no objective", "see nncift.selection.objectives.Objective")
    return objective


def find_objective(
    name: str | None,
    *,
    target: bool,
    known: bool,
    eta: float | None = None,
    nu: float | None = None,
    redundancy: float | None = None,
) -> Callable[[InfluenceMatrix, ObjectiveOptions], Objective]:
    """The class of an objective, checked against the other options as the user gave them before anything costly.

    Without a name: conditional gain with known samples, else mutual information with a target, else facility location.

    Raises:
        ConfigError: there is no such objective, or an option does not go with a built-in one.
    """
    name = name or (_CONDITIONAL if known else _MUTUAL if target else _PLAIN)
    kind: Callable[[InfluenceMatrix, ObjectiveOptions], Objective] = resolve(name, OBJECTIVES, "nncift.objectives")
    if name not in OBJECTIVES:
        return kind
    if (name, target) == (_MUTUAL, False):
        raise ConfigError(f"the `objective` {name} needs a `target`", "give one, or leave `objective` out")
    if (name, known) == (_CONDITIONAL, False):
        raise ConfigError(f"the `objective` {name} needs `known` samples", "give them, or leave `objective` out")
    needed = {"known": (1 if known else None, _CONDITIONAL), "eta": (eta, _MUTUAL), "nu": (nu, _CONDITIONAL)}
    needed |= {"redundancy": (redundancy, GRAPH_CUT)}
    for option, (value, objective) in needed.items():
        if value is not None and name != objective:
            raise ConfigError(f"`{option}` needs the `objective` {objective}, not {name}", "leave it out")
        if value is not None:
            checked_weight(option, value)
    return kind


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


def _on_targets(vector: np.ndarray, matrix: InfluenceMatrix) -> np.ndarray:
    if vector.shape != matrix.shape[1:]:
        problem = f"coverage of the shape {vector.shape} does not fit {matrix.shape[1]} targets"
        raise ConfigError(problem, "estimate the known samples' influence on the same targets as the pool's")
    return vector


def checked_weight(name: str, weight: float) -> float:
    """The weight of a term.

    Raises:
        ConfigError: it is negative or not finite.
    """
    if not 0 <= weight < float("inf"):
        raise ConfigError(f"`{name}` is {weight}", "give a number of at least 0")
    return float(weight)
