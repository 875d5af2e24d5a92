"""The record of a run (`Summary`) from the files of its stages, and a short text for the terminal."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nncift.data.facts import PoolFacts, open_samples
from nncift.errors import printable
from nncift.labels.pairs import LabelledPairs
from nncift.models.spec import DEFAULT_MODEL
from nncift.report.warnings import warnings_of
from nncift.run.costs import Costs, Rates, Work, duration
from nncift.run.files import read_array, read_json
from nncift.run.folder import RunFolder, SampleFolder
from nncift.run.records import BETTER, Fidelity, LabelHistory, Summary, Verification, counted
from nncift.run.vectors import read_vectors
from nncift.selection.selection import Selection

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


def write_summary(
    folder: RunFolder, selection: Selection, *, all_pairs: int, given: dict[str, Any] | None = None
) -> Summary:
    """Write the summary of a run whose other files are there.

    Args:
        folder: of the run.
        selection: the subset.
        all_pairs: entries of the influence matrix.
        given: description of the network that estimated, where nothing was labelled.
    """
    config, features = read_json(folder.config), _features(folder)
    pool, target, known = (_facts(folder.samples(side)) for side in ("pool", "target", "known"))
    assert pool is not None
    fidelity, tokens, exact = Fidelity.find(folder.fidelity), folder.tokens, _exact_function(folder)
    labelled = all_pairs if exact else sum(fidelity.pairs.values()) if fidelity else 0
    cut = None if any(part.get("vectors") for part in features) else _cut(folder)
    served = _served(folder, selection)
    summary = Summary(
        pool=pool,
        target=target,
        known=known if known is None else known | {"value": _known_value(folder, selection)},
        labelled_pairs=labelled,
        all_pairs=all_pairs,
        exact_all_pairs=_exact_cost(folder),
        selected=len(selection),
        tokens_selected=int(read_array(tokens)[selection.indices].sum()) if tokens.exists() else None,
        objective=selection.objective,
        objective_options=selection.objective_options,
        value=float(selection.value),
        encoder=_encoder(features),
        language_model=None if cut is None else {"name": config.get("model"), "cut": cut},
        warnings=warnings_of(
            target,
            fidelity,
            features,
            cut,
            selection.gains,
            exact=bool(exact),
            served=served,
            objective=selection.objective,
        ),
        exact=exact,
        network=given,
        arrangement=_arrangement(config, selection),
        sources={name: list(counts) for name, counts in selection.by_source().items()} or None,
        served=served,
    )
    summary.save(folder.summary)
    return summary


def _exact_function(folder: RunFolder) -> str:
    """The influence function of a run that computed it exactly for every pair; "" of another run."""
    return str(read_json(folder.function)["name"]) if folder.vectors.is_finished("pool") else ""


def _encoder(features: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Name, width and truncated texts of the pool's features; None where there are none."""
    if not features:
        return None
    return {
        "name": " + ".join(str(part["encoder"]) for part in features),
        "truncated": max(part["truncated"] for part in features),
        "width": sum(part["width"] for part in features),
    }


def _cut(folder: RunFolder) -> int | None:
    """Measured samples that were truncated; None where none can be."""
    notes = next((part.notes for part in (folder.vectors, folder.labels) if part.notes.exists()), None)
    return None if notes is None else len(read_json(notes)["cut"])


def _facts(samples: SampleFolder) -> dict[str, Any] | None:
    """`PoolFacts` of one side, without the options it was read with."""
    stored = read_json(samples.facts) if samples.facts.exists() else None
    return stored and PoolFacts.from_dict(stored).to_dict()


def _known_value(folder: RunFolder, selection: Selection) -> float | None:
    """Coverage by the known samples in the conditional gain: nu * their largest influence, summed over the targets."""
    nu = selection.objective_options.get("nu")
    return None if nu is None else nu * float(np.maximum(read_array(folder.known), 0).sum(dtype=np.float64))


def _served(folder: RunFolder, selection: Selection) -> dict[str, Any] | None:
    """The targets that the selection serves, with the id of the most frequent one; None where they were not counted."""
    found = selection.served
    if found is None:
        return None
    samples = next(path for side in ("target", "pool") if (path := folder.samples(side).samples).exists())
    facts = {"id": open_samples(samples)[found.target]["id"], "largest_share": found.largest_share}
    return asdict(found) | facts | {"is_dominated": found.is_dominated}


def _arrangement(config: Mapping[str, Any], selection: Selection) -> str:
    """Phases, order, difficulty and weights in a line."""
    parts, values, weights = [], selection.difficulty, selection.weights
    if values is not None:
        spans = [_span(values[places]) for places in selection.phases]
        by = f"by {config.get('difficulty')}"
        if selection.phase is not None:
            sizes = (f"{len(places):,} at {span}" for places, span in zip(selection.phases, spans, strict=True))
            parts.append(f"{counted(len(spans), 'phase')} from easy to hard {by} ({', '.join(sizes)})")
        elif config.get("order") == "curriculum":
            parts.append(f"from easy to hard {by} ({spans[0]})")
        else:
            parts.append(f"best first, difficulty {by} {spans[0]}")
    if weights is not None:
        effective = weights.sum() ** 2 / (weights**2).sum()
        parts.append(f"weights {_span(weights)}, effective sample size {effective:,.1f}")
    return "; ".join(parts)


