"""Labelling: exact influence of a few pairs, to fit the network; and probes, exact influence on a few targets.

Which pairs are labelled is planned before the first is measured (`labels.design`), or grows in rounds (`active`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from nncift.config import DEFAULT_INFLUENCE
from nncift.errors import DataError, RunError
from nncift.labels.design import HeldOut, PairPlan, check_pool_size, costs_samples, plan_labels
from nncift.labels.pairs import LabelledPairs, Probes
from nncift.labels.work import grid_work, planned_work
from nncift.pipeline.earlier_runs.growing import labels_held
from nncift.pipeline.learning.active import FIRST, HELD_OUT, TARGETS_PER_ROW, ActiveLabelling
from nncift.pipeline.learning.measure import measure
from nncift.run.folder.costs import PlannedCost, Work
from nncift.run.folder.records import LabelHistory, counted
from nncift.run.options.amounts import Amount, parse_labels
from nncift.run.storage.checksums import checksums_of
from nncift.run.storage.files import read_json, write_json

if TYPE_CHECKING:
    from nncift.estimator.network import InfluenceNetwork
    from nncift.pipeline.context import Run

_MEASURED = 512  # samples of which a dry run finds the longest
_PAIR_BYTES = 6  # of a pair on disk


def label(run: Run) -> LabelledPairs | None:
    """The exact values that a network is fitted to; None where the run takes a fitted network as it is."""
    folder = run.folder.labels
    if run.config.labels_from is not None:
        return LabelledPairs.load(folder.labels)
    if not run.config.learns:
        return None
    with run.costs.stage("labels"):
        if not folder.plan.exists() and not (run.earlier and run.earlier.take_labels()):
            _write_plan(run)
        planned = read_json(folder.plan)
        among = bool(planned.get("among_targets"))  # not of earlier versions
        if not run.config.in_rounds:
            measure(run, PairPlan.from_dict(planned), folder, "labels", among_targets=among)
        elif not (folder.labels.is_file() and folder.history.is_file()):
            active = ActiveLabelling.of(run)
            pairs = active.label(
                run.pool.features,
                run.target.features,
                folder.history,
                lambda plan, name: measure(
                    run, plan, folder.part(name), "labels", among_targets=among and name == "held-out"
                ),
                lambda: among_targets(run),
            )
            pairs.save(folder.labels)
        labels = LabelledPairs.load(folder.labels)
        lost = not folder.work.exists() and bool(checksums_of(folder.work))
        if lost or not (run.folder.is_selected or folder.work.exists()):
            _work_of_all(run, labels).save(folder.work)
        return labels


def among_targets(run: Run) -> LabelledPairs | None:
    """Exact influence of the labelled targets on each other, where the run measured it."""
    path = run.folder.labels.among_targets
    return LabelledPairs.load(path) if path.exists() else None


def _work_of_all(run: Run, labels: LabelledPairs) -> Work:
    """What exact influence of all pairs would take."""
    pool, target = run.pool.rows, run.target.rows
    try:
        return grid_work(run.function, pool, target)
    except DataError:  # of a sample that was not labelled
        rows = pool.select(np.unique(labels.pool_index))
        targets = target.select(np.unique(labels.target_index))
        return grid_work(run.function, rows, targets, len(pool), len(target))


def _write_plan(run: Run) -> None:
    traits = run.function.traits
    both_sides = traits.both_sides and not (traits.pointwise or traits.per_pair or traits.relative)
    facts: dict[str, Any] = {"pointwise": traits.pointwise, "rate": None, "among_targets": both_sides}
    if run.config.in_rounds:
        plan = PairPlan(np.zeros(0, np.int64), np.zeros(0, np.int64))  # the history has the rows
    else:
        amount = parse_labels(run.labels)
        if amount.kind == "seconds":
            if run.folder.labels.labels.exists():  # of the pairs that were affordable then
                problem = f"{run.folder.labels.plan} was removed, and the time for labels gives other pairs now"
                raise RunError(problem, f"run nncift repair {run.folder.path}, then the same command again")
            facts["rate"] = dataclasses.asdict(run.rate)
        plan = _planned(run, amount)
    write_json(run.folder.labels.plan, plan.to_dict() | facts)


def _planned(run: Run, amount: Amount) -> PairPlan:
    rate = run.rate if amount.kind == "seconds" else None
    return plan_labels(run.function, amount, run.size("pool"), run.n_target, rate=rate, seed=run.config.seed)


def check_labels(run: Run) -> None:
    """Refuse a pool or a number of labels that is too small to fit a network.

    Raises:
        ConfigError: as `check_pool_size` and `plan_labels` do.
    """
    if run.config.learns:
        check_pool_size(len(run.pool), run.n_target, pointwise=run.function.traits.pointwise)
    if run.config.learns and not run.config.in_rounds:
        amount = parse_labels(run.labels)
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
    if run.is_exact or not run.config.learns or labels_held(run):
        return PlannedCost("labels")
    plan, pool, target = planned_pairs(run), run.pool.rows, run.target.rows
    work = planned_work(run.function, pool, target, plan, n_pool=run.size("pool"))
    some = pool.select(np.unique(plan.rows % len(pool))[:_MEASURED])
    targets = target.select(np.unique(plan.targets % len(target))[:_MEASURED])
    taken = run.function.footprint(some, targets, len(plan.rows), len(plan.targets))
    return PlannedCost(
        "labels",
        run.rates.seconds(work),
        len(plan),
        work.all_tokens,
        at_least=run.config.in_rounds,
        memory=taken.memory,
        disk=taken.disk + _PAIR_BYTES * len(plan),
        checkpoints=taken.checkpoints,
    )


def planned_pairs(run: Run) -> PairPlan:
    """The pairs that a run will label; with active learning, the first round and the held-out rows."""
    return _planned(run, _first_round(run) if run.config.in_rounds else parse_labels(run.labels))


def describe_labels(run: Run) -> str:
    """The pairs that a run will label in words, or why it needs none; empty where others give the values."""
    if run.is_exact:
        asked, name = run.config.influence, run.function.name
        stands_in = run.config.unlabelled and name == DEFAULT_INFLUENCE and asked not in (None, name)
        return f"none; {name} is exact for every pair" + (f" and takes the place of {asked}" if stands_in else "")
    if run.config.labels_from is not None or not run.config.learns:
        return ""
    plan = planned_pairs(run)
    rows = ("at least " if run.config.in_rounds else "") + counted(len(plan.rows), "pool sample")
    if run.function.traits.pointwise:
        return rows
    if plan.columns.ndim == 2:
        return f"{rows}, each on {plan.columns.shape[1]:,} of {counted(len(plan.targets), 'target')}"
    total = counted(len(plan.rows) + len(plan.targets), "sample")
    cost = f"; the cost is that of {total}, not of the pairs" if costs_samples(run.function) else ""
    return f"{rows} x {counted(len(plan.targets), 'target')}{cost}"


def _first_round(run: Run) -> Amount:
    columns = 1 if run.function.traits.pointwise else min(TARGETS_PER_ROW, len(run.target))
    return Amount("count", (HELD_OUT + FIRST) * columns)


def probe(run: Run, network: InfluenceNetwork) -> Probes | None:
    """Exact influence of every pool sample on the targets that most reduce the posterior variance, if asked for."""
    count = run.config.probes
    if count is None:
        return None
    with run.costs.stage("probes"):
        folder = run.folder.probes
        if run.earlier is not None and not folder.plan.exists():
            run.earlier.take_probes()
        if not folder.plan.exists():
            chosen = network.choose_probes(run.target.features, count)
            write_json(folder.plan, {"columns": np.sort(chosen).tolist()})
        columns = np.array(read_json(folder.plan)["columns"], dtype=np.int64)
        pairs = measure(run, PairPlan(np.arange(len(run.pool)), columns), folder, "probes")
        return Probes.of_grid(pairs, len(run.pool), columns, own_target=run.own_target)


def probe_cost(run: Run) -> PlannedCost:
    """Planned cost of the probes."""
    if run.config.probes is None:
        return PlannedCost("probes")
    columns = min(run.config.probes, run.size("target"))
    kept = run.earlier.kept if run.earlier is not None and labels_held(run) else 0
    return later_cost(run, "probes", run.size("pool") - kept, columns)


def later_cost(run: Run, stage: str, rows: int, columns: int) -> PlannedCost:
    """Planned cost of a grid of rows x columns that is measured after the labels, with whose warm-up it is."""
    targets = run.target.rows.select(range(min(columns, len(run.target))))
    work = grid_work(run.function, run.pool.rows, targets, rows, columns)
    labelled = run.config.learns and not run.config.unlabelled
    seconds = run.rates.seconds(work) - (run.rates.warm_up if labelled else 0.0)
    tokens = work.tokens if labelled else work.all_tokens
    return PlannedCost(stage, seconds, work.pairs, tokens, disk=_PAIR_BYTES * work.pairs)
