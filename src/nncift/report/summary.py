"""The record of a run (`Summary`) from the files of its stages, and a short text for the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from nncift.data.pool import PoolFacts
from nncift.errors import printable
from nncift.run.costs import Costs, duration
from nncift.run.files import read_array, read_json
from nncift.run.folder import RunFolder, SampleFolder
from nncift.run.records import Fidelity, LabelHistory, Summary, Verification
from nncift.selection.selection import Selection

_TARGET_FIDELITY = 0.5  # of runs that did not record theirs
_METRICS = {"r2": "R2", "spearman_within_target": "within target", "spearman_row_mean": "row means", "mse": "MSE"}
_HELD_OUT = {"Q2": "new pool samples", "Q4": "new pool samples and targets", "Q3": "new targets"}


def write_summary(folder: RunFolder, selection: Selection, *, all_pairs: int) -> Summary:
    """Write the summary of a run whose other files are there; `all_pairs` are the entries of the influence matrix."""
    config, features = read_json(folder.config), _features(folder)
    pool, target, known = (_facts(folder.samples(side)) for side in ("pool", "target", "known"))
    assert pool is not None
    fidelity, tokens, notes = Fidelity.find(folder.fidelity), folder.tokens, folder.labels.notes
    labelled = sum(fidelity.pairs.values()) if fidelity else 0
    cut = len(read_json(notes)["cut"]) if notes.exists() else None
    summary = Summary(
        pool=pool,
        target=target,
        known=known if known is None else known | {"value": _known_value(folder, selection)},
        labelled_pairs=labelled,
        all_pairs=all_pairs,
        exact_all_pairs=None if config.get("labels_from") else _exact_cost(folder, labelled, all_pairs, pool["rows"]),
        selected=len(selection),
        tokens_selected=int(read_array(tokens)[selection.indices].sum()) if tokens.exists() else None,
        objective=selection.objective,
        objective_options=selection.objective_options,
        value=float(selection.value),
        encoder={
            "name": " + ".join(str(part["encoder"]) for part in features),
            "truncated": max(part["truncated"] for part in features),
            "width": sum(part["width"] for part in features),
        },
        language_model=None if cut is None else {"name": config.get("model"), "cut": cut},
        warnings=_warnings(target, fidelity, features, cut, selection.gains),
    )
    summary.save(folder.summary)
    return summary


def _facts(samples: SampleFolder) -> dict[str, Any] | None:
    """`PoolFacts` of one side, without the options it was read with."""
    stored = read_json(samples.facts) if samples.facts.exists() else None
    return stored and PoolFacts.from_dict(stored).to_dict()


def _known_value(folder: RunFolder, selection: Selection) -> float | None:
    """Coverage by the known samples in the conditional gain: nu * their largest influence, summed over the targets."""
    nu = selection.objective_options.get("nu")
    return None if nu is None else nu * float(np.maximum(read_array(folder.known), 0).sum(dtype=np.float64))


def _features(folder: RunFolder) -> list[dict[str, Any]]:
    """Facts of the pool's features, the language model's last."""
    facts = [read_json(folder.features.facts(name)) for name in folder.features.names("pool")]
    return sorted(facts, key=lambda part: "blocks" in part)


def _exact_cost(folder: RunFolder, labelled: int, all_pairs: int, n_pool: int) -> dict[str, float] | None:
    """Cost of labelling every pair, extrapolated from the labelled ones; a pointwise score is one pair per sample."""
    if not labelled:
        return None
    cost, pointwise = Costs(folder.costs).stages["labels"], read_json(folder.labels.plan).get("pointwise", False)
    share = (n_pool if pointwise else all_pairs) / labelled
    return {"seconds": cost.seconds * share, "forward_tokens": round(cost.forward_tokens * share)}


def _warnings(
    target: dict[str, Any] | None,
    fidelity: Fidelity | None,
    features: Sequence[dict[str, Any]],
    cut: int | None,
    gains: np.ndarray,
) -> list[str]:
    warnings = []
    if target is not None and target["rows"] == 1:
        warnings.append("The target is one sample: the subset serves that sample, not a task.")
    if fidelity is not None and not fidelity.beats_baselines:
        warnings.append(fidelity.verdict)
    for part in features:
        if part["truncated"] > part["rows"] / 10:
            longest = f"context of {part['encoder']}" if "blocks" in part else "encoder's maximum length"
            warnings.append(f"{part['truncated']:,} of {part['rows']:,} texts exceed the {longest} and were truncated.")
    if cut:
        warnings.append(f"{cut:,} labelled samples exceed the language model's context and were truncated.")
    idle = int(np.sum(gains <= 0))
    if idle == len(gains):
        warnings.append("All estimated gains are at most 0: the selection is arbitrary.")
    elif idle:
        without = f"{idle:,} of the {len(gains):,} selected samples have no gain"
        warnings.append(f"{without}: the objective is saturated; a smaller `budget` has the same value.")
    return warnings


def summary_text(folder: str | os.PathLike[str]) -> str:
    """The run as a short text for the terminal, with everything from the data escaped."""
    run = RunFolder(folder)
    summary = Summary.load(run.summary)
    lines = [f"{'stage':<10} {'seconds':>9} {'LLM tokens':>12}"]
    for name, cost in Costs(run.costs).stages.items():
        lines.append(f"{name:<10} {cost.seconds:>9.1f} {cost.forward_tokens + cost.backward_tokens:>12,}")
    if (exact := summary.exact_all_pairs) is not None:
        lines.append(
            f"{summary.labelled_pairs:,} of {summary.all_pairs:,} pairs labelled; all of them would take"
            f" about {duration(exact['seconds'])} and {exact['forward_tokens']:,} LLM tokens (extrapolated)."
        )
    if (history := LabelHistory.find(run.labels.history)) is not None:
        lines.append(_history_line(history, target_fidelity(run, history)))
    if (fidelity := Fidelity.find(run.fidelity)) is not None:
        lines += ["", *_fidelity_lines(fidelity)]
    rows = summary.pool["rows"]
    lines += ["", f"Selected: {summary.selected:,} of {rows:,} samples ({summary.selected / rows:.1%})."]
    if summary.known is not None:
        share, objective = known_coverage(summary), summary.objective.replace("-", " ")
        covered = "" if share is None else f"; they provide {share:.0%} of the targets' coverage"
        lines.append(f"Known: {summary.known['rows']:,} samples, {objective}{covered}.")
    if (verification := Verification.find(run.verification)) is not None:
        lines.append(_verification_line(verification))
    lines += [f"Warning: {warning}" for warning in summary.warnings]
    lines += [f"Subset: {run.subset}", f"Report: {run.report}"]
    return "\n".join(printable(line) for line in lines)


def target_fidelity(run: RunFolder, history: LabelHistory) -> float:
    """The rank correlation at which labelling was to stop; from the config where an earlier version recorded none."""
    return float(history.target_fidelity or read_json(run.config).get("fidelity") or _TARGET_FIDELITY)


def ending(history: LabelHistory, target: float) -> str | None:
    """Why labelling stopped."""
    return "target fidelity reached" if (history.rounds[-1]["reached"] or 0) >= target else history.ended


def known_coverage(summary: Summary) -> float | None:
    """Share of the targets' final coverage that the known samples provide; None where it was not computed."""
    value = None if summary.known is None else summary.known.get("value")
    return value / (value + summary.value) if value else value


