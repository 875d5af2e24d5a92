"""What a run did, in one `summary.json` and one short table for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nncift.config import Config
from nncift.data.pool import PoolFacts
from nncift.errors import printable
from nncift.features.features import feature_facts
from nncift.features.sources import feature_sources
from nncift.run.costs import duration
from nncift.run.files import read_array, read_json, write_json
from nncift.selection.selection import Selection


def write_summary(
    folder: Path,
    config: Config,
    selection: Selection,
    *,
    pool: PoolFacts,
    target: PoolFacts | None,
    all_pairs: int,
) -> None:
    """Write `summary.json` from what the stages left in the run folder.

    Args:
        folder: the run folder; features, labels, costs and fidelity are read from it.
        config: the run's.
        selection: what was chosen.
        pool: bookkeeping of the pool's reading.
        target: the same for the target, if there is one.
        all_pairs: entries of the influence matrix.
    """
    names = feature_sources(config).names("pool").values()
    features = [feature_facts(folder / "features", name) for name in names]
    notes_path, fidelity_path = folder / "labels" / "notes.json", folder / "fidelity.json"
    cut = len(read_json(notes_path)["cut"]) if notes_path.exists() else None
    labelled = 0
    if fidelity_path.exists():
        labelled = sum(read_json(fidelity_path)["pairs"].values())
    tokens = folder / "tokens.npy"
    write_json(
        folder / "summary.json",
        {
            "pool": pool.to_dict(),
            "target": None if target is None else target.to_dict(),
            "labelled_pairs": labelled,
            "all_pairs": all_pairs,
            "exact_all_pairs": None if config.labels_from else _extrapolate(folder, labelled, all_pairs, pool.rows),
            "selected": len(selection.indices),
            "tokens_selected": int(read_array(tokens)[selection.indices].sum()) if tokens.exists() else None,
            "objective": selection.objective,
            "objective_options": selection.objective_options,
            "value": float(selection.value),
            "encoder": {
                "name": " + ".join(str(part["encoder"]) for part in features),
                "truncated": max(part["truncated"] for part in features),
                "width": sum(part["width"] for part in features),
            },
            "language_model": None if cut is None else {"name": config.model, "cut": cut},
            "warnings": _warnings(folder, features, selection, cut, target),
        },
    )


def _extrapolate(folder: Path, labelled: int, all_pairs: int, samples: int) -> dict[str, float] | None:
    """What labelling every pair exactly would have cost, at the measured cost per labelled pair.

    Where a score holds for all targets, that is one pair for each sample.
    """
    if not labelled:
        return None
    cost = read_json(folder / "costs.json")["stages"]["labels"]
    pointwise = read_json(folder / "labels" / "plan.json").get("pointwise", False)
    share = (samples if pointwise else all_pairs) / labelled
    return {"seconds": cost["seconds"] * share, "forward_tokens": round(cost["forward_tokens"] * share)}


def _warnings(
    folder: Path, features: list[dict[str, Any]], selection: Selection, cut: int | None, target: PoolFacts | None
) -> list[str]:
    warnings = []
    if target is not None and target.rows == 1:
        warnings.append("The target is one sample: the subset serves that sample, not a task.")
    path = folder / "fidelity.json"
    if path.exists() and not (measured := read_json(path))["beats_baselines"]:
        warnings.append(measured["verdict"])
    for part in features:
        if part["truncated"] > part["rows"] / 10:
            what = "what was cut" if "blocks" in part else "what follows"
            reader = f"The language model {part['encoder']}" if "blocks" in part else "The encoder"
            warnings.append(
                f"{reader} cut {part['truncated']:,} of {part['rows']:,} texts: their features miss {what}."
            )
    if cut:
        warnings.append(f"{cut:,} labelled samples were cut to fit the language model's context.")
    idle = int(np.sum(np.asarray(selection.gains) <= 0))
    if idle == len(selection.gains):
        warnings.append("No sample is estimated to help any target: the choice means nothing.")
    elif idle:
        warnings.append(
            f"{idle:,} of the {len(selection.gains):,} chosen samples add nothing to the objective:"
            " everything is covered before; a smaller --budget holds the same value."
        )
    return warnings


def summary_text(folder: Path) -> str:
    """The run as a short table for the terminal; nothing from the data stands in it unescaped."""
    summary, costs = read_json(folder / "summary.json"), read_json(folder / "costs.json")["stages"]
    lines = [f"{'stage':<10} {'seconds':>9} {'LLM tokens':>12}"]
    for name, cost in costs.items():
        lines.append(f"{name:<10} {cost['seconds']:>9.1f} {cost['forward_tokens'] + cost['backward_tokens']:>12,}")
    exact = summary["exact_all_pairs"]
    if exact is not None:
        lines.append(
            f"{summary['labelled_pairs']:,} of {summary['all_pairs']:,} pairs labelled; all of them would take"
            f" about {duration(exact['seconds'])} and {exact['forward_tokens']:,} LLM tokens (extrapolated)."
        )
    if (folder / "labels" / "rounds.json").exists():
        lines.append(_rounds_line(read_json(folder / "labels" / "rounds.json")))
    if (folder / "fidelity.json").exists():
        lines += ["", *_fidelity_lines(read_json(folder / "fidelity.json"))]
    rows = summary["pool"]["rows"]
    lines += ["", f"Chosen: {summary['selected']:,} of {rows:,} samples ({summary['selected'] / rows:.1%})."]
    if (folder / "verify" / "verify.json").exists():
        lines += _verified_lines(read_json(folder / "verify" / "verify.json"))
    lines += [f"Warning: {warning}" for warning in summary["warnings"]]
    lines += [f"Subset: {folder / 'subset.jsonl'}", f"Report: {folder / 'report.html'}"]
    return "\n".join(printable(line) for line in lines)


def _fidelity_lines(measured: dict[str, Any]) -> list[str]:
    columns = {"r2": "R2", "spearman_within_target": "within target", "spearman_row_mean": "row means", "mse": "MSE"}
    name = next((q for q in ("Q2", "Q4", "Q3") if q in measured["quadrants"]), None)
    if name is None:
        return [measured["verdict"]]
    what = {
        "Q2": "pool samples it never saw",
        "Q3": "targets it never saw",
        "Q4": "samples it never saw, on both sides",
    }
    lines = [f"{'fidelity on ' + what[name]:<42}" + "".join(f"{label:>15}" for label in columns.values())]
    for method, row in measured["quadrants"][name]["methods"].items():
        cells = ("" if row[metric] is None else f"{row[metric]:.3f}" for metric in columns)
        lines.append(f"  {method:<40}" + "".join(f"{cell:>15}" for cell in cells))
    return lines if not measured["beats_baselines"] else [*lines, measured["verdict"]]


def _verified_lines(facts: dict[str, Any]) -> list[str]:
    value = facts["value"]
    return [
        f"Measured: a shortlist of {facts['samples']:,} samples on {facts['targets']:,} targets. Best influence in the"
        f" subset, mean over these targets: {value['exact']:.4g} measured ({value['estimated']:.4g} estimated before;"
        f" {value['exact_of_the_choice_by_estimates']:.4g} measured for what estimates alone would have chosen)."
    ]


def _rounds_line(story: dict[str, Any]) -> str:
    told = ", ".join(f"{one['pairs']:,} pairs {one['reached'] or 0:.2f}" for one in story["rounds"])
    rounds = "1 round" if len(story["rounds"]) == 1 else f"{len(story['rounds'])} rounds"
    return f"Labelled in {rounds} until {story['ended']}: rank correlation with {told}."
