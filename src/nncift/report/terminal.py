"""A finished run as a short text for the terminal, and the sentences that it shares with the report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nncift.data.facts import PoolFacts
from nncift.errors import printable
from nncift.models.spec import DEFAULT_MODEL
from nncift.run.folder.costs import Costs, duration
from nncift.run.folder.folder import RunFolder
from nncift.run.folder.records import BETTER, DRAWN, Fidelity, LabelHistory, Summary, Verification, counted, percent
from nncift.run.storage.files import read_json
from nncift.selection.quotas import NO_VALUE

_GROUPS = 20  # values of columns with quotas or caps
_TARGET_FIDELITY = 0.5  # of runs that did not record theirs
_METRICS = {
    "subset_sum_correlation_within_target": "subset sums",
    "recall_of_top_tenth_within_target": "top tenth recalled",
    "spearman_within_target": "ranks",
    "r2": "R2",
}
_METRICS_POINTWISE = {
    "subset_sum_correlation": "subset sums",
    "recall_of_top_tenth": "top tenth recalled",
    "spearman": "ranks",
    "r2": "R2",
}


def summary_text(folder: str | os.PathLike[str]) -> str:
    """The run as a short text for the terminal, with everything from the data escaped."""
    run = RunFolder(folder)
    summary = Summary.load(run.summary)
    lines = [*_cost_lines(run, summary), *_estimation_lines(run, summary), "", *_choice_lines(run, summary)]
    lines += [f"Warning: {warning}" for warning in summary.warnings]
    lines += [f"Subset: {run.subset}", f"Report: {run.report}"]
    return "\n".join(printable(line) for line in lines)


def _cost_lines(run: RunFolder, summary: Summary) -> list[str]:
    lines = [f"{'stage':<10} {'seconds':>9} {'LLM tokens':>12}"]
    for name, cost in Costs(run.costs).stages.items():
        lines.append(f"{name:<10} {cost.seconds:>9.1f} {cost.forward_tokens + cost.backward_tokens:>12,}")
    if (exact := summary.exact_all_pairs) is not None:
        tokens = f" and {exact['forward_tokens']:,} LLM tokens" if exact["forward_tokens"] else ""
        every = counted(summary.all_pairs, "sample" if summary.scored else "pair")
        lines.append(
            f"{summary.labelled_pairs:,} of {every} labelled; all of them would take"
            f" about {duration(exact['seconds'])}{tokens} (extrapolated)."
        )
    return lines


def _estimation_lines(run: RunFolder, summary: Summary) -> list[str]:
    lines = []
    if (history := LabelHistory.find(run.labels.history)) is not None:
        lines.append(_history_line(history, target_fidelity(run, history)))
    if (sides := summary.both_sides) is not None:
        lines.append(f"Labels on both sides are {'used' if sides['used'] else 'not used'}: {sides['why']}.")
    if (fidelity := Fidelity.find(run.fidelity)) is not None:
        lines += ["", *_fidelity_lines(fidelity)]
    elif summary.exact:
        lines += ["", exactness(summary)]
    elif (caveat := unmeasured(summary, read_json(run.config))) is not None:
        lines += ["", caveat]
    return lines


def _choice_lines(run: RunFolder, summary: Summary) -> list[str]:
    lines = []
    for side in ("pool", "target", "known"):
        if (facts := getattr(summary, side)) is not None:
            lines += _data_lines(side, facts)
    rows = summary.pool["rows"]
    if summary.first_cut is not None:
        lines.append(f"First cut: {summary.first_cut['text']}; all are listed in {run.first_cut.table}.")
    if (near := summary.near_duplicates) is not None:
        where = f"; listed in {run.samples('pool').near_duplicates}" if near["rows"] else ""
        lines.append(f"{near_duplicates_text(near)}{where}.")
    lines.append(f"Selected: {summary.selected:,} of {counted(rows, 'sample')} ({percent(summary.selected / rows)}).")
    for name, (chosen, there) in (summary.sources or {}).items():
        lines.append(f"  {chosen:,} of {there:,} from {name}")
    lines += group_lines(summary.groups or ())
    if summary.known is not None:
        share, objective = known_share(summary), summary.objective.replace("-", " ")
        covered = "" if share is None else f"; of the value they provide {percent(share)}, the subset the rest"
        lines.append(f"Objective: {objective} over {counted(summary.known['rows'], 'known sample')}{covered}.")
    if (optimal := optimality(summary)) is not None:
        lines.append(f"Optimality: value {summary.value:.4g}, {optimal}.")
    if summary.sparseness is not None:
        lines.append(f"Sparse: {summary.sparseness['text']}.")
    if summary.averaged is not None:
        lines.append(f"nncift_influence: {averaged_text(summary.averaged)}.")
    if summary.arrangement:
        lines.append(f"Arranged: {summary.arrangement}.")
    if (verification := Verification.find(run.verification)) is not None:
        lines.append(_verification_line(verification, summary))
    if run.taken.exists():
        taken = read_json(run.taken)
        lines.append(f"From {taken['run']}: {'; '.join(taken['notes'].values())}.")
    return lines


def averaged_text(averaged: Sequence[int]) -> str:
    """What mean influence is over, where that is not all targets."""
    return f"mean over a random sample of {averaged[0]:,} of the {averaged[1]:,} targets"


def group_lines(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is selected of each value with a quota or a cap; of many values the first."""
    lines = []
    for group in groups[:_GROUPS]:
        tokens = "" if group["tokens"] is None else f", {counted(group['tokens'], 'token')}"
        limit = limit_text(group)
        lines.append(
            f"  {group['column']} {value_name(group)}: {group['chosen']:,} of {group['pool']:,}{tokens}"
            f"{f' ({limit})' if limit else ''}"
        )
    if len(groups) > _GROUPS:
        lines.append(f"  and {counted(len(groups) - _GROUPS, 'other value')}: see the report")
    return lines


