"""A shortlist whose influence is measured before the subset is chosen from it.

Facility location looks for the largest estimates, and so for the largest errors. So what it would choose is measured
exactly, on all targets or on some; the network learns from that, and says what adds most to what was measured, which is
measured as well. The subset is chosen from all of these, and its value on those targets is measured, not estimated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.evaluation.metrics import measures
from nncift.influence.base import is_pointwise
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.matrix.matrix import InfluenceMatrix
from nncift.pipeline.choose import Chooser
from nncift.pipeline.context import check_verifiable
from nncift.run.files import write_json
from nncift.selection.selection import Selection

if TYPE_CHECKING:
    from nncift.estimator.network import InfluenceNetwork
    from nncift.features.features import Features
    from nncift.pipeline.label import Measuring

VERIFY_TARGETS = 64  # on which a shortlist is measured, at most
_PARTS = 2  # in which all but the choice is measured, with learning in between
_SCATTER = 2000


def select_verified(
    measuring: Measuring,
    matrix: InfluenceMatrix,
    sides: tuple[Features, Features],
    choose: Chooser,
    learn_more: Callable[[LabelledPairs], InfluenceNetwork],
    labels: LabelledPairs | None,
    probes: Probes | None,
) -> tuple[Selection, np.ndarray, np.ndarray]:
    """The choice from a measured shortlist of `--verify` times the budget.

    Args:
        measuring: asks for the exact influence; the run folder gets `verify/`, with what came out in `verify.json`.
        matrix: influence as estimated before, (n_pool, n_target).
        sides: features of the pool and of the targets.
        choose: chooses within the budget.
        learn_more: the network that learned from these pairs too.
        labels: exact influence that is known already; their targets come first among those to measure on.
        probes: exact influence of every pool sample on a few targets.

    Returns:
        The selection with pool rows; the shortlist, (k,) ascending; its mean influence as known now, (k,) float32.
    """
    times = float(measuring.config.verify or 1)
    share = (times - 1) / _PARTS
    rows, exact = measuring.verify("choice", partial(first_measured, measuring, matrix, choose, times, labels))
    network = learn_more(_pairs(rows, exact))
    for part in range(_PARTS):
        taken = np.concatenate([rows, exact.columns]) if measuring.own_target else rows
        candidates = np.setdiff1d(np.arange(matrix.shape[0]), taken)
        if not share or not len(candidates):
            break
        plan = partial(_what_adds, sides, network, probes, rows, exact, candidates, choose, share)
        more, its_exact = measuring.verify(f"more-{part + 1}", plan)
        rows, exact = _merged(rows, exact, more, its_exact)
        network = learn_more(_pairs(rows, exact))
    known = _known(network, sides, rows, exact, probes)
    selection, facts = choose_from(matrix, known, rows, exact, choose)
    write_json(measuring.folder / "verify" / "verify.json", facts)
    return selection, rows, known.row_means()


def first_measured(
    measuring: Measuring, matrix: InfluenceMatrix, choose: Chooser, times: float, labels: LabelledPairs | None
) -> tuple[np.ndarray, np.ndarray]:
    """The choice by estimates, and the targets to measure it on."""
    choice, free = choose(matrix).indices, np.arange(len(measuring.targets))
    if measuring.own_target:  # no sample is measured on itself, nor on what may well be measured next
        shortlist = np.union1d(choice, choose(matrix, times=times).indices)
        check_verifiable(len(shortlist), matrix.shape[0])
        free = np.setdiff1d(free, shortlist)
    order = np.random.default_rng(measuring.config.seed).permutation(free)
    if labels is not None:
        order = order[np.argsort(~np.isin(order, labels.target_index), kind="stable")]
    return choice, order[: 1 if is_pointwise(measuring.function) else VERIFY_TARGETS]


def _what_adds(
    sides: tuple[Features, Features],
    network: InfluenceNetwork,
    probes: Probes | None,
    rows: np.ndarray,
    exact: Probes,
    candidates: np.ndarray,
    choose: Chooser,
    times: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The candidates that add most to the measured rows, as far as is known now, and the same targets."""
    covered = np.maximum(_known(network, sides, rows, exact, probes).column_max(), 0)
    matrix = network.estimate(*sides, probes=probes)
    return choose(matrix, times=times, covered=covered, candidates=candidates).indices, exact.columns


def _merged(rows: np.ndarray, exact: Probes, more: np.ndarray, other: Probes) -> tuple[np.ndarray, Probes]:
    """Two sets of rows, ascending, with their exact influence on the same targets."""
    both = np.concatenate([rows, more])
    order = np.argsort(both)
    return both[order], Probes(exact.columns, np.concatenate([exact.influence, other.influence])[order])


def _known(
    network: InfluenceNetwork, sides: tuple[Features, Features], rows: np.ndarray, exact: Probes, probes: Probes | None
) -> InfluenceMatrix:
    """Influence of measured samples on all targets: as measured, else completed by what the network knows."""
    known = exact if probes is None else exact.joined(probes.take(rows))
    completes = network.recipe == "process"
    return overlaid(network.estimate(sides[0][rows], sides[1], probes=known if completes else None), exact)


def overlaid(estimate: InfluenceMatrix, exact: Probes) -> InfluenceMatrix:
    """Estimates of (n, n_target), with the exact values of some targets in their place."""
    place = np.full(estimate.shape[1], -1)
    place[exact.columns] = np.arange(len(exact.columns))

    def function(rows: Any, columns: Any) -> np.ndarray:
        block = estimate.block(rows, columns).copy()  # of a stored matrix it is a view
        known = place[columns]
        block[:, known >= 0] = exact.influence[rows][:, known[known >= 0]]
        return block

    return InfluenceMatrix(estimate.shape, function)


def choose_from(
    estimate: InfluenceMatrix, known: InfluenceMatrix, rows: np.ndarray, exact: Probes, choose: Chooser
) -> tuple[Selection, dict[str, Any]]:
    """The choice from a measured shortlist, and what the measurement says.

    Args:
        estimate: influence of all pool samples as estimated before, (n_pool, n_target).
        known: influence of the shortlist as known now, (k, n_target).
        rows: the shortlist's pool rows, (k,) ascending.
        exact: its exact influence on some targets.
        choose: chooses within the budget.

    Returns:
        The selection with pool rows, and JSON-able facts: `value` of the subset on the measured targets, exact,
        estimated, and exact for the choice that the estimates alone would make of the shortlist; the same of the
        subset's `mean_influence`; and how well the shortlist was estimated.
    """
    chosen = choose(known, rows)
    before = InfluenceMatrix.from_array(estimate.block(rows, exact.columns))
    plain = choose(InfluenceMatrix(known.shape, lambda i, j: estimate.block(rows[i], j)), rows)
    measured = InfluenceMatrix.from_array(exact.influence)
    own, other = (np.searchsorted(rows, selection.indices) for selection in (chosen, plain))
    pairs = _pairs(np.arange(len(rows)), exact)
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


def _pairs(rows: np.ndarray, exact: Probes) -> LabelledPairs:
    i, j = np.repeat(rows, len(exact.columns)), np.tile(exact.columns, len(rows))
    return LabelledPairs(i.astype(np.int32), j.astype(np.int32), exact.influence.ravel())
