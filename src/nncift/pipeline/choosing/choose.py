"""Estimating every pair, and choosing within the budget from estimated or exact influence."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.estimator.towers import RANK
from nncift.matrix.matrix import InfluenceMatrix
from nncift.matrix.parts import of_targets
from nncift.matrix.products import product_matrix
from nncift.pipeline.choosing import forms
from nncift.pipeline.choosing.quotas import limits_of, with_groups
from nncift.pipeline.earlier_runs.growing import prefix_of, samples_budgeted
from nncift.run.folder.costs import PlannedCost
from nncift.run.storage.files import read_array, write_array
from nncift.run.storage.vectors import read_vectors
from nncift.selection.certificate import pairs_for_bound
from nncift.selection.maximizers.table import maximize, planned_passes
from nncift.selection.objectives.table import (
    COMPARES_FEATURES,
    READS_MEANS,
    Objective,
    ObjectiveOptions,
    make_objective,
)
from nncift.selection.selection import Selection
from nncift.selection.served import targets_served

if TYPE_CHECKING:
    from nncift.estimator.network import InfluenceNetwork
    from nncift.labels.pairs import Probes
    from nncift.pipeline.context import Run

_NONE = np.zeros(0, np.int64)
_TRIAL_SAMPLES, _PAPER_UNITS = 2048, 100
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
            return Selection.load(run.folder.path, pool=run.whole_pool.rows)
        prefix = prefix_of(run, lambda: objective_of(run, matrix, run.budget.expected(len(run.pool))))
        selection = with_groups(run, pick(run, matrix, prefix=prefix, certify=run.config.verify is None))
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
    known: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
    prefix: np.ndarray = _NONE,
    certify: bool = False,
) -> Selection:
    """A choice within the budget, without the pool's rows in it.

    Args:
        run: the run.
        matrix: influence on the targets, of all pool samples or of `rows`.
        rows: pool rows that the matrix has, (k,) int64; all unless given.
        times: a multiple of the budget, rounded up to whole samples.
        covered: how well each target is covered by others, (n_target,) float32.
        known: largest influence of the known samples on each target, (n_target,) float32; as the run has it unless
            given.
        candidates: rows of the matrix that a shortlist may have besides; all may be chosen unless given.
        prefix: rows that come first; with `keep_selection` beside the budget.
        certify: with a certificate.
    """
    budget, tokens, shortlisting = run.budget, run.tokens, candidates is not None
    costs = tokens if tokens is None or rows is None else tokens[rows]
    if rows is None and run.kept is not None:
        candidates = run.kept if candidates is None else np.intersect1d(candidates, run.kept)
    kept = prefix if run.config.keep_selection else _NONE
    if candidates is not None and len(kept):
        candidates = np.union1d(candidates, kept)  # even a near-duplicate that was selected before
    among = matrix.shape[0] if candidates is None else len(candidates)
    room = None if budget.max_tokens is None else budget.max_tokens * times
    if costs is not None and room is not None:
        room += float(costs[kept].sum())
    part = samples_budgeted(run)
    expected = len(kept) + budget.expected(part, tokens)
    if costs is not None and room is not None and candidates is not None and shortlisting:
        room = max(room, float(costs[candidates].min()))  # at least one, as with a budget in samples
    for held in forms.held(run, matrix, whole=rows is None):

        def make(targets: np.ndarray | None = None, held: InfluenceMatrix = held) -> Objective:
            given = {"covered": covered, "known": known, "costs": costs}
            return objective_of(run, held, expected, rows=rows, targets=targets, **given)

        selection = maximize(
            make,
            min(len(kept) + budget.count(part, times), among) if tokens is None else None,
            maximizer=run.config.maximizer,
            own_targets=run.own_target and rows is None,
            seed=run.config.seed,
            candidates=candidates,
            limits=limits_of(run, rows=rows, times=times),
            prefix=prefix,
            costs=costs,
            max_cost=room,
            certify=certify,
            progress=run.progress,
        )
        sparseness = forms.sparseness_of(make, held, selection)
        selection = replace(selection, sparseness=sparseness)
        if forms.is_enough(sparseness):
            break
    return selection if rows is None else replace(selection, indices=rows[selection.indices])


def objective_of(
    run: Run,
    matrix: InfluenceMatrix,
    expected: float,
    *,
    covered: np.ndarray | None = None,
    known: np.ndarray | None = None,
    costs: np.ndarray | None = None,
    rows: np.ndarray | None = None,
    targets: np.ndarray | None = None,
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
        rows: pool rows that the matrix has, (k,) int64; all unless given.
        targets: the objective of these targets alone, int64; all unless given.
    """
    if known is None and run.known is not None:
        known = read_array(run.folder.known)
    if targets is not None:
        matrix = of_targets(matrix, targets)
        known, covered = (each if each is None else each[targets] for each in (known, covered))
    config, has_target = run.config, not run.own_target
    options = ObjectiveOptions(
        has_target=has_target,
        eta=config.eta,
        nu=config.nu,
        known=known,
        covered=covered,
        expected=expected,
        costs=costs,
        features=_vectors(run, rows) if run.objective in COMPARES_FEATURES else None,
        redundancy=config.redundancy,
    )
    return make_objective(run.objective, matrix, options)


def _vectors(run: Run, rows: np.ndarray | None) -> Any:
    """What samples are compared by, (n, d): the vectors of an exact influence, else the sentence or all features."""
    if run.is_exact and run.folder.vectors.is_finished("pool"):
        vectors = read_vectors(run.folder.vectors, "pool")
    else:
        vectors = run.pool.features
        if vectors is not None:
            vectors = vectors.blocks.get("sentence", vectors)
    return vectors if rows is None or vectors is None else vectors[rows]


def cost(run: Run) -> PlannedCost:
    """Planned cost of the choice and of its certificate at most, in the form that the pairs are held in.

    A choice from a shortlist has a certificate that needs the shortlist alone.
    """
    rows, targets = run.size("pool") + run.size("known"), run.size("target")
    bounded = run.config.verify is None and run.objective not in READS_MEANS
    expected = run.budget.expected(run.size("pool"), run.tokens)
    certified = pairs_for_bound(run.size("pool"), targets, expected) / (rows * targets) if bounded else 0
    seconds, memory = forms.planned(run, _trial_matrix(run), _passes(run), certified)
    if not run.is_exact:
        memory += (rows + targets) * (_TOWER_BYTES + 24)
    return PlannedCost("select", seconds=seconds, memory=memory)


def _passes(run: Run) -> float:
    """Passes over all pairs that the choice takes where they are streamed, without its certificate."""
    if run.objective in READS_MEANS:
        return 1.0
    n, tokens = run.size("pool"), run.tokens
    passes = planned_passes(run.config.maximizer, n, run.budget.expected(n, tokens), own_targets=run.own_target)
    return passes if tokens is None else 2 * passes  # by gain per token and by gain


def _trial_matrix(run: Run) -> InfluenceMatrix:
    """A small matrix of the kind that the run's will be, computed on access."""
    if run.is_exact:
        return product_matrix(*run.trial_vectors, run.function.from_products, held=0)
    side = np.random.default_rng(0).standard_normal((_TRIAL_SAMPLES, RANK), dtype=np.float32)
    if run.recipe == "paper":
        side = side[:, :_PAPER_UNITS]
        return InfluenceMatrix.from_factors(side, side, output_weight=side[0], output_bias=0.0)
    return InfluenceMatrix.from_towers(side, side, pool_bias=side[:, 0], target_bias=side[:, 1])
