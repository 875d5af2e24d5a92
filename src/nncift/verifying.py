"""A shortlist whose influence is measured before the subset is chosen from it.

Facility location looks for the largest estimates, and so for the largest errors. So more samples than the budget are
shortlisted, with what is not known of them counted in their favour; their influence is measured exactly, on all
targets or on some, and the subset is chosen from them. Its value on those targets is then measured, not estimated.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nncift.choosing import Chooser
from nncift.fidelity import measures
from nncift.matrix import InfluenceMatrix
from nncift.pairs import LabelledPairs, Probes
from nncift.selection import Selection

OPTIMISM = 1.0  # standard deviations that a shortlist adds to what is estimated
_SCATTER = 2000


def overlaid(estimate: InfluenceMatrix, exact: Probes) -> InfluenceMatrix:
    """Estimates of (n, n_target), with the exact values of some targets in their place."""
    place = np.full(estimate.shape[1], -1)
    place[exact.columns] = np.arange(len(exact.columns))

    def function(rows: Any, columns: Any) -> np.ndarray:
        block = estimate.block(rows, columns)
        known = place[columns]
        block[:, known >= 0] = exact.influence[rows][:, known[known >= 0]]
        return block

    return InfluenceMatrix(estimate.shape, function)


def choose_verified(
    estimate: InfluenceMatrix, completed: InfluenceMatrix, rows: np.ndarray, exact: Probes, choose: Chooser
) -> tuple[Selection, dict[str, Any]]:
    """The choice from a measured shortlist, and what the measurement says.

    Args:
        estimate: influence of all pool samples as estimated before, (n_pool, n_target).
        completed: influence of the shortlist as estimated since, (k, n_target).
        rows: the shortlist's pool rows, (k,) ascending.
        exact: its exact influence on some targets.
        choose: chooses within the budget.

    Returns:
        The selection with pool rows, and JSON-able facts: `value` of the subset on the measured targets, exact,
        estimated, and exact for the choice that the estimates alone would make of the shortlist; the same of the
        subset's `mean_influence`; and how well the shortlist was estimated.
    """
    chosen = choose(overlaid(completed, exact), rows)
    before = InfluenceMatrix.from_array(estimate.block(rows, exact.columns))
    plain = choose(InfluenceMatrix(completed.shape, lambda i, j: estimate.block(rows[i], j)), rows)
    measured = InfluenceMatrix.from_array(exact.influence)
    own, other = (np.searchsorted(rows, selection.indices) for selection in (chosen, plain))
    pairs = _pairs(exact)
    guess = before.block(slice(None), slice(None)).ravel()
    shown = np.linspace(0, len(pairs) - 1, min(len(pairs), _SCATTER)).astype(int)
    facts = {
        "samples": len(rows),
        "targets": len(exact.columns),
        "pairs": len(pairs),
        "value": {
            "exact": best_influence(measured, own),
            "estimated": best_influence(before, own),
            "exact_of_the_choice_by_estimates": best_influence(measured, other),
        },
        "mean_influence": {
            "exact": float(exact.influence[own].mean()),
            "estimated": float(before.rows(own).mean()),
            "exact_of_the_choice_by_estimates": float(exact.influence[other].mean()),
        },
        "measures": measures(pairs, guess, scale=float(np.ptp(exact.influence)) or 1.0),
        "scatter": {
            "exact": [float(v) for v in pairs.influence[shown]],
            "predicted": [float(v) for v in guess[shown]],
        },
    }
    return chosen, facts


def best_influence(matrix: InfluenceMatrix, chosen: np.ndarray) -> float:
    """Facility location's value per target: the mean of the best chosen sample's influence, at least 0."""
    return float(np.maximum(matrix.rows(chosen).max(axis=0), 0).mean())


def _pairs(exact: Probes) -> LabelledPairs:
    n, k = exact.influence.shape
    i, j = np.divmod(np.arange(n * k), k)
    return LabelledPairs(i.astype(np.int32), exact.columns[j].astype(np.int32), exact.influence.ravel())
