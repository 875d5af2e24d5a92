"""Labelling: exact influence of a few pairs, to fit the network; and probes, exact influence on a few targets.

Which pairs are labelled is planned before the first is measured (`labels.design`), or grows in rounds (`active`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import DEFAULT_LABELS
from nncift.labels.design import HeldOut, PairPlan, check_pool_size, plan_labels
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.pipeline.active import FIRST, HELD_OUT, TARGETS_PER_ROW, ActiveLabelling
from nncift.pipeline.measure import measure
from nncift.run.amounts import Amount, parse_labels
from nncift.run.costs import PlannedCost
from nncift.run.files import read_json, write_json
from nncift.run.records import LabelHistory

if TYPE_CHECKING:
    from nncift.estimator.network import InfluenceNetwork
    from nncift.pipeline.context import Run

_TRIAL_ROWS = 128


def label(run: Run) -> LabelledPairs | None:
    """The exact values that a network is fitted to; None where the run takes a fitted network as it is."""
    folder = run.folder.labels
    if run.config.labels_from is not None:
        return LabelledPairs.load(folder.labels)
    if not run.config.learns:
        return None
    with run.costs.stage("labels"):
        if not folder.plan.exists():
            _write_plan(run)
        if not run.config.in_rounds:
            return measure(run, PairPlan.from_dict(read_json(folder.plan)), folder, "labels")
        if not folder.labels.exists():
            active = ActiveLabelling.of(run)
            pairs = active.label(
                run.pool.features,
                run.target.features,
                folder.history,
                lambda plan, name: measure(run, plan, folder.part(name), "labels"),
            )
            pairs.save(folder.labels)
        return LabelledPairs.load(folder.labels)


def _write_plan(run: Run) -> None:
    facts: dict[str, Any] = {"pointwise": run.function.traits.pointwise, "rate": None}
    if run.config.in_rounds:
        plan = PairPlan(np.zeros(0, np.int64), np.zeros(0, np.int64))  # the history has the rows
    else:
        amount = parse_labels(run.config.labels or DEFAULT_LABELS)
        if amount.kind == "seconds":
            facts["rate"] = dataclasses.asdict(run.rate)
        plan = _planned(run, amount)
    write_json(run.folder.labels.plan, plan.to_dict() | facts)


def _planned(run: Run, amount: Amount) -> PairPlan:
    rate = run.rate if amount.kind == "seconds" else None
    return plan_labels(run.function, amount, len(run.pool), run.n_target, rate=rate, seed=run.config.seed)


def check_labels(run: Run) -> None:
    """Refuse a pool or a number of labels that is too small to fit a network.

    Raises:
        ConfigError: as `check_pool_size` and `plan_labels` do.
    """
    if run.config.learns:
        check_pool_size(len(run.pool), run.n_target, pointwise=run.function.traits.pointwise)
    if run.config.learns and not run.config.in_rounds:
        amount = parse_labels(run.config.labels or DEFAULT_LABELS)
        if amount.kind != "seconds":
            _planned(run, amount)


def planned_held_out(run: Run) -> HeldOut | None:
    """The rows and targets that are held out by plan; None where they are drawn afterwards."""
    folder = run.folder.labels
    if (history := LabelHistory.find(folder.history)) is not None:
        rows, targets = history.held_out
        return np.array(rows, dtype=np.int64), np.array(targets, dtype=np.int64)
    return PairPlan.from_dict(read_json(folder.plan)).held_out if folder.plan.exists() else None


def cost(run: Run) -> PlannedCost:
    """Planned cost of the labels; of active learning, the first round and the held-out rows."""
    if run.config.labels_from is not None:
        return PlannedCost("labels", pairs=len(LabelledPairs.load(run.folder.labels.labels)))
    if not run.config.learns:
        return PlannedCost("labels")
    amount = parse_labels(run.config.labels or DEFAULT_LABELS) if not run.config.in_rounds else _first_round(run)
    plan = _planned(run, amount)
    seconds = run.rate.seconds(len(plan.rows), len(plan.targets), len(plan))
    return PlannedCost("labels", seconds, len(plan), _tokens(run, plan), at_least=run.config.in_rounds)


def _first_round(run: Run) -> Amount:
    columns = 1 if run.function.traits.pointwise else min(TARGETS_PER_ROW, len(run.target))
    return Amount("count", (HELD_OUT + FIRST) * columns)


def _tokens(run: Run, plan: PairPlan) -> int | None:
    """Tokens that labelling reads; of many rows with targets of their own, extrapolated from some of them."""
    function, pool, targets = run.function, run.pool.rows, run.target.rows
    if plan.columns.ndim == 1 or function.traits.pointwise:
        return function.tokens(pool.select(plan.rows), targets.select(plan.targets), pool)
    none = pool.select([])
    once = function.tokens(none, targets.select(plan.targets), pool)
    if once is None:
        return None
    some = range(0, len(plan.rows), max(len(plan.rows) // _TRIAL_ROWS, 1))
    read = 0
    for i in some:  # what is read once for a target is not read again for each row
        own = targets.select(plan.columns[i])
        read += (function.tokens(pool.select(plan.rows[[i]]), own, pool) or 0) - (function.tokens(none, own, pool) or 0)
    return once + round(read * len(plan.rows) / len(some))


def probe(run: Run, network: InfluenceNetwork) -> Probes | None:
    """Exact influence of every pool sample on the targets that most reduce the posterior variance, if asked for."""
    count = run.config.probes
    if count is None:
        return None
    with run.costs.stage("probes"):
        folder = run.folder.probes
        if not folder.plan.exists():
            chosen = network.choose_probes(run.target.features, count)
            write_json(folder.plan, {"columns": np.sort(chosen).tolist()})
        columns = np.array(read_json(folder.plan)["columns"], dtype=np.int64)
        pairs = measure(run, PairPlan(np.arange(len(run.pool)), columns), folder, "probes")
        influence = pairs.influence.reshape(len(run.pool), len(columns)).copy()
        if run.own_target:  # of a sample on itself
            influence[columns, np.arange(len(columns))] = np.nan
        return Probes(columns, influence)


def probe_cost(run: Run) -> PlannedCost:
    """Planned cost of the probes."""
    if run.config.probes is None:
        return PlannedCost("probes")
    rows, columns = len(run.pool), min(run.config.probes, len(run.target))
    return PlannedCost("probes", run.rate.seconds(rows, columns), rows * columns)