def _fidelity_lines(fidelity: Fidelity) -> list[str]:
    name = next((q for q in _HELD_OUT if q in fidelity.quadrants), None)
    if name is None:
        return [fidelity.verdict]
    lines = [f"{'fidelity on ' + _HELD_OUT[name]:<42}" + "".join(f"{label:>15}" for label in _METRICS.values())]
    for method, row in fidelity.quadrants[name]["methods"].items():
        cells = ("" if row[metric] is None else f"{row[metric]:.3f}" for metric in _METRICS)
        lines.append(f"  {method:<40}" + "".join(f"{cell:>15}" for cell in cells))
    return [*lines, fidelity.verdict] if fidelity.beats_baselines else lines


def _verification_line(verification: Verification) -> str:
    value = verification.value
    return (
        f"Verified: exact influence of a shortlist of {verification.samples:,} samples on {verification.targets:,}"
        f" targets. Best influence in the subset, mean over these targets: {value['exact']:.4g} exact"
        f" ({value['estimated']:.4g} estimated before;"
        f" {value['exact_of_the_choice_by_estimates']:.4g} exact for the selection by estimates alone)."
    )


def _history_line(history: LabelHistory, target: float) -> str:
    n, last = len(history.rounds), history.rounds[-1]
    return (
        f"Active labelling stopped after {n} round{'s' if n > 1 else ''}: {ending(history, target)}"
        f" (rank correlation {last['reached'] or 0:.2f} with {last['pairs']:,} pairs)."
    )