def value_name(group: Mapping[str, Any]) -> str:
    """The value of a group for people."""
    return NO_VALUE if group["value"] is None else str(group["value"])


def limit_text(group: Mapping[str, Any]) -> str:
    """The quota or cap of a group in words; empty without one."""
    least, most = group["least"], group["most"]
    if least == most:
        return f"quota {least:,}"
    parts = [f"at least {least:,}"] * bool(least) + ([] if most is None else [f"at most {most:,}"])
    return ", ".join(parts)


def target_fidelity(run: RunFolder, history: LabelHistory) -> float:
    """The correlation at which labelling was to stop; from the config where an earlier version recorded none."""
    return float(history.target_fidelity or read_json(run.config).get("fidelity") or _TARGET_FIDELITY)


def ending(history: LabelHistory, target: float) -> str | None:
    """Why labelling stopped."""
    return "target fidelity reached" if (history.rounds[-1]["reached"] or 0) >= target else history.ended


def known_share(summary: Summary) -> float | None:
    """Share of the value of known samples and subset that the former provide; None where it was not computed."""
    value = None if summary.known is None else summary.known.get("value")
    return value / (value + summary.value) if value else value


def optimality(summary: Summary) -> str | None:
    """The certificate: how close the objective's value is to the optimum at least; None where it was not computed.

    Rows that were drawn at random have none: their objective is of numbers that mean nothing.
    """
    found = summary.certificate
    if found is None or summary.exact in DRAWN:
        return None
    if found["bound"] is None:
        return f"unknown: {found['reason']}"
    given = "" if summary.exact else " for these estimates"
    near_duplicates = (summary.near_duplicates or {}).get("rows", 0)
    kept = summary.pool["rows"] if summary.first_cut is None else summary.first_cut["kept"]
    if found["among"] < kept - near_duplicates:
        given = f" among subsets of the {counted(found['among'], 'shortlisted sample')}"
    elif summary.first_cut is not None:
        given += f" among subsets of the {counted(kept, 'sample')} that the first cut kept"
    sure = "" if found.get("confidence", 1.0) == 1 else f", with probability {percent(found['confidence'])}"
    return f"{optimal_share(found)} of the optimal value{given} (upper bound {found['bound']:.4g}{sure})"


def optimal_share(certificate: Mapping[str, Any]) -> str:
    """The least share of the best possible value; that of the best value itself, up to rounding, is no least one.

    An earlier version kept a share below 0 of a value below 0.
    """
    if certificate["share"] <= 0:
        return "no proven share"
    shown = str(certificate["percent"])
    return shown if shown.startswith("100") else f"at least {shown}"


def near_duplicates_text(found: Mapping[str, Any]) -> str:
    """How many samples were left out of the choice as near-duplicates."""
    rows = counted(found["rows"], "near-duplicate")
    return (
        f"{rows} of a kept sample not to be chosen (cosine of the sentence embeddings at least {found['threshold']:g})"
    )


