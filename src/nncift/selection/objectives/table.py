"""Submodular set functions of the influence matrix, for greedy maximisation.

In their formulas s[i, j] = max(0, influence of pool sample i on target j), since negative influence is clipped at 0,
and S is the subset.

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
from nncift.matrix.matrix import InfluenceMatrix
from nncift.run.options.registry import resolve

OBJECTIVES = {
    "facility-location": "nncift.selection.objectives.coverage:FacilityLocation",
    "facility-location-reciprocal-rank": "nncift.selection.objectives.relevance:FacilityLocationReciprocalRank",
    "facility-location-mutual-information": "nncift.selection.objectives.relevance:FacilityLocationMutualInformation",
    "facility-location-conditional-gain": "nncift.selection.objectives.coverage:FacilityLocationConditionalGain",
    "concave-cover": "nncift.selection.objectives.coverage:ConcaveCover",
    "mean-influence": "nncift.selection.objectives.modular:MeanInfluence",
    "graph-cut": "nncift.selection.objectives.graph_cut:GraphCut",
    "log-determinant": "nncift.selection.objectives.log_determinant:LogDeterminant",
}
"""Name to "module:Class" of the built-in objectives."""
FACILITY_LOCATION, RECIPROCAL_RANK, MUTUAL_INFORMATION, CONDITIONAL_GAIN, *_REST = OBJECTIVES
CONCAVE_COVER, MEAN_INFLUENCE, GRAPH_CUT, _LOG_DETERMINANT = _REST

WITH_RELEVANCE = (RECIPROCAL_RANK, MUTUAL_INFORMATION)
"""Objectives of a target that weigh what each sample is worth by itself."""
WITH_KNOWN = (CONDITIONAL_GAIN, RECIPROCAL_RANK)
"""Objectives that count what known samples leave to gain."""
COMPARES_FEATURES = frozenset({GRAPH_CUT, _LOG_DETERMINANT})
"""Objectives that are made with `ObjectiveOptions.features`."""
READS_MEANS = COMPARES_FEATURES | {MEAN_INFLUENCE}
"""Objectives that read the mean influence of each sample and nothing else of the matrix."""
SUMS_OVER_TARGETS = frozenset({FACILITY_LOCATION, CONDITIONAL_GAIN, CONCAVE_COVER})
"""Objectives whose value on some of the targets estimates that on all: a sum of a term for each."""


@dataclass(frozen=True, eq=False)
class ObjectiveOptions:
    """What an objective is made with, beside the influence matrix; each takes what it needs."""

    has_target: bool = False  # the matrix is on the samples of a task, not on the pool itself
    eta: float | None = None  # weight of relevance, of objectives that have it; default 0.01
    nu: float | None = None  # weight of the known samples, of objectives that take them; default 1
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
        raise ConfigError(f"`objective` {name} gives no objective", "see nncift.selection.objectives.table.Objective")
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

    Without a name: coverage and reciprocal ranks with a target, else conditional gain with known samples, else facility
    location.

    Raises:
        ConfigError: there is no such objective, or an option does not go with a built-in one.
    """
    name = name or (RECIPROCAL_RANK if target else CONDITIONAL_GAIN if known else FACILITY_LOCATION)
    kind: Callable[[InfluenceMatrix, ObjectiveOptions], Objective] = resolve(name, OBJECTIVES, "nncift.objectives")
    if name not in OBJECTIVES:
        return kind
    if name in WITH_RELEVANCE and not target:
        raise ConfigError(f"the `objective` {name} needs a `target`", "give one, or leave `objective` out")
    if (name, known) == (CONDITIONAL_GAIN, False):
        raise ConfigError(f"the `objective` {name} needs `known` samples", "give them, or leave `objective` out")
    needed = {"eta": WITH_RELEVANCE, "nu": WITH_KNOWN, "known": WITH_KNOWN, "redundancy": (GRAPH_CUT,)}
    for option, value in {"eta": eta, "nu": nu, "known": known or None, "redundancy": redundancy}.items():
        if value is not None and name not in needed[option]:
            others = " or ".join(needed[option])
            raise ConfigError(f"`{option}` needs the `objective` {others}, not {name}", "leave it out")
        if value is not None and option != "known":
            checked_weight(option, value)
    return kind


def checked_weight(name: str, weight: float) -> float:
    """The weight of a term.

    Raises:
        ConfigError: it is negative or not finite.
    """
    if not 0 <= weight < float("inf"):
        raise ConfigError(f"`{name}` is {weight}", "give a number of at least 0")
    return float(weight)
