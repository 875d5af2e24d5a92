"""Estimating every pair, and choosing within the budget from estimated or exact influence."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from nncift.estimator.towers import RANK
from nncift.matrix.matrix import InfluenceMatrix
from nncift.pipeline.exact import selection_cost
from nncift.pipeline.quotas import limits_of, with_groups
from nncift.run.costs import PlannedCost, seconds_of
from nncift.run.files import read_array, write_array
from nncift.selection.certificate import pairs_for_bound
from nncift.selection.greedy import lazy_greedy
from nncift.selection.objectives import Objective, ObjectiveOptions, make_objective
from nncift.selection.selection import Selection
from nncift.selection.served import targets_served

if TYPE_CHECKING:
    from nncift.estimator.network import InfluenceNetwork
    from nncift.labels.pairs import Probes
    from nncift.pipeline.context import Run

_TRIAL_SAMPLES, _TRIAL_WIDTH = 2048, 100
_TOWER_BYTES = 3 * 4 * (RANK + 1)  # of a sample on a side: float32, and again while it is put together


def estimate(run: Run, network: InfluenceNetwork, probes: Probes | None) -> InfluenceMatrix:
    """Influence of every pool sample on every target; its row means and the known samples' coverage are kept."""
    with run.costs.stage("estimate"):
        matrix = network.estimate(run.pool.features, run.target.features, probes=probes)
        if not run.folder.influence.exists():
            write_array(run.folder.influence, matrix.row_means().astype(np.float32))
        if run.known is not None and not run.folder.known.exists():
            known = network.estimate(run.known.features, run.target.features)
            write_array(run.folder.known, known.column_max().astype(np.float32))
        return matrix


def choose(run: Run, matrix: InfluenceMatrix) -> Selection:
    """The subset by the influence of every pair; the stored one of a run that has chosen."""
    with run.costs.stage("select"):
        if run.is_chosen:
            return Selection.load(run.folder.path, pool=run.pool.rows)
        selection = with_groups(run, pick(run, matrix, certify=run.config.verify is None))
        selection = selection.with_pool(run.pool.rows, read_array(run.folder.influence))
        return with_served(run, matrix, selection) if run.config.verify is None else selection


def with_served(
    run: Run, matrix: InfluenceMatrix, selection: Selection, *, rows: np.ndarray | None = None
) -> Selection:
    """The selection with the targets that it serves, which one score for all targets does not tell apart.

    Args:
        run: the run.
        matrix: influence on the targets, of all pool samples or of `rows`.
        selection: the subset.
        rows: pool rows that the matrix has, (k,) int64 ascending; all unless given.
    """
    if run.is_pointwise:
        return selection
    chosen = selection.indices
    places = chosen if rows is None else np.searchsorted(rows, chosen)
    return replace(selection, served=targets_served(matrix, places, own=chosen if run.own_target else None))


def pick(
    run: Run,
    matrix: InfluenceMatrix,
    *,
    rows: np.ndarray | None = None,
    times: float = 1.0,
    covered: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
    certify: bool = False,
) -> Selection:
    """A choice within the budget, without the pool's rows in it.

    Args:
        run: the run.
        matrix: influence on the targets, of all pool samples or of `rows`.
        rows: pool rows that the matrix has, (k,) int64; all unless given.
        times: a multiple of the budget, rounded up to whole samples.
        covered: how well each target is covered by others, (n_target,) float32.
        candidates: rows of the matrix that may be chosen; all unless given.
        certify: with a certificate.
    """
    budget, tokens = run.budget, run.tokens
    costs = tokens if tokens is None or rows is None else tokens[rows]
    among = matrix.shape[0] if candidates is None else len(candidates)
    room = None if budget.max_tokens is None else budget.max_tokens * times
    if costs is not None and room is not None and candidates is not None:
        room = max(room, float(costs[candidates].min()))  # at least one, as with a budget in samples
    selection = lazy_greedy(
        objective_of(run, matrix, budget.expected(len(run.pool), tokens), covered=covered, costs=costs),
        min(budget.count(len(run.pool), times), among) if tokens is None else None,
        candidates=candidates,
        limits=limits_of(run, rows=rows, times=times),
        costs=costs,
        max_cost=room,
        certify=certify,
        progress=run.progress,
    )
    return selection if rows is None else replace(selection, indices=rows[selection.indices])


def objective_of(
    run: Run,
    matrix: InfluenceMatrix,
    expected: float,
    *,
    covered: np.ndarray | None = None,
    known: np.ndarray | None = None,
    costs: np.ndarray | None = None,
) -> Objective:
    """The run's objective of a matrix.

    Args:
        run: the run.
        matrix: influence on the targets.
        expected: about how many samples will be selected.
        covered: how well each target is covered by others, (n_target,) float32.
        known: largest influence of the known samples on each target, (n_target,) float32; as the run has it unless
            given.
        costs: tokens of each sample of the matrix under a token budget, (n,).
    """
    if known is None and run.known is not None:
        known = read_array(run.folder.known)
    config, has_target = run.config, not run.own_target
    options = ObjectiveOptions(
        has_target=has_target,
        eta=config.eta,
        nu=config.nu,
        known=known,
        covered=covered,
        expected=expected,
        costs=costs,
    )
    return make_objective(run.objective, matrix, options)


def cost(run: Run) -> PlannedCost:
    """Planned cost of scoring every pair at this machine's rate: once for the choice, and for its certificate at most.

    A choice from a shortlist has a certificate that needs the shortlist alone.
    """
    rows, targets = run.size("pool") + run.size("known"), run.size("target")
    passes = 1 + (pairs_for_bound(run.size("pool"), targets) / (rows * targets) if run.config.verify is None else 0)
    if run.is_exact:
        once = selection_cost(run)
        return replace(once, seconds=passes * once.seconds)
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((_TRIAL_SAMPLES, _TRIAL_WIDTH), dtype=np.float32)
    weight = rng.standard_normal(_TRIAL_WIDTH, dtype=np.float32)
    matrix = InfluenceMatrix.from_factors(factors, factors, output_weight=weight, output_bias=0.0)
    matrix.row_means()  # compiles
    each = seconds_of(matrix.row_means) / _TRIAL_SAMPLES**2
    memory = (rows + targets) * (_TOWER_BYTES + 24)
    return PlannedCost("select", seconds=passes * rows * targets * each, memory=memory)