def exactness(summary: Summary) -> str:
    """That the influence of a run is not estimated, or by which function's exact values without labels."""
    if summary.exact in DRAWN:
        return f"Influence: none was computed; the rows were drawn at random ({summary.exact})."
    if summary.measured_by:
        return (
            f"Influence: shortlist by {summary.exact}, exact for every pair ({summary.all_pairs:,}); measured by"
            f" {summary.measured_by}, by whose exact values the subset is chosen from it."
        )
    if summary.in_place_of:
        return (
            f"Influence: {summary.exact}, exact for every pair ({summary.all_pairs:,}), in place of"
            f" {summary.in_place_of}, which labels 0 does not compute: how well it predicts that was not measured."
        )
    return (
        f"Influence: {summary.exact}, exact for every pair ({summary.all_pairs:,}): nothing was estimated, so there is"
        " no fidelity to measure."
    )


def unmeasured(summary: Summary, config: Mapping[str, Any]) -> str | None:
    """Why the fidelity of a run without held-out labels is unknown; None where it labelled some."""
    if summary.network is None:
        return None
    influence, features = (summary.network.get(part) or {} for part in ("influence", "features"))
    name = "comes with nncift" if config.get("network") == "pretrained" else f"is in {config.get('network')}"
    model = influence.get("model") or features.get("language_model")
    if model == "embedded":
        model = features.get("language_model") or DEFAULT_MODEL
    fitted = f", fitted to {influence.get('name', 'influence')}" + (f" of {model}" if model else "")
    return (
        f"Fidelity was not measured: the influence was estimated by the network that {name}{fitted}, without exact"
        " values on this data."
    )


def _data_lines(side: str, stored: Mapping[str, Any]) -> list[str]:
    """What was read of a side and what was left out, then remarks on it."""
    facts = PoolFacts.from_dict(stored)
    return [f"{side.capitalize()}: {facts}.", *(f"  {note}" for note in facts.notes)]


def _fidelity_lines(fidelity: Fidelity) -> list[str]:
    if fidelity.judged is None:
        return []  # a warning gives the reason
    quadrant = fidelity.quadrants[fidelity.judged]
    labels = _METRICS_POINTWISE if fidelity.is_pointwise else _METRICS
    metrics = measured_metrics(fidelity, labels)
    within = "" if fidelity.is_pointwise else ", correlations and recall within a target"
    lines = [f"fidelity on {fidelity.where}, {counted(quadrant['pairs'], 'pair')}{within}; [95 % interval]"]
    lines.append(f"{'':<22}" + "".join(f"{labels[metric]:>24}" for metric in metrics))
    for method, row in quadrant["methods"].items():
        spans = quadrant.get("intervals", {}).get(method, {})
        cells = (_cell(row[metric], spans.get(metric)) for metric in metrics)
        lines.append(f"  {method:<20}" + "".join(f"{cell:>24}" for cell in cells))
    return [*lines, str(fidelity)] if fidelity.conclusion == BETTER else lines


def measured_metrics(fidelity: Fidelity, metrics: Iterable[str]) -> list[str]:
    """Those of the metrics that a record has; one of an earlier version has neither correlation of sums nor recall."""
    measured = {
        name for quadrant in fidelity.quadrants.values() for row in quadrant["methods"].values() for name in row
    }
    return [name for name in metrics if name in measured]


def correlation_name(history: LabelHistory) -> str:
    """The correlation by which labelling stopped."""
    return "rank correlation" if history.is_of_ranks else "subset-sum correlation"


def _cell(value: float | None, span: Sequence[float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if span is None else f"{value:.2f} [{span[0]:.2f}, {span[1]:.2f}]"


def _verification_line(verification: Verification, summary: Summary) -> str:
    value = verification.value
    if summary.measured_by:
        return (
            f"Verified: {summary.measured_by} on a shortlist of {counted(verification.samples, 'sample')} and"
            f" {counted(verification.targets, 'target')}. Best influence in the subset, mean over these targets:"
            f" {value['exact']:.4g}; for the selection by {summary.exact} alone:"
            f" {value['exact_of_the_choice_by_estimates']:.4g}."
        )
    return (
        f"Verified: exact influence of a shortlist of {counted(verification.samples, 'sample')} on"
        f" {counted(verification.targets, 'target')}. Best influence in the subset, mean over these targets:"
        f" {value['exact']:.4g} exact"
        f" ({value['estimated']:.4g} estimated before;"
        f" {value['exact_of_the_choice_by_estimates']:.4g} exact for the selection by estimates alone)."
    )


def _history_line(history: LabelHistory, target: float) -> str:
    last = history.rounds[-1]
    return (
        f"Active labelling stopped after {counted(len(history.rounds), 'round')}: {ending(history, target)}"
        f" ({correlation_name(history)} {last['reached'] or 0:.2f} on"
        f" {counted(len(history.held_out[0]), 'held-out sample')}, {counted(last['pairs'], 'training pair')})."
    )