def _span(values: np.ndarray) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"


def _features(folder: RunFolder) -> list[dict[str, Any]]:
    """Facts of the pool's features, the language model's last, or of the encoder whose vectors give the influence."""
    facts = [read_json(folder.features.facts(name)) for name in folder.features.names("pool")]
    if folder.vectors.is_finished("pool") and "encoder" in (function := read_json(folder.function)):
        rows = sum(stored["rows"] for side in ("pool", "target", "known") if (stored := _facts(folder.samples(side))))
        width = read_vectors(folder.vectors, "pool").shape[1]
        facts.append({"encoder": function["encoder"], "truncated": _cut(folder) or 0, "rows": rows, "width": width})
        facts[-1]["vectors"] = True
    return sorted(facts, key=lambda part: "blocks" in part)


def _exact_cost(folder: RunFolder) -> dict[str, float] | None:
    """Cost of labelling every pair, at the rates of the labels; None where the run did not record their parts."""
    all_pairs, cost = Work.find(folder.labels.work), Costs(folder.costs).stages.get("labels")
    taken = folder.taken.exists()  # some were measured in an earlier run
    if taken or all_pairs is None or cost is None or not cost.sample_seconds + cost.pair_seconds:
        return None
    labels = LabelledPairs.load(folder.labels.labels)
    samples = len(np.unique(labels.pool_index))
    if not read_json(folder.labels.plan).get("pointwise"):
        samples += len(np.unique(labels.target_index))
    tokens = None if all_pairs.tokens is None else cost.forward_tokens - all_pairs.warm_up
    labelled = Work(samples, len(labels), tokens, all_pairs.warm_up)
    return {"seconds": Rates.of(cost, labelled).seconds(all_pairs), "forward_tokens": all_pairs.all_tokens or 0}


def summary_text(folder: str | os.PathLike[str]) -> str:
    """The run as a short text for the terminal, with everything from the data escaped."""
    run = RunFolder(folder)
    summary = Summary.load(run.summary)
    lines = [f"{'stage':<10} {'seconds':>9} {'LLM tokens':>12}"]
    for name, cost in Costs(run.costs).stages.items():
        lines.append(f"{name:<10} {cost.seconds:>9.1f} {cost.forward_tokens + cost.backward_tokens:>12,}")
    if (exact := summary.exact_all_pairs) is not None:
        tokens = f" and {exact['forward_tokens']:,} LLM tokens" if exact["forward_tokens"] else ""
        lines.append(
            f"{summary.labelled_pairs:,} of {counted(summary.all_pairs, 'pair')} labelled; all of them would take"
            f" about {duration(exact['seconds'])}{tokens} (extrapolated)."
        )
    if (history := LabelHistory.find(run.labels.history)) is not None:
        lines.append(_history_line(history, target_fidelity(run, history)))
    if (fidelity := Fidelity.find(run.fidelity)) is not None:
        lines += ["", *_fidelity_lines(fidelity)]
    elif summary.exact:
        lines += ["", exactness(summary)]
    elif (caveat := unmeasured(summary, read_json(run.config))) is not None:
        lines += ["", caveat]
    lines.append("")
    for side in ("pool", "target", "known"):
        if (facts := getattr(summary, side)) is not None:
            lines += _data_lines(side, facts)
    rows = summary.pool["rows"]
    lines.append(f"Selected: {summary.selected:,} of {counted(rows, 'sample')} ({summary.selected / rows:.1%}).")
    for name, (chosen, there) in (summary.sources or {}).items():
        lines.append(f"  {chosen:,} of {there:,} from {name}")
    if summary.known is not None:
        share, objective = known_coverage(summary), summary.objective.replace("-", " ")
        covered = "" if share is None else f"; they provide {share:.0%} of the targets' coverage"
        lines.append(f"Objective: {objective} over {counted(summary.known['rows'], 'known sample')}{covered}.")
    if summary.arrangement:
        lines.append(f"Arranged: {summary.arrangement}.")
    if (verification := Verification.find(run.verification)) is not None:
        lines.append(_verification_line(verification))
    if run.taken.exists():
        taken = read_json(run.taken)
        lines.append(f"From {taken['run']}: {'; '.join(taken['notes'].values())}.")
    lines += [f"Warning: {warning}" for warning in summary.warnings]
    lines += [f"Subset: {run.subset}", f"Report: {run.report}"]
    return "\n".join(printable(line) for line in lines)


def target_fidelity(run: RunFolder, history: LabelHistory) -> float:
    """The correlation at which labelling was to stop; from the config where an earlier version recorded none."""
    return float(history.target_fidelity or read_json(run.config).get("fidelity") or _TARGET_FIDELITY)


def ending(history: LabelHistory, target: float) -> str | None:
    """Why labelling stopped."""
    return "target fidelity reached" if (history.rounds[-1]["reached"] or 0) >= target else history.ended


def known_coverage(summary: Summary) -> float | None:
    """Share of the targets' final coverage that the known samples provide; None where it was not computed."""
    value = None if summary.known is None else summary.known.get("value")
    return value / (value + summary.value) if value else value


def exactness(summary: Summary) -> str:
    """That the influence of a run is not estimated."""
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


def _verification_line(verification: Verification) -> str:
    value = verification.value
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
