"""Verification: a shortlist is measured exactly before the subset is chosen from it.

Maximising over estimates picks over-estimated samples (the winner's curse). So the choice by estimates is measured
exactly, on all targets or on some, and then, in parts with a refit in between, the samples that would add most to what
was measured. The subset is chosen from all of these, and its value on those targets is measured, not estimated.

Without labels the shortlist is that of gradient-sketch, and the influence function that was asked for measures it at
once. Targets that it is not measured on count by the sketch, scaled to what was measured by least squares.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nncift.evaluation.metrics import measures
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.matrix.matrix import InfluenceMatrix
from nncift.pipeline.choosing.choose import pick, with_served
from nncift.pipeline.choosing.quotas import with_groups
from nncift.pipeline.learning.label import later_cost
from nncift.pipeline.learning.learn import refit
from nncift.pipeline.learning.measure import measure_block
from nncift.run.folder.costs import PlannedCost
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import Verification, counted
from nncift.run.storage.files import read_array
from nncift.selection.budget import check_shortlist

if TYPE_CHECKING:
    from nncift.estimator.network import InfluenceNetwork
    from nncift.pipeline.context import Run
    from nncift.selection.selection import Selection

VERIFY_TARGETS = 64  # on which a shortlist is measured, at most
_PARTS = 2  # in which all but the choice is measured, with a refit in between
_SCATTER = 2000


class Evidence(NamedTuple):
    """What the run has learned before the shortlist is measured.

    Attributes:
        network: what it estimates with.
        labels: what that was fitted to in this run; None where it was fitted before.
        probes: exact influence of every pool sample on a few targets.
    """

    network: InfluenceNetwork
    labels: LabelledPairs | None
    probes: Probes | None


class Measured(NamedTuple):
    """Pool rows, (k,) ascending, and their exact influence on the same targets."""

    rows: np.ndarray
    exact: Probes


def verify(run: Run, matrix: InfluenceMatrix, selection: Selection, evidence: Evidence | None) -> Selection:
    """The choice from a measured shortlist; the given selection where none is asked for, or it is chosen already.

    Args:
        run: the run; its folder gets `Verification`.
        matrix: influence as estimated, (n_pool, n_target).
        selection: the choice by estimates.
        evidence: what led to the estimates; None where influence is exact for every pair.
    """
    if run.config.verify is None or run.is_chosen:
        return selection
    with run.costs.stage("verify"):
        if evidence is None:
            measured, updated, scale = measure_sketched(run, matrix, selection)
        else:
            measured, updated, scale = *measure_shortlist(run, matrix, selection, evidence), 1.0
        chosen, facts = choose_from(run, matrix, updated, measured, scale=scale)
        facts.save(run.folder.verification)
        influence = np.array(read_array(run.folder.influence))
        influence[measured.rows] = updated.row_means()
        chosen = with_served(run, updated, with_groups(run, chosen), rows=measured.rows)
        return chosen.with_pool(run.pool.rows, influence)


def measure_shortlist(
    run: Run, matrix: InfluenceMatrix, selection: Selection, evidence: Evidence
) -> tuple[Measured, InfluenceMatrix]:
    """The shortlist, and its influence on all targets: as measured, else completed by the refitted network.

    Args:
        run: the run; its `config.verify` is the size of the shortlist, its folder keeps what is measured.
        matrix: influence as estimated, (n_pool, n_target).
        selection: the choice by estimates.
        evidence: what led to the estimates.
    """
    folder, times = run.folder.shortlist, float(run.config.verify or 1)
    share = (times - 1) / _PARTS
    first = partial(first_measured, run, matrix, selection, evidence.labels)
    measured = Measured(*measure_block(run, folder.part("choice"), "verify", first))
    network = refit(run, evidence.network, evidence.labels, _pairs(*measured))
    for part in range(_PARTS):
        taken = np.concatenate([measured.rows, measured.exact.columns]) if run.own_target else measured.rows
        candidates = np.setdiff1d(np.arange(matrix.shape[0]), taken)
        if not share or not len(candidates):
            break
        now = evidence._replace(network=network)
        what = partial(_most_gain, run, now, measured, candidates, share)
        more = Measured(*measure_block(run, folder.part(f"more-{part + 1}"), "verify", what))
        measured = _merged(measured, more)
        network = refit(run, evidence.network, evidence.labels, _pairs(*measured))
    return measured, _updated(run, evidence._replace(network=network), measured)


def measure_sketched(
    run: Run, matrix: InfluenceMatrix, selection: Selection
) -> tuple[Measured, InfluenceMatrix, float]:
    """The shortlist of gradient-sketch, its influence by the run's `verifier`, and the scale of the sketch.

    Arguments as of `measure_shortlist`; the matrix is that of the sketch. Influence on targets that are not measured is
    the sketch times the scale, which fits the measured pairs by least squares, never below 0.
    """
    own = _verifying(run)

    def planned() -> tuple[np.ndarray, np.ndarray]:
        shortlist = np.union1d(selection.indices, pick(run, matrix, times=float(run.config.verify or 1)).indices)
        return shortlist, _measured_on(run, shortlist, None)

    measured = Measured(*measure_block(own, run.folder.shortlist.part("choice"), "verify", planned))
    rows, exact = measured
    sketch = matrix.block(rows, exact.columns).astype(np.float64)
    scale = max(float((sketch * exact.influence).sum() / max((sketch * sketch).sum(), 1e-300)), 0.0)
    scaled = InfluenceMatrix((len(rows), matrix.shape[1]), lambda i, j: np.float32(scale) * matrix.block(rows[i], j))
    return measured, overlaid(scaled, exact), scale


def _verifying(run: Run) -> Run:
    """The run as its `verifier` measures: what that is, and what it is trained with, lie in a folder of its own."""
    return dataclasses.replace(
        run, influence=run.verifier, verifier=None, folder=RunFolder(run.folder.shortlist.path), measuring=False
    )


def first_measured(
    run: Run, matrix: InfluenceMatrix, selection: Selection, labels: LabelledPairs | None
) -> tuple[np.ndarray, np.ndarray]:
    """The choice by estimates, and the targets to measure it on."""
    choice = shortlist = selection.indices
    if run.own_target:  # no sample is measured on what may well be measured next
        shortlist = np.union1d(choice, pick(run, matrix, times=float(run.config.verify or 1)).indices)
    return choice, _measured_on(run, shortlist, labels)


def _measured_on(run: Run, shortlist: np.ndarray, labels: LabelledPairs | None) -> np.ndarray:
    """The targets that a shortlist is measured on, none of its own samples, those with labels first: (c,) int64."""
    free = np.arange(len(run.target))
    if run.own_target:
        check_shortlist(len(shortlist), len(free))
        free = np.setdiff1d(free, shortlist)
    order = np.random.default_rng(run.config.seed).permutation(free)
    if labels is not None:
        order = order[np.argsort(~np.isin(order, labels.target_index), kind="stable")]
    return order[: _columns(run)]


def _columns(run: Run) -> int:
    return 1 if run.function.traits.pointwise else VERIFY_TARGETS


def _most_gain(
    run: Run, evidence: Evidence, measured: Measured, candidates: np.ndarray, times: float
) -> tuple[np.ndarray, np.ndarray]:
    """The candidates that add most to the measured rows by present estimates, and the same targets."""
    covered = np.maximum(_updated(run, evidence, measured).column_max(), 0)
    matrix = evidence.network.estimate(run.pool.features, run.target.features, probes=evidence.probes)
    return pick(run, matrix, times=times, covered=covered, candidates=candidates).indices, measured.exact.columns


def _merged(measured: Measured, more: Measured) -> Measured:
    both = np.concatenate([measured.rows, more.rows])
    order = np.argsort(both)
    influence = np.concatenate([measured.exact.influence, more.exact.influence])[order]
    return Measured(both[order], Probes(measured.exact.columns, influence))


def _updated(run: Run, evidence: Evidence, measured: Measured) -> InfluenceMatrix:
    """Influence of measured samples on all targets: exact where measured, else the estimate given that."""
    exact = measured.exact if evidence.probes is None else measured.exact.joined(evidence.probes.take(measured.rows))
    completes = evidence.network.recipe == "process"
    estimate = evidence.network.estimate(
        run.pool.features[measured.rows], run.target.features, probes=exact if completes else None
    )
    return overlaid(estimate, measured.exact)


def overlaid(estimate: InfluenceMatrix, exact: Probes) -> InfluenceMatrix:
    """Estimates of (n, n_target), with the exact values of some targets in their place."""
    place = np.full(estimate.shape[1], -1)
    place[exact.columns] = np.arange(len(exact.columns))

    def function(rows: Any, columns: Any) -> np.ndarray:
        block = estimate.block(rows, columns).copy()  # of a stored matrix it is a view
        measured = place[columns]
        block[:, measured >= 0] = exact.influence[rows][:, measured[measured >= 0]]
        return block

    return InfluenceMatrix(estimate.shape, function)


def choose_from(
    run: Run, estimate: InfluenceMatrix, updated: InfluenceMatrix, measured: Measured, *, scale: float = 1.0
) -> tuple[Selection, Verification]:
    """The choice from a measured shortlist, and the record of the measurement.

    Args:
        run: the run.
        estimate: influence of all pool samples as estimated before, (n_pool, n_target).
        updated: influence of the shortlist given the measurement, (k, n_target).
        measured: the shortlist.
        scale: of the estimates to what is measured.
    """
    rows, exact = measured
    chosen = pick(run, updated, rows=rows, certify=True)
    before = InfluenceMatrix.from_array(np.float32(scale) * estimate.block(rows, exact.columns))
    plain = pick(run, InfluenceMatrix(updated.shape, lambda i, j: estimate.block(rows[i], j)), rows=rows)
    matrix = InfluenceMatrix.from_array(exact.influence)
    own, other = (np.searchsorted(rows, selection.indices) for selection in (chosen, plain))
    pairs = _pairs(np.arange(len(rows)), exact)
    guess = before.block(slice(None), slice(None)).ravel()
    shown = np.linspace(0, len(pairs) - 1, min(len(pairs), _SCATTER)).astype(int)
    facts = Verification(
        samples=len(rows),
        targets=len(exact.columns),
        pairs=len(pairs),
        value={
            "exact": best_influence(matrix, own),
            "estimated": best_influence(before, own),
            "exact_of_the_choice_by_estimates": best_influence(matrix, other),
        },
        mean_influence={
            "exact": float(exact.influence[own].mean(dtype=np.float64)),
            "estimated": float(before.rows(own).mean(dtype=np.float64)),
            "exact_of_the_choice_by_estimates": float(exact.influence[other].mean(dtype=np.float64)),
        },
        measures=measures(pairs, guess, scale=float(np.ptp(exact.influence.astype(np.float64))) or 1.0),
        scatter={
            "exact": [float(v) for v in pairs.influence[shown]],
            "predicted": [float(v) for v in guess[shown]],
        },
    )
    return chosen, facts


def best_influence(matrix: InfluenceMatrix, chosen: np.ndarray) -> float:
    """Facility location's value per target: the mean of the best chosen sample's influence, at least 0."""
    return float(np.maximum(matrix.rows(chosen).max(axis=0), 0).mean(dtype=np.float64))


def _pairs(rows: np.ndarray, exact: Probes) -> LabelledPairs:
    i, j = np.repeat(rows, len(exact.columns)), np.tile(exact.columns, len(rows))
    return LabelledPairs(i.astype(np.int32), j.astype(np.int32), exact.influence.ravel())


def cost(run: Run) -> PlannedCost:
    """Planned cost of the shortlist; under a token budget the number of samples is not known."""
    times = run.config.verify
    if times is None:
        return PlannedCost("verify")
    if run.budget.max_tokens is not None:
        return PlannedCost("verify", at_least=True)
    rows, columns = shortlist_size(run)
    if run.verifier is None:
        return later_cost(run, "verify", rows, columns)
    own = _verifying(run)
    some, targets = (
        side.rows.select(range(min(n, len(side.rows)))) for side, n in ((run.pool, rows), (run.target, columns))
    )
    taken, planned = own.function.footprint(some, targets, rows, columns), later_cost(own, "verify", rows, columns)
    return dataclasses.replace(
        planned, memory=taken.memory, disk=planned.disk + taken.disk, checkpoints=taken.checkpoints
    )


def shortlist_size(run: Run) -> tuple[int, int]:
    """How many samples a shortlist has under a budget in samples, and on how many targets it is measured."""
    rows = min(run.budget.count(run.size("pool"), run.config.verify or 1), run.size("pool"))
    return rows, min(run.size("target"), _columns(run))


def described(run: Run) -> str:
    """What measures the shortlist of gradient-sketch in words; empty where labels or nothing is measured."""
    if run.verifier is None:
        return ""
    if run.budget.max_tokens is not None:
        return f"; {run.verifier.name} measures a shortlist of {run.config.verify:g} budgets"
    rows, columns = shortlist_size(run)
    return f"; {run.verifier.name} measures a shortlist of {counted(rows, 'sample')} on {counted(columns, 'target')}"
