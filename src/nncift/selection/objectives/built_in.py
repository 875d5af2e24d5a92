"""Which objectives are built-in forms of coverage, and what maximisers may read of them."""

from __future__ import annotations

import numpy as np

from nncift.matrix.compiled.entries import Entries
from nncift.selection.objectives.coverage import ConcaveCover, FacilityLocation, FacilityLocationConditionalGain
from nncift.selection.objectives.relevance import FacilityLocationMutualInformation, FacilityLocationReciprocalRank
from nncift.selection.objectives.table import Objective

COVERAGE = (
    FacilityLocation,
    FacilityLocationReciprocalRank,
    FacilityLocationMutualInformation,
    FacilityLocationConditionalGain,
)
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
